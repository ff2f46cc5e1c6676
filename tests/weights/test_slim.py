"""Slim checkpoints: what was taught reads the same, bit for bit; damaged files are refused."""

from __future__ import annotations

import pytest
import torch
from tiny import TINY, seeded_model

from trex2_mini.checkpoint import ROWS, TOKENS, CheckpointError, load_model, read_tensors, save_model, write_tensors
from trex2_mini.names import Vocabulary
from trex2_mini.weights.slim import slim


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slim")
    save_model(folder / "whole", seeded_model(), TINY)
    Vocabulary.of(["red square", "blue circle"], ["a lynx"]).save(folder / "whole")
    found = slim(folder / "whole", folder / "small")
    return folder / "whole", folder / "small", found


def test_taught_words_are_the_same_bit_for_bit(folders):
    whole, small, found = folders
    (before, *_), (after, *_) = load_model(whole), load_model(small)
    with torch.no_grad():
        for phrases in (["red square", "blue circle"], ["lynx", "square circle"]):
            assert torch.equal(before.encode_text(phrases), after.encode_text(phrases))
        assert not torch.equal(before.encode_text(["zebra"]), after.encode_text(["zebra"]))
    others = {key: own for key, own in before.state_dict().items() if key != TOKENS}
    assert all(torch.equal(own, after.state_dict()[key]) for key, own in others.items())
    table = after.state_dict()[TOKENS]
    assert found["kept"] >= table.any(1).sum() > 6 and found["tokens"] == len(table)
    assert (small / "model.safetensors").stat().st_size == found["bytes"] < (whole / "model.safetensors").stat().st_size
    assert Vocabulary.load(small) == Vocabulary.load(whole)


def test_it_is_written_small_again(folders, tmp_path):
    """A model that was loaded from a slim file and saved has a slim file."""
    model, config, path = load_model(folders[1])
    save_model(tmp_path, model, config)
    assert (tmp_path / "model.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("rows", [[0, 0], [-1, 1], [0, 10**6], [0]])
def test_damaged_rows_are_refused(folders, tmp_path, rows):
    tensors, _ = read_tensors(folders[1] / "model.safetensors")
    changed = tensors[ROWS].clone()
    changed[: len(rows)] = torch.tensor(rows, dtype=torch.int32)
    tensors[ROWS] = changed if len(rows) > 1 else changed[1:]
    write_tensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(TINY.to_json())
    with pytest.raises(CheckpointError, match="different rows"):
        load_model(tmp_path)


def test_what_cannot_be_done_is_said(folders, tmp_path):
    save_model(tmp_path, seeded_model(), TINY)
    with pytest.raises(ValueError, match="vocabulary"):
        slim(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="itself"):
        slim(folders[0], folders[0])
