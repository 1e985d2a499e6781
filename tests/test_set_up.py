"""The first cell of every notebook, and what it calls; uv and nvidia-smi are scripts here."""

import json
import os
import shutil
import subprocess
import sys
import types

import pytest

import set_up
from helpers.paths import ROOT
from set_up import SetUpStopped

CELL = "".join(json.loads((ROOT / "notebooks" / "01_explore_the_dataset.ipynb").read_text(
    encoding="utf-8"))["cells"][1]["source"])
COLAB = {"torch": "2.11.0+cu128", "torchvision": "0.26.0+cu128", "torchaudio": "2.11.0+cu128",
         "torchao": "0.10.0", "triton": "3.6.0", "numpy": "2.1.3", "pillow": "11.3.0"}


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """A Colab runtime: a PATH of its own, what is installed, what the kernel has loaded."""
    state = types.SimpleNamespace(bin=tmp_path / "bin", log=tmp_path / "uv.log", here=dict(COLAB),
                                  loaded=["numpy", "pillow"])
    state.bin.mkdir()
    program(state.bin, "uv", f'echo "$@" >> {state.log}\n'
            f'pins={tmp_path}/countdown-grpo/constraints.txt\n'
            f'[ -f $pins ] && cp $pins {state.log}.pins\n'
            f'[ -f {tmp_path}/fails ] && {{ echo "no such version" >&2; exit 1; }}; exit 0')
    monkeypatch.setenv("PATH", f"{state.bin}:/usr/bin:/bin")
    monkeypatch.delenv("COUNTDOWN_PROFILE", raising=False)
    root = tmp_path / "countdown-grpo"
    root.mkdir()
    shutil.copyfile(ROOT / "environment.yml", root / "environment.yml")
    monkeypatch.setattr(set_up, "ROOT", root)
    monkeypatch.setattr(set_up, "installed", lambda name: state.here.get(name))
    monkeypatch.setattr(set_up, "loaded", lambda: {n: state.here[n] for n in state.loaded})
    monkeypatch.setattr(set_up, "_stale", [])
    state.lines = lambda: state.log.read_text().splitlines() if state.log.exists() else []
    state.pins = lambda: (tmp_path / "uv.log.pins").read_text().split("\n")
    state.fail = (tmp_path / "fails").touch
    return state


def gpu(runtime, version):
    program(runtime.bin, "nvidia-smi", f"echo {version}")


@pytest.mark.parametrize(("version", "good"), [
    ("580.82.07", True), ("580.65.06", True), ("580.64", False), ("579.99", False),
    ("550.54.15", False), ("1000.1", True)])
def test_an_old_driver_is_said_before_anything_is_fetched(runtime, monkeypatch, version, good):
    gpu(runtime, version)
    monkeypatch.chdir(set_up.ROOT)
    helpers = types.SimpleNamespace(origin=str(set_up.ROOT / "helpers" / "__init__.py"))
    monkeypatch.setattr(set_up.importlib.util, "find_spec", lambda name: helpers)
    monkeypatch.setattr(set_up, "try_imports", lambda gpu: None)
    if good:
        set_up.set_up(colab=True)
        assert "[gpu]" in runtime.lines()[-1]
    else:
        with pytest.raises(SetUpStopped, match=f"driver {version} .*Change runtime type > CPU"):
            set_up.set_up(colab=True)
        assert not runtime.lines()
        monkeypatch.setenv("COUNTDOWN_PROFILE", "cpu")  # what else the reader may do
        set_up.set_up(colab=True)
        assert "[cpu]" in runtime.lines()[-1]


def test_a_broken_nvidia_smi_is_no_gpu(runtime):
    program(runtime.bin, "nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    assert set_up.driver() is None


def test_what_is_loaded_stays_and_torch_changes_with_its_family(runtime):
    set_up.install(gpu=True)
    (line,) = runtime.lines()
    for name in ("torch", "torchvision", "torchaudio"):
        assert f"--reinstall-package={name}" in line
    pins = runtime.pins()
    assert "numpy==2.1.3" in pins and "pillow==11.3.0" in pins
    assert not [pin for pin in pins if pin.startswith("numpy==2.3")]
    assert "torch==2.11.0" in pins and "trl==1.14.2" in pins
    runtime.here |= dict.fromkeys(("torch", "torchaudio"), "2.11.0+cu130")
    runtime.here["torchvision"] = "0.26.0+cu130"
    set_up.install(gpu=True)
    assert "--reinstall-package" not in runtime.lines()[-1]  # what is right is not fetched again


@pytest.mark.parametrize("torch", ["2.11.0+cu128", "2.12.1", "2.13.0+cpu"])
def test_on_a_cpu_a_torch_in_the_tested_range_stays_with_its_family(runtime, torch):
    runtime.here |= {"torch": torch, "torchvision": "0.27.1"}
    set_up.install(gpu=False)
    (line,) = runtime.lines()
    assert "uninstall" not in line and "[cpu]" in line
    assert {f"torch=={torch.partition('+')[0]}", "torchvision==0.27.1"} <= set(runtime.pins())


@pytest.mark.parametrize("torch", ["2.10.0", "2.14.0", None])
def test_on_a_cpu_another_torch_takes_its_family_with_it(runtime, torch):
    runtime.here["torch"] = torch
    set_up.install(gpu=False)
    first, second = runtime.lines()
    assert "uninstall" in first and "torchvision" in first and " torch " not in f"{first} "
    assert "[cpu]" in second and "torch==2.13.0" in runtime.pins()


def test_a_loaded_module_that_changed_stops_until_the_kernel_is_new(runtime, monkeypatch):
    monkeypatch.chdir(set_up.ROOT)
    helpers = types.SimpleNamespace(origin=str(set_up.ROOT / "helpers" / "__init__.py"))
    monkeypatch.setattr(set_up.importlib.util, "find_spec", lambda name: helpers)
    run = subprocess.run

    def installs(*arguments, **options):
        runtime.here["pillow"] = "13.0.0"
        return run(*arguments, **options)

    monkeypatch.setattr(set_up.subprocess, "run", installs)
    for _ in range(2):  # the second time nothing changes any more, but the kernel is the same
        with pytest.raises(SetUpStopped, match="Restart session.*pillow 11.3.0 in memory"):
            set_up.set_up(colab=True)
    assert SetUpStopped("x")._render_traceback_() == ["Not ready: x"]


def test_packages_that_cannot_be_installed_stop(runtime):
    runtime.fail()
    with pytest.raises(SetUpStopped, match="(?s)could not be installed.*no such version"):
        set_up.install(gpu=False)
    assert len([line for line in runtime.lines() if "-c" in line.split()]) == 2
    assert "numpy==2.3.5" in runtime.pins()  # the second time without what is loaded


def test_packages_that_do_not_work_together_are_found(tmp_path, monkeypatch):
    (tmp_path / "unsloth.py").write_text("")
    (tmp_path / "vllm.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert set_up.try_imports(gpu=True) == "RuntimeError: operator nms does not exist"
    monkeypatch.delenv("PYTHONPATH")
    assert set_up.try_imports(gpu=False) is None


@pytest.mark.parametrize(("version", "good"), [((3, 10), False), ((3, 11), True), ((3, 14), True),
                                               ((3, 15), False)])
def test_a_python_without_wheels_is_said_at_once(monkeypatch, capsys, version, good):
    monkeypatch.setattr(set_up.sys, "version_info", version)
    if good:
        set_up.set_up(colab=False)
        assert capsys.readouterr().out.startswith("Ready: profile ")
    else:
        with pytest.raises(SetUpStopped, match="use 3.11 to 3.14"):
            set_up.set_up(colab=False)


def start(folder, code, **environment):
    path = [str(ROOT)] if "PYTHONPATH" not in environment else []
    return subprocess.run([sys.executable, "-c", code], cwd=folder, text=True, capture_output=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(path)} | environment)


def test_another_folders_helpers_are_noticed(tmp_path):
    copy = tmp_path / "copy"
    (copy / "notebooks").mkdir(parents=True)
    shutil.copyfile(ROOT / "set_up.py", copy / "set_up.py")
    done = start(copy / "notebooks", CELL)
    assert "its helpers would come from" in done.stderr and str(ROOT) in done.stderr
    assert "Ready" in start(ROOT / "notebooks" / "more", CELL).stdout


def test_another_file_called_helpers_is_noticed(tmp_path):
    (tmp_path / "helpers.py").write_text("")
    done = start(tmp_path, CELL)
    assert "another helpers.py lies beside this notebook" in done.stderr


@pytest.fixture
def upstream(tmp_path):
    """A repository to clone, as small as it can be, and a fake google.colab."""
    source = tmp_path / "upstream"
    shutil.copytree(ROOT / "helpers", source / "helpers",
                    ignore=shutil.ignore_patterns("__pycache__"))
    (source / "notebooks").mkdir()
    (source / "notebooks" / "readme.txt").write_text("notebooks")
    for name in ("set_up.py", "environment.yml", "pyproject.toml"):
        shutil.copyfile(ROOT / name, source / name)
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=source,
                       check=True)
    (tmp_path / "google" / "colab").mkdir(parents=True)
    for folder in ("google", "google/colab"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "uv", "exit 0")
    return tmp_path


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "half a clone", "a clone"])
def test_the_repository_is_fetched_where_it_is_not_whole(upstream, there):
    repo = upstream / "content" / "countdown-grpo"
    repo.parent.mkdir()
    if there == "a clone":
        shutil.copytree(upstream / "upstream", repo)
        (repo / "mine.txt").write_text("kept")
    elif there != "nothing":
        repo.mkdir()
        if there == "half a clone":
            (repo / ".git").mkdir()
            (repo / "runs").mkdir()
            (repo / "runs" / "mine.txt").write_text("kept")
    code = "import google.colab\n" + CELL.replace("/content/", f"{upstream}/content/").replace(
        "https://github.com/josephqiu123/Tinyzero-Reproduce-Mini", f"file://{upstream}/upstream")
    done = start(upstream, code, PYTHONPATH=str(upstream), PATH=f"{upstream}/bin:/usr/bin:/bin",
                 COUNTDOWN_PROFILE="cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Ready: profile cpu, Python ")
    assert (repo / "helpers" / "paths.py").exists()
    if there == "a clone":
        assert (repo / "mine.txt").read_text() == "kept"
    kept = repo.with_name("countdown-grpo.old-1") / "runs" / "mine.txt"
    assert kept.exists() == (there == "half a clone")


def test_runs_go_to_the_drive_where_it_is_asked_for(upstream):
    """The drive is a folder here; mounting it is Google's part."""
    (upstream / "google" / "colab" / "drive.py").write_text("""
def mount(folder):
    from pathlib import Path
    (Path(folder) / "MyDrive").mkdir(parents=True, exist_ok=True)
""")
    content = upstream / "content"
    content.mkdir()
    drive = CELL.replace("/content/", f"{content}/").replace(
        "https://github.com/josephqiu123/Tinyzero-Reproduce-Mini", f"file://{upstream}/upstream")
    drive = drive.replace("runs_on_drive = False", "runs_on_drive = True").replace(
        "use_drive()", f"use_drive('{content}/drive')")
    code = f"""import google.colab
{drive}
from helpers import profiles, runs
print(runs.open_run(profiles.CPU, name="one"))
use_drive('{content}/drive')  # again: nothing changes
from helpers.paths import RUNS
import os
os.environ["COUNTDOWN_RUNS"] = "elsewhere"
use_drive('{content}/drive')
"""
    done = start(upstream, code, PYTHONPATH=str(upstream), PATH=f"{upstream}/bin:/usr/bin:/bin",
                 COUNTDOWN_PROFILE="cpu", COUNTDOWN_RUNS="")
    run = content / "drive" / "MyDrive" / "countdown-grpo" / "runs" / "one"
    assert str(run) in done.stdout and (run / "config.json").exists(), done.stderr
    assert "Restart session" in done.stderr.splitlines()[-1]


def test_the_drive_is_for_colab():
    with pytest.raises(SetUpStopped, match="Google Colab.*COUNTDOWN_RUNS"):
        set_up.use_drive()
