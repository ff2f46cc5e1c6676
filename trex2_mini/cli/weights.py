"""`trex2 warm-start`, `distil`, `slim` and `export`: checkpoints from others, with more words, smaller, for others."""

import json
from pathlib import Path

import click

from trex2_mini.cli.options import PATH, checkpoint, command

OUT = click.option("--out", type=PATH, required=True, metavar="FOLDER", help="Where to write.")


@command()
@click.option("--from", "source", required=True, metavar="FOLDER|OWNER/NAME", help="Of transformers, or on the Hub.")
@click.option("--preset", default="swin_t", help="The model to fill.")
@click.option("--config", type=PATH, metavar="FILE", help="A config.json instead of a preset.")
@click.option("--random-weights", is_flag=True, help="The rest does not start from ImageNet and CLIP weights.")
@OUT
def warm_start(source: str, preset: str, config: Path | None, random_weights: bool, out: Path) -> None:
    """A checkpoint from transformers' Deformable DETR or Grounding DINO.

    Examples:
    trex2 warm-start --from IDEA-Research/grounding-dino-tiny --out runs/warm
    trex2 warm-start --from newocean.safetensors --config config.json --out runs/warm
    """
    from trex2_mini import config as configs
    from trex2_mini.weights.warm_start import warm_start_folder

    filled = configs.Config.load(config) if config else configs.preset(preset)
    print(warm_start_folder(source, filled, out, not random_weights))
    print(f"checkpoint: {out}")


@command()
@checkpoint("A shipped name or a folder; trained on emoji scenes.", default="nano-emoji")
@OUT
@click.option("--steps", type=int, default=1000)
def distil(checkpoint: str, out: Path, steps: int) -> None:
    """Teach the text tower of a checkpoint more words, with a sentence encoder (extra `distill`).

    Examples:
    trex2 distil --checkpoint runs/mine --out runs/mine-words
    trex2 distil --checkpoint nano-emoji --out runs/words --steps 2000
    """
    from trex2_mini.weights.text_distillation import distil_checkpoint

    print(json.dumps(distil_checkpoint(checkpoint, out, steps)))


@command()
@checkpoint()
@OUT
@click.option("--size", nargs=2, type=int, default=(192, 256), metavar="HEIGHT WIDTH", help="Of the images, in pixels.")
@click.option("--text", default="", help="Names whose embeddings are to go along, separated by commas.")
def export(checkpoint: str, out: Path, size: tuple[int, int], text: str) -> None:
    """Write a checkpoint as ONNX programs: encoder, prompt, decoder (extra `export`).

    Examples:
    trex2 export --out runs/onnx
    trex2 export --checkpoint runs/mine --out runs/onnx --size 480 640 --text "cat, dog"
    """
    from trex2_mini.detector import Detector
    from trex2_mini.names import check_names
    from trex2_mini.weights.onnx import export_onnx

    names = check_names(text) if text else []
    for path in sorted(export_onnx(Detector.load(checkpoint, "cpu"), out, *size, names).iterdir()):
        print(f"{path}  {path.stat().st_size:,} bytes")


@command()
@checkpoint("A shipped name or a folder, with its vocabulary.json.")
@OUT
def slim(checkpoint: str, out: Path) -> None:
    """Write a checkpoint without the tokens that its text tower was never taught: half the size.

    Examples:
    trex2 slim --checkpoint runs/mine --out runs/mine-slim
    trex2 slim --checkpoint nano-emoji --out runs/small
    """
    from trex2_mini.weights.slim import slim as write

    found = write(checkpoint, out)
    print(f"{out}: {found['kept']:,} of {found['tokens']:,} tokens, {found['bytes'] / 1e6:.1f} MB")
