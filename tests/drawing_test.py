"""The support that tokens are drawn from is the one that sorting would give, and draws follow it."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from w2s_jax.drawing import Drawing, draw, restricted

LOGITS = np.random.default_rng(0).normal(0, 2.5, (6, 41)).astype(np.float32)
LOGITS[0, 5:9] = LOGITS[0].max()  # ties at the top
LOGITS[1] = 0.0  # all alike
LOGITS[2, 1:] -= 40.0  # one token has it all
CUTS = [
    Drawing(0.7),
    Drawing(1.0, top_k=1),
    Drawing(1.3, top_k=7),
    Drawing(1.0, top_k=100),
    Drawing(1.0, top_p=0.3),
    Drawing(0.8, top_p=0.9),
    Drawing(1.0, top_p=1e-6),
    Drawing(1.0, min_p=0.2),
    Drawing(1.5, top_k=12, top_p=0.8, min_p=0.05),
]


def by_sorting(logits, drawing):
    """The same distribution, row by row in float64; as probable tokens as the last one kept are kept."""
    rows = []
    for row in logits.astype(np.float64) / drawing.temperature:
        p = np.exp(row - row.max())
        p /= p.sum()
        if drawing.top_k:
            p[p < np.sort(p)[::-1][min(drawing.top_k, len(p)) - 1]] = 0
            p /= p.sum()
        if drawing.top_p < 1:
            ordered = np.sort(p)[::-1]
            last = np.searchsorted(np.cumsum(ordered), drawing.top_p)
            p[p < ordered[last]] = 0
            p /= p.sum()
        p[p < drawing.min_p * p.max()] = 0
        rows.append(p / p.sum())
    return np.array(rows)


@pytest.mark.parametrize("drawing", CUTS, ids=repr)
def test_the_support_and_its_probabilities_are_those_found_by_sorting(drawing):
    found, want = np.exp(restricted(LOGITS, drawing)), by_sorting(LOGITS, drawing)
    np.testing.assert_array_equal(found > 0, want > 1e-37)
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=1e-37)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="transformers needs torch here")
@pytest.mark.parametrize("drawing", CUTS, ids=repr)
def test_the_support_is_that_of_transformers(drawing):
    import torch
    from transformers.generation import logits_process as process

    steps = [process.TemperatureLogitsWarper(drawing.temperature)]
    if drawing.top_k:
        steps.append(process.TopKLogitsWarper(drawing.top_k))
    if drawing.top_p < 1:
        steps.append(process.TopPLogitsWarper(drawing.top_p))
    if drawing.min_p:
        steps.append(process.MinPLogitsWarper(drawing.min_p))
    logits = LOGITS[2:]  # of tokens that are equally probable it keeps any
    theirs = torch.tensor(logits)
    for step in steps:
        theirs = step(None, theirs)
    np.testing.assert_allclose(np.exp(restricted(logits, drawing)), theirs.softmax(-1).numpy(), rtol=2e-5, atol=1e-37)


def test_draws_follow_the_distribution_and_each_row_its_own_key():
    logp = restricted(LOGITS[3:4], Drawing(1.0, top_k=9))
    keys = jax.random.split(jax.random.key(0), 20_000)
    token = np.asarray(jax.jit(draw)(jnp.broadcast_to(logp, (len(keys), 41)), keys))
    p = np.exp(np.asarray(logp[0], np.float64))
    counts = np.bincount(token, minlength=41)
    assert not counts[p == 0].any()
    assert stats.chisquare(counts[p > 0], p[p > 0] / p.sum() * len(keys)).pvalue > 1e-3
    again = draw(jnp.broadcast_to(logp, (5, 41)), keys[100:105])
    np.testing.assert_array_equal(again, token[100:105])


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"temperature": -1.0}, "temperature=-1.0: allowed are 0 .greedy. and above"),
        ({"top_k": -1}, "top_k=-1: allowed are 0 .all. and above"),
        ({"top_k": 2.5}, "top_k=2.5"),
        ({"top_p": 0.0}, "top_p=0.0: allowed are above 0, up to 1"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"min_p": -0.1}, "min_p=-0.1: allowed are from 0 .all. to 1"),
        ({"temperature": float("nan")}, "temperature=nan"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Drawing(**wrong)
