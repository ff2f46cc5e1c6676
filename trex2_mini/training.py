"""Training: text and visual iterations in turn (paper, section 3), on scenes made on the fly or on a data set in COCO format.

Everything random is drawn from (seed, step), so a run that was stopped goes on exactly where it was: the resumable state is the weights,
the optimizer's moments and the number of the step, in one safetensors file that is written whole or not at all. On one process and a CPU the
resumed run ends with the same bits. (Its log has the same lines, but the first one after the stop averages the losses since then only.)

A step's batch is used in `batch_parts` parts, spread over the processes of torchrun, which DistributedDataParallel joins; the parts of one
process follow each other (gradient accumulation). A part is made, encoded and prompted by itself, and its random numbers follow from
(seed, step, part), so on how many processes the parts lie changes nothing but the rounding:
- The losses are divided by the numbers of objects and of visual prompts of the whole batch, not of the part. (Recognition at tokens is a
  mean over a part's objects that hold a token, and counts by the part's share of all objects.)
- A part without any object has a text iteration; DDP is told to look for parameters that got no gradient.
- Negatives stay within a part: other images' visual prompts, the names of its images, the names in the alignment (the authors: "the
  current GPU's mini-batch", spec section 9). So more parts mean fewer negatives, whether on one process or on many.
- Batch norms that are trained would see one part at a time (no preset has any, but `nano` with random weights), and the first
  process's statistics would be saved.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .checkpoint import CheckpointError, load_model, load_weights, read_tensors, save_model, write_tensors
from .config import Config, TrainConfig
from .datasets.coco import Sample
from .datasets.prompts import normalized_boxes, sample_names, sample_regions, to_image
from .losses.alignment import alignment_loss
from .losses.criterion import Targets, detection_losses
from .losses.recognition import token_recognition_loss
from .model.trex2 import TRex2
from .model.visual_prompt import RegionPrompts
from .paths import write_text
from .processes import process, usable_device

Batches = Callable[[int], list[Sample]]  # the batch of a step; of a step in P parts: part number i % P of step i // P


@dataclasses.dataclass
class Prompted:
    """The prompts of one iteration: embeddings [B, C, D], which count on which image [B, C] (None: all), and the targets in their columns."""

    prompts: Tensor
    mask: Tensor | None
    targets: Targets


def text_prompts(model: TRex2, samples: Sequence[Sample], names: Sequence[str], categories: Sequence[int]) -> Prompted:
    """`categories` (indices into names) as prompts of every image; those that were not looked for in an image do not count there."""
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
) -> Prompted:
    """Every image is asked for each of its categories by one vector: its own V ("current image prompt, current image detect") or, with
    chance `cross_image`, that of another image of the batch that holds the category. The paper never trains prompts across images
    (spec section 9: cross_image = 0); `nano` does, because generic prompts (Visual-G) are just that. The V of categories that an image
    does not hold are its negatives.

    categories: of each image, in the order of `encoded` [B, C, D], the V of `sample_regions` (padded).
    """
    owner = [(i, c) for i, own in enumerate(categories) for c in own]  # the image and category of each of the K vectors
    vectors = torch.cat([v[: len(own)] for v, own in zip(encoded, categories, strict=True)])  # (K, D)
    columns: list[dict[int, int]] = [{} for _ in samples]  # of each image: the vector that asks for a category
    for k, (image, category) in enumerate(owner):
        others = [j for j, (i, c) in enumerate(owner) if c == category and i != image]
        across = bool(others) and rng.random() < cross_image
        columns[image][category] = int(rng.choice(others)) if across else k
    mask = [
        [
            column[category] == k if category in own else sample.vocabulary is None or category in sample.vocabulary
            for k, (_, category) in enumerate(owner)
        ]
        for sample, own, column in zip(samples, categories, columns, strict=True)
    ]
    targets = _targets(samples, columns, encoded.device)
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
    """The weighted losses of one iteration, by name: "text/class", "visual/class", ..., "align" (see `detection_losses`).

    Both kinds of prompts are encoded in every iteration, for the alignment. A batch without any object can only be a text iteration.

    samples: part number `part` of the batch. whole: the objects and visual prompts (`count`) of the whole batch, by which the sums are
    divided, so that the losses of the parts add up to those of the batch; None: samples are the whole batch.
    """
    own, whole = count(samples), whole or count(samples)
    share = max(1, own[0]) / max(1, whole[0])  # the criterion divides by the objects it sees
    rng = np.random.default_rng([config.seed, step, 1, part])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    torch.manual_seed(
        int(np.random.default_rng([config.seed, step, 2, part]).integers(2**62))
    )  # for dropout: Swin drops paths
    device = next(model.parameters()).device
    features = model.encode_images([to_image(s.image).to(device) for s in samples])
    regions, categories = zip(*(sample_regions(s, config.point_probability, rng) for s in samples), strict=True)
    asked = sample_names(samples, trainable, config.text_negatives, rng)
    prompted = {"text": text_prompts(model, samples, names, asked)}
    if any(categories):
        encoded = model.encode_visual(features, RegionPrompts.from_lists(regions, device))  # (B, C, D)
        prompted["visual"] = visual_prompts(samples, categories, encoded, config.cross_image, rng)

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
        column = torch.tensor([asked.index(c) for own in categories for c in own], device=device)
        counts = torch.stack(
            [
                torch.tensor([n == c or s.ambiguous is None or n not in s.ambiguous for n in asked], device=device)
                for s, own in zip(samples, categories, strict=True)
                for c in own
            ]
        )
        aligned = alignment_loss(prompted["visual"].prompts[0], prompted["text"].prompts[0], column, counts)
        losses["align"] = config.loss_align * aligned * own[1] / whole[1]
    return losses


def count(samples: Sequence[Sample]) -> tuple[int, int]:
    """(objects, visual prompts: the categories of each image)."""
    return sum(len(s.labels) for s in samples), sum(len(np.unique(s.labels)) for s in samples)


class Iteration(nn.Module):
    """`iteration_losses` as a module's forward pass, which DistributedDataParallel asks for."""

    def __init__(self, model: TRex2):
        super().__init__()
        self.model = model

    def forward(self, samples: Sequence[Sample], *arguments) -> dict[str, Tensor]:
        return iteration_losses(self.model, samples, *arguments)


def batch_parts(config: TrainConfig) -> int:
    """In how many parts a step's batch is used: `config.parts`, made a multiple of the number of processes.

    Raises ValueError where the batch cannot be divided into so many equal parts.
    """
    processes = process()[1]
    if config.parts < 1 or config.batch_size < 1 or config.batch_size % math.lcm(config.parts, processes):
        raise ValueError(
            f"a batch of {config.batch_size} pictures cannot be divided into parts = {config.parts} on {processes} processes; "
            "choose a batch_size that is a multiple of both"
        )
    return math.lcm(config.parts, processes)


def iteration_kinds(step: int, config: TrainConfig) -> tuple[str, ...]:
    """Text alone for `text_first_steps`, then `visual_per_text` visual iterations after each text iteration; 0: both in every iteration."""
    after = step - config.text_first_steps
    if after >= 0 and config.visual_per_text == 0:
        return ("text", "visual")
    return ("text",) if after < 0 or after % (config.visual_per_text + 1) == 0 else ("visual",)


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, constant, then a linear fall to 2 % over the last `decay_fraction` of the steps."""
    left = (config.steps - step) / max(1, config.steps * config.decay_fraction)
    return min(1.0, (step + 1) / max(1, config.warmup_steps), max(0.02, left))


def make_optimizer(model: TRex2, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with a learning rate of its own for the backbone and for the text tower; no weight decay for biases, norms and embeddings."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = config.lr_backbone if ".backbone." in name else config.lr_text if ".tower." in name else config.lr
        decay = config.weight_decay if parameter.ndim > 1 and "embedding" not in name else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "lr": rate, "base_lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()],
        fused=True,
    )


class Trainer:
    """A run in a folder: `config.json`, `log.jsonl`, `state.safetensors` (to go on), `model.safetensors` (half precision, to use; the average
    of the weights, if `config.train.ema`)."""

    def __init__(
        self,
        run: str | Path,
        config: Config,
        batches: Batches,
        names: Sequence[str],
        trainable: Sequence[int] | None = None,
        device: str = "cpu",
        pretrained: bool = True,
    ):
        """Under torchrun, to be called by every process once they are joined (`processes.one_of_many`).

        batches: makes the pictures of part i % P of step i // P, with P = `batch_parts(config.train)`; called in a worker process.
        names: all category names; trainable: indices of those that may appear in training (default all).
        """
        self.run, self.config, self.batches, self.names = Path(run), config, batches, list(names)
        self.trainable = list(range(len(names))) if trainable is None else list(trainable)
        torch.manual_seed(config.train.seed)
        device = usable_device(device)
        self.parts = batch_parts(config.train)
        self.model = TRex2(config.model, pretrained).to(device).train()
        self.model.image_encoder.recompute = config.train.recompute
        self.iteration: nn.Module = Iteration(self.model)
        if process()[1] > 1:
            self.iteration = DistributedDataParallel(
                self.iteration, broadcast_buffers=False, find_unused_parameters=True
            )
        self.optimizer = make_optimizer(self.model, config.train)
        self.average: dict[str, Tensor] = {}  # of the weights, if config.train.ema; else empty
        self._restart_average()
        self.step = 0
        self.run.mkdir(parents=True, exist_ok=True)

    @property
    def state_path(self) -> Path:
        return self.run / "state.safetensors"

    def _restart_average(self) -> None:
        if self.config.train.ema:
            self.average = {name: own.detach().clone() for name, own in self.model.named_parameters() if own.requires_grad}

    def save(self) -> None:
        """Write the resumable state, whole or not at all."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        write_tensors(self.state_path, tensors, {"step": str(self.step), "config": self.config.to_json()})

    def resume(self) -> None:
        """Go on from `state.safetensors`. The model must be the same; the recipe may differ (for example in the number of steps)."""
        tensors, metadata = read_tensors(self.state_path)
        if "step" not in metadata:
            raise CheckpointError(f"{self.state_path} is not a training state; expected one that Trainer.save wrote")
        if Config.from_json(metadata["config"], str(self.state_path)).model != self.config.model:
            raise CheckpointError(
                f"{self.state_path} is a run of another model; go on with its own configuration: --config {self.run / 'config.json'}"
            )
        load_weights(
            self.model,
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")},
            str(self.state_path),
        )
        for name, parameter in self.model.named_parameters():
            keys = [k for k in tensors if k.startswith("optimizer.") and k.split(".", 2)[2] == name]
            if keys:
                self.optimizer.state[parameter] = {  # moments in the memory layout of their parameter
                    k.split(".", 2)[1]: torch.empty_like(parameter).copy_(tensors[k]) if tensors[k].ndim else tensors[k]
                    for k in keys
                }
        self._restart_average()  # from the weights, where the state was saved without an average
        for name, value in self.average.items():
            value.copy_(tensors.get(f"average.{name}", value))
        self.step = int(metadata["step"])

    def start_from(self, source: str | Path) -> None:
        """Begin with a checkpoint's weights: a folder, or the name of one that comes with the repository. The optimizer and the steps start anew.
        The model must be the same but for the size of its pictures."""
        model, config, path = load_model(source)
        model_config = dataclasses.replace(
            config.model, **{name: getattr(self.config.model, name) for name in ("short_side", "long_side", "nms_iou")}
        )  # these decide no shape
        if model_config != self.config.model:
            raise CheckpointError(
                f"{path} is another model than {self.config.name!r}; train with its own --config {path.parent / 'config.json'}"
            )
        self.model.load_state_dict(model.state_dict())
        self._restart_average()

    def train(self, save_every: int = 250, progress: bool = True, workers: int = 1) -> None:
        """Run until `config.train.steps`; logs every 20 steps, saves every `save_every` and at the end (the first process does).

        Raises ValueError where another process trains in the same folder (the two would overwrite each other's state) or nothing can be
        written there, and for save_every under 1 or workers under 0; CheckpointError where a state could not be saved (the last one is whole).
        """
        if save_every < 1 or workers < 0:
            raise ValueError(f"expected save_every >= 1 and workers >= 0, got {save_every} and {workers}")
        if process()[0]:
            return self._train(save_every, False, workers)
        try:  # the system lets go of it when the process ends, however it ends
            lock = FileLock(self.run / "train.lock").acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"another process is training in {self.run}; wait for it, stop it, or choose another folder"
            ) from None
        except OSError as error:
            raise ValueError(f"{self.run} cannot be written to ({error}); choose another folder") from error
        with lock:
            for left in self.run.glob("*.part"):  # by a process that was killed while it wrote
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            self._write_head()
            self._train(save_every, progress, workers)

    def _write_head(self) -> None:
        """config.json, and of an older log.jsonl the lines up to this step."""
        write_text(self.run / "config.json", self.config.to_json())
        log = self.run / "log.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.exists() and self.step else []
        whole = [line for line in lines if line.endswith("}\n")]  # the last one may have been cut off
        write_text(log, "".join(line for line in whole if json.loads(line)["step"] <= self.step))

    def _train(self, save_every: int, progress: bool, workers: int) -> None:
        train, first = self.config.train, process()[0] == 0
        own = range(process()[0], self.parts, process()[1])  # the parts of this process
        loader = torch.utils.data.DataLoader(
            _Steps(self.batches, self.step, train.steps, self.parts, own),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
        )
        history: list[dict[str, float]] = []
        began = time.perf_counter()
        bar = tqdm(loader, total=train.steps, initial=self.step, disable=not progress, unit="step", mininterval=5)
        for samples in bar:
            history.append(self._update(dict(zip(own, samples, strict=True))))
            self.step += 1
            if self.step % 20 == 0 or self.step == train.steps:
                means = _means(history)
                seconds = time.perf_counter() - began
                record = {
                    "step": self.step,
                    "lr": self.optimizer.param_groups[0]["lr"],
                    "images_per_second": round(len(history) * train.batch_size / seconds, 2),
                    **means,
                }
                if first:
                    with (self.run / "log.jsonl").open("a") as file:
                        file.write(json.dumps(record) + "\n")
                bar.set_postfix(loss=means["total"])
                history, began = [], time.perf_counter()
            if first and (self.step % save_every == 0 or self.step == train.steps):
                self.save()
        if first:
            save_model(self.run, self.model, self.config, self.average)

    def _update(self, parts: dict[int, list[Sample]]) -> dict[str, float]:
        """One optimizer step; parts: those of this process, by number. Returns what they add to the losses."""
        train = self.config.train
        factor = learning_rate_factor(self.step, train)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(parts)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient is not finite at step {self.step}; the last saved state is {self.state_path}; lower the learning rate"
            )
        self.optimizer.step()
        if self.average:
            # a short memory at first: at step n it is that of n / 10 steps
            kept = min(train.ema, (1 + self.step) / (10 + self.step))
            own = dict(self.model.named_parameters())
            torch._foreach_lerp_(list(self.average.values()), [own[name].detach() for name in self.average], 1 - kept)
        return losses

    def _backward(self, parts: dict[int, list[Sample]]) -> dict[str, float]:
        """Adds up the gradients of the parts and, with the last one, of all processes. Returns what these parts add to the losses."""
        train, processes = self.config.train, process()[1]
        counts = torch.tensor([count(samples) for samples in parts.values()]).sum(0)
        if processes > 1:
            dist.all_reduce(counts)
        whole = (int(counts[0]), int(counts[1]))
        device_type = next(self.model.parameters()).device.type
        sums: dict[str, float] = {}
        for place, (part, samples) in enumerate(parts.items(), 1):
            alone = processes > 1 and place < len(parts)
            with self.iteration.no_sync() if alone else nullcontext():
                with torch.autocast(device_type, dtype=torch.bfloat16, enabled=train.amp):
                    losses = self.iteration(samples, self.names, self.trainable, train, self.step, part, whole)
                    total = torch.stack([v.float() for v in losses.values()]).sum()
                (total * processes).backward()  # DDP divides by their number
            for name, value in {"total": total, **losses}.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
        return sums


def _means(history: list[dict[str, float]]) -> dict[str, float]:
    """Each loss's mean over the steps that had it, the processes' shares added up."""
    shares: list = [history]
    if process()[1] > 1:
        shares = [None] * process()[1]
        dist.all_gather_object(shares, history)
    sums: dict[str, list[float]] = {}
    for step in zip(*shares, strict=True):
        for name in dict.fromkeys(name for own in step for name in own):
            sums.setdefault(name, []).append(sum(own.get(name, 0.0) for own in step))
    return {name: round(float(np.mean(values)), 4) for name, values in sums.items()}


class _Steps(torch.utils.data.Dataset):
    """Item i is what a process has of the batch of step first + i: a DataLoader worker makes it while the model works on the one before."""

    def __init__(self, batches: Batches, first: int, last: int, parts: int, own: Sequence[int]):
        self.batches, self.first, self.last, self.parts, self.own = batches, first, last, parts, own

    def __len__(self) -> int:
        return max(0, self.last - self.first)

    def __getitem__(self, index: int) -> list[list[Sample]]:
        return [self.batches((self.first + index) * self.parts + part) for part in self.own]
