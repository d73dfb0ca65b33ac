"""The same question in other words: a text around it, and its options in another order.

"Consider this: {question}" around a question of two options that are moved on by one place, as the style `letter` shows it:

    Question: What melts?          Question: Consider this: What melts?
     A. ice                         A. iron
     B. iron                        B. ice
    Answer:                        Answer:

The reworded question keeps its id, and an answer to it is an option's text, as anywhere in this project: so answers in all
wordings are compared as they are, whatever letters they stood behind.
"""

import dataclasses

from w2s_jax.types import Question

VERSION = "1"
PLACE = "{question}"
"""Where the question's own text goes in a wording; other braces mean themselves."""


def reworded(question: Question, wording: str, places: int = 0) -> Question:
    """The question in a wording, its options moved on by so many places; the first ones go to the end.

    >>> asked = reworded(Question("1", "demo", "What melts?", ("ice", "iron", "oak")), "Consider this: {question}", 4)
    >>> asked.prompt, asked.options
    ('Consider this: What melts?', ('iron', 'oak', 'ice'))
    """
    first = places % max(1, len(question.options))
    options = question.options[first:] + question.options[:first]
    return dataclasses.replace(question, prompt=wording.replace(PLACE, question.prompt), options=options)
