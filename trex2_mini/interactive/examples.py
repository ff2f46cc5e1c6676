"""Generic visual prompts by hand: examples are collected over several images, looked at, dropped, and embedded into a
PromptBank (spec section 4)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from trex2_mini.detector import Detector, EncodedImage
from trex2_mini.names import name_key
from trex2_mini.prompt_bank import PromptBank


class BankBuilder:
    """A prompt bank in the making: `examples` [{"name", "image", "box": [x1, y1, x2, y2]}, ...] in pixels of their
    image, and `loaded`, the names of
    saved banks with their vectors. `encode` gives an image's EncodedImage by its name.
    """

    def __init__(self, detector: Detector, encode: Callable[[str], EncodedImage]):
        self.detector, self.encode = detector, encode
        self.examples: list[dict] = []
        self.loaded: dict[str, torch.Tensor] = {}  # name -> [D]
        self._bank: PromptBank | None = None

    def add(self, examples: Sequence[dict]) -> int:
        """Take examples that are not there yet; returns how many those were."""
        new = [example for example in examples if example not in self.examples]
        self.examples, self._bank = [*self.examples, *new], None
        return len(new)

    def drop(self, which: int | str) -> None:
        """Drop an example by its place in `examples`, or what was loaded under a name. Raises ValueError where there is
        none."""
        if (which not in range(len(self.examples))) if isinstance(which, int) else (which not in self.loaded):
            raise ValueError(
                f"no example {which!r} to drop; expected 0..{len(self.examples) - 1} or a loaded name of"
                f" {list(self.loaded)}"
            )
        (self.examples if isinstance(which, int) else self.loaded).pop(which)
        self._bank = None

    def bank(self) -> PromptBank | None:
        """One vector a name: the examples embedded, averaged with what was loaded under that name. None where there is
        nothing."""
        if self._bank is None and (self.examples or self.loaded):
            by_name: dict[str, dict[str, list]] = {}
            shown = {name_key(name): name for name in self.loaded}
            for example in self.examples:
                example = example | {"name": shown.setdefault(name_key(example["name"]), example["name"])}
                by_name.setdefault(example["name"], {}).setdefault(example["image"], []).append(example["box"])
            rows = {name: [vector] for name, vector in self.loaded.items()}
            for name, own in by_name.items():
                pairs = [(self.encode(image), boxes) for image, boxes in own.items()]
                rows.setdefault(name, []).append(self.detector.embed({name: pairs}).embeddings[0])
            self._bank = PromptBank(
                list(rows), torch.stack([torch.stack(own).mean(0) for own in rows.values()]), self.detector.weights
            )
        return self._bank

    def save(self, path: str | Path, official: bool = False) -> PromptBank:
        """Write the bank as safetensors; official: as the official API's file, one name and 256 numbers. Raises
        ValueError where that cannot be.
        """
        if (bank := self.bank()) is None:
            raise ValueError("the bank is empty: collect examples first")
        (bank.save_official if official else bank.save)(Path(path).expanduser())
        return bank

    def load(self, path: str | Path, allow_other_model: bool = False) -> PromptBank:
        """Add a saved bank, of either form; its names replace those loaded before. Raises ValueError: no bank, or of
        another model (see `PromptBank.vectors_for`).
        """
        bank = PromptBank.load(Path(path).expanduser())
        vectors = bank.vectors_for(self.detector.weights, self.detector.config.model.dim, allow_other_model)
        self.add_vectors(bank.names, vectors)
        return bank

    def add_vectors(self, names: Sequence[str], vectors: torch.Tensor) -> None:
        """Vectors [C, D] of this model; they replace those that were loaded under these names."""
        known = {name_key(name): name for name in self.loaded}
        self.loaded |= {known.get(name_key(name), name): vector for name, vector in zip(names, vectors)}
        self._bank = None
