"""What all tests share: a backend without a window, and the rule for tests marked gpu."""

import importlib.util
import os
from importlib.metadata import version

import pytest

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
