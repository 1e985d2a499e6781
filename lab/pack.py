"""Pack one's own run into a small file: ``python -m lab.pack runs/a100``.

With ``--evaluate`` it first answers the test puzzles at temperature 1, in place of notebook 05.

``python -m lab.pack --check FILE.zip`` reads such a file as what it is, a stranger's: it is held in
memory, nothing of it is executed, every completion is graded again. With ``--keep`` it is copied to
data/reader_runs/.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import re
import stat
import sys
import tempfile
import time
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from reprlib import repr as short

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from helpers.dataset import SHIPPED, load_split
from helpers.evaluation import as_shown, evaluate
from helpers.models import load_model, lora_settings, saved_lora, trained_model
from helpers.paths import DATA, RUNS, show
from helpers.profiles import PROFILES, choose, differences, settings
from helpers.prompts import build_messages
from helpers.puzzles import canonical
from helpers.runs import (
    FILES,
    free_name,
    held,
    last_checkpoint,
    read_config,
    read_rows,
    step_of,
)
from lab import untrusted
from lab.record import keep
from lab.report import STAGES, gains_of, regrade

SHELF = DATA / "reader_runs"
SAMPLES = "samples.jsonl"
ADVICE = {"config.json": "it is no run's folder: notebook 04 makes one, runs/<profile>",
          "metrics.jsonl": "train first: notebook 04",
          "evaluation.parquet": "run notebook 05 first: it grades the model before and after; or "
                                "add --evaluate here, which is shorter"}
PACKED, UNPACKED = 16 * 2**20, 64 * 2**20  # bytes at most, before and after unpacking
ROWS = 60_000  # of any table
TEXT = 40_000  # bytes of one completion
CONFIG = {"profile": dict, "seed": int, "versions": dict, "hardware": str, "date": str}
# What notebook 04's GRPOConfig takes from the profile, by the profile's name for it; and what
# stands there itself. tests/lab/test_pack.py compares both with the notebook.
ARGUMENTS = {name: name for name in ("max_completion_length", "temperature", "loss_type", "beta",
                                     "epsilon", "epsilon_high", "learning_rate", "warmup_steps")}
ARGUMENTS |= {"group_size": "num_generations", "mask_truncated": "mask_truncated_completions"}
WRITTEN = {"scale_rewards": "group", "num_iterations": 1,
           "reward_funcs": ["strict_format_reward_func", "equation_reward_func"]}
COUNTED = ("group_size", "prompts_per_step", "lora_rank", "max_completion_length")
BATCH = ("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps")
GRADED = {"temperature": float, "sample": int, "nums": list, "target": int, "completion": str,
          "tokens": int, "correct": bool}
PLAIN = re.compile(r"[\n -%'-;=?-\[\]-~]*")  # printable ASCII, no markup (<, >, &), no backslash
PRIVATE = re.compile(r"""(?:^|[\s"'=(\[])(?:~|/|[A-Za-z]:/)\S  # a path from the root or the home
                         |\S@\S+\.\S                          # an address
                         |\b(?:hf|gh[oprsu]|github_pat|sk|glpat|wandb)[-_]\w{8}  # a token
                         |\b[A-Za-z0-9]{32}""", re.VERBOSE)
KNOWN = {value for profile in PROFILES.values() for value in settings(profile).values()
         if isinstance(value, str)}  # a revision is long, too


class BadRun(ValueError):
    """A packed run that is not what it should be; the message says why."""


@dataclass(frozen=True)
class Run:
    """A run that was read and checked.

    `frame` has a row for each graded completion, with its canonical ``puzzle``; `rows` are the
    metrics of the steps; `files` the bytes that were checked, by name.
    """

    config: dict
    rows: list
    frame: pd.DataFrame
    files: dict = field(repr=False)

    @property
    def name(self):
        """``<profile>-<date>-<checksum>``, from what is inside: no stranger's file name."""
        content = b"".join(self.files[name] for name in sorted(self.files))
        return (f"{self.config['profile']['name']}-{self.config['date']}-"
                f"{hashlib.sha256(content).hexdigest()[:8]}")

    @property
    def seed(self):
        """The seed of the training, which notebook 04 can give apart from the run's."""
        return self.config.get("training", {}).get("seed", self.config["seed"])

    @property
    def changes(self):
        """What was changed of the profile and of notebook 04's settings, as text by name.

        More puzzles a step where groups are smaller by as much are one change, not two. The code of
        a reward is not recorded, only its name.
        """
        profile = PROFILES[self.config["profile"]["name"]]
        had, others = _trained_with(self.config, profile)
        found = {name: had.get(name) for name in differences(profile, had)}
        if {"group_size", "prompts_per_step"} <= found.keys() and (
                found["group_size"] * found["prompts_per_step"] == profile.completions_per_step):
            found["group_size"] = f"{found['group_size']} ({found.pop('prompts_per_step')} prompts)"
        return {name: short(value).strip("'") for name, value in (found | others).items()}

    @property
    def remark(self):
        """What fewer steps than the profile's make of it: a list of one text, or of none."""
        profile, steps = PROFILES[self.config["profile"]["name"]], len(self.rows)
        if steps <= profile.smoke_steps:
            return ["This is a smoke run, not a result"]
        short = f"This run is short: {steps} of the profile's {profile.steps} steps"
        return [short] * (steps < profile.steps)


def read_pack(path):
    """Read a packed run from a stranger, and check everything in it.

    Parameters
    ----------
    path : pathlib.Path
        The ZIP file that `pack` has written.

    Returns
    -------
    Run

    Raises
    ------
    BadRun
        If it is no such file, is larger than a run is, holds anything else, or if a grade, a
        puzzle, a step or a setting is not what it should be.
    """
    return check(unzip(path))


def unzip(path):
    """Return the bytes of a pack's files by name; nothing is written to the disk."""
    allowed, found = {*FILES, SAMPLES}, {}
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise BadRun("it is no plain file but a folder, a link or a device")
        if status.st_size > PACKED:
            raise BadRun(f"it is larger than {PACKED >> 20} MiB: no run is")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if not set(FILES) <= set(names) <= allowed or len(names) != len(set(names)):
                raise BadRun(f"it holds {short(names)}, not {', '.join(FILES)} and perhaps "
                             f"{SAMPLES}, each once")
            for entry in entries:
                if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
                    raise BadRun(f"{entry.filename} is no plain file but a link or a device")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise BadRun(f"{entry.filename} is packed in another way than `pack` packs")
            if sum(entry.file_size for entry in entries) > UNPACKED:
                raise BadRun(f"it unpacks to more than {UNPACKED >> 20} MiB: no run does")
            for entry in entries:  # a size that lies ends the reading; read() would unpack it all
                with archive.open(entry) as file:
                    found[entry.filename] = file.read(entry.file_size + 1)
    except (OSError, EOFError, RuntimeError, UnicodeError, zipfile.BadZipFile, zlib.error) as error:
        raise BadRun(f"it is no whole ZIP file ({error}): ask for it again") from error
    return found


def check(files):
    """Check the files of a run, bytes by name, and return them as a `Run`; BadRun as `read_pack`.

    Every setting is plain text or a number, every step is there and finite, every test puzzle is
    answered once in each stage and temperature, and every completion has today's grade.
    """
    config = _config(files["config.json"])
    rows = _rows(files, "metrics.jsonl", lambda row: len(row) <= 60 and all(
        name.isidentifier() and _is_number(value) for name, value in row.items()))
    if [row.get("step") for row in rows] != list(range(1, len(rows) + 1)) or not rows:
        raise BadRun("metrics.jsonl does not hold the steps 1, 2, 3, ..., each once")
    try:
        lines = untrusted.json_lines(files["evaluation.parquet"], UNPACKED)
    except ValueError as error:
        raise BadRun(f"evaluation.parquet: {error}") from error
    frame = _graded({"evaluation.parquet": lines}, "evaluation.parquet", {"stage": str})
    _same_puzzles(frame, config["profile"])
    if SAMPLES in files:
        _graded(files, SAMPLES, {"step": int})
    return Run(config, rows, frame, files)


def _json(data, where):
    def once(pairs):
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name stands there twice")
        return dict(pairs)

    def never(constant):
        raise ValueError(f"{constant} is no JSON")

    try:
        value = json.loads(data.decode(), object_pairs_hook=once, parse_constant=never)
        return value | {}  # a TypeError unless it is a dict
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRun(f"{where} is no strict JSON object ({error})") from error


def _rows(files, name, is_right):
    lines = files[name].removesuffix(b"\n").split(b"\n")
    if len(lines) > ROWS:
        raise BadRun(f"{name} has more than {ROWS:,} lines: no run has")
    rows = [_json(line, f"{name}, line {number}") for number, line in enumerate(lines, start=1)]
    for number, row in enumerate(rows, start=1):
        if not is_right(row):
            raise BadRun(f"{name}, line {number} has other names or values than a run's: numbers "
                         "have to be finite, texts no longer than a run's")
    return rows


def _is_number(value):
    return type(value) in (int, float) and -1e15 < value < 1e15  # which NaN is not


def _is_private(text):
    return text not in KNOWN and PRIVATE.search(text)


def _config(data):
    config, text = _json(data, "config.json"), data.decode()
    if len(text) > 65_536 or not PLAIN.fullmatch(text):
        raise BadRun("config.json is not plain text, or is longer than a run's")
    if private := list(filter(_is_private, re.findall('"([^"]*)"', text))):
        raise BadRun(f"config.json holds a path, an address or a token: {short(private[0])}")
    if wrong := [name for name, kind in CONFIG.items() if type(config.get(name)) is not kind]:
        raise BadRun(f"config.json is not a run's: no right {', '.join(wrong)}")
    profile = config["profile"]
    if profile.get("name") not in list(PROFILES):  # which need not be hashable
        raise BadRun(f"no profile is called {short(profile.get('name'))}")
    if not isinstance(profile.get("cold_start"), dict | None) or not all(
            _is_number(profile.get(name)) for name in COUNTED):
        raise BadRun(f"the profile's cold_start, {', '.join(COUNTED)} are not like a run's")
    training = config.get("training", {})
    if not isinstance(training, dict) or training and not all(
            type(training.get(name)) is int and training[name] > 0 for name in BATCH):
        raise BadRun(f"config.json's training has no right {', '.join(BATCH)}")
    if not re.fullmatch(r"20\d\d-[01]\d-[0-3]\d", config["date"]):
        raise BadRun(f"config.json's date is {short(config['date'])}, not like 2026-11-27")
    return config


def _trained_with(config, profile):
    """Return a run's settings by the profile's names, and what else of notebook 04 was changed."""
    had, arguments = dict(config["profile"]), config.get("training", {})
    if not arguments:  # a run from before it was noted
        return had, {}
    had |= {name: arguments[theirs] for name, theirs in ARGUMENTS.items() if theirs in arguments}
    planned = config["profile"]
    if had["max_completion_length"] == planned.get("training_length"):  # shorter, as it says
        had["max_completion_length"] = planned["max_completion_length"]
    group, micro_batch, passes = (arguments[name] for name in BATCH)
    had["prompts_per_step"] = micro_batch * passes // group
    had["format_weight"] = profile.format_weight  # it is one of the reward_weights
    usual = WRITTEN | {"reward_weights": [profile.format_weight, 1.0],
                       "puzzles": _prompts(had["puzzles"], config["seed"])}
    if profile.lora_rank:
        lora = lora_settings(had["lora_rank"])
        usual["lora"] = {"r": lora["r"], "lora_alpha": lora["lora_alpha"],
                         "target_modules": sorted(lora["target_modules"])}
    others = {name: arguments[name] for name, value in usual.items()
              if arguments.get(name, value) != value}
    if "puzzles" in others:
        others["training_puzzles"] = others.pop("puzzles")
    if "reward_funcs" in others:  # another reward needs another weight: one change
        others["reward_funcs"] = [others["reward_funcs"], others.pop("reward_weights", None)]
    return had, others


@cache
def _prompts(puzzles, seed):
    """Return what `helpers.training.note_settings` writes of notebook 04's prompts."""
    rows = [{"prompt": build_messages(**puzzle)} | puzzle
            for puzzle in as_shown(load_split(puzzles, "train").head(20_000), seed)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def _graded(files, name, also):
    """Read lines of completions and grade them again; return them if no grade differs."""
    kinds = GRADED | also
    frame = pd.DataFrame(_rows(files, name, lambda row: row.keys() == kinds.keys() and all(
        type(row[key]) is kind for key, kind in kinds.items()) and (
        len(row["completion"]) <= TEXT and {*map(type, row["nums"])} == {int})))
    try:
        changed = int((regrade(frame) != frame["correct"]).sum())
        frame["puzzle"] = list(map(canonical, frame["nums"], frame["target"]))
    except ValueError as error:
        raise BadRun(f"{name}: a row is no puzzle ({error})") from error
    if changed:
        raise BadRun(f"{name}: {changed} of {len(frame)} grades differ from today's reward. "
                     "Evaluate it again with notebook 05")
    return frame


def _same_puzzles(frame, profile):
    """Refuse answers to other puzzles than the test part's, or to one of them twice."""
    name, known = profile.get("puzzles"), ["public", *SHIPPED]
    if name not in known:  # others are paths
        raise BadRun(f"its puzzles are {short(name)}: only runs on {', '.join(sorted(known))} can "
                     "be checked")
    try:
        test = load_split(name, "test")
    except (OSError, RuntimeError, ValueError) as error:
        raise BadRun(f"the test puzzles {name} cannot be had here: {error}") from error
    asked = sorted(map(canonical, test["nums"], test["target"]))
    parts = dict(list(frame.groupby(["temperature", "stage"], observed=True)["puzzle"]))
    whole = {(temperature, stage) for temperature, _ in parts for stage in STAGES}
    if parts.keys() != whole or not whole or not frame["temperature"].between(0, 2).all():
        raise BadRun("evaluation.parquet does not hold each temperature before and after")
    for (temperature, stage), puzzles in parts.items():
        if sorted(puzzles) != asked:
            raise BadRun(f"{stage} training, at temperature {temperature:g}, evaluation.parquet "
                         f"does not hold every test puzzle of {name} exactly once")
    most = max(profile["max_completion_length"],  # a shorter one in training alone is no limit here
               PROFILES[profile["name"]].max_completion_length)
    if not frame["tokens"].between(0, most).all():
        raise BadRun("a completion has more tokens than the profile's max_completion_length")


def result(run):
    """Return what a run has shown, as lines of text.

    Parameters
    ----------
    run : Run
        What `read_pack` has checked.
    """
    config, profile = run.config, PROFILES[run.config["profile"]["name"]]
    ours = settings(profile)
    differ = [f"{name} {value}" + f" (ours {ours.get(name)})" * (name in ours)
              for name, value in run.changes.items()]
    lines = [f"{profile.name}, seed {run.seed}: {len(run.rows)} steps (the profile "
             f"has {profile.steps}), {config['hardware']}, {config['date']}",
             f"settings that differ from the profile's: {'; '.join(differ) or 'none'}",
             "versions: " + ", ".join(f"{k} {v}" for k, v in config["versions"].items())]
    for (temperature, _), row in gains_of(run.frame.assign(run=run.name)).iterrows():
        rates = run.frame[run.frame["temperature"] == temperature].groupby(
            "stage", observed=True)["correct"].mean()
        lines.append(
            f"temperature {temperature:g}: {rates['before']:.1%} right before, "
            f"{rates['after']:.1%} after, gain {100 * row['gain']:+.1f} points "
            f"({100 * row['low']:+.1f} to {100 * row['high']:+.1f}), {row['n']:.0f} test puzzles")
    return lines + run.remark


def answer(folder):
    """Let a run's first and last weights answer the test puzzles once, at temperature 1.

    It is what notebook 05 does, without the lower temperatures, and is written to the same file.

    Parameters
    ----------
    folder : pathlib.Path
        The run, after notebook 04.

    Raises
    ------
    BadRun
        If there is no model of the run's last step, or it cannot be loaded here.
    """
    _present(folder, "config.json", "metrics.jsonl")
    start = time.monotonic()
    try:
        with held(folder):
            profile, seed = _asked_of(folder)
            weights, puzzles = _last_weights(folder), load_split(profile.puzzles, "test")
            model, tokenizer = load_model(profile, lora=saved_lora(weights))
            given = tokenizer, profile, puzzles
            before = evaluate(model, *given, "before", (1.0,), seed)
            after = evaluate(trained_model(model, profile, weights), *given, "after", (1.0,), seed)
            both, path = pd.concat([before, after]), folder / "evaluation.parquet"
            both.to_parquet(f"{path}.partial", compression="zstd", index=False)
            if path.exists():  # of notebook 05, at three temperatures
                path.rename(free_name(path, "earlier"))
            os.replace(f"{path}.partial", path)
    except (OSError, RuntimeError, ValueError) as error:  # each says what to do
        raise BadRun(f"{show(folder)} cannot be evaluated: {error}") from error
    print(f"{len(both):,} completions in {time.monotonic() - start:.0f} s")


def _asked_of(folder):
    """Return the profile that notebook 05 would evaluate a run with, and the run's seed."""
    config = read_config(folder)
    try:
        own = {name: config["profile"][name] for name in ("name", "puzzles", "quantisation")}
        return replace(choose(own["name"]), **own), config["seed"]
    except (KeyError, TypeError) as error:
        raise BadRun(f"its config.json is not a run's: {error!r}") from error


def _last_weights(folder):
    """Return the folder of the model that a run ended with: saved, or its last checkpoint."""
    if any((folder / "final").glob("*.safetensors")):
        return folder / "final"
    steps, last = len(read_rows(folder / "metrics.jsonl")), last_checkpoint(folder)
    if last is None or step_of(last) != steps:
        raise BadRun(f"it holds no model of its last step, {steps}. Let notebook 04 train to its "
                     "end")
    return last


def _present(folder, *names):
    for name in names:
        if not (folder / name).is_file():
            raise BadRun(f"there is no {name} in {show(folder)}: {ADVICE[name]}")


def pack(folder):
    """Write a run as a small ZIP file beside its folder, checked as its receiver will.

    Parameters
    ----------
    folder : pathlib.Path
        The run, after notebooks 04 and 05.

    Returns
    -------
    (pathlib.Path, Run)
        The file, ``<profile>-<date>-<checksum>.zip``, and what is in it.

    Raises
    ------
    BadRun
        If something is missing or is not as it should be. The run itself is left as it is.
    """
    _present(folder, *ADVICE)
    files = {name: (folder / name).read_bytes() for name in (*FILES, SAMPLES)
             if (folder / name).is_file()}
    config = _json(files["config.json"], "config.json")
    files["config.json"] = json.dumps(_without_names(config), indent=2).encode()
    try:  # without what pandas and others write beside the columns
        table = pq.read_table(io.BytesIO(files["evaluation.parquet"]))
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(None), buffer, compression="zstd")
    except (pa.ArrowException, OSError) as error:
        raise BadRun(f"evaluation.parquet is damaged ({error}): run notebook 05 again") from error
    files["evaluation.parquet"] = buffer.getvalue()
    run = check(files)
    path, partial = (folder.parent / f"{run.name}.{end}" for end in ("zip", "zip.partial"))
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():  # all at one date: the same run is the same file
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), data,
                             zipfile.ZIP_DEFLATED)
    partial.replace(path)
    return path, run


def _without_names(value, where="config.json"):
    """Return a configuration without the texts that name a person, a path or a machine."""
    if isinstance(value, dict):
        return {name: _without_names(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_names(item, where) for item in value]
    names = {platform.node(), platform.node().split(".")[0], os.environ.get("USER", ""),
             os.environ.get("USERNAME", ""), os.path.basename(os.path.expanduser("~"))}
    if isinstance(value, str) and value not in KNOWN and (
            _is_private(value) or not PLAIN.fullmatch(json.dumps(value)) or any(
                re.search(rf"(?i)\b{re.escape(name)}\b", value) for name in names if name)):
        print(f"left out: {where}, which may name you or your machine")
        return "left out"
    return value


def main(argv=None):
    """Read the command line; pack a run, or check a packed one. Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lab.pack", description=__doc__)
    parser.add_argument("path", type=Path,
                        help="a run's folder, or its name under runs/; with --check, a packed run")
    parser.add_argument("--evaluate", action="store_true",
                        help="answer the test puzzles first, at temperature 1 only")
    parser.add_argument("--check", action="store_true", help="read a stranger's file")
    parser.add_argument("--keep", action="store_true",
                        help=f"with --check: copy it to {show(SHELF)}/")
    options = parser.parse_args(argv)
    try:
        if options.check or options.keep:
            run = read_pack(options.path)
        else:
            named = RUNS / options.path
            folder = (named if named.is_dir() and not options.path.is_dir()
                      else options.path).resolve()
            if options.evaluate:
                answer(folder)
            path, run = pack(folder)
    except BadRun as error:
        print(f"pack: {error}", file=sys.stderr)
        return 1
    print("\n".join(result(run)))
    if not (options.check or options.keep):
        print(f"{show(path)}: {path.stat().st_size / 1024:,.0f} KiB, "
              f"{', '.join(run.files)}. Hand it in, or attach it to an issue of this repository")
    if options.keep:
        with tempfile.TemporaryDirectory() as folder:
            for name, data in run.files.items():
                (Path(folder) / name).write_bytes(data)
            keep(Path(folder), SHELF, run.name, tuple(run.files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
