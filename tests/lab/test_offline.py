"""The folder for laptops without a network: real uv, pip and git; tiny packages in a folder."""

import collections
import inspect
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from test_make import BACKEND, NAMES, without_network, write_wheel

from lab import offline
from lab.offline import Target
from set_up import project_version

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
LINUX, WINDOWS = f"linux-x86_64-py{PYTHON}", f"windows-amd64-py{PYTHON}"
BOTH = ["--platforms", "linux-x86_64", "windows-amd64", "--pythons", PYTHON]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project that needs a few tiny packages, one of them on Windows alone; and their index."""
    (root := tmp_path / "project").mkdir()
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "countdown-grpo"\nversion = "0.1.0"\n'
        "dependencies = ['trl', \"winpty; sys_platform == 'win32'\"]\n[project.optional-dependenci"
        'es]\ncpu = ["torch>=2.11,<=2.13.0"]\ndev = ["nbval", "jupyterlab"]\n')
    (root / "environment.yml").write_text("      - trl==2.13.0\n      - torch==2.11.0\n")
    (root / "backend.py").write_text(BACKEND)
    (root / "wheels.py").write_text("import os, zipfile\n" + inspect.getsource(write_wheel))
    for name in ("helpers/__init__.py", "notebooks/01.ipynb", "student/01.ipynb", "runs/mine.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")
    use_index(monkeypatch, tmp_path / "index", (*NAMES, "winpty"))
    monkeypatch.setattr(offline, "ROOT", root)
    return root


cut_off = pytest.fixture(without_network)


def use_index(monkeypatch, folder, names, pip_has=None):
    """Let uv find these packages in a folder, and pip the same, or fewer."""
    for place, here in ((folder, names), (pip := folder.with_name("pip"), pip_has or names)):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name in here:
            if name != "torch":
                write_wheel(place, name, {f"{name}.py": ""})
        for version, tag in (("2.13.0", "win_amd64"), ("2.13.0+cpu", "manylinux_2_28_x86_64")):
            write_wheel(place, "torch", {"torch.py": ""}, version=version, tag=f"py3-none-{tag}")
    (folder / "uv.toml").write_text(f'no-index = true\nfind-links = ["{folder}"]\n')
    for name, value in {"UV_CONFIG_FILE": folder / "uv.toml", "PIP_CONFIG_FILE": os.devnull,
                        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": pip}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("UV_NO_CONFIG", raising=False)


def gather(folder, *arguments):
    return offline.main(["--folder", str(folder), *arguments])


def wheels(folder):
    return {path.name.split("-")[0]: path for path in folder.glob("*.whl")}


def test_each_kind_of_laptop_gets_what_it_asks_for(project, tmp_path, capsys):
    assert gather(tmp_path / "stick", *BOTH) == 0
    linux, windows = (wheels(tmp_path / "stick" / name) for name in (LINUX, WINDOWS))
    assert set(windows) == set(linux) | {"winpty"} == {*NAMES, "winpty"}
    assert "+cpu" in linux["torch"].name and "+cpu" not in windows["torch"].name
    assert {"project.zip", LINUX, WINDOWS} <= set(capsys.readouterr().out.split())
    text = (tmp_path / "stick" / "READ_ME.txt").read_text()
    assert rf"pip install --no-index --find-links ..\{WINDOWS} -e" in text
    assert f"py -{PYTHON} -m venv .venv" in text and r".venv\Scripts\python -m helpers" in text
    assert "--notebook-dir=. student/01_" in text
    assert text.count(f"make lab WHEELS=../{LINUX} PYTHON=python{PYTHON}\n") == 1 == text.count(
        "make lab")
    packed = set(zipfile.ZipFile(tmp_path / "stick" / "project.zip").namelist())
    assert packed == {f"countdown/{name}" for name in (
        "pyproject.toml", "environment.yml", "backend.py", "wheels.py", "VERSION",
        "helpers/__init__.py", "notebooks/01.ipynb", "student/01.ipynb")}


def test_the_lines_of_the_read_me_set_a_laptop_up_without_a_network(project, tmp_path, cut_off):
    assert gather(tmp_path / "stick", "--platforms", "linux-x86_64", "--pythons", PYTHON) == 0
    text = (tmp_path / "stick" / "READ_ME.txt").read_text()
    lines = [line.strip() for line in text.split(f"== {LINUX}")[1].splitlines() if line.strip()][:4]
    assert "pip install" in lines[3]
    here = {"PIP_CONFIG_FILE": os.devnull, "PATH": os.environ["PATH"]}
    script = "set -e\n" + "\n".join(lines).replace(f"python{PYTHON}", sys.executable)
    done = subprocess.run([*cut_off, "sh", "-c", script], cwd=tmp_path / "stick", env=here,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = next((tmp_path / "stick" / "countdown" / ".venv").rglob("site-packages"))
    assert {path.stem for path in site.glob("*.py")} >= {"torch", "trl", "nbval", "jupyterlab"}


def test_after_a_broken_connection_only_what_is_missing_is_downloaded(
        project, tmp_path, monkeypatch, capsys):
    stick, index = tmp_path / "stick", tmp_path / "index"
    only = ["--platforms", "linux-x86_64", "--pythons", PYTHON]
    monkeypatch.setattr(offline, "AT_ONCE", 4)  # wheel is alone in the last call
    use_index(monkeypatch, index, NAMES, pip_has=[name for name in NAMES if name != "wheel"])
    assert gather(stick, *only) == 1
    error = capsys.readouterr().err
    assert "wheel==2.13.0" in error and "run the same command again" in error
    assert not (stick / "READ_ME.txt").exists()  # nothing that is not complete goes to a class
    kept = {path: path.stat().st_mtime_ns for path in wheels(stick / LINUX).values()}
    cut, old = wheels(stick / LINUX)["trl"], stick / LINUX / "trl-2.12.0-py3-none-any.whl"
    shutil.copyfile(cut, old)
    os.truncate(cut, 100)
    use_index(monkeypatch, index, NAMES)
    assert gather(stick, *only) == 0
    assert set(wheels(stick / LINUX)) == set(NAMES) and zipfile.is_zipfile(cut)
    assert not old.exists()
    changed = [path for path in kept if path.stat().st_mtime_ns != kept[path]]
    assert changed == [cut] and len(kept) == len(NAMES) - 1


@pytest.mark.parametrize(("arguments", "words"), [
    (["--platforms", "macos-x86_64"], "macos-x86_64: torch has no wheel for an Intel Mac"),
    (["--platforms", "windows-arm64"], "torch has no wheel for Windows on an ARM processor"),
    (["--platforms", "amiga"], "no wheels for 'amiga': choose from windows-amd64, macos-arm64"),
    (["--pythons", "3.10"], "no wheels for '3.10': choose from 3.11, 3.12, 3.13, 3.14")])
def test_what_has_no_wheels_is_refused_by_name(tmp_path, arguments, words, capsys):
    assert gather(tmp_path / "stick", *arguments) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "stick").exists()


def test_an_index_without_the_build_for_cpus_is_said(project, tmp_path, monkeypatch, capsys):
    for torch in (tmp_path / "pip").glob("torch*cpu*"):
        torch.unlink()
    assert gather(tmp_path / "stick", *BOTH) == 1
    assert f"not complete: {LINUX}\n" in (error := capsys.readouterr().err)
    assert "No matching distribution found for torch==2.13.0+cpu" in error
    assert f"== {WINDOWS}" in (text := (tmp_path / "stick" / "READ_ME.txt").read_text())
    assert LINUX not in text


def test_a_disk_that_is_too_small_is_seen_first(project, tmp_path, monkeypatch, capsys):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1 << 40, 0, 1100 << 20))
    assert gather(tmp_path / "stick", *BOTH) == 2
    assert "1100 MiB free, 1200 are needed" in capsys.readouterr().err
    assert not list((tmp_path / "stick").iterdir())
    (tmp_path / "file").write_text("")
    assert gather(tmp_path / "file") == 2 and "File exists" in capsys.readouterr().err


def test_with_git_its_files_go_along_and_the_commit_is_named(project, tmp_path):
    for command in (["init", "-q"], ["add", "pyproject.toml", "helpers"],
                    ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=project, check=True)
    commit = project_version(project)
    assert subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=project,
                                   text=True).startswith(commit)
    (project / "helpers" / "__init__.py").write_text("changed = True\n")
    offline.pack_project(project, tmp_path / "project.zip")
    with zipfile.ZipFile(tmp_path / "project.zip") as pack:
        pack.extractall(tmp_path / "laptop")
    copy = tmp_path / "laptop" / "countdown"
    assert project_version(copy) == f"{commit}-dirty" == (copy / "VERSION").read_text().strip()
    assert (copy / "helpers" / "__init__.py").read_text() == "changed = True\n"
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()) == [
        "VERSION", "helpers/__init__.py", "pyproject.toml", "student/01.ipynb"]
    assert project_version(tmp_path)  # neither: the version of what is installed


def test_this_machine_is_the_default():
    assert offline.this_system() in {*offline.UV, *offline.WITHOUT}
    assert str(Target("linux-aarch64", "3.14")) == "linux-aarch64-py3.14"
