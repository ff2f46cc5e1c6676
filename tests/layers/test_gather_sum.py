"""The fast weighted gather against `levelwise_grid_sample` and finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import GATHER_SHAPES as SHAPES
from tiny import gather_example as example
from tiny import value_and_gradients

from trex2_mini.layers.deformable_attention import levelwise_grid_sample
from trex2_mini.layers.gather_sum import gather_sum, weighted_gather


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-0.3, 1.3), (-3.0, 4.0), (-1e6, 1e6)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_equals_levelwise_grid_sample(low, high, dtype, tolerance):
    tensors = example(low=low, high=high, dtype=dtype)
    for got, expected in zip(
        value_and_gradients(weighted_gather, *tensors), value_and_gradients(levelwise_grid_sample, *tensors)
    ):
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=10 * tolerance)


@pytest.mark.parametrize("shapes", [[(1, 1)], [(7, 3)], [(1, 9), (9, 1)], [(5, 4), (1, 1), (2, 3), (1, 2)]])
@pytest.mark.parametrize("queries, points", [(0, 2), (1, 1), (5, 3)])
def test_odd_shapes_and_few_queries(shapes, queries, points):
    tensors = example(queries=queries, points=points, shapes=shapes)
    ours, expected = (value_and_gradients(f, *tensors, shapes) for f in (weighted_gather, levelwise_grid_sample))
    for got, want in zip(ours, expected):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("far", [-1e30, -7.0, 9.0, 1e30, float("inf"), -float("inf")])
def test_far_outside_is_zero(far):
    value, locations, weights = example()
    locations = torch.full_like(locations, far).requires_grad_()
    for tensor in value_and_gradients(weighted_gather, value, locations, weights):
        assert (tensor == 0).all()


def test_cell_centres_and_borders():
    """On whole cells and on the last position that sees anything, values and gradients are those of grid_sample."""
    value, locations, weights = example(dtype=torch.float64, queries=8)
    size = torch.tensor([(w, h) for h, w in SHAPES], dtype=torch.float64)[:, None]
    cells = torch.arange(-2.0, 6.0, dtype=torch.float64).view(8, 1, 1, 1, 1)
    locations = ((cells + 0.5) / size).expand_as(locations).clone().requires_grad_()
    torch.testing.assert_close(
        weighted_gather(value, SHAPES, locations, weights), levelwise_grid_sample(value, SHAPES, locations, weights)
    )


def test_nan_location_stays_visible():
    value, locations, weights = example()
    locations = locations.detach().clone()
    locations[0, 0] = float("nan")
    output = weighted_gather(value, SHAPES, locations, weights)
    assert output[0, 0].isnan().all() and not output[0, 1:].isnan().any() and not output[1:].isnan().any()


def test_gradcheck():
    value, locations, weights = example(batch=1, queries=2, heads=2, dim=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda v, l, w: weighted_gather(v, SHAPES, l, w), (value, locations, weights), atol=1e-6
    )


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
def test_gather_sum_with_repeated_and_unused_rows(index_type):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(9, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    indices = torch.randint(0, 6, (4, 6), generator=generator, dtype=index_type)
    expected = F.embedding_bag(indices, table, per_sample_weights=factors, mode="sum")
    torch.testing.assert_close(gather_sum(table, indices, factors), expected)
    assert torch.autograd.gradcheck(lambda t, f: gather_sum(t, indices, f), (table, factors))
    target = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad(gather_sum(table, indices, factors), (table, factors), target)
    for got, want in zip(ours, torch.autograd.grad(expected, (table, factors), target)):
        torch.testing.assert_close(got, want)


def test_half_precision_values():
    value, locations, weights = example(low=0.0, high=1.0)
    output = weighted_gather(value.detach().bfloat16(), SHAPES, locations.detach(), weights.detach())
    torch.testing.assert_close(
        output.float(), levelwise_grid_sample(value, SHAPES, locations, weights).detach(), atol=0.1, rtol=0.05
    )
