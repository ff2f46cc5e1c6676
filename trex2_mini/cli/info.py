"""`trex2 info`."""

import sys
import time

import click

from trex2_mini.cli.options import command


@command()
@click.option("--preset", default="nano", help="nano, swin_t or swin_l; weights are random.")
@click.option(
    "--size", nargs=2, type=click.IntRange(1), metavar="HEIGHT WIDTH", help="Run one image of so many pixels."
)
def info(preset: str, size: tuple[int, int] | None) -> None:
    """Parameters by part of a preset; with --size, time and memory of a forward pass.

    Examples:
    trex2 info
    trex2 info --preset swin_t --size 800 1066
    """
    import torch

    from trex2_mini import config
    from trex2_mini.model.trex2 import TRex2

    torch.manual_seed(0)
    model = TRex2(config.preset(preset).model, pretrained=False).eval()
    parts = {"backbone alone": model.image_encoder.backbone, "total": model}
    for name, part in [*model.named_children(), *parts.items()]:
        print(f"{name:24s} {sum(p.numel() for p in part.parameters()):12,d} parameters")
    if size:
        with torch.inference_mode():
            start = time.perf_counter()
            features = model.encode_images([torch.rand(3, *size)])
            encoded = time.perf_counter()
            output = model.decode(features, model.encode_text(["cat", "dog"]))
            seconds = f"encode {encoded - start:.2f} s, text prompts and decode {time.perf_counter() - encoded:.2f} s"
        tokens, queries = features.tokens.shape[1], output.boxes.shape[1]
        print(f"image {size[0]} x {size[1]}: {tokens:,} tokens, {queries} queries")
        print(f"{seconds}, {torch.get_num_threads()} threads\npeak memory of the process: {peak_memory()}")


def peak_memory() -> str:
    try:
        import resource
    except ModuleNotFoundError:  # Windows has none
        return "not known on this system"
    kept = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{kept / 2**30:.2f} GiB"
