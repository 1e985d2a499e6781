"""Static rules over all notebooks: what a reader of their JSON can see before a run shows it.

Each rule is an incident of this or of another notebook series. Below, each incident is put into a
notebook, and has to be found.
"""

import ast
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

from helpers.paths import ROOT

PATHS = {path.relative_to(ROOT / "notebooks").as_posix(): path
         for path in sorted((ROOT / "notebooks").rglob("*.ipynb"))
         if ".ipynb_checkpoints" not in path.parts}
ON_A_GPU = ("04_train_with_grpo.ipynb", "05_evaluate.ipynb")
METADATA = {"kernelspec", "language_info"}
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
COLAB = {"accelerator": "GPU", "colab": {"gpuType": "A100", "provenance": []}}
TAGS = {"prediction", "answer", "exercise", "solution", "nbval-check-output", "model", "config",
        "trainer", "scratch", "quiz"}
SET_UP_NAMES = {*sys.stdlib_module_names, "set_up"}
STOPS = {"input", "exit", "quit", "get_ipython", "system", "getpass", "login", "notebook_login",
         "mount", "upload"}
PATCHED = {"trl", "transformers", "peft"}  # Unsloth changes them only if it is imported first
LARGEST = 1 << 20  # bytes of one output: larger ones make a notebook slow to open, and git fat


def read(name):
    return json.loads(PATHS[name].read_text(encoding="utf-8"))


FIRST = read("01_explore_the_dataset.ipynb")


def imported(source):
    """Return {first name of a module that a source imports: line of its first import}."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                 [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        for name in names:
            first = name.split(".")[0]
            found[first] = min(node.lineno, found.get(first, node.lineno))
    return found


def called(source):
    """Return what a source calls, as text: ``print``, ``os.system``."""
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call)}


def frame_faults(name, book):
    """Yield what is wrong in the notebook's own metadata and cells."""
    if (book["nbformat"], book["nbformat_minor"]) != (4, 5):
        yield "not format 4.5"
    elif not nbformat.validator.isvalid(nbformat.from_dict(book)):
        yield "not valid in its format"
    about = book["metadata"]
    if about["kernelspec"] != KERNEL:
        yield "another kernel or display name: opening it changes it"
    if about["language_info"] != FIRST["metadata"]["language_info"]:
        yield "another language_info than in 01"
    rest = {key: value for key, value in about.items() if key not in METADATA}
    if rest != (COLAB if name in ON_A_GPU else {}):
        yield "metadata that nobody needs, or another accelerator"
    ids = [cell.get("id") for cell in book["cells"]]
    if None in ids or len(set(ids)) < len(ids):
        yield "ids missing or twice"


def set_up_faults(book):
    """Yield what is wrong with the set-up cell, and what comes before it."""
    kinds = [cell["cell_type"] for cell in book["cells"]]
    if kinds.index("code") != 1:
        yield "a code cell before the set-up cell, or none after the title"
        return
    cell = book["cells"][1]
    source, shown = "".join(cell["source"]), cell.get("outputs", [])
    if imported(source).keys() - SET_UP_NAMES:
        yield "set-up imports a package before its version is right"
    if "print" in called(source) or re.search(r"restart", source, re.I):
        yield "set-up prints what it has to enforce"
    if source.strip().splitlines()[-1] != "set_up()":
        yield "set-up does not end in set_up()"
    if len(shown) != 1 or not re.fullmatch(r"Ready: profile .+, Python [0-9.]+, .+\n",
                                           "".join(shown[0].get("text", ""))):
        yield "set-up does not end in one line, Ready: ..."


def source_faults(book):
    """Yield what is wrong in cells' sources, tags and metadata."""
    seen = set()
    for number, cell in enumerate(book["cells"]):
        source = "".join(cell["source"])
        if not source.strip():
            yield "an empty cell"
        if set(cell["metadata"]) - {"tags", "cellView", "jupyter"}:
            yield "cell metadata that change at every run or editor"
        if set(cell["metadata"].get("jupyter", {})) - {"source_hidden"}:
            yield "cell metadata that change at every run or editor"
        if set(cell["metadata"].get("tags", [])) - TAGS:
            yield "a tag that means nothing"
        if "attachments" in cell or "data:image" in source:
            yield "a picture inside the text"
        if cell["cell_type"] != "code":
            continue
        try:
            calls, names = called(source), imported(source)
        except SyntaxError:
            yield "a magic, or no Python: nbval lets a misspelt one pass"
            continue
        seen |= {name for name in names if names[name] < names.get("unsloth", 0)}
        if "unsloth" in names and PATCHED & seen:
            yield "unsloth imported after what it changes"
        seen |= names.keys()
        if number == 1:
            continue  # Colab's own paths and commands
        if re.search(r"""["'](/\w|~[\w/]|[A-Za-z]:\\)""", source):
            yield "an absolute path"
        if {call.rpartition(".")[2] for call in calls} & STOPS:
            yield "waits for a reader, or ends the kernel"
        if {"google", "pip"} & names.keys() or re.search(r"\bpip\b.{1,9}\binstall\b", source):
            yield "installs outside the set-up cell, or needs Colab"
        if re.search(r"\b(hf|sk|ghp)[_-]\w{20}", source):
            yield "the key of a service"
        if re.search(r"os\.(environ\[.*\] *=|putenv|environ\.(update|setdefault)|chdir)", source):
            yield "sets what was read before, or moves the kernel"


def output_faults(book):
    """Yield what is wrong in stored outputs."""
    if "widgets" in book["metadata"]:
        yield "stored state of widgets"
    for cell in book["cells"]:
        kinds = {kind for output in cell.get("outputs", []) for kind in output.get("data", ())}
        if "widget-view" in str(kinds) and not kinds & {"text/html", "image/png"}:
            yield "a widget without a picture for where no kernel runs"
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                yield "a stored error"
            text = "".join(output.get("text", ""))
            text += "".join("".join(value) for kind, value in output.get("data", {}).items()
                            if kind.startswith("text/"))
            if output.get("name") == "stderr" or re.search(r"Warning\b", text):
                yield "a warning in an output"
            if "\r" in text or "\x1b" in text or " at 0x" in text:
                yield "a progress bar, a colour code or an address in an output"
            if re.search(r"(^|[\s\"'=(])/(work|root|home|tmp|Users|content|kaggle)/\w|[A-Z]:\\\w",
                         text):
                yield "a path of a machine in an output"
            if len(json.dumps(output)) > LARGEST:
                yield "a very large output"


def faults(name, book):
    return [*frame_faults(name, book), *set_up_faults(book), *source_faults(book),
            *output_faults(book)]


@pytest.mark.parametrize("name", PATHS)
def test_a_notebook_keeps_all_rules(name):
    assert faults(name, read(name)) == []


@pytest.mark.parametrize("name", PATHS)
def test_a_notebook_is_written_as_jupyterlab_writes_it(name):
    """Else saving it changes every line."""
    text = PATHS[name].read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
    assert re.fullmatch(r"(more/)?[a-z0-9_]+\.ipynb", name)


@pytest.mark.parametrize("name", PATHS)
def test_links_of_a_notebook_lead_somewhere(name):
    text = "\n".join("".join(cell["source"]) for cell in read(name)["cells"]
                     if cell["cell_type"] == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert not [link for link in links if not (PATHS[name].parent / link).exists()]


def test_what_runs_before_the_packages_needs_none_of_them_and_stops_where_it_must():
    """Its advice to restart stands in errors only: a line that is printed lets Run All go on."""
    tree = ast.parse((ROOT / "set_up.py").read_text(encoding="utf-8"))
    top = {name for node in tree.body for name in imported(ast.unparse(node))
           if isinstance(node, ast.Import | ast.ImportFrom)}
    assert top <= set(sys.stdlib_module_names)
    where = {id(inner) for node in ast.walk(tree) for inner in ast.walk(node)
             if isinstance(node, ast.Raise)
             or isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}  # docstrings
    advice = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)
              and isinstance(node.value, str) and re.search("[Rr]untime >|restart", node.value)]
    assert advice and not [node.value for node in advice if id(node) not in where]


CODE = {"cell_type": "code", "execution_count": 1, "id": "extra", "metadata": {}, "outputs": [],
        "source": "1 + 1"}
TEXT = {"output_type": "stream", "name": "stdout", "text": ""}


def cell(source="1 + 1", **metadata):
    return lambda book: book["cells"].append(CODE | {
        "id": f"extra-{len(book['cells'])}", "source": source, "metadata": metadata})


def output(kind=TEXT, **parts):
    return lambda book: book["cells"].append(CODE | {"outputs": [kind | parts]})


def about(**metadata):
    return lambda book: book["metadata"].update(metadata)


def set_up(find, put):
    def change(book):
        source = "".join(book["cells"][1]["source"])
        assert find in source
        book["cells"][1]["source"] = source.replace(find, put)
    return change


INCIDENTS = {
    "another display name": about(kernelspec=KERNEL | {"display_name": "Python 3"}),
    "a kernel of one's own": about(kernelspec=KERNEL | {"name": ".venv"}),
    "an A100 for no training": about(**COLAB),
    "a TPU": about(accelerator="TPU"),
    "no accelerator where one trains": ("04_train_with_grpo.ipynb",
                                        lambda book: book["metadata"].pop("accelerator")),
    "another GPU": ("05_evaluate.ipynb",
                    lambda book: book["metadata"].update(colab={"gpuType": "T4"})),
    "an editor's metadata": about(vscode={"interpreter": {"hash": "0"}}),
    "a version of Python of one's own": lambda book: book["metadata"]["language_info"].update(
        version="3.13.0"),
    "an older format": lambda book: book.update(nbformat_minor=4),
    "a cell without what its format asks for": lambda book: book["cells"][2].pop("outputs"),
    "an id twice": lambda book: book["cells"].extend([CODE, CODE]),
    "code before the title": lambda book: book["cells"].insert(0, CODE),
    "torch imported first": lambda book: book["cells"].insert(1, CODE | {"source": "import torch"}),
    "torch imported in set-up": set_up("set_up()", "import torch\nset_up()"),
    "numpy imported in set-up": set_up("import importlib.util", "import numpy as np, os"),
    "advice that is printed": set_up("set_up()", "print('Ready, or not')\nset_up()"),
    "set-up that is not called": set_up("\nset_up()", "\nset_up"),
    "set-up that was not ready": lambda book: book["cells"][1].update(outputs=[
        TEXT | {"text": "Choose Runtime > Restart session\n"}]),
    "set-up that was not run": lambda book: book["cells"][1].update(outputs=[]),
    "an empty cell": cell(""),
    "a magic": cell("%matplotlib inline"),
    "pip": cell("!pip install torch"),
    "pip by subprocess": cell("import subprocess\nsubprocess.run(['pip', 'install', 'trl'])"),
    "pip by a shell": cell("import os\nos.system('true')"),
    "a log-in": cell("from huggingface_hub import notebook_login\nnotebook_login()"),
    "a key": cell("token = 'hf_" + 24 * "a" + "'"),
    "unsloth too late in its cell": cell("import peft\nimport unsloth"),
    "unsloth a cell too late": lambda book: [cell("import trl")(book),
                                      cell("import unsloth")(book)],
    "Colab needed": cell("from google.colab import files"),
    "a mounted drive": cell("drive.mount('here')"),
    "a question": cell("answer = input('which?')"),
    "an end": cell("import sys\nsys.exit(1)"),
    "an absolute path": cell("open('/content/runs/config.json')"),
    "a home folder": cell("path = '~/runs'"),
    "a path of Windows": cell(r"path = r'C:\Users\me'"),
    "a variable that is read before": cell("import os\nos.environ['COUNTDOWN_RUNS'] = 'x'"),
    "another working folder": cell("import os\nos.chdir('..')"),
    "times of a run": cell(execution={"iopub.status.busy": "2026-01-01T00:00:00Z"}),
    "Colab's output id": cell(outputId="1", colab={"base_uri": "x"}),
    "outputs hidden by hand": cell(jupyter={"outputs_hidden": True}),
    "a misspelt tag": cell(tags=["nbval-check-outputs"]),
    "a picture in the text": lambda book: book["cells"][0].update(
        source="![x](data:image/png;base64,AAAA)"),
    "a pasted picture": lambda book: book["cells"][0].update(attachments={"x.png": {}}),
    "state of widgets": about(widgets={}),
    "a warning": output(name="stderr", text="a line"),
    "a warning on stdout": output(text="x.py:1: FutureWarning: soon"),
    "a progress bar": output(text="10%\r20%"),
    "colours of a terminal": output(text="\x1b[31mred"),
    "an address": output(text="<object at 0x7f12>"),
    "a path in an output": output(text="saved: /home/me/runs/final"),
    "a path in a table": output({"output_type": "display_data", "metadata": {}},
                                data={"text/plain": ["run /tmp/x/final"]}),
    "an error": output({"output_type": "error", "ename": "E", "evalue": "", "traceback": []}),
    "a widget alone": output({"output_type": "display_data", "metadata": {}}, data={
        "application/vnd.jupyter.widget-view+json": {}, "text/plain": "VBox(children=...)"}),
    "a very large output": output(text="x" * LARGEST),
}


def of_incident(incident):
    change = INCIDENTS[incident]
    name, change = change if isinstance(change, tuple) else ("01_explore_the_dataset.ipynb", change)
    book = read(name)
    change(book)
    return set(faults(name, book))


@pytest.mark.parametrize("incident", INCIDENTS)
def test_an_incident_is_seen(incident):
    assert of_incident(incident)


def test_each_rule_has_an_incident():
    """No rule is one that cannot fail."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    rules = {node.value.value for node in ast.walk(tree)
             if isinstance(node, ast.Yield) and isinstance(node.value, ast.Constant)}
    assert set().union(*map(of_incident, INCIDENTS)) == rules
