"""Weighted sums of table rows with a fast backward on the CPU, and multi-scale deformable attention built on them.

`embedding_bag` is a fast forward, but its own backward sorts all indices (table) and takes one dot product after the
other (factors). The sum is a sparse matrix [R, rows] times the table, so here the gradients are a product with its
transpose, and a sampled dense product.
"""

import warnings

import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = list[tuple[int, int]]


class _GatherSum(torch.autograd.Function):
    """`gather_sum` on the CPU, once differentiable."""

    @staticmethod
    def forward(ctx, table: Tensor, indices: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(table, indices, factors)
        return F.embedding_bag(indices, table, per_sample_weights=factors, mode="sum")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, indices, factors = ctx.saved_tensors
        shape = (len(indices), len(table))
        grad, columns = grad.contiguous(), indices.flatten()
        starts = torch.arange(0, indices.numel() + 1, indices.shape[1], dtype=indices.dtype)
        grad_table = grad_factors = None
        if ctx.needs_input_grad[0]:  # after the transposition (a counting sort) every table row gathers from its bags
            transposed = scipy.sparse.csr_array(
                (factors.flatten().numpy(), columns.numpy(), starts.numpy()), shape=shape
            ).tocsc()
            bags, bag_starts, shares = (
                torch.from_numpy(part) for part in (transposed.indices, transposed.indptr, transposed.data)
            )
            grad_table = F.embedding_bag(
                bags, grad, bag_starts, per_sample_weights=shares, mode="sum", include_last_offset=True
            )
        if ctx.needs_input_grad[
            2
        ]:  # grad @ table^T, only at the gathered entries; unsorted and repeated columns do no harm here
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
                entries = torch.sparse_csr_tensor(
                    starts, columns, torch.zeros_like(factors).flatten(), shape, check_invariants=False
                )
            grad_factors = (
                torch.sparse.sampled_addmm(entries, grad, table.t(), beta=0.0, out=entries).values().view_as(factors)
            )
        return grad_table, None, grad_factors


def gather_sum(table: Tensor, indices: Tensor, factors: Tensor) -> Tensor:
    """table [rows, d], indices [R, n] int32 or int64, factors [R, n] of the table's type -> [R, d], the sum over n of
    factors * table[indices]."""
    if table.device.type == "cpu" and table.dtype in (torch.float32, torch.float64):
        return _GatherSum.apply(table, indices, factors)
    return F.embedding_bag(indices, table, per_sample_weights=factors, mode="sum")


class _PadLevels(torch.autograd.Function):
    """`pad_levels` in one allocation (F.pad and torch.cat take two), once differentiable."""

    @staticmethod
    def forward(ctx, value: Tensor, shapes: Shapes) -> Tensor:
        ctx.shapes = shapes
        padded = value.new_zeros(len(value), sum((h + 2) * (w + 2) for h, w in shapes), *value.shape[2:])
        for inner, part in zip(_inner(padded, shapes), value.split([h * w for h, w in shapes], 1)):
            inner.copy_(part.unflatten(1, inner.shape[1:3]))
        return padded

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        lengths = [h * w for h, w in ctx.shapes]
        value = grad.new_empty(len(grad), sum(lengths), *grad.shape[2:])
        for inner, part in zip(_inner(grad, ctx.shapes), value.split(lengths, 1)):
            part.unflatten(1, inner.shape[1:3]).copy_(inner)
        return value, None


def _inner(padded: Tensor, shapes: Shapes) -> list[Tensor]:
    """Views of the maps inside their borders, [B, h, w, ...] each."""
    parts = padded.split([(h + 2) * (w + 2) for h, w in shapes], 1)
    return [part.unflatten(1, (h + 2, w + 2))[:, 1:-1, 1:-1] for part, (h, w) in zip(parts, shapes)]


def pad_levels(value: Tensor, shapes: Shapes) -> Tensor:
    """value [B, N, H, d] -> [B, sum (h+2)*(w+2), H, d]: every level's map with a border of zeros one cell wide."""
    return _PadLevels.apply(value, shapes)


class _BilinearCorners(torch.autograd.Function):
    """locations [R, n, 2] and weights [R, n] -> the top left cells [R, n, 2] int32 (x, y) and the factors [R, n, 4],
    once differentiable.

    size [n, 2] is the (w, h) of the map that each point looks at; cells are those of the padded map, 0..w + 1. The four
    factors are
    weight * bilinear share of the cell, its right neighbour, the cell below, and that one's right neighbour.
    """

    @staticmethod
    def forward(ctx, locations: Tensor, weights: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        raw = (locations * size).add_(0.5)
        position = torch.minimum(raw.clamp_min_(0), size + 1)
        cells = torch.minimum(position.int(), size.int()).clamp_min_(
            0
        )  # clamp_min_: a NaN may become the smallest integer
        fraction = position.sub_(cells)
        x, y = fraction.unbind(-1)
        right = weights * x
        left = weights - right
        if torch.compiler.is_compiling():  # no out=: everything up to here becomes one loop
            low_left, low_right = left * y, right * y
            factors = torch.stack([left - low_left, right - low_right, low_left, low_right], -1)
        else:  # half the time of the stack
            factors = weights.new_empty(*weights.shape, 4)
            top_left, top_right, low_left, low_right = factors.unbind(-1)
            torch.mul(left, y, out=low_left)
            torch.mul(right, y, out=low_right)
            torch.sub(left, low_left, out=top_left)
            torch.sub(right, low_right, out=top_right)
        ctx.save_for_backward(locations, weights, size, fraction)
        ctx.mark_non_differentiable(cells)
        return cells, factors

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, _: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        locations, weights, size, fraction = ctx.saved_tensors
        x, y = fraction.unbind(-1)
        top_left, top_right, low_left, low_right = grad.unbind(-1)
        along_x, along_y = top_right - top_left, low_left - top_left
        twist = (low_right - low_left).sub_(along_x)
        slope = torch.stack([torch.addcmul(along_x, y, twist), torch.addcmul(along_y, x, twist)], -1)
        grad_weights = torch.addcmul(top_left, x, along_x).addcmul_(y, slope[..., 1])
        raw = (locations * size).add_(0.5)
        clamped = (raw < 0).logical_or_(raw >= size + 1)
        return slope.mul_(weights[..., None]).mul_(size).masked_fill_(clamped, 0), grad_weights, None


def weighted_gather(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """value [B, N, H, d], shapes [(h, w)] with sum h*w = N, locations [B, Q, H, L, P, 2] (x, y) in 0..1, weights [B, Q,
    H, L, P] -> [B, Q, H*d].

    Multi-scale deformable attention's sum; outside the map the value is zero: positions are clamped to a border of zero
    cells.
    """
    return gather_padded(pad_levels(value, shapes), shapes, locations, weights)


def gather_padded(padded: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`weighted_gather` of values that `pad_levels` has padded; what torch.compile can fuse."""
    batch, _, heads, dim = padded.shape
    queries, points = locations.shape[1], locations.shape[4]
    areas = [(h + 2) * (w + 2) for h, w in shapes]
    layout = [(w + 2, sum(areas[:level])) for level, (_, w) in enumerate(shapes)]
    stride, start = (
        torch.tensor(layout, dtype=torch.int32, device=padded.device).repeat_interleave(points, 0).unbind(-1)
    )  # (L*P,) each
    size = locations.new_tensor([(w, h) for h, w in shapes]).repeat_interleave(points, 0)  # (L*P, 2)

    cells, factors = _BilinearCorners.apply(locations.reshape(-1, len(size), 2), weights.reshape(-1, len(size)), size)
    image = torch.arange(batch, dtype=torch.int32, device=padded.device)[:, None, None] * (padded.shape[1] * heads)
    owner = image + torch.arange(heads, dtype=torch.int32, device=padded.device)  # (B, 1, H)
    first = (cells[..., 1] * stride).add_(cells[..., 0]).add_(start).mul_(heads)  # (B*Q*H, L*P)
    first += owner.expand(-1, queries, -1).reshape(-1, 1)
    below = first + stride * heads
    indices = torch.stack([first, first + heads, below, below + heads], -1)
    summed = gather_sum(padded.view(-1, dim), indices.flatten(1), factors.flatten(1).to(padded.dtype))
    return summed.view(batch, queries, heads * dim)
