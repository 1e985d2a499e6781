"""Run tagged cells of a lesson's notebook: what a reader sees there is what runs here.

The notebooks are source code of this repository, like its modules; no other notebook is read.
"""

import json
import linecache

from helpers.paths import ROOT


def source(notebook, tag):
    """Return the code of all cells of a notebook with a tag, in their order.

    Parameters
    ----------
    notebook : str
        How the file's name under notebooks/ begins, for example "04".
    tag : str
        The cells' tag.

    Raises
    ------
    LookupError
        If there is not exactly one such notebook, or no such cell in it.
    """
    found = sorted((ROOT / "notebooks").glob(f"{notebook}*.ipynb"))
    if len(found) != 1:
        raise LookupError(f"{len(found)} notebooks begin with {notebook!r}, one is needed")
    cells = json.loads(found[0].read_text(encoding="utf-8"))["cells"]
    tagged = ["".join(cell["source"]) for cell in cells
              if cell["cell_type"] == "code" and tag in cell["metadata"].get("tags", [])]
    if not tagged:
        raise LookupError(f"{found[0].name} has no cell with the tag {tag!r}")
    return "\n\n".join(tagged) + "\n"


def run(notebook, tag, changes=(), **given):
    """Run the cells with a tag and return the names that they leave.

    Parameters
    ----------
    notebook, tag : str
        Which cells: see `source`.
    changes : sequence of (str, str)
        What stands in place of what in their code; each has to occur.
    **given
        Names that the cells use.

    Returns
    -------
    dict
        The given names, and those that the cells define.

    Raises
    ------
    LookupError
        If there are no such cells, or a text to be changed does not stand in them.
    """
    text = source(notebook, tag)
    for old, new in changes:
        if old not in text:
            raise LookupError(f"{old!r} stands in no cell of {notebook} with the tag {tag!r}")
        text = text.replace(old, new)
    name = f"<notebook {notebook}, cells tagged {tag}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    names = {"__name__": f"notebook_{notebook}", **given}
    exec(compile(text, name, "exec"), names)  # a traceback shows the cell's own lines
    return names
