"""The prompt designs, what was recorded of them, and the check of prompts against the rewards."""

import json

import pandas as pd
import pytest

from helpers.dataset import load_split
from helpers.prompts import EXAMPLE, build_messages
from lab import prompt_designs as designs
from lab.prompt_check import (
    GOOD,
    IGNORED,
    NUMS,
    PERMISSIONS,
    RULES,
    TARGET,
    both_rewards,
    check,
    check_design,
    examples,
    prompt_text,
)
from lab.tiny import build_model, build_tokenizer

ASKED = prompt_text(build_messages(NUMS, TARGET))
each = pytest.mark.parametrize("design", designs.DESIGNS.values(), ids=designs.DESIGNS)


@each
def test_a_design_shows_the_puzzle_and_nothing_else_of_it(design):
    one = prompt_text(design.build([53, 71, 97, 89], 61))
    other = prompt_text(design.build([31, 42, 65, 79], 90))
    for old, new in (("53", "31"), ("71", "42"), ("97", "65"), ("89", "79"), ("61", "90")):
        assert one.count(old) == 1
        one = one.replace(old, new)
    assert one == other


def test_one_shot_is_the_prompt_that_is_trained_and_two_designs_differ_by_one_thing():
    built = {name: design.build(NUMS, TARGET) for name, design in designs.DESIGNS.items()}
    assert built["one-shot"] == built["think-prefix"] == build_messages(NUMS, TARGET)
    assert designs.DESIGNS["one-shot"].prefix == ""
    assert designs.DESIGNS["think-prefix"].prefix == "<think>"
    system, user = built["no-example"]
    assert system == built["one-shot"][0]
    assert built["one-shot"][1]["content"].startswith(user["content"][:-1])
    assert EXAMPLE["completion"] not in user["content"]


@each
def test_render_puts_the_prefix_last_and_only_messages_get_the_template(design):
    tokenizer = build_tokenizer()
    text = designs.render(design, tokenizer, NUMS, TARGET)
    assert text.endswith(design.prefix or "<|assistant|>")
    assert ("<|assistant|>" in text) == (not isinstance(design.build(NUMS, TARGET), str))


def test_messages_without_a_chat_template_are_refused():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="choose a model with one"):
        designs.render(designs.DESIGNS["terse"], tokenizer, NUMS, TARGET)
    assert designs.render(designs.DESIGNS["tinyzero-base"], tokenizer, NUMS, TARGET)


def test_a_begin_token_is_given_once_to_strings_and_to_messages():
    from tokenizers import processors

    tokenizer = build_tokenizer()
    tokenizer.bos_token = "<|system|>"
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", tokenizer.bos_token_id)])
    for name in ("tinyzero-base", "one-shot"):
        ids = designs.encode(designs.DESIGNS[name], tokenizer, NUMS, TARGET)
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1, name


def test_puzzles_are_held_out_halved_and_the_same_each_time():
    found = designs.choose_puzzles(40, seed=3)
    assert found["nums"].map(len).value_counts().to_dict() == {3: 20, 4: 20}
    pd.testing.assert_frame_equal(found, designs.choose_puzzles(40, seed=3))
    assert not found.equals(designs.choose_puzzles(40, seed=4))
    rows = load_split("3to4", "test")
    held_out = {(tuple(sorted(n)), t) for n, t in zip(rows["nums"], rows["target"], strict=True)}
    assert all((tuple(sorted(row.nums)), row.target) in held_out for row in found.itertuples())


@pytest.mark.parametrize("count", [0, 7, -2, 1_000_000])
def test_puzzles_that_cannot_be_halved_are_refused(count):
    with pytest.raises(ValueError, match="even number from 2 to"):
        designs.choose_puzzles(count)


@pytest.mark.parametrize(("text", "solved"), [
    (GOOD, True),
    ("So (11 - 8) * 4, I think", True),
    ("4*(11-8)=12.", True),
    ("4 + 8 = 12", False),
    ("(11 - 8) * 4 + 8 - 8", False),
    ("1.(11 - 8) * 4", True),
    ("(11 - 8) × 4", False),
    ("", False),
    ("(" * 5000, False),
    ("12", False),
])
def test_solved_anywhere(text, solved):
    assert designs.solved_anywhere(text, NUMS, TARGET) is solved


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A recording by the command itself, with a small model in a folder."""
    folder = tmp_path_factory.mktemp("designs")
    tokenizer = build_tokenizer()
    build_model(tokenizer, hidden=16, layers=1, heads=2, key_value_heads=1).save_pretrained(
        folder / "little")
    tokenizer.save_pretrained(folder / "little")
    options = ["--record", "--model", str(folder / "little"), "--puzzles", "6",
               "--max-tokens", "5", "--batch", "4", "--folder"]
    for name in ("one", "two"):
        assert designs.main([*options, str(folder / name)]) == 0
    return folder


def test_a_recording_can_be_read_and_made_again(recording):
    frame, table, config = designs.load_recorded(recording / "one")
    assert len(frame) == 6 * len(designs.DESIGNS)
    for _, part in frame.groupby("design"):
        assert list(part["nums"]) == list(frame["nums"][:6])  # the same puzzles, in one order
    assert frame["tokens"].between(1, 5).all()
    assert (frame.loc[~frame["finished"], "tokens"] == 5).all()
    assert ((frame["stop"] != "") == frame["finished"]).all()
    again = designs.load_recorded(recording / "two")[0]
    pd.testing.assert_frame_equal(frame, again)
    assert config["puzzles"] == 6 and set(config["seconds"]) == set(designs.DESIGNS)
    assert str(recording) not in json.dumps(config)
    assert set(table["prompts"]) == set(designs.DESIGNS)


def test_prompt_tokens_are_those_of_the_prompt(recording):
    frame = designs.load_recorded(recording / "one")[0]
    tokenizer = build_tokenizer()
    for row in frame.itertuples():
        ids = designs.encode(designs.DESIGNS[row.design], tokenizer, row.nums, row.target)
        assert len(ids) == row.prompt_tokens


def test_recordings_of_other_designs_or_with_missing_files_are_refused(recording):
    with pytest.raises(ValueError, match="has no completions.parquet"):
        designs.load_recorded(recording)
    other = recording / "other"
    other.mkdir()
    frame = pd.read_parquet(recording / "one" / "completions.parquet")
    frame[frame["design"] != "terse"].to_parquet(other / "completions.parquet")
    for name in ("tokens.json", "config.json"):
        (other / name).write_text((recording / "one" / name).read_text())
    with pytest.raises(ValueError, match="other designs"):
        designs.load_recorded(other)


def test_the_command_says_what_is_wrong(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert designs.main(["--record", "--puzzles", "7"]) == 1
    assert "even number" in capsys.readouterr().err
    options = ["--record", "--puzzles", "2", "--model", str(tmp_path / "none")]
    assert designs.main(options) == 1
    assert "no model" in capsys.readouterr().err
    assert designs.main([]) == 0
    assert "tinyzero-base" in capsys.readouterr().out


def test_the_shipped_recording():
    frame, table, config = designs.load_recorded()
    assert (frame.groupby("design").size() == config["puzzles"]).all()
    asked = designs.choose_puzzles(config["puzzles"], config["seed"])
    for name, part in frame.groupby("design", sort=False):
        assert [list(n) for n in part["nums"]] == list(asked["nums"]), name
        assert list(part["target"]) == list(asked["target"])
    assert (frame["tokens"] <= config["max_tokens"]).all()
    for name, prompt in table["prompts"].items():
        design = designs.DESIGNS[name]
        built = design.build(**designs.SHOWN)
        words = [built] if isinstance(built, str) else [m["content"] for m in built]
        assert all(text in prompt["text"] for text in words), name  # today's prompts
        assert prompt["text"].endswith(design.prefix)
        assert "".join(prompt["pieces"]) == prompt["text"]
    assert table["answered"]["text"].startswith(table["prompts"]["one-shot"]["text"])


# --- the check of prompts


def test_our_prompt_agrees_and_each_rule_and_promise_is_real():
    assert check(ASKED) == []
    assert both_rewards(GOOD, NUMS, TARGET) == (1.0, 1.0)
    for rule in RULES:  # every rule is one that the rewards demand
        assert rule.broken and all(min(both_rewards(t, NUMS, TARGET)) < 1 for t in rule.broken)
    for rule in IGNORED:  # and each of these one that they don't
        assert rule.broken
        assert all(both_rewards(t, rule.nums, rule.target) == (1.0, 1.0) for t in rule.broken)


EXPECTED = {
    "seed": {"a whole equation, with its = sign", "every number used", "nothing before <think>",
             'to leave a number out ("once" without "every")',
             "the numbers stand in double brackets"},
    "tinyzero-base": {"one newline, and nothing else, between </think> and <answer>",
                      "every number used", "a whole equation, with its = sign",
                      'to leave a number out ("once" without "every")',
                      "paid 0.1, 0: <answer> (3 + 5) / 4 </answer>"},
    "one-shot": set(),
    "no-example": {"a number on the right side"},
    "think-prefix": set(),
    "terse": {"one answer, with one equation"},
}


@each
def test_the_check_over_the_designs(design):
    found = {finding.what for finding in check_design(design)}
    assert EXPECTED[design.name] <= found
    if design.name not in ("seed", "tinyzero-base"):
        assert found == EXPECTED[design.name]


def test_a_prefix_has_to_be_put_back_before_grading():
    design = designs.DESIGNS["think-prefix"]
    assert [f.kind for f in check_design(design, prefix_graded=False)] == ["prefix"]
    frame = pd.DataFrame({"design": ["one-shot", "think-prefix"],
                          "completion": [GOOD, GOOD.removeprefix("<think>")]})
    assert list(designs.graded_text(frame)) == [GOOD, GOOD]


BROKEN = [  # what is replaced in our prompt, by what, and what the check has to say
    ("Use every number exactly once", "Use each number only once", "not said: every number used"),
    ("Use every number exactly once", "Use each number only once",
     'not paid: to leave a number out ("once" without "every")'),
    ("exactly once.", "exactly once. You may leave a number out.",
     "not paid: to leave a number out"),
    ("Write nothing before <think>", "Greet the player before <think>",
     "not paid: words before the thought"),
    ("Write nothing before <think>, nothing", "Write nothing", "not said: nothing before <think>"),
    ("nothing after </answer>, and", "and", "not said: nothing after </answer>"),
    (" = 14</answer>", "</answer>", "example: paid 0.1, 0: <answer>(8 - 6) * 7</answer>"),
    ("(8 - 6) * 7 = 14</answer>", "8 - 6 * 7 = 14</answer>",
     "example: paid 1, 0: <answer>8 - 6 * 7 = 14</answer>"),
    ("(8 - 6) * 7 = 14</answer>", "14 = (8 - 6) * 7</answer>",
     "not said: a number on the right side"),
    ("</think>\n<answer>(8", "</think> <answer>(8",
     "example: paid 0, 1: <think>8 - 6 = 2, 2 * 7 = 14</think> <answer>(8 - 6) * 7 = 14</answer>"),
    ("4, 11, 8", "[[4, 11, 8]]", "puzzle: the numbers stand in double brackets"),
    ("+ - * / and parentheses", "any operation", "not said: the operators + - * / only"),
    ("and parentheses", "** and parentheses", "not paid: powers"),
    ("equation that equals the target", "equation of them", "not said: the target's value"),
    ("one equation inside", "the equation and the answer inside",
     "not paid: the equation and the answer in one block"),
    ("Give the whole equation", "Join the digits if it helps. Give the whole equation",
     "not paid: joined digits"),
    ("one equation inside", "all equations that you find inside", "not paid: several equations"),
    ("one equation inside", "every equation you find inside", "not paid: several equations"),
    ("exactly one newline", "a space",
     "not paid: something else than one newline between </think> and <answer>"),
    ("Use every number exactly once", "Use every number; a number may be used twice",
     "not paid: to use a number twice"),
    ("Use every number exactly once", "You can only use each number once",
     'not paid: to leave a number out ("once" without "every")'),
    ("with its = sign", "with no '=' sign", "not paid: an expression without its = sign"),
    ("Use every number exactly once.", "Use every number exactly once. Reply as JSON.",
     "not checked: JSON, Markdown or another notation"),
    ("Use every number exactly once.", "Use every number exactly once. Reply as JSON.",
     "not paid: JSON, Markdown or another notation"),
    ("exactly once.", "exactly once, in at most 40 words.", "not checked: a length of the thought"),
    ("step by step", "in English", "not checked: a language"),
    ("exactly once.", "exactly once. Double-check your answer.",
     "not checked: a thought that is shown, true or checked"),
    ("exactly once.", "exactly once, without fractions.", "not checked: whole numbers on the way"),
    ("Use every number exactly once", "Use the numbers exactly once each, in the given order",
     "not checked: the numbers in their order"),
    ("one equation inside", "the shortest equation inside", "not checked: the shortest equation"),
    ("exactly once.", "exactly once. Sign it with your name.",
     "not known: Sign it with your name."),
    ("exactly once.", "exactly once. One of them\ncan stay unused.",
     "not known: One of them can stay unused."),
    ("Use every number exactly once.", "Use every number exactly once.\n- Be polite\n- Be fast\n",
     "not known: - Be polite"),
]


@pytest.mark.parametrize(("old", "new", "expected"), BROKEN)
def test_broken_prompts_are_found(old, new, expected):
    assert old in ASKED
    assert expected in [str(finding) for finding in check(ASKED.replace(old, new))]


@pytest.mark.parametrize(("old", "new"), [
    ("exactly once", ", none of them twice"),
    ("exactly once", "and never repeat one"),
    ("Use every number exactly once", "Use all the numbers; each can only be used once"),
    ("nothing after </answer>", "and do not include any other text"),
    ("exactly once", "without reusing any"),
    ("one equation inside", "one equation (not several equations) inside"),
    ("exactly one newline", "exactly one newline, no space between them,"),
    ("one equation inside", "one equation, in this order of blocks, inside"),
])
def test_prompts_that_say_the_same_are_left_alone(old, new):
    assert old in ASKED
    assert check(ASKED.replace(old, new)) == []


def test_what_the_check_does_not_see():
    """Said in its docstring: this test fails when the check learns it, and the words can go."""
    blind = ASKED.replace("exactly once.", "exactly once, though one of them can stay unused.")
    assert blind != ASKED and check(blind) == []


def test_rewards_that_look_at_what_ours_ignore_are_asked():
    def short(text, nums, target):  # pays no thought of more than 300 characters
        return (*both_rewards(text, nums, target), float(len(text) < 300))

    found = [str(f) for f in check(ASKED, rewards=short)]
    assert found == ["not said: a length of the thought"]
    both = ASKED.replace("exactly once.", "exactly once, in at most 40 words.")
    assert [str(f) for f in check(both, rewards=short)] == [
        "not checked: a length of the thought"]  # an empty thought is still paid


def test_a_rule_that_no_reward_checks_is_found():
    def lenient(text, nums, target):  # pays whatever stands around the answer
        return (both_rewards(text, nums, target)[1],)

    found = [finding for finding in check(ASKED, rewards=lenient) if finding.kind == "not checked"]
    assert {"nothing before <think>", "nothing after </answer>"} <= {f.what for f in found}


def test_rewards_that_do_not_pay_a_good_completion_are_refused():
    with pytest.raises(ValueError, match="for a good completion"):
        check(ASKED, rewards=lambda text, nums, target: (0.5,))


def test_examples_are_read_out_of_the_text():
    assert examples(ASKED) == [(EXAMPLE["completion"], EXAMPLE["nums"], EXAMPLE["target"])]
    ((completion, nums, target),) = examples("as in <answer>2 * 3 = 6</answer>")
    assert (nums, target) == ([2, 3], 6) and completion.endswith("<answer>2 * 3 = 6</answer>")
    assert examples("<think>...</think>\n<answer>...</answer>") == []
    strange = check(ASKED.replace("(8 - 6) * 7 = 14</answer>", "2x = 14</answer>"))
    assert "example" in [f.kind for f in strange]
    assert "can be" in str(check("as in <answer>two 2 = 2</answer>")[-1])


def test_a_design_that_forgets_or_repeats_the_puzzle_is_found():
    def forgets(nums, target):
        return build_messages([1, 2, 3], target)

    def repeats(nums, target):
        return build_messages(nums, f"{target}") + [{"role": "user", "content": f"{target}!"}]

    for build, words in ((forgets, "the numbers are not there"), (repeats, "the target is not")):
        found = check_design(designs.Design("broken", build, "a test"))
        assert any(words in f.what for f in found)


def test_every_permission_can_be_triggered_and_is_judged_by_the_rewards():
    paid = {grant.name for grant in PERMISSIONS
            if min(both_rewards(grant.followed, grant.nums, grant.target)) == 1}
    assert paid == {"a thought of several lines", "an answer on a line of its own"}


def test_a_template_writes_its_own_system_message_where_none_is_given():
    _, table, _ = designs.load_recorded()
    assert table["prompts"]["terse"]["text"].startswith("<|im_start|>system\nYou are a helpful AI")
    assert "helpful" not in table["prompts"]["one-shot"]["text"]
