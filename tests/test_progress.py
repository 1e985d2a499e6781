"""What is shown below the training cell, and what it is made of."""

import re
import types
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from helpers import profiles
from helpers.dataset import load_split
from helpers.evaluation import success
from helpers.models import load_model
from helpers.plots import training_curves
from helpers.progress import Progress, clock, ends_of_a_group, status
from helpers.runs import open_run, read_rows
from helpers.training import MetricsLog, SampleLog, prompt_dataset, train_or_resume
from lab.record import REWARDS, make_config, make_model, make_trainer

SMALL = replace(profiles.CPU_SHORT, steps=4, save_every=2, prompts_per_step=2, group_size=4,
                micro_batch=4, max_completion_length=24)


def rows(n, seconds=2.5, first=10.0, **more):
    return [{"step": i, "seconds": first + seconds * (i - 1), "equation_reward": i / 100} | more
            for i in range(1, n + 1)]


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0:00"), (59.6, "1:00"), (3599.4, "59:59"), (3600, "1 h 0 min"), (7900, "2 h 11 min")])
def test_a_time_is_written_as_one_reads_it(seconds, text):
    assert clock(seconds) == text


def test_the_line_before_the_first_step_says_how_long_it_will_take():
    assert status([], 80, 3.0).startswith("step 0 of 80, about 4:00 in all | ")
    assert status([], 80).startswith("step 0 of 80 | ")


def test_the_line_counts_time_and_compares_the_start_with_now():
    line = status(rows(30), 80)
    assert line == ("step 30 of 80 | 1:22 so far, about 2:05 left | 2.5 s a step | "
                    "right now 28%, at the start 3%")
    assert "about 0:10 left" in status(rows(1), 2)  # the first step is all that is known
    assert "complete" in status(rows(30), 30)


def test_the_line_follows_the_pace_of_the_last_steps():
    slow = rows(20) + [{"step": 20 + i, "seconds": 57.5 + 60 * i, "equation_reward": 0.5}
                       for i in range(1, 12)]
    assert "60.0 s a step" in status(slow, 40) and "about 9:00 left" in status(slow, 40)


def test_with_other_rewards_the_line_tells_of_their_sum():
    other = [{"step": i, "seconds": 3.0 * i, "reward": i / 2 - 0.25} for i in (1, 2)]
    assert status(other, 9).endswith("reward now 0.50, at the start 0.50")


def batch(advantages, texts=None, prompt="Numbers: 4, 11, 8\nTarget: 12\n"):
    n = len(advantages)
    return types.SimpleNamespace(num_generations=4, _logs={
        "prompt": [prompt] * n, "completion": texts or [f"text {i}" for i in range(n)],
        "advantages": advantages, "rewards": {
            "strict_format_reward_func": [1.0] * n, "equation_reward_func": [0.5] * n}})


def test_the_two_ends_are_of_the_first_group_with_a_spread():
    shown = ends_of_a_group(batch([0.0] * 4 + [-0.5, 1.5, -0.5, -0.6] + [2.0, -2.0, 0, 0]), 10)
    assert "Step 10, 4, 11, 8 -&gt; 12" in shown
    assert re.findall(r"text \d+", shown) == ["text 5", "text 7"]
    assert re.findall(r"advantage ([+-][0-9.]+)", shown) == ["+1.50", "-0.60"]
    assert shown.count("strict format 1, equation 0.5") == 2


def test_equal_rewards_in_float32_are_no_spread():
    """Rewards of 0.1 are not quite their mean: trl then gives advantages of some 1e-4."""
    rewards = torch.tensor([[0.1] * 8, [0.1, 0.1, 1.1, 0.1, 0.1, 0.1, 0.1, 0.1]])
    advantages = (rewards - rewards.mean(1, True)) / (rewards.std(1, keepdim=True) + 1e-4)
    assert advantages[0].any()
    trainer = batch(advantages.flatten().tolist())
    trainer.num_generations = 8
    shown = ends_of_a_group(trainer, 10)
    assert re.findall(r"text \d+", shown)[0] == "text 10" and "advantage +2.47" in shown


def test_a_group_without_a_spread_is_shown_in_grey():
    shown = ends_of_a_group(batch([0.0] * 8, prompt="another prompt"), 10)
    assert "one puzzle" in shown and shown.count("#dddddd") == 2


def test_a_completion_never_becomes_markup():
    shown = ends_of_a_group(batch([1.0, -1.0, 0, 0], ["<img src=x onerror=alert(1)>"] * 4), 1)
    assert "<img" not in shown and shown.count("&lt;img") == 2


@pytest.fixture(autouse=True, scope="module")
def shell():
    """What a notebook's kernel has: without it nothing is displayed, but printed."""
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def trained(run, profile=SMALL, **options):
    torch.set_num_threads(1)
    run = open_run(profile, folder=run)
    model, tokenizer = make_model(profile)
    watched = load_split("cpu", "validation").head(8)
    callbacks = [MetricsLog(run), Progress(run, every=2, look=2),
                 SampleLog(run, tokenizer, profile, watched, every=3)]
    trainer = make_trainer(model, tokenizer, make_config(profile, run), REWARDS,
                           prompt_dataset(load_split("cpu", "train").head(200)), callbacks)
    with capture_output() as captured:
        train_or_resume(trainer, run, **options)
    return trainer, captured.outputs


def test_a_training_shows_a_line_curves_and_completions(tmp_path):
    _, shown = trained(tmp_path / "run")
    lines = [output.data["text/plain"] for output in shown if "step" in str(output.data.get(
        "text/plain", "")) and "of 4" in output.data["text/plain"]]
    assert [re.match(r"step (\d) of 4", line)[1] for line in lines] == list("01234")
    assert "complete" in lines[-1]
    drawn = [i for i, output in enumerate(shown) if "image/png" in output.data]
    before = [re.match(r"step (\d)", shown[i - 1].data["text/plain"])[1] for i in drawn[:2]]
    assert before == ["2", "4"]  # right after the line of a second step
    kinds = [sorted(output.data) for output in shown]
    assert kinds.count(["image/png", "text/plain"]) == 3  # steps 2 and 4, and the end
    looks = [output.data["text/html"] for output in shown
             if "of 4 completions" in output.data.get("text/html", "")]
    assert [re.search(r"Step (\d)", look)[1] for look in looks] == ["2", "4"]
    run = tmp_path / "run"
    held_out = success(pd.DataFrame(read_rows(run / "samples.jsonl")), by=("step",))
    assert held_out["n"].to_dict() == {0: 8, 3: 8, 4: 8}  # at both ends, and every third step


def test_a_complete_run_shows_line_and_curves_again(tmp_path):
    trainer, _ = trained(tmp_path / "run")
    with capture_output() as captured:
        train_or_resume(trainer, tmp_path / "run")
    line, curves = (output.data for output in captured.outputs)
    assert line["text/plain"].startswith("step 4 of 4") and "image/png" in curves


def test_a_smoke_run_goes_on_in_the_same_kernel_as_if_it_had_been_one_run(tmp_path):
    whole, _ = trained(tmp_path / "whole", replace(SMALL, steps=6, warmup_steps=2))
    run, smoke = tmp_path / "run", replace(SMALL, steps=3, warmup_steps=2)
    trainer, _ = trained(run, smoke)
    assert len(read_rows(run / "metrics.jsonl")) == 3
    train_or_resume(trainer, run, steps=6)
    strip = {"seconds", "step_seconds"}
    one, other = ([{k: v for k, v in row.items() if k not in strip}
                   for row in read_rows(folder / "metrics.jsonl")]
                  for folder in (tmp_path / "whole", run))
    assert one == other and len(one) == 6
    for one, other in zip(whole.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_held_out_points_stand_beside_the_right_equations():
    graded = pd.DataFrame({"step": [0] * 4 + [2] * 4, "correct": [0, 0, 0, 1, 1, 1, 1, 0]})
    figure = training_curves({"run": rows(4, completion_tokens=5.0)}, steps=4,
                             held_out=success(graded, by=("step",)))
    first, *others = figure.axes
    assert first.containers[0].lines[0].get_xydata().tolist() == [[0, 0.25], [2, 0.75]]
    assert not any(axis.containers for axis in others)
    assert "held out, 4 puzzles" in [text.get_text() for text in first.get_legend().get_texts()]
    assert first.get_xlim() == (0, 4) and first.get_ylim() == (0, 1.05)
    plt.close(figure)


def test_the_models_weights_are_those_that_a_reader_loads(tmp_path):
    trainer, _ = trained(tmp_path / "run")
    trainer.save_model(str(tmp_path / "run" / "final"))
    saved = load_model(SMALL, tmp_path / "run" / "final")[0].state_dict()
    assert all(torch.equal(saved[name], p) for name, p in trainer.model.state_dict().items())
