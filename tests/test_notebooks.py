"""Every notebook: its frame, its outputs, and one execution from a fresh kernel."""

import ast
import re
import tomllib

import nbformat
import pytest

from helpers.paths import ROOT
from lab import tutorial

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BOOKS = {path.name: nbformat.read(path, as_version=4) for path in PATHS}
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["repository"]

each = pytest.mark.parametrize("name", BOOKS)


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_there_are_six():
    assert [name[:2] for name in BOOKS] == ["01", "02", "03", "04", "05", "06"]


@each
def test_badge_and_set_up_cell_name_the_repository(name):
    book = BOOKS[name]
    path = REPOSITORY.removeprefix("https://github.com/")
    assert f"colab.research.google.com/github/{path}/blob/main/notebooks/{name})" in (
        book.cells[0].source
    )
    first = next(iter(BOOKS.values())).cells[1].source
    assert f'url = "{REPOSITORY}"' in first
    assert book.cells[1].source == first  # one set-up cell, the same everywhere
    assert first.startswith("# @title ")  # folded, with a title, on Colab and in JupyterLab
    assert book.cells[1].metadata.cellView == "form"
    assert book.cells[1].metadata.jupyter.source_hidden


def test_the_address_stands_nowhere_else():
    owner = REPOSITORY.removeprefix("https://github.com/")
    for path in [*ROOT.glob("helpers/*.py"), ROOT / "Makefile", ROOT / "environment.yml"]:
        assert owner not in path.read_text(), path.name
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"github/([\w.-]+/[\w.-]+)/blob", readme)) == {owner}


@each
def test_frame_and_sizes(name):
    book = BOOKS[name]
    assert book.metadata.kernelspec.name == "python3"
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    for part in ("What you'll do", "What you'll learn", "What you'll need", "Pitfalls", "Recap"):
        assert part in text, part
    for cell in code_cells(book):
        assert len(cell.source.splitlines()) <= 25, cell.id
        ast.parse(cell.source)  # no magics: nbval lets a misspelt one pass


@each
def test_committed_with_outputs_in_order_and_without_this_machine(name):
    cells = code_cells(BOOKS[name])
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = str([[output for output in cell.outputs] for cell in cells])
    shown = re.sub(r"'image/png': '[^']*'", "", shown)
    assert not re.search(r"/(work|root|home|tmp|Users)/\w", shown)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    checked = [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert checked and all(cell.outputs for cell in checked)
    assert "NBVAL" not in str([cell.source for cell in cells])  # a tag says it, no comment


@each
def test_colab_is_asked_for_a_gpu_only_where_one_is_used(name):
    wants = BOOKS[name].metadata.get("accelerator") == "GPU"
    assert wants == (name[:2] in ("04", "05"))


def test_they_run_from_fresh_kernels(monkeypatch, tmp_path, capsys):
    """All six by nbclient, in order, in the short setting; nbval misses some failures."""
    monkeypatch.setattr(tutorial, "RUNS", tmp_path)
    monkeypatch.setenv("COUNTDOWN_PROFILE", "cpu-short")
    monkeypatch.setenv("COUNTDOWN_RUNS", str(tmp_path))
    monkeypatch.setenv("COUNTDOWN_DATA", "shipped")
    assert tutorial.main([]) == 0, capsys.readouterr()
    assert (tmp_path / "cpu-short" / "evaluation.parquet").exists()
    assert len(list((tmp_path / "tutorial" / "figures").glob("04-*.png"))) >= 3
