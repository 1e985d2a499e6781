"""lab.slides: the page that it makes, and that what docs/slides.md says stands in its sources."""

import base64
import functools
import json
import re
import statistics

import pandas as pd
import pytest
from browsing import browser, needs_browser, playwright

from helpers.paths import ROOT
from lab.slides import cell_figure, main, render

SOURCE = ROOT / "docs" / "slides.md"
FIRST, *SLIDES = [f"# {part}" for part in re.split(r"^#{1,2} ", SOURCE.read_text("utf-8"),
                                                   flags=re.MULTILINE)]
NUMBER = re.compile(r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
PICTURE = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhf"
                           "DwAChwGA60e6kgAAAABJRU5ErkJggg==")


def title(slide):
    return slide.partition("\n")[0][2:50]


def numbers(text):
    """Return the numbers of a text, but for whole ones of one digit and notebooks' names."""
    found = NUMBER.findall(re.sub(r"notebooks? 0\d", "", text, flags=re.IGNORECASE))
    return {float(one.replace(",", "")) for one in found if len(one) > 1}


def section(text, anchor):
    """Return what stands under a heading, which is named as GitHub names it in addresses."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        marks, _, words = line.partition(" ")
        if re.fullmatch("#+", marks) and re.sub(
                r"[^\w -]", "", words.lower()).replace(" ", "-") == anchor:
            ends = (k for k in range(start + 1, len(lines)) if re.match("#+ ", lines[k]))
            return "\n".join(lines[start:next(ends, None)])
    raise AssertionError(f"there is no heading {anchor}")


def cell_text(path, cell):
    cells = {one["id"]: one for one in json.loads(path.read_text("utf-8"))["cells"]}
    outputs = cells[cell].get("outputs", ())
    shown = [part for out in outputs for part in (
        out.get("text", ""), *(out.get("data", {}).get(f"text/{kind}", "")
                               for kind in ("plain", "html")))]
    return "\n".join("".join(part) for part in (cells[cell]["source"], *shown))


@functools.cache
def source_text(name):
    """Return the text of a source: a part of a document, a cell, or recorded completions."""
    name, _, part = name.partition("#")
    path = ROOT / name
    if path.suffix == ".ipynb":
        return cell_text(path, part)
    if path.suffix == ".parquet":
        return "\n".join(pd.read_parquet(path)["completion"])
    return section(path.read_text("utf-8"), part)


def without_source(slide):
    """Return the numbers and the quoted lines of a slide that none of its sources holds."""
    sources = "\n".join(map(source_text, re.findall(r"<!-- source: (\S+) -->", slide)))
    computed = " ".join(re.findall(r"<!-- computed: ([\d. ]+)", slide))
    quoted = "".join(re.findall(r"^```text\n(.*?)^```", slide, flags=re.DOTALL | re.MULTILINE))
    said = re.sub(r"<!--.*?-->|^```text.*?^```|`[^`\n]+`|\]\([^)]*\)", "", slide,
                  flags=re.DOTALL | re.MULTILINE)
    return [*sorted(numbers(said) - numbers(sources) - numbers(computed)),
            *(line for line in quoted.splitlines() if line not in sources)]


@pytest.mark.parametrize("slide", SLIDES, ids=title)
def test_what_a_slide_says_stands_in_its_sources(slide):
    assert not without_source(slide)


@pytest.mark.parametrize("old, new, missing", [
    ("67.2", "67.3", [67.3]), ("815", "1,815", [1815.0]),
    ("<!-- source: docs/results.md#three-trainings -->", "", [815.0])])
def test_a_number_without_a_source_is_noticed(old, new, missing):
    slide = next(slide for slide in SLIDES if slide.startswith("# What the run shows"))
    assert not without_source(slide) and old in slide
    assert set(missing) <= set(without_source(slide.replace(old, new)))


def test_a_changed_quotation_is_noticed():
    slide = next(slide for slide in SLIDES if "= 23, 4 * 23 = 88 no" in slide)
    assert not without_source(slide)
    assert without_source(slide.replace("4 * 23 = 88 no", "4 * 23 = 92 no"))


def test_the_worked_example_is_computed_again():
    (slide,) = [slide for slide in SLIDES if "<!-- computed" in slide]
    rows = [[float(one) for one in re.findall(r"[+-]?\d+\.\d+", line)]
            for line in slide.splitlines() if line.startswith("| ") and "**" in line]
    rewards = [row[0] for row in rows]
    mean, spread = statistics.mean(rewards), statistics.stdev(rewards)
    assert f"mean {mean:.3f}" in slide and f"spread {spread:.2f}" in slide
    assert rows == [[r, round(r - mean, 3), round((r - mean) / spread, 2)] for r in rewards]


def test_there_are_some_twenty_slides_and_each_has_notes():
    assert 20 <= len(SLIDES) <= 26
    assert not [title(slide) for slide in SLIDES if "\n> " not in slide]


def test_the_page_is_whole_in_itself(tmp_path, capsys):
    assert main(["--to", str(tmp_path / "new" / "slides.html")]) == 0
    assert f"{len(SLIDES)} slides" in capsys.readouterr().out
    page = (tmp_path / "new" / "slides.html").read_text("utf-8")
    pictures = re.findall(r'<img src="(.{22}).*?" alt="([^"]+)"', page)
    assert len(pictures) == len(re.findall(r"\.ipynb#\w+\)|!\[", SOURCE.read_text("utf-8")))
    assert {start for start, _ in pictures} == {"data:image/png;base64,"}
    assert not re.search(r"(src|srcset|action|poster)=(?!.data:)|url\(|@import|fetch\(", page)
    assert "default-src 'none'; img-src data:" in page  # the browser refuses all else, too
    assert "source:" not in page and len(page) < 4 * 2**20


def test_a_cells_figure_has_its_alternative_text():
    picture, alt = cell_figure(ROOT / "notebooks" / "05_evaluate.ipynb", "a8193b06")
    assert base64.b64decode(picture).startswith(b"\x89PNG") and alt.startswith("pass@k against k")


def notebook(folder, alt="words"):
    outputs = [{"output_type": "stream", "text": ["no figure"]},
               {"data": {"image/png": base64.b64encode(PICTURE).decode()},
                "metadata": {"image/png": {"alt": alt}} if alt else {}}]
    cells = [{"id": "drawn", "outputs": outputs}, {"id": "prose"}]
    (folder / "n.ipynb").write_text(json.dumps({"cells": cells}))
    (folder / "p.png").write_bytes(PICTURE)


def made(folder, text):
    (folder / "own.md").write_text(text, encoding="utf-8")
    return render(folder / "own.md")


def test_notes_comments_and_markup_of_own_slides(tmp_path):
    notebook(tmp_path)
    page = made(tmp_path, "<!-- a -->\n## A & *b*\n\nx <!-- b --> y\n\n### Part\n\n> said\n\n"
                "## C\n\n[as `code`](n.ipynb#drawn)\n\n![p](p.png)\n\n<https://example.org>\n\n"
                "| a |\n|---|\n| 1 |\n")
    assert page.count("<section") == 2 and "<title>A &amp; b</title>" in page
    assert "<option>1. A &amp; b</option>" in page and "<h3>Part</h3>" in page
    assert '<aside aria-label="notes"><p>said</p>' in page and "<!-- " not in page
    assert 'alt="words"><figcaption>as <code>code</code></figcaption>' in page
    assert "<td>1</td>" in page and 'href="https://example.org"' in page


@pytest.mark.parametrize("text, reason", [
    ("", "the first slide has to begin with a heading"),
    ("words\n\n## A", "the first slide has to begin with a heading"),
    ("## A\n\n## B\n\n![](p.png)", "slide 2: the picture p.png has no alternative text"),
    ("## A\n\n![words](away.png)", "slide 1: there is no file away.png"),
    ("## A\n\n![words](https://example.org/a.png)", "there is no file https://example.org/a.png"),
    ("## A\n\n![words](own.md)", "own.md is no picture"),
    ("## A\n\n[words](away.ipynb#drawn)", "there is no file away.ipynb"),
    ("## A\n\n[words](n.ipynb#away)", "n.ipynb has no cell with the id 'away'"),
    ("## A\n\n[words](n.ipynb#prose)", "cell prose has no figure in its outputs: run the notebook"),
    ("## A\n\n[words](n.ipynb)", "a link on a slide needs a whole address"),
    ("## A\n\n[words](javascript:alert)", "a link on a slide needs a whole address"),
])
def test_what_cannot_be_shown_is_named(tmp_path, text, reason):
    notebook(tmp_path)
    with pytest.raises(ValueError, match=re.escape(reason)):
        made(tmp_path, text)


def test_a_figure_without_an_alternative_text_is_an_error(tmp_path):
    notebook(tmp_path, alt=None)
    with pytest.raises(ValueError, match="has no alternative text: draw it with helpers.plots"):
        made(tmp_path, "## A\n\n[words](n.ipynb#drawn)")


def test_a_failure_is_one_line_and_leaves_the_older_page(tmp_path, capsys):
    (tmp_path / "own.md").write_text("## A\n\n![](p.png)")
    (tmp_path / "page.html").write_text("older")
    assert main([str(tmp_path / "own.md"), "--to", str(tmp_path / "page.html")]) == 1
    assert main([str(tmp_path / "none.md"), "--to", str(tmp_path / "page.html")]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "no alternative text" in first and "none.md" in second
    assert (tmp_path / "page.html").read_text() == "older"
    assert {path.name for path in tmp_path.iterdir()} == {"own.md", "page.html"}


# ---- In a browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "slides.html"
    assert main(["--to", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def chromium():
    with browser() as driven:
        yield driven


def opened(chromium, path, anchor="", width=1280, height=720, **options):
    """Return a page with the slides, and the lists that its requests and complaints go to."""
    context = chromium.new_context(viewport={"width": width, "height": height}, **options)
    page, asked, complaints = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri() + anchor)
    return page, asked, complaints


def number(page):
    return int(page.locator("output").inner_text().split(" / ")[0])


@needs_browser
@pytest.mark.parametrize("theme, width, height", [("light", 1280, 720), ("dark", 1920, 1080)])
def test_every_slide_fits_in_both_themes(chromium, page_file, theme, width, height):
    page, asked, complaints = opened(chromium, page_file, width=width, height=height,
                                     color_scheme=theme)
    for k in range(1, len(SLIDES) + 1):
        assert number(page) == k and page.locator("section:visible").count() == 1
        found = page.evaluate("""() => { const slide = document.querySelector(".here");
            const picture = slide.querySelector("img"); return {
              over: [slide.scrollHeight - slide.clientHeight,
                slide.scrollWidth - slide.clientWidth],
              wide: Math.max(...[...slide.querySelectorAll("pre, table, p, li, img")].map(
                (part) => part.getBoundingClientRect().right)) - innerWidth,
              shown: !picture || (picture.complete && picture.naturalWidth > 1
                && picture.clientHeight >= innerHeight / 3)}; }""")
        assert found["over"] == [0, 0] and found["wide"] < 0 and found["shown"], (k, found)
        page.keyboard.press("ArrowRight")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[theme]
    assert [one for one in asked if not one.startswith("data:")] == [page_file.as_uri()]
    assert not complaints
    page.context.close()


@needs_browser
def test_keys_clicks_and_touch_turn_the_slides(chromium, page_file):
    page, _, complaints = opened(chromium, page_file, "#3", has_touch=True)
    assert number(page) == 3
    for key, then in (("ArrowLeft", 2), ("Space", 3), ("Shift+Space", 2), ("PageDown", 3),
                      ("PageUp", 2), ("End", len(SLIDES)), ("ArrowRight", len(SLIDES)),
                      ("Home", 1), ("ArrowLeft", 1), ("Control+ArrowRight", 1)):
        page.keyboard.press(key)
        assert number(page) == then, key
    page.mouse.click(900, 300)
    assert number(page) == 2 and page.url.endswith("#2")
    page.mouse.click(100, 300)
    page.get_by_role("button", name="next").click()
    page.get_by_role("button", name="notes").click()
    page.keyboard.press("Space")  # presses the button in focus, turns nothing
    assert number(page) == 2 and page.locator("html.notes").count() == 0
    titles = page.get_by_role("combobox", name="go to slide")
    titles.select_option(index=6)
    titles.focus()
    page.keyboard.press("n")  # in the list a letter looks for a title
    assert number(page) == 7 and page.locator("html.notes").count() == 0
    page.evaluate("location.hash = '#6'")  # as an address that is typed
    playwright.expect(page.locator("output")).to_have_text(f"6 / {len(SLIDES)}")
    page.evaluate("""() => { for (const [kind, x] of [["touchstart", 900], ["touchend", 300]]) {
        const touch = new Touch({identifier: 1, target: document.body, clientX: x, clientY: 300});
        document.body.dispatchEvent(new TouchEvent(kind, {bubbles: true, touches: [touch],
          changedTouches: [touch]})); } }""")
    assert number(page) == 7 and not complaints
    page.context.close()


@needs_browser
def test_notes_and_theme_change_by_a_key_and_windows_turn_together(chromium, page_file):
    page, _, complaints = opened(chromium, page_file, "#9", color_scheme="light")
    notes = page.locator(".here aside")
    assert not notes.is_visible()
    page.keyboard.press("n")
    assert notes.is_visible()
    slide, below = page.locator(".here").bounding_box(), notes.bounding_box()
    assert slide["y"] + slide["height"] <= below["y"]  # nothing of the slide is hidden
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    second = page.context.new_page()
    second.goto(page_file.as_uri())
    second.keyboard.press("End")
    playwright.expect(page.locator("output")).to_have_text(f"{len(SLIDES)} / {len(SLIDES)}")
    page.keyboard.press("n")
    assert not notes.is_visible() and not complaints
    page.context.close()


@needs_browser
def test_a_phone_scrolls_down_only_and_without_scripts_all_slides_show(chromium, page_file):
    page, *_ = opened(chromium, page_file, width=390, height=844)
    for _ in SLIDES:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.keyboard.press("ArrowRight")
    page.context.close()
    page, *_ = opened(chromium, page_file, java_script_enabled=False)
    assert page.locator("section:visible").count() == len(SLIDES)
    page.context.close()


@needs_browser
def test_it_prints_a_slide_a_page(chromium, page_file):
    page, *_ = opened(chromium, page_file, "#5", color_scheme="dark")
    printed = page.pdf(prefer_css_page_size=True, print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == len(SLIDES)
    page.emulate_media(media="print", color_scheme="dark")
    over = page.evaluate("""[...document.querySelectorAll("section")].map((slide, i) =>
        [i + 1, slide.scrollHeight - slide.clientHeight, slide.scrollWidth - slide.clientWidth])""")
    assert not [one for one in over if max(one[1:]) > 0]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.context.close()
