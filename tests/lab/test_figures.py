"""Figures of the recorded runs."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from helpers import runs
from lab.figures import reference_figure, seeds_curve


def graded(k, n, **columns):
    return pd.DataFrame({"correct": [True] * k + [False] * (n - k), **columns})


def test_a_seeds_curve_is_the_mean_with_the_range_around_it():
    rows = {name: [{"step": s, "reward": value} for s, value in enumerate(values, start=1)]
            for name, values in {"a": [0.0, 2.0, 4.0], "b": [2.0, 4.0, 12.0]}.items()}
    figure, axis = plt.subplots()
    seeds_curve(rows, "reward", axis, window=2)
    (line,), (band,) = axis.lines, axis.collections
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata().tolist() == [1.0, 2.0, 5.5]  # of 0, 1, 3 and 2, 3, 8
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert corners == {(1, 0), (1, 2), (2, 1), (2, 3), (3, 3), (3, 8)}
    plt.close(figure)


def test_the_reference_figure_shows_the_mean_of_the_seeds(tmp_path):
    folders = [tmp_path / f"cpu-seed{seed}" for seed in (0, 1)]
    for folder, right in zip(folders, (30, 50), strict=True):
        folder.mkdir()
        runs.append_row(folder / "metrics.jsonl", {"step": 1, "equation_reward": right / 100})
        pd.concat([graded(10, 100, stage="before", temperature=1.0),
                   graded(right, 100, stage="after", temperature=1.0)]).to_parquet(
            folder / "evaluation.parquet")
    figure = reference_figure(folders)
    left, bars = figure.axes
    assert left.lines[0].get_ydata().tolist() == pytest.approx([0.4])
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([10, 40])
    assert "100 held-out puzzles" in bars.get_title()
    plt.close(figure)
