"""The record that notebook 01 opens with."""

import json

from helpers.models import load_model
from helpers.profiles import CPU
from helpers.rewards import is_correct
from lab.playing import FILE, answer


def test_the_record_holds_eight_graded_completions():
    record = json.loads(FILE.read_text())
    puzzle = record["nums"], record["target"]
    assert len(record["completions"]) == 8 and len(set(record["completions"])) > 1
    assert record["right"] == [is_correct(text, *puzzle) for text in record["completions"]]
    assert record["temperature"] == 1.0 and record["versions"]["torch"] and record["date"]


def test_it_samples_what_is_asked_for():
    texts = answer(*load_model(CPU), [2, 3, 9], 21, completions=2, seed=1)
    assert len(texts) == 2 and all(text.startswith("<think>") for text in texts)
    assert texts == answer(*load_model(CPU), [2, 3, 9], 21, completions=2, seed=1)
