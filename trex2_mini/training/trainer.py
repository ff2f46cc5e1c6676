"""Training: text and visual iterations in turn (paper, section 3), on scenes made on the fly or on a data set in COCO
format.

Everything random is drawn from (seed, step), so a run that was stopped goes on exactly where it was: the resumable
state is the weights, the optimizer's moments and the number of the step, in one safetensors file that is written whole
or not at all. On one process and a CPU the resumed run ends with the same bits. (Its log has the same lines, but the
first one after the stop averages the losses since then only.)

A step's batch is used in `batch_parts` parts, spread over the processes of torchrun, which DistributedDataParallel
joins; the parts of one process follow each other (gradient accumulation). A part is made, encoded and prompted by
itself, and its random numbers follow from (seed, step, part), so on how many processes the parts lie changes nothing
but the rounding:
- The losses are divided by the numbers of objects and of visual prompts of the whole batch, not of the part.
  (Recognition at tokens is a mean over a part's objects that hold a token, and counts by the part's share of all
  objects.)
- A part without any object has a text iteration; the parameters that it leaves out are in `Iteration`'s care.
- Negatives stay within a part: other images' visual prompts, the names of its images, the names in the alignment (the
  authors: "the current GPU's mini-batch", spec section 9). So more parts mean fewer negatives, whether on one process
  or on many.
- Batch norms that are trained would see one part at a time (no preset has any, but `nano` with random weights), and the
  first process's statistics would be saved.
"""

import dataclasses
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from trex2_mini.checkpoint import CheckpointError, load_model, load_weights, read_tensors, save_model, write_tensors
from trex2_mini.config import Config, TrainConfig
from trex2_mini.datasets.sample import Sample
from trex2_mini.model.trex2 import TRex2
from trex2_mini.names import Vocabulary
from trex2_mini.paths import locked, write_text
from trex2_mini.processes import leave_signals_to_parent, process, replicated, stop_signals, usable_device
from trex2_mini.training.iteration import Iteration, batch_parts, count, untouched

Batches = Callable[[int], list[Sample]]  # the batch of a step; of a step in P parts: part number i % P of step i // P


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, constant, then a linear fall to 2 % over the last `decay_fraction` of the steps."""
    left = (config.steps - step) / max(1, config.steps * config.decay_fraction)
    return min(1.0, (step + 1) / max(1, config.warmup_steps), max(0.02, left))


def make_optimizer(model: TRex2, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with a learning rate of its own for the backbone and for the text tower; no weight decay for biases, norms
    and embeddings."""
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
    """A run in a folder: `config.json`, `log.jsonl`, `state.safetensors` (to go on), `model.safetensors` (half
    precision, to use)."""

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

        batches: makes the pictures of part i % P of step i // P, with P = `batch_parts(config.train)`; called in a
        worker process.
        names: all category names; trainable: indices of those that may appear in training (default all).
        """
        self.run, self.config, self.batches, self.names = Path(run), config, batches, list(names)
        self.trainable = list(range(len(names))) if trainable is None else list(trainable)
        torch.manual_seed(config.train.seed)
        device = usable_device(device)
        self.parts = batch_parts(config.train)
        self.model = TRex2(config.model, pretrained).to(device).train()
        self.model.image_encoder.recompute = config.train.recompute
        self.iteration = replicated(Iteration(self.model))
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
            own = self.model.named_parameters()
            self.average = {name: value.detach().clone() for name, value in own if value.requires_grad}

    def save(self) -> None:
        """Write the resumable state, whole or not at all."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        write_tensors(self.state_path, tensors, {"step": str(self.step), "config": self.config.to_json()})

    def resume(self) -> None:
        """Go on from `state.safetensors`. The model must be the same; the recipe may differ (for example in the number
        of steps)."""
        if not self.state_path.is_file():
            raise CheckpointError(
                f"{self.run} holds no saved state to go on from: expected {self.state_path.name}, which training writes"
                " every `save_every` steps and when it is stopped; begin anew without --resume"
            )
        tensors, metadata = read_tensors(self.state_path)
        if "step" not in metadata:
            raise CheckpointError(f"{self.state_path} is not a training state; expected one that Trainer.save wrote")
        if Config.from_json(metadata["config"], str(self.state_path)).model != self.config.model:
            raise CheckpointError(
                f"{self.state_path} is a run of another model; go on with its own configuration: --config"
                f" {self.run / 'config.json'}"
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
        """Begin with a checkpoint's weights: a folder, or the name of one that comes with the repository. The optimizer
        and the steps start anew. The model must be the same but for the size of its pictures."""
        model, config, path = load_model(source)
        model_config = dataclasses.replace(
            config.model, **{name: getattr(self.config.model, name) for name in ("short_side", "long_side", "nms_iou")}
        )  # these decide no shape
        if model_config != self.config.model:
            raise CheckpointError(
                f"{path} is another model than {self.config.name!r}; train with its own --config"
                f" {path.parent / 'config.json'}"
            )
        self.model.load_state_dict(model.state_dict())
        self._restart_average()
        if process()[0] == 0 and (known := Vocabulary.load(path.parent)):
            known.save(self.run)

    def train(self, save_every: int = 250, progress: bool = True, workers: int = 1) -> None:
        """Run until `config.train.steps`; logs every 20 steps, saves every `save_every` and at the end (the first
        process does). Ctrl-C and SIGTERM save after the step, print how to go on, and end with status 130 or 143.

        Raises ValueError where another process trains in the same folder (the two would overwrite each other's state)
        or nothing can be written there, and for save_every under 1 or workers under 0; CheckpointError where a state
        could not be saved (the last one is whole).
        """
        if save_every < 1 or workers < 0:
            raise ValueError(f"expected save_every >= 1 and workers >= 0, got {save_every} and {workers}")
        if process()[0]:
            with stop_signals() as asked:
                return self._train(save_every, False, workers, asked)
        busy = f"another process is training in {self.run}; wait for it, stop it, or choose another folder"
        with locked(self.run / "train.lock", busy):
            for left in self.run.glob("*.part"):  # by a process that was killed while it wrote
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            self._write_head()
            with stop_signals() as asked:
                self._train(save_every, progress, workers, asked)

    def _write_head(self) -> None:
        """config.json, and of an older log.jsonl the lines up to this step."""
        write_text(self.run / "config.json", self.config.to_json())
        if not self.config.model.text.pretrained:  # a tower of CLIP's knows other words too
            taught = Vocabulary.of(self.names[label] for label in self.trainable)
            (taught | (Vocabulary.load(self.run) or taught)).save(self.run)
        log = self.run / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() and self.step else []
        whole = [line for line in lines if line.endswith("}\n")]  # the last one may have been cut off
        write_text(log, "".join(line for line in whole if json.loads(line)["step"] <= self.step))

    def _train(self, save_every: int, progress: bool, workers: int, asked: list[int]) -> None:
        train, first = self.config.train, process()[0] == 0
        own = range(process()[0], self.parts, process()[1])  # the parts of this process
        loader = torch.utils.data.DataLoader(
            _Steps(self.batches, self.step, train.steps, self.parts, own),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=leave_signals_to_parent,
        )
        history: list[dict[str, float]] = []
        began = time.perf_counter()
        bar = tqdm(loader, total=train.steps, initial=self.step, disable=not progress, unit="step", mininterval=5)
        for samples in bar:
            if isinstance(samples, ValueError):
                raise samples
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
                    with (self.run / "log.jsonl").open("a", encoding="utf-8", newline="\n") as file:
                        file.write(json.dumps(record) + "\n")
                bar.set_postfix(loss=means["total"])
                history, began = [], time.perf_counter()
            if first and (self.step % save_every == 0 or self.step == train.steps):
                self.save()
            if (number := _agreed(asked)) and self.step < train.steps:
                self._stop(number)
        if first:
            save_model(self.run, self.model, self.config, self.average)

    def _stop(self, number: int) -> None:
        """Save, say how to go on, and end the process with the status that belongs to a signal's number."""
        if process()[0] == 0:
            self.save()
            again = "the same with --resume (Trainer.resume)"
            if sys.argv[1:2] == ["train"] and process()[1] == 1:
                given = [argument for argument in sys.argv[1:] if argument != "--resume"]
                again = shlex.join(["trex2", *given, "--resume"])
            print(
                f"\nstopped and saved at step {self.step} of {self.config.train.steps}; go on by: {again}",
                file=sys.stderr,
            )
        raise SystemExit(128 + number)

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
                f"the gradient is not finite at step {self.step}; the last saved state is {self.state_path}; lower the"
                " learning rate"
            )
        self.optimizer.step()
        if self.average:
            kept = min(train.ema, (1 + self.step) / (10 + self.step))  # a short memory at first, while much changes
            own = dict(self.model.named_parameters())
            torch._foreach_lerp_(list(self.average.values()), [own[name].detach() for name in self.average], 1 - kept)
        return losses

    def _backward(self, parts: dict[int, list[Sample]]) -> dict[str, float]:
        """Adds up the gradients of the parts and, with the last one, of all processes. Returns what these parts add to
        the losses."""
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
        if processes > 1:
            untouched(self.model)
        return sums


def _agreed(asked: Sequence[int]) -> int:
    """The number of the signal that any process got, 0 without one."""
    number = torch.tensor(asked[0] if asked else 0)
    if process()[1] > 1:
        dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


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
    """Item i is what a process has of the batch of step first + i: a DataLoader worker makes it while the model works
    on the one before."""

    def __init__(self, batches: Batches, first: int, last: int, parts: int, own: Sequence[int]):
        self.batches, self.first, self.last, self.parts, self.own = batches, first, last, parts, own

    def __len__(self) -> int:
        return max(0, self.last - self.first)

    def __getitem__(self, index: int) -> list[list[Sample]] | ValueError:
        """An error is handed on, not raised: torch would put the worker's whole trace into its message."""
        try:
            return [self.batches((self.first + index) * self.parts + part) for part in self.own]
        except ValueError as error:
            return error
