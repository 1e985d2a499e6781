"""The student edition: it runs unsolved, and with the solutions put in every check is green.

And a reader may begin with any lesson: each runs here from an empty runs folder.
"""

import json
import os
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from helpers.exercises import NOT_ANSWERED, STILL_TO_DO
from helpers.paths import DATA, ROOT

NOTEBOOKS = ROOT / "notebooks"
LESSONS = [path.name for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
MORE = [f"more/{path.name}" for path in sorted((NOTEBOOKS / "more").glob("*.ipynb"))]


def tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The folder that `make student` writes, elsewhere, and a runs folder for both editions."""
    folder = tmp_path_factory.mktemp("student")
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    subprocess.run(["make", "student", f"STUDENT={folder}", f"PY={sys.executable}"], cwd=ROOT,
                   check=True, env=environment, capture_output=True, text=True)
    return folder


def execute(book, runs, name):
    environment = os.environ | {"COUNTDOWN_PROFILE": "cpu-short", "COUNTDOWN_DATA": "shipped",
                                "COUNTDOWN_RUNS": str(runs), "HF_HUB_OFFLINE": "1"}
    NotebookClient(book, timeout=1800, kernel_name="python3",
                   resources={"metadata": {"path": str((ROOT / "notebooks" / name).parent)}},
                   extra_arguments=["--IPKernelApp.log_level=ERROR"]).execute(env=environment)


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def test_solutions_are_gone_and_answers_are_cleared(student):
    for name in LESSONS + MORE:
        teacher = nbformat.read(ROOT / "notebooks" / name, as_version=4)
        book = nbformat.read(student / name, as_version=4)
        kept = [cell.source for cell in teacher.cells if not tagged(cell, "solution")]
        assert [cell.source for cell in book.cells] == kept
        for cell in book.cells:
            assert not (tagged(cell, "answer") and cell.get("outputs"))
    assert {path.suffix for path in student.rglob("*") if path.is_file()} == {".ipynb"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where the run of notebook 04 lies that 05 evaluates; `make test` names the folder."""
    return os.environ.get("COUNTDOWN_RUNS") or tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", LESSONS)  # (MORE has no exercises: nbval runs the same cells)
def test_it_runs_unsolved(student, runs, tmp_path, name):
    book = nbformat.read(student / name, as_version=4)
    execute(book, runs if name[:2] in ("04", "05") else tmp_path, name)  # tmp_path: empty
    for cell in book.cells:
        if cell.cell_type == "code" and tagged(cell, "quiz"):
            assert printed(cell).startswith("not answered yet: write five letters")
        if cell.cell_type == "code" and tagged(cell, "exercise"):
            assert STILL_TO_DO in printed(cell)
        if cell.cell_type == "code" and "predicted(my_guess" in cell.source:
            assert NOT_ANSWERED in printed(cell)


def test_the_evaluation_starts_without_the_training_before_it(student, tmp_path):
    book = nbformat.read(student / "05_evaluate.ipynb", as_version=4)
    execute(book, tmp_path, "05_evaluate.ipynb")
    shown = "".join(printed(cell) for cell in book.cells if cell.cell_type == "code")
    assert "a recorded run stands in for yours: cpu-seed0" in shown
    assert "stand-in: gained" in shown and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", LESSONS)
def test_with_the_solutions_every_check_is_green(runs, name):
    book = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    solutions = iter([cell for cell in book.cells
                      if cell.cell_type == "code" and tagged(cell, "solution")])
    book.cells = [next(solutions) if cell.cell_type == "code" and tagged(cell, "exercise") else cell
                  for cell in book.cells if not tagged(cell, "solution")]
    key = json.loads((DATA / "quiz.json").read_text(encoding="utf-8"))[name[:2]]
    book.cells[-2].source = book.cells[-2].source.replace(
        "None", repr("".join(asked["right"] for asked in key)))
    execute(book, runs, name)
    assert printed(book.cells[-2]).count(": right. ") == 5
    checked = [cell for cell in book.cells if tagged(cell, "solution")]
    assert len(checked) >= 3
    for cell in checked:
        lines = printed(cell).splitlines()
        assert "done" in lines, printed(cell)
        assert not [line for line in lines if line.startswith(("not yet", "still to do"))]
