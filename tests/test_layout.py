"""The two houses, and that what the documents name is there."""

import ast
import importlib.util
import json
import re

import pytest

from helpers.paths import DATA, ROOT

HELPERS = sorted((ROOT / "helpers").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", DATA / "README.md",
             *sorted((ROOT / "docs").glob("*.md"))]
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def imported(source):
    """Return the first names of all modules that a source imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else node.module.split(".")[0])
    return found


def code(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def test_imports_are_found_wherever_they_stand():
    assert imported("import a.b\ndef f():\n    from c.d import e\n    from . import g") == {
        "a", "c", "."}


@pytest.mark.parametrize("path", HELPERS, ids=lambda path: path.name)
def test_the_lesson_does_not_import_the_lab(path):
    assert not {"lab", "."} & imported(path.read_text(encoding="utf-8"))


def test_the_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@each_document
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]


@each_document
def test_commands_are_there(path):
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"-m ((?:lab|helpers)\.\w+)", text))
    commands = {name: importlib.util.find_spec(name) for name in named}
    assert not [name for name, spec in commands.items() if spec is None]
    sources = {name: open(spec.origin, encoding="utf-8").read() for name, spec in commands.items()}
    assert not [name for name, source in sources.items() if "__main__" not in source]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z-]+)(?=[`\s|]*(?:#|$|`))", text, re.M)) <= set(targets)


def test_everything_under_data_is_in_its_table():
    table = (DATA / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in DATA.iterdir()} - {"README.md"}
    assert not [name for name in names if f"`{name}" not in table]


def test_the_notebooks_open_unchanged_in_jupyterlab():
    """JupyterLab writes these metadata on opening; where they are there already it writes none."""
    found = [json.loads(path.read_text(encoding="utf-8"))["metadata"] for path in NOTEBOOKS]
    for metadata in found:
        assert metadata["kernelspec"] == {
            "display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
        assert metadata["language_info"] == found[0]["language_info"]
    assert set(found[0]["language_info"]) == {
        "codemirror_mode", "file_extension", "mimetype", "name", "nbconvert_exporter",
        "pygments_lexer", "version"}
def test_the_helpers_stay_small():
    modules = [path for path in HELPERS if path.name != "__init__.py"]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in HELPERS)
    assert len(modules) <= 17 and lines <= 2800, f"{len(modules)} modules, {lines} lines"




# What the lesson's notebooks still take from the lab. It moves to notebooks/more/ when they are
# rewritten: this table only ever gets shorter.
STILL = {
    "01_explore_the_dataset.ipynb": {"facts"},
    "02_design_the_prompt.ipynb": {"prompt_check", "prompt_designs", "tiny"},
    "03_build_the_rewards.ipynb": {"bad_rewards", "exploits", "fuzz", "traces"},
    "05_evaluate.ipynb": {"attempts", "figures", "habits", "report", "statistics"},
    "06_grpo_from_scratch.ipynb": {"beside_trl", "scratch"},
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_notebook_takes_more_from_the_lab_than_it_did(path):
    found = set()
    for node in ast.walk(ast.parse(code(path))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "lab":
            found |= {node.module.partition(".")[2] or alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "lab"}
    assert found == STILL.get(path.name, set())
