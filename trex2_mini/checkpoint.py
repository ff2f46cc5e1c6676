"""Checkpoints: safetensors, written whole or not at all, read with clear errors. Never pickle.

A model is a folder: `model.safetensors` (weights, half precision when shipped), `config.json`, and what training left
beside them.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trex2_mini.config import Config
from trex2_mini.model.trex2 import TRex2
from trex2_mini.paths import REPOSITORY, write_text

SHIPPED = REPOSITORY / "data" / "checkpoints"
TOKENS = "text_prompt_encoder.tower.token_embedding.weight"
ROWS = "text_prompt_encoder.tower.token_embedding.rows"  # of TOKENS, those that are in the file


class CheckpointError(ValueError):
    """A checkpoint that is missing, truncated, of another model, or that could not be written."""


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file in a temporary folder beside it, then rename it: the file under its own name is always
    whole.

    Raises CheckpointError where it cannot be written; what was there before is still there. A process that is killed
    within leaves its `*.part` folder behind, which nothing reads.
    """
    # a folder, since safetensors puts a draft of its own beside what it writes
    folder = path.with_name(f"{path.name}.{os.getpid()}.part")
    draft = folder / path.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.touch()
        permissions = draft.stat().st_mode  # of any new file; safetensors' own only their owner may read
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft, metadata)
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        draft.chmod(permissions)
        os.replace(draft, path)
    except (SafetensorError, OSError) as error:
        kept = "the file that was there before is whole" if path.exists() else "nothing was left there"
        raise CheckpointError(
            f"{path} could not be written ({error}); {kept}. Is the disk full, or the folder read-only?"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_tensors(path: Path, what: str = "checkpoint") -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file. Raises CheckpointError."""
    if not path.is_file():
        known = f"; shipped with the repository: {shipped()}" if what == "checkpoint" else ""
        raise CheckpointError(f"no {what} at {path}{known}")
    try:
        with safe_open(str(path), "pt") as file:
            # copies, which do not hold the file: Windows replaces none that is in use
            return {key: file.get_tensor(key).clone() for key in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); it may be truncated: copy or download it again"
        ) from None


def save_model(
    folder: Path, model: TRex2, config: Config, weights: Mapping[str, Tensor] | None = None, half: bool = True
) -> None:
    """Write `model.safetensors` and `config.json` into `folder`.

    weights: stand in for the model's own, by name (an average of them).
    """
    whole = {**model.state_dict(), **(weights or {})}
    tensors = {k: v.half() if half and v.is_floating_point() else v for k, v in whole.items()}
    write_tensors(folder / "model.safetensors", _without_empty_rows(tensors))
    write_text(folder / "config.json", config.to_json())


def load_model(source: str | Path) -> tuple[TRex2, Config, Path]:
    """(model in eval mode and float32, its configuration, the weights' path) from a folder or the name of a shipped
    checkpoint."""
    folder = Path(source)
    if not folder.exists() and (SHIPPED / str(source)).is_dir():
        folder = SHIPPED / str(source)
    if folder.is_file():
        folder = folder.parent
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"no checkpoint at {source!s}: expected a folder with config.json and model.safetensors, or one of"
            f" {shipped()}"
        )
    config = Config.load(folder / "config.json")
    path = folder / "model.safetensors"
    tensors, _ = read_tensors(path)
    model = TRex2(config.model, pretrained=False)
    load_weights(model, _with_empty_rows(tensors, config.model.text.vocab_size, path), str(path))
    return model.eval(), config, path


def _without_empty_rows(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The table of tokens without its rows of zeros, and which rows are left: CLIP's 49,408 tokens are half of a small
    checkpoint, and a small tower was taught few of them (`weights.slim`).
    """
    kept = tensors[TOKENS].any(1) if TOKENS in tensors else torch.ones(1, dtype=torch.bool)
    return tensors if kept.all() else {**tensors, TOKENS: tensors[TOKENS][kept], ROWS: kept.nonzero()[:, 0].int()}


def _with_empty_rows(tensors: dict[str, Tensor], rows: int, path: Path) -> dict[str, Tensor]:
    """The whole table again. Raises CheckpointError."""
    if ROWS not in tensors or TOKENS not in tensors:
        return tensors
    kept, table = tensors[ROWS].long(), tensors[TOKENS]
    if kept.shape != table.shape[:1] or kept.unique().shape != kept.shape or kept.min() < 0 or kept.max() >= rows:
        raise CheckpointError(f"{path}: expected {ROWS!r} to name {len(table)} different rows of {rows}")
    whole = table.new_zeros(rows, *table.shape[1:]).index_copy(0, kept, table)
    return {key: own for key, own in tensors.items() if key != ROWS} | {TOKENS: whole}


def load_weights(model: torch.nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Strict loading, with the differences named in the error."""
    own = model.state_dict()
    missing, unknown = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    shapes = [
        f"{k}: {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    if missing or unknown or shapes:
        raise CheckpointError(
            f"{source} belongs to another model: {len(missing)} tensors are missing (first: {missing[:3]}),"
            f" {len(unknown)} unknown (first: {unknown[:3]}), {len(shapes)} of another shape (first: {shapes[:3]}). Is"
            " the config.json beside it its own?"
        )
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()})


def shipped() -> list[str]:
    """Names of the checkpoints in the repository."""
    return sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))


def state_hash(model: torch.nn.Module) -> str:
    """16 hex digits that tell a model's weights from others: of their SHA-256 at half precision, so that a model and
    its shipped file agree."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu()
        value = value.half() if value.is_floating_point() else value
        digest.update(name.encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
