"""Notebook 12 as a person uses it: a real JupyterLab in headless Chromium; box, negative point, threshold, bank, kernel
restart.

The pictures of each step go to runs/browser/, where CI keeps them. Skipped, saying why, where Chromium or playwright is
missing. The README's animation is drawn by
    TREX2_RECORD=data/studio.webp python -m pytest tests/interactive/test_browser.py -k record
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image
from skimage import data
from torchvision.ops import box_iou

from trex2_mini.paths import REPOSITORY, data_root
from trex2_mini.prompt_bank import PromptBank

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium (or Google Chrome)")

NOTEBOOK = REPOSITORY / "notebooks" / "12_interactive_prompting.ipynb"
SMALL = {"user_scenes": 1}  # its parameters, for speed
PICTURES = REPOSITORY / "runs" / "browser"
QUIET = "--disable-background-networking --disable-component-update --disable-sync --disable-quic --no-first-run"
ARGUMENTS = [
    *QUIET.split(),
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
]  # containers: root, no GPU, little memory there
# four of a kind, found with scores of 0.66 to 0.41, and what nano-emoji takes for a fifth, 0.34
PICTURE, KIND, LOOKS_LIKE_IT = "00010.jpg", "pill", "bandage"
PATIENCE = 300  # seconds for any one step: two busy cores are slow
CODE = "jupyterapp.shell.currentWidget.model.sharedModel.cells.filter(cell => cell.cell_type === 'code')"


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """JupyterLab over a copy of the notebook without its outputs: (address, folder)."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = parameterize_notebook(load_notebook_node(str(NOTEBOOK)), {"output_dir": str(folder / "out"), **SMALL})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / NOTEBOOK.name)
    config = folder / ".jupyter"  # nobody's settings
    quiet = config / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    places = {"CONFIG_DIR": config, "RUNTIME_DIR": config / "runtime", "PREFER_ENV_PATH": 1}
    own = {f"JUPYTER_{key}": str(value) for key, value in places.items()}
    own |= {f"JUPYTERLAB_{key.upper()}_DIR": str(config / key) for key in ("settings", "workspaces")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    command += ["--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
        try:
            _until_it_answers(address, server, folder / "server.log")
            yield address, folder
        finally:
            server.terminate()
            server.wait()


def _until_it_answers(address: str, server: subprocess.Popen, log: Path) -> None:
    start = time.monotonic()
    while True:
        try:
            return urllib.request.urlopen(f"{address}/api", timeout=5).close()
        except OSError:
            if server.poll() is not None or time.monotonic() - start > PATIENCE:
                raise RuntimeError(f"JupyterLab does not answer:\n{log.read_text()}") from None
            time.sleep(0.2)


class Person:
    """Somebody before the screen, with the notebook open."""

    def __init__(self, page, address: str, notebook: str = NOTEBOOK.name):
        self.page, self.errors = page, []
        page.set_default_timeout(1000 * PATIENCE)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(f"{address}/lab/tree/{notebook}")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.until_idle()

    def until_idle(self) -> None:
        self.page.wait_for_function(
            "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
        )

    def menu(self, name: str, entry: str) -> None:
        self.page.get_by_role("menuitem", name=name, exact=True).click()
        self.page.get_by_role("menuitem", name=re.compile(f"^{entry}")).first.click()

    def run(self, below: str | None = None) -> None:
        """Every cell, or those above the section `below`; and no error."""
        if below is None:
            self.menu("Run", "Run All Cells$")
        else:
            self.page.locator(".jp-MarkdownCell", has=self.page.get_by_role("heading", name=below)).click()
            self.menu("Run", "Run All Above Selected Cell")
        self.page.wait_for_function(
            f"({CODE}).at(-1).execution_count" if below is None else f"({CODE}).at(0).execution_count"
        )
        self.until_idle()
        wrong = self.page.evaluate(f"({CODE}).flatMap(cell => cell.outputs).filter(out => out.output_type === 'error')")
        assert not wrong, wrong

    def restart(self) -> None:
        self.menu("Kernel", "Restart Kernel and Clear Outputs")
        self.page.get_by_role("button", name="Confirm Kernel Restart").click()
        self.page.wait_for_function(f"({CODE}).every(cell => !cell.execution_count && !cell.outputs.length)")
        self.until_idle()

    def look(self, name: str) -> None:
        """Keep a picture of the screen, the studio at its top."""
        self.studio.evaluate("studio => studio.scrollIntoView({block: 'start'})")
        self.page.screenshot(path=PICTURES / f"{name}.png")

    @property
    def studio(self):
        return self.page.locator(".trex-studio").first

    def find(self, selector: str):
        return self.studio.locator(selector)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the image is on the screen."""
        own = self.find(".trex-stage").evaluate(
            "(svg, [x, y]) => { const p = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM()); return [p.x, p.y]; }",
            [x, y],
        )
        return own[0], own[1]

    def draw(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """A box by the mouse, in pixels of the image."""
        self.find(".trex-stage").scroll_into_view_if_needed()
        self.page.mouse.move(*self.place(x1, y1))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(x2, y2), steps=8)
        self.page.mouse.up()

    def pull(self, handle, by: float) -> None:
        """A slider's handle by the mouse, so many pixels to the right."""
        own = handle.bounding_box()
        x, y = own["x"] + own["width"] / 2, own["y"] + own["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + by, y, steps=5)
        self.page.mouse.up()

    def found(self) -> int:
        return self.find("g.trex-detection").count()

    def hits(self, box: list[float]) -> int:
        """How many detections overlap a box by an IoU of at least 0.5."""
        read = "all => all.map(r => ['x', 'y', 'width', 'height'].map(key => Number(r.getAttribute(key))))"
        shown = [[x, y, x + w, y + h] for x, y, w, h in self.find("g.trex-detection rect").evaluate_all(read)]
        return int((box_iou(torch.tensor([box]), torch.tensor(shown).reshape(-1, 4)) >= 0.5).sum())


@pytest.fixture(scope="module")
def person(lab) -> Iterator[Person]:
    address, _ = lab
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        try:
            yield Person(page, address)
        finally:
            page.screenshot(path=PICTURES / "last.png")  # of a failure, too
            browser.close()


def until(holds, what: str, patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, f"waited {patience} s for: {what}"
        time.sleep(0.1)


def saved(folder: Path) -> dict:
    """The autosave file, and the work on the picture that is open."""
    (path,) = folder.rglob("studio.json")
    everything = json.loads(path.read_text())
    return everything | {"open": everything["work"][everything["current"]]}


def boxes_of(kind: str) -> list[list[float]]:
    """The boxes of a kind on PICTURE, xyxy, the largest first."""
    coco = json.loads((data_root() / "emoji-val" / "annotations.json").read_text())
    image = next(image["id"] for image in coco["images"] if image["file_name"] == PICTURE)
    category = next(category["id"] for category in coco["categories"] if category["name"] == kind)
    own = [a["bbox"] for a in coco["annotations"] if (a["image_id"], a["category_id"]) == (image, category)]
    return sorted(([x, y, x + w, y + h] for x, y, w, h in own), key=lambda b: (b[0] - b[2]) * (b[3] - b[1]))


@pytest.mark.slow
def test_draw_look_refine_keep(lab, person):
    _, folder = lab
    find, page = person.find, person.page
    person.run()
    find(".trex-studio-image select").select_option(label=PICTURE)
    until(lambda: saved(folder)["current"] == PICTURE, "the picture to change")
    person.look("1 opened")

    # draw: a category, a box by the mouse
    assert person.found() == 0
    boxes, (other,) = boxes_of(KIND), boxes_of(LOOKS_LIKE_IT)
    find(".trex-new-category").fill(KIND)
    find(".trex-add-category").click()
    person.draw(*boxes[0])
    until(lambda: all(map(person.hits, boxes)), "all of its kind to be found")
    (prompt,) = saved(folder)["open"]["prompts"]
    assert (prompt["category"], prompt["negative"]) == (KIND, False)
    assert prompt["xyxy"] == pytest.approx(boxes[0], abs=2)
    assert person.hits(other) == 1, "there is no false alarm to refine"
    person.look("2 a box drawn")

    # refine: a negative point on what is not meant takes it away, and from the others some score: a lower threshold
    # shows them all
    page.keyboard.press("n")
    page.mouse.click(*person.place((other[0] + other[2]) / 2, (other[1] + other[3]) / 2))
    until(lambda: "1 negative" in find(".trex-studio-timing").inner_text(), "the second answer")
    until(lambda: person.hits(other) == 0, "the false alarm to go")
    assert find("g.trex-prompt[data-negative=true][data-kind=point]").count() == 1
    person.look("3 a negative point")
    person.pull(find(".trex-studio-threshold .noUi-handle"), -20)
    until(lambda: "threshold moved" in find(".trex-studio-timing").inner_text(), "the threshold to move")
    until(lambda: all(map(person.hits, boxes)), "all of its kind to be found again")
    assert person.hits(other) == 0
    person.look("4 a lower threshold")

    # keep: a bank; the kernel dies; everything is there again
    find("button.trex-studio-collect").click()
    until(lambda: saved(folder)["examples"], "the example")
    find(".trex-studio-bank-path input").fill(str(folder / "kept.safetensors"))
    find("button.trex-studio-save-bank").click()
    until(lambda: "wrote kept.safetensors" in find(".trex-studio-message").inner_text(), "the bank")
    bank = PromptBank.load(folder / "kept.safetensors")
    assert bank.names == [KIND] and bank.embeddings.isfinite().all()
    person.look("5 a bank saved")
    last, shown = saved(folder), person.found()
    person.restart()
    assert find("g.trex-prompt").count() == 0
    person.run(below="3. Rounds")
    until(lambda: find("g.trex-prompt").count() == 2, "the prompts to be there again")
    until(lambda: person.found() == shown, "the same detections")
    person.look("6 after a restart")
    assert saved(folder) == last and not person.errors


RECORD = os.environ.get("TREX2_RECORD")
EXAMPLE, LARGE = [134, 110, 173, 145], (335, 44)  # coins, on the photograph that comes with scikit-image
POINTER = """() => { const dot = document.createElement('div');
dot.style = 'position:fixed; width:14px; height:14px; border-radius:50%; background:#e0218acc; z-index:9999';
dot.style.pointerEvents = 'none';
document.body.append(dot);
const follow = event => { dot.style.left = `${event.clientX - 7}px`; dot.style.top = `${event.clientY - 7}px`; };
document.addEventListener('mousemove', follow, true); }"""


@pytest.mark.slow
@pytest.mark.skipif(not RECORD, reason="TREX2_RECORD=FILE.webp records the README's animation")
def test_record(lab):
    """A box, its answer, the threshold, a negative; then Chinese names and the search tab, as pictures."""
    address, folder = lab
    source = "from trex2_mini import Detector\nfrom trex2_mini.interactive.studio import PromptStudio\n"
    source += "PromptStudio(Detector.load('nano-photo'), 'album', ['coin'])"
    (folder / "album").mkdir()
    Image.fromarray(data.coins()).save(folder / "album" / "a coins.png")  # the first to be shown
    for name in ("coffee", "chelsea", "rocket", "astronaut"):
        Image.fromarray(getattr(data, name)()).save(folder / "album" / f"{name}.jpg")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=[new_code_cell(source)], metadata=kernel), folder / "studio.ipynb")
    PICTURES.mkdir(parents=True, exist_ok=True)
    frames: list[tuple[Image.Image, int]] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        person = Person(page := browser.new_page(viewport={"width": 1000, "height": 1150}), address, "studio.ipynb")
        page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
        person.run()
        page.evaluate(POINTER)
        person.studio.evaluate("studio => studio.scrollIntoView({block: 'start'})")

        def frame(milliseconds: int) -> None:
            top, end = person.studio.bounding_box(), person.find(".trex-studio-timing").bounding_box()
            clip = {key: top[key] for key in ("x", "y", "width")} | {"height": end["y"] + end["height"] - top["y"]}
            picture = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
            picture = picture.resize((900, round(900 * picture.height / picture.width)))
            frames.append((picture.crop((0, 0, *frames[0][0].size)) if frames else picture, milliseconds))

        def drag(start, end, steps: int) -> None:
            page.mouse.move(*start)
            page.mouse.down()
            for share in np.linspace(0, 1, steps + 1)[1:]:
                page.mouse.move(*(a + share * (b - a) for a, b in zip(start, end)))
                frame(120)
            page.mouse.up()

        frame(1200)
        drag(person.place(*EXAMPLE[:2]), person.place(*EXAMPLE[2:]), 6)
        until(lambda: "round 1" in person.find(".trex-studio-timing").inner_text(), "the first answer")
        frame(2500)
        own = person.find(".trex-studio-threshold .noUi-handle").bounding_box()
        handle = own["x"] + own["width"] / 2, own["y"] + own["height"] / 2
        drag(handle, (handle[0] - 30, handle[1]), 6)
        frame(2000)
        person.find(".trex-sign").click()
        frame(700)
        page.mouse.click(*person.place(*LARGE))
        until(lambda: "1 negative" in person.find(".trex-studio-timing").inner_text(), "the second answer")
        frame(3500)
        first, *more = (picture for picture, _ in frames)
        times = [milliseconds for _, milliseconds in frames]
        first.save(RECORD, save_all=True, append_images=more, duration=times, loop=0, quality=70)
        page.screenshot(path=PICTURES / "record.png")

        # names of any script, and the search tab
        person.find(".trex-sign").click()
        person.find(".trex-new-category").fill("硬币")
        person.find(".trex-add-category").click()
        person.draw(*EXAMPLE)
        until(lambda: "硬币" in person.find(".trex-studio-counts").inner_text(), "detections with a Chinese name")
        person.look("Chinese names")
        page.get_by_text("Find this in a folder").click()
        person.find(".trex-studio-search-folder input").fill(str(folder / "album"))
        person.find(".trex-studio-search-folder input").press("Tab")
        person.find("button.trex-studio-search").click()
        until(lambda: "newly indexed" in person.find(".trex-studio-message").inner_text(), "the answer of the search")
        person.find(".trex-studio-search-found").scroll_into_view_if_needed()
        page.screenshot(path=PICTURES / "search tab.png")
        browser.close()
    assert Path(RECORD).stat().st_size < 3_000_000 and len(frames) > 10 and not person.errors
