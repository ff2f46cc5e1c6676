"""PhotoIndex: a few vectors for each picture of a folder, from which any later question gets its shortlist.

The decoder's last layer compares its queries with the prompts (eq. 8): logit = query . prompt / sqrt(D) + b. Which
tokens became queries depends on the prompts, what the decoder makes of a token hardly. So each picture is decoded once,
for a vocabulary, and the index keeps the `VECTORS` queries that together answer it best (`telling`), with their boxes,
in half precision: 4.2 kB a picture at D = 128. They answer other prompts too, words and examples alike.

On disk, in one folder: `index.json` (what made it), `vectors.f16` (a row a picture, memory-mapped) and `pictures.jsonl`
(a line a picture: file, its size and time, row, height and width). A row is written before its line, so an interrupted
run goes on.
"""

import json
import math
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from trex2_mini.datasets.scenes.catalogue import load_catalogue
from trex2_mini.detections import Detections, top_detections
from trex2_mini.detector import Detector, EncodedImage
from trex2_mini.images import UnreadablePicture, looks_like_picture, warn_of_heic
from trex2_mini.model.box_decoder import ABSENT
from trex2_mini.paths import locked, read_json, write_text
from trex2_mini.prompt_bank import PromptBank

VECTORS = 16  # kept of a picture
HOME = ".trex2-search"  # the index's folder, within the pictures'
BLOCK = 8192  # rows compared at once


class PhotoIndex:
    """The index of a folder and of all folders in it; `update` makes it or brings it up to date, `scores` asks it.

    where  the index's own folder; None: HOME within the pictures' folder
    files  [pictures] their paths relative to the folder, in the order of `scores`
    unreadable  {path: why} of the pictures that are left out
    Raises ValueError for a folder that is none, and for an index of other weights or of another number of vectors.
    """

    def __init__(self, detector: Detector, folder: str | Path, where: str | Path | None = None, vectors: int = VECTORS):
        self.detector, self.folder = detector, Path(folder).expanduser()
        if not self.folder.is_dir():
            raise ValueError(f"expected a folder with pictures, and {folder} is none")
        self.where = self.folder / HOME if where is None else Path(where).expanduser()
        self.shape = (vectors, detector.config.model.dim + 4)  # a row: queries, each followed by its box
        self.made_by = {"format": 1, "weights": detector.weights, "vectors": vectors}
        about, listed = self.where / "index.json", self.where / "pictures.jsonl"
        if about.exists() and (found := read_json(about)) != self.made_by:
            raise ValueError(
                f"the index {self.where} was made by other weights or settings ({found}; these are {self.made_by}): "
                "load those weights, remove the index, or name another folder for the new one"
            )
        self._records: dict[str, dict] = {}
        owner: dict[int, str] = {}
        rows = self._path.stat().st_size // self.bytes_a_picture if self._path.exists() else 0
        for line in listed.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if listed.exists() else []:
            record = self._checked(line, rows)
            before = owner.get(record["row"])
            if before in self._records and self._records[before]["row"] == record["row"]:
                del self._records[before]  # its row was given to another picture
            self._records[record["file"]] = record
            if record["row"] is not None:
                owner[record["row"]] = record["file"]

    @property
    def bytes_a_picture(self) -> int:
        return math.prod(self.shape) * 2

    @property
    def _path(self) -> Path:
        return self.where / "vectors.f16"

    def _checked(self, line: str, rows: int) -> dict:
        """A line of pictures.jsonl."""
        try:
            record = json.loads(line)
            row = record["row"]
            if not (row is None or (isinstance(row, int) and 0 <= row < rows)) or not isinstance(record["file"], str):
                raise ValueError("a row that is not there")
            return {key: record[key] for key in ("file", "size", "time", "row", "height", "width", "unreadable")}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"the index {self.where} is damaged ({error}); remove this folder, and index the pictures again"
            ) from None

    @property
    def files(self) -> list[str]:
        return [name for name, record in self._records.items() if record["row"] is not None]

    @property
    def unreadable(self) -> dict[str, str]:
        return {name: record["unreadable"] for name, record in self._records.items() if record["row"] is None}

    def update(self, progress: bool = True) -> dict[str, int]:
        """Index what is new or changed (size or time), forget what is gone; interrupted, the next call goes on.

        Returns {"pictures": indexed, "new": of them in this call, "gone": forgotten, "unreadable": left out}. Raises
        ValueError where the folder holds no picture, the index cannot be written, or another process is updating it.
        """
        there = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in pictures_below(self.folder)}
        if not there:
            raise ValueError(f"{self.folder} holds no picture, nor do its folders; expected files such as .jpg or .png")
        busy = f"another process is updating the index {self.where}; wait for it to end"
        try:
            with locked(self.where / "lock", busy):
                return self._update(there, progress)
        except OSError as error:
            raise ValueError(
                f"the index {self.where} cannot be written ({error}); name another folder for it"
            ) from error

    def _update(self, there: dict[str, tuple[int, int]], progress: bool) -> dict[str, int]:
        before = len(self._records)
        self._records = {name: record for name, record in self._records.items() if name in there}
        gone = before - len(self._records)
        stale = [name for name, known in there.items() if known != self._known(name)]
        write_text(self.where / "index.json", json.dumps(self.made_by))
        write_text(
            self.where / "pictures.jsonl", "".join(json.dumps(record) + "\n" for record in self._records.values())
        )
        self._path.touch()
        used = {record["row"] for name, record in self._records.items() if name not in stale}
        rows = (row for row in range(len(there)) if row not in used)  # places of pictures that are gone come first
        with open(self._path, "r+b") as vectors, open(self.where / "pictures.jsonl", "a", encoding="utf-8") as lines:
            for name in tqdm(stale, desc="indexing", unit="picture", disable=None if progress and stale else True):
                size, time = there[name]
                record = {"file": name, "size": size, "time": time}
                record |= {"row": None, "height": 0, "width": 0, "unreadable": ""}
                try:
                    encoded = self.detector.encode(self.folder / name)
                except (UnreadablePicture, OSError) as error:
                    record["unreadable"] = str(error)
                else:
                    record |= {"row": next(rows), "height": encoded.height, "width": encoded.width}
                    vectors.seek(record["row"] * self.bytes_a_picture)
                    vectors.write(self.row(encoded).half().numpy().tobytes())
                    vectors.flush()
                lines.write(json.dumps(record) + "\n")
                lines.flush()
                self._records[name] = record
        return {"pictures": len(self.files), "new": len(stale), "gone": gone, "unreadable": len(self.unreadable)}

    def leave_out(self, name: str, why: str) -> None:
        """A picture that could not be read after all, until the index is opened anew."""
        self._records[name] = {**self._records[name], "row": None, "unreadable": why}

    def _known(self, name: str) -> tuple[int, int] | None:
        record = self._records.get(name)
        return record and (record["size"], record["time"])

    @torch.inference_mode()
    def row(self, encoded: EncodedImage) -> Tensor:
        """What the index keeps of a picture: queries and their boxes (cxcywh in 0..1), [VECTORS, D + 4]."""
        output = self.detector.model.decode(encoded.features, self.vocabulary)
        real = output.logits[0, :, 0] > ABSENT / 2  # a tiny picture has fewer tokens than queries
        rows = torch.cat([output.queries[0], output.boxes[0]], 1)[real]
        chosen = rows[telling(output.logits[0, real], self.shape[0])]
        return torch.cat([chosen, chosen[:1].expand(self.shape[0] - len(chosen), -1)]).cpu()

    @cached_property
    def vocabulary(self) -> Tensor:
        """What the kept queries are to answer: the names of the emoji catalogue as text prompts, [474, D]."""
        return self.detector.model.encode_text([category.name for category in load_catalogue()])

    def _logits(self, queries: Tensor, prompts: Tensor) -> Tensor:
        """eq. 8 of queries [N, D] and prompts [C, D]: [N, C]."""
        return self.detector.model.box_decoder.logits(queries[None], prompts[None], None)[0]

    @torch.inference_mode()
    def scores(self, prompts: Tensor) -> Tensor:
        """prompts [C, D] -> [pictures, C] in 0..1: the best of each picture's queries."""
        rows = self._rows()
        best = torch.empty(len(rows), len(prompts))
        for start in range(0, len(rows), BLOCK):
            queries = torch.from_numpy(rows[start : start + BLOCK, :, :-4].astype(np.float32)).to(prompts.device)
            logits = self._logits(queries.flatten(0, 1), prompts)
            best[start : start + BLOCK] = logits.unflatten(0, queries.shape[:2]).amax(1).sigmoid()
        return best[[self._records[name]["row"] for name in self.files]]

    @torch.inference_mode()
    def detections(self, name: str, asked: PromptBank) -> Detections:
        """What the index alone knows of a picture: its queries' answers to the prompts."""
        record = self._records[name]
        row = torch.from_numpy(self._rows()[record["row"]].astype(np.float32)).to(asked.embeddings.device)
        logits, boxes = self._logits(row[:, :-4], asked.embeddings)[None], row[None, :, -4:]
        sizes, nms_iou = [(record["height"], record["width"])], self.detector.config.model.nms_iou
        return top_detections(logits, boxes, sizes, asked.names, 300, nms_iou)[0]

    def _rows(self) -> np.ndarray:
        return np.memmap(self._path, np.float16, "r").reshape(-1, *self.shape)


def telling(logits: Tensor, count: int) -> Tensor:
    """The indices of the `count` queries that together answer a vocabulary best, of logits [N, C].

    Each adds most to the sum, over the vocabulary, of the best score (0..1) that a chosen query gives a word.
    """
    scores, chosen = logits.sigmoid(), []
    best = scores.new_zeros(scores.shape[1])
    for _ in range(min(count, len(scores))):
        chosen.append(int((scores - best).clamp(min=0).sum(1).argmax()))
        best = torch.maximum(best, scores[chosen[-1]])
    return torch.tensor(chosen, dtype=torch.long)


def pictures_below(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(path relative to `folder`, status) of its pictures and those of the folders in it, by name.

    What is hidden is left out, and links that lead out of the folder; HEIC without its package is warned of.
    """
    root, paths = folder.resolve(), []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            paths.append(path := Path(place, name))
            if looks_like_picture(path) and path.resolve().is_relative_to(root) and path.is_file():
                yield path.relative_to(folder).as_posix(), path.stat()
    warn_of_heic(folder, paths)
