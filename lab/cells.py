"""Run tagged cells of a lesson's notebook: what a reader sees there is what runs here.

The notebooks are source code of this repository, like its modules; no other notebook is read.
"""

import ast
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


class _Arguments(ast.NodeTransformer):
    """Put arguments in place of those that calls of some functions have."""

    def __init__(self, changes):
        self.changes, self.found = changes, set()

    def visit_Call(self, node):
        self.generic_visit(node)
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        if name in self.changes:
            self.found.add(name)
            given = ast.parse(f"_arguments_of_{name}", mode="eval").body
            node.keywords = [k for k in node.keywords if k.arg not in self.changes[name]]
            spread = [k for k in node.keywords if k.arg is None]
            if spread:  # f(**more) becomes f(**(more | given))
                spread[-1].value = ast.BinOp(spread[-1].value, ast.BitOr(), given)
            else:
                node.keywords.append(ast.keyword(None, given))
        return node


def run(notebook, tag, arguments=None, **given):
    """Run the cells with a tag and return the names that they leave.

    Parameters
    ----------
    notebook, tag : str
        Which cells: see `source`.
    arguments : dict of str to dict, optional
        By a function's name, keyword arguments for every call of it in the cells, in place of
        those that stand there or beside them.
    **given
        Names that the cells use.

    Returns
    -------
    dict
        The given names, and those that the cells define.

    Raises
    ------
    LookupError
        If there are no such cells, or they do not call a function that is named.
    """
    text, arguments = source(notebook, tag), arguments or {}
    name = f"<notebook {notebook}, cells tagged {tag}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    changed = _Arguments(arguments)
    tree = ast.fix_missing_locations(changed.visit(ast.parse(text)))
    if missing := arguments.keys() - changed.found:
        raise LookupError(f"the cells of notebook {notebook} with the tag {tag!r} call no "
                          f"{', '.join(sorted(missing))}")
    names = {"__name__": f"notebook_{notebook}", **given}
    names |= {f"_arguments_of_{function}": new for function, new in arguments.items()}
    exec(compile(tree, name, "exec"), names)  # noqa: S102 - a notebook of this repository
    return names
