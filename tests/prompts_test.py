"""How questions are put to a model: the exact layouts, and that an answer's string is the right candidate."""

import pytest

from w2s_jax.tasks import prompts
from w2s_jax.types import Question

MELT = Question("melt", "demo", "What melts at 0 degrees?", ("iron", "ice", "sand"))
BURN = Question("burn", "demo", "What burns?", ("wood", "stone"))
SUM = Question("sum", "demo", "Add 3 and 4.")


def test_letter_puts_a_space_before_every_letter_and_none_after_the_colon():
    assert prompts.letter(MELT) == prompts.Ask(
        "Question: What melts at 0 degrees?\n A. iron\n B. ice\n C. sand\nAnswer:", (" A", " B", " C")
    )


def test_cloze_hides_the_options_and_direct_adds_nothing():
    assert prompts.cloze(MELT) == prompts.Ask("Question: What melts at 0 degrees?\nAnswer:", (" iron", " ice", " sand"))
    assert prompts.direct(MELT) == prompts.Ask("What melts at 0 degrees?", (" iron", " ice", " sand"))


def test_letter_takes_up_to_26_options():
    asked = prompts.letter(Question("z", "demo", "Which?", tuple(map(str, range(26)))))
    assert asked.candidates[-1] == " Z" and asked.prompt.endswith("\n Z. 25\nAnswer:")


@pytest.mark.parametrize("count", [0, 27])
def test_letter_refuses_what_it_has_no_letters_for(count):
    with pytest.raises(ValueError, match=f"'many' has {count} options.*1 to 26.*'cloze'"):
        prompts.letter(Question("many", "demo", "Which?", tuple(map(str, range(count)))))


@pytest.mark.parametrize("style", prompts.STYLES)
def test_completion_of_every_option_is_its_candidate(style):
    ask = prompts.render(MELT, style)
    assert tuple(prompts.completion(ask, MELT, option) for option in MELT.options) == ask.candidates


def test_completion_of_equal_options_is_the_first():
    twice = Question("twice", "demo", "Which?", ("no", "yes", "yes"))
    assert prompts.completion(prompts.letter(twice), twice, "yes") == " B"


def test_completion_refuses_an_answer_that_is_no_option():
    with pytest.raises(ValueError, match="'snow' to question 'melt' is none of its options.*'ice'"):
        prompts.completion(prompts.letter(MELT), MELT, "snow")


def test_free_questions_have_no_candidates_and_any_completion():
    ask = prompts.render(SUM, "cloze", [(Question("other", "demo", "Add 1 and 1."), "2")])
    assert ask.candidates == ()
    assert ask.prompt == "Question: Add 1 and 1.\nAnswer: 2\n\nQuestion: Add 3 and 4.\nAnswer:"
    assert prompts.completion(ask, SUM, "7") == " 7"


def test_demonstrations_stand_before_the_question_in_its_style():
    ask = prompts.render(BURN, "letter", [(MELT, "ice")])
    assert ask.prompt == (
        "Question: What melts at 0 degrees?\n A. iron\n B. ice\n C. sand\nAnswer: B\n\n"
        "Question: What burns?\n A. wood\n B. stone\nAnswer:"
    )
    assert ask.candidates == (" A", " B")


def test_chat_makes_turns_and_takes_the_space_off_answers():
    seen = []

    def chat(messages):
        seen.extend(messages)
        return "".join(f"<{m['role']}>{m['content']}\n" for m in messages) + "<assistant>"

    ask = prompts.render(BURN, "letter", [(MELT, "ice")], chat=chat)
    assert [m["role"] for m in seen] == ["user", "assistant", "user"]
    assert seen[1]["content"] == "B" and seen[2]["content"] == prompts.letter(BURN).prompt
    assert ask.prompt.endswith("Answer:\n<assistant>")
    assert ask.candidates == ("A", "B") and prompts.completion(ask, BURN, "stone") == "B"
    free = prompts.render(SUM, "direct", chat=chat)
    assert prompts.completion(free, SUM, "7") == "7"


@pytest.mark.parametrize("chat", [None, lambda messages: messages[-1]["content"]])
def test_a_question_cannot_be_its_own_demonstration(chat):
    with pytest.raises(ValueError, match="'melt' is one of its own demonstrations"):
        prompts.render(MELT, "cloze", [(BURN, "wood"), (MELT, "ice")], chat=chat)


def test_an_unknown_style_names_the_known_ones():
    with pytest.raises(ValueError, match="'leter'; allowed are letter, cloze, direct, boxed, worked, did you mean 'letter'"):
        prompts.render(MELT, "leter")


def test_a_function_is_a_style_too():
    ask = prompts.render(BURN, lambda q: prompts.Ask(f"Q {q.prompt} A", q.options, lead=""), [(MELT, "ice")])
    assert ask == prompts.Ask("Q What melts at 0 degrees? Aice\n\nQ What burns? A", ("wood", "stone"), lead="")


def test_free_answers_stand_in_a_box_where_the_style_wants_one():
    plain = prompts.render(SUM, "boxed")
    assert plain.prompt == "Add 3 and 4.\n\nReason step by step, and put the final answer within \\boxed{}."
    assert prompts.completion(plain, SUM, "7") == "\n\n\\boxed{7}"
    chat = prompts.render(SUM, "boxed", chat=lambda messages: messages[-1]["content"])
    assert chat.prompt == plain.prompt and prompts.completion(chat, SUM, "7") == "\\boxed{7}"
    assert prompts.completion(prompts.render(SUM, "worked"), SUM, "{7}") == " \\boxed{{7}}"
    assert prompts.completion(prompts.render(SUM, "cloze"), SUM, "7") == " 7"


def test_a_free_demonstration_shows_its_text_as_it_is():
    other = Question("other", "demo", "Add 1 and 1.")
    assert prompts.render(SUM, "worked", [(other, "1 + 1 is \\boxed{2}.")]).prompt == (
        "Question: Add 1 and 1.\nAnswer: 1 + 1 is \\boxed{2}.\n\nQuestion: Add 3 and 4.\nAnswer:"
    )
    seen = []
    prompts.render(SUM, "boxed", [(other, "It is \\boxed{2}.")], chat=lambda messages: seen.extend(messages) or "")
    assert [m["content"] for m in seen][1] == "It is \\boxed{2}."
