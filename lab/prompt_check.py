"""Check that a prompt says what the rewards demand, and that they pay what it promises.

The rewards are asked, not trusted: each rule and each promise comes with completions that break or
follow it, and what these are paid decides. What a prompt says is found by patterns: read a finding,
don't obey it. A sentence that sounds like a demand, or like leave to do something, and holds no
known pattern is reported as not known. Not seen are an unusual demand in the same sentence as a
known one, two known ones that contradict each other in words of their own, and whatever is meant
and not said.
"""

import re
from dataclasses import dataclass

from helpers.arithmetic import evaluate
from helpers.rewards import equation_reward_func, strict_format_reward_func

NUMS, TARGET = [4, 11, 8], 12
THOUGHT, ANSWER = "<think>11 - 8 = 3, 3 * 4 = 12</think>", "(11 - 8) * 4 = 12"
GOOD = f"{THOUGHT}\n<answer>{ANSWER}</answer>"
OTHER = ([53, 71, 97, 89], 61)  # a puzzle that no prompt's own text mentions


def _answered(equation):
    return f"{THOUGHT}\n<answer>{equation}</answer>"


@dataclass(frozen=True)
class Rule:
    """Something that a prompt can demand.

    Attributes
    ----------
    name : str
        The rule in words.
    said : str
        Regular expression (case ignored) of ways to say it, or to show it by an example.
    broken : tuple of str
        Completions that break this rule and no other.
    nums, target : list of int, int
        Their puzzle.
    """

    name: str
    said: str
    broken: tuple
    nums: tuple = tuple(NUMS)
    target: int = TARGET


@dataclass(frozen=True)
class Permission:
    """Something that a prompt can allow or invite.

    Attributes
    ----------
    name : str
        What is allowed, in words.
    said : str
        Regular expression (case ignored) of ways to say it.
    followed : str
        A completion that solves its puzzle in the allowed way.
    nums, target : list of int, int
        Its puzzle.
    unless : str
        Regular expression of words that take the permission back.
    """

    name: str
    said: str
    followed: str
    nums: tuple = tuple(NUMS)
    target: int = TARGET
    unless: str = r"(?!)"


_ALL = (r"(every|each|all)\b[^.]{0,60}exactly once|use (every|all)\b|all (of )?the numbers"
        r"|(every|each) number has to be|must use (every|each|all)")
_ONLY = r"(reply|respond|answer|write) (with )?only|nothing else|(no|not [a-z]+ any) other text"
_ONCE = r"(only|at most|more than)( [a-z]+){0,4} once\b"  # only once, can only be used once

RULES = (
    Rule("a thought between <think> and </think>", r"<think>", (f"<answer>{ANSWER}</answer>",)),
    Rule("one newline, and nothing else, between </think> and <answer>",
         r"(one|single) newline|(next|new) line|</think>\n<answer>",
         (GOOD.replace("\n", " "), GOOD.replace("\n", "\n\n"), GOOD.replace("\n", ""))),
    Rule("the answer between <answer> and </answer>", r"<answer>", (f"{THOUGHT}\n{ANSWER}",)),
    Rule("one answer, with one equation", r"\b(one|an|single) (equation|answer|expression)\b",
         (f"{GOOD}\n<answer>{ANSWER}</answer>", _answered("11 - 8 = 3 * 4 = 12"),
          _answered(f"{ANSWER}\n{ANSWER}"))),
    Rule("a whole equation, with its = sign", r"= sign|sign =|equals sign|= value"
         r"|<answer>[^<]*[0-9)] ?= ?[0-9][^<]*</answer>", (_answered("(11 - 8) * 4"),)),
    Rule("a number on the right side", r"= (value|target|result)|right side"
         r"|<answer>[^<]*[0-9)] ?= ?-?[0-9.]+\s*</answer>", (_answered("12 = (11 - 8) * 4"),)),
    Rule("the operators + - * / only", r"\+\W{0,4}-\W{0,4}\*\W{0,4}/",
         (_answered("(11 - 8) × 4 = 12"), _answered("(11 - 8) x 4 = 12"))),
    Rule("the target's value", r"\b(equals?|makes?|reach(es)?|get|gives?) (the target\b|[0-9]+)",
         (_answered("11 - 8 + 4 = 7"), _answered("11 + 8 - 4 = 12"))),
    Rule("every number used", _ALL, (_answered("4 + 8 = 12"),)),
    Rule("no number used twice", rf"exactly once|once only|{_ONCE}"
         r"|\b(none|no|not|never|without)\b[^.]{0,40}\b(twice|again|repeat\w*|re-?us\w+)",
         (_answered("(11 - 8) * 4 + 8 - 8 = 12"),)),
    Rule("no number that is not given", r"the numbers?\b|use each of|given numbers",
         (_answered("(11 - 8) * 4 + 1 - 1 = 12"),)),
    Rule("nothing before <think>", rf"nothing before|(begin|start)s? with <think>|{_ONLY}",
         (f"Sure! {GOOD}",)),
    Rule("nothing after </answer>", rf"nothing[^.]{{0,30}} after|ends? with </answer>|{_ONLY}",
         (f"{GOOD} Done.",)),
)

_LENGTH = r"(words?|sentences?|steps?|characters?|tokens?)"
_LANGUAGE = r"(arabic|chinese|english|french|german|hindi|japanese|portuguese|russian|spanish)"
_FORM = r"\b(json|yaml|xml|html|csv|markdown|latex)\b|\\boxed"

# What a prompt can demand, too, and rewards like ours never look at.
IGNORED = (
    Rule("JSON, Markdown or another notation", _FORM, (GOOD,)),
    Rule("a length of the thought", r"\b(at (most|least)|(no )?(more|fewer|less) than|under|up to"
         rf"|within|exactly) [0-9]+ {_LENGTH}\b|\b(briefly|concisely|in detail)\b"
         r"|\b(brief|concise|short|detailed) (thought|thinking|reasoning|explanation)",
         (GOOD.replace(THOUGHT, "<think></think>"), GOOD.replace("11 - 8 = 3,", "No. " * 500))),
    Rule("a language", rf"\bin {_LANGUAGE}\b", (GOOD.replace("11 - 8 = 3,", "11 moins 8: 3."),
                                              GOOD.replace("11 - 8 = 3,", "11 minus 8: 3."))),
    Rule("a thought that is shown, true or checked",
         r"\b(double-check|check|verify|prove)\b[^.]{0,40}\b(answer|result|equation|work|solution)"
         r"|\b(show|explain)\b[^.]{0,20}\b(work|steps?|reasoning)\b",
         (GOOD.replace(THOUGHT, "<think>2 + 2 = 5</think>"),)),
    Rule("whole numbers on the way", r"\b(intermediate|every step|each step|on the way)\b[^.]{0,60}"
         r"\b(whole|integers?|fractions?)\b|\b(no|never|without|avoid) (use |using )?"
         r"(fractions?|decimals?)", (_answered("8 / (3 - 8 / 3) = 24"),), (3, 3, 8, 8), 24),
    Rule("the numbers in their order", r"\bnumbers\b[^.]{0,40}\bin (the|this|their) "
         r"((given|same) )?order\b|order of the numbers", (GOOD,)),
    Rule("the shortest equation", r"\b(fewest|simplest|shortest|as few)\b|needless parenthes",
         (_answered("((11 - 8)) * (4) = 12"),)),
)

PERMISSIONS = (
    Permission("to leave a number out (\"once\" without \"every\")",
               _ONCE, _answered("4 + 8 = 12"), unless=_ALL),
    Permission("to leave a number out", r"may (leave|skip|omit)|need not use|not all of the"
               r"|(don't|do not) (have|need) to use (all|every)|as many (numbers )?as you",
               _answered("4 + 8 = 12")),
    Permission("to use a number twice", r"\b(may|can) (be )?(re-?used?\b|repeat"
               r"|used? (twice|again|several times|more than once))",
               _answered("(11 - 8) * 4 + 8 - 8 = 12")),
    Permission("several equations", r"\b(all|several|multiple|many|different|more) (of )?"
               r"((the|possible|correct|different) )*(equations|solutions|answers)\b"
               r"|\b(every|each|any) (equation|solution|answer)s? (that )?you\b",
               _answered(f"{ANSWER}\n4 * (11 - 8) = 12"),
               unless=r"(\b(not|never|no)|n't)\b[^.]{0,30}\b(equations|solutions|answers)\b"),
    Permission("something else than one newline between </think> and <answer>",
               r"(?<!no )\b(space|tab|(blank|empty) line) (between|after </think>|before <answer>)"
               r"|\bon the same line|</think> ?<answer>", GOOD.replace("\n", " ")),
    Permission("an expression without its = sign",
               r"\b(no|without)( an?| the| its)? \W?(=|equals?)\W? sign",
               _answered("(11 - 8) * 4")),
    Permission("JSON, Markdown or another notation", _FORM, f'{{"answer": "{ANSWER}"}}'),
    Permission("words before the thought", r"\b(greet|say hello|introduc)|first (explain|restate)",
               f"Sure! {GOOD}"),
    Permission("words after the answer", r"after </answer>,? (you may|add|explain|write|say)"
               r"|then (explain|comment)", f"{GOOD} Done."),
    Permission("the equation and the answer in one block",
               r"(equation|expression) and (the |its )?(final )?(answer|result|value)",
               _answered(f"{ANSWER}\n12")),
    Permission("the bare result as the answer", r"(just|only) the (number|result|value)",
               _answered("12")),
    Permission("powers", r"\*\*|\^|\bpowers?\b|exponent", _answered("2 ** 3 + 4 = 12"),
               (2, 3, 4), 12),
    Permission("division without remainder", r"//|integer division|round(ed|ing)? down",
               _answered("7 // 2 + 1 = 4"), (7, 2, 1), 4),
    Permission("joined digits", r"(join|concatenat)\w* (the )?(digits|numbers)",
               _answered("12 - 6 = 6"), (1, 2, 6), 6),
    Permission("the signs × and ÷", r"[×÷]", _answered("(11 - 8) × 4 = 12")),
    Permission("a thought of several lines", r"<think>|step by step",
               GOOD.replace(", 3 *", "\n3 *")),
    Permission("an answer on a line of its own", r"<answer>\n", _answered(f"\n{ANSWER}\n")),
)


_DEMAND = re.compile(
    r"\b(must|should|shall|(has|have|needs?) to|may|can|cannot|never|always|do not|don't|only)\b"
    r"|^\W*(please |then |also |finally |first )*(add|answer|append|avoid|be|begin|call|choose|do"
    r"|end|explain|finish|give|keep|list|make|mark|name|output|print|provide|put|reply|report"
    r"|respond|return|round|say|show|sign|solve|start|state|stop|tell|think|translate|try|use"
    r"|write)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=</answer>)\s+(?=[A-Z])"
                           r"|\n(?=\s*(?:[-*\u2022]|[0-9]+[.)]|[A-Z]))")


@dataclass(frozen=True)
class Finding:
    """One disagreement between a prompt and the rewards.

    Attributes
    ----------
    kind : str
        "not said": the rewards demand it and the prompt is silent. "not checked": the prompt
        demands it and the rewards pay without it. "not paid": the prompt allows it and the rewards
        punish it. "not known": a sentence that demands or allows something in words that no rule
        knows, so that the rewards were not asked. "example": its own example is not paid.
        "prefix": what is written for the model is missing when the rewards look. "puzzle": the
        puzzle is not there, or not plain.
    what : str
        The rule or the promise.
    """

    kind: str
    what: str

    def __str__(self):
        return f"{self.kind}: {self.what}"


def both_rewards(text, nums, target):
    """Return the format and the equation reward of one completion."""
    form = strict_format_reward_func([text])[0]
    return form, equation_reward_func([""], [text], [target], [list(nums)])[0]


def prompt_text(prompt):
    """Return a prompt's words: a string as it is, messages joined by newlines."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] for message in prompt)


def examples(text):
    """Return the worked examples in a prompt as (completion, nums, target).

    An example is an ``<answer>`` block with a digit. Where the prompt doesn't name its puzzle
    ("numbers ... and the target ...") it gets the one that it solves; where it shows no thought
    it gets ours: it is to be judged by what it shows.

    Raises
    ------
    ValueError
        If an example's left side is no arithmetic, and its puzzle is not named.
    """
    found = []
    for match in re.finditer(r"<answer>([^<]*[0-9][^<]*)</answer>", text):
        start = text.rfind("<think>", 0, match.start())
        whole = text[start : match.end()]
        framed = start >= 0 and re.fullmatch(r"<think>[^<]*</think>\s*<answer>[^<]*</answer>",
                                             whole)
        completion = whole if framed else f"{THOUGHT}\n{match[0]}"
        named = re.search(r"numbers \[*([0-9, ]+)\]*,? and the target ([0-9]+)\W*$",
                          text[: start if framed else match.start()])
        if named:
            nums, target = [int(n) for n in re.findall("[0-9]+", named[1])], int(named[2])
        else:
            left = match[1].partition("=")[0].strip()
            try:
                nums, target = [int(n) for n in re.findall("[0-9]+", left)], evaluate(left)
            except ValueError as error:
                raise ValueError(f"the example {match[0]!r} has no arithmetic that can be "
                                 f"computed on its left side ({error})") from error
        found.append((completion, nums, target))
    return found


def _says(text, entry):
    return re.search(entry.said, text, re.IGNORECASE) is not None


def check(text, prefix="", prefix_graded=False, rewards=both_rewards):
    """Return where a prompt's words and the rewards disagree.

    Parameters
    ----------
    text : str
        The prompt's words, from `prompt_text`, without the assistant prefix.
    prefix : str
        What is written for the model at the start of its turn.
    prefix_graded : bool
        Whether the grader puts the prefix back before it looks.
    rewards : callable
        Gives the rewards of a completion from its text, numbers and target, as a tuple that is
        all 1.0 for a perfect one.

    Returns
    -------
    list of Finding
        Empty if they agree.

    Raises
    ------
    ValueError
        If the rewards don't pay a good completion in full: then nothing can be told from a loss.
    """
    def lost(completion, nums=NUMS, target=TARGET):
        return any(value < 1 for value in rewards(completion, nums, target))

    if lost(GOOD):
        raise ValueError(f"these rewards pay {rewards(GOOD, NUMS, TARGET)} for a good completion, "
                         f"not 1.0 each: {GOOD!r} for {NUMS} and {TARGET}")
    found = []
    for rule in RULES + IGNORED:
        said = _says(text, rule)
        demanded = [lost(completion, rule.nums, rule.target) for completion in rule.broken]
        if any(demanded) and not said:
            found.append(Finding("not said", rule.name))
        if said and not all(demanded):
            found.append(Finding("not checked", rule.name))
    for grant in PERMISSIONS:
        granted = _says(text, grant) and not re.search(grant.unless, text, re.IGNORECASE)
        if granted and lost(grant.followed, grant.nums, grant.target):
            found.append(Finding("not paid", grant.name))
    for sentence in _SENTENCE_END.split(text):
        known = any(_says(sentence, entry) for entry in RULES + IGNORED + PERMISSIONS)
        if not known and _DEMAND.search(re.sub(r"</?\w+>", "", sentence)):
            found.append(Finding("not known", " ".join(sentence.split())))
    try:
        for completion, nums, target in examples(text):
            if lost(completion, nums, target):
                paid = ", ".join(f"{value:g}" for value in rewards(completion, nums, target))
                found.append(Finding("example", f"paid {paid}: {completion.split(chr(10))[-1]}"))
    except ValueError as error:
        found.append(Finding("example", str(error)))
    if prefix and not prefix_graded and lost(GOOD.removeprefix(prefix)):
        found.append(Finding("prefix", f"a completion after {prefix!r} is not paid unless the "
                                       "grader puts it back"))
    if "[[" in text:
        found.append(Finding("puzzle", "the numbers stand in double brackets"))
    return found


def check_design(design, prefix_graded=True, rewards=both_rewards):
    """Check a prompt design: its words, and that the puzzle reaches the model.

    Parameters
    ----------
    design : lab.prompt_designs.Design
        Anything with ``build`` and ``prefix``.
    prefix_graded, rewards
        As in `check`.

    Returns
    -------
    list of Finding
    """
    found = check(prompt_text(design.build(NUMS, TARGET)), design.prefix, prefix_graded, rewards)
    nums, target = OTHER
    shown = re.findall("[0-9]+", prompt_text(design.build(nums, target)))
    if [n for n in shown if int(n) in nums] != [str(n) for n in nums]:
        found.append(Finding("puzzle", "the numbers are not there once each, in their order"))
    if shown.count(str(target)) != 1:
        found.append(Finding("puzzle", "the target is not there exactly once"))
    return found
