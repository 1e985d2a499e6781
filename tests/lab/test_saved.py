"""The comparison of saved models, without the models."""

import json
from types import SimpleNamespace

import pytest

from helpers import profiles
from lab import saved

ANSWERS = {"unsloth": ["<think>a long thought</think>"] * saved.PUZZLES}
ANSWERS["adapter"] = ["<think>a long thought and a late change</think>"] + ANSWERS["unsloth"][1:]
ANSWERS["merged"] = ["another from the start"] * 2 + ANSWERS["unsloth"][2:]
ANSWERS["merged-vllm"] = ANSWERS["adapter-vllm"] = ANSWERS["merged"]


def test_answers_that_differ_are_counted_early_and_late(tmp_path, monkeypatch):
    folder = tmp_path / "run" / "final"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").touch()

    def answer(command, check):
        way = command[command.index("--way") + 1]
        path = folder.parent / f"answers-{way}.json"
        path.write_text(json.dumps(ANSWERS[way]))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(saved.subprocess, "run", answer)
    rows = saved.compare(profiles.SMOLLM2, folder)
    assert [row["different"] for row in rows] == [0, 1, 2, 2, 2]
    assert [row["different_early"] for row in rows] == [0, 0, 2, 2, 2]
    assert all(row["puzzles"] == saved.PUZZLES and row["right"] == 0 for row in rows)
    assert json.loads((folder.parent / "saved_answers.json").read_text()) == rows


def test_a_folder_without_an_adapter_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="notebook 04"):
        saved.compare(profiles.SMOLLM2, tmp_path)
