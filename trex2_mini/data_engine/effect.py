"""What the engines' data are worth: AP after equally long fine-tunings with and without them (the paper's table 6,
small).

Three arms start from one checkpoint and train the same number of steps of the same size with the same recipe:

    base      emoji scenes with all their names: what the checkpoint was trained on
    +text     the same, and pseudo-labels of the text engine on captioned scenes. The captions call things by their
              synonyms: words that no box ever
              had, which is what captions are good for
    +visual   the same, and pseudo-labels of the visual engine on emoji-sa, whose boxes show novel things too

All are measured on the first images of emoji-val, and compared with `base` on the same resampled images. Everything is
kept under `out`; an interrupted measurement goes on where it was.
"""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from trex2_mini.checkpoint import load_model
from trex2_mini.data_engine.engines import TextEngine, VisualEngine, boxes_of, phrases_of, read_captions
from trex2_mini.data_engine.quality import pseudo_label_quality
from trex2_mini.data_engine.shards import run_engine
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.emoji.formats import files
from trex2_mini.datasets.emoji.pictures import draw
from trex2_mini.datasets.emoji.sets import EmojiSet, plan
from trex2_mini.datasets.registry import open_dataset
from trex2_mini.datasets.scenes.catalogue import load_catalogue
from trex2_mini.evaluation.bootstrap import bootstrap_difference
from trex2_mini.evaluation.protocols import answers
from trex2_mini.evaluation.provenance import describe_code
from trex2_mini.evaluation.trial import Answers
from trex2_mini.paths import write_text
from trex2_mini.training.batches import open_batches
from trex2_mini.training.trainer import Trainer

SEED = 1_000_020  # of the captioned scenes
SHARE = 0.5  # of the steps that take pseudo-labels
RECIPE = {"batch_size": 4, "lr": 2e-4, "lr_backbone": 5e-5, "lr_text": 2e-4, "warmup_steps": 10, "text_negatives": 150}


def captioned_scenes(folder: Path, scenes: int, progress: bool = True) -> Path:
    """A set as emoji-captions, other scenes, whose captions call a thing by its first synonym, where it has one. Made
    unless it is there."""
    if (folder / "annotations.json").is_file():
        return folder
    (folder / "images").mkdir(parents=True, exist_ok=True)
    words = [
        dataclasses.replace(c, name=next((s for s in c.synonyms if s != c.name), c.name)) for c in load_catalogue()
    ]
    pictures = []
    held = plan(EmojiSet(SEED, scenes, (2, 5), 0.2))
    for index in tqdm(range(scenes), "captioned scenes", unit="scene", disable=not progress):
        for picture in draw("captions", "", SEED, index, held[index]):
            file = io.BytesIO()
            Image.fromarray(picture.sample.image).save(file, "JPEG", quality=95)
            (folder / "images" / picture.file_name).write_bytes(file.getvalue())
            pictures.append(picture)
    head = {
        "info": {"description": "emoji scenes captioned with synonyms (OpenMoji artwork, CC BY-SA 4.0)"},
        "licenses": [],
    }
    for name, content in files("captions", SEED, pictures, words, head).items():  # annotations.json comes last
        write_text(folder / name, json.dumps(content, ensure_ascii=False))
    return folder


def measure_effect(
    out: str | Path,
    checkpoint: str = "nano-emoji",
    steps: int = 60,
    seeds: Sequence[int] = (0, 1),
    scenes: int = 300,
    images: int = 100,
    workers: int = 1,
    resamples: int = 1000,
    progress: bool = True,
) -> dict:
    """Runs both engines, the fine-tunings and the comparison.

    Args:
        scenes: captioned scenes for the text engine; the visual engine takes all of emoji-sa.
        images: of emoji-val, to measure on.
        workers: processes of the engines.

    Returns:
        {"engines": {"text": counts and quality, "visual"}, "effect": [{"measure", "arm", "AP" (mean of the seeds),
        "by_seed", and of the two arms
        with pseudo-labels "difference", "low", "high" against base}], and what it was made with}
    """
    began, out = time.perf_counter(), Path(out)
    made = {
        "text": _text(out, checkpoint, scenes, workers, progress),
        "visual": _visual(out, checkpoint, workers, progress),
    }
    arms = {"base": ["emoji"]} | {f"+{kind}": [f"emoji={1 - SHARE}", f"{out / kind}={SHARE}"] for kind in made}
    found = {"start": [_measures(checkpoint, images, progress)]}
    for seed in seeds:
        for arm, data in arms.items():
            run = _fine_tuned(out / f"{arm}-{seed}", checkpoint, data, steps, seed, progress)
            found.setdefault(arm, []).append(_measures(run, images, progress))
    rows = []
    for measure in found["start"][0]:
        for arm, own in found.items():
            aps = [given[measure].measure()["AP"] for given in own]
            row = {"measure": measure, "arm": arm, "AP": sum(aps) / len(aps), "by_seed": aps}
            if arm in ("+text", "+visual"):
                spread = bootstrap_difference([g[measure] for g in own], [g[measure] for g in found["base"]], resamples)
                row |= {key: spread[key] for key in ("difference", "low", "high")}
            rows.append(row)
    settings = {
        "steps": steps,
        "seeds": list(seeds),
        "captioned_scenes": scenes,
        "images": images,
        "share": SHARE,
        "recipe": RECIPE,
    }
    seconds = round(time.perf_counter() - began, 1)
    return {
        "engines": made,
        "effect": rows,
        "settings": settings,
        "checkpoint": checkpoint,
        "seconds": seconds,
        **describe_code(),
    }


def _text(out: Path, checkpoint: str, scenes: int, workers: int, progress: bool) -> dict:
    images, folder, captions, head = read_captions(captioned_scenes(out / "captioned", scenes, progress))
    engine = TextEngine(phrases_of(captions), more_than=2)
    counts = run_engine(engine, images, folder, out / "text", checkpoint, head=head, workers=workers, progress=progress)
    return counts | qualities(out / "text", out / "captioned" / "annotations.json")


def _visual(out: Path, checkpoint: str, workers: int, progress: bool) -> dict:
    dataset = open_dataset("emoji-sa")
    engine = VisualEngine(boxes_of(dataset), [c.name for c in load_catalogue() if not c.novel])
    head = {key: dataset.coco[key] for key in ("info", "licenses")}
    run = run_engine(
        engine,
        dataset.coco["images"],
        dataset.images,
        out / "visual",
        checkpoint,
        head=head,
        workers=workers,
        progress=progress,
    )
    return run | qualities(out / "visual", dataset.path.parent / "truth.json")


def qualities(made: Path, truth: Path) -> dict:
    """{"boxes_quality", "named_quality"}: `pseudo_label_quality` on the pictures that were kept, of boxes alone and
    with their names.
    """
    coco, true = (json.loads(path.read_text(encoding="utf-8")) for path in (made / "annotations.json", truth))
    kept = [image["id"] for image in coco["images"]]
    return {
        f"{what}_quality": pseudo_label_quality(coco, true, what == "named", image_ids=kept)
        for what in ("boxes", "named")
    }


def _fine_tuned(run: Path, checkpoint: str, data: list[str], steps: int, seed: int, progress: bool) -> Path:
    """The run's folder, trained to its end."""
    if (run / "model.safetensors").is_file():
        return run
    config = load_model(checkpoint)[1]
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps, seed=seed, **RECIPE))
    recipe = config.train
    batches = open_batches(data, recipe.batch_size, recipe.seed, config.model.short_side, recipe.balance)
    trainer = Trainer(run, config, batches, batches.names, batches.trainable, pretrained=False)
    trainer.resume() if trainer.state_path.exists() else trainer.start_from(checkpoint)
    trainer.train(save_every=10, progress=progress, workers=0)
    return run


def _measures(checkpoint: str | Path, images: int, progress: bool) -> dict[str, Answers]:
    """Answers on emoji-val by what is measured."""
    data: CocoDataset = open_dataset("emoji-val")
    given = {
        protocol: answers(checkpoint, data, protocol, limit=images, progress=progress)
        for protocol in ("text", "visual-i-others")
    }
    found = {
        "Text, synonyms": answers(checkpoint, data, "text", "trained", synonyms=True, limit=images, progress=progress)
    }
    for protocol, title in (("text", "Text"), ("visual-i-others", "Visual-I others")):
        for novel in (False, True):
            ids = [category["id"] for category in data.categories if category["novel"] == novel]
            found[f"{title}, {'novel' if novel else 'trained'}"] = dataclasses.replace(
                given[protocol], category_ids=ids
            )
    return found
