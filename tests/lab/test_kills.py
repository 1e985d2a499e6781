"""The command that kills a run at random moments; also that it notices what it is made to find."""

import json

import pytest

from lab import kills


def test_a_run_that_is_killed_ends_as_if_nothing_happened(capsys):
    assert kills.main(["--seed", "1", "--kills", "2"]) == 0
    output = capsys.readouterr().out
    assert output.count("kill ") == 2 and "equal those of a run that was left alone" in output


@pytest.mark.parametrize("damage", ["lose", "double", "change", None])
def test_a_difference_is_noticed(monkeypatch, capsys, damage):
    rows = [{"step": step, "reward": 0.5, "seconds": 1.0} for step in (1, 2, 3)]

    def made(runs, phase, rng):  # in place of minutes of training: only the comparison is tried
        found = [dict(row) for row in rows]
        if runs.name == "killed":
            found = {"lose": found[:2], "double": found + found[-1:], None: found,
                     "change": [*found[:2], found[2] | {"reward": 0.6}]}[damage]
            found[0]["seconds"] = 9.0  # what a clock wrote does not count
        (runs / "run").mkdir(exist_ok=True)
        (runs / "run" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found))
        kills.pd.DataFrame({"nums": [[1, 2]], "correct": [True]}).to_parquet(
            runs / "run" / "evaluation.parquet")

    monkeypatch.setattr(kills, "until_killed", made)
    assert kills.main(["--kills", "0"]) == (damage is not None)
    assert ("different: rows" in capsys.readouterr().out) == (damage is not None)
