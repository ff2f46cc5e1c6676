"""What tuning brings: AP against the number of labelled pictures, beside Visual-G from the same pictures."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from trex2_mini.datasets.registry import open_dataset
from trex2_mini.detector import Detector
from trex2_mini.evaluation.metrics import coco_ap
from trex2_mini.evaluation.trial import coco_results, open_detector
from trex2_mini.names import name_key
from trex2_mini.prompt_bank import PromptBank
from trex2_mini.weights.tuning import STRENGTHS, labelled, tune


def tuning_curve(
    checkpoint: str | Path | Detector,
    learn: str,
    judge: str,
    pictures: Sequence[int] = (2, 5, 10, 20),
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """A row a number of labelled pictures: AP in percent on the pictures of another set, of Visual-G and of each
    strength of tuning; "tuned" is what `tune` takes by the pictures that it holds back.

    Args:
        learn: the set that the labelled pictures are drawn from; the larger draws hold the smaller ones.
        judge: the set that AP is measured on, its first `limit` pictures; names without an example count as 0.

    Raises:
        ValueError: `learn` has too few pictures with boxes.
    """
    detector, _ = open_detector(checkpoint)
    drawn = labelled(open_dataset(learn), max(pictures), seed)
    if len(drawn) < max(pictures):
        raise ValueError(f"{learn} has {len(drawn)} pictures with boxes, expected {max(pictures)}; ask for fewer")
    dataset = open_dataset(judge)
    entries = dataset.coco["images"][:limit]
    encoded = [detector.encode(dataset[i].image) for i in tqdm(range(len(entries)), "encoding", disable=not progress)]
    category = {name_key(name): own["id"] for name, own in zip(dataset.names, dataset.coco["categories"])}

    def ap(asked: Detector, bank: PromptBank) -> float:
        found = []
        for entry, image in zip(entries, encoded):
            image.features.kept.clear()  # of another decoder
            answers = asked.detect(image, prompts=bank, score_threshold=0)
            ids = [category.get(name_key(name)) for name in answers.names]
            found += [row for row in coco_results(answers, entry["id"], ids) if row["category_id"] is not None]
        return coco_ap(dataset.coco, found, image_ids=[entry["id"] for entry in entries])["AP"]

    rows = []
    for count in pictures:
        known = drawn[:count]
        names = dict.fromkeys(name for _, boxes in known for name in boxes)
        mean = detector.embed({name: [(image, own[name]) for image, own in known if name in own] for name in names})
        tuned = {kind: tune(detector, known, strengths=[kind], seed=seed, progress=progress) for kind in STRENGTHS}
        taken = max(STRENGTHS, key=lambda kind: max(tuned[kind].report["AP"][kind].values()))
        row = {"pictures": count, "Visual-G": ap(detector, mean)}
        row |= {kind: ap(own.detector, own.bank) for kind, own in tuned.items()}
        row |= {"tuned": row[taken], "strength": tuned[taken].report["strength"]}
        rows.append(row | {"seconds": sum(own.report["seconds"] for own in tuned.values())})
    return pd.DataFrame(rows)
