"""A training that samples short completions first, on the CPU's own trainer."""

import pytest

from helpers.dataset import load_split
from helpers.runs import open_run, read_rows
from helpers.training import MetricsLog, prompt_dataset, train_or_resume
from lab import record
from lab.lengths import ShortFirst
from lab.record import REWARDS, make_config, make_model, make_trainer
from tests.lab.test_cells import TINY


def trainer_of(run, steps):
    model, tokenizer = make_model(TINY)
    return make_trainer(model, tokenizer, make_config(TINY, run, max_steps=steps), REWARDS,
                        prompt_dataset(load_split("cpu", "train")), [MetricsLog(run)])


def test_the_first_steps_are_short_and_the_others_are_not_resumed_or_not(tmp_path):
    run = open_run(TINY, folder=tmp_path / "run")
    for steps in (2, 4):  # stopped after two steps, then resumed
        trainer = trainer_of(run, steps)
        trainer.add_callback(ShortFirst(trainer, 6, 3))
        train_or_resume(trainer, run)
    tokens = [row["completion_tokens"] for row in read_rows(run / "metrics.jsonl")]
    assert len(tokens) == 4
    assert tokens[:3] == [6, 6, 6]  # no thought ends so soon
    assert 6 < tokens[3] <= TINY.max_completion_length


@pytest.mark.parametrize("tokens", [0, TINY.max_completion_length])
def test_a_first_limit_that_is_not_the_lower_one_is_refused(tokens, tmp_path):
    trainer = trainer_of(open_run(TINY, folder=tmp_path / "run"), 1)
    with pytest.raises(ValueError, match="give fewer than the 20 of the rest"):
        ShortFirst(trainer, tokens, 3)


def test_a_recorded_run_says_that_it_was_short_first(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "open_run", lambda *given: open_run(TINY, folder=tmp_path / "run"))
    monkeypatch.setattr(record, "load_split", lambda *given: load_split("cpu", given[1]).head(4))
    run = record.record(TINY, 0, temperatures=(1.0,), short_first=(6, 1))
    assert record.read_config(run)["short_first"] == [6, 1]
    assert [row["completion_tokens"] for row in read_rows(run / "metrics.jsonl")] == [6.0]
