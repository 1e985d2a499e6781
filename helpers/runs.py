"""A run is a folder: config.json, metrics.jsonl, checkpoints and, later, evaluation.parquet."""

import json
import os
import platform
import shutil
from datetime import UTC, datetime
from importlib import metadata

from helpers import profiles
from helpers.paths import DATA, RUNS, show

REFERENCE_RUNS = DATA / "reference_runs"
FILES = ("config.json", "metrics.jsonl", "evaluation.parquet")  # what is kept of a recorded run
DISK_MIB = {False: 200, True: 15 * 1024}  # free space that a run needs, without and with a GPU
VERSIONS_OF = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "unsloth",
               "bitsandbytes", "numpy")


def environment(on_gpu=None):
    """Return what a result depends on besides its settings: versions, hardware, date.

    Parameters
    ----------
    on_gpu : bool, optional
        Whether the GPU did the work; by default, whether there is one.
    """
    import torch

    versions = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available() if on_gpu is None else on_gpu:
        hardware = torch.cuda.get_device_name(0)
    else:
        hardware = f"{os.cpu_count()} CPU cores, {_processor()}, {torch.get_num_threads()} threads"
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"versions": versions, "hardware": hardware, "date": date}


def open_run(profile, seed=0, name=None, folder=None):
    """Make, or find again, the folder of a run and return its path.

    Parameters
    ----------
    profile : helpers.profiles.Profile
        What is run; written to config.json.
    seed : int
        Seed of the run.
    name : str, optional
        The folder's name under runs/; the profile's name if not given.
    folder : path, optional
        A whole path instead.

    Raises
    ------
    RuntimeError
        If the folder cannot be written, the disk is nearly full, or the folder holds a run with
        other settings: nothing is overwritten.
    """
    run = folder or RUNS / (name or profile.name)
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe = run / ".probe"
        probe.write_bytes(b"0" * 65536)
        probe.unlink()
    except OSError as error:
        raise RuntimeError(f"cannot write to {show(run)} ({error.strerror}): free space or make it "
                           "writable, or name another folder in COUNTDOWN_RUNS") from error
    free, needed = shutil.disk_usage(run).free / 2**20, DISK_MIB[profile.needs_gpu]
    if free < needed:
        raise RuntimeError(f"{show(run)} has {free:.0f} MiB free and the run's checkpoints need up "
                           f"to {needed}: free some, or name another folder in COUNTDOWN_RUNS")
    if (run / "config.json").exists():
        _check_same_run(run, profile, seed)
    else:
        write_json(run / "config.json", {"profile": profiles.settings(profile), "seed": seed,
                                         **environment(profile.needs_gpu)})
    return run


def _check_same_run(run, profile, seed):
    saved = json.loads((run / "config.json").read_text())
    different = profiles.differences(profile, saved["profile"])
    if saved["seed"] != seed:
        different.append("seed")
    if different:
        raise RuntimeError(
            f"{show(run)} holds a run of profile {saved['profile']['name']} with seed "
            f"{saved['seed']} that differs in: {', '.join(different)}. Move or delete the folder "
            "to start anew, or name another one in COUNTDOWN_RUNS; nothing was changed")


def write_json(path, value):
    """Write `value` as JSON so that a reader sees the old file or the new one, never half."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def replace_text(path, text):
    """Write `text` to `path` through a temporary file and a rename."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def append_row(path, row):
    """Append one JSON line in a single write, and flush it to the disk."""
    line = (json.dumps(row) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(descriptor, line) != len(line):
            raise OSError(f"{show(path)}: the disk is full")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_rows(path):
    """Read a JSON-lines file; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.split("\n") if line]


def keep_rows_until(path, step):
    """Drop the rows after `step`: a resumed run writes them again."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    if path.exists():
        replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def last_checkpoint(run):
    """Return the newest complete checkpoint folder of a run, or None.

    The trainer writes trainer_state.json last, so a folder without a readable one was cut off
    while it was being written; it is removed.
    """
    folders = sorted(run.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    while folders:
        newest = folders.pop()
        try:
            json.loads((newest / "trainer_state.json").read_text())
            return newest
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(newest)
    return None


def find_runs(profile_name, root=REFERENCE_RUNS):
    """Return the recorded runs of a profile, sorted by seed."""
    return sorted(root.glob(f"{profile_name}-seed*"))


def _processor():
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
