"""Sharing a detector: a local folder first, then (private unless asked otherwise) the Hugging Face Hub, by
huggingface_hub's own mixin.

    SharedDetector.load("runs/mine").save_pretrained("to-share")            # config.json, model.safetensors, README.md;
    no network
    SharedDetector.from_pretrained("to-share")                              # no network
    SharedDetector.load("runs/mine").push_to_hub("you/mine")                # private; needs `hf auth login`
    SharedDetector.from_pretrained("you/mine", local_files_only=True)       # from the cache alone

The files are those of every checkpoint here (safetensors and JSON, no pickle), so `Detector.load("to-share")` reads the
folder too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download

from trex2_mini.checkpoint import CheckpointError, save_model
from trex2_mini.detector import Detector

FILES = ("config.json", "model.safetensors")  # and vocabulary.json, where there is one
OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")  # of a download


class SharedDetector(
    Detector, ModelHubMixin, library_name="trex2_mini", tags=["object-detection", "open-vocabulary", "visual-prompts"]
):
    """A Detector with `save_pretrained`, `from_pretrained` and `push_to_hub`."""

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(Path(save_directory), self.model, self.config, half=False)
        if self.vocabulary:
            self.vocabulary.save(save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> SharedDetector:
        """A folder, or owner/name on the Hub; options are the mixin's, and `device`. Raises CheckpointError where there
        is none."""
        if not isinstance(pretrained_model_name_or_path, (str, Path)):
            raise CheckpointError(
                f"expected a folder, or owner/name on the Hub, got {pretrained_model_name_or_path!r:.80}"
            )
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        except Exception as error:  # huggingface_hub and its HTTP client raise many kinds
            if isinstance(error, CheckpointError) or Path(pretrained_model_name_or_path).is_dir():
                raise  # of a folder: what is wrong with its files
            raise CheckpointError(
                f"{str(pretrained_model_name_or_path)!r} is no folder here and could not be had from the Hugging Face"
                f" Hub ({type(error).__name__}: {error}). Check the name, the network and, for a private one, `hf auth"
                " login`"
            ) from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, device: str | None = None, **options: Any) -> SharedDetector:
        """model_id: a folder, or owner/name on the Hub. Raises CheckpointError when it holds no whole checkpoint of
        ours."""
        folder = Path(model_id)
        if not folder.is_dir():
            asked = {key: options[key] for key in OPTIONS if key in options}
            folder = Path(snapshot_download(str(model_id), allow_patterns=[*FILES, "vocabulary.json"], **asked))
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{model_id} is not a checkpoint of trex2_mini: {', '.join(missing)} missing")
        return cls.load(folder, device)

    def push_to_hub(self, repo_id: str, *, private: bool = True, **options: Any) -> str:
        """Upload to owner/name; private unless `private=False`. Other options are the mixin's (token=...). Returns the
        commit's address.

        Raises ValueError for another form of name, and where the upload fails (no network, not logged in, no right to
        write there).
        """
        if not isinstance(repo_id, str) or len([part for part in repo_id.split("/") if part]) != 2:
            raise ValueError(f"expected the name of a repository as owner/name, got {repo_id!r}")
        try:
            return super().push_to_hub(repo_id, private=private, **options)
        except Exception as error:  # huggingface_hub and its HTTP client raise many kinds
            raise ValueError(
                f"{repo_id!r} could not be written on the Hugging Face Hub ({type(error).__name__}: {error}). Check the"
                " network and `hf auth login`; save_pretrained(folder) needs neither"
            ) from error
