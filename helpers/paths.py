"""Where things lie: the repository, its data, and the folder that runs are written to."""

import os
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"


def given_path(text):
    """Return the whole path that a user's variable names, relative to where the command ran.

    A Jupyter kernel works in its notebook's folder. There a path is relative to the working
    directory of the program that started the kernel, such as JupyterLab.
    """
    path = Path(text.strip()).expanduser()
    app = getattr(sys.modules.get("ipykernel.kernelapp"), "IPKernelApp", None)
    if app and app.initialized() and not path.is_absolute():
        with suppress(ImportError, OSError):
            from psutil import Error, Process

            with suppress(Error):  # it has ended, or is another user's
                parent = Process(os.getppid())
                if os.name == "nt" and sys.prefix != sys.base_prefix:  # a venv's python starts one
                    parent = parent.parent() or parent
                folder = Path(parent.cwd())
                # a service, as on Colab, works in /: nobody means that
                path = (ROOT if folder == Path(folder.anchor) else folder) / path
    return path.resolve()


RUNS = ROOT / "runs"
if _given := os.environ.get("COUNTDOWN_RUNS", "").strip():
    RUNS = given_path(_given)
    os.environ["COUNTDOWN_RUNS"] = str(RUNS)  # for what a cell starts in another folder


def show(path):
    """Return a path as text: relative to the repository where it lies inside it, else whole."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
