"""Figures that more than one notebook draws."""

from io import BytesIO

import numpy as np
import pandas as pd

PANELS = {
    "equation_reward": "equations right (share)",
    "format_reward": "format reward",
    "completion_tokens": "completion length (tokens)",
    "entropy": "entropy (nats a token)",
}


def training_curves(runs, panels=PANELS, window=10):
    """Draw training metrics by step, a line a run: raw values faint, running means strong.

    Parameters
    ----------
    runs : dict of str to list of dict
        Rows of metrics.jsonl by a name for the legend.
    panels : dict of str to str
        Metric to axis label, one panel each.
    window : int
        Steps in the running mean.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 2.9), squeeze=False)
    for axis, (metric, label) in zip(axes[0], panels.items(), strict=True):
        for index, (name, rows) in enumerate(runs.items()):
            table = pd.DataFrame(rows).set_index("step")
            if metric not in table:
                continue
            color, dashes = f"C{index}", ("-", "--", "-.", ":")[index % 4]  # readable in grey
            axis.plot(table[metric], color=color, alpha=0.25, linewidth=0.8)
            smooth = table[metric].rolling(window, min_periods=1).mean()
            axis.plot(smooth, color=color, label=name, linestyle=dashes)
        axis.set_xlabel("step")
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
    if len(runs) > 1:
        axes[0][0].legend(fontsize=8)
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
    figure, axis = plt.subplots(figsize=(9, 1.8))
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


def show(figure, alt):
    """Display a figure at twice a screen's resolution, with words for who cannot see it.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        What is shown, and closed afterwards.
    alt : str
        What the figure shows, in a sentence.
    """
    import matplotlib.pyplot as plt
    from IPython.display import Image, display
    from PIL.Image import fromarray

    figure.dpi = 2 * (dpi := figure.dpi)
    figure.canvas.draw()
    picture, file = fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB"), BytesIO()
    picture.quantize(255).save(file, "png", optimize=True)  # a third of the size of full colour
    plt.close(figure)
    display(Image(file.getvalue(), width=round(figure.get_figwidth() * dpi), alt=alt))
