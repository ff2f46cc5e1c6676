"""Visual prompts to keep: one vector a name, in a safetensors file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trex2_mini.checkpoint import CheckpointError, read_tensors, write_tensors
from trex2_mini.names import check_names, name_key, unique_names

OFFICIAL_DIM = 256  # D of the official API's embeddings


@dataclass
class PromptBank:
    """Visual prompts to keep: `names` and `embeddings` [C, D], one averaged V each; `weights`, the model's that
    made them (`Detector.weights`; empty where that is not known).

    Rows whose names differ only in case or spaces become one, their mean. Raises ValueError for names that are no text.
    """

    names: list[str]
    embeddings: Tensor
    weights: str = ""

    def __post_init__(self) -> None:
        given, rows = check_names(self.names), self.embeddings
        self.names = unique_names(given)
        if len(self.names) < len(given) == len(rows):  # one name in two spellings: the mean
            keys = [name_key(name) for name in given]
            same = [[i for i, key in enumerate(keys) if key == name_key(name)] for name in self.names]
            self.embeddings = torch.stack([rows[own].mean(0) for own in same])

    def save(self, path: str | Path) -> None:
        write_tensors(
            Path(path), {"embeddings": self.embeddings}, {"names": json.dumps(self.names), "weights": self.weights}
        )

    def save_official(self, path: str | Path) -> None:
        """One category in the format of the official T-Rex2 API: one safetensors tensor `visual_embedding`, float32
        [256].

        The format alone is shared: vectors of one model mean nothing to another. Raises ValueError for several names,
        or another D.
        """
        if self.embeddings.shape != (1, OFFICIAL_DIM) or len(self.names) != 1:
            raise ValueError(
                f"the official file holds one category of {OFFICIAL_DIM} numbers, got {len(self.names)} names and"
                f" embeddings of shape {list(self.embeddings.shape)}; write a file for each name, of a model with dim ="
                f" {OFFICIAL_DIM}, or use save"
            )
        write_tensors(Path(path), {"visual_embedding": self.embeddings[0].float()}, {"weights": self.weights})

    @classmethod
    def load(cls, path: str | Path) -> PromptBank:
        """A file of `save` or `save_official`; the latter keeps no name, so the file's own (without the ending) is
        taken. Raises CheckpointError."""
        tensors, metadata = read_tensors(Path(path).expanduser(), "prompt bank")
        if not (weights := metadata.get("weights", "")) and tensors.keys() & {"embeddings", "visual_embedding"}:
            warnings.warn(
                f"{path} does not say which model made its vectors; they mean something to that model only. "
                "Where in doubt, embed the examples again",
                stacklevel=2,
            )
        if set(tensors) == {"visual_embedding"}:
            vector = tensors["visual_embedding"]
            if vector.shape != (OFFICIAL_DIM,):
                raise CheckpointError(
                    f"{path}: expected 'visual_embedding' of shape [{OFFICIAL_DIM}], as the official API's files have,"
                    f" got {list(vector.shape)}"
                )
            return cls([Path(path).stem], vector.float()[None], weights)
        if "embeddings" not in tensors or "names" not in metadata:
            raise CheckpointError(
                f"{path} is not a prompt bank: expected a tensor 'embeddings' and the metadata 'names', as"
                " PromptBank.save writes"
            )
        try:
            names, embeddings = json.loads(metadata["names"]), tensors["embeddings"].float()
        except (ValueError, RecursionError):
            names, embeddings = None, tensors["embeddings"]
        if (
            not isinstance(names, list)
            or not names
            or not all(isinstance(name, str) and name.strip() for name in names)
            or len(set(names)) < len(names)
        ):
            raise CheckpointError(
                f"{path}: expected the metadata 'names' to be a JSON list of different names, got"
                f" {metadata['names']!r:.80}"
            )
        if embeddings.ndim != 2 or len(embeddings) != len(names) or not embeddings.isfinite().all():
            raise CheckpointError(
                f"{path}: expected finite 'embeddings' [{len(names)}, D], one row a name, got {list(embeddings.shape)}"
            )
        return cls(names, embeddings, weights)

    def vectors_for(self, weights: str, dim: int, allow_other_model: bool = False) -> Tensor:
        """`embeddings`, for the model of that hash and width. Raises ValueError where another one made them;
        allow_other_model: only where the width is another."""
        if self.embeddings.ndim != 2 or self.embeddings.shape != (len(self.names), dim):
            raise ValueError(
                f"expected a prompt bank of shape [{len(self.names)}, {dim}], got {tuple(self.embeddings.shape)}; "
                "embed the examples again with this model"
            )
        if self.weights and self.weights != weights and not allow_other_model:
            raise ValueError(
                f"the prompt bank of {', '.join(self.names[:3])} was made by a model with other weights "
                f"({self.weights}; this one has {weights}), and means nothing to this one; embed the examples again "
                "with this model, load that model (a tuned bank's by weights.tuning.load_tuned), or insist with "
                "allow_other_model=True (--allow-other-model)"
            )
        return self.embeddings


def together(banks: Sequence[PromptBank]) -> PromptBank:
    """One bank of several; a name that several have gets the mean of their vectors.

    Raises ValueError where models of different widths or weights made them.
    """
    made = sorted({bank.weights for bank in banks} - {""})
    widths = sorted({bank.embeddings.shape[1] for bank in banks})
    if len(made) > 1 or len(widths) > 1:
        by = f"models with different weights ({', '.join(made)})" if len(made) > 1 else f"models of widths {widths}"
        raise ValueError(
            f"the banks were made by {by}, whose vectors do not compare; embed the examples with one model"
        )
    names = [name for bank in banks for name in bank.names]
    return PromptBank(names, torch.cat([bank.embeddings for bank in banks]), made[0] if made else "")
