"""What a user waits for while prompting one picture by hand: `nano-emoji` through its Detector, on an embedded scene of
192 x 256 pixels."""

from collections.abc import Iterator

from trex2_mini.benchmark.measure import interleaved, row
from trex2_mini.boxes import check_boxes
from trex2_mini.datasets.scenes.generator import SceneGenerator
from trex2_mini.detector import Detector

SIZE = (192, 256)  # height, width
ANSWER = 0.05  # seconds a further answer may take


def rows(quick: bool, repeats: int) -> Iterator[dict]:
    """`quick` changes nothing: it is short. A first answer also projects the image for the decoder, which further
    answers find done."""
    detector, scene = Detector.load("nano-emoji", "cpu"), SceneGenerator(seed=0).scene(1, SIZE)
    one, other = check_boxes(scene.boxes[[0, -1]], *SIZE, "boxes").tolist()
    negative = {"negative_points": [[(other[0] + other[2]) / 2, (other[1] + other[3]) / 2]]}
    encoded = detector.encode(scene.image)
    found = detector.detect(encoded, boxes=[one], score_threshold=0)
    took = interleaved(
        {
            "encode": lambda: detector.encode(scene.image),
            "encode and answer": lambda: detector.detect(scene.image, boxes=[one], score_threshold=0),
            "a further box": lambda: detector.detect(encoded, boxes=[one, other], score_threshold=0),
            "a negative point": lambda: detector.detect(encoded, boxes=[one], score_threshold=0, **negative),
            "two names": lambda: detector.detect(encoded, text=["cat", "dog"], score_threshold=0),
            "threshold": lambda: found.filter(0.5),
        },
        repeats,
    )
    first = max(took["encode and answer"] - took["encode"], 1e-9)
    yield row("open an image: encode", "once an image", took["encode"])
    yield row("first answer: a box", "prompt and decode", first, "encode and answer", took["encode and answer"])
    for form in ("a further box", "a negative point", "two names"):
        yield row(f"further answer: {form}", "prompt and decode", took[form], "limit", ANSWER, goal=1.0)
    yield row("move the threshold", "no model", took["threshold"], "a further box", took["a further box"])
