"""Ablations: the paper's table 4 and the recipe of `nano`, one change at a time, with equal budgets, in a world small
enough for two CPU cores.

The world: 24 emoji categories to train on and 12 that are never trained, in fresh scenes of 128 x 128 px; the model:
`nano` with two encoder layers, decoder layers and prompt blocks instead of three, in batches of four. Every variant
trains for the same number of steps on the same scenes from the same random weights, so a difference between two
variants of one seed comes from the change. A step of both kinds of prompts decodes twice and costs more than a step of
one kind: budgets are equal in steps and pictures, and the seconds stand beside.

    python -m trex2_mini ablate --out data/ablations --steps 1000 --seeds 0 1
"""

import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import t
from tqdm import tqdm

from trex2_mini.config import Config, preset
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.emoji.formats import category_entries, instances
from trex2_mini.datasets.emoji.pictures import Picture
from trex2_mini.datasets.scenes.batches import EmojiBatches
from trex2_mini.datasets.scenes.catalogue import EmojiCategory, load_catalogue
from trex2_mini.datasets.scenes.generator import SceneGenerator
from trex2_mini.detector import Detector
from trex2_mini.evaluation.protocols import evaluate
from trex2_mini.evaluation.provenance import describe_code
from trex2_mini.paths import write_text
from trex2_mini.training.trainer import Trainer

SIDE = 128  # px
TRAINED, NOVEL = 24, 12  # categories
EXAMPLES = 8  # of Visual-G
LAYERS = ("encoder_layers", "decoder_layers", "prompt_blocks")

VARIANTS: dict[str, dict] = {
    # table 4 of the paper
    "joint": {},
    "joint, no alignment": {"loss_align": 0.0},
    "text only": {"text_first_steps": 10**9, "loss_align": 0.0},
    "visual only": {"visual_per_text": 10**9, "loss_align": 0.0},  # its first step is a text iteration
    # the recipe
    "no recognition of tokens": {"loss_token": 0.0},
    "no prompts across images": {"cross_image": 0.0},
    "backbone from random weights": {"backbone_pretrained": False, "frozen_stages": 0},
    "no denoising": {"denoising_queries": 0},
    "text : visual 1 : 1, in turn": {"visual_per_text": 1},
    "text : visual 1 : 8, in turn": {"visual_per_text": 8},
    "text first": {"text_first_steps": 250},
    "loss weights of the paper": {"loss_class": 1.0, "loss_align": 1.0},
    "no balanced draws": {"balance": 0.0},
    "4 negative names": {"text_negatives": 4},
    "constant learning rate": {"decay_fraction": 0.0},
    "bfloat16": {"amp": True},
    "pictures enlarged to 192 px": {"short_side": 192, "long_side": 384},
}
TABLE_4 = tuple(VARIANTS)[:4]
PROTOCOLS = (  # (protocol, category set)
    ("text", "trained"),
    ("visual-g", "trained"),
    ("visual-g", "novel"),
    ("visual-i", "trained"),
    ("visual-i-others", "trained"),
    ("visual-i-others", "novel"),
    ("mixed", "trained"),
)


def small_world() -> list[EmojiCategory]:
    """Its categories: spread evenly over the catalogue, trained ones first."""
    groups = [[c for c in load_catalogue() if c.novel == novel] for novel in (False, True)]
    return [own[i * len(own) // n] for own, n in zip(groups, (TRAINED, NOVEL)) for i in range(n)]


def small_set(folder: Path, seed: int, scenes: int, categories: int) -> CocoDataset:
    """Scenes of the small world on disk, every category in as many of them, give or take one; made unless they are
    there."""
    catalogue, rng = small_world(), np.random.default_rng(seed)
    generator = SceneGenerator(seed=seed, include_novel=True, catalogue=catalogue)
    file, images = folder / "annotations.json", folder / "images"
    if not file.is_file():
        images.mkdir(parents=True, exist_ok=True)
        deck: list[int] = []
        pictures = []
        for index in range(scenes):
            if len(deck) < categories:
                deck += rng.permutation(len(catalogue)).tolist()
            held, deck = list(dict.fromkeys(deck[:categories])), deck[categories:]
            picture = Picture(generator.scene(index, (SIDE, SIDE), held), f"{index:04d}.png")
            Image.fromarray(picture.sample.image).save(images / picture.file_name)
            pictures.append(picture)
        head = {"info": {"description": f"{folder.name} of the small world, OpenMoji artwork, CC BY-SA 4.0"}}
        write_text(file, json.dumps(instances(pictures, category_entries(catalogue), head)))
    return CocoDataset(file, images)


def variant_config(variant: str, steps: int, seed: int) -> Config:
    """The configuration of a variant. Raises ValueError for an unknown one."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; there are: {'; '.join(VARIANTS)}")
    base = preset("nano")
    model = {"short_side": SIDE, "long_side": 2 * SIDE, "num_queries": 50, **dict.fromkeys(LAYERS, 2)}
    train = {"steps": steps, "batch_size": 4, "warmup_steps": 50, "decay_fraction": 0.4, "text_negatives": TRAINED}
    train |= {"seed": seed, "denoising_queries": 24}
    fields = {field.name for field in dataclasses.fields(base.model)}
    changed = VARIANTS[variant]
    model |= {key: value for key, value in changed.items() if key in fields}
    train |= {key: value for key, value in changed.items() if key not in fields}
    return Config("nano", dataclasses.replace(base.model, **model), dataclasses.replace(base.train, **train))


def ablate(
    folder: Path,
    work: Path,
    variants: Iterable[str] = VARIANTS,
    seeds: Sequence[int] = (0, 1),
    steps: int = 1000,
    progress: bool = True,
) -> list[dict]:
    """Train and measure every variant under every seed; what is done (a file of `folder`) is read instead.

    Args:
        folder: of the results, one JSON file a variant and seed.
        work: of the scenes and the runs; a run that was interrupted goes on from its last state.

    Returns:
        One dict a run: variant, seed, steps, changed {option: value}, AP {"protocol/category set": percent}, loss (a
        list of [step, total]), seconds of training, versions, commit.
    """
    configs = {(variant, seed): variant_config(variant, steps, seed) for seed in seeds for variant in variants}
    results = []
    for (variant, seed), config in tqdm(configs.items(), unit="run", disable=not progress):
        name = "".join(c if c.isalnum() else "-" for c in variant)
        file = folder / f"{name}-{seed}-{steps}.json"
        if not file.is_file():
            write_text(file, json.dumps(_run(variant, config, work / file.stem, work), indent=1) + "\n")
        results.append(json.loads(file.read_text(encoding="utf-8")))
    return results


def compare(
    results: Sequence[dict], base: str = "joint", others: Sequence[dict] = ()
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """What each change did: {variant: {measure: (mean AP, mean difference to `base` of the same seed, half its 95 %
    interval)}}.

    A difference is larger than the noise where it exceeds half its interval (`half_interval`; 0 for `base` itself).
    others: runs of other lengths, which tell of the noise too. Raises ValueError where `base` is missing under a seed.
    """
    runs = {(r["variant"], r["seed"]): r["AP"] for r in results}
    seeds: dict[str, list[int]] = {}
    for variant, seed in runs:
        seeds.setdefault(variant, []).append(seed)
        if (base, seed) not in runs:
            raise ValueError(f"no run of {base!r} under seed {seed} to compare {variant!r} with")
    table: dict[str, dict[str, tuple[float, float, float]]] = {}
    for variant, own in seeds.items():
        table[variant] = {}
        for measure in runs[variant, own[0]]:
            values = np.array([runs[variant, seed][measure] for seed in own])
            difference = (values - [runs[base, seed][measure] for seed in own]).mean()
            half = 0.0 if variant == base else half_interval([*results, *others], measure, len(own))
            table[variant][measure] = (float(values.mean()), float(difference), half)
    return table


def noise(results: Sequence[dict], measure: str) -> tuple[float, int]:
    """(standard deviation of a run, its degrees of freedom): what is left of `measure` once each variant has its level
    and each seed its shift, at each number of steps its own. These are randomized blocks, the seeds being the blocks:
    all runs together say how far chance moves one, which two runs of one variant cannot. It takes the spread to be the
    same for all variants and lengths; those that cannot do a thing at all (words alone asked for examples) have nearly
    none and make it a little too small. (nan, 0) where nothing is left: one seed or one variant."""
    variants, seeds = ([(r[key], r.get("steps")) for r in results] for key in ("variant", "seed"))
    columns = [[own == level for own in kind] for kind in (variants, seeds) for level in dict.fromkeys(kind)]
    design = np.array(columns, float).T
    values = np.array([r["AP"][measure] for r in results])
    solution, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(values) - int(rank)
    return (float(np.sqrt(((values - design @ solution) ** 2).sum() / freedom)) if freedom else np.nan), freedom


def half_interval(results: Sequence[dict], measure: str, pairs: int) -> float:
    """Half of Student's 95 % interval of the mean difference of two variants over `pairs` seeds; infinite where no
    `noise` is known."""
    deviation, freedom = noise(results, measure)
    return float(t.ppf(0.975, freedom) * deviation * np.sqrt(2 / pairs)) if freedom else np.inf


def _run(variant: str, config: Config, run: Path, work: Path) -> dict:
    enlarged = 192 * config.model.short_side // SIDE  # EmojiBatches counts in scenes of 192 px
    batches = EmojiBatches(
        config.train.batch_size,
        config.train.seed,
        config.train.balance,
        small_world(),
        sizes=((SIDE, SIDE),),
        short_side=enlarged,
    )
    trainer = Trainer(run, config, batches, batches.names, batches.trainable)
    if trainer.state_path.is_file():
        trainer.resume()
    start, began = time.process_time(), trainer.step
    trainer.train(save_every=100, progress=False, workers=0)
    seconds = (time.process_time() - start) * config.train.steps / max(1, config.train.steps - began)
    detector = Detector(trainer.model.eval(), config)
    validation = small_set(work / "val", 3_000_001, 120, 3)
    reference = small_set(work / "reference", 3_000_002, 96, 4)
    scores = {}
    for protocol, categories in PROTOCOLS:
        result = evaluate(
            detector, validation, protocol, categories, reference=reference, examples=EXAMPLES, progress=False
        )
        scores[f"{protocol}/{categories}"] = round(result["AP"], 2)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "variant": variant,
        "seed": config.train.seed,
        "steps": config.train.steps,
        "changed": VARIANTS[variant],
        "AP": scores,
        "loss": [[entry["step"], entry["total"]] for entry in log],
        "processor_seconds": round(seconds),
        **describe_code(),
    }
