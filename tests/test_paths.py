"""Paths that a user gives are relative to where the command ran, also in a kernel."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT, given_path, show

SEEN = """
import json, os, subprocess, sys
from helpers.paths import RUNS, given_path, show
child = [sys.executable, "-c", "from helpers.paths import RUNS; print(RUNS)"]
child = subprocess.run(child, capture_output=True, text=True, cwd="/").stdout.strip()
data = given_path(os.environ["COUNTDOWN_DATA"])
os.chdir("/")
print(json.dumps([str(RUNS), child, str(data), str(given_path("mine")), show(RUNS)]))
"""
PROGRAM = """
import os, sys
import nbformat
from nbclient import NotebookClient
book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(sys.argv[1])])
NotebookClient(book, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}},
               extra_arguments=["--IPKernelApp.log_level=ERROR"]).execute()
print(book.cells[0].outputs[0].text)
"""


def seen(folder, in_kernel, **variables):
    """Run a command in a folder, plainly or with a kernel that works in notebooks/."""
    code = [PROGRAM, SEEN, str(ROOT / "notebooks")] if in_kernel else [SEEN]
    # a program that starts another may leave PWD as it was: it proves nothing
    environment = {**os.environ, "PWD": "/usr", "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", *code], cwd=folder, env=environment,
                          capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("in_kernel", [False, True], ids=["command", "kernel"])
def test_relative_to_where_the_command_ran(tmp_path, in_kernel):
    (tmp_path / "here").mkdir()
    runs, child, data, _, shown = seen(tmp_path / "here", in_kernel, COUNTDOWN_RUNS=" ../my runs ",
                                       COUNTDOWN_DATA="mine.parquet")
    assert runs == child == shown == str(tmp_path / "my runs")
    assert data == str(tmp_path / "here" / "mine.parquet")


def test_in_a_kernel_a_later_change_of_the_folder_does_not_count(tmp_path):
    assert seen(tmp_path, True, COUNTDOWN_DATA="a", COUNTDOWN_RUNS="")[3] == str(tmp_path / "mine")


@pytest.mark.parametrize("in_kernel", [False, True], ids=["command", "kernel"])
def test_whole_paths_and_the_home_folder(tmp_path, in_kernel):
    runs, _, data, _, _ = seen("/usr", in_kernel, HOME=str(tmp_path), COUNTDOWN_RUNS="~/runs",
                               COUNTDOWN_DATA=str(tmp_path / "mine.parquet"))
    assert runs == str(tmp_path / "runs") and data == str(tmp_path / "mine.parquet")


def test_a_kernel_of_a_service_that_works_in_the_root_folder_means_the_repository():
    runs = seen("/", True, COUNTDOWN_RUNS="my-runs", COUNTDOWN_DATA="a")[0]
    assert runs == str(ROOT / "my-runs")


def test_no_variable_is_the_repositorys_own_folder(tmp_path):
    for given in ("", "  "):
        runs, *_, shown = seen(tmp_path, False, COUNTDOWN_RUNS=given, COUNTDOWN_DATA="a")
        assert runs == str(ROOT / "runs") and shown == "runs"


def test_a_path_is_shown_whole_outside_the_repository(tmp_path):
    assert show(tmp_path / "final") == str(tmp_path.resolve() / "final")
    assert show(ROOT / "data" / "README.md") == str(Path("data") / "README.md")
    assert given_path("a").is_absolute()


def test_the_tests_of_a_copied_folder_do_not_test_the_first_folders_helpers(tmp_path):
    (tmp_path / "tests").mkdir()
    shutil.copyfile(ROOT / "tests" / "conftest.py", tmp_path / "tests" / "conftest.py")
    (tmp_path / "tests" / "test_any.py").write_text("def test_any():\n    pass\n")
    command = [sys.executable, "-c", "import sys, pytest; sys.exit(pytest.main(['tests']))"]

    def run(**variables):
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True,
                              env=os.environ | variables)

    done = run(PYTHONPATH=str(ROOT), PYTHONSAFEPATH="1")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"these tests lie in {tmp_path}, and they would test {ROOT / 'helpers'}" in done.stderr
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "__init__.py").write_text("")
    assert run(PYTHONPATH=str(tmp_path)).returncode == 0
