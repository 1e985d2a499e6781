"""Where things lie: the repository, its data, and the folder that runs are written to."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
RUNS = Path(os.environ.get("COUNTDOWN_RUNS") or ROOT / "runs").expanduser().resolve()


def show(path):
    """Return `path` as text for a reader: relative to the repository where it lies inside it."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
