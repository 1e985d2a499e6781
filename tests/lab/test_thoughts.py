"""Thoughts cut, swapped and left out: what the model reads, what is counted, and the record."""

import json
import shutil
import zipfile
from dataclasses import replace

import pandas as pd
import pytest

from helpers import profiles
from helpers.dataset import load_split
from helpers.evaluation import as_shown, sample_completions
from helpers.models import load_model
from helpers.paths import DATA, ROOT
from helpers.prompts import build_messages
from helpers.rewards import is_correct
from helpers.runs import find_runs
from lab import thoughts
from lab.coldstart import load_tokenizer
from lab.thoughts import Writer

SHOWN = {"nums": [12, 11, 4], "target": 8}  # the README's puzzle
MISS, HIT = "12 - 4 = 8, 11 - 8 = 3 no", "12 / 4 = 3, 11 - 3 = 8 yes"
CHATML = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
          "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
          "{% endif %}\n")


@pytest.fixture(scope="module")
def tiny():
    return load_model(profiles.CPU)


@pytest.fixture(scope="module")
def puzzles():
    return load_split("cpu", "validation").sample(6, random_state=0)


def asked(writer, tokenizer, openings, temperature=0.0):
    rows = pd.DataFrame([SHOWN] * len(openings))
    brief = replace(profiles.CPU, max_completion_length=thoughts.ROOM)
    return thoughts.write_on(writer, tokenizer, brief, rows, openings, temperature)


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_prompt_ends_with_the_opening_and_the_tokenizer_is_left_as_it_was(template):
    tokenizer = load_tokenizer(profiles.CPU)
    tokenizer.chat_template = was = template or tokenizer.chat_template

    def prompt(tokenizer, messages):
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    messages = build_messages([12, 11, 4], 8)
    opened = [*messages, {"role": "assistant", "content": "<think>\n11"}]
    assert prompt(thoughts.taking_openings(tokenizer), opened) == (
        prompt(tokenizer, messages) + "<think>\n11")
    assert tokenizer.chat_template == was


def test_a_completion_without_an_opening_is_the_one_that_evaluation_samples(tiny, puzzles):
    shown = pd.DataFrame(as_shown(puzzles, seed=3))
    own = thoughts.write_on(Writer(tiny[0]), tiny[1], profiles.CPU, shown, [""] * 6, 1.0, seed=3)
    same = sample_completions(*tiny, profiles.CPU, puzzles, 1.0, seed=3)
    assert own["completion"].tolist() == same["completion"].tolist()
    assert own["correct"].tolist() == same["correct"].tolist()


def test_the_model_goes_on_from_the_opening_and_the_whole_is_graded(tiny):
    openings = [thoughts.with_thought(text) for text in (f"{MISS}\n{HIT}", f"{HIT}\n{MISS}", "")]
    found = asked(Writer(tiny[0]), tiny[1], openings)
    assert all(text.startswith(one) for text, one in zip(found["completion"], openings,
                                                         strict=True))
    assert found["correct"].tolist() == [True, False, False]  # its last line is what it answers
    seen = thoughts.looked_at(found)
    assert seen["copied"].tolist() == [True, True, False]
    assert seen["held"].tolist() == [True, True, False]
    assert seen["tried"].tolist() == [True, True, False] and not seen["unaided"].any()


def test_how_completions_begin_in_each_arm():
    own, others, strangers = [f"{MISS}\n{HIT}\n{MISS}", HIT], ["a", "b"], ["c", "d"]
    begun = {arm: thoughts.openings_of(arm, own, others, strangers)
             for arm in thoughts.ARMS if arm != "own"}
    given = {"again": own, "all but the last": [f"{MISS}\n{HIT}", ""], "first half": [MISS, ""],
             "only the last": [MISS, HIT], "empty": ["", ""], "another puzzle's": strangers,
             "the other model's": others}
    assert begun.pop("no tags") == ["<answer>", "<answer>"]
    assert begun == {arm: [f"<think>{text}</think>\n<answer>" for text in texts]
                     for arm, texts in given.items()}


@pytest.mark.parametrize("thought, answer, tried, copied, held", [
    (f"{MISS}\n{HIT}", "11 - 12 / 4 = 8", True, True, True),
    (f"{HIT}\n{MISS}", "11 - 12 / 4 = 8", True, False, True),  # another try than the last
    (MISS, "11 - 12 / 4 = 8", True, False, False),  # found without the thought
    (MISS, "11 - (12 - 4) = 3", True, True, False),
    (MISS, "11 - (12 - 4) = 8", True, False, False),  # its result is changed
    ("no idea", "11 - 12 / 4 = 8", False, False, False),
    (HIT, "11 - 12 / 4", True, False, True),
    ("12 + 4 = 8, 11 - 8 = 3 yes\n12 / 4 = 3, 11 - 3 = 8", "12", True, False, True),
])
def test_what_is_seen_in_a_completion(thought, answer, tried, copied, held):
    text = f"<think>{thought}</think>\n<answer>{answer}</answer>"
    assert thoughts.look(text, [4, 11, 12], 8) == {"tried": tried, "copied": copied, "held": held}


def test_a_stranger_has_other_numbers():
    shown = pd.DataFrame({"nums": [[1, 2], [2, 1], [3, 4], [5, 6]], "target": [3, 2, 7, 11]})
    places = thoughts.strangers_of(shown, seed=1)
    assert len(places) == 4 and places == thoughts.strangers_of(shown, seed=1)
    assert all(set(shown["nums"][row]) != set(shown["nums"][place])
               for row, place in enumerate(places))
    with pytest.raises(ValueError, match="ask more puzzles"):
        thoughts.strangers_of(shown.head(2))


def test_two_equal_models_answer_alike_in_every_arm(tiny, puzzles):
    writers = {"before": Writer(tiny[0]), "after": Writer(tiny[0])}
    answers, lines = thoughts.ask(writers, tiny[1], profiles.CPU, puzzles, samples=2, seed=4)
    texts = answers.groupby(["stage", "arm"], sort=False)["completion"].agg(list).unstack("arm")
    assert set(texts.columns) == set(thoughts.ARMS)
    for arm in thoughts.ARMS:
        assert texts.loc["before", arm] == texts.loc["after", arm], arm
        assert len(texts.loc["before", arm]) == 12
    assert texts.loc["before", "the other model's"] == texts.loc["before", "again"]
    assert texts.loc["before", "another puzzle's"] != texts.loc["before", "again"]
    counts = lines.groupby(["stage", "arm"]).size()
    assert counts.nunique() == 1 and 0 < counts.iloc[0] <= 12


def test_without_its_adapter_a_model_is_the_one_before_training(tiny):
    import peft
    import torch

    torch.manual_seed(0)
    base, _ = load_model(profiles.CPU)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    openings = [thoughts.with_thought(f"{MISS}\n{HIT}")]
    plain = asked(Writer(tiny[0]), tiny[1], openings)["completion"].tolist()
    assert asked(Writer(model, adapter=False), tiny[1], openings)["completion"].tolist() == plain
    assert asked(Writer(model), tiny[1], openings)["completion"].tolist() != plain


def test_the_next_line_is_looked_at_after_the_lines_and_from_nothing(tiny):
    shown = pd.DataFrame([SHOWN] * 3)
    greedy = asked(Writer(tiny[0]), tiny[1], ["<think>"])["completion"].iloc[0]
    first = greedy.removeprefix("<think>").split("\n")[0]
    brief = replace(profiles.CPU, max_completion_length=thoughts.ROOM)
    found = thoughts.next_lines(Writer(tiny[0]), tiny[1], brief, shown,
                                [HIT, f"{first}\n{MISS}", f"{MISS}\n{HIT}"], temperature=0)
    assert found["arm"].tolist() == [arm for arm in thoughts.NEXT for _ in range(2)]
    again = found[found["arm"] == "from nothing"]  # greedy: its first line comes again
    assert again["repeated"].tolist() == [True, False]
    solved = thoughts.look(f"<think>{first}</think>", **SHOWN)["held"]
    assert again["solved"].tolist() == [solved] * 2


def test_counts_rates_and_differences(tmp_path):
    folders, asked = [tmp_path / "a", tmp_path / "b"], {"part": "test", "samples": 1,
                                                         "temperature": 1.0, "puzzles": 3}
    for folder in folders:
        rows = [{"stage": stage, "arm": arm, "nums": list(nums), "target": 5, "right": right}
                for nums in ((3, 2), (1, 4), (6, 1)) for stage, arm, right in (
                    ("before", "own", nums == (3, 2)), ("after", "own", True),
                    ("before", "empty", False), ("after", "empty", folder.name == "b"))]
        rows += [rows[0] | {"right": False}] * (folder.name == "a")
        table = thoughts.tally(pd.DataFrame(rows), ["n", "right"])
        folder.mkdir()
        table.to_parquet(folder / "answers.parquet")
        (folder / "config.json").write_text(json.dumps(asked))
    table = thoughts.load(folders, counts=("n", "right"))
    assert table[[*thoughts.KEY, "n", "right", "run"]].iloc[0].tolist() == [
        "before", "own", (2, 3), 5, 2, 1, "a"]
    assert pd.concat([table] * 6000)["n"].sum() == 6000 * 25  # more than the file's integers hold
    shares = thoughts.rates(table)
    assert shares["before", "own"].tolist() == pytest.approx([2 / 3, 0, 0])
    assert (shares["after", "empty"] == 0.5).all()
    found = thoughts.compare(shares, {
        "gain": (("after", "own"), ("before", "own")), "none": (("after", "own"),) * 2})
    assert found.loc["gain", "difference"] == pytest.approx(100 * 7 / 9)
    assert found.loc["gain", "low"] < 100 * 7 / 9 < found.loc["gain", "high"]
    assert found.loc["none", "difference"] == 0
    assert found.loc["none", "low"] == -found.loc["none", "high"] < 0
    with pytest.raises(ValueError, match="no column copied"):
        thoughts.load(folders)
    (folders[0] / "config.json").write_text(json.dumps(asked | {"part": "validation"}))
    with pytest.raises(ValueError, match="2 kinds of records"):
        thoughts.load(folders, counts=("n", "right"))
    with pytest.raises(FileNotFoundError, match=r"python -m lab\.thoughts"):
        thoughts.load([tmp_path / "none"])


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs whose trained model is the cold start: of notebook 04, and of lab.record."""
    monkeypatch.setattr(thoughts, "RUNS", tmp_path)
    for seed, name in enumerate(("final", "checkpoint-80")):
        weights = tmp_path / f"cpu-seed{seed}" / name
        shutil.copytree(ROOT / profiles.CPU.model, weights)
        (weights / "trainer_state.json").write_text('{"global_step": 80}')
        for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            with zipfile.ZipFile(weights / file, "w") as state:
                state.writestr("data", "")
        (weights.parent / "config.json").write_text(json.dumps(
            {"profile": profiles.settings(profiles.CPU), "seed": seed, "date": "2026-11-27"}))
    return tmp_path


def test_the_command_leaves_a_record_that_can_be_read_again(runs):
    thoughts.main(["cpu-seed1", str(runs / "cpu-seed0" / "final"), "--part", "validation",
                   "--puzzles", "4"])
    folders = [runs / "thoughts" / f"cpu-seed{seed}" for seed in (0, 1)]
    table = thoughts.load(folders)
    assert (table.groupby(["run", "stage", "arm"]).size() == 4).all()
    assert set(table["run"]) == {"cpu-seed0", "cpu-seed1"}
    found = thoughts.compare(thoughts.rates(table), {
        "same": (("after", "own"), ("before", "own"))})
    assert found.loc["same", "difference"] == 0  # training did nothing here
    assert thoughts.load(folders, "lines", thoughts.LINE_COUNTS)["n"].max() == 1
    config = json.loads((folders[1] / "config.json").read_text())
    assert config["puzzles"] == 4 and config["run"]["seed"] == 1
    assert config["run"]["weights"] == "checkpoint-80"
    assert {"versions", "hardware", "date", "command", "seconds"} <= config.keys()
    assert {path.name for path in folders[0].iterdir()} == set(thoughts.FILES)


def test_what_is_no_run_is_refused_before_a_model_is_loaded(runs, capsys):
    other = runs / "other" / "final"
    shutil.copytree(runs / "cpu-seed0" / "final", other)
    settings = profiles.settings(profiles.CPU) | {"max_completion_length": 64}
    (other.parent / "config.json").write_text(json.dumps({"profile": settings, "seed": 1}))
    (runs / "alone").mkdir()
    shutil.copytree(runs / "cpu-seed0" / "final", runs / "alone" / "final")
    (runs / "cpu-seed1" / "final").mkdir()
    (runs / "cpu-seed1" / "final" / "model.safetensors").write_bytes(b"half")
    for words, message in ((["nowhere"], "it holds no weights"), (["alone"], "no config.json"),
                           (["cpu-seed1"], "is not whole"), (["cpu-seed0", "other"], "differ in"),
                           (["cpu-seed0", str(runs / "cpu-seed0")], "the same name")):
        with pytest.raises(SystemExit):
            thoughts.main(words)
        assert message in capsys.readouterr().err.splitlines()[-1], words


RECORDS = find_runs("cpu", DATA / "thoughts")


def test_the_record_is_whole_and_small():
    assert len(RECORDS) == 3
    files = [path for folder in RECORDS for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in files) < 300_000
    table, held_out = thoughts.load(RECORDS), load_split("cpu", "test")
    expected = {(tuple(sorted(nums)), target) for nums, target in
                zip(held_out["nums"], held_out["target"], strict=True)}
    for key, part in table.groupby(["run", "stage", "arm"]):
        assert set(zip(part["nums"], part["target"], strict=True)) == expected, key
    assert len(table) == 3 * 2 * len(thoughts.ARMS) * len(expected)
    assert (table["unaided"] <= table["right"]).all() and (table["held"] <= table["tried"]).all()
    assert (table["copied"] <= table["tried"]).all()
    assert thoughts.load(RECORDS, "lines", thoughts.LINE_COUNTS)["arm"].nunique() == 2


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_the_examples_grade_as_they_did_and_agree_with_the_counts(folder):
    config = json.loads((folder / "config.json").read_text())
    examples = pd.read_parquet(folder / "examples.parquet")
    assert config["part"] == "test" and set(examples["arm"]) == set(thoughts.ARMS)
    graded = [is_correct(text, nums, target) for text, nums, target in zip(
        examples["completion"], examples["nums"], examples["target"], strict=True)]
    assert graded == examples["correct"].tolist()
    again = thoughts.tally(thoughts.looked_at(examples), thoughts.COUNTS)
    recorded = thoughts.load([folder]).merge(again, on=thoughts.KEY, suffixes=("", "_again"))
    assert config["samples"] == 1 and len(recorded) == len(examples)
    for name in thoughts.COUNTS:
        assert (recorded[name] == recorded[f"{name}_again"]).all(), name
