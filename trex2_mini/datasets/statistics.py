"""What is in a set (how many pictures, boxes and categories, and how they are spread), and what is wrong with its
pictures."""

from collections import Counter

import numpy as np
from tqdm import tqdm

from trex2_mini.boxes import PIXEL
from trex2_mini.datasets.check import doubtful_boxes
from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.images import UnreadablePicture, is_turned, load_image, picture_size


def statistics(dataset: CocoDataset) -> dict:
    """What is in a set: counts, objects an image, sides of boxes (square root of the area, px), and images and boxes a
    category.

    Returns {"images", "boxes", "categories", "empty_images", "objects_an_image": [int], "sides": [float],
    "per_category": {name: {"images", "boxes"}}}, categories by falling number of boxes.
    """
    boxes_of = dataset.annotations_by_image()
    annotations = [a for own in boxes_of.values() for a in own if not a.get("iscrowd", 0)]
    name_of = dict(zip(dataset.category_ids, dataset.names))
    boxes = Counter(name_of[a["category_id"]] for a in annotations)
    images = Counter(
        name for name in {(a["image_id"], name_of[a["category_id"]]) for a in annotations} for name in name[1:]
    )
    return {
        "images": len(dataset),
        "boxes": len(annotations),
        "categories": len(dataset.names),
        "empty_images": sum(not own for own in boxes_of.values()),
        "objects_an_image": [len(own) for own in boxes_of.values()],
        "sides": [float(np.sqrt(max(a["bbox"][2] * a["bbox"][3], 0))) for a in annotations],
        "per_category": {
            name: {"images": images[name], "boxes": boxes[name]}
            for name in sorted(dataset.names, key=lambda name: (-boxes[name], name))
        },
    }


def check_pictures(dataset: CocoDataset, progress: bool = True, decode: bool = False) -> list[str]:
    """What is wrong with a set's pictures and with its boxes on them.

    decode: read every file's pixels, not only its header: finds those that are cut short.
    """
    problems, boxes_of, seen = [], dataset.annotations_by_image(), []
    less, out = [], []  # annotations of less than a pixel; that reach out of their picture
    for image in tqdm(dataset.coco["images"], desc="checking", unit="picture", disable=None if progress else True):
        try:
            path = dataset.pictures.find(image["file_name"])
            width, height = picture_size(path)
            if decode:
                load_image(path)
        except UnreadablePicture as error:
            problems.append(f"picture {image['id']} is unreadable: {error}")
            continue
        recorded = image.get("width", width), image.get("height", height)
        if recorded != (width, height):
            said = f"picture {image['id']}: recorded as {recorded[0]} x {recorded[1]}, is {width} x {height}"
            if recorded == (height, width) and is_turned(path):
                said += (
                    " as EXIF turns it. If its boxes were drawn before it was turned, they lie wrong: save the picture "
                    "without the EXIF mark"
                )
            problems.append(said)
        seen += [(annotation["bbox"], width, height) for annotation in boxes_of[image["id"]]]
        for annotation in boxes_of[image["id"]]:
            x, y, w, h = annotation["bbox"]
            if w <= 0 or h <= 0:
                problems.append(f"picture {image['id']}: a box of no size, {annotation['bbox']}")
            elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
                problems.append(f"picture {image['id']}: a box outside the picture, {annotation['bbox']}")
            elif min(w, h) < PIXEL:
                less.append(annotation)
            elif min(x, y) < -2 or x + w > width + 2 or y + h > height + 2:
                out.append(annotation)
    out = out if len(out) > len(seen) / 2 else []  # some do: people draw over the border
    for own, said in ((less, "less than a pixel wide or high"), (out, "reach out of their picture")):
        if own:
            first = f"on picture {own[0]['image_id']}, {own[0]['bbox']}"
            problems.append(f"{len(own)} boxes {'are ' * (own is less)}{said}; the first {first}")
    return [said for said in doubtful_boxes(seen) if said not in dataset.problems] + problems
