"""Pictures of coloured rectangles, a set of them, and a detector that knows colours: answers that one can work out by
hand.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from trex2_mini.boxes import xyxy_to_normalized
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.detector import Detector, EncodedImage
from trex2_mini.images import load_image
from trex2_mini.model.box_decoder import DecoderOutput
from trex2_mini.search import PhotoIndex

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


IDS = {"red": 3, "green": 5, "blue": 9}  # neither dense nor from 0


SCENES = [  # (height, width), [(name, x, y, w, h)]
    ((64, 64), [("red", 4, 4, 12, 10), ("red", 30, 8, 20, 20), ("green", 6, 40, 16, 12)]),
    ((64, 96), [("green", 10, 10, 12, 12), ("green", 50, 30, 30, 20), ("blue", 70, 4, 20, 16)]),
    ((96, 64), [("blue", 8, 60, 24, 24)]),
    ((64, 64), [("red", 20, 20, 24, 24)]),
    ((64, 64), []),
]


def write_set(folder, scenes=SCENES, flags=True) -> CocoDataset:
    """Coloured rectangles on black, in COCO format; blue is novel."""
    (folder / "images").mkdir(parents=True)
    coco = {"images": [], "annotations": [], "categories": [{"id": IDS[n], "name": n} for n in COLOURS]}
    if flags:
        for category in coco["categories"]:
            category["novel"] = category["name"] == "blue"
    for number, ((height, width), objects) in enumerate(scenes):
        image = np.zeros((height, width, 3), np.uint8)
        for name, x, y, w, h in objects:
            image[y : y + h, x : x + w] = COLOURS[name]
            entry = {"id": len(coco["annotations"]), "image_id": 10 + number, "category_id": IDS[name]}  # an id 0, too
            coco["annotations"].append(entry | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        coco["images"].append({"id": 10 + number, "file_name": f"{number}.png", "height": height, "width": width})
    (folder / "annotations.json").write_text(json.dumps(coco))
    return CocoDataset(folder / "annotations.json", folder / "images")


class ColourModel(torch.nn.Module):
    """Finds every rectangle; an embedding is a colour, a logit says how near two colours are."""

    def encode_text(self, names):
        return torch.tensor([COLOURS[name] for name in names]) / 255

    def encode_visual(self, images, prompts):
        vectors = torch.full((*prompts.mask.shape[:2], 3), torch.nan)  # what is padding must not be read
        for b, c in prompts.mask.any(-1).nonzero().tolist():
            height, width = images[b].shape[:2]
            centres = prompts.coords[b, c][prompts.mask[b, c]][:, :2].tolist()
            seen = [images[b][int(y * height), int(x * width)] / 255 for x, y in centres]
            vectors[b, c] = torch.tensor(np.mean(seen, 0))
        return vectors

    def decode(self, images, prompts, prompt_mask=None):
        prompts = prompts.expand(len(images), -1, -1)
        logits, boxes = torch.full((len(images), 8, prompts.shape[1]), -50.0), torch.full((len(images), 8, 4), 0.5)
        for b, image in enumerate(images):
            parts, _ = ndimage.label(image.any(-1))
            for q, (rows, columns) in enumerate(ndimage.find_objects(parts)):
                box = torch.tensor([columns.start, rows.start, columns.stop, rows.stop]).float()
                boxes[b, q] = xyxy_to_normalized(box, *image.shape[:2])
                colour = torch.tensor(image[rows.start, columns.start] / 255)
                logits[b, q] = 5 - 20 * (prompts[b] - colour).norm(dim=-1)
        return DecoderOutput(
            logits if prompt_mask is None else logits.masked_fill(~prompt_mask[:, None], -torch.inf), boxes
        )


class ColourDetector(Detector):
    def __init__(self):
        sizes = {"strides": (8,), "short_side": 64, "long_side": 96}
        super().__init__(ColourModel(), SimpleNamespace(model=SimpleNamespace(dim=3, nms_iou=0.7, **sizes)), "cpu")

    def encode_batch(self, images):
        return images


def detection(image, category, box, score=1.0) -> dict:
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


class Colours(ColourDetector):
    """ColourDetector for single images too, as `detect` wants it."""

    def __init__(self):
        super().__init__()
        self.config.model.num_queries = 8
        self.model.box_decoder = SimpleNamespace(logit_bias=0.0)

    def encode(self, image):
        array = load_image(image)
        return EncodedImage([array], *array.shape[:2])


class ColourIndex(PhotoIndex):
    """Keeps a picture's colours; near colours have high logits."""

    def row(self, encoded):
        found = [
            [*c / 255, 0.5, 0.5, 0.2, 0.2] for c in np.unique(encoded.features[0].reshape(-1, 3), axis=0) if c.any()
        ]
        return torch.tensor([*found, *[[0.0] * 7] * 16][: self.shape[0]])

    def _logits(self, queries, prompts):
        return 5 - 20 * torch.cdist(queries, prompts)


def paint(path, *names, size=(48, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((*size, 3), np.uint8)
    for place, name in enumerate(names):
        image[8 : 8 + 6 * (place + 2), 4 + 20 * place : 20 + 20 * place] = COLOURS[name]
    Image.fromarray(image).save(path)
