"""`make lab` in a real browser: what a newcomer sees first, and what opening a notebook changes."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest
from browsing import PATIENCE, browser, jupyterlab, needs_browser

from helpers.paths import ROOT

pytestmark = [needs_browser,
              pytest.mark.skipif(not shutil.which("make"), reason="there is no make")]
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("0*.ipynb"))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A copy of the repository, served by the command of `make lab`, and a browser."""
    folder, copy = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(ROOT / "notebooks", copy / "notebooks")
    shutil.copytree(ROOT / "data" / "pictures", copy / "data" / "pictures")
    for name in ("README.md", "Makefile", "pyproject.toml", "environment.yml"):
        shutil.copyfile(ROOT / name, copy / name)
    # JupyterLab writes the version of its Python into a notebook, which no committed one can know.
    for name in NOTEBOOKS:
        path = copy / "notebooks" / name
        book = json.loads(path.read_text(encoding="utf-8"))
        book["metadata"]["language_info"]["version"] = ".".join(map(str, sys.version_info[:3]))
        path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    shown = subprocess.run(["make", "-n", "-o", ".venv/.installed", "lab"], cwd=copy, text=True,
                           capture_output=True, check=True, env=own).stdout  # also under make test
    _, *arguments = shown.strip().splitlines()[-1].split()
    assert arguments[:2] == ["-m", "jupyterlab"]
    command = [sys.executable, *arguments]
    with jupyterlab(command, folder, cwd=copy) as (address, token), browser() as chromium:
        starts = (folder / "runtime").glob("jpserver-*open.html")  # what a browser would open
        yield copy, address, token, "".join(path.read_text() for path in starts), chromium


def test_it_serves_the_whole_repository_and_opens_the_first_notebook(opened):
    _, address, token, start, _ = opened
    assert "/lab/tree/notebooks/01_explore_the_dataset.ipynb?token=" in start
    for name in ("README.md", "data/pictures/playground.png"):
        with urllib.request.urlopen(f"{address}/files/{name}?token={token}", timeout=60) as answer:
            assert answer.read() == (ROOT / name).read_bytes()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_that_is_only_opened_is_not_changed(opened, name):
    copy, address, token, _, chromium = opened
    before = (copy / "notebooks" / name).read_bytes()
    page = chromium.new_page(viewport={"width": 1366, "height": 768})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/lab/workspaces/{name[:2]}/tree/notebooks/{name}?token={token}")
    page.get_by_text("| Idle").first.wait_for()
    time.sleep(3)  # the kernel has answered by then; its metadata are written a moment later
    tabs = page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab")
    assert tabs.count() == 1 and "jp-mod-dirty" not in tabs.first.get_attribute("class")
    page.keyboard.press("Control+s")
    time.sleep(1)
    assert (copy / "notebooks" / name).read_bytes() == before
    page.close()
