"""The playground: a completion taken apart, scored, and every lost point explained.

`explain` and `render` need no widgets; `playground` puts them under widgets that answer as one
types. A completion is text from outside: it is shown, never executed, and never becomes markup.
"""

import html
import re
import unicodedata
from collections import Counter, namedtuple
from fractions import Fraction

import ipywidgets as widgets
import numpy as np
import pandas as pd
from IPython.display import display

from helpers.arithmetic import MAX_LENGTH, as_puzzle, evaluate, written_numbers
from helpers.paths import DATA
from helpers.prompts import parse_completion
from helpers.rewards import ANSWER, PRECISION, RIGHT_SIDE, format_score, is_correct

LONGEST_SHOWN = 20_000  # characters; the scores are of the whole text
PUZZLE_FORM = "Write a puzzle as its numbers, an arrow and the target: 4, 11, 8 -> 12"
# recorded puzzles that a part of their group solves; the groups of the first two have three scores
TELLING = ("8, 11, 12 -> 44", "7, 7, 7 -> 56", "1, 1, 2 -> 1", "1, 4, 12 -> 3", "2, 3, 8 -> 13",
           "2, 5, 9 -> 55", "2, 10, 10 -> 22", "3, 8, 10 -> 15", "4, 6, 7 -> 9", "5, 7, 8 -> 6",
           "6, 6, 10 -> 9", "7, 8, 10 -> 25")
RIGHT = "<think>12 - 8 = 4, 4 * 11 = 44</think>\n<answer>(12 - 8) * 11 = 44</answer>"
PRESETS = {name: (RIGHT.replace(old, new), [8, 11, 12], 44) for name, old, new in (
    ("right", "", ""), ("a text after the end", "</answer>", "</answer> Done!"),
    ("words in the answer", "(12", "It is (12"), ("no thought", "12 - 8 = 4, 4 * 11 = 44", ""),
    ("a number three times", ") * 11", ") * 11 * 11 / 11"))}
TRY = ("<b>Try:</b> delete the newline between &lt;/think&gt; and &lt;answer&gt;. Which reward is "
       "lost, and why? What you type is kept under <b>yours</b>.")
# Shown where no kernel runs: live widgets hide it, and JupyterLab's error where they are missing is
# hidden by it. Pages that drop styles and scripts show it at once. SLIDERS names the sliders.
STILL = """<style>@keyframes KEY { from { max-height: 0; visibility: hidden } }
.KEY { animation: 0s 3s both KEY; overflow: hidden }
.jp-OutputArea-child:has(.KEY) + .jp-OutputArea-child:not(:has(.KEY-live)) { display: none }
</style><div class="KEY"><p>NAME at its start; run this cell to type into it.</p>
FIRST</div>"""
SLIDERS = """<script>new MutationObserver((_, watch) => {
  const handles = document.querySelectorAll(".KEY-live .noUi-handle");
  for (const x of handles) x.ariaLabel = x.closest(".widget-slider").firstChild.textContent;
  if (handles.length > 1) watch.disconnect();
}).observe(document.body, { childList: true, subtree: true });</script>"""
# The look of each kind of part: an element that still says something where styles are stripped, a
# style, and the words of the legend. Dark letters on every coloured ground: the page may be dark.
KINDS = {
    "newline": ("span", "", ""), "operator": ("span", "", ""), "equals": ("b", "", ""),
    "tag": ("b", "color:#6a3d9a;background:#eee6f6", "tag"),
    "thought": ("i", "color:#111;background:#e8eef5", "thought, not scored"),
    "number": ("b", "color:#111;background:{}", "given number"),
    "wrong number": ("mark", "color:#fff;background:#b00020", "not given, or used too often"),
    "right side": ("u", "color:#111;background:#d9d9d9", "right side"),
    "outside": ("mark", "color:#fff;background:#5d4037", "text outside the parts"),
    "unread": ("s", "color:#111;background:#ffd9b3", "answer that cannot be read"),
}
_GROUNDS = ("#8fd0f5", "#ffc34d", "#63cfae", "#f3e95c", "#e6a3c8", "#f59a5f")  # of given a, b, ...
FIT, ROW = {"description_width": "max-content"}, {"flex": "1 1 12em", "width": "auto"}
_PUZZLE = re.compile(r"\s*[0-9]{1,6}([\s,]+[0-9]{1,6}){1,5}\s*(->|=|→)\s*[0-9]{1,6}\s*", re.ASCII)

# `given` says which of the given numbers, counted from 0, a part of kind "number" uses
Part = namedtuple("Part", "kind text given", defaults=[None])
Explanation = namedtuple("Explanation", "parts unused format_score equation_score format_reasons "
                                        "equation_reasons")


def explain(text, nums, target):
    """Take a completion apart and say why each reward is not full; only what is no puzzle raises.

    Parameters
    ----------
    text, nums, target : str, sequence of int, int
        The completion, any text, and its puzzle, see `helpers.arithmetic.as_puzzle`.

    Returns
    -------
    Explanation
        Parts that join to the text, the places of the given numbers that none uses, the scores of
        `helpers.rewards`, and reasons as plain text, none for a full reward.
    """
    (nums, target), parsed = as_puzzle(nums, target), parse_completion(text)
    parts = tuple(part for part in _parts(text, nums, parsed.equation) if part.text)
    unused = set(range(len(nums))) - {part.given for part in parts}
    reasons = (tuple(words for holds, words in faults if holds) for faults in (
        _format_faults(text, parsed.answer),
        _equation_faults(text, parsed.equation, nums, target)))
    return Explanation(parts, tuple(sorted(unused)), *_scores(text, nums, target), *reasons)


def _scores(text, nums, target):
    return format_score(text), float(is_correct(text, nums, target))


def _parts(text, nums, equation):
    pieces = re.split("(</?(?:think|answer)>)", text)  # text and tags in turn
    if equation is not None:  # tags within it are a part of its text
        pieces[pieces.index("<answer>") + 1 : pieces.index("</answer>")] = [equation]
    tags = pieces[1::2]
    for before, piece, after in zip(["", *tags], pieces[::2], [*tags, ""], strict=True):
        if before == "<answer>" and equation is not None and len(equation) <= 2 * MAX_LENGTH:
            yield from _equation_parts(equation, nums)
        elif piece == "\n" and (before, after) in (("</think>", "<answer>"), ("</answer>", "")):
            yield Part("newline", piece)
        elif piece:
            yield Part({"<think>": "thought", "<answer>": "unread"}.get(before, "outside"), piece)
        yield Part("tag", after)


def _equation_parts(equation, nums):
    left, equals, right = equation.partition("=")
    free = [str(n) for n in nums]
    for token in re.findall(r"[^\s+\-*/()]+|[\s+\-*/()]+", left):
        if token in free:
            place = free.index(token)
            free[place] = None  # each given number is used once
            yield Part("number", token, place)
        else:
            yield Part("wrong number" if written_numbers(token) else "operator", token)
    yield Part("equals", equals)
    yield Part("unread" if "=" in right else "right side", right)


def _format_faults(text, answer):
    """Yield every possible fault: whether it is there, and the words for it."""
    if answer is not None:
        lines = len(answer.strip().splitlines())
        others = sorted(c for c in set(answer) if not ANSWER.fullmatch(c))
        codes = [f"U+{ord(c):04X}, {unicodedata.name(c, '')}".removesuffix(", ") for c in others]
        names = [f"{_quoted(c)} ({code})" for c, code in zip(others, codes, strict=True)]
        yield lines == 0, "the answer is empty"
        yield lines > 1, f"the answer has {lines} lines, not one"
        yield "=" not in answer, "the answer has no ="
        yield others, f"the answer may not hold {_listed(names)}"
        return
    body = text.removesuffix("\n")
    before, think, _ = body.partition("<think>")
    _, closed, between = body.partition("<answer>")[0].rpartition("</think>")
    _, end, after = body.rpartition("</answer>")
    missing = " and ".join(f"no {tag}" for tag in ("</think>", "<answer>") if tag not in body)
    yield not think, "there is no <think>"
    yield think and before, f"before <think> stands {_quoted(before)}; nothing may"
    yield missing, f"there is {missing}"
    if not missing and "</think>\n<answer>" not in body:
        yield not closed, "<answer> stands before </think>"
        yield closed and not between, "between </think> and <answer> there is no newline"
        yield (closed and between,
               f"between </think> and <answer> stands {_quoted(between)}, not one newline")
    yield not end, "there is no </answer>"
    yield end and after, f"after </answer> stands {_quoted(after)}; nothing may"


def _equation_faults(text, equation, nums, target):
    """Yield as `_format_faults` does."""
    if equation is None:
        opened, closed = text.count("<answer>"), text.count("</answer>")
        yield True, (
            "</answer> stands before <answer>" if opened == closed == 1 else
            f"there has to be one <answer> and one </answer>, not {opened:,} and {closed:,}")
        return
    sides, length = equation.split("="), len(equation)
    long = length > 2 * MAX_LENGTH
    yield long, f"the answer has {length:,} characters; at most {2 * MAX_LENGTH} are read"
    yield not long and len(sides) != 2, f"the answer has {len(sides) - 1} equals signs, not one"
    if long or len(sides) != 2:
        return
    left, right = sides
    shown = Fraction(right.strip()) if RIGHT_SIDE.fullmatch(right) else None
    yield not right.strip(), "the right side is empty"
    yield (right.strip() and shown is None,
           f"the right side, {_quoted(right)}, is not a plain number of at most 12 digits")
    yield (shown is not None and abs(shown - target) * PRECISION > 2,
           f"the right side is {_number(shown)}, not the target {target}")
    used, given = Counter(written_numbers(left)), Counter(map(str, nums))
    others = sorted(used.keys() - given)
    yield others, f"not among the given numbers: {_listed([_quoted(token) for token in others])}"
    for number, times in given.items():
        often, uses = ({1: "once", 2: "twice"}.get(n, f"{n} times") for n in (times, used[number]))
        yield used[number] == 0, f"{number} is {f'given {often} and ' if times > 1 else ''}not used"
        yield used[number] not in (0, times), f"{number} is given {often} and used {uses}"
    try:
        value = evaluate(left)
    except ValueError as error:
        yield True, f"the left side {_quoted(left)} has no value: {error}"
        return
    yield (abs(value - target) * PRECISION > 1,
           f"the left side is {_number(value)}, not the target {target}")
    yield (shown is not None and abs(value - shown) * PRECISION > 1,
           f"the two sides differ: {_number(value)} is not {_number(shown)}")


def _number(value):
    exact = str(value)
    return exact if len(exact) <= 24 else f"about {float(value):.12g}"


def _listed(names, most=4):
    return ", ".join(names[:most] + [f"{len(names) - most:,} more"] * (len(names) > most))


def _quoted(text, most=40):
    return f"“{_visible(text[:most])}{'…' if len(text) > most else ''}”"


def _visible(text):
    """Write out what a page cannot show, or what would reorder or hide other text."""
    if text.isascii() and text.isprintable():  # most are, and this is fast
        return text
    return text.translate({  # C...: control characters, surrogates, what is not assigned
        ord(c): f"‹U+{ord(c):04X}›" for c in set(text) - {"\n", "\t"}
        if unicodedata.category(c).startswith(("C", "Zl", "Zp"))})


def _span(part):
    element, style, words = KINDS[part.kind]
    letter = "" if part.given is None else chr(ord("a") + part.given % 26)
    label = f'<sub style="vertical-align:baseline">{letter}</sub>' * bool(letter)  # on its ground
    style = style.format(_GROUNDS[(part.given or 0) % len(_GROUNDS)])
    look = f' title="{f"{words} {letter}".strip()}" style="{style}"' if words else ""
    shown = html.escape(_visible(part.text))
    return f'<{element} data-part="{part.kind}"{look}>{shown}{label}</{element}>'


def message(text):
    """Return a note to the reader as HTML; `text` is escaped."""
    return ('<p data-part="message" style="color:#111;background:#fff3c4;margin:4px 0;padding:4px">'
            f"<b>Note:</b> {html.escape(_visible(text))}</p>")


def render(text, nums, target):
    """Show a completion coloured by part, both scores, and the reason for every lost point.

    Takes what `explain` takes; returns HTML (str) without scripts, links or style sheets. The text
    is escaped; what cannot be shown is written out as ‹U+0000›.
    """
    notes = (
        (not text.strip(), "The completion is empty: type or paste one, or start from another."),
        (len(text) > LONGEST_SHOWN, f"{len(text):,} characters: the first {LONGEST_SHOWN:,} are "
                                    "shown, the scores are of the whole text."),
        (_visible(text) != text, "What a page cannot show is written out, like ‹U+0000›."),
        ("\ufffd" in text, "\ufffd stands for half of a surrogate pair or a damaged character."))
    notes = "".join(message(words) for holds, words in notes if holds)
    (nums, target), spans, left = as_puzzle(nums, target), "", LONGEST_SHOWN
    found = explain(text, nums, target)
    for part in found.parts:
        spans += _span(part._replace(text=part.text[:left])) if left > 0 else ""
        left -= len(part.text)
    given = ", ".join(_span(Part("number", str(n), i)) + " (not used)" * (i in found.unused)
                      for i, n in enumerate(nums))
    looks = map(KINDS.get, dict.fromkeys(part.kind for part in found.parts))
    legend = "; ".join(f'<{element} style="{style.format(_GROUNDS[0])}">{words}</{element}>'
                       for element, style, words in looks if words)
    rows = ""
    for name, score, reasons in zip(("format", "equation"), found[2:4], found[4:], strict=True):
        li = "".join(f"<li>{html.escape(reason)}</li>" for reason in reasons)
        why = f'<ul style="margin:0;padding-left:1.5em">{li}</ul>' if li else "nothing is missing"
        rows += f'<div>{name} reward <b data-score="{name}">{score:.1f}</b> of 1.0: {why}</div>'
    return ('<div data-part="verdict" style="line-height:1.5">'
            f"{notes}Given: {given}. Target: <b>{target}</b>"
            '<pre style="white-space:pre-wrap;overflow-wrap:anywhere;max-height:9em;overflow:auto;'
            'line-height:1.6;border:1px solid #999;margin:4px 0;padding:4px 8px">'
            f"{spans}</pre><small>{legend}</small>{rows}</div>")


def _row(cells, element="td"):
    style = "padding:1px 10px;text-align:left;line-height:1.4;white-space:nowrap"
    cells = "".join(f'<{element} style="{style}">{cell}</{element}>' for cell in cells)
    return f"<tr>{cells}</tr>"


def advantages(rewards):
    """Return each completion's advantage over its group, as trl scales it by default.

    ``(r - mean) / (std + 1e-4)``, std with n - 1, of the weighted sums of two completions or more:
    Shao et al. 2024, https://arxiv.org/abs/2402.03300, section 4.1.2, with trl's constant.
    """
    rewards = np.asarray(rewards, float)
    if rewards.ndim != 1 or len(rewards) < 2:
        raise ValueError("advantages compare a group: give two rewards or more")
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)


def shown_answer(text):
    """Return the answer of a completion as HTML."""
    answer = parse_completion(text).equation
    return "no single answer" if answer is None else html.escape(_quoted(answer.strip()))


def render_group(completions, nums, target, weights=(1.0, 1.0)):
    """Return a table, as HTML, of a group's scores, weighted sums and advantages.

    Parameters
    ----------
    completions, nums, target : dict of str to str, sequence of int, int
        Completions by name, and their puzzle.
    weights : sequence of float
        Of the format reward and the equation reward (`reward_weights` in trl).
    """
    if len(completions) < 2:
        return message("Advantages compare a group, and none is recorded for this puzzle.")
    scores = np.array([_scores(text, nums, target) for text in completions.values()])
    total, rows = scores @ weights, ""
    for (name, text), numbers, advantage in zip(completions.items(), np.c_[scores, total],
                                                advantages(total), strict=True):
        width = min(abs(advantage), 3) * 20  # of a bar to the right or left of zero, in pixels
        left, ground = (60, "#0072b2") if advantage > 0 else (60 - width, "#d55e00")
        bar = ('<span data-part="advantage" style="display:inline-block;width:3.5em">'
               f'{advantage:+.2f}</span><span style="display:inline-block;height:0.8em;'
               f'margin-left:{left:.0f}px;width:{width:.0f}px;background:{ground}"></span>')
        rows += _row([html.escape(_visible(name)), shown_answer(text),
                      *(f"{number:.2f}" for number in numbers), bar])
    head = _row(("completion", "answer", "format", "equation", "weighted sum", "advantage"), "th")
    note = "" if np.ptp(total) > 0 else message(
        "All weighted sums are equal: every advantage is 0, and the group teaches nothing.")
    return (f'<div data-part="group" style="overflow:auto">{note}<table><thead>{head}</thead>'
            f"<tbody>{rows}</tbody></table></div>")


def parse_puzzle(text):
    """Read ``4, 11, 8 -> 12``; a ValueError, for anything else, says what to write."""
    if len(text) > 100 or not _PUZZLE.fullmatch(text):
        raise ValueError(f"{PUZZLE_FORM} (2 to 6 numbers, digits 0 to 9, at most 6 each).")
    *nums, target = map(int, re.findall("[0-9]+", text))
    return nums, target


def write_puzzle(nums, target):
    """Write a puzzle as `parse_puzzle` reads it."""
    nums, target = as_puzzle(nums, target)
    return f"{', '.join(map(str, nums))} -> {target}"


def recorded_completions():
    """Read the shipped completions of the CPU model: five runs, before and after training.

    The columns: ``puzzle`` (as `write_puzzle`, numbers sorted), ``run, stage, temperature,
    completion``. All runs start from one model, so the rows of a puzzle with stage "before" and
    temperature 1 are samples of one policy; each saw the numbers in its own order.
    """
    columns = ["stage", "temperature", "nums", "target", "completion"]
    frame = pd.concat([pd.read_parquet(path, columns=columns).assign(run=path.parent.name)
                       for path in sorted(DATA.glob("*/cpu-seed*/evaluation.parquet"))])
    frame["puzzle"] = [write_puzzle(sorted(nums.tolist()), target) for nums, target
                       in zip(frame.pop("nums"), frame.pop("target").tolist(), strict=True)]
    return frame.sort_values(["stage", "temperature", "run"], kind="stable",
                             ascending=[False, False, True], ignore_index=True)


def group_of(recorded, puzzle):
    """Return the starting model's completions of a puzzle at temperature 1, by run."""
    rows = recorded.query("puzzle == @puzzle and stage == 'before' and temperature == 1")
    return {f"sample {i + 1}": text for i, text in enumerate(rows["completion"])}


def _sendable(text):
    """Replace lone surrogates by U+FFFD: messages between kernel and page are UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _keeping(kind):
    """Return a kind of text widget that keeps a text with a lone surrogate: its echo would fail."""
    return type(kind.__name__, (kind,), {"set_state": lambda self, state: kind.set_state(
        self, {k: _sendable(v) if isinstance(v, str) else v for k, v in state.items()})})


def puzzle_field():
    """Return a field for a puzzle that keeps whatever is typed; `parse_puzzle` reads it."""
    return _keeping(widgets.Text)(description="puzzle", placeholder=PUZZLE_FORM, style=FIT,
                                  layout=ROW)


def live_view(name, guide, parts, still, script=""):
    """Return widgets under each other, below a guide, and `still` where no kernel runs: HTML."""
    key = f"live-{parts[0].model_id[:8]}"
    guide = widgets.HTML(f"<style>.{key} {{ display: none }}</style>{guide}")
    live = widgets.VBox([guide, *parts], _dom_classes=[f"{key}-live"])
    still = (STILL + script).replace("KEY", key).replace("NAME", name).replace("FIRST", still)
    view = {"version_major": 2, "version_minor": 0, "model_id": live.model_id}
    bundles = {"text/html": still}, {"application/vnd.jupyter.widget-view+json": view}
    live._ipython_display_ = lambda: [display(bundle | {"text/plain": ""}, raw=True)
                                      for bundle in bundles]  # ipywidgets 7 and 8
    return live


def playground(recorded, presets=PRESETS):
    """Return the playground: widgets that score a completion as one types.

    Parameters
    ----------
    recorded : pandas.DataFrame
        As from `recorded_completions`.
    presets : dict of str to tuple, optional
        Completions by name, ``(text, nums, target)``: a button each, and the first is the start.
    """
    puzzle = puzzle_field()
    choice = widgets.Dropdown(description="recorded", options=("", *TELLING), layout=ROW, style=FIT)
    box = _keeping(widgets.Textarea)(
        placeholder="<think>...</think>\n<answer>... = ...</answer>", style=FIT, layout={
            "flex_flow": "column", "align_items": "stretch", "width": "auto", "height": "14em"})
    back, onward, last, *begins = (widgets.Button(description=name, layout={"width": "auto"})
                                   for name in ("◀ previous", "next ▶", "yours", *presets))
    sliders = [widgets.FloatSlider(1.0, min=0, max=2, step=0.1, description=f"{name} weight",
                                   style={"description_width": "9em"}, layout={"width": "25em"})
               for name in ("format", "equation")]
    group, verdict = widgets.HTML(), widgets.HTML(layout={
        "flex": "1 1 26em", "height": "24em", "overflow": "auto", "margin": "2px 2px 2px 12px"})
    # texts by name: of the puzzle, and typed; the name shown; the puzzle, and as it is looked up
    shelf, mine, shown, asked, written, samples = {"": ""}, {}, "", None, None, {}

    def show(_=None):
        text = box.value = (shelf | mine)[shown]
        box.description = f"completion ({shown})"
        if asked:
            more = {} if text in ("", *samples.values()) else {shown.partition(":")[0]: text}
            verdict.value = render(text, *asked)
            group.value = render_group(samples | more, *asked, [weight.value for weight in sliders])

    def go(name):
        nonlocal shown
        shown = name
        show()

    def step(by):
        names = [*shelf, *mine]
        go(names[(names.index(shown) + by) % len(names)])

    def typed(change):
        if change.new != (shelf | mine)[shown]:  # else it is `show` that put it there
            name, last.disabled = shown if shown in mine else f"yours {len(mine) + 1}", False
            mine[name] = change.new
            go(name)

    def set_up(_):
        nonlocal shelf, asked, written, samples
        try:
            asked = nums, target = parse_puzzle(puzzle.value)
        except ValueError as error:
            asked = written = None
            choice.value, verdict.value, group.value = "", message(str(error)), ""
            return
        before, written = written, write_puzzle(sorted(nums), target)
        choice.value = written if written in TELLING else ""
        if written == before:
            return show()
        shelf = {f"example: {name}": _sendable(text) for name, (text, given, goal)
                 in presets.items() if write_puzzle(sorted(given), goal) == written}
        rows = recorded[recorded["puzzle"] == written]
        samples = group_of(rows, written) or shelf
        shelf = shelf | {
            f"{i} of {len(rows)}: {row.stage} training, temperature {row.temperature:g}, "
            f"run {row.run}": row.completion for i, row in enumerate(rows.itertuples(), 1)}
        shelf = shelf or {"none recorded for this puzzle": ""}
        go(next(iter(shelf)))

    def begin(button):
        _, *its = presets[button.description]
        puzzle.value = write_puzzle(*its)
        go(f"example: {button.description}")

    for widget, act in ((puzzle, set_up), (box, typed), *((slider, show) for slider in sliders)):
        widget.observe(act, "value")
    widgets.dlink((choice, "value"), (puzzle, "value"),
                  lambda new: puzzle.value if new in ("", written) else new)
    for button, act in ((back, lambda _: step(-1)), (onward, lambda _: step(1)),
                        (last, lambda _: go([*mine][-1])), *((button, begin) for button in begins)):
        button.on_click(act)
    last.disabled = True
    puzzle.value = next((write_puzzle(*its) for _, *its in presets.values()), TELLING[0])
    across = {"flex_flow": "row wrap"}
    left = widgets.VBox([widgets.HBox([puzzle, choice]), box, widgets.HBox([back, onward, last]),
                         *sliders], layout={"flex": "1 1 26em"})
    starts = widgets.HBox([widgets.HTML("Start from:" * bool(begins)), *begins], layout=across)
    return live_view("The playground", TRY, [
        starts, widgets.HBox([left, verdict], layout=across), group],
        verdict.value + group.value, SLIDERS)
