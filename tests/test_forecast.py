"""What a training is expected to take: recorded runs, timed steps, and this card."""

import json
import re
from dataclasses import replace

import pytest

from helpers import forecast as module
from helpers import runs
from helpers.forecast import forecast, pace
from helpers.paths import DATA
from helpers.profiles import A100, CPU, SMOLLM2


def timed(name):
    return json.loads((DATA / "benchmarks" / f"{name}.json").read_text())


def test_it_is_of_the_recorded_runs():
    rows = [runs.read_rows(run / "metrics.jsonl") for run in runs.find_runs("cpu")]
    paces = [r[-1]["seconds"] / len(r) for r in rows]
    assert min(paces) == pace(CPU)["seconds"] < max(paces)
    assert re.match(r"80 steps take about \d+ min, [0-9.]+ s each \(2 CPU cores.*, the fastest "
                    "of 3 recorded runs", forecast(CPU))
    assert pace(CPU)["peak_gib"] is None and "GPU memory" not in forecast(CPU)


def test_without_a_run_it_is_of_the_timed_steps():
    step = timed("a100-unsloth")
    line = forecast(A100)
    minutes = int(re.search(r"150 steps take about (\d+) min", line)[1])
    assert minutes == pytest.approx(150 * step["step_seconds"] / 60, abs=1)
    assert "no whole run was recorded" in line and "scaled" not in line
    assert f"{step['whole_gpu_peak_mib'] / 1024:.0f} GiB at its peak" in line
    assert "take about 2.7 h" in forecast(replace(A100, steps=500))


@pytest.mark.parametrize(("change", "name"), [
    ({"quantisation": None}, "a100-16bit"), ({"standby": True}, "a100-standby"),
    ({"standby": True, "micro_batch": 2}, "a100-card-22.5"),
    ({"standby": True, "micro_batch": 1}, "a100-standby")])
def test_it_is_of_steps_that_were_stored_and_cut_alike(change, name):
    expected = pace(replace(A100, **change))
    assert expected["seconds"] == timed(name)["step_seconds"]
    other = change.get("micro_batch") == 1  # its memory is another
    assert ("micro-batches of 8" in expected["source"]) == other == (expected["peak_gib"] is None)


@pytest.mark.parametrize("change", [
    {"uses_vllm": False}, {"group_size": 16}, {"max_completion_length": 512}, {"lora_rank": 1}])
def test_what_was_not_timed_is_not_known(change):
    assert pace(replace(A100, **change)) is None
    assert "not known" in forecast(replace(A100, **change))


def test_a_slower_card_takes_longer_part_by_part():
    step = timed("a100-unsloth")
    card = dict(step["card"])
    assert pace(A100, card)["seconds"] == pytest.approx(step["step_seconds"])
    card["copy_tb_per_s"] /= 2  # sampling takes twice as long, the rest as long as before
    assert pace(A100, card)["seconds"] == pytest.approx(
        step["step_seconds"] + step["sampling_seconds"])
    card["matrix_tflops"] /= 2
    assert pace(A100, card)["seconds"] == pytest.approx(2 * step["step_seconds"])
    assert "scaled to this card" in forecast(A100, card)


def test_a_small_card_is_forecast_from_steps_on_such_a_one():
    small = replace(SMOLLM2, micro_batch=8)
    assert pace(small)["seconds"] == timed("smollm2-card-14")["step_seconds"]
    assert "at the beginning of a training" in forecast(small)
    assert "of the greatest length" in forecast(replace(A100, standby=True))


def test_recorded_runs_are_scaled_by_the_parts_of_a_timed_step():
    card = timed("smollm2-unsloth")["card"]
    assert pace(SMOLLM2, card)["seconds"] == pytest.approx(pace(SMOLLM2)["seconds"])
    half = {name: rate / 2 for name, rate in card.items()}
    assert pace(SMOLLM2, half)["seconds"] == pytest.approx(2 * pace(SMOLLM2)["seconds"])
    assert "recorded runs" in forecast(SMOLLM2, half)


def test_no_record_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "REFERENCE_RUNS", tmp_path)
    assert "not known" in forecast(CPU)
