"""A run is a folder: config.json, metrics.jsonl, checkpoints and, later, evaluation.parquet."""

import json
import os
import platform
import shutil
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata

from helpers.paths import DATA, RUNS, show
from helpers.profiles import differences, settings

REFERENCE_RUNS = DATA / "reference_runs"
FILES = ("config.json", "metrics.jsonl", "evaluation.parquet")  # what is kept of a recorded run
DISK_MIB = {False: 200, True: 15 * 1024}  # free space that a run needs, without and with a GPU


def environment(on_gpu=None):
    """Return what a result depends on besides its settings: versions, hardware, date.

    Parameters
    ----------
    on_gpu : bool, optional
        Whether the GPU did the work; by default, whether there is one.
    """
    import torch

    versions = {"python": platform.python_version()}
    for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm",
                 "unsloth", "bitsandbytes", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    if torch.cuda.is_available() if on_gpu is None else on_gpu:
        hardware = torch.cuda.get_device_name(0)
    else:
        hardware = f"{os.cpu_count()} CPU cores, {_processor()}, {torch.get_num_threads()} threads"
    return {"versions": versions, "hardware": hardware, "date": f"{datetime.now(UTC):%Y-%m-%d}"}


def probe(folder):
    """Make a folder, write to it, and return its free space in MiB; an OSError if it cannot be."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0" * 65536)
    return shutil.disk_usage(folder).free / 2**20


def open_run(profile, seed=0, name=None, folder=None):
    """Make, or find again, the folder of a run and return its path.

    Parameters
    ----------
    profile, seed : helpers.profiles.Profile, int
        What is run; written to config.json.
    name, folder : str, path, optional
        The folder's name under runs/ (by default the profile's name), or a whole path instead.

    Raises
    ------
    RuntimeError
        If the folder cannot be written, the disk is nearly full, or the folder holds a run with
        other settings: nothing is overwritten.
    """
    run, needed = folder or RUNS / (name or profile.name), DISK_MIB[profile.needs_gpu]
    try:
        free = probe(run)
    except OSError as error:
        raise RuntimeError(f"cannot write to {show(run)} ({error.strerror}): free space or make it "
                           "writable, or name another folder in COUNTDOWN_RUNS") from error
    if free < needed:
        raise RuntimeError(f"{show(run)} has {free:.0f} MiB free and the run's checkpoints need up "
                           f"to {needed}: free some, or name another folder in COUNTDOWN_RUNS")
    config = run / "config.json"
    if not config.exists():
        write_json(config, {"profile": settings(profile), "seed": seed,
                            **environment(profile.needs_gpu)})
        return run
    saved = json.loads(config.read_text())
    different = differences(profile, saved["profile"])
    if saved["seed"] != seed:
        different.append("seed")
    if different:
        raise RuntimeError(
            f"{show(run)} holds a run of profile {saved['profile']['name']} with seed "
            f"{saved['seed']} that differs in: {', '.join(different)}. Move or delete the folder "
            "to start anew, or name another one in COUNTDOWN_RUNS; nothing was changed")
    return run


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
    with open(path, "ab", buffering=0) as file:
        if file.write(line) != len(line):
            raise OSError(f"{show(path)}: the disk is full")
        os.fsync(file.fileno())


def read_rows(path):
    """Read a JSON-lines file; a last line that a kill cut short is left out."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines if line]


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
    for folder in reversed(folders):
        try:
            json.loads((folder / "trainer_state.json").read_text())
            return folder
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(folder)
    return None


def find_runs(profile_name, root=REFERENCE_RUNS):
    """Return the recorded runs of a profile, sorted by seed."""
    return sorted(root.glob(f"{profile_name}-seed*"))


def _processor():
    with suppress(OSError), open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.machine()
    return platform.processor() or platform.machine()
