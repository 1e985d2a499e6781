"""The versions in pyproject.toml, environment.yml and the installed environment are one set."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins(lines, python="3.12"):
    """Return {canonical name: version}, of the lines that hold for a Python version."""
    found = {}
    for requirement in map(Requirement, lines):
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is not pinned to one version"
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{name} is listed twice"
        found[name] = specifier.version
    return found


def environment_lines():
    text = (ROOT / "environment.yml").read_text()
    lines = re.findall(r"^ {6}- (.+)$", text, flags=re.MULTILINE)
    assert lines.pop() == "-e ."
    return lines


def test_direct_pins_equal_the_environments():
    environment = pins(environment_lines())
    direct = pins(PROJECT["dependencies"] + EXTRAS["gpu"] + EXTRAS["dev"])
    assert {name: environment.get(name) for name in direct} == direct


def test_torch_is_the_only_difference_between_cpu_and_gpu():
    assert set(pins(EXTRAS["cpu"])) == {"torch"}


def test_direct_block_of_the_environment_is_complete():
    text = (ROOT / "environment.yml").read_text()
    block = text.split("# ---- The rest")[0]
    listed = pins(re.findall(r"^ {6}- (.+)$", block, flags=re.MULTILINE))
    assert listed == pins(PROJECT["dependencies"] + EXTRAS["gpu"] + EXTRAS["dev"])


def test_installed_versions_match():
    """What is installed here has the pinned version; torch may have either of its two."""
    python = ".".join(map(str, sys.version_info[:2]))
    torch = {pins(EXTRAS[extra])["torch"] for extra in ("cpu", "gpu")}
    wanted = {name: {version} for name, version in pins(environment_lines(), python).items()}
    wanted["torch"] = torch
    cpu_torch = metadata.version("torch").split("+")[0] != pins(EXTRAS["gpu"])["torch"]
    wrong, seen = {}, set()
    for distribution in metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        if cpu_torch and re.match(r"nvidia-|cuda-|triton$", name):
            continue  # a CUDA build of the CPU version of torch brings its own
        if name in wanted:
            seen.add(name)
            if distribution.version.split("+")[0] not in wanted[name]:
                wrong[name] = distribution.version
    assert not wrong, f"not at the pinned version: {wrong}; run make again"
    missing = set(pins(PROJECT["dependencies"] + EXTRAS["dev"])) - seen
    assert not missing, f"not installed: {missing}"


def resolve(lines, tmp_path):
    """Resolve requirements for the GPU's platform from the index's metadata alone."""
    from uv import find_uv_bin

    source = tmp_path / "requirements.in"
    source.write_text("\n".join(lines))
    return subprocess.run(
        [find_uv_bin(), "pip", "compile", source, "--python-version", "3.12",
         "--python-platform", "x86_64-manylinux_2_31", "--no-annotate", "--no-header",
         "--only-binary", ":all:"],
        env={**os.environ, "UV_PYTHON_DOWNLOADS": "never"},
        capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False)


NO_INDEX = re.compile(
    "error sending request|failed to fetch|could not connect|dns error|timed out|offline", re.I)


def test_gpu_set_resolves(tmp_path):
    lines = environment_lines()
    result = resolve(lines, tmp_path)
    if result.returncode and NO_INDEX.search(result.stderr):
        pytest.skip("the package index cannot be reached, so nothing can be resolved")
    assert result.returncode == 0, result.stderr
    assert pins(result.stdout.splitlines()) == pins(lines), "environment.yml is not the whole set"


def test_a_conflict_would_show(tmp_path):
    """The check above can fail: vLLM 0.25.1 does not take the CPU environment's torch."""
    lines = ["vllm==" + pins(EXTRAS["gpu"])["vllm"], *EXTRAS["cpu"]]
    result = resolve(lines, tmp_path)
    if result.returncode and NO_INDEX.search(result.stderr):
        pytest.skip("the package index cannot be reached, so nothing can be resolved")
    assert result.returncode != 0 and "torch" in result.stderr
