"""Fixed sine-cosine position embeddings: of a feature map's cells (DETR, DINO) and of coordinates (eq. 1 and 2)."""

import math

import torch
from torch import Tensor


def sine_embedding(coordinates: Tensor, dim: int, temperature: float = 10_000.0) -> Tensor:
    """Each coordinate (0..1) becomes `dim` numbers: sines and cosines of falling frequency, interleaved.

    coordinates [..., n] -> [..., n * dim]; the order is that of the coordinates.
    """
    index = torch.arange(dim // 2, device=coordinates.device, dtype=coordinates.dtype)
    frequency = 2 * math.pi * temperature ** (-2 * index / dim)  # (dim/2,)
    angle = coordinates[..., None] * frequency  # (..., n, dim/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)  # (..., n * dim)


def image_position(centres: Tensor, dim: int, temperature: float) -> Tensor:
    """Position embedding of cells: centres [..., 2] as (x, y) in 0..1 -> [..., dim], first half of y, second of x
    (DETR's order)."""
    return sine_embedding(centres.flip(-1), dim // 2, temperature)
