"""The losses: odd targets, perfect outputs, denoising that does not leak, equation 9 by hand, a model that learns."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tiny import COLOURS, NAMES, TINY, TINY_MODEL, double_precision, picture, seeded_model, squares

from trex2_mini.boxes import normalized_to_xyxy
from trex2_mini.config import preset
from trex2_mini.datasets.sample import normalized_boxes
from trex2_mini.images import to_image
from trex2_mini.losses.alignment import alignment_loss
from trex2_mini.losses.criterion import Targets, detection_losses
from trex2_mini.losses.matcher import match
from trex2_mini.losses.recognition import token_recognition_loss
from trex2_mini.model.box_decoder import DecoderOutput
from trex2_mini.model.denoising import Denoising
from trex2_mini.training.iteration import iteration_losses
from trex2_mini.training.trainer import make_optimizer

RECIPE = preset("swin_t").train  # the weights of the paper


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def targets(counts: list[int], categories: int) -> Targets:
    return Targets([torch.randint(categories, (n,)) for n in counts], [torch.rand(n, 4) * 0.4 + 0.3 for n in counts])


def noise_for(
    targets: Targets,
    prompts: torch.Tensor,
    budget: int = 12,
    mask: torch.Tensor | None = None,
    label_noise: float = 0.25,
    module: Denoising | None = None,
):
    module = module or Denoising(prompts.shape[-1])
    return module(
        targets.boxes, targets.labels, prompts, mask, budget, 0.4, label_noise, torch.Generator().manual_seed(0)
    )


def test_an_object_that_does_not_count_is_neither_rewarded_nor_punished():
    """Its query gets no gradient in any layer; without it, the other queries' gradients stay what they were."""
    truth = Targets([torch.tensor([0, 1])], [torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])])
    boxes = torch.tensor([[[0.2, 0.2, 0.3, 0.2], [0.7, 0.6, 0.2, 0.2], [0.5, 0.5, 0.5, 0.5]]])
    gradients = []
    for count in (None, [torch.tensor([False, True])]):
        logits, where = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(1)), boxes.clone()
        logits.requires_grad_(), where.requires_grad_()
        own = Targets(truth.labels, truth.boxes, count)
        sum(detection_losses(DecoderOutput(logits, where), own, RECIPE).values()).backward()
        gradients.append((logits.grad, where.grad))
    (all_logits, all_boxes), (some_logits, some_boxes) = gradients
    assert all_logits[0, 0].abs().min() > 0 and all_boxes[0, 0].abs().max() > 0
    assert some_logits[0, 0].abs().max() == 0 and some_boxes[0, 0].abs().max() == 0
    torch.testing.assert_close(some_logits[0, 1:], all_logits[0, 1:])
    torch.testing.assert_close(some_boxes[0, 1:], all_boxes[0, 1:])


@pytest.mark.parametrize("categories", [1, 300])
@pytest.mark.parametrize("counts", [[0, 0], [1, 0], [0, 1], [3, 2], [40, 1]], ids=str)
def test_losses_and_gradients_are_finite(counts, categories):
    """No object, one, more than queries; 1 and 300 prompts; all layers, denoising: finite everywhere."""
    model = seeded_model().train()
    features = model.encode_images([picture(64, 64, 1), picture(48, 64, 2)])
    prompts = torch.randn(2, categories, TINY_MODEL.dim, requires_grad=True)
    truth = targets(counts, categories)
    mask = torch.ones(2, categories, dtype=torch.bool)
    mask[1, -1] = categories == 1 or bool((truth.labels[1] == categories - 1).any())
    denoising = noise_for(truth, prompts, mask=mask, module=model.denoising)
    losses = detection_losses(
        model.decode(features, prompts, mask, denoising, auxiliary=True), truth, RECIPE, mask, denoising
    )
    names = {
        f"{part}{suffix}"
        for part in ("class", "l1", "giou")
        for suffix in ("", "_aux", *(["_dn"] if denoising else []))
    }
    assert losses.keys() == names and (denoising is None) == (sum(counts) == 0)
    sum(losses.values()).backward()
    assert all(value.isfinite() and value >= 0 for value in losses.values())
    assert prompts.grad.isfinite().all()
    assert [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()] == []
    if not sum(counts):
        assert losses["l1"] == losses["giou"] == 0 and losses["class"] > 0


def perfect(truth: Targets, queries: int, categories: int) -> DecoderOutput:
    """Query k of an image answers object k; the others say nothing."""
    logits = torch.full((len(truth.boxes), queries, categories), -20.0)
    boxes = torch.rand(len(truth.boxes), queries, 4) * 0.3 + 0.3
    for image, (labels, own) in enumerate(zip(truth.labels, truth.boxes)):
        logits[image, torch.arange(len(labels)), labels] = 20.0
        boxes[image, : len(own)] = own
    return DecoderOutput(logits, boxes)


def test_perfect_outputs_cost_nothing():
    """The right boxes with sure logits: each loss is zero; with one box moved or one label wrong its loss is not."""
    truth = targets([3, 1, 0], 5)
    output = perfect(truth, 8, 5)
    losses = detection_losses(output, truth, RECIPE)
    assert all(abs(float(value)) < 1e-5 for value in losses.values()), losses
    moved = DecoderOutput(
        output.logits,
        output.boxes.index_put((torch.tensor(0), torch.tensor(1)), truth.boxes[0][1] + torch.tensor([0.1, 0, 0, 0])),
    )
    assert float(detection_losses(moved, truth, RECIPE)["l1"]) == pytest.approx(5 * 0.1 / 4, rel=1e-4)
    blind = DecoderOutput(output.logits.index_fill(0, torch.tensor(1), -20.0), output.boxes)
    assert float(detection_losses(blind, truth, RECIPE)["class"]) == pytest.approx(0.25 * 20 / 4, rel=1e-4)


def test_absent_prompts_carry_no_loss():
    """Logits of a prompt that is masked on an image do not count, not even as minus infinity."""
    truth = targets([2, 2], 3)
    output = perfect(truth, 6, 3)
    wide = DecoderOutput(torch.cat([output.logits, torch.full((2, 6, 1), -math.inf)], 2), output.boxes)
    mask = torch.tensor([[True, True, True, False]] * 2)
    assert float(sum(detection_losses(wide, truth, RECIPE, mask).values())) == pytest.approx(0, abs=1e-5)


def test_loss_weights():
    """Each weight of the recipe scales its own loss on every layer."""
    truth = targets([3], 4)
    output = DecoderOutput(
        torch.randn(1, 6, 4),
        torch.rand(1, 6, 4) * 0.4 + 0.3,
        [DecoderOutput(torch.randn(1, 6, 4), torch.rand(1, 6, 4) * 0.4 + 0.3)],
    )
    one = detection_losses(output, truth, RECIPE)
    changed = detection_losses(output, truth, dataclasses.replace(RECIPE, loss_class=3.0, loss_l1=10.0, loss_giou=1.0))
    for name, value in one.items():
        factor = {"class": 3.0, "l1": 2.0, "giou": 0.5}[name.removesuffix("_aux")]
        assert float(changed[name]) == pytest.approx(factor * float(value), rel=1e-5)


def test_matching_refuses_nan():
    """NaN in the model's output is an error that says so, not an arbitrary match."""
    with pytest.raises(FloatingPointError, match="not finite"):
        match(torch.full((1, 4, 2), math.nan), torch.rand(1, 4, 4), [torch.tensor([0])], [torch.rand(1, 4)], 2, 5, 2)


def test_denoising_is_none_without_objects_or_budget():
    """Nothing to denoise: None."""
    prompts = torch.randn(2, 3, 8)
    assert noise_for(targets([0, 0], 3), prompts) is None
    assert noise_for(targets([2, 1], 3), prompts, budget=0) is None


@pytest.mark.parametrize("counts, budget, groups", [([1, 0], 12, 6), ([3, 2], 12, 2), ([3, 2], 13, 2), ([6, 1], 12, 1)])
def test_denoising_keeps_to_its_budget(counts, budget, groups):
    """As many whole groups of positives and negatives as the budget holds."""
    denoising = noise_for(targets(counts, 4), torch.randn(2, 4, 8), budget)
    assert denoising.groups == groups and denoising.anchors.shape == (2, groups * 2 * max(counts), 4)
    assert denoising.anchors.shape[1] <= budget and denoising.content.shape[:2] == denoising.anchors.shape[:2]


def test_denoising_positives_are_near_their_object_and_negatives_farther():
    """`positives` carry their object's prompt; corners move by 0..1/2 or (negatives) 1/2..1 side times the noise."""
    truth, prompts, module = targets([3, 2], 4), torch.randn(2, 4, 8), Denoising(8)
    truth.boxes = [
        boxes * torch.tensor([1, 1, 0.3, 0.3]) for boxes in truth.boxes
    ]  # away from the border, where corners are clipped
    denoising = noise_for(truth, prompts, 24, label_noise=0.0, module=module)
    places = denoising.positives()
    assert places.shape == (4, 3) and denoising.real.tolist() == [[True] * 3, [True, True, False]]
    for image, (labels, boxes) in enumerate(zip(truth.labels, truth.boxes)):
        for group in range(denoising.groups):
            for item in range(len(labels)):
                side, place = boxes[item, 2:].repeat(2), int(places[group, item])
                torch.testing.assert_close(
                    denoising.content[image, place], module.content(prompts[image, labels[item]])
                )
                for index, low, high in ((place, 0.0, 0.5), (place + 3, 0.5, 1.0)):
                    corners = normalized_to_xyxy(denoising.anchors[image, index], 1, 1) - normalized_to_xyxy(
                        boxes[item], 1, 1
                    )
                    moved = corners.abs() / side / 0.4
                    assert (moved <= high + 1e-3).all() and (moved >= low - 1e-3).all()


def test_denoising_labels_are_replaced_by_prompts_of_the_image():
    """Label noise never takes a prompt that is absent on the image."""
    truth = Targets([torch.zeros(4, dtype=torch.long)], [torch.rand(4, 4) * 0.4 + 0.3])
    prompts, module = torch.randn(1, 3, 8), Denoising(8)
    denoising = noise_for(truth, prompts, 400, torch.tensor([[True, True, False]]), label_noise=0.5, module=module)
    distance = torch.cdist(denoising.content[0], module.content(prompts[0]))
    nearest, share = distance.argmin(1), (distance.argmin(1) == 1).float().mean()
    assert (distance.amin(1) < 0.01).all() and set(nearest.tolist()) == {0, 1} and 0.15 < share < 0.35


def test_denoising_mask():
    """Forbidden is exactly: ordinary queries to any group, one group to another."""
    denoising = noise_for(targets([2, 1], 3), torch.randn(2, 3, 8), 8)  # two groups of four
    owner = [0] * 4 + [1] * 4 + [None] * 5
    expected = [[key is not None and key != query for key in owner] for query in owner]
    assert denoising.attention_mask(13).tolist() == expected


@double_precision()
def test_denoising_does_not_leak():
    """Ordinary queries give the same outputs with and without denoising queries, in every layer."""
    model = seeded_model()
    features = model.encode_images([picture(64, 64, 1), picture(48, 64, 2)])
    prompts = model.encode_text(NAMES).expand(2, -1, -1)
    truth = targets([3, 1], len(NAMES))
    plain = model.decode(features, prompts, auxiliary=True)
    noisy = model.decode(features, prompts, denoising=noise_for(truth, prompts, module=model.denoising), auxiliary=True)
    for a, b in zip([plain, *plain.auxiliary], [noisy, *noisy.auxiliary], strict=True):
        torch.testing.assert_close(a.logits, b.logits, atol=1e-9, rtol=0)
        torch.testing.assert_close(a.boxes, b.boxes, atol=1e-9, rtol=0)
    assert [tuple(o.boxes.shape) for o in noisy.denoising] == [(2, 12, 4)] * TINY_MODEL.decoder_layers


def test_denoising_loss_by_hand():
    """Positives owe their box and label, negatives and padding owe nothing; averaged over the groups."""
    truth = targets([2, 1], 3)
    denoising = noise_for(truth, torch.randn(2, 3, 8), 8)  # two groups of [2 positives, 2 negatives]
    logits, boxes = torch.full((2, 8, 3), -20.0), torch.rand(2, 8, 4) * 0.3 + 0.3
    for image, (labels, own) in enumerate(zip(truth.labels, truth.boxes)):
        for group in range(2):
            for item, (label, box) in enumerate(zip(labels, own)):
                logits[image, 4 * group + item, label], boxes[image, 4 * group + item] = 20.0, box
    logits[1, [1, 3, 5, 7]] = 20.0  # the padded object of the second image: shouts, and carries no loss
    empty = DecoderOutput(logits[:, :0], boxes[:, :0])
    output = dataclasses.replace(empty, denoising=[DecoderOutput(logits, boxes)])

    def loss(name):
        return float(detection_losses(output, truth, RECIPE, None, denoising)[name + "_dn"])

    assert [loss(n) for n in ("class", "l1", "giou")] == pytest.approx([0, 0, 0], abs=1e-5)
    logits[0, 2, 0] = 20.0  # a negative that claims to be something: 0.75 * 20, over 3 objects in 2 groups
    assert loss("class") == pytest.approx(0.75 * 20 / 6, rel=1e-4)
    boxes[0, 5] += torch.tensor([0.0, 0.06, 0.0, 0.0])  # a positive of the second group
    assert loss("l1") == pytest.approx(5 * 0.06 / 6, rel=1e-4)


def test_alignment_by_hand():
    """Equation 9, number by number (similarities over sqrt(D)); both sides get gradients; nothing for K = 0."""
    dim, category = 4, [0, 2, 2]
    visual, text = torch.randn(3, dim, requires_grad=True), torch.randn(3, dim, requires_grad=True)
    loss = alignment_loss(visual, text, torch.tensor(category))
    total = 0.0
    for v, own in zip(visual.tolist(), category):
        similarity = [sum(a * b for a, b in zip(v, t)) / math.sqrt(dim) for t in text.tolist()]
        total -= math.log(math.exp(similarity[own]) / sum(math.exp(s) for s in similarity)) / 3
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    loss.backward()
    assert visual.grad.abs().min() > 0 and text.grad.abs().min() > 0
    assert alignment_loss(visual[:0], text, torch.zeros(0, dtype=torch.long)).item() == 0


@pytest.mark.parametrize("step", [0, 1], ids=["text", "visual"])
def test_iteration_without_objects(step):
    """A batch of pictures without any object trains as a text iteration: all names are negatives."""
    samples = [squares(i, objects=0) for i in range(2)]
    losses = iteration_losses(seeded_model().train(), samples, NAMES, range(len(NAMES)), TINY.train, step)
    assert "align" not in losses and all(value.isfinite() for value in losses.values())


def test_iteration_with_one_empty_image():
    """A visual iteration in which one image holds nothing: the other's prompts are its negatives."""
    losses = iteration_losses(
        seeded_model().train(), [squares(0), squares(1, objects=0)], NAMES, range(len(NAMES)), TINY.train, 1
    )
    assert losses["align"].isfinite() and losses["visual/l1"] > 0 and all(value.isfinite() for value in losses.values())


def test_learns_one_picture():
    """80 steps on one picture: the loss falls to a fraction, and text finds the squares where they are."""
    recipe = dataclasses.replace(TINY.train, steps=80, lr=2e-3, lr_backbone=1e-3, lr_text=2e-3)
    torch.manual_seed(0)
    model = seeded_model().train()
    optimizer = make_optimizer(model, recipe)
    sample = squares(3)
    history = []
    for step in range(recipe.steps):
        losses = iteration_losses(model, [sample, sample], NAMES, range(len(NAMES)), recipe, step)
        kind = "text" if step % 2 == 0 else "visual"
        history.append(sum(losses[f"{kind}/{part}"].item() for part in ("class", "l1", "giou")))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    first, last = (sum(part) / len(part) for part in (history[:10], history[-10:]))
    print(f"loss {first:.2f} -> {last:.2f}")
    assert last < 0.35 * first
    model.eval()
    with torch.no_grad():
        output = model.decode(
            model.encode_images([to_image(sample.image)]), model.encode_text([NAMES[label] for label in sample.labels])
        )
    for column, box in enumerate(normalized_boxes(sample)):
        best = output.boxes[0, output.logits[0, :, column].argmax()]
        assert (best - box).abs().max() < 0.1, (COLOURS[sample.labels[column]], best, box)


def test_token_recognition_by_hand():
    """Two overlapping boxes: the smaller owns the shared token, every object weighs the same, tokens outside do not
    count.
    """
    centres = torch.tensor([[[0.1, 0.1], [0.5, 0.5], [0.6, 0.5], [0.95, 0.95]], [[0.5, 0.5]] * 4])
    big, small = [0.4, 0.4, 0.8, 0.8], [0.5, 0.5, 0.1, 0.1]
    targets = Targets(
        [torch.tensor([2, 0]), torch.zeros(0, dtype=torch.long)], [torch.tensor([big, small]), torch.zeros(0, 4)]
    )
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    logits[0, :, 1] = -torch.inf  # a prompt that does not count on this image
    logits[1] = -torch.inf
    logits.requires_grad_()
    loss = token_recognition_loss(logits, centres, targets)
    of = -logits[0].log_softmax(-1)
    torch.testing.assert_close(loss, ((of[0, 2] + of[2, 2]) / 2 + of[1, 0]) / 2)
    loss.backward()
    assert torch.isfinite(logits.grad).all() and not logits.grad[0, 3].any() and not logits.grad[1].any()
    assert token_recognition_loss(logits[1:], centres[1:], Targets(targets.labels[1:], targets.boxes[1:])) == 0
