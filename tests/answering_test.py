"""Answers and what trust functions may ask of them: each row's own, and about the right tokens."""

import jax
import numpy as np
import pytest

from tests import tiny
from w2s_jax import answering
from w2s_jax.drawing import Drawing
from w2s_jax.packing import Shape
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import Question

SHAPE = Shape(32, 2, 2)


@pytest.fixture(scope="module")
def lm():
    return tiny.lm()


def asking(lm):
    return Asking(lm.tokenizer, "direct", False, 64)


@pytest.mark.parametrize(
    ("final", "inside"),
    [("b", [3]), ("c", [2]), ("b c", [1, 2]), ("a b c b", [0, 1, 2, 3]), ("d", [0, 1, 2, 3]), ("", [0, 1, 2, 3])],
)
def test_an_answers_logp_is_that_of_the_tokens_that_spell_it_last(lm, final, inside):
    tokens, logp = np.array(lm.tokenizer.encode("a b c b", bos=False)), np.array([-1.0, -2.0, -4.0, -8.0])
    assert answering.span_logp(lm.tokenizer, tokens, logp, final) == pytest.approx(logp[inside].mean())


class Pieces:
    """A tokenizer whose tokens are joined without spaces, as those of real models are."""

    text = ("so", " it", " is", " 1", "7", "m", ".", " 1", "7", "!")

    def decode(self, tokens):
        return "".join(self.text[t] for t in tokens)


@pytest.mark.parametrize(
    ("final", "inside"), [("17", [7, 8]), ("7", [8]), ("17m", [3, 4, 5]), ("m", [5]), ("is 17", [2, 3, 4]), ("s", [2])]
)
def test_an_answers_tokens_are_found_inside_words_too(final, inside):
    logp = -(2.0 ** np.arange(10))
    assert answering.span_logp(Pieces(), np.arange(10), logp, final) == pytest.approx(logp[inside].mean())


def test_an_answer_without_tokens_has_no_probability(lm):
    assert answering.span_logp(lm.tokenizer, np.zeros(0, int), np.zeros(0), "") == -np.inf


def test_a_chosen_answer_is_an_option_of_its_own_question_with_its_own_logp(lm):
    letters = tiny.WORDS[:12]
    questions = [Question(f"q{i}", "t", letters[i], (letters[i], letters[11 - i], letters[(i + 5) % 12])) for i in range(5)]
    found = answering.by_choice(
        lm, questions, asking(lm), normalise="none", shape=SHAPE, compute=tiny.compute(), label="answer"
    )
    option = found["extra"]["option_logp"].argmax(1)
    assert found["answers"].question_id == ("q0", "q1", "q2", "q3", "q4") and len(set(option.tolist())) > 1
    assert (
        found["answers"].final == found["answers"].text == tuple(q.options[o] for q, o in zip(questions, option, strict=True))
    )
    for name in ("answer_logp", "completion_logp"):
        np.testing.assert_array_equal(found["extra"][name], found["extra"]["option_logp"].max(1))


def test_a_written_answer_is_read_from_its_text_and_its_logp_from_its_tokens(lm):
    questions = [Question(f"q{i}", "t", prompt) for i, prompt in enumerate(("a b", "c", "d e f"))]

    def extract(text):
        return text.split()[1] if len(text.split()) > 1 else ""

    found = answering.by_writing(
        lm,
        questions,
        asking(lm),
        extract,
        num_samples=4,
        drawing=Drawing(1.5),
        max_new_tokens=6,
        stop_texts=(),
        num_slots=5,
        row_length=64,
        compute=tiny.compute(),
        key=jax.random.key(0),
        label="answer",
    )
    answers, rollout, extra = found["answers"], found["rollout"], found["extra"]
    assert answers.question_id == tuple(f"q{i // 4}" for i in range(12)) and len(set(answers.text)) > 4
    for r in range(12):
        assert rollout.prompt[r].tolist() == asking(lm).ask(questions[r // 4]).prompt
        decoded = [lm.tokenizer.decode([t]) for t in rollout.completion[r]]
        words = [word for word in decoded if word]  # special tokens have no text
        assert answers.text[r] == " ".join(words) and answers.final[r] == extract(answers.text[r])
        logp = rollout.model_logp[r]
        assert extra["completion_logp"][r] == pytest.approx(logp.mean(), rel=1e-5)
        if answers.final[r]:
            last = max(t for t, word in enumerate(decoded) if word == answers.final[r])
            assert extra["answer_logp"][r] == pytest.approx(logp[last], rel=1e-5)
