"""What all tests share: a backend without a window, whose helpers, and the tests marked gpu."""

import importlib.util
import os
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("MPLBACKEND", "Agg")


def _gpu():
    """Return the GPU and what drives it, or None; torch is imported only if a test needs a GPU."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    if not torch.cuda.is_available():
        return None
    installed = {name: version(name) for name in ("torch", "vllm", "unsloth", "trl")
                 if importlib.util.find_spec(name)}
    return ", ".join([torch.cuda.get_device_name(), f"CUDA {torch.version.cuda}",
                      *(f"{name} {number}" for name, number in installed.items())])


def pytest_configure(config):
    """Stop in a copied folder whose environment still has the first folder's helpers."""
    spec = importlib.util.find_spec("helpers")
    helpers = Path(spec.origin).parent if spec and spec.origin else "no helpers"
    if helpers != ROOT / "helpers":
        raise pytest.UsageError(f"these tests lie in {ROOT}, and they would test {helpers}: run "
                                "`make test`, or `pip install -e .` in this folder's environment")


def pytest_collection_modifyitems(config, items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    gpu = _gpu()
    config.gpu_line = f"GPU tests: {len(marked)}, run on {gpu}"
    if gpu is None:
        config.gpu_line = f"GPU tests: {len(marked)} left out, torch finds no GPU here"
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; torch finds none here"))


def pytest_terminal_summary(terminalreporter, config):
    if hasattr(config, "gpu_line"):
        terminalreporter.write_line(config.gpu_line)
