from dataclasses import FrozenInstanceError, replace

import pytest

from helpers import profiles
from lab.record import changed


def test_profiles_are_frozen_and_divide():
    with pytest.raises(FrozenInstanceError):
        profiles.CPU.steps = 1
    for profile in profiles.PROFILES.values():
        assert profile.accumulation_steps * profile.micro_batch == profile.completions_per_step
    with pytest.raises(ValueError, match="micro-batches of 7"):
        replace(profiles.CPU, micro_batch=7)


def test_unknown_profile_is_refused_with_the_names(monkeypatch):
    monkeypatch.setenv("COUNTDOWN_PROFILE", "a1000")
    with pytest.raises(ValueError, match="'a1000'.*cpu, cpu-short, smollm2, a100"):
        profiles.choose()


@pytest.mark.parametrize(("gib", "name"), [
    (0, "cpu"), (8, "cpu"), (16, "smollm2"), (20, "smollm2"), (22.5, "a100"), (40, "a100")])
def test_the_hardware_decides_unless_the_variable_does(monkeypatch, capsys, gib, name):
    monkeypatch.delenv("COUNTDOWN_PROFILE", raising=False)
    monkeypatch.setattr(profiles, "_gpu_gib", lambda: float(gib))
    monkeypatch.setattr(profiles, "old_gpu", lambda: False)
    assert profiles.choose().name == name
    assert ("no GPU" in capsys.readouterr().out) == (gib == 0)
    monkeypatch.setenv("COUNTDOWN_PROFILE", "cpu-short")
    assert profiles.choose().name == "cpu-short"
    assert "COUNTDOWN_PROFILE says so" in capsys.readouterr().out


def test_a_small_gpu_gets_small_micro_batches_and_the_same_step(monkeypatch, capsys):
    monkeypatch.setattr(profiles, "_gpu_gib", lambda: 22.0)
    small = profiles.choose("smollm2")
    assert small.micro_batch < profiles.SMOLLM2.micro_batch
    assert small.completions_per_step == profiles.SMOLLM2.completions_per_step
    assert f"less than 28 GiB: micro-batches of {small.micro_batch}" in capsys.readouterr().out
    assert small.roomy_gib == 0  # what preflight asks for is the small card's need
    assert profiles.choose("cpu") == profiles.CPU


def test_a_card_of_24_gb_gets_the_large_model_in_standby(monkeypatch, capsys):
    monkeypatch.delenv("COUNTDOWN_PROFILE", raising=False)
    monkeypatch.setattr(profiles, "_gpu_gib", lambda: 22.5)
    monkeypatch.setattr(profiles, "old_gpu", lambda: False)
    small = profiles.choose()
    assert small.name == "a100" and small.standby and small.micro_batch == 8
    assert small.completions_per_step == profiles.A100.completions_per_step
    assert "micro-batches of 8 and vLLM in standby, tried" in capsys.readouterr().out
    monkeypatch.setattr(profiles, "_gpu_gib", lambda: 39.4)
    assert not profiles.choose().standby


def test_the_form_chooses_machine_and_bits(monkeypatch):
    monkeypatch.setattr(profiles, "_gpu_gib", lambda: 80.0)
    monkeypatch.setattr(profiles, "old_gpu", lambda: False)
    monkeypatch.setenv("COUNTDOWN_PROFILE", "smollm2")
    assert profiles.choose("auto", 4) == profiles.SMOLLM2
    assert profiles.choose("a100", 16) == replace(profiles.A100, quantisation=None)
    assert profiles.choose("cpu", 16) == profiles.CPU  # nothing to round
    with pytest.raises(ValueError, match="kept in 4 or in 16"):
        profiles.choose("cpu", bits=8)


def test_an_old_gpu_gets_the_small_model_unless_another_is_named(monkeypatch, capsys):
    monkeypatch.delenv("COUNTDOWN_PROFILE", raising=False)
    monkeypatch.setattr(profiles, "_gpu_gib", lambda: 15.0)
    monkeypatch.setattr(profiles, "old_gpu", lambda: True)
    assert profiles.choose() == profiles.CPU
    assert "smollm2 can be asked for by name" in capsys.readouterr().out
    assert profiles.choose("smollm2").name == "smollm2"


def test_a_smoke_run_says_that_it_is_one(capsys):
    for steps, said in ((20, True), (21, False)):
        replace(profiles.A100, steps=steps).describe()
        assert ("a smoke run" in capsys.readouterr().out) == said
    profiles.CPU.describe()
    assert "smoke" not in capsys.readouterr().out


def test_an_old_gpu_samples_without_vllm_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(profiles, "_gpu_gib", lambda: 32.0)
    monkeypatch.setattr(profiles, "old_gpu", lambda: True)
    assert not profiles.choose("smollm2").uses_vllm
    assert "transformers samples" in capsys.readouterr().out
    assert profiles.choose("cpu") == profiles.CPU
    assert profiles.half_precision(profiles.SMOLLM2) == {"bf16": False, "fp16": True}
    assert profiles.half_precision(profiles.CPU) == {"bf16": False, "fp16": False}
    monkeypatch.setattr(profiles, "old_gpu", lambda: False)
    assert profiles.half_precision(profiles.SMOLLM2) == {"bf16": True, "fp16": False}
    assert profiles.choose("smollm2") == profiles.SMOLLM2


def test_a_gpu_profile_without_a_gpu_says_what_to_do(monkeypatch):
    monkeypatch.setattr(profiles, "_gpu_gib", lambda: 0.0)
    with pytest.raises(RuntimeError, match="a100 needs a GPU with 21 GiB.*COUNTDOWN_PROFILE=cpu"):
        profiles.choose("a100")


def test_differences_name_the_settings():
    saved = profiles.settings(replace(profiles.CPU, learning_rate=1.0, steps=7, measured_on=""))
    assert profiles.differences(profiles.CPU, saved) == ["learning_rate", "steps"]
    assert profiles.differences(profiles.CPU, profiles.settings(profiles.CPU)) == []


def test_describe_prints_the_batch_arithmetic(capsys):
    profiles.A100.describe()
    assert "8 prompts x 8 completions = 64 completions a step, in 8 pass(es) of 8" in (
        capsys.readouterr().out
    )


def test_settings_given_as_text_change_a_profile():
    found = changed(profiles.CPU, ["micro_batch=64", "cold_start=null", 'model="x"'])
    assert (found.micro_batch, found.cold_start, found.model) == (64, None, "x")
    with pytest.raises(ValueError, match="no setting 'mikro_batch'"):
        changed(profiles.CPU, ["mikro_batch=64"])
    with pytest.raises(ValueError, match="value as JSON"):
        changed(profiles.CPU, ["model=x"])
    with pytest.raises(ValueError, match="do not divide"):
        changed(profiles.CPU, ["micro_batch=7"])


def test_a_setting_younger_than_the_run_was_at_its_default():
    saved = profiles.settings(profiles.CPU)
    del saved["max_num_seqs"], saved["format_weight"], saved["cold_start"]["lora_rank"]
    assert profiles.differences(profiles.CPU, saved) == []
    saved["cold_start"]["steps"] = 1
    assert profiles.differences(profiles.CPU, saved) == ["cold_start"]
    older = profiles.settings(profiles.SMOLLM2)
    del older["format_weight"]  # such a run was rewarded for the form
    assert profiles.differences(profiles.SMOLLM2, older) == ["format_weight"]


def test_the_number_that_unsloth_takes_for_none_is_refused():
    """Seen: asked for 256 at a time, it gave an engine of 64 (16 bits) or 80 (NF4)."""
    with pytest.raises(ValueError, match="write 255 or 257"):
        replace(profiles.A100, max_num_seqs=256)
    assert replace(profiles.A100, max_num_seqs=257).max_num_seqs == 257
