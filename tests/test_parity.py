"""Against code we did not write: transformers' Deformable DETR, torchvision, open_clip.

Random weights, float32, tolerance 1e-5; layers and attention with all their gradients.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from tiny import seeded_model
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss
from transformers import DeformableDetrConfig
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
from transformers.models.deformable_detr import modeling_deformable_detr as theirs

from trex2_mini.boxes import inverse_sigmoid
from trex2_mini.config import preset
from trex2_mini.layers import deformable_attention, gather_sum
from trex2_mini.layers.deformable_attention import DeformableAttention
from trex2_mini.layers.position import image_position, sine_embedding
from trex2_mini.losses.criterion import Targets, detection_losses
from trex2_mini.losses.matcher import match
from trex2_mini.model.box_decoder import DecoderLayer, DecoderOutput
from trex2_mini.model.image_encoder import EncoderLayer

pytestmark = pytest.mark.parity

DIM, HEADS, POINTS, FFN, BATCH = 32, 4, 3, 64, 2
SHAPES = [(6, 7), (3, 4), (2, 2)]
TOKENS, LEVELS = sum(h * w for h, w in SHAPES), len(SHAPES)
CONFIG = DeformableDetrConfig(
    d_model=DIM,
    num_feature_levels=LEVELS,
    encoder_attention_heads=HEADS,
    decoder_attention_heads=HEADS,
    encoder_n_points=POINTS,
    decoder_n_points=POINTS,
    encoder_ffn_dim=FFN,
    decoder_ffn_dim=FFN,
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    disable_custom_kernels=True,
)
CONFIG._attn_implementation = "eager"
LAYOUT = {
    "spatial_shapes": torch.tensor(SHAPES),
    "spatial_shapes_list": SHAPES,
    "level_start_index": torch.tensor([0, 42, 54]),
}
FORMS = {
    f"{form.__module__.rpartition('.')[2]}.{name}": form
    for module in (deformable_attention, gather_sum)
    for name in ("levelwise_grid_sample", "weighted_gather", "deformable_sum")
    if (form := getattr(module, name, None))
}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Every form of the sum, used by every layer."""
    monkeypatch.setattr(deformable_attention, "deformable_sum", FORMS[request.param])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.eval()


def copy_weights(source: torch.nn.Module, target: torch.nn.Module, names: dict[str, str]) -> dict[str, str]:
    """Copy our weights into their module; `names` maps our prefixes to theirs. Returns our names -> their names."""
    state, renamed = {}, {}
    for name, value in source.state_dict().items():
        prefix = max((p for p in names if name.startswith(p)), key=len)
        renamed[name] = names[prefix] + name[len(prefix) :]
        state[renamed[name]] = value
    for name in [n for n in state if "in_proj" in n]:  # one matrix of ours, three of theirs
        for part, value in zip("qkv", state.pop(name).chunk(3)):
            state[name.replace("in_proj_", f"{part}_proj.")] = value
    target.load_state_dict(state, strict=True)
    return renamed


def assert_same(ours: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
    """Within 1e-5 of the largest entry (at least of 1)."""
    assert ours.shape == expected.shape and ours.dtype == expected.dtype == torch.float32
    difference, scale = (ours - expected).abs().max().item(), max(1.0, expected.abs().max().item())
    assert difference <= 1e-5 * scale, f"{what}: differs by {difference:.2e}, largest entry {scale:.2e}"


def compare(
    ours: torch.nn.Module, expected: torch.nn.Module, renamed: dict[str, str], results: list, inputs: list
) -> None:
    """Outputs, gradients of the inputs and of every parameter."""
    assert_same(results[0], results[1], "output")
    target = torch.randn_like(results[0])
    parameters, counterparts = dict(ours.named_parameters()), dict(expected.named_parameters())
    gradients = torch.autograd.grad(results[0], [*inputs, *parameters.values()], target)
    wanted = dict(
        zip(
            [*map(str, range(len(inputs))), *counterparts],
            torch.autograd.grad(results[1], [*inputs, *counterparts.values()], target),
        )
    )
    for name, gradient in zip([*map(str, range(len(inputs))), *parameters], gradients):
        key = renamed.get(name, name)
        want = (
            torch.cat([wanted[key.replace("in_proj_", f"{p}_proj.")] for p in "qkv"])
            if "in_proj" in key
            else wanted[key]
        )
        assert want.abs().max() > 1e-4, f"the gradient of {name} is no test"
        assert_same(gradient, want, f"gradient of {name}")


def image_inputs(queries: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """query, value source and padding mask (the right columns of the second image)."""
    padding = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
    columns = torch.cat([torch.arange(w).repeat(h) / w for h, w in SHAPES])
    padding[1] = columns >= 0.5
    return (
        torch.randn(BATCH, queries, DIM, requires_grad=True),
        torch.randn(BATCH, TOKENS, DIM, requires_grad=True),
        padding,
    )


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("numbers", [2, 4])
def test_deformable_attention(form, numbers, padded):
    """Forward and all gradients equal transformers', for points and boxes as references, with and without padding."""
    ours = randomised(DeformableAttention(DIM, HEADS, LEVELS, POINTS))
    expected = theirs.DeformableDetrMultiscaleDeformableAttention(CONFIG, HEADS, POINTS)
    renamed = copy_weights(ours, expected, {"": ""})
    query, source, padding = image_inputs(9)
    padding = padding if padded else None
    reference = (torch.rand(BATCH, 9, numbers) * 0.9 + 0.05).requires_grad_()
    result, _ = expected(
        query,
        None if padding is None else ~padding,
        source,
        reference_points=reference[:, :, None].expand(-1, -1, LEVELS, -1),
        **LAYOUT,
    )
    compare(
        ours, expected, renamed, [ours(query, reference, source, SHAPES, padding), result], [query, source, reference]
    )


def test_point_among_boxes(form):
    """`is_point` gives a 4-number reference the 2-number form's result, and leaves the boxes as they were."""
    layer = randomised(DeformableAttention(DIM, HEADS, LEVELS, POINTS))
    query, source, _ = image_inputs(6)
    reference = torch.rand(BATCH, 6, 4)
    is_point = torch.tensor([True, False] * 3).expand(BATCH, -1)
    mixed = layer(query, reference, source, SHAPES, None, is_point)
    for chosen, alone in (
        (is_point, layer(query, reference[..., :2], source, SHAPES, None)),
        (~is_point, layer(query, reference, source, SHAPES, None)),
    ):
        assert_same(mixed[chosen], alone[chosen])


def test_encoder_layer(form):
    """Forward and all gradients of an image encoder layer equal transformers' DeformableDetrEncoderLayer."""
    ours = randomised(EncoderLayer(DIM, HEADS, LEVELS, POINTS, FFN))
    expected = theirs.DeformableDetrEncoderLayer(CONFIG).eval()
    renamed = copy_weights(
        ours,
        expected,
        {
            "attention": "self_attn",
            "norm": "self_attn_layer_norm",
            "ffn.linear1": "mlp.fc1",
            "ffn.linear2": "mlp.fc2",
            "ffn.norm": "final_layer_norm",
        },
    )
    tokens, position, padding = image_inputs(TOKENS)
    reference = torch.rand(BATCH, TOKENS, 2)
    result = expected(
        tokens, ~padding, position, reference_points=reference[:, :, None].expand(-1, -1, LEVELS, -1), **LAYOUT
    )
    compare(ours, expected, renamed, [ours(tokens, position, reference, SHAPES, padding), result], [tokens, position])


@pytest.mark.parametrize("blocked", [False, True], ids=["open", "blocked"])
def test_decoder_layer(form, blocked):
    """Forward and all gradients equal transformers' DeformableDetrDecoderLayer, also with blocked attention."""
    ours = randomised(DecoderLayer(DIM, HEADS, LEVELS, POINTS, FFN))
    expected = theirs.DeformableDetrDecoderLayer(CONFIG).eval()
    renamed = copy_weights(
        ours,
        expected,
        {
            "self_attention": "self_attn",
            "self_attention.out_proj": "self_attn.o_proj",
            "self_norm": "self_attn_layer_norm",
            "cross_attention": "encoder_attn",
            "cross_norm": "encoder_attn_layer_norm",
            "ffn.linear1": "mlp.fc1",
            "ffn.linear2": "mlp.fc2",
            "ffn.norm": "final_layer_norm",
        },
    )
    queries, tokens, padding = image_inputs(8)
    position = torch.randn(BATCH, 8, DIM, requires_grad=True)
    reference = torch.rand(BATCH, 8, 4)
    forbidden = (torch.arange(8)[None] < 4) & (torch.arange(8)[:, None] >= 4) if blocked else None
    mask = {} if forbidden is None else {"attention_mask": torch.zeros(1, 1, 8, 8).masked_fill(forbidden, -math.inf)}
    result = expected(
        queries,
        position,
        reference[:, :, None].expand(-1, -1, LEVELS, -1),
        encoder_hidden_states=tokens,
        encoder_attention_mask=~padding,
        **LAYOUT,
        **mask,
    )
    compare(
        ours,
        expected,
        renamed,
        [ours(queries, position, reference, tokens, SHAPES, padding, forbidden), result],
        [queries, tokens, position],
    )


def random_case(
    objects: list[int], queries: int = 12, categories: int = 7
) -> tuple[torch.Tensor, torch.Tensor, list, list]:
    """logits, boxes, labels, target boxes of a batch with so many objects an image."""
    logits, boxes = 3 * torch.randn(len(objects), queries, categories), torch.rand(len(objects), queries, 4) * 0.5 + 0.2
    return (
        logits,
        boxes,
        [torch.randint(categories, (n,)) for n in objects],
        [torch.rand(n, 4) * 0.5 + 0.2 for n in objects],
    )


@pytest.mark.parametrize("costs", [(2.0, 5.0, 2.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("objects", [[3, 5], [1, 0, 12], [20, 2], [0, 0]])
def test_matcher(costs, objects):
    """Pairs equal those of transformers' focal Hungarian matcher; also empty images, and more objects than queries."""
    for _ in range(5):
        logits, boxes, labels, truth = random_case(objects)
        targets = [{"class_labels": c, "boxes": b} for c, b in zip(labels, truth)]
        expected = DeformableDetrHungarianMatcher(*costs)({"logits": logits, "pred_boxes": boxes}, targets)
        ours = match(logits, boxes, labels, truth, *costs)
        for (query, target), (wanted_query, wanted_target) in zip(ours, expected, strict=True):
            assert sorted(zip(query.tolist(), target.tolist())) == sorted(
                zip(wanted_query.tolist(), wanted_target.tolist())
            )


def test_criterion_equals_transformers():
    """Class, L1 and GIoU losses equal those of transformers' Deformable DETR criterion."""
    logits, boxes, labels, truth = random_case([3, 0, 5])
    targets = [{"class_labels": c, "boxes": b} for c, b in zip(labels, truth)]
    reference = DeformableDetrImageLoss(
        DeformableDetrHungarianMatcher(2, 5, 2), logits.shape[-1], 0.25, ["labels", "boxes"]
    )
    expected = reference({"logits": logits, "pred_boxes": boxes}, targets)
    ours = detection_losses(DecoderOutput(logits, boxes), Targets(labels, truth), preset("swin_t").train)
    for name, weight, key in (("class", 1, "loss_ce"), ("l1", 5, "loss_bbox"), ("giou", 2, "loss_giou")):
        assert_same(ours[name], weight * expected[key], name)


def test_criterion_equals_plain_loop():
    """The same losses, number after number, by the formulas alone in plain Python; torchvision agrees."""
    logits, boxes, labels, truth = random_case([2, 3], queries=5, categories=3)
    pairs = match(logits, boxes, labels, truth, 2, 5, 2)
    focal = l1 = giou = 0.0
    for image, (query, target) in enumerate(pairs):
        responsible = {int(q): int(t) for q, t in zip(query, target)}
        for q in range(logits.shape[1]):
            for c in range(logits.shape[2]):
                p = 1 / (1 + math.exp(-float(logits[image, q, c])))
                positive = q in responsible and int(labels[image][responsible[q]]) == c
                value = -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)
                expected = sigmoid_focal_loss(logits[image, q, c], torch.tensor(float(positive)))
                assert value == pytest.approx(float(expected), abs=1e-5)
                focal += value
        for q, t in responsible.items():
            a, b = boxes[image, q].tolist(), truth[image][t].tolist()
            l1 += sum(abs(m - n) for m, n in zip(a, b))
            (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (
                [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] for cx, cy, w, h in (a, b)
            )
            common = max(0, min(ax2, bx2) - max(ax1, bx1)) * max(0, min(ay2, by2) - max(ay1, by1))
            union = a[2] * a[3] + b[2] * b[3] - common
            hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
            value = common / union - (hull - union) / hull
            corners = [box_convert(torch.tensor([box]), "cxcywh", "xyxy") for box in (a, b)]
            assert value == pytest.approx(float(generalized_box_iou(*corners)), abs=1e-5)
            giou += 1 - value
    ours = detection_losses(DecoderOutput(logits, boxes), Targets(labels, truth), preset("swin_t").train)
    assert [float(ours[k]) for k in ("class", "l1", "giou")] == pytest.approx(
        [focal / 5, 5 * l1 / 5, 2 * giou / 5], abs=1e-5
    )


@pytest.mark.parametrize("temperature", [20.0, 10_000.0])
def test_image_position(temperature):
    """The position embedding of a map's cells equals transformers' (DETR's formula, normalised)."""
    height, width = 5, 8
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    ours = image_position(torch.stack([x, y], -1), DIM, temperature)
    expected = theirs.DeformableDetrSinePositionEmbedding(DIM // 2, temperature, normalize=True)(
        torch.Size([1, 3, height, width]), "cpu", torch.float32
    )
    assert_same(ours, expected[0].permute(1, 2, 0).contiguous())


def test_anchor_position_and_inverse_sigmoid():
    """The position embedding of anchors, and the inverse sigmoid, equal transformers'."""
    anchors = torch.rand(2, 5, 4)
    model = SimpleNamespace(config=SimpleNamespace(d_model=DIM))
    expected = theirs.DeformableDetrModel.get_proposal_pos_embed(model, theirs.inverse_sigmoid(anchors))
    assert_same(sine_embedding(anchors, DIM // 2), expected)
    assert_same(inverse_sigmoid(anchors), theirs.inverse_sigmoid(anchors))
    edges = torch.tensor([-0.1, 0.0, 1e-6, 1 - 1e-6, 1.0, 1.1], dtype=torch.float64)  # float32 is coarse near 1
    torch.testing.assert_close(inverse_sigmoid(edges), theirs.inverse_sigmoid(edges), atol=2e-5, rtol=0)


def test_text_tower_cut_to_the_longest_phrase():
    """T equals open_clip's own forward on the full context: leaving out the idle tokens changes nothing."""
    encoder = seeded_model().text_prompt_encoder
    names = ["cat", "a very long phrase that does not fit the context", "traffic light"]
    expected = encoder.norm(encoder.projection(encoder.tower(encoder.tokenizer(names))))
    assert_same(encoder(names), expected)
    assert_same(encoder(names[:1]), expected[:1])
