"""Answers do not depend on how rows were packed, and equal what the model itself says of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from w2s_jax import choosing
from w2s_jax.models import decoder
from w2s_jax.packing import Shape
from w2s_jax.tasks.asking import Asked, Asking
from w2s_jax.types import Question

WIDE, NARROW = Shape(64, 2, 8), Shape(16, 3, 2)


@pytest.fixture(scope="module")
def lm():
    return tiny.lm()


def questions(n=14, options=("a", "b", "c d"), single=True):
    rng = np.random.default_rng(0)
    options = tuple(o for o in options if not single or " " not in o)
    return [Question(f"q{i}", "t", " ".join(rng.choice(list(tiny.WORDS), rng.integers(1, 9))), options) for i in range(n)]


@jax.jit
def _pass(params, token, segment):
    model = tiny.compute().model(tiny.CONFIG)
    hidden = model.apply({"params": params}, token, segment, jnp.arange(token.shape[1])[None]).hidden
    return hidden, jax.nn.log_softmax(decoder.logits(model, params, hidden))


def full_pass(lm, tokens):
    """(hidden states, log-probabilities of the next token) of one sequence, in a device row of its own."""
    token, segment = np.zeros((2, 1, 48), np.int32)
    token[0, : len(tokens)], segment[0, : len(tokens)] = tokens, 1
    hidden, logp = _pass(lm.params, token, segment)
    return np.asarray(hidden)[0, : len(tokens)], np.asarray(logp)[0, : len(tokens)]


def alone(lm, prompt, candidate):
    """Log-probability of a continuation."""
    _, logp = full_pass(lm, [*prompt, *candidate])
    return float(sum(logp[len(prompt) + i - 1, t] for i, t in enumerate(candidate)))


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("normalise", ["none", "token", "byte"])
def test_option_logp_is_the_models_own_whatever_the_packing(lm, single, normalise):
    asked = [Asking(lm.tokenizer, "direct", False, 64).ask(q) for q in questions(single=single)]
    found = [choosing.choose(lm, asked, normalise=normalise, shape=shape, compute=tiny.compute()) for shape in (WIDE, NARROW)]
    np.testing.assert_allclose(found[0].option_logp, found[1].option_logp, atol=1e-5)
    np.testing.assert_array_equal(found[0].option, found[1].option)
    for a, row in zip(asked, found[0].option_logp, strict=True):
        per = {"none": [1] * len(a.candidates), "token": [len(c) for c in a.candidates], "byte": a.num_bytes}[normalise]
        if single:
            per = [1] * len(a.candidates)
        scores = np.array([alone(lm, a.prompt, c) / n for c, n in zip(a.candidates, per, strict=True)])
        np.testing.assert_allclose(row, scores - np.logaddexp.reduce(scores), atol=2e-5)


def test_the_rollout_holds_the_chosen_option_and_its_logp(lm):
    asked = [Asking(lm.tokenizer, "direct", False, 64).ask(q) for q in questions(single=False)]
    found = choosing.choose(lm, asked, normalise="token", shape=WIDE, compute=tiny.compute())
    for n, a in enumerate(asked):
        assert found.rollout.completion[n].tolist() == a.candidates[found.option[n]]
        assert found.rollout.logp[n].sum() == pytest.approx(found.option_logp[n].max(), abs=1e-5)


def test_questions_with_fewer_options_never_choose_what_they_do_not_have(lm):
    asked = [Asked("q0", [3, 4], [[5], [6]], [1, 1]), Asked("q1", [3], [[5], [6], [7], [8], [9]], [1] * 5)]
    found = choosing.choose(lm, asked, normalise="none", shape=WIDE, compute=tiny.compute())
    assert found.option_logp.shape == (2, 5) and np.isneginf(found.option_logp[0, 2:]).all()
    np.testing.assert_allclose(np.exp(found.option_logp).sum(1), 1, rtol=1e-5)


def test_an_unknown_normalisation_is_refused(lm):
    with pytest.raises(ValueError, match="normalise='char': allowed are none, token, byte"):
        choosing.choose(lm, [Asked("q0", [3], [[5], [6]], [1, 1])], normalise="char", shape=WIDE, compute=tiny.compute())


def test_a_question_that_does_not_fit_with_its_longest_candidate_is_named(lm):
    def choose(longest):
        asked = [Asked("q0", [3], [[5], [6]], [1, 1]), Asked("q1", [3] * 12, [[5], [6] * longest], [1, longest])]
        return choosing.choose(lm, asked, normalise="none", shape=NARROW, compute=tiny.compute())

    assert len(choose(4).option) == 2
    with pytest.raises(ValueError, match="question 'q1' has 17 tokens, allowed are 16: raise shape.row_length"):
        choose(5)


def test_scores_that_are_no_numbers_name_the_question(lm):
    weight = lm.params["embed"]["weight"].at[9].set(jnp.nan)
    broken = dataclasses.replace(lm, params=lm.params | {"embed": {"weight": weight}})
    asked = [Asked("q0", [3, 4], [[5], [6]], [1, 1]), Asked("q1", [3, 9], [[5], [6]], [1, 1])]
    with pytest.raises(ValueError, match="the model gives question 'q1' scores that are no numbers"):
        choosing.choose(broken, asked, normalise="none", shape=Shape(16, 2, 1), compute=tiny.compute())
