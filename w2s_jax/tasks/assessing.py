"""Questions about an answer that was given: is it right, how sure are you, and is it this one or that one?

The first two are questions with options, put as any other (style `letter`):

    Question: What melts?                      Question: What melts?
    Possible answers: ice; iron                Possible answers: ice; iron
    Proposed answer: ice                       Proposed answer: ice
    Is the proposed answer:                    How sure are you that the proposed answer is right?
     A. True                                    A. 0%
     B. False                                   B. 25%
    Answer:                                     ...

The third has the two answers as its options, after the same question and (where it has options) its possible answers.

Source: the first, Kadavath et al., arXiv 2207.05221; the second, after arXiv 2205.14334 and arXiv 2305.14975; the third,
after model judges of pairs, arXiv 2306.05685.
Deviations: see `trust/self_assessment.py`; of free answers the third shows the final answers alone.
"""

from w2s_jax.types import Question

VERSION = "1"
GRID = (0, 25, 50, 75, 100)
"""The percentages to choose from: 0 and 100 and as few between them as tell shades apart, for each option costs tokens."""


def is_true(question: Question, final: str) -> Question:
    """Asks whether the proposed answer is true; the first option says that it is.

    >>> print(is_true(Question("1", "demo", "What melts?", ("ice", "iron")), "ice").prompt)
    What melts?
    Possible answers: ice; iron
    Proposed answer: ice
    Is the proposed answer:
    """
    return _about(question, final, "Is the proposed answer:", ("True", "False"))


def how_sure(question: Question, final: str) -> Question:
    """Asks for a percentage of `GRID`; the options stand in its order."""
    return _about(question, final, "How sure are you that the proposed answer is right?", tuple(f"{p}%" for p in GRID))


def which(question: Question, one: str, other: str) -> Question:
    """Asks which of two answers is right; they are its options, in this order.

    >>> asked = which(Question("1", "demo", "What melts?", ("ice", "iron", "oak")), "iron", "ice")
    >>> print(asked.prompt, asked.options)
    What melts?
    Possible answers: ice; iron; oak
    Which of these two answers is right? ('iron', 'ice')
    """
    prompt = f"{question.prompt}\n{_possible(question)}Which of these two answers is right?"
    return Question(f"{question.id}: {one} or {other}", question.task, prompt, (one, other), group=question.group)


def _about(question: Question, final: str, asked: str, options: tuple[str, ...]) -> Question:
    prompt = f"{question.prompt}\n{_possible(question)}Proposed answer: {final}\n{asked}"
    return Question(f"{question.id}: {final}", question.task, prompt, options, group=question.group)


def _possible(question: Question) -> str:
    return f"Possible answers: {'; '.join(question.options)}\n" if question.options else ""
