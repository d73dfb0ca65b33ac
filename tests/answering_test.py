"""Answers and what trust functions may ask of them: each row's own, and about the right tokens."""

import jax
import numpy as np
import pytest

from tests import tiny
from w2s_jax import answering
from w2s_jax.drawing import Drawing
from w2s_jax.packing import Shape
from w2s_jax.tasks import math
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import Answers, Question, Ragged, Rollout

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
    span = answering.last_place(lm.tokenizer.decode(tokens), final)
    assert answering.span_logp(lm.tokenizer, tokens, logp, span) == pytest.approx(logp[inside].mean())


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
    span = answering.last_place(Pieces().decode(range(10)), final)
    assert answering.span_logp(Pieces(), np.arange(10), logp, span) == pytest.approx(logp[inside].mean())


def test_an_answers_tokens_are_those_of_its_own_spelling():
    pieces, logp = Pieces(), -(2.0 ** np.arange(8))
    pieces.text = ("so", " $\\boxed{", "\\d", "frac", "{3}", "4", "}$", ".")
    text = pieces.decode(range(8))
    assert math.extract(text) == "3/4" and answering.last_place(text, "3/4") is None
    assert answering.span_logp(pieces, np.arange(8), logp, math.written(text)) == pytest.approx(logp[2:6].mean())


def test_an_answer_without_tokens_has_no_probability(lm):
    assert answering.span_logp(lm.tokenizer, np.zeros(0, int), np.zeros(0), None) == -np.inf


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


@pytest.mark.parametrize("spelt", [str, str.upper])  # as it stands in the text, or another way
def test_a_written_answer_is_read_from_its_text_and_its_logp_from_its_tokens(lm, tmp_path, spelt):
    questions = [Question(f"q{i}", "t", prompt) for i, prompt in enumerate(("a b", "c", "d e f"))]

    def extract(text):
        return spelt(text.split()[1]) if len(text.split()) > 1 else ""

    def written(text):
        start = text.rindex(extract(text).lower())
        return start, start + len(extract(text))

    found = answering.by_writing(
        lm,
        questions,
        asking(lm),
        extract,
        written=None if spelt is str else written,
        num_samples=4,
        drawing=Drawing(1.5),
        max_new_tokens=6,
        stop_texts=(),
        num_slots=5,
        row_length=64,
        compute=tiny.compute(),
        key=jax.random.key(0),
        partial=tmp_path,
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
            last = max(t for t, word in enumerate(decoded) if spelt(word) == answers.final[r])
            assert extra["answer_logp"][r] == pytest.approx(logp[last], rel=1e-5)


def sampled(final, logp, num_samples):
    """Answers of `by_writing` in form, each row's numbers its own."""
    rows = range(len(final))
    ragged = [Ragged.of([[r] * (1 + r % 3) for r in rows], dtype) for dtype in (np.int32, np.int32, np.float32)]
    ids = tuple(f"q{r // num_samples}" for r in rows)
    extra = {"completion_logp": np.array(logp, np.float32), "answer_logp": -np.arange(len(final), dtype=np.float32)}
    return {
        "rollout": Rollout(*ragged),
        "answers": Answers(ids, tuple(f"text {r}" for r in rows), tuple(final)),
        "extra": extra,
    }


@pytest.mark.parametrize(
    ("final", "logp", "kept", "share"),
    [
        (("7", "8", "7", "7"), (-4, -1, -3, -5), 2, 0.75),  # most votes win, the most probable of them stands for them
        (("7", "8", "8", "7"), (-1, -2, -2, -4), 2 - 1, 0.5),  # a tie: the larger sum of log-probabilities, -4 against -5
        (("7", "8", "8", "7"), (-1, -2, -2, -3), 0, 0.5),  # that tied too: the one given first
        (("", "", "", "7"), (-1, -1, -1, -9), 3, 0.25),  # no answer has no vote, but is counted
        (("", "", "", ""), (-3, -2, -1, -2), 2, 0.0),
        (("7", "8", "9", "8"), (-1, -8, -1, -9), 1, 0.5),  # votes go before probabilities
    ],
)
def test_the_majority_is_one_row_of_the_most_frequent_answer(final, logp, kept, share):
    found = answering.majority(sampled(final, logp, 4), 4)
    assert found["answers"] == Answers(("q0",), (f"text {kept}",), (final[kept],))
    assert found["extra"]["vote_share"].tolist() == [share] and found["extra"]["vote_share"].dtype == np.float32
    assert found["extra"]["answer_logp"].tolist() == [-kept] and found["extra"]["completion_logp"].tolist() == [logp[kept]]
    for column in ("prompt", "completion", "logp"):
        assert [row.tolist() for row in getattr(found["rollout"], column)] == [[kept] * (1 + kept % 3)]


def test_each_question_has_a_majority_of_its_own():
    found = answering.majority(sampled(["1", "2", "2", "2", "1", "1", "3", "", ""], [-1] * 9, 3), 3)
    assert found["answers"].question_id == ("q0", "q1", "q2") and found["answers"].final == ("2", "1", "3")
    assert found["answers"].text == ("text 1", "text 4", "text 6") and found["rollout"].logp.flat.dtype == np.float32
    np.testing.assert_allclose(found["extra"]["vote_share"], [2 / 3, 2 / 3, 1 / 3], rtol=1e-6)


def test_a_killed_pass_continues_behind_its_last_part_and_ends_with_the_same_bits(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "ROWS_PER_PART", 4)
    questions = [Question(f"q{i}", "t", prompt) for i, prompt in enumerate(("a b", "c", "d e f", "g", "a c d e"))]

    def write(name):
        (tmp_path / name).mkdir(exist_ok=True)
        return answering.by_writing(
            lm,
            questions,
            asking(lm),
            lambda text: text[:1],
            num_samples=2,
            drawing=Drawing(1.5),
            max_new_tokens=6,
            stop_texts=(),
            num_slots=3,
            row_length=64,
            compute=tiny.compute(),
            key=jax.random.key(0),
            partial=tmp_path / name,
            label="answer",
        )

    whole = write("whole")
    generate, calls = answering.sampling.generate, []

    def dying(lm, asked, **settings):
        calls.append([question.id for question in asked])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(lm, asked, **settings)

    monkeypatch.setattr(answering.sampling, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        write("killed")
    resumed = write("killed")
    assert calls == [["q0", "q1"], ["q2", "q3"], ["q2", "q3"], ["q4"]]
    assert resumed["answers"] == whole["answers"] and len(resumed["answers"]) == 10
    for name in ("prompt", "completion", "logp", "model_logp"):
        ours, theirs = (getattr(found["rollout"], name) for found in (resumed, whole))
        np.testing.assert_array_equal(ours.flat, theirs.flat)
        np.testing.assert_array_equal(ours.offset, theirs.offset)
