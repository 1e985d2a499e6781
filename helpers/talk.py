"""Talk to a model: a puzzle of one's own, and a group of completions before and after training."""

from html import escape
from itertools import count

import ipywidgets as widgets
import numpy as np
import pandas as pd

from helpers import playground as pg
from helpers.evaluation import sample_completions
from helpers.prompts import build_messages
from helpers.solver import solve

GUIDE = "<b>Try:</b> type a puzzle and press Enter. Asking again gives other completions."


def talk(model, tokenizer, profile, before=None, group=8):
    """Return widgets that ask a model and what it was before training, each for a group.

    Both are asked a first puzzle at once. The model is left as it was and, without vLLM, so are
    torch's random numbers.

    Parameters
    ----------
    model, tokenizer, profile
        The trained model, as for `helpers.evaluation.sample_completions`.
    before : model, optional
        What it was trained from. Without it the model itself answers, its LoRA adapter off.
    group : int
        Completions in a group, two or more.

    Raises
    ------
    ValueError
        If there is nothing to compare with: no other model and no adapter, or a group of one.
    """
    if before is None and not hasattr(model, "disable_adapter"):
        raise ValueError("this model has no adapter to switch off: give the model that it was "
                         "trained from, before=load_model(profile)[0]")
    if group < 2:
        raise ValueError(f"a group of {group} has no advantages: give group=2 or more")
    asked = {"before training": (before or model, before is not None),
             "after training": (model, True)}
    puzzle, button = pg.puzzle_field(), widgets.Button(layout={"width": "auto"})
    note, page, seeds = widgets.HTML(), widgets.HTML(), count()

    def answer(nums, target):
        rows, seed = pd.DataFrame({"nums": [nums] * group, "target": target}), next(seeds)
        groups = {stage: sample_completions(
            policy, tokenizer, profile, rows, temperature=1.0, seed=seed, shuffle=False,
            adapter=adapter)["completion"] for stage, (policy, adapter) in asked.items()}
        return render_answer(groups, nums, target, profile.format_weight)

    def ask(*_):
        try:
            its = checked_puzzle(puzzle.value, tokenizer, profile)
        except ValueError as error:
            note.value = pg.message(str(error))
            return
        note.value, button.description = "", "writing ..."
        button.disabled = True
        try:
            page.value = answer(*its)
        except (RuntimeError, ValueError, OSError, MemoryError) as error:
            note.value = pg.message(f"Nothing was written: {type(error).__name__}: {error}")
        finally:
            button.disabled, button.description = False, "Ask"

    puzzle.value, button.description = pg.TELLING[0], "Ask"
    page.value = answer(*checked_puzzle(puzzle.value, tokenizer, profile))  # an error stops Run All
    button.on_click(ask)
    puzzle.on_msg(lambda _, sent, __: ask() if sent.get("event") == "submit" else None)  # Enter
    return pg.live_view("This conversation", GUIDE, [widgets.HBox([puzzle, button]), note, page],
                        note.value + page.value)


def checked_puzzle(text, tokenizer, profile):
    """Read a puzzle; a ValueError says why it is none, or why this model cannot be asked it."""
    nums, target = pg.parse_puzzle(text)
    messages = build_messages(nums, target)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id in ids:  # a tokenizer of whole words: it has some numbers, not all
        known = {int(word) for word in tokenizer.get_vocab() if word.isdecimal()}
        strange = ", ".join(str(number) for number in (*nums, target) if number not in known)
        raise ValueError(f"This model has no token for {strange}: write numbers from {min(known)} "
                         f"to {max(known)}.")
    if len(ids) > profile.max_prompt_length:
        raise ValueError(f"This prompt has {len(ids)} tokens, and the model was trained with at "
                         f"most {profile.max_prompt_length}: write fewer or smaller numbers.")
    return nums, target


def render_answer(groups, nums, target, format_weight=1.0):
    """Return groups of completions (str), by name, beside each other as HTML; text is escaped."""
    note = "" if solve(nums, target) else pg.message(
        "This puzzle has no solution: every equation reward is 0.")
    columns = "".join(_column(name, texts, nums, target, (format_weight, 1.0))
                      for name, texts in groups.items())
    return (f"<div>{note}Advantages are of {format_weight:g} × format + equation, for the puzzle "
            f'{escape(pg.write_puzzle(nums, target))}.<div style="display:flex;flex-wrap:wrap;'
            f'gap:1em">{columns}</div></div>')


def _column(name, texts, nums, target, weights):
    texts = {f"{number}": text for number, text in enumerate(texts, 1)}
    scores = np.array([pg.explain(text, nums, target)[2:4] for text in texts.values()])
    gains = pg.advantages(scores @ weights).round(2)  # a flat group's may be 1e-13, by rounding
    folded = "".join(_folded(
        f"{number}: advantage {gain:+.2f}, format {form:.1f}, equation {equation:.1f}, "
        f"{pg.shown_answer(text)}", pg.render(text, nums, target), gain, number == "1")
        for (number, text), (form, equation), gain in zip(texts.items(), scores, gains + 0.0,
                                                          strict=True))
    table = _folded("the group as a table", pg.render_group(texts, nums, target, weights))
    flat = "" if gains.any() else "; every advantage is 0"
    return (f'<div data-part="column" style="flex:1 1 28em;min-width:0"><b>{name}: '
            f"{scores[:, 1].sum():.0f} of {len(texts)} right{flat}</b>{folded}{table}</div>")


def _folded(summary, body, gain=0.0, unfolded=False):
    """Ground: blue for an advantage above 0, orange below, light enough for dark letters."""
    look = f"color:#111;background:hsl({205 if gain > 0 else 30},80%,{{:.0f}}%)" * bool(gain)
    return (f'<details{" open" * unfolded}><summary style="line-height:1.6;'
            f'{look.format(93 - 8 * min(abs(gain), 2.5))}">{summary}</summary>{body}</details>')
