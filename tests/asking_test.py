"""Questions as tokens: what stands before the answer, what may follow it, and what does not fit."""

import dataclasses

import pytest

from tests import tiny
from w2s_jax.models.tokenizer import word_level
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import Question

WORDS = word_level((*tiny.WORDS, "é", "<bos>"))
MELT = Question("melt", "demo", "a b", ("c", "d é"))
SUM = Question("sum", "demo", "a b c")


def asking(context=64, chat=False, **changes):
    tokenizer = dataclasses.replace(WORDS, bos_ids=tuple(WORDS.encode("<bos>", bos=False)), **changes)
    return Asking(tokenizer, "direct", chat, context)


def ids(text):
    return WORDS.encode(text, bos=False)


def test_a_question_begins_with_the_models_first_token_and_candidates_do_not():
    asked = asking().ask(MELT)
    assert (asked.id, asked.prompt, asked.candidates) == ("melt", ids("<bos> a b"), [ids("c"), ids("d é")])
    assert asked.num_bytes == [2, 5], "with the space, and two bytes for an accented letter"


def test_a_chat_template_writes_its_own_first_token():
    inner = word_level((*tiny.WORDS, "é", "<bos>")).inner
    inner.chat_template = "{% for m in messages %}<bos> {{ m.content }}{% endfor %}"
    found = asking(chat=True, inner=inner)
    assert found.ask(MELT).prompt == ids("<bos> a b") and found.answer(MELT, "c") == (ids("<bos> a b"), ids("c"))


def test_a_free_answer_is_closed_by_the_first_stop_token_and_an_option_stands_alone():
    found = asking(stop_ids=(1, 7))
    assert found.answer(SUM, "d") == (ids("<bos> a b c"), [*ids("d"), 1])
    assert found.answer(MELT, "d é") == (ids("<bos> a b"), ids("d é"))


def test_demonstrations_stand_before_every_question():
    found = dataclasses.replace(asking(), demonstrations=((SUM, "d"),))
    assert found.ask(MELT).prompt == found.answer(MELT, "c")[0] == ids("<bos> a b c d a b")


def test_an_option_of_unknown_words_only_is_refused():
    asking().ask(dataclasses.replace(MELT, options=("c", "d unknown")))
    with pytest.raises(ValueError, match="question 'melt': the option ' never heard' has no tokens, or unknown ones only"):
        asking().ask(dataclasses.replace(MELT, options=("c", "never heard")))


def test_what_exceeds_the_models_context_is_refused_and_what_fills_it_is_not():
    asking(5).ask(MELT), asking(4).answer(MELT, "c"), asking(6).answer(SUM, "d")
    for context, call in ((4, lambda a: a.ask(MELT)), (4, lambda a: a.answer(MELT, "d é")), (5, lambda a: a.answer(SUM, "d"))):
        with pytest.raises(ValueError, match=rf"has {context + 1} tokens, the model's context .* is {context}: take"):
            call(asking(context))
