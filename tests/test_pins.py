"""pyproject.toml's ranges, environment.yml's set and the installed environment fit together."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import set_up
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


DIRECT = list(map(Requirement, PROJECT["dependencies"] + EXTRAS["gpu"] + EXTRAS["dev"]))
# What must be one version: what trains, and what the tests run with.
EXACT = {"accelerate", "bitsandbytes", "datasets", "gguf", "peft", "transformers", "trl", "unsloth",
         "unsloth-zoo", "vllm", "torchaudio", "torchvision"}


def test_the_upper_end_of_each_range_is_the_environments_version():
    environment = pins(environment_lines())
    for requirement in DIRECT:
        version = environment[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} leaves out {version}"
        upper = [s.version for s in requirement.specifier if s.operator in ("<=", "==")]
        assert upper == [version], f"{requirement}: nothing newer than {version} was measured"


def test_what_trains_is_one_version():
    ranged = {canonicalize_name(r.name) for r in DIRECT if len(r.specifier) > 1}
    assert not ranged & EXACT
    assert EXACT <= {canonicalize_name(r.name) for r in DIRECT}


def test_what_colab_has_loaded_lies_in_the_ranges():
    """The versions that its kernel had loaded in August 2026: installing must not change them."""
    wanted = {canonicalize_name(r.name): r.specifier for r in DIRECT}
    for name, version in {"numpy": "2.1.3", "pandas": "2.2.3", "ipywidgets": "7.7.1",
                          "matplotlib": "3.10.0", "psutil": "5.9.5", "tqdm": "4.67.3"}.items():
        assert wanted[name].contains(version), name


def test_torch_is_the_only_difference_between_cpu_and_gpu():
    (cpu,) = map(Requirement, EXTRAS["cpu"])
    assert cpu.name == "torch" and cpu.specifier.contains(pins(environment_lines())["torch"])
    low, high = set_up.CPU_TORCH
    for version, inside in ((low, True), (high, True), ((low[0], low[1] - 1), False)):
        assert cpu.specifier.contains(".".join(map(str, (*version, 0)))) == inside


def test_the_measured_torch_is_named_alike():
    named = re.findall(r"torch==([0-9.]+)", (ROOT / "README.md").read_text()
                       + (ROOT / "set_up.py").read_text())
    (cpu,) = map(Requirement, EXTRAS["cpu"])
    (upper,) = [s.version for s in cpu.specifier if s.operator == "<="]
    assert set(named) == {upper}


def test_direct_block_of_the_environment_is_complete():
    text = (ROOT / "environment.yml").read_text()
    block = text.split("# ---- The rest")[0]
    listed = pins(re.findall(r"^ {6}- (.+)$", block, flags=re.MULTILINE))
    assert listed.keys() == {canonicalize_name(r.name) for r in DIRECT}


def test_installed_versions_match():
    """What is installed here has the pinned version; torch may have either of its two."""
    python = ".".join(map(str, sys.version_info[:2]))
    wanted = {name: {version} for name, version in pins(environment_lines(), python).items()}
    of_gpu = wanted["torch"].copy()
    wanted["torch"].add(re.search(r"torch==([0-9.]+)", (ROOT / "README.md").read_text())[1])
    cpu_torch = metadata.version("torch").split("+")[0] not in of_gpu
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
    needed = map(Requirement, PROJECT["dependencies"] + EXTRAS["dev"])
    missing = {canonicalize_name(requirement.name) for requirement in needed} - seen
    assert not missing, f"not installed: {missing}"


def resolve(lines, folder, python="3.12", platform="x86_64-manylinux_2_31", *options):
    """Resolve requirements for a platform from the index's metadata alone; return uv's result."""
    from uv import find_uv_bin

    source = folder / "requirements.in"
    source.write_text("\n".join(lines))
    done = subprocess.run(
        [find_uv_bin(), "pip", "compile", source, "--python-version", python,
         "--python-platform", platform, "--no-annotate", "--no-header", *options,
         "--only-binary", ":all:"],
        # torch 2.13 has wheels for macOS 14 and newer; left alone uv takes macOS 13
        env={**os.environ, "UV_PYTHON_DOWNLOADS": "never", "MACOSX_DEPLOYMENT_TARGET": "14.0"},
        capture_output=True, text=True, timeout=300, cwd=folder, check=False)
    if done.returncode and NO_INDEX.search(done.stderr):
        pytest.skip("the package index cannot be reached, so nothing can be resolved")
    return done


NO_INDEX = re.compile(
    "error sending request|failed to fetch|could not connect|dns error|timed out|offline", re.I)


def test_gpu_set_resolves(tmp_path):
    lines = environment_lines()
    result = resolve(lines, tmp_path)
    assert result.returncode == 0, result.stderr
    assert pins(result.stdout.splitlines()) == pins(lines), "environment.yml is not the whole set"


PLATFORMS = {"linux": "x86_64-manylinux_2_31", "windows": "x86_64-pc-windows-msvc",
             "macos": "aarch64-apple-darwin"}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_cpu_set_has_wheels_for(tmp_path, platform, python):
    lines = PROJECT["dependencies"] + EXTRAS["cpu"]
    result = resolve(lines, tmp_path, python, PLATFORMS[platform])
    assert result.returncode == 0, result.stderr
    newest = EXTRAS["cpu"][0].rpartition("=")[2]
    assert f"torch=={newest}" in result.stdout


@pytest.mark.parametrize("python", ["3.12", "3.13"])
@pytest.mark.parametrize("end", ["lowest-direct", "highest"])
def test_both_ends_of_the_gpu_set_resolve(tmp_path, python, end):
    lines = PROJECT["dependencies"] + EXTRAS["gpu"]
    result = resolve(lines, tmp_path, python, PLATFORMS["linux"], "--resolution", end)
    assert result.returncode == 0, result.stderr


def test_the_lower_ends_of_the_cpu_set_resolve_together(tmp_path):
    lines = PROJECT["dependencies"] + EXTRAS["cpu"]
    result = resolve(lines, tmp_path, "3.11", PLATFORMS["linux"], "--resolution", "lowest-direct")
    assert result.returncode == 0, result.stderr
    found = pins(result.stdout.splitlines(), "3.11")
    assert found["numpy"] == "2.1.3" and found["ipywidgets"] == "7.7.1"


def test_an_intel_mac_has_no_wheel_of_torch(tmp_path):
    result = resolve(EXTRAS["cpu"], tmp_path, "3.12", "x86_64-apple-darwin")
    assert result.returncode != 0 and "torch" in result.stderr


def test_a_conflict_would_show(tmp_path):
    """The checks above can fail: vLLM 0.25.1 takes no other torch than 2.11."""
    vllm = next(line for line in EXTRAS["gpu"] if line.startswith("vllm"))
    result = resolve([vllm, "torch==2.13.0"], tmp_path)
    assert result.returncode != 0 and "torch" in result.stderr
