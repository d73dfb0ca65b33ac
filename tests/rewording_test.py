"""Questions in other words: what is around them changes, and where their options stand; what an answer means does not."""

from w2s_jax.tasks import prompts
from w2s_jax.tasks.rewording import reworded
from w2s_jax.types import Question

MELT = Question("q", "demo", "What {melts} at {question}?", ("ice", "iron", "oak"), {"level": "3"}, "passage")


def test_the_question_stands_in_the_wording_as_it_is_and_all_else_about_it_stays():
    asked = reworded(MELT, "In {one}: {question} Then {question}")
    assert asked.prompt == "In {one}: What {melts} at {question}? Then What {melts} at {question}?"
    assert (asked.id, asked.task, asked.meta, asked.group, asked.options) == (
        "q",
        "demo",
        {"level": "3"},
        "passage",
        MELT.options,
    )


def test_options_move_on_in_a_circle_and_each_stands_at_each_place_once():
    orders = [reworded(MELT, "{question}", k).options for k in range(1, 4)]
    assert orders == [("iron", "oak", "ice"), ("oak", "ice", "iron"), MELT.options]
    assert all(sorted(at) == sorted(MELT.options) for at in zip(*orders, strict=True))
    assert reworded(Question("f", "demo", "Add 3 and 4."), "So: {question}", 5).options == ()


def test_an_answer_keeps_its_text_behind_another_letter():
    asked = reworded(MELT, "{question}", 2)
    said = [prompts.completion(prompts.letter(question), question, "ice") for question in (MELT, asked)]
    assert said == [" A", " B"] and " B. ice\n" in prompts.letter(asked).prompt
