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
            color = f"C{index}"
            axis.plot(table[metric], color=color, alpha=0.25, linewidth=0.8)
            smooth = table[metric].rolling(window, min_periods=1).mean()
            axis.plot(smooth, color=color, label=name)
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


def seeds_curve(runs, metric, axis, window=10, **style):
    """Draw a metric's mean over the seeds by step, with the seeds' range as a band.

    Parameters
    ----------
    runs : dict of str to list of dict
        Rows of metrics.jsonl, one entry a seed.
    metric : str
        A column of the rows.
    axis : matplotlib.axes.Axes
        Where to draw.
    window : int
        Steps in the running mean that is taken of each seed first.
    """
    columns = {name: pd.DataFrame(rows).set_index("step")[metric] for name, rows in runs.items()}
    smooth = pd.DataFrame(columns).rolling(window, min_periods=1).mean()
    (line,) = axis.plot(smooth.mean(axis=1), **style)
    axis.fill_between(smooth.index, smooth.min(axis=1), smooth.max(axis=1), alpha=0.25,
                      color=line.get_color())
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)


def reference_figure(folders):
    """Draw what the recorded runs of one profile learned: training curve and held-out success.

    Parameters
    ----------
    folders : list of pathlib.Path
        Recorded runs, one a seed.

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib.pyplot as plt

    from helpers.evaluation import success
    from helpers.runs import read_rows

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    rows = {folder.name: read_rows(folder / "metrics.jsonl") for folder in folders}
    seeds_curve(rows, "equation_reward", left, color="C0")
    left.set_ylim(0, 1)
    left.set_ylabel("training puzzles solved (share)")
    left.set_title(f"GRPO, mean and range of {len(folders)} seeds", fontsize=10)
    frames = [pd.read_parquet(folder / "evaluation.parquet") for folder in folders]
    rates = pd.concat([success(frame)["rate"] for frame in frames], axis=1)
    rates = pd.DataFrame({"rate": rates.mean(axis=1), "low": rates.min(axis=1),
                          "high": rates.max(axis=1)})
    success_bars(rates, right)
    puzzles = success(frames[0])["n"].iloc[0]
    right.set_title(f"{puzzles} held-out puzzles, mean and range of the seeds", fontsize=10)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    from helpers.paths import show
    from helpers.runs import REFERENCE_RUNS, find_runs

    picture = REFERENCE_RUNS / "cpu.png"
    reference_figure(find_runs("cpu")).savefig(picture, dpi=110)
    print(show(picture))
