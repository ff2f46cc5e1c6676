"""data/results/alignment_control.safetensors: V and T of two models of `trex2 ablate`, trained with and without
equation 9 and alike in all else; notebook 08 shows them.

    trex2 ablate --variants joint "joint, no alignment" --seeds 2 --steps 1000 --work runs/ablations
    python data/makers/alignment_control.py runs/ablations 2 1000

Every category of the small world has `EXAMPLES` V, each from all its boxes on a scene that nothing was trained or
measured on. Tensors (half precision): with/V and without/V [K, D], with/T and without/T [C, D], place [K], the category
of each V. Metadata: names (JSON list of C, the trained ones first), trained (how many), variants, seed, steps, commit.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from trex2_mini.checkpoint import write_tensors
from trex2_mini.datasets.sample import normalized_boxes
from trex2_mini.detector import Detector
from trex2_mini.evaluation.provenance import describe_code
from trex2_mini.model.visual_prompt import RegionPrompts
from trex2_mini.paths import REPOSITORY
from trex2_mini.reproduction.ablations import NOVEL, TRAINED, small_set, small_world

FILE = REPOSITORY / "data" / "results" / "alignment_control.safetensors"
VARIANTS = {"with": "joint", "without": "joint--no-alignment"}
EXAMPLES, SEED = 12, 3_000_003  # V a category; the scenes' seed
HELD = 4  # categories a scene


@torch.inference_mode()
def vectors(detector: Detector, work: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """V [K, D] of every example, ordered by category, and the category of each [K]."""
    scenes = small_set(work / "alignment", SEED, (TRAINED + NOVEL) * EXAMPLES // HELD + 9, HELD)
    found: list[list[torch.Tensor]] = [[] for _ in scenes.names]
    for sample in scenes:
        labels, boxes = np.unique(sample.labels), normalized_boxes(sample)
        regions = [(boxes[torch.from_numpy(sample.labels == label)], torch.zeros(0, 2)) for label in labels]
        features = detector.encode_batch([sample.image])
        rows = detector.model.encode_visual(features, RegionPrompts.from_lists([regions]))[0]
        for label, row in zip(labels, rows):
            found[label].append(row)
    if min(map(len, found)) < EXAMPLES:
        raise SystemExit(f"a category has {min(map(len, found))} examples, expected {EXAMPLES}")
    place = torch.arange(len(found), dtype=torch.uint8).repeat_interleave(EXAMPLES)
    return torch.stack([row for own in found for row in own[:EXAMPLES]]), place


def main(work: Path, seed: str, steps: str) -> None:
    names = [category.name for category in small_world()]
    tensors = {}
    for key, variant in VARIANTS.items():
        detector = Detector.load(work / f"{variant}-{seed}-{steps}", device="cpu")
        visual, tensors["place"] = vectors(detector, work)
        tensors |= {f"{key}/V": visual.half(), f"{key}/T": detector.encode_text(names).half()}
    about = {"names": json.dumps(names), "trained": str(TRAINED), "variants": json.dumps(VARIANTS), "seed": seed}
    about |= {"steps": steps, "commit": str(describe_code()["commit"]), "made by": "data/makers/alignment_control.py"}
    write_tensors(FILE, tensors, about)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:4])
