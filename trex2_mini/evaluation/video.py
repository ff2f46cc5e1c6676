"""Video by a generic prompt (spec section 4): V from one frame or a few, used unchanged on the others.

N = 1 prompts the first frame; more are spread evenly over the clip. Each prompted frame gives one V a category from all
its boxes, and the mean is the prompt. What is measured are the frames that were not prompted, and the objects of the
categories that were: nothing is tracked, each frame is detected alone. The set is in COCO-VID's format: images with
"video_id" and "frame_index".
"""

from collections import defaultdict

import numpy as np
import torch
from tqdm import tqdm

from trex2_mini.datasets.coco import CocoDataset
from trex2_mini.datasets.sample import normalized_boxes
from trex2_mini.detector import Detector
from trex2_mini.evaluation.bank import NO_POINTS, encode_in_batches
from trex2_mini.evaluation.packed import Packed
from trex2_mini.evaluation.trial import Answers, Options, as_coco
from trex2_mini.model.visual_prompt import RegionPrompts


def clips(dataset: CocoDataset) -> list[list[int]]:
    """The frames of each clip, as places in the set, in their order. Raises ValueError where frames are not marked."""
    images = dataset.coco["images"]
    if not all("video_id" in image and "frame_index" in image for image in images):
        raise ValueError(
            f'{dataset.path}: images without "video_id" and "frame_index"; video needs clips, such as emoji-clips'
        )
    grouped: dict[int, list[int]] = defaultdict(list)
    for place in sorted(range(len(images)), key=lambda place: images[place]["frame_index"]):
        grouped[images[place]["video_id"]].append(place)
    return [grouped[clip] for clip in sorted(grouped)]


def video(detector: Detector, dataset: CocoDataset, labels: list[int], options: Options) -> Answers:
    """Detections on the frames that were not prompted, of the first `limit` clips.

    details: clips, prompts (categories asked for, summed over clips), examples, echo (AP of answering the boxes of the
    nearest prompted frame, unchanged: what an object that does not move would give), AP_near and AP_far (the nearer and
    the farther half of the frames, by their distance in time from the nearest prompted one).

    Raises ValueError: no clips, fewer frames than examples, nothing to find.
    """
    images, category_ids = dataset.coco["images"], dataset.category_ids
    detections, echo, truth, distance = Packed(), [], [], {}
    examples, asked, held = options.examples, 0, dataset.annotations_by_image()
    chosen = clips(dataset)[: options.limit]
    for frames in tqdm(chosen, "clips", disable=not options.progress):
        if examples >= len(frames):
            raise ValueError(f"expected fewer prompted frames than the clip's {len(frames)}, got {examples}")
        shown = [frames[place * len(frames) // examples] for place in range(examples)]
        prompts, own = frame_prompts(detector, dataset, shown, labels)
        later = [frame for frame in frames if frame not in shown]
        asked += len(own)
        ids = [category_ids[label] for label in own]
        for frame in later:
            nearest = min(shown, key=lambda s: abs(frames.index(s) - frames.index(frame)))
            distance[images[frame]["id"]] = abs(frames.index(nearest) - frames.index(frame))
            truth += [a for a in held[images[frame]["id"]] if a["category_id"] in ids]
            echo += [
                {"image_id": images[frame]["id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 1.0}
                for a in held[images[nearest]["id"]]
                if a["category_id"] in ids
            ]
        if not own:
            continue
        for samples, features in encode_in_batches(detector, dataset, later, options.batch_size, None):
            with torch.inference_mode():
                output = detector.model.decode(features, prompts)
            detections.extend(as_coco(detector, dataset, samples, output, [own] * len(samples)))
    groups = {image["id"]: image["video_id"] for image in images}
    given = Answers(
        dataset.coco | {"annotations": truth}, detections, [category_ids[label] for label in labels], list(distance),
        {"clips": len(chosen), "prompts": asked, "examples": examples}, groups,
    )  # fmt: skip
    distance = {image: far for image, far in distance.items() if image not in dataset.left_out}
    given.image_ids = list(distance)
    middle = float(np.median(list(distance.values())))
    near = [image for image, far in distance.items() if far <= middle]
    far = [image for image in distance if image not in set(near)]
    given.details["echo"] = given.measure(echo)["AP"]
    for part, own in (("near", near), ("far", far)):
        held_there = {a["image_id"] for a in truth} & set(own)
        given.details[f"AP_{part}"] = given.measure(image_ids=own)["AP"] if held_there else None
    return given


@torch.inference_mode()
def frame_prompts(
    detector: Detector, dataset: CocoDataset, frames: list[int], labels: list[int]
) -> tuple[torch.Tensor, list[int]]:
    """V [C, D], the mean over those of `frames` that hold the category, and the C labels (of `labels`, sorted)."""
    vectors: dict[int, list[torch.Tensor]] = defaultdict(list)
    for frame in frames:
        if (sample := dataset.read(frame)) is None:
            continue
        boxes, own = normalized_boxes(sample), sorted(set(sample.labels.tolist()) & set(labels))
        if not own:
            continue
        regions = [[(boxes[torch.from_numpy(sample.labels == label)], NO_POINTS) for label in own]]
        features = detector.encode_batch([sample.image])
        found = detector.model.encode_visual(features, RegionPrompts.from_lists(regions, detector.device))[0]
        for label, vector in zip(own, found):
            vectors[label].append(vector)
    own = sorted(vectors)
    means = [torch.stack(vectors[label]).mean(0) for label in own]
    return (torch.stack(means) if means else torch.zeros(0, detector.config.model.dim)), own
