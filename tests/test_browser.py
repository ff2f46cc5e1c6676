"""Notebook 12 as a person uses it: a real JupyterLab in headless Chromium; box, negative point, threshold, bank, kernel restart.

The pictures of each step go to runs/browser/, where CI keeps them. Skipped, saying why, where Chromium or playwright is missing.
"""

from __future__ import annotations

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
import pytest

from trex2_mini.detector import PromptBank
from trex2_mini.paths import REPOSITORY

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium (or Google Chrome)")

NOTEBOOK = next((REPOSITORY / "notebooks").glob("12_*.ipynb"))
PICTURES = REPOSITORY / "runs" / "browser"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]
PATIENCE = 240  # seconds for any one step: two busy cores are slow
CODE = "jupyterapp.shell.currentWidget.model.sharedModel.cells.filter(cell => cell.cell_type === 'code')"


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """JupyterLab over a copy of the notebook without its outputs: (address, folder)."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
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

    def __init__(self, page, address: str):
        self.page, self.errors = page, []
        page.set_default_timeout(1000 * PATIENCE)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(f"{address}/lab/tree/{NOTEBOOK.name}")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.until_idle()

    def until_idle(self) -> None:
        self.page.wait_for_function(
            "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
        )

    def menu(self, name: str, entry: str) -> None:
        self.page.get_by_role("menuitem", name=name, exact=True).click()
        self.page.get_by_role("menuitem", name=entry).first.click()

    def run_all(self) -> None:
        """Every cell, and no error."""
        self.menu("Run", re.compile("^Run All Cells$"))
        self.page.wait_for_function(f"{CODE}.every(cell => cell.execution_count)")
        self.until_idle()
        wrong = self.page.evaluate(f"{CODE}.flatMap(cell => cell.outputs).filter(output => output.output_type === 'error')")
        assert not wrong, wrong

    def restart(self) -> None:
        self.menu("Kernel", re.compile("^Restart Kernel and Clear Outputs"))
        self.page.get_by_role("button", name="Restart").click()
        self.page.wait_for_function(f"{CODE}.every(cell => !cell.execution_count && !cell.outputs.length)")
        self.until_idle()

    def look(self, name: str) -> None:
        """Keep a picture of the studio."""
        self.studio.screenshot(path=PICTURES / f"{name}.png")

    @property
    def studio(self):
        return self.page.locator(".trex-studio").last

    def find(self, selector: str):
        return self.studio.locator(selector)
