"""What the notebooks share: tables, exercises, the judge, the figure of the model."""

import json
import xml.etree.ElementTree as ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
from architecture import architecture

from trex2_mini.detector import Detections
from trex2_mini.paths import REPOSITORY
from trex2_mini.teaching import (
    HERE,
    MARKED,
    begin,
    figure,
    figure_format,
    gallery,
    judge,
    paper,
    table,
    why_wrong,
    write_metrics,
)


def test_tables_show_no_index_and_export():
    shown = table(["name", "AP"], [["a", 1.5], ["b", 2.0]])
    assert "<th>name</th>" in shown._repr_html_() and "<th>0</th>" not in shown._repr_html_()
    assert shown.sort_values("AP", ascending=False).iloc[0]["name"] == "b"
    assert list(paper(1, ["method", "coco_val_ap"]).columns) == ["method", "coco_val_ap"]


def test_the_judge_gives_an_object_to_the_first_that_claims_it():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]], np.float32)
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]], np.float32)
    right, hit = judge(boxes, truth)
    assert right.tolist() == [True, False, True] and hit.tolist() == [True, True, False]
    found = Detections(boxes, np.array([0.9, 0.8, 0.7]), np.array([0, 0, 1]), ["cat", "dog"])
    right, hit = judge(found, truth, ["cat", "cat", "dog"])
    assert right.tolist() == [True, False, False] and hit.tolist() == [True, False, False]
    assert judge(boxes[:0], truth)[1].sum() == 0 and len(judge(boxes, truth[:0])[0]) == 3


def test_a_wrong_answer_lies_on_something():
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32)
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [50, 50, 60, 60], [5, 0, 15, 10]]
    found = Detections(np.array(boxes, np.float32), np.linspace(0.9, 0.5, 5), np.array([0, 0, 0, 1, 1]), ["cat", "dog"])
    twice, another, nothing, badly = "the object itself", "another thing", "background", "background"
    assert why_wrong(found, truth, ["cat", "dog"]) == [twice, another, nothing, badly]
    assert why_wrong(found.filter(1.0), truth, ["cat", "dog"]) == []


def test_a_gallery_gives_the_pictures_of_a_row_one_height():
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, int), ["cat"])
    sizes = [(20, 40), (20, 20), (30, 30), (30, 60)]
    panels = [{"image": np.zeros((*size, 3), np.uint8), "detections": none, "title": str(size)} for size in sizes]
    drawn = gallery(panels, rows=2, width=6)
    drawn.canvas.draw()
    axes = [ax for part in drawn.subfigs for ax in part.axes]
    heights = [ax.get_position().height * part.bbox.height for part in drawn.subfigs for ax in part.axes]
    assert [ax.get_title() for ax in axes] == [str(size) for size in sizes]
    assert np.isclose(heights[0], heights[1], rtol=0.02) and np.isclose(heights[2], heights[3], rtol=0.02)


def test_begin_makes_the_folder_and_metrics_say_their_code(tmp_path):
    output = begin("04_image_encoder", str(tmp_path / "new"))
    write_metrics(output, {"AP": np.float32(0.5)})
    written = json.loads((output / "metrics.json").read_text())
    assert written["AP"] == 0.5 and "versions" in written


def test_plots_are_png_and_pictures_jpeg():
    plot, (left, right) = plt.subplots(1, 2)
    left.imshow(np.zeros((4, 4)))
    assert figure_format(plot) == "png"
    right.imshow(np.zeros((4, 4, 3)))
    assert figure_format(plot) == "jpeg"
    plt.close(plot)


def test_the_figure_marks_what_a_notebook_is_about():
    ElementTree.fromstring(figure(("text",)))
    assert MARKED not in figure() and figure(("text", "names")).count(MARKED) == 2
    notebooks = {path.name[:2] for path in (REPOSITORY / "notebooks").glob("*.ipynb")}
    assert set(HERE) <= notebooks and all(figure(own) for own in HERE.values())
    with pytest.raises(ValueError, match="no part 'no such part'"):
        figure(("no such part",))


def test_the_committed_figure_is_the_generated_one():
    assert figure() == architecture()
