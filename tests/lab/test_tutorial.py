"""The runner of the notebooks: what it writes, and how it stops."""

import collections
import os

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers import preflight
from lab import tutorial

PLOT = """import matplotlib.pyplot as plt
fig, ax = plt.subplots(figsize=(2, 1))
ax.plot([1, 2])
plt.show()"""
INLINE = "%matplotlib inline"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    folder = tmp_path / "runs"
    for module in (tutorial, preflight):
        monkeypatch.setattr(module, "RUNS", folder)
    for name in ("COUNTDOWN_PROFILE", "COUNTDOWN_RUNS"):
        monkeypatch.setenv(name, "")
    return folder


def write(path, *cells):
    notebook = new_notebook(cells=list(cells))
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)
    return str(path)


def test_figures_outputs_and_summary(tmp_path, runs, capsys):
    book = write(tmp_path / "01_plot.ipynb", new_markdown_cell("# Plot"), new_code_cell(INLINE),
                 new_code_cell(PLOT), new_code_cell(
                     "import os\nprint(os.getcwd().split(os.sep)[-1], "
                     "os.environ['COUNTDOWN_PROFILE'], os.environ['COUNTDOWN_RUNS'])"))
    book_before = nbformat.read(book, as_version=4)
    book_before.cells[2].metadata["execution"] = {"iopub.status.busy": "2026-11-27T04:37:29Z"}
    nbformat.write(book_before, book)
    (runs / "tutorial" / "figures").mkdir(parents=True)
    (runs / "tutorial" / "figures" / "01-cell77.png").write_bytes(b"of an earlier run")
    assert tutorial.main([book]) == 0
    figures = [p.name for p in (runs / "tutorial" / "figures").iterdir()]
    assert figures == ["01-cell02.png"]
    png = (runs / "tutorial" / "figures" / figures[0]).read_bytes()
    assert png.startswith(b"\x89PNG")
    executed = nbformat.read(runs / "tutorial" / "01_plot.ipynb", as_version=4)
    assert not [cell for cell in executed.cells if "execution" in cell.metadata]  # no times
    assert executed.cells[3].outputs[0].text == f"{tmp_path.name} cpu {runs}\n"
    out = capsys.readouterr().out
    assert "Profile cpu" in out and "01_plot: 3/3 cells" in out
    assert out.split("seconds  figures")[1].split("\n")[1].split()[0::2] == ["01_plot", "1"]


def test_failing_cell_is_named_and_the_rest_not_run(tmp_path, runs, capsys):
    bad = write(tmp_path / "02_bad.ipynb", new_code_cell("print('so far')"),
                new_code_cell("int('seven')"), new_code_cell("print('never')"))
    after = write(tmp_path / "03_after.ipynb", new_code_cell("print('never')"))
    assert tutorial.main([bad, after]) == 1
    error = capsys.readouterr().err
    assert "02_bad.ipynb stopped in its cell 1 " in error and "ValueError: invalid" in error
    saved = nbformat.read(runs / "tutorial" / "02_bad.ipynb", as_version=4)
    assert saved.cells[0].outputs[0].text == "so far\n"
    assert saved.cells[1].outputs[0].ename == "ValueError" and not saved.cells[2].outputs
    assert not (runs / "tutorial" / "03_after.ipynb").exists()


def test_dead_kernel_is_reported(tmp_path, runs, capsys):
    book = write(tmp_path / "04_dead.ipynb", new_code_cell("import os\nos._exit(3)"))
    assert tutorial.main([book]) == 1
    assert "04_dead.ipynb stopped in its cell 0 " in capsys.readouterr().err


def test_missing_notebook(tmp_path, runs, capsys):
    assert tutorial.main([str(tmp_path / "09_none.ipynb")]) == 1
    assert f"no such notebook: {tmp_path}/09_none.ipynb" in capsys.readouterr().err


def test_runs_that_is_a_file_stops_before_any_work(tmp_path, runs, capsys):
    runs.write_text("in the way")
    book = write(tmp_path / "01_touch.ipynb", new_code_cell("open('touched', 'w')"))
    assert tutorial.main([book]) == 1
    assert "cannot be written to" in capsys.readouterr().err
    assert not (tmp_path / "touched").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders too")
def test_read_only_runs(tmp_path, runs, capsys):
    runs.mkdir(mode=0o555)
    assert tutorial.main([write(tmp_path / "01_a.ipynb", new_code_cell("1"))]) == 1
    assert "make it writable" in capsys.readouterr().err


def test_full_disk(tmp_path, runs, capsys, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")(1 << 40, 1 << 40, 1 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert tutorial.main([write(tmp_path / "01_a.ipynb", new_code_cell("1"))]) == 1
    assert "0.0 GiB free" in capsys.readouterr().err
