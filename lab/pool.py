"""Set a class's runs side by side: ``python -m lab.pool FOLDER``.

Each person changes one setting in notebook 04, trains, and hands in what `lab.pack` has packed. The
files are a stranger's: `lab.pack` reads them, and grades every completion again. What cannot be
compared is named with the reason, and the others go on.
"""

import argparse
import base64
import html
import sys
from collections import Counter
from pathlib import Path
from reprlib import repr as short
from textwrap import fill, indent, shorten

import numpy as np
import pandas as pd

from helpers.intervals import paired_gain
from helpers.paths import RUNS, show
from helpers.plots import picture
from helpers.runs import LOOSE
from lab.figures import whiskers
from lab.pack import BadRun, read_pack

UNCHANGED = "nothing changed"
MOST = 300  # files in a folder
CLOCK = {"seconds", "step_seconds"}  # metrics that differ between two runs of the same training
BLUE, GREY = "#0072B2", "0.45"
_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100%; height: auto; margin: 1rem 0 } .wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #888;
overflow-wrap: anywhere }
th:first-child, td:first-child { text-align: left }
li { overflow-wrap: anywhere }
"""


def read_folder(folder):
    """Read all files of a folder as packed runs.

    Parameters
    ----------
    folder : pathlib.Path
        What the class handed in; hidden files are passed over.

    Returns
    -------
    (list of (str, lab.pack.Run), list of (str, str))
        Names with runs, and names with the reason why there is none; names are printable.

    Raises
    ------
    ValueError
        If it is no folder that can be read, or holds more files than a class hands in.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ValueError(f"{show(folder)} cannot be read ({error.strerror}): give the folder with "
                         "the files that were handed in") from error
    if len(paths) > MOST:
        raise ValueError(f"{show(folder)} holds {len(paths):,} files, more than {MOST}: give a "
                         "folder that holds what was handed in alone")
    runs, refused = [], []
    for path in paths:
        try:
            runs.append((_printable(path.name), read_pack(path)))
        except BadRun as error:
            refused.append((_printable(path.name), _printable(str(error))))
    return runs, refused


def _printable(text):
    return text if text.isprintable() else ascii(text)


def setting_of(run):
    """Return the one setting that a run changed, as text; a BadRun if it changed more."""
    if "rewards" in run.config:  # as lab.bad_rewards has recorded, beside no other settings
        raise BadRun(f"its rewards were {', '.join(map(short, run.config['rewards']))}, and its "
                     "other settings are not recorded: hand in a run of notebook 04")
    found = {name: value for name, value in run.changes.items()
             if name not in LOOSE | _terms(run).keys()}
    if len(found) > 1:
        raise BadRun("more than one setting was changed: "
                     + ", ".join(f"{name} {value}" for name, value in found.items()))
    return next((f"{name} {value}" for name, value in found.items()), UNCHANGED)


def _terms(run):
    """What has to be the same: on the same profile, all runs answer the same test puzzles."""
    profile = run.config["profile"]
    return {"profile": profile["name"], "puzzles": profile["puzzles"], "steps": len(run.rows),
            "trl": short(run.config["versions"].get("trl")).strip("'")}


def comparable(runs):
    """Return what can be set side by side.

    Parameters
    ----------
    runs : list of (str, lab.pack.Run)
        By the name of the file. Profile, puzzles, steps and trl's version have to be those that
        most runs have.

    Returns
    -------
    (pandas.DataFrame, list of (str, str))
        A row a training: ``setting, seed, file`` and ``pairs``, a table of the answers
        ``before, after`` at temperature 1 by puzzle; and names with reasons.
    """
    rows, refused, seen = [], [], {}
    usual = Counter(tuple(_terms(run).items()) for _, run in runs).most_common(1)
    for name, run in runs:
        try:
            different = [f"{term} {value!r} (most have {most!r})" for (term, value), (_, most) in
                         zip(_terms(run).items(), usual[0][0], strict=True) if value != most]
            if different:
                raise BadRun(f"it cannot stand beside the others: {', '.join(different)}")
            setting, asked = setting_of(run), run.frame[run.frame["temperature"] == 1]
            if asked.empty:
                raise BadRun("it was not evaluated at temperature 1")
            for same in _identity(run, asked):
                if (first := seen.setdefault(same, name)) != name:
                    raise BadRun(f"the same training as {first}. Another person needs another seed")
        except BadRun as error:
            refused.append((name, str(error)))
            continue
        pairs = asked.pivot(index="puzzle", columns="stage", values="correct")
        rows.append({"setting": setting, "seed": short(run.seed), "file": name, "pairs": pairs})
    return pd.DataFrame(rows, columns=["setting", "seed", "file", "pairs"]), refused


def _identity(run, asked):
    """Two keys that one training has only once, whoever hands it in: its metrics, its answers."""
    yield tuple(tuple(sorted((k, v) for k, v in row.items() if k not in CLOCK)) for row in run.rows)
    after = asked[asked["stage"] == "after"].sort_values("puzzle")
    yield tuple(after["completion"])


def gains(trainings):
    """Return the gain of each training and of each setting, in percentage points.

    Parameters
    ----------
    trainings : pandas.DataFrame
        From `comparable`.

    Returns
    -------
    (pandas.DataFrame, pandas.DataFrame)
        By training: ``setting, seed, file, before, after, gain, low, high``. By setting: the
        number of ``trainings``, ``gain, low, high`` of their mean, and the ``lowest`` and
        ``highest`` gain of one of them; unchanged runs first, then the largest gain. Intervals are
        of 95 %, clustered by the puzzles' numbers: chance in puzzles and answers, not in trainings.
    """
    each = trainings.drop(columns="pairs").join(pd.DataFrame(
        list(map(_gain, trainings["pairs"])), index=trainings.index))
    grouped = trainings.groupby("setting", sort=False)
    means = pd.DataFrame({name: _gain(pd.concat(list(part["pairs"]))) for name, part in grouped}).T
    spread = each.groupby("setting")["gain"].agg(trainings="size", lowest="min", highest="max")
    means = means.join(spread)[["trainings", "gain", "low", "high", "lowest", "highest"]]
    means["changed"] = means.index != UNCHANGED
    means = means.sort_values(["changed", "gain"], ascending=[True, False]).drop(columns="changed")
    order = {name: place for place, name in enumerate(means.index)}
    each = each.sort_values(["setting", "seed", "file"],
                            key=lambda c: c.map(order) if c.name == "setting" else c.map(str))
    return each.reset_index(drop=True), means.rename_axis("setting").astype({"trainings": int})


def _gain(pairs):
    found = paired_gain(pairs["before"], pairs["after"], [numbers for numbers, _ in pairs.index])
    rates = {"before": pairs["before"].mean(), "after": pairs["after"].mean()}
    return {name: 100 * float(value) for name, value in
            (rates | {name: found[name] for name in ("gain", "low", "high")}).items()}


def draw(each, means):
    """Return the class's figure: a point a training, a bar for a setting's mean.

    Parameters
    ----------
    each, means : pandas.DataFrame
        From `gains`.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 1.3 + 0.26 * len(each) + 0.16 * len(means)),
                                layout="constrained")
    if UNCHANGED in means.index:
        axis.axvspan(*means.loc[UNCHANGED, ["lowest", "highest"]], color="0.5", alpha=0.2,
                     label="range of the unchanged trainings")
    places, at = [], 0.0
    for setting, mean in means.iterrows():
        part = each[each["setting"] == setting].rename(columns={"gain": "rate"})
        lines = [at + k for k in range(len(part))]
        color = GREY if setting == UNCHANGED else BLUE
        axis.errorbar(part["rate"], lines, xerr=whiskers(part), fmt="o", capsize=3, color=color,
                      label=None if places else "one training, 95 % interval")
        axis.vlines(mean["gain"], at - 0.4, lines[-1] + 0.4, color=color, linewidth=4, alpha=0.5,
                    label=None if places else "mean of a setting")
        places.append((at + lines[-1]) / 2)
        at = lines[-1] + 1.6
    axis.axvline(0, color="black", linewidth=0.8)
    names = [fill(shorten(name, 80, placeholder=" ..."), 34, break_long_words=True)
             for name in means.index]
    axis.set_yticks(places, names, parse_math=False)  # a name may hold a dollar sign
    axis.set(ylim=(at - 0.9, -0.7), xlabel="gain in success at T = 1 (percentage points)")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper right", ncols=3, fontsize=9)
    return figure


def notes(means):
    """Return what a reader has to know of the table, as sentences."""
    text = ["Gains are in percentage points, after less before, at temperature 1. Intervals (95 %, "
            "clustered by the puzzles' numbers) hold chance in puzzles and answers; another seed "
            "is another training, which only the spread over trainings shows."]
    count = int(means["trainings"].get(UNCHANGED, 0))
    if not count:
        text.append("Nobody trained without a change: there is nothing to compare a setting with.")
    else:
        text.append(
            f"{count} training{'s' * (count > 1)} changed nothing. One more of the same kind would "
            f"lie outside of their range by chance in {200 / (count + 1):.0f} % of cases: a "
            "setting that was trained once and lies outside is a guess, to be tried with other "
            "seeds.")
    text.append("The largest of many gains is flattered by chance, too: train it again before you "
                "believe it. A reward's code is not recorded, only its name.")
    return text


def report(folder, out):
    """Write table, page and figure of a folder's runs: pool.txt, pool.html and pool.png.

    Parameters
    ----------
    folder, out : pathlib.Path
        What was handed in; where the three files go.

    Returns
    -------
    str
        What pool.txt holds.

    Raises
    ------
    ValueError
        If no run can be used, or the folder cannot be read.
    """
    runs, refused = read_folder(folder)
    trainings, others = comparable(runs)
    refused += others
    left_out = [f"{name}: {reason}" for name, reason in refused]
    if trainings.empty:
        raise ValueError("\n  ".join([f"{show(folder)} holds no run that can be used", *left_out]))
    each, means = gains(trainings)
    terms = _terms(next(run for name, run in runs if name == trainings["file"].iloc[0]))
    title = (f"{len(each)} trainings of {terms['steps']} steps, profile {terms['profile']}, "
             f"{len(trainings['pairs'].iloc[0])} test puzzles")
    tables = _rounded(means), _rounded(each.set_index("setting"))
    image = picture(draw(each, means), "Gain of each training with its interval, by setting").data
    parts = [title, *(table.to_string() for table in tables),
             *(fill(note, 100) for note in notes(means))]
    if left_out:
        parts.append("Left out:\n" + indent("\n".join(left_out), "  "))
    text = "\n\n".join(parts) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "pool.txt").write_text(text, encoding="utf-8")
    (out / "pool.png").write_bytes(image)
    (out / "pool.html").write_text(_page(title, tables, image, notes(means), left_out),
                                   encoding="utf-8")
    return text


def _rounded(table):
    """Return a table as it is shown: one decimal, and two ends in one column."""
    def ends(low, high):
        return [f"{a:+.1f} to {b:+.1f}" for a, b in zip(table[low], table[high], strict=True)]

    shown = table.assign(**{"95 % interval": ends("low", "high")}).drop(columns=["low", "high"])
    for name, style in {"before": "{:.1f}", "after": "{:.1f}", "gain": "{:+.1f}"}.items():
        if name in shown:
            shown[name] = shown[name].map(style.format)
    if "lowest" in shown:
        alone = shown["trainings"] == 1
        shown["lowest to highest"] = np.where(alone, "only one", ends("lowest", "highest"))
        shown = shown.drop(columns=["lowest", "highest"])
    return shown.rename_axis(None)


def _page(title, tables, image, sentences, left_out):
    """Return the page; whatever a stranger wrote is escaped, by pandas in the tables."""
    wide = [f'<div class="wide">{table.to_html(border=0)}</div>' for table in tables]
    code = base64.b64encode(image).decode()
    items = "".join(f"<li>{html.escape(line)}</li>" for line in left_out)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        'img-src data:; style-src \'unsafe-inline\'">'
        f"<title>The class's runs</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{html.escape(title)}</h1>\n<h2>By setting</h2>{wide[0]}\n"
        '<img alt="Gain of each training with its interval, by setting" '
        f'src="data:image/png;base64,{code}">\n'
        + "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)
        + f"<h2>By training</h2>{wide[1]}\n"
        + (f"<h2>Left out</h2><ul>{items}</ul>\n" if items else "") + "</body></html>\n")


def main(argv=None):
    """Read the command line, write the three files and print the table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab.pool", description=__doc__)
    parser.add_argument("folder", type=Path, help="what was handed in: packed runs, and no more")
    parser.add_argument("--out", type=Path, default=RUNS / "pool", metavar="FOLDER",
                        help=f"where the three files go; {show(RUNS / 'pool')} if not given")
    options = parser.parse_args(argv)
    try:
        text = report(options.folder, options.out)
    except (ValueError, OSError) as error:
        print(f"pool: {error}", file=sys.stderr)
        return 1
    print(text)
    print(f"{show(options.out)}: pool.txt, pool.html, pool.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
