"""Figures of the recorded runs; ``python -m lab.figures`` draws data/reference_runs/cpu.png."""

import argparse

import numpy as np
import pandas as pd

from helpers.evaluation import success
from helpers.paths import show
from helpers.runs import REFERENCE_RUNS, find_runs, read_rows

BEFORE_AFTER = {"before": {"color": "0.45", "marker": "s"},
                "after": {"color": "#0072B2", "marker": "o"}}


def temperature_name(temperature):
    """Return how a temperature is written in tables and figures."""
    return "greedy" if temperature == 0 else f"T = {temperature:g}"


def whiskers(part):
    """Lengths of the error bars; rounding can put an end on the wrong side of the rate."""
    return np.array([(part["rate"] - part["low"]).clip(0), (part["high"] - part["rate"]).clip(0)])


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


def success_points(rates, axis):
    """Draw each run's success before and after by temperature, with intervals and the runs' mean.

    Parameters
    ----------
    rates : pandas.DataFrame
        Indexed by stage, temperature and run, with columns ``rate, low, high``: from
        `helpers.evaluation.success`.
    axis : matplotlib.axes.Axes
        Where to draw.
    """
    temperatures = list(dict.fromkeys(rates.index.get_level_values("temperature")))
    for k, (stage, style) in enumerate(BEFORE_AFTER.items()):
        for x, temperature in enumerate(temperatures):
            part = 100 * rates.xs((stage, temperature), level=("stage", "temperature"))
            middle = x + 0.4 * (k - 0.5)
            places = middle + min(0.09, 0.34 / len(part)) * (
                np.arange(len(part)) - (len(part) - 1) / 2)
            axis.errorbar(places, part["rate"], yerr=whiskers(part), fmt=style["marker"],
                          markersize=5, capsize=3, color=style["color"],
                          label=None if x else f"{stage}: one run each")
            if len(part) > 1:
                axis.hlines(part["rate"].mean(), middle - 0.17, middle + 0.17, alpha=0.4,
                            color=style["color"], linewidth=5,
                            label=None if x else f"{stage}: mean of the runs")
    axis.set(xticks=range(len(temperatures)), xticklabels=map(temperature_name, temperatures),
             ylabel="success on held-out puzzles (%)", ylim=(0, 100))
    axis.grid(axis="y", alpha=0.3)
    axis.legend(ncols=2, fontsize=9)


def gain_points(gains, axis):
    """Draw paired gains by temperature and run, with their intervals.

    Parameters
    ----------
    gains : pandas.DataFrame
        Indexed by temperature and run, with columns ``gain, low, high`` between -1 and 1: from
        `helpers.intervals.paired_gain`.
    axis : matplotlib.axes.Axes
        Where to draw.
    """
    part = 100 * gains[["gain", "low", "high"]].rename(columns={"gain": "rate"})
    axis.errorbar(part["rate"], range(len(part)), xerr=whiskers(part), fmt="o", capsize=4,
                  color="#0072B2")
    axis.axvline(0, color="black", linewidth=0.8)
    names = [f"{run}, {temperature_name(temperature)}" for temperature, run in part.index]
    axis.set(yticks=range(len(part)), yticklabels=names, ylim=(len(part) - 0.5, -0.5),
             xlabel="gain in success (percentage points)")
    axis.grid(axis="x", alpha=0.3)


def kind_points(shares, axis):
    """Draw the share of each kind of completion, before and after, with intervals.

    Parameters
    ----------
    shares : pandas.DataFrame
        Indexed by stage and kind, with columns ``rate, low, high`` between 0 and 1.
    axis : matplotlib.axes.Axes
        Where to draw.
    """
    kinds = list(dict.fromkeys(shares.index.get_level_values("kind")))
    for k, (stage, style) in enumerate(BEFORE_AFTER.items()):
        part = 100 * shares.loc[stage].loc[kinds]
        axis.errorbar(part["rate"], [i + 0.24 * (k - 0.5) for i in range(len(kinds))],
                      xerr=whiskers(part), fmt=style["marker"], markersize=5, capsize=3,
                      color=style["color"], label=stage)
    axis.set(yticks=range(len(kinds)), yticklabels=kinds, ylim=(len(kinds) - 0.5, -0.5),
             xlabel="share of completions (%)")
    axis.set_xlim(left=0)
    axis.grid(axis="x", alpha=0.3)
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


def main():
    """Draw data/reference_runs/cpu.png from the recorded runs of the CPU profile."""
    argparse.ArgumentParser(prog="python -m lab.figures", description=main.__doc__).parse_args()
    picture = REFERENCE_RUNS / "cpu.png"
    reference_figure(find_runs("cpu")).savefig(picture, dpi=110)
    print(show(picture))


if __name__ == "__main__":
    main()
