"""The arithmetic of the benchmark, and the files that it left in data/benchmarks."""

import json
import time
import types

import pytest
import torch

from helpers.forecast import COSTLY
from helpers.paths import DATA
from helpers.profiles import A100, SMOLLM2, differences
from lab.benchmark import StepClock, random_weights, shares, split_changes, summary

RECORDED = sorted((DATA / "benchmarks").glob("*-*.json"))


def step(seconds, sampling, old=1.0, prompt=100, completion=300):
    return {"seconds": seconds, "sampling": sampling, "old_logps": old, "prompt_tokens": prompt,
            "completion_tokens": completion, "longest": 64}


def test_warm_up_does_not_count_and_medians_do():
    result = summary([step(90, 80), step(6, 2), step(10, 4), step(8, 3)], warm_up=1)
    assert result["steps_counted"] == 3
    assert result["first_step_seconds"] == 90
    assert result["step_seconds"] == 8
    assert result["slowest_step_seconds"] == 10
    assert result["update_seconds"] == 4  # 8 - 3 of sampling - 1 of old log-probs
    assert result["sampled_tokens_per_s"] == 100
    assert result["trained_tokens_per_s"] == 80


def test_the_clock_tells_old_log_probs_from_the_loss():
    class Trainer:  # what the clock touches of trl's, whose loss calls the second one, too
        def add_callback(self, callback):
            self.callback = callback

        def _generate(self):
            time.sleep(0.02)
            return [[1, 2]], [[3, 4, 5]]

        def _get_per_token_logps_and_entropies(self):
            time.sleep(0.02)

    trainer = Trainer()
    clock = StepClock(trainer)
    clock.begin()
    trainer._generate()
    with torch.no_grad():
        trainer._get_per_token_logps_and_entropies()
    scoring = clock.now["old_logps"]
    trainer._get_per_token_logps_and_entropies()  # in the loss, with gradients
    assert clock.now["old_logps"] == scoring >= 0.02 and clock.now["sampling"] >= 0.02
    assert (clock.now["prompt_tokens"], clock.now["completion_tokens"]) == (2, 3)


def test_shares_follow_from_bytes_operations_and_the_card():
    model = torch.nn.Sequential(torch.nn.Linear(100, 100, bias=False, dtype=torch.bfloat16))
    model.config = types.SimpleNamespace(num_hidden_layers=2, num_key_value_heads=3, hidden_size=64,
                                         num_attention_heads=4)
    model.lora_A = torch.nn.Linear(7, 7)  # the adapter does not count
    steps = [{"longest": 50, "attended": 1000, "sampling": 2.0}] * 3
    found = shares(model, steps, {"trained_tokens_per_s": 1e9},
                   {"copy_tb_per_s": 1e-6, "matrix_tflops": 100.0})
    assert found["weights"] == 10_000
    cache = 2 * 2 * 3 * 16 * 2  # keys and values, layers, heads, head size, bytes
    moved = (50 * 20_000 + 1000 * cache) / 2.0
    assert found["sampling_of_bandwidth"] == pytest.approx(moved / 1e6, abs=1e-4)
    assert found["training_of_matrix_rate"] == pytest.approx(6 * 10_000 * 1e9 / 1e14, abs=1e-4)


def test_only_what_needs_no_loading_can_be_varied():
    profile, arguments = split_changes(SMOLLM2, ["micro_batch=64", 'optim="adamw_torch"'])
    assert profile.micro_batch == 64 and arguments == {"optim": "adamw_torch"}
    with pytest.raises(ValueError, match="max_num_seqs=8 acts when the model is loaded"):
        split_changes(SMOLLM2, ["max_num_seqs=8"])


def test_random_weights_are_for_the_large_architecture_only(tmp_path):
    with pytest.raises(ValueError, match="a100"):
        random_weights(SMOLLM2, tmp_path)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_summaries_follow_from_their_steps(path):
    saved = json.loads(path.read_text())
    again = summary(saved["steps"], len(saved["steps"]) - saved["steps_counted"])
    assert {name: saved[name] for name in again} == again
    assert saved["hardware"] and saved["versions"] and saved["command"]


def test_unsloth_is_no_slower_than_plain_trl():
    two = {p.stem: json.loads(p.read_text()) for p in RECORDED}
    unsloth, trl = two["smollm2-unsloth"], two["smollm2-trl"]
    assert unsloth["profile"] == trl["profile"] and unsloth["steps_counted"] >= 20
    assert unsloth["hardware"] == trl["hardware"] and unsloth["date"] == trl["date"]
    assert unsloth["step_seconds"] <= trl["step_seconds"]


def test_the_large_profile_fits_a_card_of_40_gb_in_the_worst_case():
    measured = json.loads((DATA / "benchmarks" / "a100-unsloth.json").read_text())
    assert not COSTLY & set(differences(A100, measured["profile"]))
    assert measured["card_gib"] <= 39.4 and measured["whole_gpu_peak_mib"] < 38_000
    assert all(step["longest"] == A100.max_completion_length for step in measured["steps"])
