"""The command line, `trex2` or `python -m trex2_mini`: one file a command or a family of commands.

A command's file is imported when it is asked for, and what needs torch within its function, so that `--help` answers at
once.
"""

import sys
import warnings
from importlib import import_module

import click

from trex2_mini import __version__
from trex2_mini.cli.options import Group

# section -> command -> (module:attribute of this package, what `trex2 --help` says of it)
SECTIONS = {
    "Find objects": {
        "detect": ("detect:detect", "find objects on pictures, by names, boxes, points or a prompt bank"),
        "count": ("detect:count", "how many objects are on pictures"),
        "classify": ("detect:classify", "what is in these boxes?"),
        "video": ("video:video", "find objects on the frames of a video"),
        "embed": ("bank:embed", "make a prompt bank of examples"),
        "bank": ("bank:bank", "list, merge and change prompt banks"),
        "search": ("search:search", "rank the pictures of a folder by words, examples on a picture, or both"),
        "demo": ("demo:demo", "run the first notebook on the shipped checkpoint"),
    },
    "Sets and measures": {
        "data": ("data:data", "make the embedded sets, fetch public ones, check one"),
        "evaluate": ("evaluate:evaluate", "measure a checkpoint by one of the paper's protocols"),
        "scorecard": ("evaluate:scorecard", "all protocols of a shipped checkpoint, its goals beside its numbers"),
        "suite": ("evaluate:suite", "all protocols over a suite of small sets, with mean and median"),
        "tuning": ("evaluate:tuning", "what tuned prompts bring, against the number of labelled pictures"),
        "benchmark": ("benchmark:benchmark", "speed, as ratios to named references of the same run"),
        "info": ("info:info", "parameters by part of a preset; time and memory of a forward pass"),
    },
    "Train": {
        "train": ("train:train", "train a model on emoji scenes or on sets in COCO format"),
        "engine": ("engine:engine", "pseudo-labels from captions, or from boxes without names"),
        "warm-start": ("weights:warm_start", "a checkpoint from Deformable DETR or Grounding DINO"),
        "distil": ("weights:distil", "teach the text tower of a checkpoint more words"),
        "slim": ("weights:slim", "a checkpoint of half the size, without words it was never taught"),
        "export": ("weights:export", "write a checkpoint as ONNX programs"),
    },
    "Reproduce the paper": {
        "reproduce": ("reproduce:reproduce", "run the notebooks over a grid of parameters; one table of what came out"),
        "ablate": ("reproduce:ablate", "train variants of the recipe with equal budgets in a small world"),
    },
}


class _Root(Group):
    """Imports a command's file on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        for section in SECTIONS.values():
            if name in section:
                module, attribute = section[name][0].split(":")
                return getattr(import_module(f"trex2_mini.cli.{module}"), attribute)
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, what) for name, (_, what) in section.items()])


@click.group(
    cls=_Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True}
)
@click.version_option(__version__, prog_name="trex2")
def trex2() -> None:
    """Find objects on pictures by words, boxes, points or example pictures: an open T-Rex2 (arXiv 2403.14610).

    Boxes are X1 Y1 X2 Y2, points X Y, in pixels from the upper left corner of the picture. `trex2 COMMAND --help`
    shows a command's options.

    Examples:
    trex2 detect photo.jpg --text "cat, dog" --out found.png
    trex2 detect photo.jpg --box 192 30 240 73
    """


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line (default: this process's own) and returns its exit status: 0, or 1 for what went wrong, 2 for
    a wrong command line, 130 for Ctrl-C, after one line on stderr."""
    for stream in (sys.stdout, sys.stderr):  # a console of another encoding shows \u732b instead of failing
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if arguments is None and len(sys.argv) == 1:
        arguments = ["--help"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda said, *_, **__: click.echo(f"warning: {said}", err=True)
            return trex2.main(arguments, prog_name="trex2", standalone_mode=False) or 0
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "trex2"
        message, status = f"error: {error.format_message()} (see {command} --help)", 2
    except (ValueError, OSError, FloatingPointError) as error:
        message, status = f"error: {error}", 1
    except click.Abort:  # Ctrl-C
        message, status = "interrupted", 130
    print(message, file=sys.stderr)
    return status
