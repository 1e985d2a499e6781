"""Notebook 04's cells are what trains: for a reader, for the lab, and as helpers load a model."""

import ast
import json
import sys
import types
from dataclasses import replace

import pytest

from helpers import models, profiles
from helpers.dataset import load_split
from helpers.rewards import equation_reward_func, strict_format_reward_func
from helpers.runs import open_run, read_rows
from helpers.training import SETTINGS, MetricsLog, housekeeping, prompt_dataset, train_or_resume
from lab import cells
from lab.record import make_config, make_model, make_trainer

TINY = replace(profiles.CPU_SHORT, steps=1, save_every=1, prompts_per_step=2, group_size=4,
               micro_batch=8, max_completion_length=20)
REWARDS = [strict_format_reward_func, equation_reward_func]


def given(tag, function):
    """The names of the keyword arguments of a call in the cells with a tag."""
    tree = ast.parse(cells.source("04", tag))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)
             and function in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))]
    return {keyword.arg for call in calls for keyword in call.keywords if keyword.arg}


def test_the_lessons_subject_stands_in_its_cells():
    assert {"num_generations", "learning_rate", "beta", "loss_type", "epsilon", "temperature",
            "scale_rewards", "mask_truncated_completions"} <= given("config", "GRPOConfig")
    assert {"load_in_4bit", "fast_inference", "max_lora_rank", "max_seq_length"} <= given(
        "model", "from_pretrained")
    assert {"r", "lora_alpha", "target_modules"} <= given("model", "get_peft_model")
    assert {"model", "reward_funcs", "args", "train_dataset"} <= given("trainer", "GRPOTrainer")


def test_a_run_notes_every_setting_of_the_cell():
    assert set(SETTINGS) == given("config", "GRPOConfig") - {
        "output_dir", "report_to", "run_name"}


@pytest.mark.parametrize("profile", [profiles.SMOLLM2, profiles.A100], ids=lambda p: p.name)
def test_what_unsloth_has_other_defaults_for_is_given(profile):
    # what Unsloth 2026.10.7 writes other defaults for into its own GRPOConfig (its models/rl.py)
    theirs = {"learning_rate", "weight_decay", "warmup_steps", "seed", "optim", "logging_steps",
              "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations",
              "bf16", "report_to", "loss_type", "beta", "vllm_importance_sampling_correction",
              "mask_truncated_completions", "torch_empty_cache_steps", "logging_nan_inf_filter",
              "generation_kwargs"}
    options = housekeeping(profile)
    assert not theirs - options.keys() - given("config", "GRPOConfig")
    assert options["vllm_importance_sampling_mode"] == "sequence_mask"
    assert options["vllm_importance_sampling_clip_max"] == 3.0


@pytest.fixture
def unsloth(monkeypatch, tmp_path):
    """A stand-in for a machine without a GPU: it notes what it is asked, and adapts by peft."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked = []
    source = models.base_folder(profiles.CPU)

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**options):
            asked.append(options)
            return (AutoModelForCausalLM.from_pretrained(source, dtype="float32"),
                    AutoTokenizer.from_pretrained(source))

        @staticmethod
        def get_peft_model(model, use_gradient_checkpointing, random_state, **lora):
            asked.append({**lora, "random_state": random_state,
                          "use_gradient_checkpointing": use_gradient_checkpointing})
            return get_peft_model(model, LoraConfig(**lora, task_type="CAUSAL_LM"))

    monkeypatch.setitem(sys.modules, "unsloth",
                        types.SimpleNamespace(FastLanguageModel=FastLanguageModel))
    monkeypatch.setattr(models, "vllm_share", lambda profile, of_free: 0.5)
    monkeypatch.setattr(models, "check_memory", lambda profile: None)
    monkeypatch.setattr(models, "_decode_graphs", lambda most: "graphs")
    monkeypatch.setattr(models, "prepare_environment", lambda profile: None)
    return asked


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("profile", [profiles.SMOLLM2, profiles.A100], ids=lambda p: p.name)
def test_the_cells_and_load_model_ask_unsloth_for_the_same(unsloth, tmp_path, profile, seed):
    profile = replace(profile, cold_start=None, model=str(tmp_path), revision=None)
    make_model(profile, seed)
    models.load_model(profile, seed=seed)
    in_cells, in_helpers = unsloth[:2], unsloth[2:]
    assert in_cells == in_helpers
    assert in_cells[0]["load_in_4bit"] and in_cells[0]["fast_inference"]
    assert in_cells[1]["lora_alpha"] == 2 * profile.lora_rank


def test_what_is_changed_in_the_cells_is_in_the_runs_config(unsloth, tmp_path, monkeypatch):
    text = {tag: cells.source("04", tag) for tag in ("model", "config", "trainer")}
    changes = {"model": ("lora_alpha=2 * profile.lora_rank", "lora_alpha=7"),
               "config": ("learning_rate=profile.learning_rate", "learning_rate=0.0125")}
    for tag, (old, new) in changes.items():
        assert old in text[tag]
        text[tag] = text[tag].replace(old, new)
    monkeypatch.setattr(cells, "source", lambda notebook, tag: text[tag])
    run = open_run(TINY, folder=tmp_path / "run")
    on_gpu = replace(TINY, min_gpu_gib=1.0, lora_rank=4, cold_start=None)
    model, tokenizer = make_model(on_gpu)
    monkeypatch.delitem(sys.modules, "unsloth")  # from here on as on a CPU
    trainer = make_trainer(model, tokenizer, make_config(TINY, run), REWARDS,
                           prompt_dataset(load_split("cpu", "train")), [MetricsLog(run)])
    train_or_resume(trainer, run)
    training = json.loads((run / "config.json").read_text())["training"]
    assert training["lora"]["lora_alpha"] == 7 and training["lora"]["r"] == 4
    assert training["learning_rate"] == 0.0125
    assert read_rows(run / "metrics.jsonl")[0]["learning_rate"] == 0.0125  # it trained with it


def trained(run, **changes):
    model, tokenizer = make_model(TINY)
    trainer = make_trainer(model, tokenizer, make_config(TINY, run, **changes), REWARDS,
                           prompt_dataset(load_split("cpu", "train")), [MetricsLog(run)])
    train_or_resume(trainer, run)


def test_a_run_is_not_continued_with_other_settings(tmp_path):
    run = open_run(TINY, folder=tmp_path / "run")
    trained(run)
    before = (run / "config.json").read_text(), (run / "metrics.jsonl").read_text()
    with pytest.raises(RuntimeError, match="learning_rate was 0.0002.*Name another folder"):
        trained(run, learning_rate=0.5)
    assert before == ((run / "config.json").read_text(), (run / "metrics.jsonl").read_text())
    trained(run, max_steps=2)  # more steps are the same run, trained on
    assert len(read_rows(run / "metrics.jsonl")) == 2


def test_arguments_replace_those_of_the_cells(tmp_path):
    config = make_config(TINY, tmp_path, seed=4, learning_rate=0.5, save_strategy="no")
    assert (config.learning_rate, config.save_strategy, config.seed) == (0.5, "no", 4)
    with pytest.raises(LookupError, match="tag 'config' call no GRPOTrainer"):
        cells.run("04", "config", {"GRPOTrainer": {}}, profile=TINY, run=tmp_path, seed=0)


def test_what_is_not_there_is_named():
    with pytest.raises(LookupError, match="no cell with the tag 'cooking'"):
        cells.source("04", "cooking")
    with pytest.raises(LookupError, match="0 notebooks begin with '99'"):
        cells.source("99", "model")


def test_a_traceback_shows_the_cells_own_lines():
    import traceback

    with pytest.raises(NameError) as caught:
        cells.run("04", "trainer")
    shown = "".join(traceback.format_exception(caught.value))
    assert "<notebook 04, cells tagged trainer>" in shown and "model=model" in shown
