"""Figures that more than one notebook draws."""

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

    Returns
    -------
    matplotlib.figure.Figure
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


def success_bars(tables, axis, colors=("0.6", "C0")):
    """Draw success before and after by temperature, with its interval.

    Parameters
    ----------
    tables : pandas.DataFrame
        Indexed by stage and temperature, with columns ``rate, low, high``: from
        `helpers.evaluation.success`, or a mean over seeds with their range.
    axis : matplotlib.axes.Axes
        Where to draw.
    """
    stages = list(dict.fromkeys(tables.index.get_level_values("stage")))
    temperatures = list(dict.fromkeys(tables.index.get_level_values("temperature")))
    width = 0.8 / len(stages)
    for k, stage in enumerate(stages):
        part = tables.loc[stage].loc[temperatures]
        places = [i + (k - (len(stages) - 1) / 2) * width for i in range(len(part))]
        # rounding can put an end of the interval on the wrong side of the rate
        below, above = (part["rate"] - part["low"]).clip(0), (part["high"] - part["rate"]).clip(0)
        axis.bar(places, 100 * part["rate"], width, label=stage, color=colors[k % len(colors)],
                 yerr=[100 * below, 100 * above], capsize=3)
    names = ["greedy" if t == 0 else f"T = {t:g}" for t in temperatures]
    axis.set_xticks(range(len(temperatures)), names)
    axis.set_ylabel("success on held-out puzzles (%)")
    axis.set_ylim(0, 100)
    axis.grid(axis="y", alpha=0.3)
    axis.legend()
