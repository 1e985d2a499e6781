"""Make slides of a Markdown file: ``python -m lab.slides [SOURCE.md] [--to PAGE.html]``.

The page holds its pictures itself and loads nothing. In the source each heading of the first or
second level begins a slide, and a quote holds what the speaker says. A link to a notebook with the
id of a cell, ``[words](../notebooks/05_evaluate.ipynb#a8193b06)``, shows that cell's figure, with
the alternative text that it has there and the words below it. Comments are left out.

(nbconvert makes slides, too, but from a notebook, and with a program that it loads from a network.)
"""

import argparse
import base64
import html
import json
import mimetypes
import os
import re
import sys
from pathlib import Path

import mistune

from helpers.paths import ROOT, RUNS, show

_SLIDE = "<!-- the next slide -->"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --part: 1; --words: 1; --paper: light-dark(#fff, #14181d);
  --ink: light-dark(#1b1f24, #e9edf2); --mark: light-dark(#005a8c, #7cc4f5);
  --soft: light-dark(#eef2f6, #242b33); --line: light-dark(#c3ccd6, #46525f) }
body { margin: 0; background: var(--paper); color: var(--ink); font-family: system-ui, sans-serif }
section { box-sizing: border-box; width: calc(100vw * var(--part)); overflow: auto; outline: 0;
  min-height: calc(100vh * var(--part)); display: flex; flex-direction: column; gap: .55em;
  padding: calc(1.1em / var(--words)) calc(2.2em / var(--words)) 2.2em; line-height: 1.35;
  font-size: max(1rem, calc(min(2.1vw, 3.75vh) * var(--part) * var(--words))) }
section > * { margin: 0 }
section:not(:has(figure, pre, table)) { --words: 1.1; gap: .8em }
section:has(h1) { justify-content: center }
h1, h2 { color: var(--mark); font-size: calc(1.65em / var(--words)); line-height: 1.15 }
h1 { font-size: 2.6em }
ul, ol { padding-left: 1.2em }
li + li { margin-top: .3em }
a { color: var(--mark) }
code, pre { font-family: ui-monospace, monospace; background: var(--soft); border-radius: .3em }
code { padding: 0 .2em; white-space: nowrap }
pre { padding: .5em .8em; font-size: .82em }
pre code { padding: 0; white-space: pre-wrap; overflow-wrap: anywhere }
table { border-collapse: collapse; font-size: .88em; align-self: start }
th, td { padding: .22em 1.2em .22em 0; text-align: left; border-bottom: 1px solid var(--line) }
figure { flex: 1 1 0; min-height: 0; display: grid; grid-template-rows: minmax(0, 1fr) auto }
img { width: 100%; height: 100%; object-fit: contain; min-height: 0 }
figcaption { font-size: .62em; text-align: center; padding-top: .3em }
aside { display: none; position: fixed; inset: auto 0 2.6rem 0; height: calc(35vh - 3rem);
  overflow: auto; box-sizing: border-box; padding: .5rem 1.5rem; background: var(--soft);
  font-size: max(1rem, min(1.5vw, 2.4vh)); border-top: 2px solid var(--mark) }
aside > * { margin: .3em 0 }
.notes { --part: .65 }
.notes aside { display: block }
.shown section { height: calc(100vh * var(--part)) }
.shown section:not(.here) { display: none }
nav { display: none; position: fixed; inset: auto 0 0 0; height: 2.1rem; padding: 0 .6rem;
  gap: .5rem; align-items: center; white-space: nowrap; font-size: .85rem;
  background: var(--paper) }
.shown nav { display: flex }
nav output { margin-left: auto; font-variant-numeric: tabular-nums }
nav button, nav select { font: inherit; min-width: 0; max-width: 40vw }
progress { flex: 1; min-width: 2rem; accent-color: var(--mark) }
@media (max-aspect-ratio: 1/1) {
  section { padding: 1em 1em 3em }
  .shown section { height: auto }
  progress, [name=full] { display: none }
  figure { flex: none }
  img { height: auto }
  table { display: block; overflow-x: auto; max-width: 100% }
  code { white-space: normal }
}
@page { size: 1280px 720px; margin: 0 }
@media print {
  :root { color-scheme: light !important }
  * { print-color-adjust: exact }
  nav, aside { display: none !important }
  section, .shown section:not(.here) { display: flex; width: 1280px; height: 719px; min-height: 0;
    overflow: hidden; font-size: calc(27px * var(--words)); break-after: page }
}
"""
_SCRIPT = """
"use strict";
const root = document.documentElement, find = (name) => document.querySelector(name);
const slides = [...document.querySelectorAll("section")], list = find("select");
const others = new BroadcastChannel("slides " + location.pathname);  // this page, other windows
let now = -1;

function go(number, tell = true) {
  const next = Math.max(0, Math.min(slides.length - 1, number));
  if (next === now) return;
  now = next;
  slides.forEach((slide, i) => slide.classList.toggle("here", i === now));
  list.selectedIndex = now;
  find("progress").value = now + 1;
  find("output").value = `${now + 1} / ${slides.length}`;
  history.replaceState(null, "", "#" + (now + 1));
  scrollTo(0, 0);
  slides[now].focus({preventScroll: true});  // a screen reader reads it
  if (tell) others.postMessage(now);
}
const read = () => go((parseInt(location.hash.slice(1)) || 1) - 1);
const actions = {
  next: () => go(now + 1), back: () => go(now - 1), first: () => go(0), last: () => go(Infinity),
  notes: () => root.classList.toggle("notes"),
  theme: () => { const dark = root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)")
    .matches ? "dark" : "light"); root.style.colorScheme = dark === "dark" ? "light" : "dark"; },
  full: () => document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen(),
};
const keys = {ArrowRight: "next", PageDown: "next", " ": "next", ArrowLeft: "back", PageUp: "back",
  Home: "first", End: "last", n: "notes", t: "theme", f: "full"};

addEventListener("keydown", (event) => {
  const own = event.target.closest(event.key === " " ? "select, button" : "select");
  if (own || event.ctrlKey || event.altKey || event.metaKey || !(event.key in keys)) return;
  event.preventDefault();
  actions[event.key === " " && event.shiftKey ? "back" : keys[event.key]]();
});
find("nav").addEventListener("click", (event) => actions[event.target.name]?.());
find("main").addEventListener("click", (event) => {
  if (event.target.closest("a, aside") || String(getSelection())) return;
  go(now + (event.clientX < innerWidth / 4 ? -1 : 1));
});
list.addEventListener("change", () => go(list.selectedIndex));
let touched;
addEventListener("touchstart", (event) => { touched = event.touches[0]; }, {passive: true});
addEventListener("touchend", (event) => {
  const x = event.changedTouches[0].clientX - touched.clientX;
  const y = event.changedTouches[0].clientY - touched.clientY;
  if (Math.abs(x) > 50 && Math.abs(x) > 2 * Math.abs(y)) go(now + (x < 0 ? 1 : -1));
});
others.onmessage = (event) => go(event.data, false);
addEventListener("hashchange", read);
root.classList.add("shown");
read();
"""
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<style>{style}</style></head><body><main>
{slides}
</main><nav aria-label="slides"><button name="back" aria-label="back">◀</button>
<select aria-label="go to slide">{options}</select>
<button name="next" aria-label="next">▶</button><progress max="{count}" aria-hidden="true">
</progress><output aria-live="polite"></output><button name="notes">notes (n)</button>
<button name="theme">light, dark (t)</button><button name="full">full screen (f)</button></nav>
<script>{script}</script></body></html>
"""


def cell_figure(notebook, cell):
    """Return a figure that a notebook's cell holds as its output.

    Parameters
    ----------
    notebook : pathlib.Path
        The notebook, with its outputs.
    cell : str
        The id of the cell.

    Returns
    -------
    tuple of str
        The picture, PNG in base64, and its alternative text.

    Raises
    ------
    ValueError
        If there is no such cell, or no figure with an alternative text in it.
    """
    cells = {each["id"]: each for each in json.loads(notebook.read_text("utf-8"))["cells"]}
    if cell not in cells:
        raise ValueError(f"{notebook.name} has no cell with the id {cell!r}")
    for output in cells[cell].get("outputs", ()):
        if picture := output.get("data", {}).get("image/png"):
            if alt := output["metadata"].get("image/png", {}).get("alt"):
                return "".join(picture).replace("\n", ""), alt
            raise ValueError(f"{notebook.name}: the figure of cell {cell} has no alternative text: "
                             "draw it with helpers.plots.show")
    raise ValueError(f"{notebook.name}: cell {cell} has no figure in its outputs: run the notebook")


def _figure(kind, data, alt, words=""):
    caption = f"<figcaption>{words}</figcaption>" * bool(words)
    return (f'<figure><img src="data:{kind};base64,{data}" alt="{html.escape(alt)}">'
            f"{caption}</figure>")


class _Slides(mistune.HTMLRenderer):
    """Markdown to HTML: slides, notes, and pictures in the page itself."""

    def __init__(self, folder):
        super().__init__(escape=False)
        self.folder, self.titles = folder, []

    def heading(self, text, level, **attrs):
        if level > 2:
            return super().heading(text, level, **attrs)
        self.titles.append(html.unescape(re.sub("<[^>]*>", "", text)))
        return f"{_SLIDE}<h{level}>{text}</h{level}>\n"

    def block_quote(self, text):
        return f'<aside aria-label="notes">{text}</aside>\n'

    def block_html(self, text):
        return re.sub(r"<!--.*?-->", "", super().block_html(text), flags=re.DOTALL)

    def inline_html(self, text):
        return "" if text.startswith("<!--") else super().inline_html(text)

    def paragraph(self, text):
        return text + "\n" if text.startswith("<figure>") else super().paragraph(text)

    def image(self, text, url, title=None):
        kind = mimetypes.guess_type(url)[0] or ""
        if not text.strip():
            raise ValueError(f"the picture {url} has no alternative text: ![words]({url})")
        if not kind.startswith("image/"):
            raise ValueError(f"{url} is no picture")
        data = base64.b64encode(self._file(url).read_bytes()).decode()
        return _figure(kind, data, html.unescape(text))

    def link(self, text, url, title=None):
        path, _, cell = url.partition("#")
        if path.endswith(".ipynb") and cell:
            return _figure("image/png", *cell_figure(self._file(path), cell), text)
        if not url.startswith("https://"):
            raise ValueError(f"a link on a slide needs a whole address, https://..., not {url}")
        return super().link(text, url, title)

    def _file(self, url):
        if not (path := self.folder / url).is_file():
            raise ValueError(f"there is no file {url} beside the slides (pictures are files)")
        return path


def render(source):
    """Return the page of a file of slides.

    Parameters
    ----------
    source : pathlib.Path
        Markdown; its pictures and notebooks lie relative to it.

    Returns
    -------
    str
        HTML that loads nothing.

    Raises
    ------
    ValueError
        If there is no slide, or a picture cannot be shown; it names the slide.
    """
    renderer = _Slides(source.parent)
    try:
        body = mistune.create_markdown(renderer=renderer, plugins=["table"])(
            source.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{show(source)}, slide {len(renderer.titles)}: {error}") from error
    before, *slides = body.split(_SLIDE)
    if not slides or before.strip():
        raise ValueError(f"{show(source)}: the first slide has to begin with a heading (# or ##)")
    options = "".join(f"<option>{k}. {html.escape(title)}</option>"
                      for k, title in enumerate(renderer.titles, 1))
    sections = "\n".join(f'<section tabindex="-1">{slide.strip()}</section>' for slide in slides)
    return _PAGE.format(title=html.escape(renderer.titles[0]), policy=_POLICY, style=_STYLE,
                        slides=sections, options=options, count=len(slides), script=_SCRIPT)


def main(argv=None):
    """Write the slides and print where they are.

    Parameters
    ----------
    argv : list of str, optional
        The command line's arguments; those of the process where left out.

    Returns
    -------
    int
        The exit status, 0 if they were written.
    """
    parser = argparse.ArgumentParser(prog="python -m lab.slides", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, default=ROOT / "docs" / "slides.md")
    parser.add_argument("--to", type=Path, default=RUNS / "slides.html", metavar="PAGE.html")
    chosen = parser.parse_args(argv)
    try:
        page = render(chosen.source.resolve())
        chosen.to.parent.mkdir(parents=True, exist_ok=True)
        partial = chosen.to.with_name(chosen.to.name + ".partial")
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, chosen.to)  # an older page stays whole until this one is
    except (ValueError, OSError) as error:
        print(f"slides: {error}", file=sys.stderr)
        return 1
    print(f"{page.count('<section')} slides, {len(page) / 2**20:.1f} MiB: {show(chosen.to)}. Open "
          "it in a browser: arrows turn, n shows the notes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
