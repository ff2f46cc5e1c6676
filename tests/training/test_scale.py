"""A batch in parts: on one process or two (torchrun, gloo), at once or one after another, the gradients are the same;
recomputed too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import NAMES, TINY, double_precision, squares

from trex2_mini.checkpoint import load_model, read_tensors, write_tensors
from trex2_mini.cli import main
from trex2_mini.processes import one_of_many, process
from trex2_mini.training.iteration import batch_parts
from trex2_mini.training.trainer import Trainer

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
OBJECTS = [[2, 1], [3, 1], [0, 4], [0, 0]]  # of the pictures of the four parts: unequal, and a part without any
KINDS = {"text": (0, 1), "visual": (1, 1), "both": (0, 0)}  # step, visual_per_text
ALL_KINDS = KINDS | {"nothing": (1, 1)}  # a batch without any object


def part(number: int, objects: list = OBJECTS) -> list:
    sizes = [(64, 64), (64, 96)]
    return [squares(10 * number + i, sizes[i], own) for i, own in enumerate(objects[number % 4])]


def trainer_of(folder: Path, source=part, **recipe) -> Trainer:
    """In parts of 2 pictures; nothing is zero at the start, so that every gradient counts."""
    recipe = {"batch_size": 8, "parts": 4, "cross_image": 0.5} | recipe
    trainer = Trainer(folder, dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, **recipe)), source, NAMES)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return trainer


def gradients(trainer: Trainer, step: int) -> dict[str, torch.Tensor]:
    trainer.step = step
    trainer.optimizer.zero_grad()
    own = range(process()[0], trainer.parts, process()[1])
    losses = trainer._backward({number: trainer.batches(step * trainer.parts + number) for number in own})
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert all(gradient.dtype == torch.float64 for gradient in found.values())
    return found | {"loss": torch.tensor(losses["total"])}


def assert_same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Every tensor to 1e-9 of its largest entry, or of a thousandth of the largest of all where it is all but zero."""
    assert ours.keys() == expected.keys()
    floor = 1e-3 * max(float(value.abs().max()) for name, value in expected.items() if name != "loss")
    for name, value in expected.items():
        bound = 1e-9 * max(floor, float(value.abs().max()))
        assert float((ours[name] - value).abs().max()) <= bound, name


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun gives each process
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def in_double(one_thread):
    with double_precision():
        yield


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """[rank][kind] -> the gradients that each of two processes has in the end."""
    folder = tmp_path_factory.mktemp("two")
    paths = os.pathsep.join(
        [str(Path(__file__).parents[1]), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [*TORCHRUN, __file__, str(folder)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr
    return [{kind: read_tensors(folder / f"{rank}-{kind}.safetensors")[0] for kind in ALL_KINDS} for rank in (0, 1)]


def batch_of(kind: str) -> Callable[[int], list]:
    return partial(part, objects=[[0, 0]] * 4) if kind == "nothing" else part


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_two_processes_have_the_gradients_of_one(of_two_processes, tmp_path, kind, in_double):
    """Four parts, one of them without objects and last in its process; text, visual and both; with denoising and
    prompts across images. The same parameters have no gradient.
    """
    step, visual = ALL_KINDS[kind]
    expected = gradients(trainer_of(tmp_path, batch_of(kind), visual_per_text=visual), step)
    first, second = (of_two_processes[rank][kind] for rank in (0, 1))
    assert float(first.pop("loss") + second.pop("loss")) == pytest.approx(float(expected.pop("loss")), rel=1e-9)
    assert_same(first, expected)
    assert all(torch.equal(first[name], second[name]) for name in first)  # or the replicas would drift apart
    encoder = "visual_prompt_encoder.class_token"
    if kind == "nothing":
        assert encoder not in first
    else:
        assert first[encoder].any(), "the part without objects must not hide what the other part of its process gave"


@pytest.mark.parametrize("kind", KINDS)
def test_parts_add_up_to_the_batch(tmp_path, kind, in_double):
    """Where negatives do not reach beyond a part anyway, four parts give the gradients of the whole batch: all is
    normalised by the batch.

    To that end nothing is random, and either all names are asked for everywhere (text), or an image excludes all that
    it does not show but
    one name that no image shows (visual; the names of the alignment would still be the part's). A part without objects
    is for text alone.
    """
    step, visual = KINDS[kind]
    recipe = {"visual_per_text": visual, "text_negatives": 9, "cross_image": 0.0, "point_probability": 0.0}
    recipe |= {"denoising_queries": 0, "loss_token": 1.0, "loss_align": 1.0 if kind == "text" else 0.0}

    def alone(number: int) -> list:
        samples = part(number, OBJECTS if kind == "text" else [*OBJECTS[:3], [1, 2]])
        asked = [None if kind == "text" else np.append(s.labels, len(NAMES)) for s in samples]
        return [dataclasses.replace(s, vocabulary=own) for s, own in zip(samples, asked)]

    def whole(number: int) -> list:
        return [sample for i in range(4) for sample in alone(4 * number + i)]

    found = []
    for parts, source in ((4, alone), (1, whole)):
        trainer = trainer_of(tmp_path, source, parts=parts, **recipe)
        trainer.names.append("nothing")
        trainer.trainable.append(len(NAMES))
        trainer.model.image_encoder.backbone.eval()  # batch norms see one part at a time
        found.append(gradients(trainer, step))
    assert found[0].keys() == found[1].keys()
    ours, expected = (torch.cat([value.flatten() for value in own.values()]) for own in found)
    assert (ours - expected).norm() <= 1e-9 * expected.norm()


def test_recomputed_activations_give_the_same_gradients(tmp_path, in_double):
    """Encoder layers run a second time in the backward pass, and nothing else changes."""
    found, calls = [], []
    for recompute in (False, True):
        trainer = trainer_of(tmp_path, recompute=recompute)
        calls.append(0)
        for layer in trainer.model.image_encoder.layers:
            layer.register_forward_pre_hook(lambda *_: calls.append(calls.pop() + 1))
        found.append(gradients(trainer, 0))
    assert_same(*found)
    assert calls == [4, 8]


def test_the_command_line_on_two_processes(tmp_path, one_thread):
    """The same command with and without torchrun: one log, one state, one checkpoint, and the same run; on it goes with
    one process.
    """
    recipe = dataclasses.replace(TINY.train, steps=6, batch_size=4, parts=2)
    (tmp_path / "tiny.json").write_text(dataclasses.replace(TINY, train=recipe).to_json())
    command = ["train", "--config", str(tmp_path / "tiny.json"), "--save-every", "4", "--out"]
    done = subprocess.run(
        [*TORCHRUN, "-m", "trex2_mini", *command, str(tmp_path / "two")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert main([*command, str(tmp_path / "one")]) == 0
    one, two = (tmp_path / name for name in ("one", "two"))
    assert sorted(p.name for p in two.iterdir()) == sorted(p.name for p in one.iterdir())
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    assert [line["step"] for line in logs[1]] == [6]
    for ours, expected in zip(*logs):
        ours.pop("images_per_second"), expected.pop("images_per_second")
        assert ours == pytest.approx(expected, rel=0.02)
    weights = [load_model(run)[0].state_dict() for run in (one, two)]
    for name, value in weights[0].items():
        if not name.startswith("image_encoder.backbone."):  # whose batch norms saw other parts
            torch.testing.assert_close(weights[1][name].float(), value.float(), atol=0.01, rtol=0.01)
    assert main([*command, str(two), "--resume", "--set", "steps=7"]) == 0
    assert read_tensors(two / "state.safetensors")[1]["step"] == "7"


def test_a_batch_that_cannot_be_divided(capsys, tmp_path):
    """The message names the batch and the parts; nothing is begun."""
    assert main(["train", "--run", str(tmp_path / "run"), "--set", "batch_size=8", "parts=3"]) == 1
    assert "8 pictures cannot be divided into parts = 3" in capsys.readouterr().err and not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"TrainConfig\.parts: expected greater than or equal to 1"):
        batch_parts(dataclasses.replace(TINY.train, parts=0))


if __name__ == "__main__":  # a process of torchrun, see of_two_processes
    with one_of_many(), double_precision():
        for kind, (step, visual) in ALL_KINDS.items():
            trainer = trainer_of(Path(sys.argv[1]) / kind, batch_of(kind), visual_per_text=visual)
            write_tensors(Path(sys.argv[1]) / f"{process()[0]}-{kind}.safetensors", gradients(trainer, step))
