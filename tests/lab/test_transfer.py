"""Puzzle sets and wordings that training did not see."""


import pytest

from helpers import profiles
from helpers.dataset import load_split
from helpers.models import load_model
from helpers.prompts import EXAMPLE, build_messages
from helpers.solver import solve
from lab.transfer import RANGES, puzzle_sets, wordings

NUMS, TARGET = [8, 6, 7], 14


@pytest.fixture(scope="module")
def sets():
    return {name: puzzle_sets(name, size=12) for name in RANGES}


def test_transfer_puzzles_are_new_and_can_be_solved(sets):
    for name, found in sets.items():
        trained = {tuple(sorted(nums)) for nums in load_split(name, "train")["nums"]}
        for key, rows in found.items():
            assert 6 <= len(rows) <= 12, key
            for nums, target in zip(rows["nums"], rows["target"], strict=True):
                assert tuple(sorted(nums)) not in trained
                assert len(nums) == 6 or solve(nums, int(target)), (key, nums, target)


def test_each_transfer_set_is_what_it_is_called(sets):
    for name, found in sets.items():
        ranges = RANGES[name]
        for key, rows in found.items():
            largest = [max(nums) for nums in rows["nums"]]
            counts = {len(nums) for nums in rows["nums"]}
            if key.endswith("numbers"):
                assert counts == {{"four": 4, "five": 5, "six": 6}[key.split()[0]]}
            else:
                assert counts <= {3, 4}
            assert all(x > ranges["high"] for x in largest) == key.startswith("numbers to")
            assert (rows["target"] > ranges["target_high"]).all() == key.startswith("targets")
    with pytest.raises(ValueError, match="no puzzle set"):
        puzzle_sets("5to6")


def test_a_wording_asks_for_the_same_puzzle():
    for name in RANGES:
        found = wordings(name)
        assert found["as trained"] is build_messages
        texts = {key: build(NUMS, TARGET)[-1]["content"] for key, build in found.items()}
        assert all("8, 6, 7" in text and "14" in text for text in texts.values())
        assert len(set(texts.values())) == len(texts) - 1  # one leaves the user's message alone
    assert EXAMPLE["completion"] in wordings("3to4")["other words"]([1, 2, 3], 6)[-1]["content"]
    assert "other words" not in wordings("cpu")


def test_the_tiny_models_tokenizer_reads_its_wordings_whole():
    _, tokenizer = load_model(profiles.CPU)
    for key, build in wordings("cpu").items():
        text = tokenizer.apply_chat_template(build([8, 6, 7], 14), tokenize=False)
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], key
