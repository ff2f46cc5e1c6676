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
        code = labels.astype(np.int64) << 32
        code |= pictures
        code.sort()  # in place, and not np.unique: millions of objects are meant to fit
        code = code[np.concatenate([[True], code[1:] != code[:-1]])[: len(code)]]
        pairs = (code & 0xFFFFFFFF).astype(np.int32)
        seen = np.zeros(pairs.max(initial=-1) + 1, dtype=bool)
        seen[pairs] = True
        return cls(np.flatnonzero(seen).astype(np.int32), pairs, np.searchsorted(code >> 32, np.arange(count + 1)))

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
