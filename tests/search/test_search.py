"""Search: the index on disk, the ranking, the page. The colours of tests/colours.py stand for the model's vectors."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import torch
from colours import ColourIndex, Colours, paint
from tiny import TINY, seeded_model

from trex2_mini.detector import Detector
from trex2_mini.prompt_bank import PromptBank
from trex2_mini.search import PhotoIndex, contact_sheet, measure, search
from trex2_mini.search.index import telling
from trex2_mini.search.measure import retrieval_scores


@pytest.fixture
def photos(tmp_path):
    for number in range(12):
        paint(tmp_path / f"{number:02d}.png", "green")
    paint(tmp_path / "deep" / "er" / "red.png", "red")
    paint(tmp_path / "both.png", "blue", "red")
    return tmp_path


def updated(photos, **options):
    index = ColourIndex(Colours(), photos, **options)
    index.update(progress=False)
    return index


def test_planted_pictures_come_first_whatever_is_asked(photos):
    index = updated(photos)
    example = photos / "12.png"
    paint(example, "red")
    by_box = {"image": example, "boxes": {"thing": [[4, 8, 20, 20]]}}
    by_point = {"image": example, "points": [[10, 10]]}
    bank = {"prompts": index.detector.ask(**by_box)}
    for asked in (
        {"text": "red"},
        by_box,
        by_point,
        bank,
        {"text": ["red"], "prompts": PromptBank(["red"], torch.eye(3)[:1])},
    ):
        hits = search(index, **asked, top=3, shortlist=2)
        assert {hit.path for hit in hits[:2]} == {photos / "deep/er/red.png", photos / "both.png"}
        assert hits[0].score > 0.9 and len(hits[0].detections) == 1  # the shortlist is as long as `top`
        assert hits[2].score < 0.1
        assert {hit.path for hit in search(index, **asked, top=2, shortlist=0)} == {hit.path for hit in hits[:2]}
    assert search(index, text="red, blue", every=True)[0].path == photos / "both.png"
    for shortlist in (30, 0):
        assert len(search(index, text="red, blue", every=True, shortlist=shortlist)[0].detections) == 2


def test_words_and_examples_of_one_name_are_averaged(photos):
    detector = Colours()
    both = detector.ask(photos / "00.png", "red", {"red": [[4, 8, 20, 20]]})
    assert both.names == ["red"] and both.embeddings.tolist() == [[0.5, 0.5, 0]]


@pytest.mark.parametrize(
    "asked",
    [{}, {"image": "00.png"}, {"boxes": [[1, 1, 9, 9]]}, {"text": "red", "top": 0}, {"text": "red", "shortlist": -1}],
)
def test_a_question_that_cannot_be_asked_says_so(photos, asked):
    with pytest.raises(ValueError, match=r"no prompt|image=|at least"):
        search(updated(photos), **asked)


def test_an_interrupted_index_goes_on(photos, monkeypatch):
    index, encode, seen = ColourIndex(Colours(), photos), Colours.encode, []

    def tired(self, image):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(1)
        return encode(self, image)

    monkeypatch.setattr(Colours, "encode", tired)
    with pytest.raises(KeyboardInterrupt):
        index.update(progress=False)
    with open(photos / ".trex2-search" / "pictures.jsonl", "a") as lines:
        lines.write('{"file": "cut sho')
    monkeypatch.setattr(Colours, "encode", encode)
    again = ColourIndex(Colours(), photos)
    assert len(again.files) == 5
    assert again.update(progress=False) == {"pictures": 14, "new": 9, "gone": 0, "unreadable": 0}
    assert again.update(progress=False)["new"] == 0
    assert search(again, text="red", top=1)[0].score > 0.9
    assert (photos / ".trex2-search" / "vectors.f16").stat().st_size == 14 * again.bytes_a_picture


def test_changed_and_gone_pictures_are_refreshed_and_their_rows_used_again(photos):
    updated(photos)
    os.remove(photos / "both.png")
    paint(photos / "03.png", "blue", size=(50, 64))
    paint(photos / "new.png", "blue")
    index = ColourIndex(Colours(), photos)
    assert index.update(progress=False) == {"pictures": 14, "new": 2, "gone": 1, "unreadable": 0}
    index = ColourIndex(Colours(), photos)  # as the disk has it
    assert {hit.path.name for hit in search(index, text="blue", top=2)} == {"03.png", "new.png"}
    assert [hit.path.name for hit in search(index, text="red", top=1)] == ["red.png"]
    assert (photos / ".trex2-search" / "vectors.f16").stat().st_size == 14 * index.bytes_a_picture
    assert index.update(progress=False)["new"] == 0


def test_an_index_of_other_weights_is_refused_with_the_remedy(photos):
    updated(photos)
    other = Colours()
    other.model.register_buffer("changed", torch.ones(1))
    for wrong in ({"detector": other}, {"detector": Colours(), "vectors": 3}):
        with pytest.raises(ValueError, match=r"other weights.*another folder"):
            ColourIndex(folder=photos, **wrong)
    assert updated(photos, where=photos / "elsewhere", vectors=3).files


def test_a_damaged_index_is_named(photos):
    updated(photos)
    (photos / ".trex2-search" / "vectors.f16").write_bytes(b"")
    with pytest.raises(ValueError, match=r"damaged.*remove this folder"):
        ColourIndex(Colours(), photos)


def test_unreadable_pictures_are_named_and_left_out(photos):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff none")
    index = updated(photos)
    assert list(index.unreadable) == ["broken.jpg"] and "broken.jpg" in index.unreadable["broken.jpg"]
    os.remove(photos / "both.png")  # after it was indexed
    assert [hit.path.name for hit in search(index, text="red", top=1)] == ["red.png"]
    assert set(index.unreadable) == {"broken.jpg", "both.png"}


def test_no_picture_and_no_folder_are_mistakes(tmp_path):
    with pytest.raises(ValueError, match="holds no picture"):
        updated(tmp_path)
    with pytest.raises(ValueError, match="expected a folder"):
        ColourIndex(Colours(), tmp_path / "none")
    paint(tmp_path / "a.png", "red")
    with pytest.raises(ValueError, match="empty"):
        search(ColourIndex(Colours(), tmp_path), text="red")


def test_no_path_leads_out_of_the_folder(photos, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "red.png"
    paint(outside, "red")
    (photos / "link.png").symlink_to(outside)
    (photos / "links").symlink_to(outside.parent)
    index = updated(photos)
    listed = photos / ".trex2-search" / "pictures.jsonl"
    lines = listed.read_text().splitlines()
    stray = json.loads(lines[0]) | {"file": f"../{outside.parent.name}/red.png"}
    listed.write_text("\n".join([*lines, json.dumps(stray)]) + "\n")
    for again in (index, updated(photos)):
        paths = [hit.path.resolve() for hit in search(again, text="red", top=30)]
        assert len(paths) == 14 and all(path.is_relative_to(photos.resolve()) for path in paths)


def test_the_page_escapes_names_and_needs_no_other_file(photos):
    paint(photos / "<b onclick=x>&.png", "red")
    page = contact_sheet(search(updated(photos), text="red", top=3), '<script>"words"')
    assert "<script>" not in page and "<b " not in page and "&lt;b onclick=x&gt;&amp;.png" in page
    assert all(source.startswith("data:image/jpeg") for source in re.findall(r'src="([^"]*)', page))
    assert page.count("<figure>") == 3
    assert "nothing was found" in contact_sheet([])


def test_the_chosen_vectors_answer_the_vocabulary_best():
    logits = torch.tensor([[5.0, -5, -5], [4, 4, -5], [-5, -5, 3], [4.5, 3.5, -5]])
    assert telling(logits, 2).tolist() == [1, 2]
    assert len(telling(logits, 9)) == 4


def test_the_index_alone_answers_as_the_decoder_does_where_it_keeps_all_queries(tmp_path):
    paint(tmp_path / "a.png", "red", "green")
    detector = Detector(seeded_model(), TINY)
    index = PhotoIndex(detector, tmp_path, vectors=TINY.model.num_queries + 3)
    index.vocabulary = detector.ask(text="red, dog").embeddings
    index.update(progress=False)
    decoded, kept = (search(index, text="red, dog", top=1, shortlist=n, score_threshold=0)[0] for n in (1, 0))
    assert kept.score == pytest.approx(decoded.score, abs=2e-3)
    assert np.abs(kept.detections.boxes[0] - decoded.detections.boxes[0]).max() < 0.1
    assert kept.detections.names == ["red", "dog"]


def test_retrieval_scores_of_a_ranking_by_hand():
    right = np.array([False, True, False, True, False, False])
    scores = retrieval_scores(np.array([0.9, 0.8, 0.1, 0.7, 0.2, 0.3]), right)  # right at ranks 2 and 3
    assert scores == {"AP": pytest.approx((1 / 2 + 2 / 3) / 2), "R@1": 0, "R@5": 1, "R@10": 1}


def test_times_are_of_the_folder_and_of_as_many_pictures_as_are_simulated(photos, monkeypatch):
    monkeypatch.setattr(measure, "PhotoIndex", ColourIndex)
    words = ["red", "green", "blue"]
    times = measure.time_search(Colours(), photos, words, simulated=[500], progress=False)
    assert times["pictures"] == 14 and list(times["simulated"]) == ["500"] and not (photos / ".trex2-search").exists()
    assert all(times[key] > 0 for key in ("indexing", "question", "index_alone"))
    assert times["simulated"]["500"]["question"] > 0
