"""Prompt banks in the official API's file: one float32 tensor `visual_embedding` of 256 numbers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from trex2_mini.checkpoint import CheckpointError
from trex2_mini.prompt_bank import PromptBank


def test_written_and_read(tmp_path):
    vector = torch.randn(1, 256)
    PromptBank(["coin"], vector).save_official(tmp_path / "coin.safetensors")
    tensors = load_file(tmp_path / "coin.safetensors")
    assert list(tensors) == ["visual_embedding"] and tensors["visual_embedding"].dtype == torch.float32
    torch.testing.assert_close(tensors["visual_embedding"], vector[0], atol=0, rtol=0)
    bank = PromptBank.load(tmp_path / "coin.safetensors")
    assert bank.names == ["coin"] and torch.equal(bank.embeddings, vector)


@pytest.mark.parametrize("names, shape", [(["coin"], (1, 128)), (["coin", "key"], (2, 256)), (["coin"], (256,))])
def test_refused(tmp_path, names, shape):
    with pytest.raises(ValueError, match="one category of 256 numbers"):
        PromptBank(names, torch.zeros(shape)).save_official(tmp_path / "bank.safetensors")
    assert not list(tmp_path.iterdir())


def test_another_width(tmp_path):
    save_file({"visual_embedding": torch.zeros(128)}, tmp_path / "coin.safetensors")
    with pytest.raises(CheckpointError, match=r"shape \[256\]"):
        PromptBank.load(tmp_path / "coin.safetensors")
