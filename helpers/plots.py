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
