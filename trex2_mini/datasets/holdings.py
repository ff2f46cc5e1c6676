"""Which pictures hold which category, as arrays: for a set of any size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Holdings:
    """pictures [P]: indices of those with an object. pairs: for label l, pairs[first[l]:first[l + 1]] hold it."""

    pictures: np.ndarray
    pairs: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, pictures: np.ndarray, count: int) -> Holdings:
        """labels, pictures [N]: an object's label and the index of its picture; count: of labels."""
        code = np.unique(labels.astype(np.int64) << 32 | pictures.astype(np.int64))
        first = np.searchsorted(code >> 32, np.arange(count + 1))
        return cls(np.unique(pictures).astype(np.int32), (code & 0xFFFFFFFF).astype(np.int32), first)

    def holding(self, label: int) -> np.ndarray:
        """Indices of the pictures that hold it, ascending."""
        return self.pairs[self.first[label] : self.first[label + 1]]

    @property
    def labels(self) -> np.ndarray:
        """Those that any picture holds."""
        return np.flatnonzero(np.diff(self.first))

    def save(self, folder: Path) -> None:
        for name in ("pictures", "pairs", "first"):
            np.save(folder / f"held.{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Holdings:
        """Memory-mapped."""
        return cls(
            *(
                np.asarray(np.load(folder / f"held.{name}.npy", mmap_mode="r"))
                for name in ("pictures", "pairs", "first")
            )
        )
