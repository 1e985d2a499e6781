"""What every notebook's first code cell does: install on Colab, and say what is ready.

Only Python's own library is imported here: on Colab nothing else is installed yet.
"""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PROJECT = "countdown-grpo"
PYTHON = ((3, 11), (3, 14))  # the oldest and the newest that the packages have wheels for
DRIVER = (580, 65)  # the oldest that runs CUDA 13
CPU_TORCH = ((2, 11), (2, 13))  # on a CPU what Colab has stays, where it lies in this tested range
# These fit together in one version each; if one changes, all do.
FAMILY = ("torch", "torchvision", "torchaudio", "torchao", "torchcodec", "triton")
_stale = []  # what this kernel holds in another version than is installed now


class SetUpStopped(RuntimeError):
    """What to do first; a notebook shows it in one line, and Run All ends there."""

    def _render_traceback_(self):
        return [f"Not ready: {self}"]


def installed(name):
    """Return the version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def project_version(root=ROOT):
    """Return the commit of the project in a folder, or what an archive's VERSION says it was."""
    with suppress(OSError):
        return (root / "VERSION").read_text(encoding="utf-8").strip()
    with suppress(OSError, subprocess.CalledProcessError):
        if (root / ".git").exists():
            return subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=root,
                                           stderr=subprocess.DEVNULL, text=True).strip()
    return installed(PROJECT) or "unknown"


def loaded():
    """Return {name: version} of the distributions that this kernel has imported modules of."""
    modules = {name.partition(".")[0] for name in sys.modules}
    names = {name for module, owners in metadata.packages_distributions().items()
             if module in modules for name in owners}
    return {name: installed(name) for name in sorted(names)}


def driver():
    """Return the NVIDIA driver's version as text, or None where there is no GPU."""
    if not shutil.which("nvidia-smi"):
        return None
    asked = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                           capture_output=True, text=True)
    return asked.stdout.split()[0] if asked.returncode == 0 and asked.stdout.strip() else None


def _numbers(version):
    return tuple(int(part) for part in re.findall(r"[0-9]+", version)[:2])


def constraints(pins, here, kept):
    """Return the versions to install, line by line.

    Parameters
    ----------
    pins : list of str
        The set seen working, environment.yml's lines.
    here : dict
        {name: version} of what the kernel has loaded: another version would need a restart.
    kept : dict
        {name: version} of what stays, loaded or not.
    """
    def canonical(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    stays = {canonical(name): version.partition("+")[0] for name, version in (here | kept).items()
             if version}
    rest = [pin for pin in pins
            if canonical(re.match(r"[A-Za-z0-9._-]+", pin).group()) not in stays]
    return rest + [f"{name}=={version}" for name, version in stays.items()]


def install(gpu):
    """Install the packages beside what Colab has, and stop where its kernel must be restarted.

    Raises
    ------
    SetUpStopped
        If they cannot be installed, or modules that are loaded changed on the disk.
    """
    pins = re.findall(r"^ {6}- ([^-].*)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    before, torch = loaded(), installed("torch")
    family = {name: installed(name) for name in FAMILY}
    command, kept = ["uv", "pip", "install", "-q", "--system"], {}
    if not gpu and torch and CPU_TORCH[0] <= _numbers(torch) <= CPU_TORCH[1]:
        kept = {name: version for name, version in family.items() if version}
    elif not gpu:  # torch changes: what was built for the other one would not load
        subprocess.run(["uv", "pip", "uninstall", "-q", "--system", *FAMILY[1:]])
        pins = [pin for pin in pins if not pin.startswith("torch==")] + ["torch==2.13.0"]
    elif any("+" in version and "+cu13" not in version for version in family.values() if version):
        # pip takes 2.11.0+cu128 for 2.11.0, and vLLM then finds no CUDA 13
        command += [f"--reinstall-package={name}" for name in FAMILY[:3]]
    path, tried = ROOT / "constraints.txt", ""
    for here in (before, {}):  # with all that is loaded as it is, else with a restart
        path.write_text("\n".join(constraints(pins, here, kept)) + "\n")
        tried = subprocess.run([*command, "-c", path, "-e", f"{ROOT}[{'gpu' if gpu else 'cpu'}]"],
                               capture_output=True, text=True)
        if tried.returncode == 0:
            break
    else:
        raise SetUpStopped(f"the packages could not be installed. Run this cell again; if it stops "
                           f"here again, report this:\n{tried.stderr[-1500:]}")
    importlib.invalidate_caches()
    _stale.extend(f"{name} {version}" for name, version in before.items()
                  if version and installed(name) != version)


def use_drive(folder="/content/drive"):
    """Mount the reader's Google Drive, and let runs be written there: they outlive the runtime.

    Raises
    ------
    SetUpStopped
        If this is not Colab, or the folder of runs was chosen already in this session.
    """
    if "google.colab" not in sys.modules:
        raise SetUpStopped("runs_on_drive is for Google Colab. Elsewhere name a folder in the "
                           "variable COUNTDOWN_RUNS before JupyterLab starts")
    runs = str(Path(folder) / "MyDrive" / "countdown-grpo" / "runs")
    if "helpers.paths" in sys.modules and os.environ.get("COUNTDOWN_RUNS") != runs:
        raise SetUpStopped("this session writes its runs to another folder already. Choose "
                           "Runtime > Restart session, then run this cell again")
    from google.colab import drive

    drive.mount(folder)  # asks the reader; nothing else needs an account
    os.environ["COUNTDOWN_RUNS"] = runs
    print(f"Runs are written to {runs}")


def try_imports(gpu):
    """Import what training imports, in a Python of its own; return its last line if it fails."""
    from helpers.models import UNSLOTH_ENVIRONMENT

    # torch's own first: what imports them may hide their errors. unsloth before trl: it patches it
    names = ["torch", *(name for name in FAMILY[1:3] if installed(name)),
             *(["unsloth"] if gpu else []), "transformers", "datasets", "peft",
             "trl.trainer.grpo_trainer", "pandas", "ipywidgets",
             *(["vllm", "bitsandbytes"] if gpu else [])]
    code = f"import {', '.join(names)}"
    if gpu:  # peft raises here where there is a torchao that it cannot use
        code += "; from peft.import_utils import is_torchao_available as look; look()"
    tried = subprocess.run([sys.executable, "-c", code], env=UNSLOTH_ENVIRONMENT | os.environ,
                           capture_output=True, text=True, errors="replace")
    lines = tried.stderr.strip().splitlines() or [f"status {tried.returncode}"]
    return lines[-1] if tried.returncode else None


def set_up(colab=None):
    """Make a notebook's kernel ready, print that it is, or stop and say what to do.

    Parameters
    ----------
    colab : bool, optional
        Whether this is Google Colab; by default as ``google.colab`` tells.

    Raises
    ------
    SetUpStopped
        If Python, the driver, the packages or the helpers are not the ones that are needed.
    """
    colab = "google.colab" in sys.modules if colab is None else colab
    if not PYTHON[0] <= sys.version_info[:2] <= PYTHON[1]:
        raise SetUpStopped(f"Python {sys.version.split()[0]} has no wheels of these packages; use "
                           "3.11 to 3.14")
    here = next((folder for folder in (Path.cwd(), *Path.cwd().parents)
                 if (folder / "notebooks").is_dir() and (folder / "set_up.py").exists()), ROOT)
    helpers = Path(importlib.util.find_spec("helpers").origin).resolve().parent
    for found in (ROOT, helpers.parent):
        if found != here.resolve():
            raise SetUpStopped(f"this notebook lies in {here}, and its helpers would come from "
                               f"{found}: run `make lab` in {here}, once, and restart the kernel")
    asked, version = os.environ.get("COUNTDOWN_PROFILE"), driver()
    if colab:
        gpu = version is not None and not (asked or "").startswith("cpu")
        if gpu and _numbers(version) < DRIVER:
            raise SetUpStopped(
                f"the NVIDIA driver {version} of this runtime is older than 580.65, which CUDA 13 "
                "needs. Nothing was installed. Choose Runtime > Change runtime type > CPU, and "
                "train the small model there")
        if not _stale:
            install(gpu)
        if _stale:
            raise SetUpStopped(f"choose Runtime > Restart session, then run this cell again: "
                               f"{', '.join(_stale)} in memory, another version is installed now")
        if fault := try_imports(gpu):
            raise SetUpStopped(f"the installed packages do not work together: {fault}. Choose "
                               "Runtime > Disconnect and delete runtime, then begin again")
    profile = asked or ("chosen by notebook 04" if version else "cpu")
    print(f"Ready: profile {profile}, Python {sys.version.split()[0]}, "
          f"torch {installed('torch')}")
