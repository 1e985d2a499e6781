"""The playground: a completion taken apart, scored, and every lost point explained.

`explain` and `render` need no widgets; `playground` puts them under widgets that answer as one
types. A completion is text from outside: it is shown, never executed, and never becomes markup.
"""

import html
import re
import unicodedata
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import pandas as pd

from helpers.arithmetic import MAX_LENGTH, evaluate, written_numbers
from helpers.paths import DATA
from helpers.prompts import parse_completion
from helpers.rewards import ANSWER, PRECISION, RIGHT_SIDE
from helpers.rewards import equation_reward_func as equation_rewards
from helpers.rewards import strict_format_reward_func as format_rewards

LONGEST_SHOWN = 20_000  # characters; the scores are of the whole text
EXAMPLE_FORM = "<think>...</think>\n<answer>... = ...</answer>"
# recorded puzzles that a part of their group solves; the groups of the first two have three scores
TELLING = ("8, 11, 12 -> 44", "7, 7, 7 -> 56", "1, 1, 2 -> 1", "1, 4, 12 -> 3", "2, 3, 8 -> 13",
           "2, 5, 9 -> 55", "2, 10, 10 -> 22", "3, 8, 10 -> 15", "4, 6, 7 -> 9", "5, 7, 8 -> 6",
           "6, 6, 10 -> 9", "7, 8, 10 -> 25")
PUZZLE_FORM = "Write a puzzle as its numbers, an arrow and the target: 4, 11, 8 -> 12"

_TAG = re.compile(r"</?(?:think|answer)>")
_TOKEN = re.compile(r"[^\s+\-*/()]+|[\s+\-*/()]+")
_PUZZLE = re.compile(r"\s*([0-9]{1,6}(?:[\s,]+[0-9]{1,6}){1,5})\s*(?:->|=|→)\s*([0-9]{1,6})\s*",
                     re.ASCII)
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))  # control, surrogate, unassigned...
_TOLERANCE = Fraction(1, PRECISION)
_AFTER = {"<think>": "thought", "<answer>": "unread"}  # what follows a tag, else "outside"


class Part(NamedTuple):
    """A stretch of a completion; the parts of a completion join to the whole of it."""

    kind: str  # a key of `KINDS`
    text: str
    given: int | None = None  # of a number: which of the given ones it uses, counted from 0


class Explanation(NamedTuple):
    """What `explain` finds; a reward that is full has no reasons, any other at least one."""

    parts: tuple[Part, ...]
    unused: tuple[int, ...]
    format_score: float
    equation_score: float
    format_reasons: tuple[str, ...]
    equation_reasons: tuple[str, ...]


def _scores(texts, nums, target):
    """Both rewards of completions of one puzzle."""
    n = len(texts)
    return format_rewards(texts), equation_rewards([""] * n, texts, [target] * n, [list(nums)] * n)


def explain(text, nums, target):
    """Take a completion, any text, apart and say why each reward is not full; never raises.

    Parameters
    ----------
    text, nums, target : str, sequence of int, int
        The completion and its puzzle.

    Returns
    -------
    Explanation
        The scores are those of `helpers.rewards`; the reasons are plain text, to be escaped.
    """
    nums, target, parsed = [int(n) for n in nums], int(target), parse_completion(text)
    parts = tuple(_parts(text, nums, parsed.equation))
    return Explanation(
        parts, tuple(sorted(set(range(len(nums))) - {part.given for part in parts})),
        *(scores[0] for scores in _scores([text], nums, target)),
        tuple(_format_reasons(text, parsed.answer)),
        tuple(_equation_reasons(text, parsed.equation, nums, target)))


def _parts(text, nums, equation):
    start = len(text) if equation is None else text.index("<answer>") + len("<answer>")
    yield from _walk(text[:start], "outside")
    if equation is not None:
        yield from _equation_parts(equation, nums)
        yield from _walk(text[start + len(equation) :], "unread")


def _walk(text, where):
    """Split at the tags; `where` is the kind of what stands before the first of them."""
    place, before = 0, ""
    for match in [*_TAG.finditer(text), None]:
        chunk = text[place : match.start() if match else len(text)]
        tag = match.group() if match else ""
        demanded = (before, tag) in (("</think>", "<answer>"), ("</answer>", ""))
        if chunk:
            yield Part("newline" if chunk == "\n" and demanded else where, chunk)
        if match:
            yield Part("tag", tag)
            place, before, where = match.end(), tag, _AFTER.get(tag, "outside")


def _equation_parts(equation, nums):
    read = len(equation) <= 2 * MAX_LENGTH
    left, equals, right = equation.partition("=") if read else ("", "", equation)
    free = list(enumerate(map(str, nums)))  # the given numbers that are not used yet
    for token in _TOKEN.findall(left):
        given = next((pair for pair in free if pair[1] == token), None)
        if token[0].isspace() or token[0] in "+-*/()":
            yield Part("operator", token)
        elif given:
            free.remove(given)
            yield Part("number", token, given[0])
        else:
            yield Part("wrong number", token)
    if equals:
        yield Part("equals", "=")
    if right:
        yield Part("right side" if read and "=" not in right else "unread", right)


def _format_reasons(text, answer):
    if answer is not None:
        lines = len(answer.strip().splitlines())
        if lines != 1:
            yield "the answer is empty" if lines == 0 else f"the answer has {lines} lines, not one"
        if "=" not in answer:
            yield "the answer has no ="
        others = sorted(c for c in set(answer) if not ANSWER.fullmatch(c))
        if others:
            yield f"the answer may not hold {_listed([_named(c) for c in others])}"
        return
    body = text.removesuffix("\n")
    if not body.startswith("<think>"):
        start = body.find("<think>")
        yield ("there is no <think>" if start < 0 else
               f"before <think> stands {_quoted(body[:start])}; nothing may")
    if "</think>\n<answer>" not in body:
        opened = body.find("<answer>")
        closed = body.rfind("</think>", 0, max(opened, 0))
        missing = [f"no {tag}" for tag in ("</think>", "<answer>") if tag not in body]
        between = body[closed + len("</think>") : opened]
        yield (f"there is {' and '.join(missing)}" if missing else
               "<answer> stands before </think>" if closed < 0 else
               f"between </think> and <answer> stands {_quoted(between)}, not one newline"
               if between else "between </think> and <answer> there is no newline")
    if not body.endswith("</answer>"):
        end = body.rfind("</answer>")
        yield ("there is no </answer>" if end < 0 else
               f"after </answer> stands {_quoted(body[end + len('</answer>') :])}; nothing may")


def _equation_reasons(text, equation, nums, target):
    if equation is None:
        opened, closed = text.count("<answer>"), text.count("</answer>")
        yield ("</answer> stands before <answer>" if opened == closed == 1 else
               f"there has to be one <answer> and one </answer>, not {opened:,} and {closed:,}")
    elif len(equation) > 2 * MAX_LENGTH:
        yield f"the answer has {len(equation):,} characters; at most {2 * MAX_LENGTH} are read"
    elif equation.count("=") != 1:
        yield f"the answer has {equation.count('=')} equals signs, not one"
    else:
        yield from _side_reasons(*equation.split("="), nums, target)


def _side_reasons(left, right, nums, target):
    shown = Fraction(right.strip()) if RIGHT_SIDE.fullmatch(right) else None
    if shown is None:
        yield ("the right side is empty" if not right.strip() else
               f"the right side, {_quoted(right)}, is not a plain number of at most 12 digits")
    elif abs(shown - target) > 2 * _TOLERANCE:
        yield f"the right side is {_number(shown)}, not the target {target}"
    used, given = Counter(written_numbers(left)), Counter(map(str, nums))
    others = sorted(set(used) - set(given))
    if others:
        yield f"not among the given numbers: {_listed([_quoted(token) for token in others])}"
    for number, times in given.items():
        if used[number] == 0:
            yield f"{number} is {f'given {_times(times)} and ' if times > 1 else ''}not used"
        elif used[number] != times:
            yield f"{number} is given {_times(times)} and used {_times(used[number])}"
    try:
        value = evaluate(left)
    except ValueError as error:
        yield f"the left side {_quoted(left)} has no value: {error}"
        return
    if abs(value - target) > _TOLERANCE:
        yield f"the left side is {_number(value)}, not the target {target}"
    if shown is not None and abs(value - shown) > _TOLERANCE:
        yield f"the two sides differ: {_number(value)} is not {_number(shown)}"


def _times(count):
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _listed(names, most=4):
    return ", ".join(names[:most] + [f"{len(names) - most:,} more"] * (len(names) > most))


def _named(character):
    name = unicodedata.name(character, "")
    return f"{_quoted(character)} (U+{ord(character):04X}{f', {name}' if name else ''})"


def _quoted(text, most=40):
    return f"“{_visible(text[:most])}{'…' if len(text) > most else ''}”"


def _number(value):
    exact = str(value)
    return exact if len(exact) <= 24 else f"about {float(value):.12g}"


def _visible(text):
    """Write out what a page cannot show, or what would reorder or hide other text."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"‹U+{ord(c):04X}›" if c not in "\n\t" and unicodedata.category(c) in _UNSEEN
                   else c for c in text)


# The look of each kind, as an element that still says something where styles are stripped, a
# style, and the words of the legend. Dark letters on every coloured ground: the page may be dark.
KINDS = {
    "tag": ("b", "color:#6a3d9a;background:#eee6f6", "tag"),
    "thought": ("i", "color:#111;background:#e8eef5", "thought, not scored"),
    "newline": ("span", "", ""),
    "operator": ("span", "", ""),
    "number": ("b", "color:#111;background:{}", "given number"),
    "wrong number": ("mark", "color:#fff;background:#b00020", "not given, or used too often"),
    "equals": ("b", "", ""),
    "right side": ("u", "color:#111;background:#d9d9d9", "right side"),
    "outside": ("mark", "color:#fff;background:#5d4037", "text outside the parts"),
    "unread": ("s", "color:#111;background:#ffd9b3", "answer that cannot be read"),
}
_GROUNDS = ("#8fd0f5", "#ffc34d", "#63cfae", "#f3e95c", "#e6a3c8", "#f59a5f")  # of given a, b, ...
_CELL = "padding:2px 10px;text-align:left;vertical-align:top;line-height:1.4"


def _span(part):
    element, style, words = KINDS[part.kind]
    shown, label = html.escape(_visible(part.text)), ""
    if part.given is not None:
        letter = chr(ord("a") + part.given % 26)
        label, words = f"<sub>{letter}</sub>", f"given number {letter}"
        style = style.format(_GROUNDS[part.given % len(_GROUNDS)])
    hover = f' title="{words}"' if words else ""
    style = f' style="{style}"' if style else ""
    return f'<{element} data-part="{part.kind}"{hover}{style}>{shown}{label}</{element}>'


def message(text):
    """Return a note to the reader as HTML; `text` is escaped."""
    return (f'<p data-part="message" style="color:#111;background:#fff3c4;padding:2px 8px">'
            f"<b>Note:</b> {html.escape(_visible(text))}</p>")


def render(text, nums, target):
    """Show a completion coloured by part, both scores, and the reason for every lost point.

    Takes what `explain` takes; returns HTML (str) without scripts, links or style sheets. The text
    is escaped; what cannot be shown is written out as ‹U+0000›.
    """
    found, left = explain(text, nums, target), LONGEST_SHOWN
    notes = {
        "The completion is empty: type or paste one, or step through the recorded.":
            not text.strip(),
        f"{len(text):,} characters: the first {LONGEST_SHOWN:,} are shown, the scores are of the "
        "whole text.": len(text) > LONGEST_SHOWN,
        "Characters that a page cannot show are written out, like ‹U+0000›.":
            _visible(text) != text,
        "\ufffd stands for half of a surrogate pair, or another damaged character.":
            "\ufffd" in text,
    }
    spans = []
    for part in found.parts:
        spans += [_span(part._replace(text=part.text[:left]))] if left > 0 else []
        left -= len(part.text)
    given = [_span(Part("number", str(int(number)), i)) + " (not used)" * (i in found.unused)
             for i, number in enumerate(nums)]
    looks = [KINDS[kind] for kind in dict.fromkeys(part.kind for part in found.parts)]
    legend = "; ".join(f'<{element} style="{style.format(_GROUNDS[0])}">{words}</{element}>'
                       for element, style, words in looks if words)
    results = (("format", found.format_score, found.format_reasons),
               ("equation", found.equation_score, found.equation_reasons))
    rows = "".join(_row([f"{name} reward", f'<b data-score="{name}">{score:.1f}</b> of 1.0',
                         f'<ul style="margin:0;padding-left:1.2em">{"".join(map(_item, why))}</ul>'
                         if why else "nothing is missing"]) for name, score, why in results)
    return (f'<div data-part="verdict">{"".join(message(n) for n, true in notes.items() if true)}'
            f"<p>Given: {', '.join(given)}. Target: <b>{int(target)}</b></p>"
            '<pre style="white-space:pre-wrap;overflow-wrap:anywhere;max-height:24em;'
            'overflow:auto;line-height:1.7;border:1px solid #999;padding:4px 8px">'
            f"{''.join(spans)}</pre><p><small>{legend}</small></p>"
            f"<table><tbody>{rows}</tbody></table></div>")


def _row(cells, element="td"):
    cells = "".join(f'<{element} style="{_CELL}">{cell}</{element}>' for cell in cells)
    return f"<tr>{cells}</tr>"


def _item(reason):
    return f"<li>{html.escape(_visible(reason))}</li>"


def advantages(rewards):
    """Return each completion's advantage over its group, as trl scales it by default.

    ``(r - mean) / (std + 1e-4)``, std with n - 1: Shao et al. 2024, https://arxiv.org/abs/2402.03300,
    section 4.1.2, with the constant of trl's `GRPOTrainer`. Zeros where all rewards are equal.

    Parameters
    ----------
    rewards : sequence of float, length 2 or more
        The weighted sums of the rewards of one group.
    """
    rewards = np.asarray(rewards, float)
    if rewards.ndim != 1 or len(rewards) < 2:
        raise ValueError("advantages compare a group: give two rewards or more")
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)


def render_group(completions, nums, target, weights=(1.0, 1.0)):
    """Show what the weights of the two rewards make of a group of completions of one puzzle.

    Parameters
    ----------
    completions : dict of str to str
        Completions by name.
    nums, target : sequence of int, int
        The puzzle.
    weights : tuple of float
        Of the format reward and the equation reward (`reward_weights` in trl).

    Returns
    -------
    str
        HTML: a row per completion with its scores, weighted sum and advantage.
    """
    if len(completions) < 2:
        return message("Advantages compare the completions of one group; for this puzzle none "
                       "are recorded.")
    texts = list(completions.values())
    form, equation = map(np.array, _scores(texts, nums, target))
    total = weights[0] * form + weights[1] * equation
    rows = []
    for name, text, *scores, advantage in zip(completions, texts, form, equation, total,
                                              advantages(total), strict=True):
        answer = parse_completion(text).equation
        answer = "no single answer" if answer is None else _quoted(answer.strip())
        rows.append(_row([html.escape(_visible(name)), html.escape(answer),
                          *(f"{score:.2f}" for score in scores), _bar(advantage)]))
    heads = ("completion", "answer", "format", "equation", "weighted sum", "advantage")
    note = "" if np.ptp(total) > 0 else message(
        "All weighted sums are equal: every advantage is 0, and the group teaches nothing.")
    return (f'<div data-part="group">{note}<table><thead>{_row(heads, "th")}</thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>")


def _bar(advantage):
    """Draw an advantage as a bar to the right or left of zero, 3 at most (60 px)."""
    width = min(abs(advantage), 3) * 20
    left, ground = (60, "#0072b2") if advantage > 0 else (60 - width, "#d55e00")
    return (f'<span style="white-space:nowrap"><span data-part="advantage" '
            f'style="display:inline-block;width:3.5em">{advantage:+.2f}</span><span style="'
            f"display:inline-block;height:0.8em;margin-left:{left:.0f}px;width:{width:.0f}px;"
            f'background:{ground}"></span></span>')


def parse_puzzle(text):
    """Read a puzzle that a person typed, as ``4, 11, 8 -> 12``: its numbers and its target.

    Raises
    ------
    ValueError
        For anything else, with a sentence that says what to write.
    """
    match = _PUZZLE.fullmatch(text) if len(text) <= 100 else None
    if match is None:
        raise ValueError(f"{PUZZLE_FORM} (2 to 6 numbers, digits 0 to 9, at most 6 each).")
    return [int(n) for n in re.findall("[0-9]+", match.group(1))], int(match.group(2))


def write_puzzle(nums, target):
    """Write a puzzle as `parse_puzzle` reads it."""
    return f"{', '.join(str(int(n)) for n in nums)} -> {int(target)}"


def recorded_completions():
    """Read the shipped completions of the CPU model: five runs, before and after training.

    Returns
    -------
    pandas.DataFrame
        Columns ``puzzle`` (as `write_puzzle`, numbers sorted), ``run, stage, temperature,
        completion``. All runs start from one model, so the rows of a puzzle with stage "before"
        and temperature 1 are samples of one policy; each saw the numbers in its own order.
    """
    columns = ["stage", "temperature", "nums", "target", "completion"]
    frame = pd.concat([pd.read_parquet(path, columns=columns).assign(run=path.parent.name)
                       for path in sorted(DATA.glob("*/cpu-seed*/evaluation.parquet"))])
    pairs = zip(frame.pop("nums"), frame.pop("target"), strict=True)
    frame["puzzle"] = [write_puzzle(sorted(nums), target) for nums, target in pairs]
    return frame.sort_values(["stage", "temperature", "run"], kind="stable",
                             ascending=[False, False, True], ignore_index=True)


def group_of(recorded, puzzle):
    """Return the starting model's completions of a puzzle at temperature 1, by run."""
    rows = recorded[(recorded["puzzle"] == puzzle) & (recorded["stage"] == "before")
                    & (recorded["temperature"] == 1.0)]
    return {f"sample {i + 1}": text for i, text in enumerate(rows["completion"])}


def _sendable(text):
    """Replace lone surrogates by U+FFFD: messages between kernel and page are UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _Sendable:
    """For text widgets: the echo of a lone surrogate would fail, and the text be lost unseen."""

    def set_state(self, sync_data):
        super().set_state({name: _sendable(value) if isinstance(value, str) else value
                           for name, value in sync_data.items()})


_Line = type("_Line", (_Sendable, widgets.Text), {})
_Area = type("_Area", (_Sendable, widgets.Textarea), {})


def playground(recorded, presets=None):
    """Return the playground: widgets that score a completion as one types.

    Parameters
    ----------
    recorded : pandas.DataFrame
        As from `recorded_completions`.
    presets : dict of str to tuple, optional
        More completions to choose, by name: ``(text, nums, target)``.
    """

    def wide(width, **more):
        return {"layout": {"width": width, **more}, "style": {"description_width": "9em"}}

    choices = {f"recorded: {puzzle}": (None, *parse_puzzle(puzzle))
               for puzzle in TELLING} | (presets or {})
    choice = widgets.Dropdown(options=list(choices), description="choose", **wide("60%"))
    puzzle = _Line(description="puzzle", placeholder=PUZZLE_FORM, **wide("60%"))
    back, onward = (widgets.Button(description=name, layout={"width": "8em"})
                    for name in ("◀ previous", "next ▶"))
    box = _Area(description="completion", placeholder=EXAMPLE_FORM,
                **wide("98%", height="9em"))
    sliders = [widgets.FloatSlider(1.0, min=0, max=2, step=0.1, description=f"{name} weight",
                                   style={"description_width": "9em"})
               for name in ("format", "equation")]
    where, verdict, group = (widgets.HTML(layout={"width": width})
                             for width in ("auto", "98%", "98%"))
    rows, place, asked = recorded[:0], 0, None  # the puzzle's rows, the one shown, the puzzle

    def show_group(*_):
        completions = {} if asked is None else group_of(recorded, write_puzzle(sorted(asked[0]),
                                                                               asked[1]))
        if completions and box.value.strip() and box.value not in completions.values():
            completions["the one above"] = box.value
        group.value = "" if asked is None else render_group(
            completions, *asked, [slider.value for slider in sliders])

    def show(*_):
        if asked is not None:
            verdict.value = render(box.value, *asked)
        show_group()

    def step(by):
        nonlocal place
        if not len(rows):
            return
        place = (place + by) % len(rows)
        row = rows.iloc[place]
        where.value = html.escape(
            f"{place + 1} of {len(rows)}: {row['stage']} training, temperature "
            f"{row['temperature']:g}, run {row['run']}")
        box.value = row["completion"]

    def new_puzzle(*_):
        nonlocal rows, place, asked
        rows, place, asked = recorded[:0], 0, None
        try:
            asked = nums, target = parse_puzzle(puzzle.value)
        except ValueError as error:
            where.value, verdict.value = "", message(str(error))
        else:
            rows = recorded[recorded["puzzle"] == write_puzzle(sorted(nums), target)]
            where.value = f"{len(rows)} recorded" if len(rows) else "none recorded for this puzzle"
        show()

    def choose(*_):
        text, nums, target = choices[choice.value]
        puzzle.value = write_puzzle(nums, target)
        if text is None:
            step(0)
        else:
            box.value = _sendable(text)

    for widget, answer in ((puzzle, new_puzzle), (box, show), (choice, choose),
                           *((slider, show_group) for slider in sliders)):
        widget.observe(answer, "value")
    back.on_click(lambda _: step(-1))
    onward.on_click(lambda _: step(1))
    choose()
    return widgets.VBox([choice, puzzle, widgets.HBox([back, onward, where]), box, verdict,
                         widgets.HBox(sliders), group])
