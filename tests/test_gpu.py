"""What needs a GPU and the pinned GPU set: `make test-gpu`. Each part is a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.runs import read_rows
from lab.saved import WAYS

pytestmark = pytest.mark.gpu

PRETRAINED = """
import sys, torch
from helpers import profiles
from lab.coldstart import load_pretrained
model, tokenizer = load_pretrained(profiles.SMOLLM2)
model.to(torch.bfloat16).save_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[1])
"""

ADAPTER = """
import sys, torch
from dataclasses import replace
from helpers import profiles
from helpers.dataset import load_split
from helpers.evaluation import check_adapter_used, sample_completions
from helpers.models import load_model

profile = replace(profiles.SMOLLM2, model=sys.argv[1], revision=None, cold_start=None,
                  max_completion_length=4)
model, tokenizer = load_model(profile)
kinds = {module.weight.quant_state.quant_type for module in model.modules()
         if hasattr(getattr(module, "weight", None), "quant_state")}
assert kinds == {"nf4"}, kinds
puzzles = load_split(profile.puzzles, "validation").head(32)
before = sample_completions(model, tokenizer, profile, puzzles, temperature=0)
with torch.no_grad():
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.5)
after = sample_completions(model, tokenizer, profile, puzzles, temperature=0)
assert (before["completion"] != after["completion"]).mean() > 0.5, "vLLM kept the old adapter"
adapter = {name: weight.clone() for name, weight in model.named_parameters() if "lora_" in name}
check_adapter_used(model, tokenizer, profile, puzzles)
assert all(torch.equal(weight, adapter[name]) for name, weight in model.named_parameters()
           if name in adapter), "the check changed the adapter"
again = sample_completions(model, tokenizer, profile, puzzles, temperature=0)
assert (again["completion"] != before["completion"]).mean() > 0.5, "vLLM kept the base model"
assert (again["completion"] == after["completion"]).mean() > 0.5, "vLLM kept the check's noise"
off = sample_completions(model, tokenizer, profile, puzzles, temperature=0, adapter=False)
assert (off["completion"] == before["completion"]).mean() > 0.5, "the adapter was not switched off"
model.load_lora = lambda *arguments, **options: None  # vLLM now samples from the base model
try:
    check_adapter_used(model, tokenizer, profile, puzzles)
except RuntimeError as error:
    assert "does not sample from the adapter" in str(error)
else:
    raise AssertionError("an evaluation of the base model passed for one of the adapter")
print("the adapter is what vLLM samples from")
"""


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    python("-c", PRETRAINED, str(folder))
    return folder


def python(*arguments, cwd=None, runs=None):
    environment = os.environ | ({"COUNTDOWN_RUNS": str(runs)} if runs else {})
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_vllm_samples_from_the_adapter_on_nf4_weights(pretrained, tmp_path):
    assert "the adapter is what" in python("-c", ADAPTER, str(pretrained), cwd=tmp_path,
                                           runs=tmp_path)


def test_a_run_goes_on_after_sigkill(pretrained, tmp_path):
    command = [sys.executable, "-m", "lab.record", "--profile", "smollm2", "--name", "killed",
               "--part", "validation", "--temperatures", "1", "--set", f'model="{pretrained}"',
               "revision=null", "cold_start=null", "steps=6", "save_every=2", "group_size=4",
               "prompts_per_step=4", "micro_batch=8", "max_completion_length=48"]
    environment = os.environ | {"COUNTDOWN_RUNS": str(tmp_path)}
    run = tmp_path / "killed"
    with open(tmp_path / "log", "w") as log:
        child = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        end = time.monotonic() + 600
        while not (run / "checkpoint-2" / "trainer_state.json").exists():
            assert child.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.2)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (run / "evaluation.parquet").exists()
    output = python(*command[1:], cwd=tmp_path, runs=tmp_path)
    assert "Resuming" in output
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert json.loads((run / "config.json").read_text())["training_seconds"] > 0
    assert (run / "evaluation.parquet").exists()


def put_noise_in(folder):
    """Make an adapter that two steps left at nearly zero one that changes every answer."""
    tensors = load_file(folder / "adapter_model.safetensors")
    noise = torch.Generator().manual_seed(0)
    for name, weight in tensors.items():
        if "lora_B" in name:
            weight.copy_(0.3 * torch.randn(weight.shape, generator=noise))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return tensors


def merge_error(base, merged, adapter, scale):
    """How far the merged weights are from base + scale B A, as a share of their size; the worst."""
    base, merged = (load_file(folder / "model.safetensors") for folder in (base, merged))
    errors = {}
    for name in (name for name in adapter if "lora_A" in name):
        weight = name.removeprefix("base_model.model.").replace("lora_A.", "")
        low, high = (adapter[n].float() for n in (name, name.replace("lora_A", "lora_B")))
        wanted = base[weight].float() + scale * high @ low
        errors[weight] = float((merged[weight].float() - wanted).norm() / wanted.norm())
    return max(errors.values())


def test_a_saved_adapter_and_the_merged_model_answer_alike(pretrained, tmp_path):
    python("-m", "lab.record", "--profile", "smollm2", "--name", "saved", "--part",
           "validation", "--temperatures", "1", "--set", f'model="{pretrained}"', "revision=null",
           "cold_start=null", "steps=2", "group_size=4", "prompts_per_step=4", "micro_batch=8",
           "max_completion_length=48", cwd=tmp_path, runs=tmp_path)
    folder = tmp_path / "saved" / "checkpoint-2"
    adapter = put_noise_in(folder)
    output = python("-m", "lab.saved", str(folder), "--set", f'model="{pretrained}"',
                    "revision=null", "cold_start=null", cwd=tmp_path, runs=tmp_path)
    rows = json.loads((folder.parent / "saved_answers.json").read_text())
    assert [row["puzzles"] for row in rows] == [50] * len(WAYS), output
    texts = {way: json.loads((folder.parent / f"answers-{way}.json").read_text()) for way in WAYS}
    # The same weights in two programs: only rounding may part the answers. Noise makes babble,
    # whose likeliest tokens are close: on an H100 39 and 26 of 50 began alike.
    for one, other in (("unsloth", "adapter"), ("merged", "merged-vllm"),
                       ("merged", "adapter-vllm")):
        alike = sum(a[:8] == b[:8] for a, b in zip(texts[one], texts[other], strict=True))
        print(f"{one} and {other}: {alike} of 50 answers begin alike")
        assert alike > 10, (texts[one][:3], texts[other][:3])
    settings = json.loads((folder / "adapter_config.json").read_text())
    error = merge_error(pretrained, folder.parent / "merged", adapter,
                        settings["lora_alpha"] / settings["r"])
    print(f"the merged weights are at most {error:.1%} from base + adapter")
    assert error < 0.1  # rounding to 16 bits leaves less than 1 %, to 4 bits several per cent
