"""The exercises' checks: what is right is called right, what is wrong is not, and every notebook's number is known."""

import re

import nbformat
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from trex2_mini.layers.deformable_attention import levelwise_grid_sample
from trex2_mini.losses.matcher import match
from trex2_mini.paths import REPOSITORY
from trex2_mini.teaching.exercises import ANSWERS, CODE, cheapest, check, largest_stranger


def used(folder: str) -> set[str]:
    """Numbers that the notebooks of a folder check."""
    sources = (
        cell.source
        for path in (REPOSITORY / folder).glob("*.ipynb")
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code"
    )
    return {number for source in sources for number in re.findall(r'^ *check\("([\d.]+)"', source, re.MULTILINE)}


def test_every_answer_has_its_exercise():
    assert used("notebooks") == set(ANSWERS) | set(CODE)
    assert set(CODE) <= used("notebooks/solutions") <= set(ANSWERS) | set(CODE)


@pytest.mark.parametrize("answer, said", [(None, "not answered yet"), (-0.5, "right"), (0.5, "not yet: IoU is 0")])
def test_a_number_is_checked(answer, said, capsys):
    check("02.1", answer)
    assert capsys.readouterr().out.startswith(said)


def matcher(logits, boxes, labels, truth):
    return match(logits, boxes, labels, truth, 2, 5, 2)


def careless(logits, boxes, labels, truth):  # forgets GIoU
    return match(logits, boxes, labels, truth, 2, 5, 0)


def unfinished(*_):
    raise NotImplementedError


@pytest.mark.parametrize(
    "own, said", [(matcher, "right: equal"), (careless, "not yet, on the case"), (unfinished, "not answered yet")]
)
def test_code_is_compared_with_the_package(own, said, capsys):
    check("02.4", own)
    assert capsys.readouterr().out.startswith(said)


def test_a_form_that_reads_beyond_the_map_is_found(capsys):
    check("03.4", lambda v, s, x, w: levelwise_grid_sample(v, s, x.clamp(0, 1), w))
    assert "some points outside" in capsys.readouterr().out


def test_average_precision_is_compared_with_pycocotools(capsys):
    def careless(scores, right, objects):  # forgets to sort
        recalled = np.cumsum(right) / objects
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        at = np.linspace(0, 1, 101)[:, None]
        return 100 * np.where(recalled >= at - 1e-9, precision, 0).max(1, initial=0).mean()

    def average(scores, right, objects):
        return careless(scores, right[np.argsort(-scores)], objects)

    check("13.4", careless)
    check("13.4", average)
    assert "not yet, on the case 'scores in no order'" in (said := capsys.readouterr().out) and "right: equal" in said


def test_the_helpers():
    cost = np.array([[1.0, 2.0, 9.0], [2.0, 6.0, 8.0], [7.0, 5.0, 3.0]])
    assert cheapest((1, 0, 2), cost) and not cheapest((0, 1, 2), cost) and not cheapest((0, 0, 2), cost)
    assert cost[linear_sum_assignment(cost)].sum() == 7
    matrix = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.8, 0.6], [0.0, 0.4, 0.7]])
    assert largest_stranger(matrix, ["cat", "dog", "wolf"]) == ("dog", "wolf")
