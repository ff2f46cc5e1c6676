"""One iteration: the prompts of a batch's pictures, by text and by visual prompts, and the losses that follow (paper,
section 3)."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from trex2_mini.config import TrainConfig
from trex2_mini.datasets.sample import Sample, normalized_boxes
from trex2_mini.images import to_image
from trex2_mini.losses.alignment import alignment_loss
from trex2_mini.losses.criterion import Targets, detection_losses
from trex2_mini.losses.recognition import token_recognition_loss
from trex2_mini.model.trex2 import TRex2
from trex2_mini.model.visual_prompt import RegionPrompts
from trex2_mini.processes import process
from trex2_mini.training.sampling import sample_names, sample_regions


@dataclasses.dataclass
class Prompted:
    """The prompts of one iteration: embeddings [B, C, D], which count on which image [B, C] (None: all), and the
    targets in their columns."""

    prompts: Tensor
    mask: Tensor | None
    targets: Targets


def text_prompts(model: TRex2, samples: Sequence[Sample], names: Sequence[str], categories: Sequence[int]) -> Prompted:
    """`categories` (indices into names) as prompts of every image; those that were not looked for in an image do not
    count there."""
    column = {category: index for index, category in enumerate(categories)}
    prompts = model.encode_text([names[c] for c in categories]).expand(len(samples), -1, -1)
    mask = None
    if any(sample.vocabulary is not None for sample in samples):
        looked_for = [
            np.ones(len(categories), bool) if s.vocabulary is None else np.isin(categories, s.vocabulary)
            for s in samples
        ]
        mask = torch.from_numpy(np.stack(looked_for)).to(prompts.device)
    return Prompted(prompts, mask, _targets(samples, [column] * len(samples), prompts.device))


def visual_prompts(
    samples: Sequence[Sample],
    categories: Sequence[Sequence[int]],
    encoded: Tensor,
    cross_image: float,
    rng: np.random.Generator,
    prompted: Sequence[np.ndarray] = (),
    others_only: float = 0.0,
) -> Prompted:
    """Every image is asked for each of its categories by one vector: its own V ("current image prompt, current image
    detect") or, with chance `cross_image`, that of another image of the batch that holds the category. The paper never
    trains prompts across images (spec section 9: cross_image = 0); `nano` does, because generic prompts (Visual-G) are
    just that. The V of categories that an image does not hold are its negatives.

    categories: of each image, in the order of `encoded` [B, C, D], the V of `sample_regions` (padded).
    prompted: of each image, which objects are prompts. With chance `others_only` the objects that an image's own V was
    made of do not count in its loss, so that what is trained is to find the others (not in the paper; 0 there).
    """
    owner = [(i, c) for i, own in enumerate(categories) for c in own]  # the image and category of each of the K vectors
    vectors = torch.cat([v[: len(own)] for v, own in zip(encoded, categories, strict=True)])  # (K, D)
    columns: list[dict[int, int]] = [{} for _ in samples]  # of each image: the vector that asks for a category
    counts = [np.ones(len(sample.labels), bool) for sample in samples]
    for k, (image, category) in enumerate(owner):
        others = [j for j, (i, c) in enumerate(owner) if c == category and i != image]
        across = bool(others) and rng.random() < cross_image
        columns[image][category] = int(rng.choice(others)) if across else k
        if others_only and not across and rng.random() < others_only:
            counts[image] &= ~(prompted[image] & (samples[image].labels == category))
    mask = [
        [
            column[category] == k if category in own else sample.vocabulary is None or category in sample.vocabulary
            for k, (_, category) in enumerate(owner)
        ]
        for sample, own, column in zip(samples, categories, columns, strict=True)
    ]
    targets = _targets(samples, columns, encoded.device)
    if others_only:
        targets.count = [torch.from_numpy(own).to(encoded.device) for own in counts]
    return Prompted(vectors.expand(len(samples), -1, -1), torch.tensor(mask, device=encoded.device), targets)


def _targets(samples: Sequence[Sample], columns: Sequence[dict[int, int]], device: torch.device) -> Targets:
    """The samples' objects; columns: for each image the prompt's column of a category."""
    labels = [
        torch.tensor([column[int(c)] for c in s.labels], dtype=torch.long)
        for s, column in zip(samples, columns, strict=True)
    ]
    return Targets([own.to(device) for own in labels], [normalized_boxes(s).to(device) for s in samples])


def iteration_losses(
    model: TRex2,
    samples: Sequence[Sample],
    names: Sequence[str],
    trainable: Sequence[int],
    config: TrainConfig,
    step: int,
    part: int = 0,
    whole: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """The weighted losses of one iteration, by name: "text/class", "visual/class", ..., "align" (see
    `detection_losses`).

    Both kinds of prompts are encoded in every iteration, for the alignment. A batch without any object can only be a
    text iteration.

    samples: part number `part` of the batch. whole: the objects and visual prompts (`count`) of the whole batch, by
    which the sums are
    divided, so that the losses of the parts add up to those of the batch; None: samples are the whole batch.
    """
    objects, whole = count(samples)[0], whole or count(samples)
    share = max(1, objects) / max(1, whole[0])  # the criterion divides by the objects it sees
    rng = np.random.default_rng([config.seed, step, 1, part])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    torch.manual_seed(
        int(np.random.default_rng([config.seed, step, 2, part]).integers(2**62))
    )  # for dropout: Swin drops paths
    device = next(model.parameters()).device
    features = model.encode_images([to_image(s.image).to(device) for s in samples])
    nothing = ([], [], np.zeros(0, bool))
    drawn = (sample_regions(s, config.point_probability, rng) if "visual" in s.prompts else nothing for s in samples)
    regions, categories, chosen = zip(*drawn, strict=True)
    asked = sample_names(samples, trainable, config.text_negatives, rng)
    prompted = {"text": text_prompts(model, samples, names, asked)}
    if any(categories):
        encoded = model.encode_visual(features, RegionPrompts.from_lists(regions, device))  # (B, C, D)
        prompted["visual"] = visual_prompts(
            samples, categories, encoded, config.cross_image, rng, chosen, config.others_only
        )

    losses: dict[str, Tensor] = {}
    for kind in iteration_kinds(step, config) if any(categories) else ("text",):
        asking = prompted[kind]
        denoising = model.denoising(
            asking.targets.boxes, asking.targets.labels, asking.prompts, asking.mask,
            config.denoising_queries, config.box_noise, config.label_noise, generator,
        )  # fmt: skip
        output = model.decode(features, asking.prompts, asking.mask, denoising, auxiliary=True)
        for name, value in detection_losses(output, asking.targets, config, asking.mask, denoising).items():
            losses[f"{kind}/{name}"] = value * share
        if config.loss_token:
            told = token_recognition_loss(output.tokens, features.centres, asking.targets)
            losses[f"{kind}/token"] = config.loss_token * told * share
    if config.loss_align and "visual" in prompted:
        shown = [(s, c) for s, own in zip(samples, categories, strict=True) for c in own]  # of each vector
        named = [row for row, (s, _) in enumerate(shown) if "text" in s.prompts]
        if named:
            kinds = [shown[row] for row in named]
            column = torch.tensor([asked.index(c) for _, c in kinds], device=device)
            counts = torch.tensor(
                [[name == c or s.ambiguous is None or name not in s.ambiguous for name in asked] for s, c in kinds],
                device=device,
            )
            vectors = prompted["visual"].prompts[0][torch.tensor(named, device=device)]
            aligned = alignment_loss(vectors, prompted["text"].prompts[0], column, counts)
            losses["align"] = config.loss_align * aligned * len(named) / whole[1]
    return losses


def count(samples: Sequence[Sample]) -> tuple[int, int]:
    """(objects, visual prompts: the categories of each image)."""
    return sum(len(s.labels) for s in samples), sum(len(np.unique(s.labels)) for s in samples)


class Iteration(nn.Module):
    """`iteration_losses` as a module's forward pass, which DistributedDataParallel asks for.

    DDP waits for a gradient of every parameter, but a part without objects has no visual prompts and no denoising, and
    without the alignment one of the prompt encoders may do nothing. So with several processes these parameters count 0
    times, and `untouched` takes the zeros away.
    """

    def __init__(self, model: TRex2):
        super().__init__()
        self.model = model

    def forward(self, samples: Sequence[Sample], *arguments) -> dict[str, Tensor]:
        losses = iteration_losses(self.model, samples, *arguments)
        if process()[1] > 1:
            first = next(iter(losses))
            own = [p for module in optional_parts(self.model) for p in module.parameters() if p.requires_grad]
            losses[first] = losses[first] + 0.0 * torch.stack([p.flatten()[0].float() for p in own]).sum()
        return losses


def optional_parts(model: TRex2) -> tuple[nn.Module, ...]:
    """What an iteration may have no use for."""
    return model.visual_prompt_encoder, model.text_prompt_encoder, model.denoising


def untouched(model: TRex2) -> None:
    """No gradient, as on one process, instead of zeros for the optional parts that no process had a use for."""
    for module in optional_parts(model):
        own = [parameter for parameter in module.parameters() if parameter.grad is not None]
        if not any(bool(parameter.grad.any()) for parameter in own):
            for parameter in own:
                parameter.grad = None


def batch_parts(config: TrainConfig) -> int:
    """In how many parts a step's batch is used: `config.parts`, made a multiple of the number of processes.

    Raises ValueError where the batch cannot be divided into so many equal parts.
    """
    processes = process()[1]
    if config.parts < 1 or config.batch_size < 1 or config.batch_size % math.lcm(config.parts, processes):
        raise ValueError(
            f"a batch of {config.batch_size} pictures cannot be divided into parts = {config.parts} on {processes}"
            " processes; choose a batch_size that is a multiple of both"
        )
    return math.lcm(config.parts, processes)


def iteration_kinds(step: int, config: TrainConfig) -> tuple[str, ...]:
    """Text alone for `text_first_steps`, then `visual_per_text` visual iterations after each text iteration; 0: both in
    every iteration."""
    after = step - config.text_first_steps
    if after >= 0 and config.visual_per_text == 0:
        return ("text", "visual")
    return ("text",) if after < 0 or after % (config.visual_per_text + 1) == 0 else ("visual",)
