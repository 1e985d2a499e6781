"""One folder that sets up laptops without a network: ``python -m lab.offline`` (make offline).

uv resolves the CPU set for each platform: pip would read the packages' conditions, such as
``sys_platform == "win32"``, for the machine that it runs on. pip then downloads what uv names.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename
from uv import find_uv_bin

from helpers.paths import ROOT, show
from set_up import project_version

MANYLINUX = [f"manylinux_2_{minor}" for minor in range(28, 4, -1)] + ["manylinux2014"]
UV = {"windows-amd64": "x86_64-pc-windows-msvc", "macos-arm64": "aarch64-apple-darwin",
      "linux-x86_64": "x86_64-manylinux_2_28", "linux-aarch64": "aarch64-manylinux_2_28"}
PIP = {"windows-amd64": ["win_amd64"], "macos-arm64": ["macosx_14_0_arm64"],
       **{f"linux-{arch}": [f"{name}_{arch}" for name in MANYLINUX]
          for arch in ("x86_64", "aarch64")}}
WITHOUT = {"macos-x86_64": "an Intel Mac", "windows-arm64": "Windows on an ARM processor"}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # torch's builds for Linux without CUDA
OF_CUDA = re.compile(r"(triton|nvidia-|cuda-)")  # what torch's CUDA build alone asks for
MIB_A_SET = 600  # of disk for each platform and Python; the largest that was gathered takes 505
LIST = "list.txt"  # in a folder of wheels that is complete: what is in it
AT_ONCE = 20  # packages that one call of pip downloads: what it has then is kept
NOT_OURS = {".git", ".venv", "runs", "offline", "build", "__pycache__", ".ipynb_checkpoints",
            ".pytest_cache", ".ruff_cache", ".hypothesis", ".cache"}  # where git cannot be asked

READ_ME = """\
Learn GRPO by doing it: set up a laptop without a network
Gathered on {date}, from {version}.

The laptop needs Python (the version that the folder's name ends in) and 3 GB of disk.
Copy project.zip and the folder of your system to the laptop's disk, into one folder with a
short name, such as C:\\grpo. Open a terminal there (Windows: PowerShell) and type the lines
below. The fifth one ends with a line to send to your teacher, the last one opens the lesson.
{commands}"""
COMMANDS = """
== {target}

    {start} -m zipfile -e project.zip .
    cd countdown
    {start} -m venv .venv
    {own} -m pip install --no-index --find-links {up}{target} -e ".[cpu,dev]"
    {own} -m helpers.preflight
    {own} -m jupyterlab --notebook-dir=. {lesson}/01_explore_the_dataset.ipynb
"""
WITH_MAKE = """
Where there is make, after `cd countdown` this line does the same:

    make lab WHEELS=../{target} PYTHON={start}
"""


class Incomplete(RuntimeError):
    """What could not be gathered, and what to do."""


@dataclass(frozen=True)
class Target:
    """A kind of laptop: its system with its processor, and its Python.

    Raises
    ------
    ValueError
        If the packages have no wheels for it.
    """

    system: str
    python: str

    def __post_init__(self):
        if self.system in WITHOUT:
            raise ValueError(f"{self.system}: torch has no wheel for {WITHOUT[self.system]}")
        for given, known in ((self.system, UV), (self.python, PYTHONS)):
            if given not in known:
                raise ValueError(f"no wheels for {given!r}: choose from {', '.join(known)}")

    def __str__(self):
        return f"{self.system}-py{self.python}"


def this_system():
    """Return this machine's name among the platforms, whether there are wheels for it or not."""
    system = {"Darwin": "macos"}.get(platform.system(), platform.system().lower())
    return f"{system}-{platform.machine().lower()}"


def _resolve(root, target, scratch, *options):
    """Return the CPU set with its build tools for a target, a line ``name==version`` each."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    (torch,) = map(Requirement, extras["cpu"])
    (measured,) = [s.version for s in torch.specifier if s.operator in ("<=", "==")]
    pins = re.findall(r"^[ -]*([\w.-]+==.*)$", (root / "environment.yml").read_text("utf-8"), re.M)
    constraints = scratch / "constraints.txt"
    constraints.write_text("\n".join([f"torch=={measured}"] + [
        pin for pin in pins if not re.match("torch==", pin) and not OF_CUDA.match(pin)]))
    done = subprocess.run(
        [find_uv_bin(), "pip", "compile", "-q", "-", "--constraint", constraints,
         "--python-version", target.python, "--python-platform", UV[target.system],
         "--only-binary", ":all:", "--no-header", "--no-annotate", *options],
        input="\n".join([*project.get("dependencies", []), *extras["cpu"], *extras["dev"],
                         "setuptools", "wheel"]), capture_output=True, text=True,
        env=os.environ | {"UV_PYTHON_DOWNLOADS": "never", "MACOSX_DEPLOYMENT_TARGET": "14.0"})
    if done.returncode:
        raise Incomplete(done.stderr.strip())
    return [line.split("+")[0] for line in done.stdout.splitlines() if not OF_CUDA.match(line)]


def _present(folder, wanted):
    """Return which of the lines lie in a folder; what is cut or of another version is removed."""
    found = set()
    for path in folder.glob("*.whl"):
        name, version, *_ = parse_wheel_filename(path.name)
        line = f"{name}=={version.public}"
        if line in wanted and zipfile.is_zipfile(path):  # its end is there
            found.add(line)
        else:
            path.unlink()
    return found


def _download(target, folder, lines, torch_index):
    """Download wheels for a target into its folder; what is complete there stays."""
    tags = [word for tag in PIP[target.system] for word in ("--platform", tag)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-qq",
               "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--retries", "2",
               "--python-version", target.python, *tags, "-d", folder]
    if lines[0].startswith("torch==") and target.system.startswith("linux"):
        lines = [lines[0] + "+cpu"]  # the build without CUDA: no other one will do
        command += ["--extra-index-url", torch_index]
    done = subprocess.run([*command, *lines], capture_output=True, text=True)
    if done.returncode:
        raise Incomplete(f"{' '.join(lines)}\npip's own words:\n{done.stderr.strip()[-1500:]}\n"
                         "After a broken connection run the same command again: what is complete "
                         "is kept.")


def gather(root, target, folder, torch_index=TORCH_INDEX):
    """Download what one kind of laptop needs, and check that it is all there.

    Parameters
    ----------
    root : path
        The project, with its pyproject.toml and environment.yml.
    target : Target
        The kind of laptop.
    folder : path
        Where its wheels go; those that are there already and right are kept, others removed.
    torch_index : str, optional
        The index that has torch's builds without CUDA, for Linux.

    Raises
    ------
    Incomplete
        If a wheel could not be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wanted = _resolve(root, target, Path(scratch))
        (folder / LIST).unlink(missing_ok=True)  # until all is there again
        missing = sorted(set(wanted) - _present(folder, wanted))
        torch = [line for line in missing if line.startswith("torch==")]
        rest = [line for line in missing if line not in torch]
        parts = [torch, *(rest[k:k + AT_ONCE] for k in range(0, len(rest), AT_ONCE))]
        have = len(wanted) - len(missing)
        for lines in filter(None, parts):
            print(f"  {have} of {len(wanted)} wheels are here", flush=True)
            _download(target, folder, lines, torch_index)
            have += len(lines)
        _resolve(root, target, Path(scratch), "--no-index", "--find-links", folder)
    (folder / LIST).write_text("\n".join(wanted) + "\n")


def check_disk(folder, targets):
    """Refuse a disk that is too small for the targets that are not complete; make the folder.

    Raises
    ------
    Incomplete
        If there is not enough space.
    OSError
        If the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = MIB_A_SET * sum(not (folder / str(target) / LIST).exists() for target in targets)
    free = shutil.disk_usage(folder).free / 2**20
    if free < needed:
        raise Incomplete(f"{show(folder)} has {free:.0f} MiB free, {needed} are needed: free some, "
                         "or name a folder on another disk")


def _files(root, out):
    """Return the project's files, relative to its folder: what git tracks, or all but results.

    What lies in the folder `out`, which may be inside the project, is no part of it.
    """
    if (root / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True,
                                check=True).stdout.split("\0")[:-1]
        paths = [Path(name) for name in listed if (root / name).is_file()]
    else:
        paths = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
        paths = [path for path in paths if not NOT_OURS & set(path.parts)
                 and path != Path("VERSION") and not (root / path).is_relative_to(out)]
    student = [path.relative_to(root) for path in (root / "student").rglob("*.ipynb")]
    return sorted({*paths, *student})


def pack_project(root, path):
    """Write the project's files as they are now into a zip file, in a folder ``countdown/``.

    The student edition goes along if ``make student`` has written it.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as pack:
        for name in _files(root, path.parent):
            pack.write(root / name, Path("countdown") / name)
        pack.writestr("countdown/VERSION", project_version(root) + "\n")


def read_me(root, targets):
    """Return the text that says how to set up each of the targets."""
    commands, lesson = "", "student" if (root / "student").is_dir() else "notebooks"
    for target in targets:
        windows = target.system.startswith("windows")
        commands += (COMMANDS + WITH_MAKE * (not windows)).format(
            target=target, lesson=lesson, up="..\\" if windows else "../",
            start=f"py -{target.python}" if windows else f"python{target.python}",
            own=".venv\\Scripts\\python" if windows else ".venv/bin/python")
    return READ_ME.format(date=date.today(), version=project_version(root), commands=commands)


def finish(root, folder):
    """Put the project and READ_ME.txt beside the complete folders, and print all sizes."""
    known = [Target(system, python) for system in UV for python in PYTHONS]
    if not (ready := [target for target in known if (folder / str(target) / LIST).exists()]):
        return
    pack_project(root, folder / "project.zip")
    (folder / "READ_ME.txt").write_text(read_me(root, ready), encoding="utf-8")
    for path in [*(folder / str(target) for target in ready), folder / "project.zip"]:
        size = sum(file.stat().st_size for file in [path, *path.glob("*")]) / 1e6
        print(f"{path.name:24}{size:4.0f} MB")
    print(f"In {show(folder)}/; READ_ME.txt says what to type on a laptop.")


def main(argv=None):
    """Gather the folder, and print the size for each platform; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab.offline", description=__doc__)
    parser.add_argument("--platforms", nargs="+", default=[this_system()], metavar="NAME",
                        help=f"of {', '.join(UV)} (default: this machine's)")
    parser.add_argument("--pythons", nargs="+", metavar="VERSION",
                        default=[".".join(platform.python_version_tuple()[:2])],
                        help=f"of {', '.join(PYTHONS)} (default: this one)")
    parser.add_argument("--folder", type=Path, default=ROOT / "offline")
    parser.add_argument("--torch-index", default=TORCH_INDEX)
    given = parser.parse_args(argv)
    folder = given.folder.resolve()
    failed = []
    try:
        targets = [Target(name, python) for name in given.platforms for python in given.pythons]
        check_disk(folder, targets)
        for target in targets:
            print(f"{target}:", flush=True)
            try:
                gather(ROOT, target, folder / str(target), given.torch_index)
            except Incomplete as error:
                failed.append(str(target))
                print(f"offline: {target} is not complete: {error}", file=sys.stderr)
        finish(ROOT, folder)
    except (ValueError, OSError, Incomplete) as error:
        print(f"offline: {error}", file=sys.stderr)
        return 2
    if failed:
        print(f"offline: not complete: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
