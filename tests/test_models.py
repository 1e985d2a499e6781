"""What prepares a GPU model, as far as it can be checked without a GPU."""

import sys
import types

import pandas as pd
import pytest
import torch

from helpers import evaluation, models, profiles
from helpers.training import TimeLimit, grpo_options


def test_unsloth_must_not_be_imported_before_its_settings(monkeypatch):
    monkeypatch.setitem(sys.modules, "unsloth", types.ModuleType("unsloth"))
    with pytest.raises(RuntimeError, match="restart the kernel"):
        models.prepare_environment(profiles.SMOLLM2)


def test_settings_of_the_environment_are_kept_where_the_reader_set_them(monkeypatch):
    for name in models.UNSLOTH_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UNSLOTH_GRPO_SEQ_PACKING", "1")
    monkeypatch.setattr(models.os, "environ", dict(models.os.environ))
    models.prepare_environment(profiles.SMOLLM2)
    assert models.os.environ["UNSLOTH_GRPO_SEQ_PACKING"] == "1"
    assert models.os.environ["UNSLOTH_COMPILE_DISABLE"] == "1"
    assert "UNSLOTH_VLLM_STANDBY" not in models.os.environ


@pytest.mark.parametrize("trained", [0.0, 0.5])
@pytest.mark.parametrize("same", [0, 1, 2, 4])
def test_an_adapter_that_vllm_does_not_use_stops_the_evaluation(monkeypatch, same, trained):
    model = torch.nn.Module()
    model.lora_B = torch.nn.Parameter(torch.tensor([trained, 0.0]))

    def sample(model, tokenizer, profile, puzzles, temperature):
        state = "base" if model.lora_B.tolist() == [trained, 0.0] else "noise"
        return pd.DataFrame({"completion": ["alike"] * same + [state] * (4 - same)})

    monkeypatch.setattr(evaluation, "sample_completions", sample)
    arguments = (model, None, profiles.SMOLLM2, pd.DataFrame({"nums": [[1]], "target": [1]}))
    if 2 * same >= 4:
        with pytest.raises(RuntimeError, match=f"{same} of 4 .*does not sample from the adapter"):
            evaluation.check_adapter_used(*arguments)
    else:
        evaluation.check_adapter_used(*arguments)
    assert model.lora_B.tolist() == [trained, 0.0]  # left as it was


def test_without_vllm_or_an_adapter_there_is_nothing_to_check():
    model = torch.nn.Module()
    evaluation.check_adapter_used(model, None, profiles.SMOLLM2, None)
    model.lora_B = torch.nn.Parameter(torch.ones(2))
    evaluation.check_adapter_used(model, None, profiles.CPU, None)


@pytest.mark.parametrize("most", [16, 64, 300, 320])
def test_every_batch_size_finds_a_graph_and_there_are_few(most):
    sizes = models.graph_sizes(most)
    assert sizes == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == most
    assert len(sizes) <= 12
    paddings = [min(size for size in sizes if size >= n) - n for n in range(1, most + 1)]
    assert max(paddings) < max(8, most / 8)


@pytest.mark.parametrize("profile", [profiles.SMOLLM2, profiles.A100], ids=lambda p: p.name)
def test_what_unsloth_has_other_defaults_for_is_given(profile, tmp_path):
    options = grpo_options(profile, tmp_path)
    # the defaults that Unsloth 2026.10.7 writes into its own GRPOConfig (its models/rl.py)
    theirs = {"learning_rate": 5e-5, "weight_decay": 0.001, "warmup_steps": 0.1, "seed": 3407,
              "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
              "num_generations": 8, "optim": "adamw_8bit", "logging_steps": 1, "bf16": False,
              "report_to": "none", "loss_type": None, "beta": None,
              "vllm_importance_sampling_correction": False}
    assert not theirs.keys() - options.keys()


def test_time_limit_stops_after_the_step_in_which_time_ran_out(monkeypatch):
    now = iter([100.0, 130.0, 161.0])
    monkeypatch.setattr("helpers.training.time.monotonic", lambda: next(now))
    limit, control = TimeLimit(1), types.SimpleNamespace(should_training_stop=False)
    limit.on_train_begin(None, None, control)
    limit.on_step_end(None, None, control)
    assert not control.should_training_stop
    limit.on_step_end(None, None, control)
    assert control.should_training_stop
