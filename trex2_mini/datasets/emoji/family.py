"""The embedded family as a whole: all sets made at once, and their table."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

from trex2_mini.datasets.emoji.sets import EMOJI_SETS, make_emoji_set
from trex2_mini.paths import EMOJI_MANIFEST, data_root

SHEET = EMOJI_MANIFEST.with_name("emoji_family.jpg")  # its pictures


def make_family() -> list[Path]:
    """Make every set that is not there yet; the folders, in the order of EMOJI_SETS. About two minutes on two cores."""
    root = data_root()
    largest_first = sorted(EMOJI_SETS, key=lambda name: -EMOJI_SETS[name].scenes)
    # fresh processes: forking one that runs torch's threads may hang
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(make_emoji_set, name, root, workers=1, progress=False) for name in largest_first]
        folders = {}
        for name, job in zip(tqdm(largest_first, "making the emoji family", unit="set"), jobs):
            folders[name] = job.result()
    return [folders[name] for name in EMOJI_SETS]


def table(sets: dict[str, dict]) -> str:
    """The statistics of the sets in Markdown; `sets` as in data/emoji_manifest.json."""
    lines = [
        "| set | images | boxes | categories (novel) | boxes an image | median side, px |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, s in sets.items():
        categories = f"{s['categories']} ({s['novel']})"
        lines.append(
            f"| {name} | {s['images']:,} | {s['annotations']:,} | {categories} | {s['boxes_an_image']} |"
            f" {s['median_side']} |"
        )
    return "\n".join(lines)
