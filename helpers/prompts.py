"""What the model is asked, and how its completion is taken apart."""

from reprlib import repr as short
from typing import NamedTuple

SYSTEM_PROMPT = (
    "You solve number puzzles. You first think inside <think> and </think>, trying combinations "
    "step by step. Then, on the next line, you write one equation inside <answer> and </answer>."
)

# Every clause is one that a reward checks; tests/test_prompts.py breaks them one by one.
INSTRUCTIONS = (
    "Combine the numbers with + - * / and parentheses into an equation that equals the target. "
    "Use every number exactly once. Write nothing before <think>, nothing after </answer>, and "
    "exactly one newline between </think> and <answer>. Give the whole equation with its = sign, "
    "as in this example for the numbers 8, 6, 7 and the target 14:\n"
)
EXAMPLE = {
    "nums": [8, 6, 7],
    "target": 14,
    "completion": "<think>8 - 6 = 2, 2 * 7 = 14</think>\n<answer>(8 - 6) * 7 = 14</answer>",
}


def user_prompt(nums, target):
    """Return the user's message for the numbers (int, in the order shown) and the target."""
    numbers = ", ".join(str(int(n)) for n in nums)
    return f"Numbers: {numbers}\nTarget: {int(target)}\n{INSTRUCTIONS}{EXAMPLE['completion']}"


def build_messages(nums, target):
    """Return the prompt of one puzzle as a list of chat messages (system, user)."""
    return [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": user_prompt(nums, target)},
    ]


def check_template(tokenizer):
    """Refuse a chat template with which no completion could have the form that is asked for.

    Raises
    ------
    ValueError
        If the rendered prompt does not hold the puzzle, or opens <think> or <answer> itself: the
        model's own text would then begin behind the tag, and its form would score 0.
    """
    from jinja2 import TemplateError

    messages = build_messages([31, 47, 59], 83)
    try:
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except (AttributeError, TypeError, ValueError, TemplateError) as error:
        raise ValueError(f"the tokenizer renders no chat messages ({error}): give it its model's "
                         "chat template, tokenizer.chat_template = ...") from error
    for message in messages:
        if message["content"].strip() not in prompt:
            raise ValueError(f"the chat template leaves out or changes the {message['role']}'s "
                             f"message; the prompt is {prompt!r}. Use one that keeps it")
    end = prompt.rpartition(messages[-1]["content"].strip())[2]
    if "<think" in end.lower() or "<answer" in end.lower():
        raise ValueError(f"the chat template ends the prompt with {end!r}: the tag is then no part "
                         "of the completion, and its form scores 0. Remove it from "
                         "tokenizer.chat_template")


def completion_text(completion):
    """Return a completion's text, whether trl passes it as one message or as a plain string.

    Raises
    ------
    TypeError, ValueError
        For anything else, such as several messages or a tool's call: no one text to grade.
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, list) or not all(isinstance(m, dict) for m in completion):
        raise TypeError(f"{short(completion)} ({type(completion).__name__}) is no completion: give "
                        "a text, or a list of one message")
    if len(completion) > 1 or any(message.get("tool_calls") for message in completion):
        raise ValueError(f"{len(completion)} messages, or a tool's call, {short(completion)}: the "
                         "rewards read one answer; train without tools")
    text = completion[0].get("content") if completion else None
    if not isinstance(text, str | None):
        raise TypeError(f"the content {short(text)} ({type(text).__name__}) is no text")
    return text or ""


class Parsed(NamedTuple):
    """The parts of a completion; a part that is not there is None."""

    think: str | None  # inside <think>, where the whole completion has the demanded structure
    answer: str | None  # inside <answer>, likewise
    equation: str | None  # inside <answer>, where there is exactly one such block anywhere


def parse_completion(text):
    r"""Take a completion apart.

    The structure is ``^<think>([\s\S]*?)</think>\n<answer>([\s\S]*?)</answer>$`` on the whole
    text, found with string searches: the regular expression takes quadratic time on a text that
    repeats its middle.
    """
    think = answer = None
    body = text.removesuffix("\n")  # `$` matches before one final newline, too
    if body.startswith("<think>") and body.endswith("</answer>"):
        middle = "</think>\n<answer>"
        cut = body.find(middle, len("<think>"))
        if 0 <= cut <= len(body) - len("</answer>") - len(middle):
            think = body[len("<think>") : cut]
            answer = body[cut + len(middle) : -len("</answer>")]
    equation = None
    if text.count("<answer>") == text.count("</answer>") == 1:
        start, end = text.index("<answer>") + len("<answer>"), text.index("</answer>")
        equation = text[start:end] if start <= end else None
    return Parsed(think, answer, equation)
