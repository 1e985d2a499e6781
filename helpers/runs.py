"""A run is a folder: config.json, metrics.jsonl, checkpoints and, later, evaluation.parquet."""

import json
import os
import platform
import re
import shutil
import tempfile
import zipfile
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata

from helpers.paths import DATA, RUNS, show
from helpers.profiles import differences, settings

REFERENCE_RUNS = DATA / "reference_runs"
FILES = ("config.json", "metrics.jsonl", "evaluation.parquet")  # what is kept of a recorded run
# Settings that change neither what is learned nor from what: how the batch is cut, what memory it
# takes, how often it is saved, how long it goes on. A run goes on with others.
LOOSE = {"steps", "micro_batch", "save_every", "vllm_gib", "max_num_seqs", "min_gpu_gib",
         "roomy_gib", "standby", "gradient_checkpointing", "uses_vllm", "smoke_steps"}
DISK_MIB = {False: 200, True: 3 * 1024}  # free space that a run needs, without and with a GPU


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
    now = {"profile": settings(profile), "seed": seed}
    if not (run / "config.json").exists():
        write_json(run / "config.json", now | environment(profile.needs_gpu))
        return run
    saved = read_config(run)
    if not {"profile", "seed"} <= saved.keys():
        raise RuntimeError(f"{show(run)}/config.json names no profile and seed: {_ANEW}")
    found = differences(profile, saved["profile"])
    different = [name for name in found if name not in LOOSE] + ["seed"] * (saved["seed"] != seed)
    if different:
        theirs = f" (was {saved['profile'].get('puzzles')!r})" * ("puzzles" in different)
        raise RuntimeError(
            f"{show(run)} holds a run of profile {saved['profile']['name']} with seed "
            f"{saved['seed']} that differs in: {', '.join(different)}{theirs}. Give them as they "
            "were to go on, or name another folder to start anew: open_run(profile, seed, "
            "name=\"try-1\"); nothing was changed")
    if found:  # noted, and no other run
        was = {"until_step": len(read_rows(run / "metrics.jsonl"))}
        was |= {name: saved["profile"].get(name) for name in found}
        write_json(run / "config.json", saved | now | {"earlier": [*saved.get("earlier", []), was]})
    return run


_ANEW = ("delete that file and run this again: it is written anew from the profile here, "
         "checkpoints and metrics stay")


def read_config(run):
    """Return what a run's config.json holds; a RuntimeError says what to do if it is not whole."""
    try:
        config = json.loads((run / "config.json").read_text())
    except ValueError as error:  # empty or cut off: no JSON, or no text
        raise RuntimeError(f"{show(run)}/config.json is not whole ({error}): {_ANEW}") from error
    if not isinstance(config, dict):
        raise RuntimeError(f"{show(run)}/config.json is not a run's: {_ANEW}")
    return config


class Held(RuntimeError):
    """Another process works in a folder."""


@contextmanager
def held(folder, what="trains"):
    """Hold a folder for this process; the system frees it when the process ends, however it ends.

    Raises
    ------
    Held
        If another process does.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / ".lock", fallback_to_soft=False), folder / ".owner"
    try:
        lock.acquire(blocking=False)
    except Timeout:
        who = owner.read_text() if owner.exists() else "another process"
        raise Held(f"{who} {what} in {show(folder)}: wait for it or stop it (shut down "
                   "its kernel), or name another folder") from None
    except (NotImplementedError, OSError) as error:  # a network drive without locks
        print(f"{show(folder)} cannot be locked ({error}): start no second training there")
    try:
        with suppress(OSError):  # a full disk is said where it matters
            replace_text(owner, f"process {os.getpid()} on {platform.node()}, since "
                         f"{datetime.now():%Y-%m-%d %H:%M},")
        yield
    finally:
        lock.release()


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


def append_row(path, *rows):
    """Append JSON lines in a single write, and flush them to the disk."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with open(path, "ab", buffering=0) as file:
        if file.write(lines) != len(lines):
            raise OSError(f"{show(path)}: the disk is full")
        os.fsync(file.fileno())


def read_rows(path):
    """Read a JSON-lines file; a last line that a kill cut short is left out.

    A broken line before the last (of a copy that was cut, say) is left out, too, and said.
    """
    rows, broken = _rows(path)
    if broken:
        print(f"{show(path)}: left out what is no whole line of JSON, line "
              f"{', '.join(map(str, broken))}")
    return rows


def _rows(path):
    rows, broken = [], []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line) | {})  # a TypeError unless it is a dict
        except (ValueError, TypeError):
            broken.append(number)
    return rows, broken


def keep_rows_until(path, step):
    """Drop the rows after `step`: a resumed run writes them again."""
    rows, broken = _rows(path)
    if broken:  # what a reader might still want to see
        shutil.copyfile(path, free_name(path))
    rows = [row for row in rows if row["step"] <= step]
    if path.exists():
        replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def step_of(checkpoint):
    """Return the step that a checkpoint's folder is named for."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def checkpoints(run):
    """Return {step: path} of what is called checkpoint-STEP in a run, the newest first."""
    found = {step_of(path): path for path in run.glob("checkpoint-*")
             if re.fullmatch("checkpoint-[0-9]+", path.name)}
    return dict(sorted(found.items(), reverse=True))


def weights_fault(folder):
    """Return what is wrong with a folder's weights, or None if they are whole."""
    from safetensors import SafetensorError, safe_open

    files = list(folder.glob("*.safetensors"))
    try:
        for file in files:  # opening it compares the file's length with what its header says
            with safe_open(file, "numpy"):
                pass
        for file in folder.glob("*.safetensors.index.json"):  # of weights in several files
            named = json.loads(file.read_text())["weight_map"].values()
            if missing := set(named) - {weights.name for weights in files}:
                return f"{min(missing)} is missing"
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        return f"{file.name} is not whole ({error})"
    return None if files else "it holds no weights"


def checkpoint_fault(folder, step):
    """Return what keeps a folder from being a whole checkpoint of a step, or None."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text())
        if state["global_step"] != step:
            return f"its trainer_state.json is of step {state['global_step']}"
        drawn = [file.name for file in folder.glob("rng_state*.pth")]  # one for each process
        for name in ("optimizer.pt", "scheduler.pt", *(drawn or ["rng_state.pth"])):
            with zipfile.ZipFile(folder / name) as file:
                if file.testzip():
                    return f"{name} is broken"
    except FileNotFoundError as error:
        return f"{os.path.basename(error.filename)} is missing"
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        return f"a file is not whole ({error})"
    return weights_fault(folder)


def last_checkpoint(run):
    """Return the newest whole checkpoint folder of a run, or None.

    One that is not whole (cut off while it was written or copied, without the optimiser's state) is
    passed over, said, and left where it is.
    """
    for step, folder in checkpoints(run).items():
        if not (fault := checkpoint_fault(folder, step)):
            return folder
        print(f"Passed over {show(folder)}: {fault}")
    return None


def free_name(path, what="broken"):
    """Return a name beside `path` that nothing has yet, to keep there what is in the way."""
    number = 1
    while (free := path.with_name(f"{path.name}.{what}-{number}")).exists():
        number += 1
    return free


def find_runs(profile_name, root=REFERENCE_RUNS):
    """Return the recorded runs of a profile, sorted by seed."""
    return sorted(root.glob(f"{profile_name}-seed*"))


def _processor():
    with suppress(OSError), open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.machine()
    return platform.processor() or platform.machine()
