"""Detections in the forms that other tools take; pictures in the forms that people have."""

from __future__ import annotations

import http.server
import io
import json
import threading

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib import font_manager
from PIL import Image
from tiny import TINY, seeded_model, squares

from trex2_mini import images
from trex2_mini.detections import Detection, Detections, top_detections
from trex2_mini.detector import Detector
from trex2_mini.plots import fonts_for, show_detections

BOX = [[5, 5, 30, 30]]


@pytest.fixture(scope="module")
def detector():
    return Detector(seeded_model(), TINY, "cpu")


@pytest.fixture
def found():
    boxes = np.array([[1, 2, 11, 22], [0, 0, 64, 64], [3, 3, 5.5, 6]], np.float32)
    scores = np.array([0.9, 0.75, 0.5], np.float32)
    return Detections(boxes, scores, np.array([1, 0, 1]), ["key", "<b>&", "none"], (19, 20))


def test_a_sequence(found):
    assert found[0] == Detection("<b>&", pytest.approx(0.9), (1, 2, 11, 22)) and len(list(found)) == 3
    assert [name for name, _, _ in found] == ["<b>&", "key", "<b>&"]
    assert found[1:].scores.tolist() == [0.75, 0.5] and found[found.labels == 0].boxes.shape == (1, 4)
    assert found.counts() == {"key": 1, "<b>&": 2, "none": 0}
    with pytest.raises(IndexError):
        found[3]


def test_other_tools(found, tmp_path):
    table = found.to_dataframe()
    assert list(table.columns) == ["name", "score", "x1", "y1", "x2", "y2"] and table.x2.tolist() == [11, 64, 5.5]
    assert list(table.name) == ["<b>&", "key", "<b>&"]
    theirs = pytest.importorskip("supervision").Detections
    ours = found.to_supervision()
    assert isinstance(ours, theirs) and ours.xyxy.tolist() == found.boxes.tolist() and list(ours.class_id) == [1, 0, 1]
    assert list(ours["class_name"]) == ["<b>&", "key", "<b>&"]
    first = found.to_coco(7)[0]
    assert (
        first["bbox"] == [1, 2, 10, 20]
        and first["area"] == 200
        and first["image_id"] == 7
        and first["category_id"] == 2
    )
    assert json.loads(found.save(tmp_path / "a.json").read_text())["detections"][1]["box"] == [0, 0, 64, 64]
    assert found.save(tmp_path / "a.csv").read_text().splitlines()[1].startswith("<b>&,0.9,1.0,2.0,11.0,22.0")
    with pytest.raises(ValueError, match=r"\.csv or \.json"):
        found.save(tmp_path / "a.png")
    empty = found[:0]
    assert empty.to_coco() == [] and len(empty.to_dataframe()) == len(empty.to_supervision()) == len(list(empty)) == 0


def test_crops_and_pages(found):
    image = squares(0).image
    crops = found.crops(image)
    assert [crop.shape for crop in crops] == [(20, 10, 3), (64, 64, 3), (3, 3, 3)]
    np.testing.assert_array_equal(crops[0], image[2:22, 1:11])
    page = found._repr_html_()
    assert "&lt;b&gt;&amp;" in page and "<b>" not in page and "19 of 20 queries used" in page
    assert not found[:1].filter(0.95) and Detections(*[found.boxes] * 2, found.labels, ["a", "b"]).full is False


@pytest.mark.parametrize("name", ["$x^2", "a_b $ c", "\\frac{", "$\\alpha$"])
def test_names_are_no_formulas(found, name):
    found.names = ["key", name, "none"]
    ax = found.plot(squares(0).image, title=name)
    ax.figure.canvas.draw()
    assert ax.get_title() == name and f"{name} 0.90" in [text.get_text() for text in ax.texts]
    plt.close(ax.figure)


def test_characters_without_a_font_are_said_once(monkeypatch):
    """Here only DejaVu Sans is installed, beside the font that draws an empty box for everything."""
    known = [
        entry for entry in font_manager.fontManager.ttflist if entry.name.startswith(("DejaVu Sans", "Last Resort"))
    ]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", known)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    fonts_for.cache_clear()
    assert fonts_for(frozenset("aé ж")) == ["DejaVu Sans"]
    with pytest.warns(UserWarning, match="no font of this machine has '甜龘'") as said:
        ax = show_detections(squares(0).image, Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), ["甜龘"]))
        show_detections(squares(0).image, Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), ["甜龘"]), ax)
    assert len(said) == 1
    fonts_for.cache_clear()
    plt.close(ax.figure)


def test_a_label_stands_in_its_box_where_no_room_is_above():
    image = squares(0).image
    boxes = np.array([[4, 0, 20, 20], [4, image.shape[0] / 2, 20, image.shape[0] - 1]])
    ax = show_detections(image, Detections(boxes, np.ones(2), np.zeros(2, int), ["square"]))
    assert [label.get_va() for label in ax.texts] == ["top", "bottom"]
    plt.close("all")


def test_a_list_of_pictures(detector):
    pictures = [squares(0).image, squares(1, (40, 50)).image]
    both = detector.detect(pictures, text="cat", score_threshold=0)
    for one, picture in zip(both, pictures):
        np.testing.assert_array_equal(one.boxes, detector.detect(picture, text="cat", score_threshold=0).boxes)
    assert detector.detect([], text="cat") == []
    with pytest.raises(ValueError, match="negative_boxes lie on one picture"):
        detector.detect(pictures, text="cat", negative_boxes=BOX)


def test_pictures_of_every_form(detector, tmp_path):
    array, file = squares(0).image, io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    Image.fromarray(array).save(path := tmp_path / "a.png")
    tensor = torch.from_numpy(array.copy())
    chw = tensor.permute(2, 0, 1)
    for source in (file.getvalue(), io.BytesIO(file.getvalue()), tensor, chw, chw.float() / 255, path.open("rb")):
        np.testing.assert_array_equal(images.load_image(source), array)
    for given in ([path], [file.getvalue()], [chw]):
        torch.testing.assert_close(detector.encode_batch(given).tokens, detector.encode(array).features.tokens)
    for bad in ([], str(path)):
        with pytest.raises(ValueError, match="list of at least one picture"):
            detector.encode_batch(bad)
    with pytest.raises(ValueError, match="the file is not a readable picture"):
        images.load_image(b"no picture")


def test_pictures_from_an_address(detector, monkeypatch):
    file = io.BytesIO()
    Image.fromarray(squares(0).image).save(file, "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(file.getvalue())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    try:
        np.testing.assert_array_equal(images.load_image(f"{place}/a.png"), squares(0).image)
        with pytest.raises(ValueError, match="404"):
            images.load_image(f"{place}/b.png")
        monkeypatch.setattr(images, "MOST_BYTES", 100)
        with pytest.raises(ValueError, match="larger than"):
            images.load_image(f"{place}/a.png")
    finally:
        server.shutdown()
    for address in ("ftp://host/a.png", "file:///etc/passwd"):
        with pytest.raises(ValueError, match="begins with http"):
            images.load_image(address)


def test_examples_by_points(detector):
    """Boxes and points of an example make one vector, as they do on the picture itself."""
    image = detector.encode(squares(0).image)
    bank = detector.embed({"coin": [(image, BOX, [[40, 40]])], "key": [(image, None, [[9, 9], [20, 20]])]})
    for name, places in {"coin": {"boxes": BOX, "points": [[40, 40]]}, "key": {"points": [[9, 9], [20, 20]]}}.items():
        own = {kind: {name: values} for kind, values in places.items()}
        one = detector.detect(
            image, prompts=type(bank)([name], bank.embeddings[[bank.names.index(name)]]), score_threshold=0
        )
        np.testing.assert_allclose(one.scores, detector.detect(image, **own, score_threshold=0).scores, atol=1e-6)


def test_one_box_whatever_its_name():
    """Two prompts' answers at one place: both stay, or the better one."""
    boxes, logits = (
        torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1]]]),
        torch.tensor([[[2.0, 1.0], [0.0, -1.0]]]),
    )
    each, best = (
        top_detections(logits, boxes, [(64, 64)], ["a", "b"], 10, 0.7, agnostic)[0] for agnostic in (False, True)
    )
    assert len(each) == 4 and best.labels.tolist() == [0, 0] and best.scores[0] == each.scores[0]


def test_queries_are_counted(detector):
    found = detector.detect(squares(0).image, text="cat", score_threshold=1e-6, class_agnostic_nms=True)
    assert found.queries == (20, 20) and found.full and "20 of 20 queries used" in str(found)
    assert detector.detect(squares(0).image, text="cat", score_threshold=0.99).full is False
