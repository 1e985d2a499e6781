"""The playground in JupyterLab in a real browser: typed into, stepped through, and attacked.

The test starts its own JupyterLab and drives the machine's Chromium or Chrome with Playwright. To
take the README's pictures again:

    COUNTDOWN_PICTURES=data/pictures python -m pytest tests/test_browser.py
"""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from browsing import PATIENCE, browser, jupyterlab, needs_browser, playwright

from helpers import playground as pg
from helpers.paths import ROOT

pytestmark = needs_browser

PUZZLE = "4, 11, 8 -> 12"
GOOD = "<think>11 - 8 = 3</think>\n<answer>(11 - 8) * 4 = 12</answer>"
EVIL = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"
ODD = {  # completion: what the page then has to say
    "": "The completion is empty",
    f"<answer>{EVIL}</answer>": EVIL,
    "</pre></div><h1>mine</h1>": "</pre></div><h1>mine</h1>",
    GOOD.replace(" - 8)", " \u2212 8)"): "(U+2212, MINUS SIGN)",
    GOOD.replace("4 =", "\u0664 ="): "(U+0664, ARABIC-INDIC DIGIT FOUR)",
    GOOD.replace("4 =", "\0 ="): "‹U+0000›",
    "\u202e" + GOOD: "‹U+202E›",
    "x" * 1_000_000: "1,000,000 characters: the first 20,000 are shown",
}


def live_cells():
    """Return notebook 03's set-up cell and the one that opens the playground."""
    book = nbformat.read(ROOT / "notebooks" / "03_build_the_rewards.ipynb", as_version=4)
    cells = [cell.source for cell in book.cells if cell.cell_type == "code"]
    opens = [source for source in cells if re.search(r"^playground\(", source, re.MULTILINE)]
    assert len(opens) == 1, "notebook 03 opens the playground in one cell"
    return [cells[0], *opens]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a free port, with settings and folders of its own; its address and token."""
    folder = tmp_path_factory.mktemp("lab")
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in live_cells()],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    (folder / "books").mkdir()
    nbformat.write(book, folder / "books" / "playground.ipynb")
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder / 'books'}"]
    with jupyterlab(command, folder, env={"PYTHONPATH": str(ROOT)}) as (address, token):
        yield f"{address}/lab/tree/playground.ipynb?token={token}"


class Page:
    """What a reader sees of the playground, and does to it."""

    def __init__(self, page):
        self.page = page
        self.box = page.locator(".widget-textarea textarea")
        self.puzzle = page.locator(".widget-text input[type=text]").first
        self.verdict = page.locator("[data-part=verdict]")

    def read(self, what):
        return self.page.locator(what).all_inner_texts()

    def expect(self, what, texts):
        playwright.expect(self.page.locator(what)).to_have_text(texts)

    def expect_scores(self, form, equation):
        self.expect("[data-score]", [form, equation])

    def expect_advantages(self, rewards):
        self.expect("[data-part=advantage]", [f"{a:+.2f}" for a in pg.advantages(rewards)])

    def move(self, name, key, times):
        """Move a slider by its handle, with the keyboard."""
        handle = self.page.locator(".widget-slider", has_text=name).locator(".noUi-handle")
        handle.focus()
        for _ in range(times):
            handle.press(key)

    def picture(self, name):
        folder = os.environ.get("COUNTDOWN_PICTURES")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.locator(".jp-OutputArea-output .widget-vbox").first.screenshot(
                path=Path(folder) / f"{name}.png")

    def nothing_went_wrong(self):
        assert self.page.evaluate("window.ran") is None
        assert self.page.locator(
            "[data-part=verdict] :is(script, img, h1, a), [data-part=group] :is(script, img)"
        ).count() == 0
        for kind in ("stderr", "error"):
            assert self.read(f".jp-RenderedText[data-mime-type*={kind}]") == []


@pytest.fixture(scope="module")
def opened(lab, tmp_path_factory):
    """The notebook, opened and run by the menu; the playground is on the screen."""
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1100, "height": 1400})
        page.set_default_timeout(PATIENCE)
        asked = []
        page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
        page.goto(lab)
        page.get_by_text("| Idle").first.wait_for()  # what runs before that may be lost
        page.keyboard.press("Control+b")  # the list of files leaves its room to the notebook
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name=re.compile("^Run All Cells")).first.click()
        page.locator("[data-part=verdict] [data-score]").first.wait_for()
        yield Page(page)
        assert asked == []


@pytest.fixture
def page(opened):
    opened.puzzle.fill(PUZZLE)
    opened.puzzle.press("Enter")
    opened.box.fill("start")
    opened.expect_scores("0.0", "0.0")
    yield opened
    opened.nothing_went_wrong()


def test_scores_follow_each_key(page):
    page.box.fill("")
    page.box.press_sequentially(GOOD[:-1])
    page.expect_scores("0.0", "0.0")
    assert "there is no </answer>" in page.verdict.inner_text()
    page.box.press(">")
    page.expect_scores("1.0", "1.0")
    assert page.verdict.inner_text().count("nothing is missing") == 2
    page.expect("pre [data-part=number]", ["11b", "8c", "4a"])
    page.box.press_sequentially(" Done!")
    page.expect_scores("0.0", "1.0")
    page.expect("[data-part=verdict] li", ["after </answer> stands “ Done!”; nothing may"])


def test_sliders_move_the_advantages_and_the_buttons_step(page):
    puzzle, recorded = pg.TELLING[0], pg.recorded_completions()
    nums, target = pg.parse_puzzle(puzzle)
    page.puzzle.fill(puzzle)
    page.puzzle.press("Enter")
    wrong = ("<think>12 - 8 = 4, 4 * 11 = 44 yes</think>\n"
             "<answer>(12 - 8) * 11 * 11 = 44</answer> Done!")
    page.box.fill(wrong)
    page.expect("pre [data-part='wrong number']", ["11"])
    page.expect_scores("0.0", "0.0")
    found = [pg.explain(text, nums, target)
             for text in [*pg.group_of(recorded, puzzle).values(), wrong]]
    page.expect_advantages([x.format_score + x.equation_score for x in found])
    page.picture("playground")
    page.move("equation weight", "ArrowLeft", 8)
    page.expect_advantages([x.format_score + 0.2 * x.equation_score for x in found])
    page.picture("playground-weights")
    page.move("equation weight", "ArrowRight", 8)
    rows = recorded[recorded["puzzle"] == puzzle]["completion"].tolist()
    page.page.get_by_role("button", name="next").click()
    playwright.expect(page.box).to_have_value(rows[1])
    page.page.get_by_role("button", name="previous").click()
    playwright.expect(page.box).to_have_value(rows[0])
    assert "1 of 30: before training" in page.page.locator(".widget-vbox").first.inner_text()


@pytest.mark.parametrize("text", ODD, ids=lambda text: ascii(text[:30]))
def test_odd_completions_are_shown_as_text(page, text):
    page.box.fill(text)
    playwright.expect(page.verdict).to_contain_text(ODD[text])
    page.box.fill(GOOD)  # and it goes on working
    page.expect_scores("1.0", "1.0")


def test_a_lone_surrogate_does_not_stop_it(page):
    """The driver cannot type one, so a script puts it there, as a paste by another page would."""
    page.box.evaluate("""box => { box.value = "<answer>" + String.fromCharCode(0xd800) + "4 = 4";
                                  box.dispatchEvent(new Event("input", {bubbles: true})); }""")
    playwright.expect(page.verdict).to_contain_text("<answer>\ufffd4 = 4")
    playwright.expect(page.verdict).to_contain_text("half of a surrogate pair")
    page.box.fill(GOOD)
    page.expect_scores("1.0", "1.0")


@pytest.mark.parametrize(
    "text", ["", EVIL, "4, 11 \u2212> 12", "\u0664, 11, 8 -> 12", "x" * 1_000_000],
    ids=lambda text: ascii(text[:30]))
def test_odd_puzzles_get_a_message(page, text):
    page.puzzle.fill(text)
    page.puzzle.press("Enter")
    # while the page is redrawn the last puzzle's note may still stand beside it
    message = page.page.locator("[data-part=message]").filter(
        has_text="Write a puzzle as its numbers, an arrow")
    playwright.expect(message).to_have_count(1)
    playwright.expect(page.page.locator("[data-score]")).to_have_count(0)
    page.puzzle.fill(PUZZLE)
    page.puzzle.press("Enter")
    page.expect_scores("0.0", "0.0")
