"""What is written does not depend on slots, company or order, and follows the model's own distribution."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from tests.choosing_test import full_pass
from w2s_jax import sampling
from w2s_jax.drawing import Drawing
from w2s_jax.tasks.asking import Asked

GREEDY = Drawing(temperature=0.0)


@pytest.fixture(scope="module")
def lm():
    return tiny.lm()


def generate(lm, prompts, *, ids=None, **changes):
    settings = dict(
        num_samples=1,
        drawing=GREEDY,
        max_new_tokens=6,
        num_slots=4,
        row_length=64,
        compute=tiny.compute(),
        key=jax.random.key(0),
    )
    asked = [Asked(i, prompt, [], []) for i, prompt in zip(ids or [f"q{n}" for n in range(len(prompts))], prompts, strict=True)]
    return sampling.generate(lm, asked, **settings | changes)


PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13], [2, 3], [9, 9, 9, 9], [4]]


def test_greedy_tokens_are_the_most_probable_ones_of_a_full_pass(lm):
    prompts = [*PROMPTS, [5, 6, 7] * 6]  # the last one needs more slots than the others
    found = generate(lm, prompts)
    for prompt, completion, logp in zip(prompts, found.completion, found.logp, strict=True):
        said = full_pass(lm, [*prompt, *completion])[1][len(prompt) - 1 : -1]
        np.testing.assert_array_equal(said.argmax(-1), completion)
        np.testing.assert_allclose(said.max(-1), logp, atol=1e-5)


def test_an_answer_ends_with_its_first_stop_token(lm):
    found = generate(lm, PROMPTS, drawing=Drawing(3.0), max_new_tokens=30, num_samples=8)
    stop = lm.tokenizer.stop_ids[0]
    ended = [c.tolist() for c in found.completion if stop in c]
    assert ended and all(c.index(stop) == len(c) - 1 for c in ended)
    assert all(len(c) == 30 for c in found.completion if stop not in c) and len(ended) < len(found.completion)
    np.testing.assert_array_equal(found.logp.offset, found.completion.offset)


def test_any_of_several_stop_tokens_ends_an_answer(lm):
    other = dataclasses.replace(lm, tokenizer=dataclasses.replace(lm.tokenizer, stop_ids=(1, 9, 10)))
    found = [c.tolist() for c in generate(other, PROMPTS, drawing=Drawing(3.0), max_new_tokens=30, num_samples=8).completion]
    assert {c[-1] for c in found if len(c) < 30} == {1, 9, 10}
    assert not any({1, 9, 10} & set(c[:-1]) for c in found)


def test_the_samples_of_a_question_stand_together(lm):
    found, one = generate(lm, PROMPTS, num_samples=3), generate(lm, PROMPTS)
    for r in range(3 * len(PROMPTS)):
        assert found.prompt[r].tolist() == PROMPTS[r // 3]
        np.testing.assert_array_equal(found.completion[r], one.completion[r // 3])


def test_a_sample_depends_on_key_question_and_number_alone(lm):
    one = generate(lm, PROMPTS, drawing=Drawing(), num_samples=3)
    other = generate(lm, PROMPTS, drawing=Drawing(), num_samples=3, num_slots=7)
    for a, b in zip(one.completion, other.completion, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(one.completion[0].tolist() != one.completion[s].tolist() for s in (1, 2))
    another = generate(lm, PROMPTS, drawing=Drawing(), num_samples=3, key=jax.random.key(1))
    assert any(a.tolist() != b.tolist() for a, b in zip(one.completion, another.completion, strict=True))
    alone = generate(lm, PROMPTS[3:4], ids=["q3"], drawing=Drawing(), num_samples=3)
    renamed = generate(lm, PROMPTS[3:4], ids=["other"], drawing=Drawing(), num_samples=3)
    assert [c.tolist() for c in alone.completion] == [one.completion[r].tolist() for r in (9, 10, 11)]
    assert any(a.tolist() != b.tolist() for a, b in zip(alone.completion, renamed.completion, strict=True))


def test_samples_follow_the_models_tempered_distribution_token_by_token(lm):
    from scipy import stats

    def tempered(tokens):
        p = np.exp(full_pass(lm, tokens)[1][-1].astype(np.float64) / 2)
        return p / p.sum()

    def fits(drawn, p):
        counts, rare = np.bincount(drawn, minlength=len(p)), p * len(drawn) < 5
        observed, expected = np.append(counts[~rare], counts[rare].sum()), np.append(p[~rare], p[rare].sum()) * len(drawn)
        keep = expected > 0
        return stats.chisquare(observed[keep], expected[keep]).pvalue > 1e-3

    found = generate(lm, [[3, 4]], drawing=Drawing(2.0), num_samples=2000, max_new_tokens=2, num_slots=256)
    first = np.array([c[0] for c in found.completion])
    assert fits(first, tempered([3, 4]))
    np.testing.assert_allclose([logp[0] for logp in found.logp], np.log(tempered([3, 4]))[first], atol=1e-4)
    often = int(np.bincount(first).argmax())
    assert fits([c[1] for c in found.completion if c[0] == often], tempered([3, 4, often]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"row_length": 11}, "question 'q2' has 7 tokens, allowed are 4"),
        ({"max_new_tokens": 63}, "max_new_tokens=63 leaves no room for a prompt in rows of 64 tokens"),
    ],
)
def test_bad_requests_are_refused(lm, changes, message):
    with pytest.raises(ValueError, match=message):
        generate(lm, PROMPTS, **changes)


def test_a_context_shorter_than_the_row_and_a_model_without_a_stop_token_are_refused(lm):
    short = dataclasses.replace(lm, config=dataclasses.replace(lm.config, max_position=12))
    with pytest.raises(ValueError, match="question 'q2' has 7 tokens, allowed are 5"):
        generate(short, PROMPTS)
    endless = dataclasses.replace(lm, tokenizer=dataclasses.replace(lm.tokenizer, stop_ids=()))
    with pytest.raises(ValueError, match="the model names no stop token"):
        generate(endless, PROMPTS)
