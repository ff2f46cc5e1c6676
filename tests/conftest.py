"""What every test shares: pictures are drawn without a window; at the end stands what each notebook took."""

import json

import matplotlib
import pytest
from PIL import Image
from tiny import NAMES, squares

matplotlib.use("Agg")


def pytest_terminal_summary(terminalreporter):
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, [])]
    took = {
        r.nodeid.removesuffix("::"): r.duration
        for r in reports
        if r.when == "call" and r.nodeid.startswith("notebooks")
    }
    if took:
        terminalreporter.section(f"notebooks: {sum(took.values()):.0f} s")
        for name, seconds in sorted(took.items()):
            terminalreporter.write_line(f"{seconds:6.1f} s  {name}")


@pytest.fixture(scope="session")
def squares_set(tmp_path_factory):
    """Four pictures of squares as a folder in COCO format."""
    folder = tmp_path_factory.mktemp("squares")
    (folder / "images").mkdir()
    coco = {"images": [], "annotations": [], "categories": [{"id": i + 1, "name": n} for i, n in enumerate(NAMES)]}
    for index in range(4):
        sample = squares(index)
        Image.fromarray(sample.image).save(folder / "images" / f"{index}.png")
        coco["images"].append({"id": index + 1, "file_name": f"{index}.png", "width": 64, "height": 64})
        for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist()):
            number = len(coco["annotations"]) + 1
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            coco["annotations"].append({"id": number, "image_id": index + 1, "category_id": label + 1, **box})
    (folder / "annotations.json").write_text(json.dumps(coco))
    return folder
