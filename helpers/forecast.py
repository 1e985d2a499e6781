"""How long a training will take on this machine: what recorded ones took, scaled to this card."""

import json
import time

from helpers.paths import DATA
from helpers.profiles import differences
from helpers.runs import REFERENCE_RUNS, read_rows

# With another value a step takes another time and another memory.
COSTLY = {"group_size", "prompts_per_step", "micro_batch", "max_completion_length", "uses_vllm",
          "training_length", "quantisation", "lora_rank", "standby", "gradient_checkpointing"}
MATRIX_SIZE = 8192


def card_limits():
    """Measure, in two seconds, what this GPU reaches: a large matrix product, a large copy.

    Returns
    -------
    dict
        ``matrix_tflops`` (bfloat16) and ``copy_tb_per_s`` (bytes read and written).
    """
    import torch

    def seconds(work, *tensors, repeats=10):
        for _ in range(3):
            work(*tensors)
        torch.cuda.synchronize()
        start = time.monotonic()
        for _ in range(repeats):
            work(*tensors)
        torch.cuda.synchronize()
        return (time.monotonic() - start) / repeats

    options = {"device": "cuda", "dtype": torch.bfloat16}
    matrices = [torch.randn(MATRIX_SIZE, MATRIX_SIZE, **options) for _ in range(2)]
    matrix = 2 * MATRIX_SIZE**3 / seconds(torch.matmul, *matrices) / 1e12
    buffers = [torch.empty(2**31, device="cuda", dtype=torch.uint8) for _ in range(2)]
    copy = 2 * buffers[0].numel() / seconds(torch.Tensor.copy_, *buffers) / 1e12
    del matrices, buffers
    torch.cuda.empty_cache()
    return {"matrix_tflops": round(matrix, 1), "copy_tb_per_s": round(copy, 2)}


def _alike(profile, path, tolerated=frozenset()):
    saved = json.loads(path.read_text())
    different = COSTLY & set(differences(profile, saved["profile"]))
    return saved if different <= tolerated else None


def pace(profile, card=None):
    """Return what a step of a profile is expected to take, from recorded runs and timed steps.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        What will be trained.
    card : dict, optional
        What this GPU reaches, from `card_limits`. Sampling is then scaled by the rate at which
        memory is read, the rest by the rate of matrix products.

    Returns
    -------
    dict or None
        ``seconds`` a step, ``source`` (a text) and ``peak_gib`` (the whole GPU's memory at its
        peak, or None); None if no training or timed step was like this profile's.
    """
    runs = {folder: saved for folder in sorted(REFERENCE_RUNS.glob(f"{profile.name}-*"))
            if (saved := _alike(profile, folder / "config.json"))}
    paths = sorted((DATA / "benchmarks").glob(f"{profile.name}-*.json"),
                   key=lambda path: (len(path.stem), path.stem))  # the plain ones before variants
    timed = next((saved for tolerated in (set(), {"micro_batch"}) for path in paths
                  if (saved := _alike(profile, path, tolerated))
                  and saved.get("stack") == "unsloth"), None)
    exact = timed and timed["profile"]["micro_batch"] == profile.micro_batch
    if runs:
        rows = [read_rows(run / "metrics.jsonl") for run in runs]
        seconds = min(r[-1]["seconds"] / len(r) for r in rows)  # others shared their machine
        hardware = " or ".join(dict.fromkeys(saved["hardware"] for saved in runs.values()))
        source = f"{hardware}, the fastest of {len(runs)} recorded runs"
    elif timed:
        seconds, most = timed["step_seconds"], profile.sampled_length
        longest = timed["completion_tokens"] >= 0.99 * profile.completions_per_step * most
        source = (f"{timed['hardware']}, {timed['steps_counted']} timed steps "
                  f"{'of the greatest length' if longest else 'at the beginning of a training'}; "
                  "no whole run was recorded"
                  + f"; micro-batches of {timed['profile']['micro_batch']}" * (not exact))
    else:
        return None
    if card and timed:
        sampling, whole, its = timed["sampling_seconds"], timed["step_seconds"], timed["card"]
        here = (sampling * its["copy_tb_per_s"] / card["copy_tb_per_s"]
                + (whole - sampling) * its["matrix_tflops"] / card["matrix_tflops"])
        seconds *= here / whole
        source = f"scaled to this card from {source}"
    return {"seconds": seconds, "source": source,
            "peak_gib": timed["whole_gpu_peak_mib"] / 1024 if exact else None}


def forecast(profile, card=None):
    """Return a line on how long a profile trains and what memory it takes; see `pace`."""
    if not (expected := pace(profile, card)):
        return f"no run of profile {profile.name} as it is here was recorded: its time is not known"
    minutes = profile.steps * expected["seconds"] / 60
    length = f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
    line = (f"{profile.steps} steps take about {length}, {expected['seconds']:.1f} s each "
            f"({expected['source']})")
    peak = expected["peak_gib"]
    return line + (f"; GPU memory {peak:.0f} GiB at its peak" if peak else "")
