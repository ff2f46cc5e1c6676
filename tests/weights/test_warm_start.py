"""After conversion our encoder layers and box head give the numbers of transformers' Grounding DINO."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tiny import TINY, TINY_MODEL
from transformers import (
    BertConfig,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    ResNetConfig,
    SwinConfig,
)

from trex2_mini.checkpoint import load_model
from trex2_mini.cli import main
from trex2_mini.model.trex2 import TRex2
from trex2_mini.weights.warm_start import open_detector, warm_start

pytestmark = pytest.mark.parity
SHAPES = [(6, 7), (3, 4), (2, 2), (1, 1)]
TOKENS = sum(h * w for h, w in SHAPES)


@pytest.fixture(scope="module")
def pair():
    """Grounding DINO with random weights, D = 32 and two layers over a Swin of Swin-T's full shape, and ours started
    from it.
    """
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
            hidden_states=expected, attention_mask=torch.ones(1, TOKENS, dtype=torch.bool),
            position_embeddings=position,
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
    """The whole backbone, encoder and box decoder are taken but for the label's bias; the rest is named
    with a reason.
    """
    _, ours, report = pair
    kept = {n for n in report.new if n.startswith(("image_encoder.", "box_decoder."))}
    assert {n for n in kept if "relative_position_index" not in n} == {"box_decoder.logit_bias"}
    assert set(report.taken) | set(report.new) == set(ours.state_dict())
    assert any("fusion_layer" in n for n in report.left) and any("hidden_states_norms" in n for n in report.left)
    assert "image_encoder.layers" in str(report) and "T-Rex2 is prompted late" in str(report)


def test_foreign_weights(pair):
    with pytest.raises(ValueError, match="not one encoder tensor"):
        warm_start(pair[1], {"conv1.weight": torch.zeros(3)})


@torch.no_grad()
def test_swin(pair):
    """Our backbone's maps are theirs but for the norm of each output, which T-Rex2's Swin has not: with it they are
    equal.
    """
    theirs, ours, _ = pair
    images = torch.randn(1, 3, 224, 448)  # the last stage: one window high, two wide
    swin = theirs.model.backbone.conv_encoder.model
    norms = [module for name, module in swin.named_modules() if "hidden_states_norms.stage" in name]
    expected, maps = swin(images).feature_maps, ours.image_encoder.backbone(images)
    assert len(maps) == len(norms) == len(expected) == 3
    for own, norm, other in zip(maps, norms, expected):
        torch.testing.assert_close(norm(own.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), other, atol=1e-4, rtol=0)


@torch.no_grad()
def test_deformable_detr():
    """Encoder layers, decoder layers and box heads of a two-stage Deformable DETR with random weights."""
    torch.manual_seed(0)
    resnet = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    theirs = DeformableDetrForObjectDetection(
        DeformableDetrConfig(
            backbone_config=resnet, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            num_queries=20,
            decoder_attention_heads=4, encoder_n_points=2, decoder_n_points=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
            disable_custom_kernels=True, two_stage=True, with_box_refine=True,
        )
    ).eval()  # fmt: skip
    for parameter in [*theirs.model.encoder.parameters(), *theirs.model.decoder.parameters()]:
        torch.nn.init.normal_(parameter, std=0.1)
    ours = TRex2(replace(TINY_MODEL, strides=(8, 16, 32, 64), encoder_layers=2), pretrained=False).eval()
    report = warm_start(ours, theirs.state_dict())
    assert "a backbone that is not the Swin of this model" in str(report)
    starts, shapes = torch.tensor([0, 42, 54, 58]), torch.tensor(SHAPES)
    tokens, position = torch.randn(2, 1, TOKENS, 32)
    reference = torch.rand(1, TOKENS, 2)
    expected, result = tokens, tokens
    for layer, other in zip(ours.image_encoder.layers, theirs.model.encoder.layers):
        expected = _first(
            other(
                expected, None, position, reference_points=reference[:, :, None].expand(-1, -1, 4, -1),
                spatial_shapes=shapes, spatial_shapes_list=SHAPES, level_start_index=starts,
            )
        )  # fmt: skip
        result = layer(result, position, reference, SHAPES, None)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)
    queries, place = torch.randn(2, 1, 20, 32)
    boxes = 0.2 + 0.3 * torch.rand(1, 20, 4)
    wanted, found = queries, queries
    for layer, other in zip(ours.box_decoder.layers, theirs.model.decoder.layers):
        wanted = _first(
            other(
                wanted, place, reference_points=boxes[:, :, None].expand(-1, -1, 4, -1), spatial_shapes=shapes,
                spatial_shapes_list=SHAPES, level_start_index=starts, encoder_hidden_states=expected,
            )
        )  # fmt: skip
        found = layer(found, place, boxes, result, SHAPES, None)
    assert (found - queries).abs().max() > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    heads = theirs.model.decoder.bbox_embed
    for head, other in zip(ours.box_decoder.box_heads, heads):
        torch.testing.assert_close(head(found), other(found), atol=1e-4, rtol=0)


def _first(output):
    return output[0] if isinstance(output, tuple) else output


def test_command(pair, tmp_path, capsys):
    """A folder that transformers wrote becomes a checkpoint of ours that holds the same weights, and is not written
    over.
    """
    theirs, ours, report = pair
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "config.json").write_text(replace(TINY, model=ours.image_encoder.config).to_json())
    command = ["warm-start", "--from", str(tmp_path / "theirs"), "--config", str(tmp_path / "config.json")]
    command += ["--random-weights", "--out", str(tmp_path / "warm")]
    assert main(command) == 0 and "T-Rex2 is prompted late" in capsys.readouterr().out
    own = load_model(tmp_path / "warm")[0].state_dict()
    for name in report.taken:
        torch.testing.assert_close(own[name], ours.state_dict()[name], atol=0, rtol=0)
    assert main(command) == 1 and "already" in capsys.readouterr().err


def test_refusals(tmp_path):
    """Offline, the message gives the command that fetches the weights; pickled weights are not read."""
    command = [sys.executable, "-m", "trex2_mini", "warm-start"]
    command += ["--from", "IDEA-Research/grounding-dino-tiny", "--out", "x"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 1 and "hf download IDEA-Research/grounding-dino-tiny" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "x").exists()
    (tmp_path / "pickled").mkdir()
    DeformableDetrConfig().save_pretrained(tmp_path / "pickled")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ValueError, match="safetensors"):
        open_detector(str(tmp_path / "pickled"))


def newocean(config, classes: int = 11) -> dict[str, torch.Tensor]:
    """Random tensors under the names and with the shapes of newocean-group/T-Rex2's TRex2 (src/ at e825edc), for Swin-T
    and `config`'s sizes.
    """
    dim, heads, ffn, levels, points = config.dim, config.heads, config.ffn_dim, len(config.strides), config.points
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name, inputs, outputs, bias=True):
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name, size=dim):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    def deformable(name):
        linear(f"{name}.sampling_offsets", dim, heads * levels * points * 2)
        linear(f"{name}.attention_weights", dim, heads * levels * points)
        linear(f"{name}.value_proj", dim, dim)
        linear(f"{name}.output_proj", dim, dim)

    def attention(name):
        shapes[f"{name}.in_proj_weight"], shapes[f"{name}.in_proj_bias"] = (3 * dim, dim), (3 * dim,)
        linear(f"{name}.out_proj", dim, dim)

    def mlp(name, *sizes):
        for place, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            linear(f"{name}.layers.{place}", inputs, outputs)

    swin = "image_encoder.backbone.0"
    shapes[f"{swin}.patch_embed.proj.weight"], shapes[f"{swin}.patch_embed.proj.bias"] = (96, 3, 4, 4), (96,)
    norm(f"{swin}.patch_embed.norm", 96)
    for stage, (depth, own_heads) in enumerate(zip((2, 2, 6, 2), (3, 6, 12, 24))):
        width = 96 * 2**stage
        for block in range(depth):
            name = f"{swin}.layers.{stage}.blocks.{block}"
            shapes[f"{name}.attn.relative_position_bias_table"] = (13 * 13, own_heads)
            shapes[f"{name}.attn.relative_position_index"] = (49, 49)
            linear(f"{name}.attn.qkv", width, 3 * width)
            linear(f"{name}.attn.proj", width, width)
            linear(f"{name}.mlp.fc1", width, 4 * width)
            linear(f"{name}.mlp.fc2", 4 * width, width)
            norm(f"{name}.norm1", width)
            norm(f"{name}.norm2", width)
        if stage < 3:
            linear(f"{swin}.layers.{stage}.downsample.reduction", 4 * width, 2 * width, bias=False)
            norm(f"{swin}.layers.{stage}.downsample.norm", 4 * width)
        if stage > 0:
            norm(f"{swin}.norm{stage}", width)
    for place, (channels, side) in enumerate(((192, 1), (384, 1), (768, 1), (768, 3))):
        shapes[f"image_encoder.input_proj.{place}.0.weight"] = (dim, channels, side, side)
        shapes[f"image_encoder.input_proj.{place}.0.bias"] = (dim,)
        norm(f"image_encoder.input_proj.{place}.1")
    shapes["image_encoder.level_embed"] = (levels, dim)
    for layer in range(config.encoder_layers):
        name = f"image_encoder.encoder.layers.{layer}"
        deformable(f"{name}.self_attn")
        norm(f"{name}.norm1")
        linear(f"{name}.linear1", dim, ffn)
        linear(f"{name}.linear2", ffn, dim)
        norm(f"{name}.norm2")
    decoder, prompts = "box_decoder.decoder", "visual_prompt_encoder.visual_encoder"
    layers = [f"{decoder}.layers.{i}" for i in range(config.decoder_layers)]
    for name in layers + [f"{prompts}.layers.{i}" for i in range(config.prompt_blocks)]:
        deformable(f"{name}.cross_attn")
        attention(f"{name}.self_attn")
        linear(f"{name}.linear1", dim, ffn)
        linear(f"{name}.linear2", ffn, dim)
        for number in (1, 2, 3):
            norm(f"{name}.norm{number}")
        if name in layers:
            attention(f"{name}.ca_visual")
            norm(f"{name}.ca_visual_norm")
    mlp(f"{decoder}.ref_point_head", 2 * dim, dim, dim)
    mlp(f"{prompts}.ref_point_head", 2 * dim, dim, dim)
    shapes["visual_prompt_encoder.content_embeddings.weight"] = shapes[
        "visual_prompt_encoder.cls_embeddings.weight"
    ] = (1, dim)
    linear("box_decoder.enc_output", dim, dim)
    norm("box_decoder.enc_output_norm")
    mlp("box_decoder.enc_bbox_head", dim, dim, dim, 4)
    for place in range(config.decoder_layers):
        mlp(f"box_decoder.dec_bbox_head.{place}", dim, dim, dim, 4)
        linear(f"box_decoder.dec_score_head.{place}", dim, classes)
        mlp(f"box_decoder.dec_score_contrastive_head.{place}.proj", dim, 4 * dim, dim)
        shapes[f"box_decoder.dec_score_contrastive_head.{place}.logit_scale"] = ()
    shapes["box_decoder.tgt_embed.weight"] = (config.num_queries, dim)
    shapes["box_decoder.class_embeddings.weight"] = (classes, dim)
    shapes["box_decoder.denoising_class_embed.weight"] = (classes + 1, dim)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_newocean(pair, tmp_path, capsys):
    """Their backbone, encoder, decoder, box heads and prompt blocks are taken, each tensor to its place; what is left
    is named with a reason.
    """
    config = replace(pair[1].image_encoder.config, prompt_ffn_dim=64)
    tensors, ours = newocean(config), TRex2(config, pretrained=False).eval()
    report = warm_start(ours, tensors)
    new = {
        name.rpartition(".")[0] or name for name in report.new if not name.startswith("text_") and "_index" not in name
    }
    prompts = {"box_position", "point_position", "box_query", "point_query"}
    assert new == {"box_decoder", "box_decoder.norm", "denoising.content", "visual_prompt_encoder"} | {
        f"visual_prompt_encoder.{name}" for name in prompts
    }
    own = ours.state_dict()
    swin = "image_encoder.backbone"
    for theirs, name in {
        f"{swin}.0.layers.2.blocks.3.attn.qkv.weight": f"{swin}.body.layers_2.blocks.3.attn.qkv.weight",
        f"{swin}.0.layers.0.downsample.reduction.weight": f"{swin}.body.layers_1.downsample.reduction.weight",
        "image_encoder.encoder.layers.1.norm2.bias": "image_encoder.layers.1.ffn.norm.bias",
        "image_encoder.input_proj.3.0.weight": "image_encoder.projections.3.0.weight",
        "box_decoder.decoder.layers.1.norm1.weight": "box_decoder.layers.1.cross_norm.weight",
        "box_decoder.decoder.layers.0.norm2.weight": "box_decoder.layers.0.self_norm.weight",
        "box_decoder.decoder.layers.0.self_attn.in_proj_weight": "box_decoder.layers.0.self_attention.in_proj_weight",
        "box_decoder.dec_bbox_head.1.layers.2.weight": "box_decoder.box_heads.1.4.weight",
        "visual_prompt_encoder.visual_encoder.layers.1.linear2.weight": (
            "visual_prompt_encoder.blocks.1.ffn.linear2.weight"
        ),
        "visual_prompt_encoder.visual_encoder.layers.0.norm3.weight": "visual_prompt_encoder.blocks.0.ffn.norm.weight",
    }.items():
        torch.testing.assert_close(own[name], tensors[theirs], atol=0, rtol=0)
    theirs = tensors["box_decoder.decoder.ref_point_head.layers.0.weight"]  # of (y, x, w, h)
    torch.testing.assert_close(own["box_decoder.anchor_position.0.weight"][:, :16], theirs[:, 16:32], atol=0, rtol=0)
    for part in ("contrastive_head", "ca_visual", "ref_point_head", "content_embeddings", "norm3"):
        assert any(part in name for name in report.left), part
    assert "T-Rex2 has no such part" not in str(report)

    save_file(tensors, tmp_path / "newocean.safetensors")
    (tmp_path / "config.json").write_text(replace(TINY, model=config).to_json())
    command = [
        "warm-start",
        "--config",
        str(tmp_path / "config.json"),
        "--random-weights",
        "--out",
        str(tmp_path / "warm"),
        "--from",
    ]
    assert main([*command, str(tmp_path / "newocean.safetensors")]) == 0 and "scaled cosines" in capsys.readouterr().out
    assert main([*command[:-2], str(tmp_path / "other"), "--from", "checkpoint.pth"]) == 1
    assert "a torch archive is a pickle" in capsys.readouterr().err and not (tmp_path / "other").exists()
