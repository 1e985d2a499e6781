"""`make` sets up .venv for the folder that it runs in, whatever the environment says.

The Makefile, pip and venv are the real ones; what they install is tiny and lies in a folder.
"""

import inspect
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile

import pytest

from helpers.paths import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
NAMES = ("setuptools", "wheel", "torch", "trl", "jupyterlab", "nbval")
BACKEND = '''
import os
from wheels import write_wheel


def build_editable(folder, config_settings=None, metadata_directory=None):
    return write_wheel(folder, "countdown_grpo", {"ours.pth": os.getcwd()},
                       ["jupyterlab", "nbval", "torch", "trl"])
'''


def write_wheel(folder, name, files, needs=(), version="2.13.0", tag="py3-none-any"):
    about = f"{name}-{version}.dist-info"
    extras = "Provides-Extra: cpu\nProvides-Extra: dev\n"
    files = files | {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extras}"
        + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
                          f"Tag: {tag}\n"}
    files[f"{about}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{about}/RECORD"])
    file = f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(os.path.join(folder, file), "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a project of the same form, and the packages that it asks for."""
    place = tmp_path_factory.mktemp("make")
    (project := place / "a project").mkdir()
    (place / "packages").mkdir()
    for name in NAMES:
        write_wheel(place / "packages", name, {f"{name}.py": "import helpers\n"})
    shutil.copyfile(ROOT / "Makefile", project / "Makefile")
    (cpu,) = re.findall(r"^cpu = .*$", (ROOT / "pyproject.toml").read_text(), re.M)
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "countdown-grpo"\nversion = "2.13.0"\n'
        f"[project.optional-dependencies]\n{cpu}\n")
    (project / "environment.yml").write_text("      - trl==2.13.0\n")
    (project / "backend.py").write_text(BACKEND)
    (project / "wheels.py").write_text(
        "import os, zipfile\n" + inspect.getsource(write_wheel))
    (project / "helpers").mkdir()
    (project / "helpers" / "__init__.py").write_text("")
    return place


CUT_OFF = ["unshare", "--map-root-user", "--net"]  # a network of its own, with nothing in it


def without_network():
    """Return the words before a command that run it without a network; it is tried that they do."""
    if not shutil.which("unshare") or subprocess.run([*CUT_OFF, "true"]).returncode:
        pytest.skip("this machine does not let a command's network be cut off (unshare)")
    with socket.create_server(("127.0.0.1", 0)) as server:
        ask = [sys.executable, "-c", "import socket, sys; socket.create_connection(('127.0.0.1', "
               "int(sys.argv[1])), 5)", str(server.getsockname()[1])]
        assert subprocess.run(ask).returncode == 0
        refused = subprocess.run([*CUT_OFF, *ask], capture_output=True, text=True)
        assert "Network is unreachable" in refused.stderr or "refused" in refused.stderr
    return CUT_OFF


cut_off = pytest.fixture(without_network)


def make(project, *arguments, before=(), **variables):
    own = {name: value for name, value in os.environ.items()
           if not name.startswith(("MAKE", "PIP_", "PYTHON"))}
    own |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(project.parent / "packages")}
    return subprocess.run(
        [*before, "make", ".venv/.installed", "TORCH_INDEX=http://127.0.0.1:9", *arguments],
        cwd=project, env={**own, "PYTHON": sys.executable, **variables}, capture_output=True,
        text=True)


def helpers_of(project):
    """Return the folder whose helpers a kernel of .venv would import."""
    code = "import helpers, os; print(os.path.dirname(os.path.dirname(helpers.__file__)))"
    return subprocess.run([project / ".venv" / "bin" / "python", "-c", code], cwd=project.parent,
                          capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def project(folder):
    shutil.rmtree(folder / "a project" / ".venv", ignore_errors=True)
    return folder / "a project"


AWAY = {"PIP_USER": "1", "PIP_TARGET": "t", "PIP_PREFIX": "p", "PIP_ROOT": "r", "PIP_DRY_RUN": "1",
        "PIP_NO_DEPS": "1", "PYTHONPATH": "other", "PYTHONHOME": "/nowhere"}


def test_the_packages_land_in_its_environment(project, tmp_path):
    for name in ("helpers", "pip"):  # on PYTHONPATH
        (tmp_path / "other" / name).mkdir(parents=True)
        (tmp_path / "other" / name / "__init__.py").write_text("raise SystemExit('the other')")
    variables = {name: value if value in ("1", "/nowhere") else str(tmp_path / value)
                 for name, value in AWAY.items()}
    done = make(project, HOME=str(tmp_path), **variables)
    assert done.returncode == 0, done.stderr
    assert helpers_of(project) == str(project)
    found = {path.stem for path in (project / ".venv").rglob("site-packages/*.py")}
    assert set(NAMES[2:]) <= found  # (a new environment may have setuptools)
    assert not list(tmp_path.rglob("torch*"))
    assert make(project, **variables).stdout.strip().endswith("is up to date.")


def test_packages_that_land_elsewhere_are_said(project, tmp_path):
    (tmp_path / "pip.conf").write_text(f"[install]\ntarget = {tmp_path / 'away'}\n")
    done = make(project, PIP_CONFIG_FILE=str(tmp_path / "pip.conf"))
    assert done.returncode and "pip put jupyterlab, nbval, torch, trl elsewhere" in done.stderr
    assert not (project / ".venv" / ".installed").exists()


def test_a_copied_or_renamed_folder_gets_an_environment_of_its_own(project, folder):
    (folder / "pip.conf").write_text("[install]\nuser = true\n")  # the same as PIP_USER=1
    assert make(project, PIP_CONFIG_FILE=str(folder / "pip.conf")).returncode == 0
    copy, renamed = folder / "copy", folder / "other project"
    shutil.copytree(project, copy, symlinks=True)
    assert helpers_of(copy) == str(project)  # what would go wrong
    done = make(copy)
    assert done.returncode == 0, done.stderr
    assert ".venv was made for another folder" in done.stdout and helpers_of(copy) == str(copy)
    activate = (copy / ".venv" / "bin" / "activate").read_text()
    assert f"{copy}/.venv" in activate and f"{project}/.venv" not in activate
    assert make(copy).stdout.strip().endswith("is up to date.")
    copy.rename(renamed)
    shown = make(renamed, "-n").stdout
    assert ".venv was made for another folder" in shown and 'test -z "moved" &&' in shown
    shutil.rmtree(renamed)


def test_set_up_from_a_folder_with_the_network_cut_off(project, cut_off):
    index = {"PIP_NO_INDEX": "", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    done = make(project, before=cut_off, **index)
    assert done.returncode and "a folder that `make offline` gathered (WHEELS=" in done.stderr
    done = make(project, "WHEELS=../packages", before=cut_off, **index)
    assert done.returncode == 0, done.stderr
    assert helpers_of(project) == str(project) and "cannot be reached" not in done.stdout
    done = make(project, "WHEELS=../nothing", **index)
    assert done.returncode and "There are no wheels in WHEELS=../nothing" in done.stderr


@pytest.mark.parametrize(("version", "good"), [
    ("3, 10, 13", False), ("3, 11, 0", True), ("3, 14, 0", True), ("3, 15, 0", False),
    ("2, 7, 18", False)])
def test_python_is_looked_at_before_anything_is_made(project, version, good, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/sh
        [ "$1" = -c ] || {{ echo "asked for: $*"; exit 1; }}
        exec {sys.executable} -c "import sys; sys.version_info = ({version}); $2"\n""")
    python.chmod(0o755)
    done = make(project, PYTHON=str(python))
    assert ("asked for: -m venv --clear .venv" in done.stdout) == good
    assert ("Python 3.11 to 3.14 is needed" in done.stderr) == (not good)
    assert good or ".".join(version.split(", ")[:2]) in done.stderr
    assert done.returncode and not (project / ".venv").exists()


def test_no_python_and_no_index_are_said(project):
    done = make(project, PYTHON="python9")
    assert done.returncode and "No 'python9' found. Install Python 3.11 to 3.14" in done.stderr
    done = make(project, PIP_FIND_LINKS="/nowhere")
    assert done.returncode and "point pip at a mirror" in done.stderr
    assert re.search("No matching distribution found for (setuptools|wheel)", done.stderr)


def test_the_root_user_is_told_what_jupyterlab_asks_for():
    own = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(["make", "-o", ".venv/.installed", "lab", "PY=echo"], cwd=ROOT, env=own,
                          capture_output=True, text=True, check=True)
    assert ("make lab LAB_OPTIONS=--allow-root" in done.stderr) == (os.getuid() == 0)
    assert "notebooks/01_explore_the_dataset.ipynb" in done.stdout
