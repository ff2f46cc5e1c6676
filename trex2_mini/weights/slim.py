"""A checkpoint of half the size: without the vectors of tokens that its text tower was never taught.

CLIP's tokenizer has 49,408 tokens. A small tower that was taught some thousand words leaves most of their vectors as
they were drawn at random, and they are half of its file. They become zero here, and `save_model` leaves rows of zeros
out. What consists of taught words is read exactly as before; tokens that were never taught count as nothing.
"""

import shutil
from pathlib import Path

import torch

from trex2_mini.checkpoint import load_model, save_model
from trex2_mini.names import Vocabulary


def slim(source: str | Path, out: str | Path) -> dict[str, int]:
    """Write the slim checkpoint of `source` (a folder or a shipped name) into the folder `out`: weights, config.json,
    vocabulary.json. Returns {"tokens": all, "kept", "bytes": of the file}.

    Raises ValueError where the checkpoint has no vocabulary.json, or is to be written over itself.
    """
    model, config, path = load_model(source)
    out = Path(out)
    if (vocabulary := Vocabulary.load(path.parent)) is None:
        raise ValueError(f"{path.parent} has no vocabulary.json, so it is not known which words it was taught")
    if out.resolve() == path.parent.resolve():
        raise ValueError(f"{out} is the checkpoint itself; give another folder")
    encoder = model.text_prompt_encoder
    tokenizer = encoder.tokenizer
    kept = {tokenizer.sot_token_id, tokenizer.eot_token_id, 0}  # 0 fills up what is short
    for phrase in (*vocabulary.names, *vocabulary.words):
        kept.update(tokenizer.encode(phrase))
    table = encoder.tower.token_embedding.weight
    unknown = torch.ones(len(table), dtype=torch.bool)
    unknown[sorted(kept)] = False
    with torch.no_grad():
        table[unknown] = 0
    save_model(out, model, config)
    shutil.copy(path.parent / "vocabulary.json", out)
    return {"tokens": len(table), "kept": len(kept), "bytes": (out / "model.safetensors").stat().st_size}
