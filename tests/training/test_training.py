"""Training: goes on bit for bit, logs, never leaves half a file, refuses to overwrite, follows its schedule."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from filelock import FileLock
from tiny import NAMES, TINY, seeded_model, squares

from trex2_mini import checkpoint
from trex2_mini.checkpoint import CheckpointError, load_model, read_tensors
from trex2_mini.cli import main
from trex2_mini.config import TrainConfig, preset
from trex2_mini.datasets.sample import normalized_boxes
from trex2_mini.training.iteration import iteration_kinds, iteration_losses, visual_prompts
from trex2_mini.training.sampling import sample_regions
from trex2_mini.training.trainer import Trainer, learning_rate_factor, make_optimizer


class Interrupted(Exception):
    pass


def batches(step: int) -> list:
    return [squares(2 * step), squares(2 * step + 1, (64, 96), objects=step % 3)]


def interrupted_batches(step: int) -> list:
    if step == 23:
        raise Interrupted
    return batches(step)


def run(folder, source=batches, resume: bool = False, save_every: int = 11, workers: int = 0, config=TINY) -> Trainer:
    trainer = Trainer(folder, config, source, NAMES)
    if resume:
        trainer.resume()
    trainer.train(save_every, progress=False, workers=workers)
    return trainer


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run of 25 steps that nothing disturbed."""
    return run(tmp_path_factory.mktemp("runs") / "whole")


def test_a_resumed_run_is_the_uninterrupted_one(whole_run, tmp_path):
    """Stopped in step 23, resumed from step 22, now with a worker: weights, moments and log are bit-identical."""
    with pytest.raises(Interrupted):
        run(tmp_path / "run", interrupted_batches)
    assert read_tensors(tmp_path / "run" / "state.safetensors")[1]["step"] == "22"
    torch.manual_seed(123)  # the generator's state at the start of the second half must not matter
    resumed = run(tmp_path / "run", resume=True, workers=1)
    ours, expected = (read_tensors(trainer.state_path)[0] for trainer in (resumed, whole_run))
    assert ours.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []
    assert any(name.startswith("optimizer.exp_avg_sq.") for name in expected)
    first, second = (trainer.run.joinpath("log.jsonl").read_text().splitlines() for trainer in (resumed, whole_run))
    assert [json.loads(line)["step"] for line in first] == [20, 25]
    assert json.loads(first[0])["total"] == json.loads(second[0])["total"]


def test_two_runs_are_the_same(whole_run, tmp_path):
    """The same seed gives the same weights; another seed does not."""
    short = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, steps=2))
    other = dataclasses.replace(TINY, train=dataclasses.replace(short.train, seed=1))
    states = [run(tmp_path / str(i), config=c).model.state_dict() for i, c in enumerate((short, short, other))]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_the_log(whole_run):
    """A line every 20 steps and one at the end: step, learning rate, speed, the mean of every loss by kind."""
    lines = [json.loads(line) for line in (whole_run.run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 25]
    for kind in ("text", "visual"):
        parts = [f"{kind}/{loss}{suffix}" for loss in ("class", "l1", "giou") for suffix in ("", "_aux", "_dn")]
        assert set(parts) < set(lines[0])
    assert {"lr", "images_per_second", "align"} < set(lines[0]) and lines[1]["lr"] < lines[0]["lr"]
    assert lines[0]["total"] > lines[0]["align"] > 0


def test_what_a_run_leaves_behind(whole_run):
    """The folder is a checkpoint to load (half precision) and a state to go on from, and nothing else but the (free)
    lock.
    """
    assert sorted(path.name for path in whole_run.run.iterdir()) == [
        "config.json",
        "log.jsonl",
        "model.safetensors",
        "state.safetensors",
        "train.lock",
        "vocabulary.json",
    ]
    model, config, path = load_model(whole_run.run)
    assert config == TINY and path.name == "model.safetensors" and not model.training
    for name, value in whole_run.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert all(value.dtype != torch.float32 for value in read_tensors(path)[0].values())


def test_every_random_number_follows_from_seed_and_step(monkeypatch):
    """Dropout too (Swin's backbone drops paths): torch's own generator does not matter, or resuming would."""
    model = seeded_model().train()
    monkeypatch.setattr(model, "denoising", _Dropping(model.denoising))
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(
            iteration_losses(model, batches(1), NAMES, range(len(NAMES)), TINY.train, 1)["visual/class_dn"].item()
        )
    assert losses[0] == losses[1]
    assert (
        iteration_losses(model, batches(1), NAMES, range(len(NAMES)), TINY.train, 3)["visual/class_dn"].item()
        != losses[0]
    )


class _Dropping(torch.nn.Module):
    """Denoising whose content goes through dropout."""

    def __init__(self, denoising: torch.nn.Module):
        super().__init__()
        self.denoising = denoising

    def forward(self, *arguments):
        made = self.denoising(*arguments)
        return dataclasses.replace(made, content=torch.nn.functional.dropout(made.content, 0.5))


def test_written_files_can_be_read_by_others(tmp_path):
    """A checkpoint has the permissions of any new file; a temporary file's would shut out everyone else."""
    (tmp_path / "plain").touch()
    checkpoint.write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("when", ["before", "after"])
def test_saving_is_all_or_nothing(tmp_path, monkeypatch, when):
    """A failure while writing leaves the old state as it was and no .part file."""
    trainer = Trainer(tmp_path, TINY, batches, NAMES)
    trainer.save()
    old = trainer.state_path.read_bytes()
    original = checkpoint.save_file

    def failing(tensors, path, metadata):
        if when == "after":
            original(tensors, path, metadata)
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", failing)
    trainer.step = 7
    with pytest.raises(CheckpointError, match=r"disk full.; the file that was there before is whole"):
        trainer.save()
    assert trainer.state_path.read_bytes() == old and [path.name for path in tmp_path.iterdir()] == [
        "state.safetensors"
    ]


def test_resume_refuses_what_is_no_state(tmp_path):
    """No state, a truncated one, another model's, and weights without a step: CheckpointError with what to do."""
    trainer = Trainer(tmp_path, TINY, batches, NAMES)
    with pytest.raises(CheckpointError, match=r"no saved state to go on from.*begin anew without --resume"):
        trainer.resume()
    trainer.save()
    data = trainer.state_path.read_bytes()
    trainer.state_path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        trainer.resume()
    trainer.state_path.write_bytes(data)
    larger = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, ffn_dim=96))
    with pytest.raises(CheckpointError, match="a run of another model"):
        Trainer(tmp_path, larger, batches, NAMES).resume()
    checkpoint.write_tensors(trainer.state_path, dict(trainer.model.state_dict()))
    with pytest.raises(CheckpointError, match="not a training state"):
        trainer.resume()


@pytest.mark.parametrize("cross_image", [0.0, 1.0])
def test_visual_prompts_of_a_batch(cross_image):
    """Images 0 and 1 share category 2. Each is asked for it by one vector, its own or (cross_image) the other's; the
    other one is masked.
    """
    labels = [[1, 2, 2], [2], [3]]
    samples = [dataclasses.replace(squares(i, objects=len(own)), labels=np.array(own)) for i, own in enumerate(labels)]
    encoded = torch.arange(6.0).view(3, 2, 1).expand(-1, -1, 4)  # V of image i's category number k is 2 i + k
    prompted = visual_prompts(samples, [[1, 2], [2], [3]], encoded, cross_image, np.random.default_rng(0))
    assert prompted.prompts[0, :, 0].tolist() == [0, 1, 2, 4]  # image 0's 1 and 2, image 1's 2, image 2's 3
    swapped = cross_image == 1
    assert [own.tolist() for own in prompted.targets.labels] == [
        [0, 2, 2] if swapped else [0, 1, 1],
        [1 if swapped else 2],
        [3],
    ]
    assert prompted.mask.tolist() == [
        [True, not swapped, swapped, True],
        [True, swapped, not swapped, True],
        [True, True, True, True],
    ]


def test_prompted_objects_may_be_left_out_of_the_loss():
    """others_only = 1: what an image's own V was made of does not count; all counts where another image's V asks."""
    labels = [[1, 2, 2], [2], [3]]
    samples = [dataclasses.replace(squares(i, objects=len(own)), labels=np.array(own)) for i, own in enumerate(labels)]
    encoded = torch.zeros(3, 2, 4)
    chosen = [np.array([True, False, True]), np.array([True]), np.array([True])]
    rest = (np.random.default_rng(0), chosen, 1.0)
    own = visual_prompts(samples, [[1, 2], [2], [3]], encoded, 0.0, *rest).targets
    assert [counts.tolist() for counts in own.count] == [[False, True, False], [False], [False]]
    across = visual_prompts(samples, [[1, 2], [2], [3]], encoded, 1.0, *rest).targets  # category 2 is in two images
    assert [counts.tolist() for counts in across.count] == [[False, True, True], [True], [False]]
    plain = visual_prompts(samples, [[1, 2], [2], [3]], encoded, 0.0, np.random.default_rng(0), chosen).targets
    assert plain.count is None


def test_sampled_regions_are_the_prompted_objects():
    sample = dataclasses.replace(squares(0, objects=4), labels=np.array([1, 2, 2, 2]))
    for seed in range(5):
        regions, categories, prompted = sample_regions(sample, 0.5, np.random.default_rng(seed))
        centres = normalized_boxes(sample)[:, :2]
        for (boxes, points), category in zip(regions, categories, strict=True):
            own = centres[torch.from_numpy(prompted & (sample.labels == category))]
            given = torch.cat([boxes[:, :2], points])
            assert sorted(map(tuple, given.tolist())) == sorted(map(tuple, own.tolist()))


def test_a_run_may_start_from_a_checkpoint(tmp_path):
    """Its weights (half precision on disk), a fresh optimizer, step 0; another model's weights are refused."""
    first = Trainer(tmp_path / "first", TINY, batches, NAMES)
    checkpoint.save_model(tmp_path / "saved", first.model, TINY)
    other_seed = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, seed=5))
    second = Trainer(tmp_path / "second", other_seed, batches, NAMES)
    second.start_from(tmp_path / "saved")
    for name, tensor in second.model.state_dict().items():
        expected = first.model.state_dict()[name]
        torch.testing.assert_close(tensor, expected.half().float() if tensor.is_floating_point() else expected)
    assert second.step == 0 and not second.optimizer.state
    finer = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, short_side=96, long_side=192))
    Trainer(tmp_path / "finer", finer, batches, NAMES).start_from(tmp_path / "saved")  # the same shapes
    larger = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, ffn_dim=96))
    with pytest.raises(CheckpointError, match="another model"):
        Trainer(tmp_path / "third", larger, batches, NAMES).start_from(tmp_path / "saved")


AVERAGED = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, ema=0.7, steps=12))


def test_the_average_of_the_weights(tmp_path):
    """The one computed by hand, step by step; it is what is used in the end, and what a resumed run goes on with."""
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(Trainer):
        def _update(self, parts):
            losses = super()._update(parts)
            seen.append({name: value.detach().clone() for name, value in self.model.named_parameters()})
            return losses

    trainer = Watched(tmp_path / "whole", AVERAGED, batches, NAMES)
    expected = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train(5, progress=False, workers=0)
    for step, weights in enumerate(seen):
        kept = min(0.7, (1 + step) / (10 + step))
        expected = {name: kept * value + (1 - kept) * weights[name] for name, value in expected.items()}
    used, _ = read_tensors(tmp_path / "whole" / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(trainer.average[name], value, rtol=1e-4, atol=1e-6)
        assert torch.equal(used[name], trainer.average[name].half())
    moved = max(
        float((trainer.average[name] - value.detach()).abs().max()) for name, value in trainer.model.named_parameters()
    )
    assert moved > 1e-4  # the average is not the last weights

    shorter = dataclasses.replace(AVERAGED, train=dataclasses.replace(AVERAGED.train, steps=5))
    Trainer(tmp_path / "cut", shorter, batches, NAMES).train(5, progress=False, workers=0)
    resumed = Trainer(tmp_path / "cut", shorter, batches, NAMES)
    resumed.resume()
    saved, _ = read_tensors(resumed.state_path)
    assert all(torch.equal(value, saved[f"average.{name}"]) for name, value in resumed.average.items())


def test_a_resumed_average_is_the_uninterrupted_one(tmp_path):
    def stopped(step: int) -> list:
        if step == 9:
            raise Interrupted
        return batches(step)

    run(tmp_path / "whole", save_every=5, config=AVERAGED)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", stopped, save_every=5, config=AVERAGED)
    whole, cut = (tmp_path / name / "state.safetensors" for name in ("whole", "cut"))
    assert read_tensors(cut)[1]["step"] == "5"
    run(tmp_path / "cut", resume=True, save_every=5, config=AVERAGED)
    ours, expected = read_tensors(cut)[0], read_tensors(whole)[0]
    assert ours.keys() == expected.keys() and any(name.startswith("average.") for name in ours)
    assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []


def test_a_run_without_an_average_may_get_one(tmp_path):
    """It begins at the weights of the state."""
    run(tmp_path, config=dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, steps=2)))
    later = Trainer(tmp_path, AVERAGED, batches, NAMES)
    later.resume()
    assert all(torch.equal(later.average[name], value) for name, value in later.model.named_parameters())


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    """NaN weights end training with an error that says where the last good state is; they are not saved."""
    trainer = Trainer(tmp_path, TINY, batches, NAMES)
    with torch.no_grad():
        trainer.model.box_decoder.logit_bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        trainer.train(progress=False, workers=0)
    assert not trainer.state_path.exists()


@pytest.mark.parametrize(
    "visual, first, expected",
    [(1, 0, "TVTVTV"), (2, 0, "TVVTVV"), (0, 0, "BBBBBB"), (0, 2, "TTBBBB"), (8, 3, "TTTTVV"), (1, 2, "TTTVTV")],
)
def test_text_and_visual_iterations_alternate(visual, first, expected):
    """`visual_per_text` visual iterations follow each text iteration (0: both at once), after `text_first_steps` of
    text alone.
    """
    config = TrainConfig(visual_per_text=visual, text_first_steps=first)
    letter = {("text",): "T", ("visual",): "V", ("text", "visual"): "B"}
    assert "".join(letter[iteration_kinds(step, config)] for step in range(6)) == expected


def test_both_kinds_at_once_share_an_iteration():
    """`visual_per_text=0`: the text iteration's own losses (denoising, being random, left out), and visual ones of the
    same images.
    """
    recipe = dataclasses.replace(TINY.train, denoising_queries=0)
    model = seeded_model().train()
    text = iteration_losses(model, batches(0), NAMES, range(len(NAMES)), recipe, 0)
    both = iteration_losses(
        model, batches(0), NAMES, range(len(NAMES)), dataclasses.replace(recipe, visual_per_text=0), 0
    )
    assert set(both) == set(text) | {name.replace("text", "visual") for name in text}
    for name, value in text.items():
        torch.testing.assert_close(both[name], value)


def test_one_training_a_folder(whole_run):
    """Two processes in one folder would overwrite each other's state; the lock of one that was killed does not stay."""
    with FileLock(whole_run.run / "train.lock"), pytest.raises(ValueError, match="another process is training in"):
        whole_run.train(progress=False, workers=0)
    whole_run.train(progress=False, workers=0)  # nothing left to do


def test_the_schedule():
    """Warm-up by equal steps, then constant, then down to 2 % in a straight line."""
    config = TrainConfig(steps=1000, warmup_steps=100, decay_fraction=0.25)
    wanted = {0: 0.01, 49: 0.5, 99: 1.0, 500: 1.0, 750: 1.0, 875: 0.5, 975: 0.1, 999: 0.02, 1500: 0.02}
    assert {step: learning_rate_factor(step, config) for step in wanted} == pytest.approx(wanted)


def test_learning_rates_of_the_parts():
    """The paper's two rates: backbone and text tower slow, the rest fast; no decay on biases, norms and embeddings."""
    model = seeded_model()
    optimizer = make_optimizer(model, preset("swin_t").train)
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(rate) == len(named)
    for name, parameter in named.items():
        slow = name.startswith(("image_encoder.backbone.", "text_prompt_encoder.tower."))
        assert rate[id(parameter)][0] == (1e-5 if slow else 1e-4), name
        if parameter.ndim < 2 or "embedding" in name:
            assert rate[id(parameter)][1] == 0, name
    assert rate[id(named["box_decoder.layers.0.ffn.linear1.weight"])][1] == 1e-4


def test_the_command_line_refuses_to_overwrite_a_run(whole_run, tmp_path, capsys):
    """`train` on a folder that holds a run: code 1, a message that names --resume, and the run is as it was."""
    state = tmp_path / "state.safetensors"
    state.write_bytes(whole_run.state_path.read_bytes())
    (tmp_path / "tiny.json").write_text(TINY.to_json())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["train", "--config", str(tmp_path / "tiny.json"), "--run", str(tmp_path)]) == 1
    assert "--resume" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--preset", "giga"], "unknown preset"),
        (["--set", "speed=3"], "expected KEY=VALUE"),
        (["--set", "steps=many"], "expected steps to be int"),
        (["--config", "nowhere.json"], "nowhere.json"),
        pytest.param(
            ["--device", "cuda"],
            "no GPU was found",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there"),
        ),
    ],
)
def test_the_command_line_explains_mistakes(arguments, message, tmp_path, capsys):
    """Code 1 and one clear line, no traceback, and no run is begun."""
    assert main(["train", "--run", str(tmp_path / "run"), *arguments]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
