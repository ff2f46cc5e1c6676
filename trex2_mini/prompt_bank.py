"""Visual prompts to keep: one vector a name, in a safetensors file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from trex2_mini.checkpoint import CheckpointError, read_tensors, write_tensors

OFFICIAL_DIM = 256  # D of the official API's embeddings


@dataclass
class PromptBank:
    """Visual prompts to keep: `names` and `embeddings` [C, D], one averaged V each."""

    names: list[str]
    embeddings: Tensor

    def save(self, path: str | Path) -> None:
        write_tensors(Path(path), {"embeddings": self.embeddings}, {"names": json.dumps(self.names)})

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
        write_tensors(Path(path), {"visual_embedding": self.embeddings[0].float()})

    @classmethod
    def load(cls, path: str | Path) -> PromptBank:
        """A file of `save` or `save_official`; the latter keeps no name, so the file's own (without the ending) is
        taken. Raises CheckpointError.
        """
        tensors, metadata = read_tensors(Path(path))
        if set(tensors) == {"visual_embedding"}:
            vector = tensors["visual_embedding"]
            if vector.shape != (OFFICIAL_DIM,):
                raise CheckpointError(
                    f"{path}: expected 'visual_embedding' of shape [{OFFICIAL_DIM}], as the official API's files have,"
                    f" got {list(vector.shape)}"
                )
            return cls([Path(path).stem], vector.float()[None])
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
            or not all(isinstance(name, str) for name in names)
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
        return cls(names, embeddings)
