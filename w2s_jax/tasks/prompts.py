"""How a question is put to a model: the text before the answer, and the strings that the model may continue it with.

Layouts, for the question "What melts?" with the options "ice" and "iron":

    letter    Question: What melts?         cloze     Question: What melts?      direct    What melts?
               A. ice                                 Answer:
               B. iron
              Answer:
              candidates " A", " B"         candidates " ice", " iron"           candidates " ice", " iron"

For free answers, "Add 3 and 4.":

    boxed     Add 3 and 4.                                            worked    Question: Add 3 and 4.
                                                                                Answer:
              Reason step by step, and put the final answer
              within \\boxed{}.

              an answer: \\boxed{7}                                   an answer: " \\boxed{7}"

`boxed` asks for the form (zero-shot, chat); `worked` lets demonstrations show it (few-shot, base models).

Demonstrations are answered questions in the same layout, separated by blank lines; under a chat template they are turns. Of
a free answer they show the text that the task gives for it, such as a worked solution.

Source: OLMES, arXiv 2406.08446, for `letter` (its multiple-choice formulation) and `cloze`: one layout for all data sets,
    and a space before every letter, so that it is the same token as the letter to be answered. The space belongs to the
    answer and not to the prompt (arXiv 2509.15020). Chat: few-shot examples as turns, as lm-evaluation-harness does.
Deviations:
    1. No task-specific wording (OLMES continues a HellaSwag or SocialIQA context without "Question:").
    2. No subject line before MMLU questions, as in OLMES and unlike lm-evaluation-harness.
    3. `boxed` and `worked` follow the conventions of MATH's users (arXiv 2206.14858, arXiv 2409.12122) in words of our own.
"""

import dataclasses
import difflib
from collections.abc import Callable, Sequence

from w2s_jax.types import Question

VERSION = "2"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class Ask:
    """A question as a model sees it.

    Attributes:
        prompt: everything before the answer.
        candidates: what the model may continue with, one for each option, in order; empty in free generation.
        lead: what stands between the prompt and an answer: a space, nothing under a chat template.
        around: what stands before and after a final answer that is written out.
    """

    prompt: str
    candidates: tuple[str, ...]
    lead: str = " "
    around: tuple[str, str] = ("", "")


Style = Callable[[Question], Ask]
Messages = list[dict[str, str]]


def letter(question: Question) -> Ask:
    """Shows lettered options and asks for a letter.

    >>> letter(Question("1", "demo", "What melts?", ("ice", "iron"))).prompt
    'Question: What melts?\\n A. ice\\n B. iron\\nAnswer:'

    Raises:
        ValueError: no options, or more than 26.
    """
    if not 1 <= len(question.options) <= len(LETTERS):
        raise ValueError(
            f"question {question.id!r} has {len(question.options)} options; style 'letter' takes 1 to {len(LETTERS)}: "
            "choose another style in the config, 'cloze' or 'direct'"
        )
    lines = "".join(f" {name}. {option}\n" for name, option in zip(LETTERS, question.options, strict=False))
    return Ask(f"Question: {question.prompt}\n{lines}Answer:", tuple(f" {name}" for name in LETTERS[: len(question.options)]))


def cloze(question: Question) -> Ask:
    """Hides the options and asks for the answer's own words.

    >>> cloze(Question("1", "demo", "What melts?", ("ice", "iron")))
    Ask(prompt='Question: What melts?\\nAnswer:', candidates=(' ice', ' iron'), lead=' ', around=('', ''))
    """
    return Ask(f"Question: {question.prompt}\nAnswer:", tuple(f" {option}" for option in question.options))


def direct(question: Question) -> Ask:
    """Adds nothing to the prompt; for tokenizers of whole words, and for prompts that are complete in themselves.

    >>> direct(Question("1", "demo", "3 + 4 =", ("7", "8")))
    Ask(prompt='3 + 4 =', candidates=(' 7', ' 8'), lead=' ', around=('', ''))
    """
    return Ask(question.prompt, tuple(f" {option}" for option in question.options))


BOX = ("\\boxed{", "}")


def boxed(question: Question) -> Ask:
    r"""Asks for reasoning and for a final answer in a box.

    >>> boxed(Question("1", "demo", "Add 3 and 4.")).prompt
    'Add 3 and 4.\n\nReason step by step, and put the final answer within \\boxed{}.'
    """
    prompt = f"{question.prompt}\n\nReason step by step, and put the final answer within {''.join(BOX)}."
    return Ask(prompt, tuple("\n\n" + option.join(BOX) for option in question.options), "\n\n", BOX)


def worked(question: Question) -> Ask:
    r"""Asks without instructions, answers in a box: demonstrations show how.

    >>> worked(Question("1", "demo", "Add 3 and 4."))
    Ask(prompt='Question: Add 3 and 4.\nAnswer:', candidates=(), lead=' ', around=('\\boxed{', '}'))
    """
    return Ask(f"Question: {question.prompt}\nAnswer:", tuple(" " + option.join(BOX) for option in question.options), " ", BOX)


STYLES: dict[str, Style] = {"letter": letter, "cloze": cloze, "direct": direct, "boxed": boxed, "worked": worked}


def find_style(name: str) -> Style:
    """The style of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in STYLES:
        near = difflib.get_close_matches(name, STYLES, 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown prompt style {name!r}; allowed are {', '.join(STYLES)}{hint}; change style in the config")
    return STYLES[name]


def completion(ask: Ask, question: Question, final: str) -> str:
    """The string that follows the prompt when `final` is the answer: its option's candidate, the first if two are equal.

    A free answer is written out, in a box where the style wants one.

    >>> q = Question("1", "demo", "What melts?", ("ice", "iron"))
    >>> completion(letter(q), q, "iron")
    ' B'

    Raises:
        ValueError: `final` is none of the options.
    """
    if not question.options:
        return ask.lead + final.join(ask.around)
    if final not in question.options:
        raise ValueError(f"answer {final!r} to question {question.id!r} is none of its options: {list(question.options)}")
    return ask.candidates[question.options.index(final)]


def render(
    question: Question,
    style: str | Style,
    demonstrations: Sequence[tuple[Question, str]] = (),
    chat: Callable[[Messages], str] | None = None,
) -> Ask:
    """Lays a question out after its demonstrations.

    Args:
        question: what is asked.
        style: a name in `STYLES`, or a function of that kind.
        demonstrations: questions with their final answers, or (free ones) texts that lead to these; take them from the
            labelled source only.
        chat: turns messages (dicts of `role` and `content`, the last one the user's) into text that ends where the
            assistant's answer begins, such as a tokenizer's chat template; candidates then lose their leading space.

    Raises:
        ValueError: unknown style, or the question is among its own demonstrations.

    >>> melt = Question("1", "demo", "What melts?", ("ice", "iron"))
    >>> burn = Question("2", "demo", "What burns?", ("sand", "wood"))
    >>> render(burn, "cloze", [(melt, "ice")]).prompt
    'Question: What melts?\\nAnswer: ice\\n\\nQuestion: What burns?\\nAnswer:'
    """
    if isinstance(style, str):
        style = find_style(style)
    shots = []
    for shown, text in demonstrations:
        if shown.id == question.id:
            raise ValueError(
                f"question {question.id!r} is one of its own demonstrations, so its prompt would hold its answer: "
                "leave the demonstrations' rows out of the questions that are asked"
            )
        ask = style(shown)
        shots.append((ask.prompt, completion(ask, shown, text) if shown.options else ask.lead + text))
    asked = style(question)
    if chat is None:
        return dataclasses.replace(asked, prompt="\n\n".join([*map("".join, shots), asked.prompt]))
    messages = []
    for prompt, answer in shots:
        messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer.removeprefix(asked.lead)}]
    messages.append({"role": "user", "content": asked.prompt})
    candidates = tuple(text.removeprefix(asked.lead) for text in asked.candidates)
    return Ask(chat(messages), candidates, lead="", around=asked.around)
