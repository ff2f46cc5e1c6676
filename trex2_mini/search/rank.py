"""The question to an index and its answer: the index gives a shortlist, the detector looks at its pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trex2_mini.detections import Detections
from trex2_mini.images import UnreadablePicture
from trex2_mini.prompt_bank import PromptBank
from trex2_mini.search.index import PhotoIndex

SHORTLIST = 10  # pictures that the detector looks at: a second of one thread; longer ones find no more (measured)


@dataclass
class Hit:
    """A picture that was found, its score in 0..1, and what was found on it."""

    path: Path
    score: float
    detections: Detections


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
    """The `top` pictures of an index for a question, best first.

    text, boxes, points, prompts   see `Detector.ask`; boxes and points lie on `image`, the example picture
    shortlist  the detector looks at so many pictures (at least `top`), those that the index finds best; 0: the index
               alone answers, in a hundredth of the time
    every      all names must be on the picture: its score is that of the least likely name, else of the likeliest
    score_threshold  of the boxes that are given with a picture; its best box always is
    A picture that can no longer be read is left out, and named in `index.unreadable`. Raises ValueError as `ask`
    does, and where the index is empty.
    """
    if top < 1 or shortlist < 0:
        raise ValueError(f"expected top of at least 1 and shortlist of at least 0, got {top} and {shortlist}")
    asked = index.detector.ask(image, text, boxes, points, prompts)
    files = index.files
    if not files:
        raise ValueError(f"the index {index.where} is empty: call update() first")
    scores = index.scores(asked.embeddings)
    likely = (scores.amin(1) if every else scores.amax(1)).topk(min(max(top, shortlist), len(files))).indices
    hits = []
    for name in [files[place] for place in likely.tolist()]:
        try:
            if shortlist:
                found = index.detector.detect(index.folder / name, prompts=asked, score_threshold=0)
            else:
                found = index.detections(name, asked)
        except (UnreadablePicture, OSError) as error:
            index.leave_out(name, str(error))
            continue
        best = [float(found.scores[found.labels == label].max(initial=0)) for label in range(len(asked.names))]
        shown = found.filter(min(score_threshold, float(found.scores.max(initial=0))))
        hits.append(Hit(index.folder / name, min(best) if every else max(best), shown))
    return sorted(hits, key=lambda hit: -hit.score)[:top]
