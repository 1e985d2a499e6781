"""What a reader sees while a model trains: a line that lives, curves, and a group's two ends."""

import re
from html import escape

import pandas as pd
from IPython.display import DisplayHandle
from transformers import TrainerCallback

from helpers.evaluation import success
from helpers.forecast import pace
from helpers.plots import picture, training_curves
from helpers.runs import read_rows

STEPS = 5  # in the means of the line


class Progress(TrainerCallback):
    """Show a training below its cell, in three displays that are replaced as it goes on.

    Parameters
    ----------
    run : pathlib.Path
        The run's folder: the curves are drawn from its metrics.jsonl and samples.jsonl.
    profile : helpers.profiles.Profile, optional
        What is trained: recorded runs of it tell how long it will take.
    every, look : int
        Steps between two drawings of the curves, and between two looks at completions.
    """

    def __init__(self, run, profile=None, every=5, look=10):
        # of a GPU the preflight tells, for this card; here no card is measured again
        expected = pace(profile) if profile and not profile.needs_gpu else None
        self.pace = expected and expected["seconds"]
        self.run, self.every, self.look = run, every, look
        self.handles, self.steps, self.trainer = {}, None, None  # the trainer: train_or_resume

    def on_train_begin(self, args, state, control, **kwargs):
        """Open new displays: those of a cell that ran before are gone."""
        if state.is_world_process_zero:  # of several processes the first shows
            self.handles, self.steps = {}, state.max_steps
            self._line(read_rows(self.run / "metrics.jsonl"))

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Renew the line at each step, curves and completions every few."""
        if "reward" not in (logs or {}) or not state.is_world_process_zero:
            return
        self._line(read_rows(self.run / "metrics.jsonl"))
        if state.global_step % self.every == 0:
            self.draw()
        if state.global_step % self.look == 0 and self.trainer and self.trainer._logs["advantages"]:
            self._show("look", {"text/html": ends_of_a_group(self.trainer, state.global_step)})

    def show_complete(self, steps):
        """Show line and curves of a run that is complete, in displays of their own."""
        self.handles, self.steps = {}, steps
        self._line(read_rows(self.run / "metrics.jsonl"))
        self.draw()

    def draw(self, args=None, state=None, *rest, **kwargs):
        """Show the curves, replacing those shown before."""
        first = state is None or state.is_world_process_zero
        if first and (rows := read_rows(self.run / "metrics.jsonl")):
            looks = pd.DataFrame(read_rows(self.run / "samples.jsonl"))
            held_out = success(looks, by=("step",)) if len(looks) else None
            image = picture(training_curves({self.run.name: rows}, steps=self.steps,
                                            held_out=held_out),
                            f"Training curves of {self.run.name} until step {rows[-1]['step']}")
            self._show("curves", image, raw=False)

    on_train_end = draw  # the last steps, too

    def _line(self, rows):
        text = status(rows, self.steps, self.pace)
        self._show("line", {"text/plain": text, "text/html": f"<code>{escape(text)}</code>"})

    def _show(self, name, shown, raw=True):
        if name in self.handles:
            self.handles[name].update(shown, raw=raw)
        else:
            self.handles[name] = DisplayHandle()
            self.handles[name].display(shown, raw=raw)


def clock(seconds):
    """Write a time as minutes and seconds, or hours and minutes: ``4:05``, ``2 h 10 min``."""
    minutes, seconds = divmod(round(seconds), 60)
    return (f"{minutes}:{seconds:02d}" if minutes < 60
            else f"{minutes // 60} h {minutes % 60} min")


def status(rows, steps, expected=None):
    """Return the line on a training: step, time, time left, and right answers then and now.

    Parameters
    ----------
    rows : list of dict
        The rows of metrics.jsonl so far.
    steps : int
        Of the whole run.
    expected : float, optional
        Seconds a step, used as long as there is no row.
    """
    if not rows:
        about = f", about {clock(expected * steps)} in all" if expected else ""
        return f"step 0 of {steps}{about} | the first completions are being written"
    done, spent = rows[-1]["step"], rows[-1]["seconds"]
    last = rows[-11:]  # the first step of a training takes longer than the others
    each = (last[-1]["seconds"] - last[0]["seconds"]) / max(1, last[-1]["step"] - last[0]["step"])
    each = each or spent / done
    left = f"about {clock(each * (steps - done))} left" if done < steps else "complete"
    paid = "equation_reward" if "equation_reward" in rows[-1] else "reward"
    start, now = (pd.Series([row[paid] for row in part]).mean()
                  for part in (rows[:STEPS], rows[-STEPS:]))
    share = (f"right now {now:.0%}, at the start {start:.0%}" if paid == "equation_reward"
             else f"reward now {now:.2f}, at the start {start:.2f}")
    return f"step {done} of {steps} | {clock(spent)} so far, {left} | {each:.1f} s a step | {share}"


def ends_of_a_group(trainer, step):
    """Return, as HTML, the best and the worst completion of one group of a trainer's last step.

    It is the first group whose rewards differ, or the first of all where none does.
    """
    logs, size = trainer._logs, trainer.num_generations  # trl's own record of the last batch
    texts = list(logs["completion"])
    # equal rewards of 0.1 leave some 1e-4: in float32 they are not quite their own mean
    advantages = [round(value, 2) + 0.0 for value in logs["advantages"]]
    starts = range(0, len(advantages), size)
    first = next((i for i in starts if max(advantages[i:i + size], key=abs)), 0)
    group = sorted(range(first, first + size), key=lambda i: advantages[i])
    puzzle = re.search(r"Numbers: (.+)\nTarget: (\d+)", logs["prompt"][first])
    cells = ""
    for i in (group[-1], group[0]):
        rewards = ", ".join(f"{name.removesuffix('_reward_func').replace('_', ' ')} {values[i]:g}"
                            for name, values in logs["rewards"].items())
        ground = "#9ecae9" if advantages[i] > 0 else "#fdbe85" if advantages[i] < 0 else "#dddddd"
        cells += ('<td style="text-align:left;vertical-align:top;max-width:32em">'
                  f'<div style="color:#111;background:{ground};padding:2px 6px">advantage '
                  f'{advantages[i]:+.2f} ({rewards})</div><pre style="white-space:pre-wrap;'
                  f'max-height:14em;overflow:auto">{escape(texts[i])}</pre></td>')
    title = f"{puzzle[1]} -> {puzzle[2]}" if puzzle else "one puzzle"
    return (f"<p>Step {step}, {escape(title)}: the best and the worst of {size} completions</p>"
            f"<table><tr>{cells}</tr></table>")
