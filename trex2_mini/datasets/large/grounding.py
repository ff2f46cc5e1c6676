"""GoldG: captions whose phrases have boxes, in MDETR's JSON (Flickr30k entities, and GQA without COCO's pictures)."""

from collections.abc import Iterator
from pathlib import Path

from trex2_mini.datasets.large.rows import Row, inside, named, take
from trex2_mini.paths import read_json


@named
def gold_g(annotations: Path) -> Iterator[Row]:
    """final_flickr_separateGT_train.json or final_mixed_train_no_coco.json: an image a caption.

    A box is called by the parts of the caption that its tokens_positive [[start, end], ...] (characters) name. Which
    phrases may be negatives elsewhere is decided by their number (`write_index`). For text prompts only.
    """
    images, entries = take(read_json(annotations), ("images", "annotations"), str(annotations))
    own: dict[int, list[tuple[list, list]]] = {}
    for entry in entries:
        image, box, spans = take(entry, ("image_id", "bbox", "tokens_positive"), f"{annotations}, annotations")
        own.setdefault(image, []).append((box, spans))
    for image in images:
        number, file, width, height, caption = take(
            image, ("id", "file_name", "width", "height", "caption"), f"{annotations}, images"
        )
        boxes, names = [], []
        for box, spans in own.get(number, ()):
            if any(not 0 <= start < end <= len(caption) for start, end in spans):
                raise ValueError(f"{annotations}: tokens_positive {spans} lies outside the caption of image {number}")
            phrase = " ".join(caption[start:end].strip() for start, end in spans).strip(" .,").lower()
            if phrase:
                boxes.append(box)
                names.append(phrase)
        yield Row(inside(file, annotations), width, height, boxes, names, [False] * len(boxes), caption=caption)
