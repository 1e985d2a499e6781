"""The playground: it agrees with the rewards, explains every lost point, and shows any text."""

import html
import re
import time
from html.parser import HTMLParser

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter

from helpers import playground as pg
from helpers.prompts import EXAMPLE
from helpers.rewards import equation_reward_func, strict_format_reward_func
from lab import cells

group_advantages = cells.run("06", "scratch")["group_advantages"]  # the lesson's own
NUMS, TARGET = [4, 11, 8], 12
GOOD = "<think>11 - 8 = 3\n3 * 4 = 12</think>\n<answer>(11 - 8) * 4 = 12</answer>"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>&lt;b&gt;\"'</pre></div>"
MINUS = GOOD.replace("(11 - 8)", "(11 \u2212 8)")
ODD = {
    "empty": "", "white space": " \n\t ", "megabyte": "x" * 1_000_000,
    "megabyte of tags": "<think></answer>" * 62_500, "megabyte of numbers": "4+" * 500_000,
    "a long answer": f"<answer>{'4+' * 500_000}</answer>",
    "markup": EVIL, "markup in the answer": f"<think></think>\n<answer>{EVIL} = 12</answer>",
    "markup in the thought": f"<think>{EVIL}</think>\n<answer>4 = 12</answer>",
    "Arabic digits": "<answer>\u0664*\u0663 = \u0661\u0662</answer>", "minus sign": MINUS,
    "NUL": GOOD.replace("8", "\0"), "lone surrogate": "<answer>\ud800 = \udfff</answer>",
    "right to left": "<answer>\u202e4 = 12</answer>", "half a tag": "<answer", "deep": "(" * 5000,
    "ten thousand equals": f"<answer>{'=' * 400}</answer>",
}


class Page(HTMLParser):
    """The elements, attributes and text that a browser would find."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.attributes, self.open, self.text, self.spans = set(), set(), [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.open.append(tag)
        if "pre" in self.open:
            self.spans.append(dict(attrs).get("data-part"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        # what the playground adds to the completion are the letters of the given numbers
        if "pre" in self.open and "sub" not in self.open:
            self.spans.append(data)


ELEMENTS = {"div", "p", "b", "i", "u", "s", "span", "mark", "pre", "small", "sub", "table",
            "thead", "tbody", "tr", "th", "td", "ul", "li"}
ATTRIBUTES = {"style", "title", "data-part", "data-score"}


def shown(page):
    """Check that a page holds none but the playground's own elements; return its text."""
    parsed = Page(page)
    assert parsed.elements <= ELEMENTS and parsed.attributes <= ATTRIBUTES
    assert "\0" not in page and not re.search("[\ud800-\udfff]", page)
    page.encode()
    return "".join(parsed.text)


def check(text, nums=NUMS, target=TARGET):
    found = pg.explain(text, nums, target)
    form = strict_format_reward_func([text])[0]
    equation = equation_reward_func([""], [text], [target], [nums])[0]
    assert (found.format_score, found.equation_score) == (form, equation)
    assert (found.format_reasons == ()) == (form == 1.0)
    assert (found.equation_reasons == ()) == (equation == 1.0)
    assert "".join(part.text for part in found.parts) == text
    assert {part.kind for part in found.parts} <= set(pg.KINDS)
    used = [part.given for part in found.parts if part.given is not None]
    assert sorted([*used, *found.unused]) == list(range(len(nums)))
    for reason in found.format_reasons + found.equation_reasons:
        assert reason == reason.strip() and len(reason) < 500
        reason.encode()
    return found


PIECES = st.sampled_from([
    "<think>", "</think>", "<answer>", "</answer>", "</think>\n<answer>", "\n", "\r", " ", "4",
    "11", "8", "44", "1.5", ".", "+", "-", "*", "/", "**", "//", "(", ")", "=", "12", "12.00001",
    "11.99998", "-12", "\u2212", "\u0664", "\u00a0", "\x1c", "\0", "\ud800", "words", "9" * 13])
ANSWERS = st.sampled_from([
    "(11 - 8) * 4 = 12", "4*(11-8) = 12.00001", "4*(11-8)=12.00002", "11-8+4 = 7", "4*3 = 12",
    "(11-8)*4*4 = 48", "(11-8)*4", "4/(8-8)*11 = 12", "(11 - 8) * 4 = 12 = 12", "11+8-4 = 12"])


def test_the_newline_that_is_asked_for_is_no_text_outside_the_parts():
    kinds = [part.kind for part in pg.explain(GOOD + "\n", NUMS, TARGET).parts]
    assert kinds.count("newline") == 2 and "outside" not in kinds
    wrong = GOOD.replace("</think>\n", "</think>\n\n")
    kinds = [part.kind for part in pg.explain(wrong, NUMS, TARGET).parts]
    assert "newline" not in kinds and kinds.count("outside") == 1


@settings(max_examples=600, deadline=None)
@given(st.one_of(
    st.text(st.characters(codec=None, exclude_categories=()), max_size=60),
    st.lists(PIECES, max_size=14).map("".join),
    st.tuples(st.lists(PIECES, max_size=5).map("".join), ANSWERS,
              st.lists(PIECES, max_size=3).map("".join)).map(
        lambda t: f"<think>{t[0]}</think>\n<answer>{t[1]}{t[2]}</answer>"),
    st.tuples(st.lists(PIECES, max_size=10).map("".join)).map(
        lambda t: f"<think></think>\n<answer>{t[0]}</answer>")))
@example(GOOD)
@example(GOOD + "\n")
@example("<think></think>\n<answer></answer>")
@example("<think>use <answer> tags</think>\n<answer>(11 - 8) * 4 = 12</answer>")
def test_a_reward_has_no_reasons_exactly_when_it_is_full(text):
    check(text)
    shown(pg.render(text, NUMS, TARGET))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_one_edit_of_a_good_completion(data):
    """Most random texts fail everything; these are one character away from both rewards."""
    place = data.draw(st.integers(0, len(GOOD)))
    new = data.draw(st.sampled_from(["", "\n", " ", "=", "4", "<", "\u2212", ".", "0"]))
    cut = data.draw(st.integers(0, 1))
    check(GOOD[:place] + new + GOOD[place + cut :])


@settings(max_examples=200, deadline=None)
@given(st.integers(11_999_960, 12_000_040), st.integers(-30, 30))
def test_the_tolerance_is_the_rewards(millionths, shift):
    """Values and right sides on both sides of 1e-5 and 2e-5 from the target."""
    top = 12 * 10**6 + shift
    check(f"<think></think>\n<answer>{top} / 1000000 = {millionths / 1e6:.6f}</answer>",
          [top, 10**6], 12)


def test_recorded_completions_agree():
    recorded = pg.recorded_completions()
    assert len(recorded) == 24_450 and recorded["run"].nunique() == 5
    lost = 0
    for row in recorded.sample(1500, random_state=0).itertuples():
        lost += bool(check(row.completion, *pg.parse_puzzle(row.puzzle)).equation_reasons)
    assert 300 < lost < 1200


REASONS = {
    # (format, equation): what has to stand among the reasons
    GOOD: ((), ()),
    GOOD + " Done!": (("after </answer> stands “ Done!”",), ()),
    "Well: " + GOOD: (("before <think> stands “Well: ”",), ()),
    GOOD.replace("= ", "= " + " " * 500): ((), ("has 517 characters; at most 512 are read",)),
    GOOD.replace("\n<", " <"): (("between </think> and <answer> stands “ ”",), ()),
    GOOD.replace("\n<", "<"): (("between </think> and <answer> there is no newline",), ()),
    GOOD.replace("(11", "So (11"): (("“S” (U+0053, LATIN CAPITAL LETTER S)",),
                                    ("not among the given numbers: “So”",)),
    MINUS: (("“\u2212” (U+2212, MINUS SIGN)",), ("only integers, + - * / and parentheses",)),
    GOOD.replace(" = 12<", "<"): (("the answer has no =",), ("0 equals signs",)),
    GOOD.replace("= 12<", "= 12\n4 = 4<"): (("the answer has 2 lines",), ("2 equals signs",)),
    GOOD.replace("= 12<", "=<"): ((), ("the right side is empty",)),
    GOOD.replace("= 12<", "= 12.<"): ((), ("“ 12.”, is not a plain number",)),
    GOOD.replace("* 4 =", "* 4 * 4 ="): ((), ("4 is given once and used twice",
                                              "the left side is 48, not the target 12",
                                              "the two sides differ: 48 is not 12")),
    GOOD.replace("- 8)", ")"): ((), ("8 is not used",)),
    GOOD.replace("- 8)", "- 7)"): ((), ("not among the given numbers: “7”", "8 is not used")),
    GOOD.replace("* 4", "** 4"): ((), ("only the operators + - * / are allowed",)),
    GOOD.replace("- 8)", "- 8 / (4 - 4))"): ((), ("divides by zero",)),
    GOOD * 2: (("the answer has 3 lines",), ("not 2 and 2",)),
    EXAMPLE["completion"]: ((), ("the right side is 14, not the target 12",)),
    "<answer>(11 - 8) * 4 = 12</answer>": (("there is no <think>", "there is no </think>"), ()),
    "</answer><answer>": (("there is no </think>",), ("</answer> stands before <answer>",)),
    GOOD.replace("11 - 8) * 4", "4"): ((), ("11 is not used",)),
    "": (("there is no <think>", "there is no </think> and no <answer>", "there is no </answer>"),
         ("not 0 and 0",)),
}


@pytest.mark.parametrize("text", REASONS, ids=lambda text: ascii(text[-40:]))
def test_the_reasons_name_the_faults(text):
    found = check(text)
    for wanted, given_reasons in zip(REASONS[text], (found.format_reasons, found.equation_reasons),
                                     strict=True):
        assert bool(wanted) == bool(given_reasons)
        for words in wanted:
            assert any(words in reason for reason in given_reasons), given_reasons
    assert all(html.escape(reason) in pg.render(text, NUMS, TARGET)
               for reason in found.format_reasons + found.equation_reasons)


def test_no_reason_is_given_for_what_is_allowed():
    """A newline at the end is; and every fault of an equation is named once."""
    assert pg.explain("x" + GOOD + "\n", NUMS, TARGET).format_reasons == (
        "before <think> stands “x”; nothing may",)
    assert pg.explain("<answer>5 * 2 = 10</answer>", [2, 5, 5], 10).equation_reasons == (
        "5 is given twice and used once",)


@pytest.mark.parametrize("nums, target", [
    ([4.0, 11.0, 8.0], 12.0), (np.array([4, 11, 8], np.int32), np.float32(12)),
    (torch.tensor([4, 11, 8]), torch.tensor(12)), ((4, np.int64(11), 8), np.array(12))])
def test_whole_numbers_of_any_type_are_numbers(nums, target):
    assert pg.explain(GOOD, nums, target) == pg.explain(GOOD, NUMS, TARGET)
    assert pg.render(GOOD, nums, target) == pg.render(GOOD, NUMS, TARGET)
    assert pg.render_group({"a": GOOD, "b": ""}, nums, target) == pg.render_group(
        {"a": GOOD, "b": ""}, NUMS, TARGET)
    assert pg.write_puzzle(nums, target) == "4, 11, 8 -> 12"


@pytest.mark.parametrize("show", [
    pg.explain, pg.render, lambda *args: pg.write_puzzle(*args[1:]),
    lambda text, *puzzle: pg.playground(pg.recorded_completions().head(), {"a": (text, *puzzle)})],
    ids=["explain", "render", "write_puzzle", "playground"])
@pytest.mark.parametrize("nums, target", [
    (NUMS, 12.5), ([4, 11, 8.25], 12), (NUMS, "12"), ("4 11 8", 12), (NUMS, None)])
def test_what_is_no_puzzle_is_refused_and_not_rounded(show, nums, target):
    with pytest.raises((TypeError, ValueError), match=r"12\.5|8\.25|'12'|'4 11 8'|None"):
        show(GOOD, nums, target)


def test_each_number_is_shown_where_it_is_used():
    found = pg.explain("<answer>5 * (2 + 5) - 5 * 05 = 1</answer>", [2, 5, 5], 1)
    numbers = [(part.kind, part.text, part.given) for part in found.parts if "number" in part.kind]
    assert numbers == [("number", "5", 1), ("number", "2", 0), ("number", "5", 2),
                       ("wrong number", "5", None), ("wrong number", "05", None)]
    assert pg.explain("<answer>5 = 5</answer>", [2, 5, 5], 1).unused == (0, 2)
    page = pg.render("<answer>5 = 5</answer>", [2, 5, 5], 1)
    assert page.count("(not used)") == 2 and re.search(r">5<sub [^>]*>b</sub></b>", page)


def test_the_page_holds_the_whole_completion_and_the_scores():
    parsed = Page(pg.render(GOOD, NUMS, TARGET))
    assert "".join(x for x in parsed.spans if x and x not in pg.KINDS) == GOOD
    page = pg.render(GOOD + "!", NUMS, TARGET)
    assert re.findall(r'data-score="(\w+)">([\d.]+)<', page) == [
        ("format", "0.0"), ("equation", "1.0")]
    assert page.count("nothing is missing") == 1


@pytest.mark.parametrize(("extra", "cut"), [(0, False), (1, True), (3000, True)])
def test_a_long_completion_is_cut_at_the_limit_across_its_parts(extra, cut):
    tail = "</think>\n<answer>(11 - 8) * 4 = 12</answer>"
    text = "<think>" + "4" * (pg.LONGEST_SHOWN + extra - len(tail) - 7) + tail
    page = pg.render(text, NUMS, TARGET)
    assert "".join(x for x in Page(page).spans if x and x not in pg.KINDS) == text[:20_000]
    assert (f"{len(text):,} characters: the first 20,000 are shown" in page) == cut
    assert re.findall(r'data-score="\w+">([\d.]+)<', page) == ["1.0", "1.0"]  # of the whole text


def test_long_reasons_are_shortened_and_say_how_much_is_left_out():
    others = pg.explain("<answer>91 + 92 + 93 + 94 + 95 = 12</answer>", NUMS, TARGET)
    assert "not among the given numbers: “91”, “92”, “93”, “94”, 1 more" in others.equation_reasons
    four = pg.explain("<answer>91 + 92 + 93 + 94 = 12</answer>", NUMS, TARGET)
    assert "not among the given numbers: “91”, “92”, “93”, “94”" in four.equation_reasons
    for length, end in ((40, ""), (41, "…")):
        found = pg.explain("w" * length + GOOD, NUMS, TARGET)
        assert found.format_reasons == (
            f"before <think> stands “{'w' * 40}{end}”; nothing may",)
    thirds = pg.explain("<answer>4 / 3 + 0 = 12</answer>", [4, 3, 0], TARGET)
    assert "the left side is 4/3, not the target 12" in thirds.equation_reasons
    long = "<answer>100000000001 / 100000000003 / 3 = 12</answer>"
    assert "the left side is about 0.333333333327, not the target 12" in pg.explain(
        long, [100000000001, 100000000003, 3], TARGET).equation_reasons


def test_letters_and_grounds_go_round():
    nums = list(range(1, 29))
    page = pg.render("", nums, 5)
    letters = re.findall(r'title="given number (\w)" style="[^"]*background:(#\w+)"', page)
    assert "".join(letter for letter, _ in letters) == "abcdefghijklmnopqrstuvwxyzab"
    assert len({ground for _, ground in letters}) == 6 and letters[0][1] == letters[6][1]
    assert all(one[1] != other[1] for one, other in zip(letters, letters[1:], strict=False))


def test_a_bar_begins_at_the_middle_and_is_as_long_as_its_advantage():
    texts = {f"{i}": GOOD if i == 0 else "" for i in range(16)}
    bars = re.findall(r'3.5em">([+-][\d.]+)</span><span [^>]*margin-left:(\d+)px;width:(\d+)px;'
                      r"background:(#\w+)", pg.render_group(texts, NUMS, TARGET))
    assert bars == [("+3.75", "60", "60", "#0072b2")] + [("-0.25", "55", "5", "#d55e00")] * 15
    half = pg.render_group({"a": GOOD, "b": ""}, NUMS, TARGET)
    assert "margin-left:60px;width:14px" in half and "margin-left:46px;width:14px" in half


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_text_is_explained_and_shown_as_text(text):
    start = time.process_time()
    check(text)
    page = pg.render(text, NUMS, TARGET)
    group = pg.render_group({"one": text, text[:50]: GOOD}, NUMS, TARGET, (1.0, 0.5))
    assert time.process_time() - start < 5  # in practice below 0.5 s
    words = shown(page)
    shown(group)
    assert len(page) < 3_000_000
    if not text.strip():
        assert "The completion is empty" in words
    if len(text) > pg.LONGEST_SHOWN:
        assert f"{len(text):,} characters" in words
    if "script" in text:
        assert "<script>alert(1)</script>" in words and "<script" not in page


def test_messages_are_escaped():
    assert EVIL in shown(pg.message(EVIL))


def test_what_cannot_be_seen_is_written_out():
    words = shown(pg.render("\0\ud800\u202e\u200b\r", NUMS, TARGET))
    assert "‹U+0000›‹U+D800›‹U+202E›‹U+200B›‹U+000D›" in words
    assert "What a page cannot show is written out" in words
    assert "Note" not in shown(pg.render(GOOD + "\n\té\u2212", NUMS, TARGET))


@given(st.lists(st.sampled_from([0.0, 0.1, 1.0, 1.1, 2.0]), min_size=2, max_size=16))
def test_advantages_are_those_of_the_trainer(rewards):
    ours = pg.advantages(rewards)
    assert ours == pytest.approx(
        group_advantages(torch.tensor(rewards, dtype=torch.float64), len(rewards)).numpy())
    assume(len(set(rewards)) > 1)
    assert np.argmax(ours) == np.argmax(rewards) and abs(ours.sum()) < 1e-9


def test_advantages_need_a_group():
    with pytest.raises(ValueError, match="two rewards or more"):
        pg.advantages([1.0])
    assert "compare a group" in pg.render_group({"one": GOOD}, NUMS, TARGET)


@pytest.mark.parametrize("text", [
    "", "4 11 8", "4, 11, 8 ->", "4 -> 12", "-4, 3 -> 1", "\u0664, 3 -> 1", "4, 3 -> \u0661",
    "1, 2, 3, 4, 5, 6, 7 -> 8", "4\0, 3 -> 1", "4, 3 -> \ud800", EVIL, "1," * 500_000 + "1 -> 1",
    "4, 3 \u2212> 7", "1234567, 3 -> 7", "4.5, 3 -> 7"])
def test_a_puzzle_that_is_none_is_refused_with_the_form(text):
    with pytest.raises(ValueError, match="numbers, an arrow and the target: 4, 11, 8 -> 12"):
        pg.parse_puzzle(text)


def test_puzzles_are_read_as_they_are_written():
    assert pg.parse_puzzle(" 4 11,8 = 12\n") == ([4, 11, 8], 12)
    assert pg.parse_puzzle("4,11,8→12") == ([4, 11, 8], 12)
    assert pg.parse_puzzle("1 2 3 4 5 123456 -> 654321") == ([1, 2, 3, 4, 5, 123456], 654321)
    assert pg.parse_puzzle("4, 3" + " " * 91 + "-> 12") == ([4, 3], 12)  # 100 characters
    with pytest.raises(ValueError, match="Write a puzzle"):
        pg.parse_puzzle("4, 3" + " " * 92 + "-> 12")
    assert pg.parse_puzzle(pg.write_puzzle(np.array([4, 11, 8]), np.int64(12))) == (NUMS, TARGET)


@pytest.fixture(scope="module")
def recorded():
    return pg.recorded_completions()


def test_groups_are_of_one_policy_and_worth_looking_at(recorded):
    assert len(set(pg.TELLING)) == 12
    for i, puzzle in enumerate(pg.TELLING):
        group = pg.group_of(recorded, puzzle)
        nums, target = pg.parse_puzzle(puzzle)
        found = [pg.explain(text, nums, target) for text in group.values()]
        assert len(group) == 5 and {x.equation_score for x in found} == {0.0, 1.0}
        scores = {(x.format_score, x.equation_score) for x in found}
        assert (len(scores) == 3) == (i < 2)


class Driven:
    """The widgets by what stands on them, as a reader finds them; the text box is "completion"."""

    def __init__(self, box):
        self.box, self.found, page = box, {}, []
        parts = [box]
        while parts:
            widget = parts.pop(0)
            parts = [*getattr(widget, "children", ()), *parts]
            if isinstance(widget, widgets.HTML):
                page.append(widget)
            elif isinstance(widget, widgets.Textarea):
                self.found["completion"] = widget
            elif not hasattr(widget, "children"):
                self.found[widget.description] = widget
        self.guide, _, self.verdict_page, self.group_page = page

    def __getitem__(self, name):
        return self.found[name]

    @property
    def label(self):
        return self["completion"].description

    @property
    def verdict(self):
        return self.verdict_page.value

    @property
    def group(self):
        return self.group_page.value

    @property
    def scores(self):
        return [float(x) for x in re.findall(r'data-score="\w+">([\d.]+)<', self.verdict)]

    @property
    def advantages(self):
        return [float(x) for x in re.findall(r'"advantage" [^>]*>([+-][\d.]+)<', self.group)]


@pytest.fixture
def lab(recorded):
    return Driven(pg.playground(recorded))


@pytest.fixture
def bare(recorded):
    return Driven(pg.playground(recorded, {}))


def test_it_starts_with_a_right_completion_a_task_and_a_group(lab):
    assert lab["puzzle"].value == lab["recorded"].value == pg.TELLING[0]
    assert lab.label == "completion (example: right)"
    assert lab.scores == [1.0, 1.0] and len(lab.advantages) == 6
    assert "delete the newline between </think> and <answer>" in html.unescape(lab.guide.value)
    assert lab["completion"].continuous_update and lab["yours"].disabled


def test_the_first_task_has_the_answer_that_it_asks_for(lab):
    lab["completion"].value = lab["completion"].value.replace("</think>\n<answer>",
                                                              "</think><answer>")
    assert lab.scores == [0.0, 1.0]
    assert "between </think> and <answer> there is no newline" in html.unescape(lab.verdict)


def test_without_presets_it_starts_with_a_recorded_completion(bare, recorded):
    assert bare["completion"].value == next(iter(pg.group_of(recorded, pg.TELLING[0]).values()))
    assert bare.label == "completion (1 of 30: before training, temperature 1, run cpu-seed0)"
    assert len(bare.scores) == 2 and len(bare.advantages) == 5


def test_each_preset_has_a_button_and_shows_what_its_name_says(lab):
    for name, scores in {"a text after the end": [0.0, 1.0], "words in the answer": [0.1, 0.0],
                         "no thought": [1.0, 1.0], "a number three times": [1.0, 0.0],
                         "right": [1.0, 1.0]}.items():
        lab["puzzle"].value = "4, 11, 8 -> 12"
        lab[name].click()
        text, nums, target = pg.PRESETS[name]
        assert lab["puzzle"].value == pg.write_puzzle(nums, target) == pg.TELLING[0]
        assert lab["completion"].value == text and lab.scores == scores
        assert lab.label == f"completion (example: {name})"
    assert set(pg.PRESETS) <= set(lab.found)


def test_presets_of_ones_own(recorded):
    """They may be of a puzzle that nothing is recorded for: then they are the group."""
    mine = {"good": (GOOD, NUMS, TARGET), "bad <b>": ("\ud800", [11, 4, 8], TARGET)}
    lab = Driven(pg.playground(recorded, mine))
    assert lab["completion"].value == GOOD and lab["puzzle"].value == "4, 11, 8 -> 12"
    assert lab.scores == [1.0, 1.0] and lab.advantages == [0.71, -0.71]
    assert "example: bad <b>" in shown(lab.group)
    lab["bad <b>"].click()
    assert lab["completion"].value == "\ufffd" and lab["puzzle"].value == "11, 4, 8 -> 12"
    lab["completion"].value = GOOD + "!"
    assert len(lab.advantages) == 3 and "yours 1" in lab.group


def test_typing_scores_at_once(lab):
    lab["puzzle"].value = "4, 11, 8 -> 12"
    lab["completion"].value = GOOD
    assert lab.scores == [1.0, 1.0]
    lab["completion"].value = GOOD[:-1]
    assert lab.scores == [0.0, 0.0] and "there is no &lt;/answer&gt;" in lab.verdict
    assert lab.label == "completion (yours 1)" and lab.advantages == []


def test_stepping_goes_round_the_recorded_completions(bare, recorded):
    rows = recorded[recorded["puzzle"] == bare["puzzle"].value]
    seen = []
    for _ in range(len(rows)):
        seen.append(bare["completion"].value)
        bare["next ▶"].click()
    assert seen == rows["completion"].tolist() and bare["completion"].value == seen[0]
    bare["◀ previous"].click()
    assert bare.label == "completion (30 of 30: after training, temperature 0, run cpu-seed4)"
    assert bare["completion"].value == seen[-1]


def test_what_was_typed_survives_everything(lab, recorded):
    lab["completion"].value = "mine"
    assert lab.label == "completion (yours 1)" and not lab["yours"].disabled
    lab["next ▶"].click()  # round the end, to the first example
    assert lab["completion"].value == pg.RIGHT
    assert lab.label == "completion (example: right)"
    lab["◀ previous"].click()
    assert (lab["completion"].value, lab.label) == ("mine", "completion (yours 1)")
    for name in ("right", "next ▶", "next ▶", "no thought"):
        lab[name].click()
    lab["completion"].value += "!"  # an example, changed, takes no place of an older text
    assert lab.label == "completion (yours 2)"
    lab["completion"].value += "?"
    lab["recorded"].value = pg.TELLING[3]
    lab["yours"].click()
    assert lab["completion"].value == pg.PRESETS["no thought"][0] + "!?"
    assert lab["puzzle"].value == pg.TELLING[3]  # it is tried on the new puzzle
    lab["◀ previous"].click()
    assert (lab["completion"].value, lab.label) == ("mine", "completion (yours 1)")
    lab["completion"].value = "mine, longer"
    lab["puzzle"].value = "no puzzle"
    lab["next ▶"].click()
    lab["◀ previous"].click()
    assert lab["completion"].value == "mine, longer" and "Write a puzzle" in lab.verdict


def test_a_new_puzzle_brings_its_own_completion(lab, recorded):
    lab["completion"].value = "mine"
    lab["recorded"].value = puzzle = pg.TELLING[2]
    assert lab["puzzle"].value == puzzle
    assert lab["completion"].value == pg.group_of(recorded, puzzle)["sample 1"]
    lab["puzzle"].value = "4, 11, 8 -> 12"
    assert lab["completion"].value == "" and "The completion is empty" in lab.verdict
    assert lab.label == "completion (none recorded for this puzzle)"
    assert lab["recorded"].value == ""
    assert "none is recorded for this puzzle" in lab.group


def test_the_same_puzzle_written_otherwise_keeps_what_is_shown(lab):
    lab["completion"].value = pg.RIGHT + "!"
    lab["puzzle"].value = "12 11 8 = 44"
    assert lab["puzzle"].value == "12 11 8 = 44"  # not corrected while one types
    assert lab["completion"].value == pg.RIGHT + "!" and lab["recorded"].value == pg.TELLING[0]
    assert "Given: 12a, 11b, 8c" in shown(lab.verdict)


def test_a_puzzle_that_was_broken_can_be_chosen_again(lab):
    lab["puzzle"].value = pg.TELLING[0] + "x"
    assert lab["recorded"].value == "" and "Write a puzzle" in lab.verdict
    lab["recorded"].value = pg.TELLING[0]
    assert lab["puzzle"].value == pg.TELLING[0] and lab.scores == [1.0, 1.0]


def test_sliders_move_the_advantages(lab):
    lab["completion"].value = "nothing"
    before = lab.advantages
    assert len(before) == 6 and sum(before) == pytest.approx(0, abs=0.03)
    lab["equation weight"].value = 0.2
    after = lab.advantages
    assert after != before
    lab["format weight"].value = lab["equation weight"].value = 0
    assert lab.advantages == [0.0] * 6
    assert "every advantage is 0, and the group teaches nothing" in lab.group
    assert "weight" not in lab.verdict  # the scores themselves do not move
    lab["format weight"].value = lab["equation weight"].value = 1
    assert lab.advantages == before


def test_a_page_without_a_kernel_shows_a_picture_of_the_start(recorded, monkeypatch):
    stored = []
    monkeypatch.setattr(pg, "display", lambda bundle, raw: stored.append(bundle))
    lab = Driven(pg.playground(recorded, {"evil": (EVIL + "KEY FIRST", NUMS, TARGET)}))
    DisplayFormatter().format(lab.box)  # as at the end of a cell
    still, live = stored
    assert live["application/vnd.jupyter.widget-view+json"]["model_id"] == lab.box.model_id
    assert live["text/plain"] == ""  # this is what a page without a kernel shows in its place
    [key] = [name.removesuffix("-live") for name in lab.box._dom_classes]
    assert f".{key} {{ display: none }}" in lab.guide.value
    # GitHub drops styles and scripts and their text; what is left is the playground's own elements
    page = re.sub(r"(?s)<(style|script)>.*?</\1>", "", still["text/html"])
    assert f'<div class="{key}">' in page
    words = shown(page.replace(f' class="{key}"', ""))
    assert EVIL + "KEY FIRST" in words and "Given: 4a (not used), 11b" in words
    assert shown(lab.verdict) in words and shown(lab.group) in words


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_text_in_every_widget_gives_a_message(lab, text):
    lab["completion"].value = text
    shown(lab.verdict), shown(lab.group)
    assert len(lab.scores) == 2 and "<li>" in lab.verdict
    lab["puzzle"].value = text
    assert "Write a puzzle" in shown(lab.verdict) and lab.group == ""
    lab["next ▶"].click()  # nothing breaks, and what was typed is still there
    lab["yours"].click()
    assert lab["completion"].value == text and "Write a puzzle" in lab.verdict
    lab["puzzle"].value = "4, 11, 8 -> 12"
    lab["completion"].value = GOOD
    assert lab.scores == [1.0, 1.0]


@pytest.mark.parametrize("name", ["completion", "puzzle"])
def test_a_lone_surrogate_from_the_page_can_be_sent_back(lab, name):
    lab[name].set_state({"value": "4 \ud800 \U0001f600"})
    assert lab[name].value == "4 \ufffd \U0001f600"
    assert "surrogate pair" in lab.verdict or "Write a puzzle" in lab.verdict
