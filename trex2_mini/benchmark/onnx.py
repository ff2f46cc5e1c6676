"""The ONNX programs of `nano-emoji` (weights/onnx.py) under onnxruntime, against PyTorch: the same detections, and the
time of each part.

Tokens, logits and boxes agree to 1e-5. Where two tokens tie for the decoder's last query, rounding may choose the other
one; the scores of that picture then move by about 0.001, which counts as another detection here.
"""

import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trex2_mini.benchmark.measure import interleaved, row
from trex2_mini.datasets.registry import open_dataset
from trex2_mini.detector import Detections, Detector, top_detections
from trex2_mini.model.visual_prompt import RegionPrompts
from trex2_mini.weights.onnx import export_onnx

SIZE = (192, 256)  # pixels
PICTURES = 40
THRESHOLD, PIXELS, SCORE = 0.3, 0.1, 1e-3  # the same detection: label equal, box to PIXELS, score to SCORE


@torch.inference_mode()
def rows(quick: bool, repeats: int) -> Iterator[dict]:
    detector, (height, width) = load(), SIZE
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ValueError(
            f'the ONNX programs need a runtime ({error}): pip install "trex2-mini[export]" onnxruntime'
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(detector, folder, height, width)
        programs = sessions(runtime, Path(folder))
    model, dataset = detector.model, open_dataset("emoji-val")
    same = ours = theirs = 0
    for index in range(4 if quick else PICTURES):
        image, prompts = example(dataset[index])
        features = model.encode_images([image])
        output = model.decode(features, model.encode_visual(features, prompts))
        tokens = programs["encoder"].run(None, {"image": image[None].numpy()})[0]
        result = programs["decoder"].run(
            None, {"tokens": tokens, "prompts": programs["prompt"].run(None, given(tokens, prompts))[0]}
        )
        names = [str(i) for i in range(prompts.mask.shape[1])]
        found = [
            top_detections(logits, boxes, [SIZE], names, 300, detector.config.model.nms_iou)[0].filter(THRESHOLD)
            for logits, boxes in ((output.logits, output.boxes), map(torch.from_numpy, result))
        ]
        ours, theirs, same = ours + len(found[0]), theirs + len(found[1]), same + equal(*found)
    what, form = f"detections on {index + 1} pictures, box prompts", f"ONNX ({theirs}), the same"
    yield row(what, form, same, "PyTorch", ours, "detections", compare=False)
    visual, feed = model.encode_visual(features, prompts), given(tokens, prompts)
    vectors, array = visual.numpy(), image[None].numpy()
    for part, onnx, torch_form in (
        ("encode", lambda: programs["encoder"].run(None, {"image": array}), lambda: model.encode_images([image])),
        ("prompt", lambda: programs["prompt"].run(None, feed), lambda: model.encode_visual(features, prompts)),
        ("decode", lambda: programs["decoder"].run(None, {"tokens": tokens, "prompts": vectors}),
            lambda: model.decode(features, visual)),
    ):  # fmt: skip
        took = interleaved({"onnx": onnx, "torch": torch_form}, 4 * repeats)
        yield row(f"nano {height}x{width}, {part}", "onnxruntime", took["onnx"], "PyTorch", took["torch"])


def load() -> Detector:
    return Detector.load("nano-emoji", "cpu")


def sessions(runtime: Any, folder: Path) -> dict[str, Any]:
    """{"encoder", "prompt", "decoder": a session of onnxruntime}, on as many threads as PyTorch has."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    parts = ("encoder", "prompt", "decoder")
    return {
        p: runtime.InferenceSession(str(folder / f"{p}.onnx"), options, providers=["CPUExecutionProvider"])
        for p in parts
    }


def example(sample: Any) -> tuple[torch.Tensor, RegionPrompts]:
    """A picture of a set at SIZE, [3, H, W] in 0..1, and one box of each category on it as prompts."""
    height, width = sample.image.shape[:2]
    resized = np.array(Image.fromarray(sample.image).resize(SIZE[::-1]))
    image = torch.from_numpy(resized).permute(2, 0, 1).float() / 255
    first = np.unique(sample.labels, return_index=True)[1]
    x1, y1, x2, y2 = torch.from_numpy(sample.boxes[first] / np.array([width, height] * 2, np.float32)).unbind(-1)
    boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1)
    return image, RegionPrompts.from_lists([[(box[None], torch.zeros(0, 2)) for box in boxes]])


def given(tokens: np.ndarray, prompts: RegionPrompts) -> dict[str, np.ndarray]:
    """The inputs of prompt.onnx."""
    return {"tokens": tokens} | {key: getattr(prompts, key).numpy() for key in ("coords", "is_point", "mask")}


def equal(ours: Detections, theirs: Detections) -> int:
    """How many of ours are among theirs, each of theirs counted once."""
    left, count = list(range(len(theirs))), 0
    for box, score, label in zip(ours.boxes, ours.scores, ours.labels):
        fits = (
            i for i in left
            if theirs.labels[i] == label and abs(theirs.scores[i] - score) <= SCORE
            and np.abs(theirs.boxes[i] - box).max() <= PIXELS
        )  # fmt: skip
        if (found := next(fits, None)) is not None:
            left.remove(found)
            count += 1
    return count
