"""Figures that more than one notebook draws."""

from io import BytesIO

import numpy as np
import pandas as pd

PANELS = {
    "equation_reward": "equations right (share)",
    "format_reward": "format reward",
    "completion_tokens": "completion length (tokens)",
    "truncated": "cut off (share)",
}

SHARES = {"equation_reward", "format_reward", "truncated", "zero_spread_groups", "clip_ratio"}


def training_curves(runs, panels=PANELS, window=10, steps=None, held_out=None):
    """Draw training metrics by step, a line a run: raw values faint, running means strong.

    Parameters
    ----------
    runs : dict of str to list of dict
        Rows of metrics.jsonl by a name for the legend.
    panels : dict of str to str
        Metric to title, one panel each; up to three in a row.
    window : int
        Steps in the running mean.
    steps : int, optional
        Where the axis of steps ends; with the longest run if not given.
    held_out : pandas.DataFrame, optional
        Success on held-out puzzles by step, as `helpers.evaluation.success` returns it: points
        with their intervals beside the share of right equations.
    """
    import matplotlib.pyplot as plt

    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(9, 2.6 * lines), squeeze=False)
    for axis, (metric, title) in zip(axes.flat, panels.items(), strict=False):
        for index, (name, rows) in enumerate(runs.items()):
            table = pd.DataFrame(rows).set_index("step")
            if metric not in table:
                continue
            color, dashes = f"C{index}", ("-", "--", "-.", ":")[index % 4]  # readable in grey
            axis.plot(table[metric], color=color, alpha=0.25, linewidth=0.8)
            smooth = table[metric].rolling(window, min_periods=1).mean()
            axis.plot(smooth, color=color, label=name, linestyle=dashes)
        if metric == "equation_reward" and held_out is not None:
            rate, errors = held_out["rate"], abs(held_out[["low", "high"]].T - held_out["rate"])
            axis.errorbar(held_out.index, rate, errors, fmt="o", color="C1", clip_on=False,
                          label=f"held out, {held_out['n'].iloc[0]} puzzles")
            axis.legend(fontsize=9)
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
        axis.set_xlim(0, steps)
        axis.set_ylim(0, 1.05 if metric in SHARES else None)
    for axis in axes.flat[len(panels):]:
        axis.axis("off")
    if len(runs) > 1:
        axes[0][0].legend(fontsize=9)
    figure.tight_layout()
    return figure


STAGES = ("puzzle", "prompt", "group", "rewards", "advantages", "update")
NOTES = ("numbers\nand a target", "what the\nmodel reads", "completions\nof one prompt",
         "a score\nfor each", "against the\ngroup's mean", "better ones\nare pushed up")


def loop(stage):
    """Show the loop that is GRPO, with the stage marked that a notebook is about.

    Parameters
    ----------
    stage : str
        One of `STAGES`, or "all".
    """
    import matplotlib.pyplot as plt

    if stage not in (*STAGES, "all"):
        raise ValueError(f"no stage is called {stage!r}; there are {', '.join(STAGES)} and all")
    figure, axis = plt.subplots(figsize=(9, 1.8), facecolor="white")  # in any style
    for x, (name, note) in enumerate(zip(STAGES, NOTES, strict=True)):
        here = stage in (name, "all")
        axis.text(x, 0.3, name, ha="center", va="center", fontsize=11, weight="bold",
                  color="white" if here else "#333333", bbox={
                      "boxstyle": "round,pad=0.45", "edgecolor": "#0072B2",
                      "facecolor": "#0072B2" if here else "#E8EFF6"})
        axis.text(x, -0.3, note, ha="center", va="top", fontsize=9.5, color="#333333")
        if x:
            axis.annotate("", (x - 0.4, 0.3), (x - 0.6, 0.3), zorder=0,
                          arrowprops={"arrowstyle": "->", "color": "#666666"})
    axis.annotate("", (0, 0.8), (5, 0.8), arrowprops={
        "arrowstyle": "->", "connectionstyle": "bar,fraction=0.04", "color": "#666666"})
    axis.text(2.5, 1.42, "again, with the updated model", ha="center", fontsize=9.5,
              color="#666666")
    axis.set(xlim=(-0.5, 5.5), ylim=(-1.1, 1.8))
    axis.axis("off")
    figure.tight_layout(pad=0.2)
    show(figure, f"The loop of GRPO: {', '.join(STAGES)}, and again; marked here: {stage}")


def picture(figure, alt):
    """Return a figure as an image at twice a screen's resolution, and close it.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        What is drawn.
    alt : str
        What it shows, in a sentence, for a reader who cannot see it.
    """
    import matplotlib.pyplot as plt
    from IPython.display import Image
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from PIL.Image import fromarray

    if figure.get_facecolor()[3] < 1:  # a PNG without transparency would have a black ground
        light = np.mean(to_rgb(plt.rcParams["text.color"])) > 0.5
        figure.set_facecolor("black" if light else "white")
    figure.dpi = 2 * (dpi := figure.dpi)
    canvas = FigureCanvasAgg(figure)  # whatever backend the reader has
    canvas.draw()
    image, file = fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), BytesIO()
    image.quantize(255).save(file, "png", optimize=True)  # a third of the size of full colour
    plt.close(figure)
    return Image(file.getvalue(), width=round(figure.get_figwidth() * dpi),
                 metadata={"alt": alt})  # the IPython of Colab has no argument alt


def show(figure, alt):
    """Display a figure as `picture` makes it; the arguments are the same."""
    from IPython.display import display

    display(picture(figure, alt))
