"""Compare recorded runs on one page: ``python -m lab.report RUN RUN ... [--to PAGE.html]``.

A RUN is a folder, or the name of one under runs/ or data/. The page holds its figures itself and
loads nothing. A run that cannot be compared is named with the reason and is not plotted.
"""

import argparse
import base64
import html
import io
import json
import re
import sys
from pathlib import Path

import pandas as pd

from helpers.dataset import load_split
from helpers.evaluation import success
from helpers.intervals import clustered_mean, paired_gain
from helpers.paths import DATA, RUNS, show
from helpers.puzzles import canonical
from helpers.rewards import is_correct
from helpers.runs import read_rows
from lab.mistakes import KINDS, kinds

SHELVES = (RUNS, DATA / "reference_runs", DATA / "attempts", DATA / "sweeps", DATA / "bad_rewards",
           DATA / "gallery")
COLUMNS = ("stage", "temperature", "nums", "target", "completion", "tokens", "correct")
STAGES = ("before", "after")
_PANELS = {"equation_reward": "equations right (share)", "completion_tokens": "length (tokens)",
           "entropy": "entropy (nats a token)",
           "zero_spread_groups": "groups without spread (share)"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
padding: 0 1rem }
img { max-width: 100%; height: auto } .wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px } th:first-child { text-align: left }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ccc;
vertical-align: top }
pre { background: #f4f4f4; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere }
.left-out { border-left: 4px solid #b00; padding-left: 1rem }
"""


def regrade(frame):
    """Grade recorded completions again with the reward of today; return a boolean Series."""
    graded = [
        is_correct(row.completion, [int(n) for n in row.nums], int(row.target))
        for row in frame.itertuples()
    ]
    return pd.Series(graded, index=frame.index)


def find_run(name):
    """Return the folder of a run from its path or its name under runs/ or data/.

    Raises
    ------
    ValueError
        If there is no such run, or several of that name.
    """
    if Path(name).is_dir():
        return Path(name)
    found = [shelf / name for shelf in SHELVES if (shelf / name).is_dir()]
    if len(found) != 1:
        where = ", ".join(show(folder) for folder in found) or "none"
        raise ValueError(f"{name}: a run is a folder, or the name of one under runs/ or data/; "
                         f"found {where}. Give its path")
    return found[0]


def read_run(folder):
    """Read a recorded run and check that it is whole.

    A run that `lab.record` stopped at its limit of time has fewer steps than its profile.

    Parameters
    ----------
    folder : pathlib.Path
        With config.json, metrics.jsonl and evaluation.parquet.

    Returns
    -------
    (dict, list of dict, pandas.DataFrame)
        The configuration, the metrics' rows, and the graded completions.

    Raises
    ------
    ValueError
        If something is missing, cut short, or was written or graded by another version.
    """
    for name in ("config.json", "metrics.jsonl", "evaluation.parquet"):
        if not (folder / name).is_file():
            raise ValueError(f"it is incomplete: no {name}. Train and evaluate it to the end with "
                             "`python -m lab.record` or notebooks 04 and 05")
    try:
        config = json.loads((folder / "config.json").read_text())
        rows, frame = read_rows(folder / "metrics.jsonl"), pd.read_parquet(
            folder / "evaluation.parquet")
    except (ValueError, OSError) as error:  # pyarrow's and json's errors are ValueErrors
        raise ValueError(f"a file is damaged ({error}): record the run again") from error
    missing = {"profile", "seed", "versions", "hardware", "date"}.difference(config)
    if missing:
        raise ValueError(f"its config.json is of another version: no {', '.join(sorted(missing))}")
    missing = set(COLUMNS).difference(frame.columns)
    if missing:
        raise ValueError("its evaluation.parquet is of another version: no column "
                         f"{', '.join(sorted(missing))}")
    steps = config["profile"]["steps"]
    limit = re.search(r" --minutes[ =]([0-9.]+)", config.get("command", ""))
    timed = limit and rows and rows[-1]["seconds"] >= 60 * float(limit[1])
    gapless = [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    if not gapless or (len(rows) != steps and not timed):
        raise ValueError(f"it is incomplete: {len(rows)} of {steps} steps are in metrics.jsonl. "
                         "Let the training go on to its end")
    counts = frame.groupby(["stage", "temperature"]).size()
    if set(frame["stage"]) != set(STAGES) or counts.nunique() != 1 or len(counts) % 2:
        raise ValueError("it is incomplete: the puzzles before and after are not the same number "
                         "at each temperature. Evaluate it again")
    changed = int((regrade(frame) != frame["correct"]).sum())
    if changed:
        raise ValueError(f"it was graded by another version of the reward: {changed} of "
                         f"{len(frame)} grades differ today. Evaluate it again")
    frame["puzzle"] = [canonical(*row) for row in zip(frame["nums"], frame["target"], strict=True)]
    return config, rows, frame


def comparable(folders):
    """Read runs and tell which of them can be set side by side.

    Parameters
    ----------
    folders : list of pathlib.Path
        The runs; the first whole one sets the puzzles, the temperatures and trl's version.

    Returns
    -------
    (dict, dict)
        Name to (config, rows, frame) of the runs that can be compared, and name to the reason for
        the others.
    """
    runs, left_out, first = {}, {}, None
    for folder in folders:
        name = folder.name if folder.name not in runs else show(folder)
        try:
            config, rows, frame = read_run(folder)
        except ValueError as error:
            left_out[name] = str(error)
            continue
        asked = frozenset(zip(frame["temperature"], frame["puzzle"], strict=True))
        trl = config["versions"].get("trl")
        if first is None:
            first = name, asked, trl
        if asked != first[1]:
            left_out[name] = (f"it was asked other puzzles, or at other temperatures, than "
                              f"{first[0]}: evaluate both on the same split")
        elif trl != first[2]:
            left_out[name] = (f"it was trained by another version of trl ({trl}) than {first[0]} "
                              f"({first[2]}): record it again with the pinned set")
        else:
            runs[name] = config, rows, frame
    return runs, left_out


def gains_of(graded, level=0.95):
    """Return the paired gain of every run and temperature.

    Parameters
    ----------
    graded : pandas.DataFrame
        Columns ``run, stage, temperature, puzzle, correct``.
    level : float
        The intervals' confidence.

    Returns
    -------
    pandas.DataFrame
        Index temperature and run; the columns of `helpers.intervals.paired_gain`, with intervals
        clustered by the puzzles' numbers.
    """
    found = {}
    for key, part in graded.groupby(["temperature", "run"], sort=False):
        wide = part.pivot_table(index="puzzle", columns="stage", values="correct", aggfunc="first",
                                observed=True)
        found[key] = paired_gain(wide["before"], wide["after"], [nums for nums, _ in wide.index],
                                 level)
    table = pd.DataFrame.from_dict(found, orient="index").rename_axis(["temperature", "run"])
    return table.sort_index(level="temperature", ascending=False, sort_remaining=False,
                            kind="stable")


def kind_shares(graded, present_only=True):
    """Return the share of each kind of completion by stage, over all runs, clustered by numbers.

    Parameters
    ----------
    graded : pandas.DataFrame
        Columns ``stage, puzzle, kind``.
    present_only : bool
        Leave out the kinds that no row has.
    """
    names = [k for k in KINDS if not present_only or (graded["kind"] == k).any()]
    found = {}
    for stage in STAGES:
        part = graded[graded["stage"] == stage]
        numbers = [nums for nums, _ in part["puzzle"]]
        for name in names:
            found[stage, name] = clustered_mean(part["kind"] == name, numbers)
    return pd.DataFrame.from_dict(found, orient="index").rename_axis(["stage", "kind"])


def p_value(p):
    """Return a p as it is shown; a smaller one than 0.001 would claim more than a test can."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def compare(runs, path):
    """Write one HTML page that compares runs.

    Parameters
    ----------
    runs : list of path or str
        Folders, or names under runs/ or data/.
    path : path
        The page to write.

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    ValueError
        If a run is not found, or none can be plotted.
    """
    import matplotlib.pyplot as plt

    from helpers import plots
    from lab import figures

    usable, left_out = comparable(list(dict.fromkeys(find_run(run) for run in runs)))
    if not usable:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"no run can be plotted:\n{reasons or '  none was named'}")
    graded = pd.concat([frame.assign(run=name, kind=kinds(
        frame, config["profile"]["max_completion_length"]))
        for name, (config, _, frame) in usable.items()], ignore_index=True)
    rates, gains = success(graded, ("stage", "temperature", "run")), gains_of(graded)
    temperature = max(graded["temperature"])
    sampled = graded[graded["temperature"] == temperature]
    n_puzzles = graded["puzzle"].nunique()
    parts = [f"<h1>{len(usable)} run{'s' * (len(usable) > 1)} compared</h1>"]
    if left_out:
        items = "".join(f"<li><b>{html.escape(name)}</b>: {html.escape(reason)}</li>"
                        for name, reason in left_out.items())
        parts.append(f'<div class="left-out"><h2>Not plotted</h2><ul>{items}</ul></div>')
    parts += ["<h2>Runs</h2>", _table(_facts(usable)),
              f"<h2>Success on {n_puzzles} held-out puzzles</h2>"]
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    figures.success_points(rates, axis)
    parts.append(_picture(figure, "Success by temperature, before and after"))
    parts += ["<p>Points: one completion a puzzle; bars: 95 % Wilson intervals.</p>",
              _table(_percent(rates, ("rate", "low", "high"))), "<h2>Gain, puzzle by puzzle</h2>"]
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.3 * len(gains)), layout="constrained")
    figures.gain_points(gains, axis)
    parts.append(_picture(figure, "Paired gain of each run"))
    parts += ["<p>Bars: 95 % intervals of the paired difference, clustered by the puzzles' "
              "numbers, in percentage points; p: McNemar's exact test.</p>",
              _table(_percent(gains, ("gain", "low", "high"), "{:+.1f}").assign(
                  p=gains["p"].map(p_value))),
              f"<h2>What came out, {figures.temperature_name(temperature)}</h2>"]
    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    figures.kind_points(kind_shares(sampled), axis)
    parts.append(_picture(figure, "Share of completions by kind, before and after"))
    parts += ["<p>All runs together; bars: 95 % intervals clustered by the puzzles' numbers.</p>",
              "<h2>Training</h2>"]
    figure = plots.training_curves({name: rows for name, (_, rows, _) in usable.items()}, _PANELS)
    parts.append(_picture(figure, "Training metrics by step"))
    parts += ["<p>Faint: every step; strong: running means of 10 steps.</p>",
              "<h2>Completions</h2><p>The puzzle is drawn with a fixed seed.</p>"]
    puzzle = sampled["puzzle"].drop_duplicates().sample(1, random_state=0).iloc[0]
    for row in sampled[sampled["puzzle"] == puzzle].itertuples():
        parts.append(f"<h3>{html.escape(row.run)}, {row.stage}: {html.escape(str(row.kind))}</h3>"
                     f"<p>{html.escape(', '.join(str(int(n)) for n in row.nums))} to "
                     f"{int(row.target)}</p><pre>{html.escape(row.completion)}</pre>")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        'img-src data:; style-src \'unsafe-inline\'">'
        f"<title>Runs compared</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts) + "\n</body></html>\n", encoding="utf-8")
    return path


def _facts(usable):
    """Settings and circumstances of the runs, one row a run."""
    shown = {}
    for name, (config, rows, frame) in usable.items():
        profile, part = config["profile"], config.get("evaluated_on")
        shown[name] = {
            "profile": profile["name"], "seed": config["seed"], "steps": len(rows),
            "prompts x group": f"{profile['prompts_per_step']} x {profile['group_size']}",
            "learning rate": f"{profile['learning_rate']:g}",
            "puzzles": part or _split_of(profile["puzzles"], frame),
            "minutes": f"{rows[-1]['seconds'] / 60:.1f}" if rows else "",
            "hardware": config["hardware"], "date": config["date"],
            "versions": ", ".join(f"{k} {config['versions'].get(k, '?')}"
                                  for k in ("torch", "transformers", "trl")),
        }
    return pd.DataFrame(shown).T


def _split_of(name, frame):
    """The shipped part that the evaluated puzzles are, for runs that do not say it."""
    asked = set(frame["puzzle"])
    for part in ("test", "validation"):
        rows = load_split(name, part)
        if asked == {canonical(*row) for row in zip(rows["nums"], rows["target"], strict=True)}:
            return f"data/puzzles/{name}-{part}.parquet"
    return "unknown"


def _percent(table, columns, style="{:.1f} %"):
    return table.assign(**{c: (100 * table[c]).map(style.format) for c in columns})


def _table(frame):
    """A table as HTML; pandas escapes what stands in the cells."""
    return f'<div class="wide">{frame.to_html(border=0)}</div>'


def _picture(figure, description):
    """A figure as an image inside the page."""
    import matplotlib.pyplot as plt

    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    plt.close(figure)
    code = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{code}">'


def main(argv=None):
    """Write the page and print where it is.

    Parameters
    ----------
    argv : list of str, optional
        The command line's arguments; those of the process where left out.

    Returns
    -------
    int
        The exit status, 1 if there is nothing to plot.
    """
    parser = argparse.ArgumentParser(prog="python -m lab.report", description=__doc__)
    parser.add_argument("run", nargs="+", help="a folder, or a name under runs/ or data/")
    parser.add_argument("--to", type=Path, default=RUNS / "report.html", metavar="PAGE")
    options = parser.parse_args(argv)
    try:
        page = compare(options.run, options.to)
    except ValueError as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    print(show(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
