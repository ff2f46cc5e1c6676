"""The annotation files of the embedded family. Each kind of set plays a real benchmark and is written as that one is.

scenes, coco, wild   COCO's instances format                              annotations.json
lvis                 LVIS v1, federated (Gupta et al. 2019, section 3)    annotations.json, the full truth in truth.json
count                FSC147's points and three exemplar boxes             annotation_FSC147_384.json,
                                                                          Train_Test_Val_FSC_147.json,
                                                                          ImageClasses_FSC147.txt, COCO boxes in
                                                                          annotations.json
count-lvis           FSCD-LVIS: one counted category among several        count_test.json, all boxes in annotations.json
clips                COCO-VID: videos, frame_index, track_id              annotations.json
captions             COCO's captions format                               captions.json, the hidden boxes in
                     annotations.json
sa                   boxes on some objects, no names (as SA-1B)           annotations.json, the full truth in truth.json
"""

from collections import Counter
from functools import cache
from itertools import product

import numpy as np

from trex2_mini.datasets.emoji.pictures import FRAMES, Picture
from trex2_mini.datasets.scenes.batches import EmojiBatches
from trex2_mini.datasets.scenes.catalogue import EmojiCategory, load_catalogue

FREQUENCY_SCENES = 10_000  # training scenes that LVIS's frequency groups are counted over: 1,250 steps of batch 8


def instances(pictures: list[Picture], categories: list[dict], head: dict) -> dict:
    """The pictures as a COCO dictionary. Ids start at 1; `area` is the number of visible pixels."""
    annotations, images = [], []
    for picture in pictures:
        sample = picture.sample
        height, width = sample.image.shape[:2]
        image = sample.image_id + 1
        entry = {"id": image, "file_name": picture.file_name, "width": width, "height": height, "license": 1}
        images.append(entry | picture.info)
        columns = (own.astype(int).tolist() for own in (sample.boxes, sample.labels, sample.areas))
        for (x1, y1, x2, y2), label, area, extra in zip(*columns, picture.extras or [{}] * len(sample.labels)):
            annotation = {"id": len(annotations) + 1, "image_id": image, "category_id": label + 1}
            annotation |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0}
            annotations.append(annotation | extra)
    return head | {"images": images, "annotations": annotations, "categories": categories}


def category_entries(catalogue: list[EmojiCategory]) -> list[dict]:
    """COCO's "categories", with two keys of ours: novel and synonyms."""
    keys = ("name", "supercategory", "novel")
    return [
        {"id": label, **{key: getattr(category, key) for key in keys}, "synonyms": list(category.synonyms)}
        for label, category in enumerate(catalogue, 1)
    ]


def files(
    kind: str, seed: int, pictures: list[Picture], catalogue: list[EmojiCategory], head: dict
) -> dict[str, object]:
    """File name -> what it holds (a string, or something for JSON)."""
    truth = instances(pictures, category_entries(catalogue), head)
    match kind:
        case "lvis":
            return {"annotations.json": federated(truth, seed), "truth.json": truth}
        case "count":
            return fsc147(truth)
        case "count-lvis":
            return {"annotations.json": truth, "count_test.json": exemplars(truth)}
        case "clips":
            videos = [
                {"id": v, "name": f"clip {v}", "width": 256, "height": 192}
                for v in range(1, len(pictures) // FRAMES + 1)
            ]
            return {"annotations.json": {"videos": videos} | truth}
        case "captions":
            return {"captions.json": captions(truth, seed), "annotations.json": truth}
        case "sa":
            return {"annotations.json": nameless(truth, seed), "truth.json": truth}
    return {"annotations.json": truth}


def by_image(truth: dict) -> dict[int, list[dict]]:
    """Image id -> its annotations."""
    found: dict[int, list[dict]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        found[annotation["image_id"]].append(annotation)
    return found


@cache
def training_counts(scenes: int = FREQUENCY_SCENES) -> tuple[tuple[int, int], ...]:
    """(images, instances) of each category among the first scenes of training with seed 0, as they are planned.

    Scenes are paired as `EmojiBatches` pairs them. Nothing is painted: about one object in 200 then finds no place.
    """
    generator = EmojiBatches(2).generator
    images, counted, before = Counter(), Counter(), None
    for index in range(scenes):
        labels = generator.planned(index, before if index % 2 else None)
        before = sorted(set(labels))
        counted.update(labels)
        images.update(before)
    return tuple((images[label], counted[label]) for label in range(len(load_catalogue())))


def federated(truth: dict, seed: int) -> dict:
    """LVIS's federated annotation: only what annotators were asked about is known, image by image.

    A category that an image holds is annotated there with chance 0.75 (one never trained, always: LVIS too searched
    images for its rare ones). One of three or more instances is left incomplete with chance 0.2, and said so
    (not_exhaustive_category_ids). 5 to 14 absent categories were looked for in vain (neg_category_ids); half of them
    resemble what is there. About all others nothing is known, so an evaluation must not judge what is found of them.
    Groups go by the number of training images, as LVIS defines them: r up to 10, c up to 100, f above.
    """
    counts = training_counts()
    categories = []
    for category, (images, n) in zip(truth["categories"], counts):
        group = "r" if images <= 10 else "c" if images <= 100 else "f"
        own = {"image_count": images, "instance_count": n, "frequency": group, "def": f"the emoji {category['name']}"}
        categories.append(category | own | {"synonyms": [category["name"], *category["synonyms"]]})
    group = {category["id"]: category["supercategory"] for category in categories}
    images, annotations = [], []
    for image, held in zip(truth["images"], by_image(truth).values()):
        rng = np.random.default_rng([seed, image["id"], 1])
        present, partial = Counter(annotation["category_id"] for annotation in held), []
        for category_id, count in present.items():
            asked, left_out = rng.random() < 0.75 or counts[category_id - 1][0] == 0, rng.random() < 0.2 and count >= 3
            own = [annotation for annotation in held if annotation["category_id"] == category_id]
            if asked and left_out:
                partial.append(category_id)
                own = [own[i] for i in sorted(rng.permutation(count)[: -(count // 3)])]
            annotations += own if asked else []
        absent = [category_id for category_id in rng.permutation(list(group)).tolist() if category_id not in present]
        kin = [category_id for category_id in absent if group[category_id] in {group[p] for p in present}]
        number = int(rng.integers(5, 15))
        negative = list(dict.fromkeys(kin[: number // 2] + absent))[:number]
        images.append(image | {"neg_category_ids": sorted(negative), "not_exhaustive_category_ids": sorted(partial)})
    annotations = [{key: value for key, value in annotation.items() if key != "iscrowd"} for annotation in annotations]
    return truth | {"images": images, "annotations": annotations, "categories": categories}


def three_exemplars(held: list[dict]) -> list[list[int]]:
    """Three boxes [x, y, w, h] of the annotations of one category: those most in view."""
    fullest = sorted(held, key=lambda annotation: (-annotation["area"], annotation["id"]))
    return [annotation["bbox"] for annotation in fullest[:3]]


def centre(box: list[int]) -> list[float]:
    return [box[0] + box[2] / 2, box[1] + box[3] / 2]


def fsc147(truth: dict) -> dict[str, object]:
    """The files of FSC147, where val and test share no category: val holds the trained ones, test the novel ones."""
    entries, classes, splits = {}, [], {"train": [], "val": [], "test": []}
    category = {category["id"]: category for category in truth["categories"]}
    for image, held in zip(truth["images"], by_image(truth).values()):
        corners = [[[x, y], [x, y + h], [x + w, y + h], [x + w, y]] for x, y, w, h in three_exemplars(held)]
        points = [centre(annotation["bbox"]) for annotation in held]
        size = {"H": image["height"], "W": image["width"], "ratio_h": 1.0, "ratio_w": 1.0}
        entries[image["file_name"]] = size | {"box_examples_coordinates": corners, "points": points}
        counted = category[held[0]["category_id"]]
        classes.append(f"{image['file_name']}\t{counted['name']}\n")
        splits["test" if counted["novel"] else "val"].append(image["file_name"])
    return {
        "annotations.json": truth,
        "annotation_FSC147_384.json": entries,
        "Train_Test_Val_FSC_147.json": splits,
        "ImageClasses_FSC147.txt": "".join(classes),
    }


def exemplars(truth: dict) -> dict:
    """FSCD-LVIS's count file: three exemplar boxes [x, y, w, h] an image; the counted category is the most frequent one
    there."""
    entries = []
    for image_id, held in by_image(truth).items():
        (counted, _), *_ = Counter(annotation["category_id"] for annotation in held).most_common()
        own = [annotation for annotation in held if annotation["category_id"] == counted]
        entry = {"id": image_id, "image_id": image_id, "category_id": counted, "boxes": three_exemplars(own)}
        entries.append(entry | {"points": [centre(annotation["bbox"]) for annotation in own]})
    return {"images": truth["images"], "annotations": entries}


MASS = set(
    "bacon, broccoli, cheese, coral, fire, garlic, popcorn, salad, spaghetti, sushi, toilet paper, wheat".split(", ")
)
NO_PLURAL = ("ss", "us", "os")  # endings of singular names


def phrase(name: str, count: int) -> str:
    """ "a banana", "an apple", "some grapes", "more than one banana": no plural to form, so none to get wrong."""
    head = name.split(" of ")[0].split(" with ")[0]
    plural = head.endswith("s") and not head.endswith(NO_PLURAL)
    if plural or name in MASS:
        return f"some {name}"
    if count > 1:
        return f"more than one {name}"
    vowel = (name[0] in "aeiou" and not name.startswith("uni")) or name == "hourglass"
    return f"{'an' if vowel else 'a'} {name}"


def listed(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def captions(truth: dict, seed: int) -> dict:
    """One or two true sentences an image, which name some of its objects; which ones, "images" of the truth say.

    The second says where all objects of one category are as seen from all of another, where that is so.
    """
    names, sentences = {category["id"]: category["name"] for category in truth["categories"]}, []
    for image, held in zip(truth["images"], by_image(truth).values()):
        rng = np.random.default_rng([seed, image["id"], 1])
        centres = {a["category_id"]: np.empty((0, 2)) for a in held}
        for a in held:
            centres[a["category_id"]] = np.vstack([centres[a["category_id"]], centre(a["bbox"])])
        order = rng.permutation(list(centres)).tolist()
        # "a dog" is true of two dogs as well
        words = {c: phrase(names[c], len(centres[c]) if rng.random() < 0.5 else 1) for c in order}
        named = order[: rng.integers(1, len(order) + 1)]
        start = ["A picture of", "A drawing with", "There is", "You can see"][rng.integers(4)]
        here = [f"{start} {listed([words[c] for c in named])}."]
        pairs = [(one, other) for one in order for other in order if rng.random() < 0.4]
        for (one, other), (axis, side) in product(pairs, enumerate(("to the left of", "above"))):
            if len(here) == 1 and centres[one][:, axis].max() < centres[other][:, axis].min():
                here.append(f"{words[one][0].upper()}{words[one][1:]} {side} {words[other]}.")
                named = [*named, one, other]
        image["named_category_ids"] = sorted(set(named))
        sentences += [{"id": len(sentences) + k, "image_id": image["id"], "caption": c} for k, c in enumerate(here, 1)]
    bare = [{key: value for key, value in image.items() if key != "named_category_ids"} for image in truth["images"]]
    return {"info": truth["info"], "licenses": truth["licenses"], "images": bare, "annotations": sentences}


def nameless(truth: dict, seed: int) -> dict:
    """Boxes of class "object" on about 60 % of the objects, at least one an image."""
    kept = []
    for image_id, held in by_image(truth).items():
        rng = np.random.default_rng([seed, image_id, 1])
        chosen = rng.random(len(held)) < 0.6
        chosen[rng.integers(len(held))] = True
        kept += [annotation | {"category_id": 1} for annotation, keep in zip(held, chosen) if keep]
    categories = [{"id": 1, "name": "object", "supercategory": "object"}]
    return truth | {"annotations": kept, "categories": categories}
