"""The page that compares runs: opened in a browser, refusing what cannot be compared."""

import html
import json
import os
import re
import shutil
import subprocess

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from helpers.evaluation import success
from helpers.paths import DATA
from helpers.runs import find_runs
from lab import report

BROWSER = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
EVIL = "<script>document.title = 'run by the page'</script><img src=x onerror=alert(1)>&amp;"


@pytest.fixture
def pair(tmp_path):
    """Two whole runs in folders of the test's own."""
    found = []
    for folder in find_runs("cpu")[:2]:
        shutil.copytree(folder, tmp_path / folder.name)
        found.append(tmp_path / folder.name)
    return found


def change(folder, edit):
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_the_page_holds_the_numbers_of_the_runs(pair, tmp_path):
    page = report.compare(pair, tmp_path / "out" / "page.html").read_text()
    assert "<h1>2 runs compared</h1>" in page and "Not plotted" not in page
    for folder in pair:
        frame = pd.read_parquet(folder / "evaluation.parquet")
        rate = success(frame).loc[("after", 1.0), "rate"]
        assert folder.name in page and f"{100 * rate:.1f} %" in page
    assert page.count("data:image/png;base64,") == 4
    assert "://" not in re.sub(r'base64,[^"]*', "", page)  # it loads nothing
    assert plt.get_fignums() == []


def test_pairs_are_the_same_puzzles(pair):
    runs, left_out = report.comparable(pair)
    graded = pd.concat([frame.assign(run=name) for name, (_, _, frame) in runs.items()])
    gains = report.gains_of(graded)
    assert not left_out and len(gains) == 6 and set(gains["n"]) == {815}
    frame = runs[pair[0].name][2]
    rates = frame.groupby(["stage", "temperature"])["correct"].mean()
    for temperature in (1.0, 0.6, 0.0):
        assert gains.loc[(temperature, pair[0].name), "gain"] == pytest.approx(
            rates["after", temperature] - rates["before", temperature])


def lose_a_step(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))


def lose_the_end(folder):
    data = (folder / "evaluation.parquet").read_bytes()
    (folder / "evaluation.parquet").write_bytes(data[: len(data) // 2])


def rewrite(edit):
    def change_table(folder):
        frame = pd.read_parquet(folder / "evaluation.parquet")
        edit(frame).to_parquet(folder / "evaluation.parquet", index=False)
    return change_table


def one_grade_differs(frame):
    frame.loc[3, "correct"] = not frame.loc[3, "correct"]
    return frame


SPOILT = {
    "no evaluation.parquet": lambda f: (f / "evaluation.parquet").unlink(),
    "79 of 80 steps": lose_a_step,
    "a file is damaged": lose_the_end,
    "config.json is of another version: no hardware": lambda f: change(
        f, lambda c: c.pop("hardware")),
    "of another version: no column tokens": rewrite(lambda t: t.drop(columns="tokens")),
    "graded by another version of the reward: 1 of": rewrite(one_grade_differs),
    "the puzzles before and after are not the same": rewrite(lambda t: t.iloc[:-1]),
    "asked other puzzles": rewrite(lambda t: t[t["target"] != 7]),
    "other temperatures": rewrite(lambda t: t[t["temperature"] > 0]),
    r"another version of trl \(0.9\)": lambda f: change(
        f, lambda c: c["versions"].update(trl="0.9")),
}


@pytest.mark.parametrize(("reason", "spoil"), SPOILT.items(), ids=lambda x: str(x)[:30])
def test_a_run_that_cannot_be_compared_is_left_out_with_its_reason(reason, spoil, pair):
    good, bad = pair
    spoil(bad)
    runs, left_out = report.comparable([good, bad])
    assert list(runs) == [good.name] and list(left_out) == [bad.name]
    assert re.search(reason, left_out[bad.name])


def test_what_is_left_out_is_named_on_the_page_and_not_plotted(pair, tmp_path):
    good, bad = pair
    lose_a_step(bad)
    page = report.compare([good, bad], tmp_path / "page.html").read_text()
    box, rest = page.split("Not plotted")[1].split("</div>", 1)
    assert bad.name in box and "79 of 80 steps" in box
    assert bad.name not in rest and "<h1>1 run compared" in page


def test_other_splits_are_not_set_side_by_side(pair):
    sweep = DATA / "sweeps" / "cpu-lr8e-4-seed100"
    runs, left_out = report.comparable([*pair, sweep])
    assert list(runs) == [f.name for f in pair] and "other puzzles" in left_out[sweep.name]


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    page = tmp_path / "page.html"
    assert report.main(["no-such-run", "--to", str(page)]) == 1
    assert "no-such-run: a run is a folder, or the name of one" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert report.main([str(tmp_path / "empty"), "--to", str(page)]) == 1
    assert "no run can be plotted" in capsys.readouterr().err
    assert not page.exists()
    assert report.main(["cpu-seed0", "--to", str(page)]) == 0
    assert "page.html" in capsys.readouterr().out and page.exists()


@pytest.fixture
def hostile(pair):
    """A run whose completions and settings try to become part of the page."""
    rewrite(lambda t: t.assign(completion=EVIL, correct=False))(pair[0])
    change(pair[0], lambda c: c.update(hardware=EVIL))
    return pair[0]


def test_text_from_runs_is_escaped(hostile, tmp_path):
    page = report.compare([hostile], tmp_path / "page.html").read_text()
    assert "<script" not in page and "<img src=x" not in page
    assert page.count("&lt;script&gt;") == 3  # two completions and the hardware


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_the_page_opens_in_a_browser(hostile, pair, tmp_path):
    page = report.compare([hostile, pair[1]], tmp_path / "page.html")
    probe = tmp_path / "probe.html"  # the page, with a script that writes down what was shown
    script = """<script>addEventListener('load', () => { const seen = {
        title: document.title, scripts: document.scripts.length,
        images: [...document.images].map(i => i.naturalWidth > 400 && i.alt.length > 5),
        wide: document.documentElement.scrollWidth > innerWidth,
        text: [...document.querySelectorAll('pre')].map(p => p.textContent)[0] };
        document.body.textContent = JSON.stringify(seen) })</script>"""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())  # it forbids every script
    probe.write_text(text.replace("</body>", script + "</body>"))
    command = [BROWSER, "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1000,800", "--dump-dom"]
    command += ["--no-sandbox"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
    shown = subprocess.run([*command, probe.as_uri()], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    body = re.search(r"<body>(.*)</body>", shown.stdout, re.S).group(1)
    seen = json.loads(html.unescape(body))
    assert seen["title"] == "Runs compared" and seen["scripts"] == 1
    assert seen["images"] == [True] * 4 and not seen["wide"]
    assert seen["text"] == EVIL
    untouched = subprocess.run([*command, page.as_uri()], capture_output=True, text=True,
                               timeout=120)
    assert untouched.stdout.count("<h2>") == 6 and "run by the page</title>" not in untouched.stdout


def test_no_p_claims_more_than_a_test_can():
    assert [report.p_value(p) for p in (9e-140, 0.00099, 0.001, 0.0456, 1.0)] == [
        "< 0.001", "< 0.001", "0.001", "0.046", "1.000"]


def test_a_run_that_the_clock_stopped_is_whole_but_misses_no_step(pair):
    timed = pair[1]
    change(timed, lambda config: config.update(command=config["command"] + " --minutes 5 --seed 1"))
    lose_a_step(timed)
    assert len(report.read_run(timed)[1]) == 79
    lines = (timed / "metrics.jsonl").read_text().splitlines(keepends=True)
    (timed / "metrics.jsonl").write_text("".join(lines[:40] + lines[41:]))
    with pytest.raises(ValueError, match="78 of 80 steps"):
        report.read_run(timed)
