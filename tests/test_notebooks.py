"""Every notebook: its frame, its outputs, and one execution; see also test_notebook_rules.py."""

import ast
import json
import re
import tomllib

import nbformat
import pytest

from helpers.paths import DATA, ROOT
from lab import tutorial

LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PATHS = [*LESSONS, *sorted((ROOT / "notebooks" / "more").glob("*.ipynb"))]
BOOKS = {str(path.relative_to(ROOT / "notebooks")): nbformat.read(path, as_version=4)
         for path in PATHS}
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["repository"]
# Cells, words of prose: predictions, exercises, solutions and the quiz are not counted.
LIMITS = {"01": (16, 950), "02": (24, 1150), "03": (26, 1400), "04": (39, 1810), "05": (30, 1600),
          "06": (48, 1750)}  # 06: fourteen of its cells are GRPO, function by function

QUIZ = json.loads((DATA / "quiz.json").read_text(encoding="utf-8"))

each = pytest.mark.parametrize("name", BOOKS)
each_lesson = pytest.mark.parametrize("name", [name for name in BOOKS if "/" not in name])


def tags(cell):
    return set(cell.metadata.get("tags", []))


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_there_are_six_lessons_and_seven_for_the_curious():
    assert [path.name[:2] for path in LESSONS] == ["01", "02", "03", "04", "05", "06"]
    assert len(PATHS) - len(LESSONS) == 7


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
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    parts = ["What you'll need", "**Time**", "**Memory**", "## Recap"]
    parts += ["**The question**"] if "/" in name else [
        "What you'll do", "What you'll learn", "## Pitfalls", "## Next"]
    for part in parts:
        assert part in text, part
    for cell in book.cells:
        if cell.cell_type == "markdown":
            assert len(cell.source.split()) <= 150, cell.source[:60]
    for cell in code_cells(book):
        assert len(cell.source.splitlines()) <= 25, cell.id
        ast.parse(cell.source)  # no magics: nbval lets a misspelt one pass


@each_lesson
def test_a_lesson_is_short(name):
    cells = [cell for cell in BOOKS[name].cells
             if not tags(cell) & {"prediction", "answer", "exercise", "solution", "quiz"}]
    words = sum(len(cell.source.split()) for cell in BOOKS[name].cells
                if cell.cell_type == "markdown"
                and not tags(cell) & {"exercise", "solution", "quiz"})
    most_cells, most_words = LIMITS[name[:2]]
    assert len(cells) <= most_cells and words <= most_words, f"{len(cells)} cells, {words} words"


@each_lesson
def test_a_lesson_asks_and_checks(name):
    cells = code_cells(BOOKS[name])
    asked = [cell for cell in cells if "prediction" in tags(cell)]
    answered = [cell for cell in cells if "predicted(my_guess" in cell.source]
    assert 1 <= len(asked) == len(answered) <= 4
    for cell in asked:
        assert re.fullmatch(r"(# .+\n)*my_guess = None(  # .+)?", cell.source), cell.source
        assert "#" in cell.source  # the question
    assert all("not answered yet" in str(cell.outputs) for cell in answered)
    assert all("answer" in tags(cell) for cell in answered)
    kinds = [kind for cell in cells for kind in ("exercise", "solution") if kind in tags(cell)]
    assert kinds == ["exercise", "solution"] * (len(kinds) // 2) and 3 <= len(kinds) // 2 <= 5
    for cell in cells:
        if "exercise" in tags(cell):
            assert "still to do" in str(cell.outputs), cell.source
        if "solution" in tags(cell):
            assert cell.source.startswith("# @title Solution") and "done" in str(cell.outputs)
            assert cell.metadata.jupyter.source_hidden


def as_text(questions):
    """Return the Markdown of some questions, as it stands in a notebook."""
    return "\n\n".join(f"**{number}.** {asked['question']}\n\n" + "\n".join(
        f"- {letter}: {option['text']}" for letter, option in asked["options"].items())
        for number, asked in questions)


@each_lesson
def test_a_lesson_ends_with_its_quiz(name):
    book, number = BOOKS[name], name[:2]
    *_, one, two, cell, last = book.cells
    questions = list(enumerate(QUIZ[number], start=1))
    assert [one.source, two.source] == [f"## Quiz\n\n{as_text(questions[:3])}",
                                        as_text(questions[3:])]
    assert cell.source.splitlines() == [
        "from helpers.exercises import quiz", "",
        'my_answers = None  # five letters, such as "abcda"', f'quiz("{number}", my_answers)']
    assert "not answered yet" in str(cell.outputs) and "## Next" in last.source
    assert [c for c in book.cells if "quiz" in tags(c)] == [one, two, cell]
    headings = re.findall(r"^##+ (.*)$", "\n".join(
        c.source for c in book.cells if c.cell_type == "markdown"), re.MULTILINE)
    assert {asked["again"] for asked in QUIZ[number]} <= set(headings)


def test_a_quiz_is_not_answered_by_its_looks():
    """Not by the letter, not by the longest option, not by the shortest."""
    asked = [question for questions in QUIZ.values() for question in questions]
    letters = ["".join(one["right"] for one in questions) for questions in QUIZ.values()]
    assert list(QUIZ) == [name[:2] for name in BOOKS if "/" not in name]
    assert {len(row) for row in letters} == {5} and "abcda" not in letters
    assert all(row.count(letter) <= 2 for row in letters for letter in "abcd")
    assert {"".join(letters).count(letter) for letter in "abcd"} == {7, 8}
    for best in (max, min):
        lengths = [{key: len(option["text"]) for key, option in one["options"].items()}
                   for one in asked]
        hits = [one["right"] == best(found, key=found.get)
                for one, found in zip(asked, lengths, strict=True)]
        assert sum(hits) <= 8  # of 30: what chance gives
    for one in asked:
        assert list(one["options"]) == list("abcd") and one["right"] in one["options"]
        assert len({option[part] for option in one["options"].values()
                    for part in ("text", "why")}) == 8


@each_lesson
def test_a_lesson_says_that_one_can_start_with_it(name):
    assert name[:2] == "01" or "start here: " in BOOKS[name].cells[0].source


@each
def test_figures_can_be_read(name):
    for cell in code_cells(BOOKS[name]):
        assert "plt.show" not in cell.source  # helpers.plots.show has an alternative text
        assert all(float(size) >= 9 for size in re.findall(r"fontsize=([0-9.]+)", cell.source))
        assert all(float(width) <= 9 for width in re.findall(r"figsize=\(([0-9.]+)", cell.source))
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                about = output.metadata["image/png"]
                assert about["alt"] and about["width"] <= 900


@each
def test_committed_with_outputs_in_order_and_without_this_machine(name):
    cells = code_cells(BOOKS[name])
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = str([[output for output in cell.outputs] for cell in cells])
    shown = re.sub(r"'image/png': '[^']*'", "", shown)
    assert not re.search(r"/(work|root|home|tmp|Users)/\w", shown)
    checked = [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert checked and all(cell.outputs for cell in checked)
    assert "NBVAL" not in str([cell.source for cell in cells])  # a tag says it, no comment


def test_the_tutorial_runs_a_notebook_and_keeps_its_figures(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tutorial, "RUNS", tmp_path)
    monkeypatch.setenv("COUNTDOWN_PROFILE", "cpu-short")
    monkeypatch.setenv("COUNTDOWN_RUNS", str(tmp_path))
    monkeypatch.setenv("COUNTDOWN_DATA", "shipped")
    assert tutorial.main([str(LESSONS[0])]) == 0, capsys.readouterr()
    assert len(list((tmp_path / "tutorial" / "figures").glob("01-*.png"))) >= 2
