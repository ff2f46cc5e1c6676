"""What the commands share: how they show examples, options of several values, and the options that many have."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


class Several(click.Option):
    """An option that takes the values up to the next option: `--set steps=10 lr=1e-4`; it may be repeated too."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, multiple=True, **kwargs)


class Command(click.Command):
    """A command whose docstring ends with "Examples:" and command lines; its options may be of class Several."""

    def __init__(self, *args: Any, help: str, **kwargs: Any):
        help, _, examples = help.partition("Examples:")
        super().__init__(*args, help=help.rstrip(), **kwargs)
        self.examples = [line.strip() for line in examples.strip().splitlines()]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args, {f for p in self.params if isinstance(p, Several) for f in p.opts}))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            formatter.write("".join(f"  {line}\n" for line in self.examples))


class Group(Command, click.Group):
    command_class = Command


command = functools.partial(click.command, cls=Command)
group = functools.partial(click.group, cls=Group, no_args_is_help=False)


def spread(args: Sequence[str], several: set[str]) -> list[str]:
    """`--set a b` as click reads it: `--set a --set b`; a number below zero is a value."""
    spelled, flag = [], None
    for arg in args:
        if arg.startswith("-") and not arg[1:2].isdigit():
            flag = arg if arg in several else None
        elif flag and spelled[-1] != flag:
            spelled.append(flag)
        spelled.append(arg)
    return spelled


def checkpoint(
    help: str = "A shipped name (nano-photo: photographs, nano-emoji: drawings) or a folder.",
    default: str = "nano-photo",
):
    return click.option("--checkpoint", default=default, show_default=True, metavar="NAME|FOLDER", help=help)


def write_result(what: str = "Write the result here."):
    return click.option("--json", "json_path", type=PATH, metavar="FILE", help=what)


def write_json(path: Path | None, result: dict) -> None:
    """Nothing without a path; its folder is made if missing."""
    if path:
        from trex2_mini.paths import write_text

        write_text(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
