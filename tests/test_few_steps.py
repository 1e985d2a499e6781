"""Notebook 04 with few steps and small batches, as an exercise may ask for, and then 05."""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from helpers import profiles
from helpers.paths import ROOT
from helpers.runs import read_rows

CHANGES = {  # one step, fewer than a quarter, an odd number; the smallest batch
    1: "steps=1, save_every=1", 3: "steps=3", 8: "steps=8, prompts_per_step=1, micro_batch=16"}


def execute(number, runs, change=""):
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if change:
            cell.source = cell.source.replace(
                "steps=steps or profile.smoke_steps or profile.steps)",
                f"{change}, max_completion_length=40)")
    assert not change or change in str(book)
    given = {"COUNTDOWN_PROFILE": "cpu-short", "COUNTDOWN_DATA": "shipped",
             "COUNTDOWN_RUNS": str(runs), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    NotebookClient(book, kernel_name="python3", timeout=600,
                   resources={"metadata": {"path": str(path.parent)}}).execute(
                       env=os.environ | given)  # stops at an error


@pytest.mark.parametrize("steps", CHANGES)
def test_the_lesson_trains_so_few_steps_and_is_evaluated(tmp_path, steps):
    execute("04", tmp_path, CHANGES[steps])
    run = tmp_path / profiles.CPU_SHORT.name
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == list(range(1, steps + 1))
    assert (run / "final" / "model.safetensors").exists()
    if steps == 3:
        execute("05", tmp_path)
        assert (run / "evaluation.parquet").exists()
