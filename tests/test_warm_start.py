"""After conversion our encoder layers and box head give the numbers of transformers' Grounding DINO."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import TINY_MODEL
from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

from trex2_mini.model.trex2 import TRex2
from trex2_mini.warm_start import warm_start

pytestmark = pytest.mark.parity
SHAPES = [(6, 7), (3, 4), (2, 2), (1, 1)]
TOKENS = sum(h * w for h, w in SHAPES)


@pytest.fixture(scope="module")
def pair():
    """Grounding DINO with random weights, D = 32 and two layers over a Swin of Swin-T's full shape, and ours started from it."""
    torch.manual_seed(0)
    swin = SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50)
    theirs = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=swin, text_config=text, d_model=32, encoder_layers=2, decoder_layers=2, num_queries=20,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_n_points=2, decoder_n_points=2,
            encoder_ffn_dim=64, decoder_ffn_dim=64, disable_custom_kernels=True,
        )
    ).eval()  # fmt: skip
    for parameter in theirs.model.encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for parameter in theirs.bbox_embed.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    config = replace(
        TINY_MODEL,
        backbone="swin_tiny_patch4_window7_224",
        strides=(8, 16, 32, 64),
        backbone_levels=3,
        encoder_layers=2,
    )
    ours = TRex2(config, pretrained=False).eval()
    return theirs, ours, warm_start(ours, theirs.state_dict())


@torch.no_grad()
def test_encoder_and_box_head(pair):
    theirs, ours, _ = pair
    tokens, position = torch.randn(2, 1, TOKENS, 32)
    reference = torch.rand(1, TOKENS, 2)
    expected, result = tokens, tokens
    for layer, other in zip(ours.image_encoder.layers, theirs.model.encoder.layers):
        expected = other.deformable_layer(
            hidden_states=expected, attention_mask=torch.ones(1, TOKENS, dtype=torch.bool), position_embeddings=position,
            reference_points=reference[:, :, None].expand(-1, -1, 4, -1), spatial_shapes=torch.tensor(SHAPES),
            spatial_shapes_list=SHAPES, level_start_index=torch.tensor([0, 42, 54, 58]),
        )[0]  # fmt: skip
        expected = expected.reshape(1, TOKENS, 32)
        result = layer(result, position, reference, SHAPES, None)
    assert (result - tokens).abs().max() > 0.1
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)
    for head, other in zip(ours.box_decoder.box_heads, theirs.bbox_embed):
        torch.testing.assert_close(head(result), other(result), atol=1e-4, rtol=0)


def test_report(pair):
    """The whole backbone, encoder and box decoder are taken but for the label's bias; the rest is named with a reason."""
    _, ours, report = pair
    kept = {n for n in report.new if n.startswith(("image_encoder.", "box_decoder."))}
    assert {n for n in kept if "relative_position_index" not in n} == {"box_decoder.logit_bias"}
    assert set(report.taken) | set(report.new) == set(ours.state_dict())
    assert any("fusion_layer" in n for n in report.left) and any("hidden_states_norms" in n for n in report.left)
    assert "taken" in str(report)


def test_foreign_weights(pair):
    with pytest.raises(ValueError, match="not one encoder tensor"):
        warm_start(pair[1], {"conv1.weight": torch.zeros(3)})
