"""The playground and the talk in JupyterLab in a real browser: typed into, read, and attacked.

The test starts its own JupyterLab and drives the machine's Chromium or Chrome with Playwright, in
the window of a small laptop. To take the README's picture again:

    COUNTDOWN_PICTURES=data/pictures python -m pytest tests/test_browser.py
"""

import json
import os
import re
import statistics
import sys
from pathlib import Path

import nbformat
import pytest
from browsing import (
    PATIENCE,
    browser,
    choose_theme,
    jupyterlab,
    needs_browser,
    playwright,
    run_all,
)

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


TALK = """import torch
from helpers import profiles
from helpers.models import load_model
from helpers.talk import talk

torch.set_num_threads(1)
(before, tokenizer), (model, _) = load_model(profiles.CPU), load_model(profiles.CPU)
with torch.no_grad():  # as if it had been trained
    model.model.layers[2].mlp.down_proj.weight *= 1.5
talk(model, tokenizer, profiles.CPU, before=before)"""


TRAIN = ["""import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from helpers import profiles
from helpers.dataset import load_split
from helpers.progress import Progress
from helpers.runs import open_run
from helpers.training import MetricsLog, prompt_dataset, train_or_resume
from lab.record import REWARDS, make_config, make_model, make_trainer

torch.set_num_threads(1)
profile = replace(profiles.CPU_SHORT, steps=60, save_every=5, prompts_per_step=2, group_size=4,
                  micro_batch=8, max_completion_length=24)
run = open_run(profile, folder=Path(tempfile.mkdtemp()) / "run")
model, tokenizer = make_model(profile)
trainer = make_trainer(model, tokenizer, make_config(profile, run), REWARDS,
                       prompt_dataset(load_split("cpu", "train").head(200)),
                       [MetricsLog(run), Progress(run)])""", "train_or_resume(trainer, run)"]


def live_cells():
    """Return notebook 03's set-up cell and the one that opens the playground."""
    book = nbformat.read(ROOT / "notebooks" / "03_build_the_rewards.ipynb", as_version=4)
    cells = [cell.source for cell in book.cells if cell.cell_type == "code"]
    opens = [source for source in cells if re.search(r"^playground\(", source, re.MULTILINE)]
    assert len(opens) == 1, "notebook 03 opens the playground in one cell"
    return [cells[0], *opens]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a free port, with settings and folders of its own; its books, and addresses."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "books").mkdir()
    for name, sources in (("playground", live_cells()), ("talk", [live_cells()[0], TALK]),
                          ("train", [live_cells()[0], *TRAIN])):
        book = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in sources],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
        nbformat.write(book, folder / "books" / f"{name}.ipynb")
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder / 'books'}"]
    with jupyterlab(command, folder, env={"PYTHONPATH": str(ROOT)}) as (address, token):
        yield folder / "books", lambda name: f"{address}/lab/tree/{name}?token={token}&reset"


LIVE = ".jp-OutputArea-output > .widget-vbox"
# Each text that can be seen in an element, with its contrast to what lies behind it, as WCAG 2 has
# it; and the letters that do not stand on their number's ground.
CONTRASTS = """root => {
  const light = c => { const [r, g, b] = c.map(x => x / 255).map(
    x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const read = c => c.match(/[0-9.]+/g).map(Number);
  const found = [], texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node; (node = texts.nextNode());) {
    const own = node.parentElement, box = own.getBoundingClientRect();
    if (!node.textContent.trim() || !box.height || own.closest("style, :disabled")) continue;
    let ground = own;
    while ((read(getComputedStyle(ground).backgroundColor)[3] ?? 1) < 1)
      ground = ground.parentElement;
    const [a, b] = [[own, "color"], [ground, "backgroundColor"]].map(
      ([element, name]) => light(read(getComputedStyle(element)[name]).slice(0, 3)));
    let contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (own.tagName === "SUB" && box.bottom > own.parentElement.getBoundingClientRect().bottom)
      contrast = 0;
    found.push([node.textContent.trim().slice(0, 30), contrast]);
  }
  return found;
}"""
# From a key to the verdict on it, in milliseconds.
A_KEY = """(box, verdict) => new Promise(done => {
  const start = performance.now();
  new MutationObserver((_, watch) => { watch.disconnect(); done(performance.now() - start); })
    .observe(document.querySelector(verdict), {childList: true, subtree: true});
  box.value += "x";
  box.dispatchEvent(new Event("input", {bubbles: true}));
})"""


class Page:
    """What a reader sees of the playground, and does to it."""

    def __init__(self, page):
        self.page = page
        self.live = page.locator(LIVE)
        self.box = self.live.locator("textarea")
        self.puzzle = self.live.locator("input[type=text]").first
        self.verdict = self.live.locator("[data-part=verdict]")

    def read(self, what):
        return self.page.locator(what).all_inner_texts()

    def expect(self, what, texts):
        playwright.expect(self.live.locator(what)).to_have_text(texts)

    def expect_scores(self, form, equation):
        self.expect("[data-score]", [form, equation])

    def expect_advantages(self, rewards):
        self.expect("[data-part=advantage]", [f"{a:+.2f}" for a in pg.advantages(rewards)])

    def expect_text(self, text, label=None):
        playwright.expect(self.box).to_have_value(text)
        if label:
            self.expect(".widget-textarea label", [f"completion ({label})"])

    def press(self, name):
        self.live.get_by_role("button", name=name, exact=True).click()

    def move(self, name, key, times):
        """Move a slider by its handle, with the keyboard."""
        handle = self.live.get_by_role("slider", name=name, exact=True)
        handle.focus()
        for _ in range(times):
            handle.press(key)

    def picture(self, name):
        folder = os.environ.get("COUNTDOWN_PICTURES")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.live.screenshot(path=Path(folder) / f"{name}.png")

    def nothing_went_wrong(self):
        assert self.page.evaluate("window.ran") is None
        assert self.page.locator(
            "[data-part=verdict] :is(script, img, h1, a), [data-part=group] :is(script, img)"
        ).count() == 0
        for kind in ("stderr", "error"):
            assert self.read(f".jp-RenderedText[data-mime-type*={kind}]") == []


@pytest.fixture(scope="module")
def opened(lab):
    """The notebook, opened and run by the menu; the playground is on the screen."""
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1366, "height": 768})
        page.set_default_timeout(PATIENCE)
        asked = []
        page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
        page.goto(lab[1]("playground.ipynb"))
        run_all(page)
        page.locator(f"{LIVE} [data-score]").first.wait_for()
        yield Page(page)
        assert asked == []


@pytest.fixture
def page(opened):
    opened.press("right")
    opened.expect_text(pg.RIGHT)
    opened.puzzle.fill(PUZZLE)
    opened.expect_text("")
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


def test_a_key_is_answered_at_once(page):
    page.box.fill(GOOD)
    page.expect_scores("1.0", "1.0")
    took = [page.box.evaluate(A_KEY, f"{LIVE} .widget-html:has([data-part=verdict])")
            for _ in range(15)]
    assert statistics.median(took) < 250, took  # 60 on a busy machine


def test_the_first_task(page):
    page.press("right")
    page.expect_scores("1.0", "1.0")
    assert "Try: delete the newline between </think> and <answer>" in page.live.inner_text()
    page.box.press("Control+Home")
    page.box.press("End")
    page.box.press("Delete")
    page.expect_text(pg.RIGHT.replace("\n", ""))
    page.expect_scores("0.0", "1.0")
    page.expect("[data-part=verdict] li", ["between </think> and <answer> there is no newline"])


def test_sliders_move_the_advantages(page):
    puzzle, recorded = pg.TELLING[0], pg.recorded_completions()
    nums, target = pg.parse_puzzle(puzzle)
    page.puzzle.fill(puzzle)
    page.expect_text(pg.RIGHT, "example: right")
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
    page.move("equation weight", "ArrowRight", 8)
    page.expect_advantages([x.format_score + x.equation_score for x in found])


def test_what_was_typed_survives_stepping(page):
    page.puzzle.fill(pg.TELLING[1])
    rows = pg.recorded_completions().query("puzzle == @pg.TELLING[1]")["completion"].tolist()
    page.expect_text(rows[0], "1 of 30: before training, temperature 1, run cpu-seed0")
    page.box.fill("mine, typed")
    playwright.expect(page.verdict).to_contain_text("mine, typed")
    page.press("next ▶")
    page.expect_text(rows[0])
    page.press("next ▶")
    page.expect_text(rows[1], "2 of 30: before training, temperature 1, run cpu-seed1")
    page.press("yours")
    page.expect_text("mine, typed")
    assert "completion (yours" in page.live.inner_text()
    page.live.get_by_role("combobox", name="recorded").select_option(pg.TELLING[0])
    page.expect_text(pg.RIGHT, "example: right")
    playwright.expect(page.puzzle).to_have_value(pg.TELLING[0])
    page.press("yours")
    page.expect_text("mine, typed")


def test_everything_has_a_name_and_one_tab_reaches_it(page):
    for role, name in (("slider", "format weight"), ("slider", "equation weight"),
                       ("textbox", "puzzle"), ("combobox", "recorded"), ("button", "yours"),
                       *(("button", name) for name in pg.PRESETS)):
        assert page.live.get_by_role(role, name=name, exact=True).count() == 1, name
    assert page.live.get_by_role("textbox", name=re.compile(r"^completion \(yours")).count() == 1
    page.page.locator(".jp-Cell:has(.widget-vbox) .jp-InputPrompt").click()
    page.page.keyboard.press("Tab")
    assert page.live.evaluate("live => live.contains(document.activeElement)")


@pytest.mark.parametrize("text", [GOOD, "a long line " * 40 + "\n" * 300 + GOOD + " Done!"],
                         ids=["short", "long"])
def test_it_fits_a_laptops_window_and_nothing_moves(page, text):
    page.puzzle.fill(pg.TELLING[0])
    page.expect_text(pg.RIGHT)
    page.move("equation weight", "Home", 1)  # with the note that the group teaches nothing
    page.move("format weight", "Home", 1)
    slider = page.live.get_by_role("slider", name="format weight")
    before = slider.bounding_box()["y"] - page.live.bounding_box()["y"]
    page.box.fill(text)
    page.expect_scores("1.0" if text == GOOD else "0.0", "0.0")
    page.live.evaluate("live => live.scrollIntoView({block: 'start'})")
    window = page.page.locator(".jp-WindowedPanel-outer").first.bounding_box()
    assert slider.bounding_box()["y"] - page.live.bounding_box()["y"] == pytest.approx(before)
    for part in (page.live, page.live.locator("[data-part=group]"), page.box, page.verdict):
        box = part.bounding_box()
        assert box["x"] + box["width"] <= window["x"] + window["width"]
    assert page.live.bounding_box()["height"] <= window["height"] - 40  # a line of code above
    assert page.box.bounding_box()["x"] + page.box.bounding_box()["width"] \
        <= page.verdict.bounding_box()["x"]
    assert page.live.evaluate("live => live.scrollWidth <= live.clientWidth")
    page.move("equation weight", "End", 1)
    page.move("format weight", "End", 1)


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_every_word_can_be_read(page, theme):
    choose_theme(page.page, theme)
    page.puzzle.fill(pg.TELLING[0])
    page.expect_text(pg.RIGHT)
    page.box.fill("Well: " + pg.RIGHT.replace("11 = 44<", "11 * 7 = 44 = 4<"))
    page.expect("pre [data-part='wrong number']", ["7"])
    found = page.live.evaluate(CONTRASTS)
    words = [word for word, _ in found]
    assert {"b", "7", "Well:", "format weight", "sample 1", "advantage"} <= set(words)
    assert [pair for pair in found if pair[1] < 4.5] == []


def reopened(page, lab, name, trusted=True):
    """Save a notebook and open it in another page, which has no kernel of its own: that page."""
    books, address = lab
    page.get_by_role("menuitem", name="File", exact=True).click()
    page.get_by_text("Save Notebook", exact=True).click()
    for _ in range(300):
        book = json.loads((books / f"{name}.ipynb").read_text(encoding="utf-8"))
        if book["cells"][-1]["outputs"]:
            break
        page.wait_for_timeout(100)
    book["cells"] += [] if trusted else [nbformat.v4.new_markdown_cell("not signed")]
    (books / f"{name}-{trusted}.ipynb").write_text(json.dumps(book), encoding="utf-8")
    other = page.context.browser.new_page()
    other.set_default_timeout(PATIENCE)
    other.goto(address(f"{name}-{trusted}.ipynb"))
    other.get_by_text("at its start; run this cell").wait_for()
    other.get_by_text("| Idle").first.wait_for()
    other.wait_for_timeout(2000)  # by then the widgets are given up
    error = other.get_by_text("Error displaying widget")
    assert error.count() == trusted
    playwright.expect(error).to_be_hidden()
    assert "VBox(" not in other.locator(".jp-Cell-outputArea").last.inner_text()
    return other


@pytest.mark.parametrize("trusted", [True, False])
def test_without_its_kernel_a_page_shows_the_start(opened, lab, trusted):
    """Reopened by who ran it, and opened by somebody else, for whom scripts and styles go."""
    playwright.expect(opened.page.get_by_text("The playground at its start")).to_be_hidden()
    page = reopened(opened.page, lab, "playground", trusted)
    output = page.locator(".jp-Cell-outputArea").last.inner_text()
    assert "The playground at its start" in output
    assert "12c - 8a" in output and "equation reward 1.0 of 1.0" in output and "sample 5" in output
    page.close()


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
    # while the page is redrawn the last puzzle's note may still stand beside it
    message = page.live.locator("[data-part=message]").filter(
        has_text="Write a puzzle as its numbers, an arrow")
    playwright.expect(message).to_have_count(1)
    playwright.expect(page.live.locator("[data-score]")).to_have_count(0)
    page.puzzle.fill(PUZZLE)
    page.expect_scores("0.0", "0.0")


@pytest.fixture(scope="module")
def talking(opened, lab):
    """The talk with a model, in a notebook of its own, and what is live in it."""
    page = opened.page.context.browser.new_page(viewport={"width": 1366, "height": 768})
    page.set_default_timeout(PATIENCE)
    page.goto(lab[1]("talk.ipynb"))
    run_all(page)
    live = page.locator(LIVE)
    live.locator("[data-part=column]").first.wait_for()
    yield page, live
    assert page.evaluate("window.ran") is None
    page.close()


def test_it_talks(talking):
    _, live = talking
    columns = live.locator("[data-part=column]")
    puzzle = live.get_by_role("textbox", name="puzzle", exact=True)
    playwright.expect(columns).to_contain_text([
        re.compile(f"^{stage} training: [0-8] of 8 right") for stage in ("before", "after")])
    parts = columns.nth(1).locator("details")
    assert parts.count() == 9  # eight completions, and the table
    playwright.expect(parts.nth(7).locator("pre")).to_be_hidden()
    parts.nth(7).locator("summary").click()
    playwright.expect(parts.nth(7).locator("pre [data-part=tag]").first).to_be_visible()
    parts.last.locator("summary").click()
    playwright.expect(parts.last.locator("tbody tr")).to_have_count(8)
    first = columns.all_inner_texts()

    puzzle.fill(f"145, 2 -> 12{EVIL}")
    puzzle.press("Enter")
    playwright.expect(live.locator("[data-part=message]")).to_contain_text(["Write a puzzle"])
    puzzle.fill("145, 2 -> 12")
    puzzle.press("Enter")
    playwright.expect(live.locator("[data-part=message]").first).to_contain_text("no token for 145")
    assert columns.all_inner_texts() == first

    puzzle.fill("12, 2, 3 -> 18")
    live.get_by_role("button", name="Ask", exact=True).click()
    playwright.expect(live.get_by_role("button", name="writing ...")).to_be_disabled()
    playwright.expect(live).to_contain_text("the puzzle 12, 2, 3 -> 18")
    second = columns.all_inner_texts()
    puzzle.press("Enter")  # again, for other completions
    playwright.expect(live.get_by_role("button", name="writing ...")).to_be_visible()
    playwright.expect(live.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
    assert columns.all_inner_texts() not in (first, second)


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_the_talk_can_be_read_and_fits_a_laptops_window(talking, theme):
    page, live = talking
    choose_theme(page, theme)
    live.locator("details").evaluate_all("parts => parts.forEach(part => part.open = true)")
    found = live.evaluate(CONTRASTS)
    assert {"puzzle", "Ask", "<think>", "the group as a table"} <= {word for word, _ in found}
    assert [pair for pair in found if pair[1] < 4.5] == []
    assert live.evaluate("live => live.scrollWidth <= live.clientWidth")
    left, right = [column.bounding_box() for column in live.locator("[data-part=column]").all()]
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]


@pytest.mark.parametrize("trusted", [True, False])
def test_without_its_kernel_the_first_two_groups_are_shown(talking, lab, trusted):
    page = reopened(talking[0], lab, "talk", trusted)
    output = page.locator(".jp-Cell-outputArea").last.inner_text()
    assert f"the puzzle {pg.TELLING[0]}" in output
    assert output.count("of 8 right") == 2 and "equation reward" in output
    page.close()


def test_a_training_shows_how_far_it_is_is_stopped_and_goes_on(opened, lab):
    page = opened.page.context.browser.new_page(viewport={"width": 1366, "height": 768})
    page.set_default_timeout(PATIENCE)
    page.goto(lab[1]("train.ipynb"))
    run_all(page)
    output = page.locator(".jp-Cell-outputArea").last
    line = output.get_by_text(re.compile("^step [0-9]+ of 60"))
    playwright.expect(line).to_have_text(re.compile("^step ([6-9]|[1-5][0-9]) of 60 .* about"))
    playwright.expect(line).to_have_count(1)  # one that lives
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("^Interrupt Kernel")).first.click()
    stopped = output.get_by_text(re.compile(
        "^Stopped after step [0-9]+ of 60; checkpoint at [0-9]+. Run this cell again to go on.$"))
    playwright.expect(stopped).to_have_count(1)
    assert "Traceback" not in output.inner_text()
    playwright.expect(output.locator("img")).to_have_count(1)
    page.locator(".jp-CodeCell .cm-content").last.click()
    page.keyboard.press("Control+Enter")
    playwright.expect(line).to_have_text(re.compile("^step 60 of 60 .* complete"))
    playwright.expect(stopped).to_have_count(0)
    playwright.expect(output.locator("img")).to_have_count(1)  # the curves came back
    playwright.expect(output.get_by_text("the best and the worst of 4 completions")).to_be_visible()
    page.close()
