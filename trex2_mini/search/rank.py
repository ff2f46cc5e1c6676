"""The question to an index and its answer: the index gives a shortlist, the detector looks at its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trex2_mini.detector import Detections, Detector
from trex2_mini.images import load_image
from trex2_mini.model.text_prompt import check_names
from trex2_mini.model.visual_prompt import RegionPrompts
from trex2_mini.prompt_bank import PromptBank
from trex2_mini.search.index import PhotoIndex

SHORTLIST = 30  # pictures that the detector looks at


@dataclass
class Hit:
    """A picture that was found, its score in 0..1, and what was found on it."""

    path: Path
    score: float
    detections: Detections


@torch.inference_mode()
def question(
    detector: Detector,
    text: str | Sequence[str] | None = None,
    image: Any = None,
    boxes: Mapping[str, Any] | Sequence | None = None,
    points: Mapping[str, Any] | Sequence | None = None,
    prompts: PromptBank | None = None,
) -> PromptBank:
    """One embedding a name from all that is given, mixed as `Detector.detect` mixes: examples of a name are averaged,
    and then averaged with its word.

    text, boxes, points, prompts: see `Detector.detect`; boxes and points lie on `image`, the example picture. Raises
    ValueError where nothing is asked for, or boxes or points come without their picture.
    """
    if (image is None) != (boxes is None and points is None):
        raise ValueError(
            "an example is a picture and boxes or points on it: give image=..., and boxes=... or points=..."
        )
    examples: dict[str, list[torch.Tensor]] = {}
    if image is not None:
        encoded = detector._encoded(image)
        regions = detector._regions(encoded, boxes, points)
        drawn = RegionPrompts.from_lists([list(regions.values())], detector.device)
        for name, vector in zip(regions, detector.model.encode_visual(encoded.features, drawn)[0], strict=True):
            examples[name] = [vector]
    if prompts is not None:
        for name, vector in zip(prompts.names, prompts.embeddings.to(detector.device), strict=True):
            examples.setdefault(name, []).append(vector)
    vectors = {name: torch.stack(own).mean(0) for name, own in examples.items()}
    if text is not None:
        names = list(dict.fromkeys(check_names(text)))
        for name, vector in zip(names, detector.model.encode_text(names), strict=True):
            vectors[name] = (vector + vectors[name]) / 2 if name in examples else vector
    if not vectors:
        raise ValueError("nothing is asked for: give text=..., image=... with boxes=... or points=..., or prompts=...")
    return PromptBank(list(vectors), torch.stack(list(vectors.values())))


def search(
    index: PhotoIndex,
    text: str | Sequence[str] | None = None,
    image: Any = None,
    boxes: Mapping[str, Any] | Sequence | None = None,
    points: Mapping[str, Any] | Sequence | None = None,
    prompts: PromptBank | None = None,
    top: int = 10,
    shortlist: int = SHORTLIST,
    every: bool = False,
    score_threshold: float = 0.3,
) -> list[Hit]:
    """The `top` pictures of an index for a `question`, best first.

    shortlist  the detector looks at so many pictures (at least `top`), those that the index finds best; 0: the index
               alone answers, in a hundredth of the time
    every      all names must be on the picture: its score is that of the least likely name, else of the likeliest
    score_threshold  of the boxes that are given with a picture; its best box always is
    A picture that can no longer be read is left out, and named in `index.unreadable`. Raises ValueError as `question`
    does, and where the index is empty.
    """
    if top < 1 or shortlist < 0:
        raise ValueError(f"expected top of at least 1 and shortlist of at least 0, got {top} and {shortlist}")
    asked = question(index.detector, text, image, boxes, points, prompts)
    files = index.files
    if not files:
        raise ValueError(f"the index {index.where} is empty: call update() first")
    scores = index.scores(asked.embeddings)
    likely = (scores.amin(1) if every else scores.amax(1)).topk(min(max(top, shortlist), len(files))).indices
    hits = []
    for name in [files[place] for place in likely.tolist()]:
        try:
            image = load_image(index.folder / name) if shortlist else None
        except (ValueError, OSError) as error:
            index.leave_out(name, str(error))
            continue
        if shortlist:
            found = index.detector.detect(image, prompts=asked, score_threshold=0)
        else:
            found = index.detections(name, asked)
        best = [float(found.scores[found.labels == label].max(initial=0)) for label in range(len(asked.names))]
        shown = found.filter(min(score_threshold, float(found.scores.max(initial=0))))
        hits.append(Hit(index.folder / name, min(best) if every else max(best), shown))
    return sorted(hits, key=lambda hit: -hit.score)[:top]
