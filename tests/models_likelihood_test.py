"""Log-probabilities in chunks: right, differentiable, and never more logits than were asked for."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2s_jax.models import decoder, likelihood
from w2s_jax.models.config import DecoderConfig

B, L, V, D = 3, 21, 40, 8
CONFIG = DecoderConfig(V, D, 1, 1, 1, 8, 8, init_std=0.5)
draw = np.random.default_rng(0)
TOKEN = draw.integers(0, V, (B, L)).astype(np.int32)
SEGMENT = np.array([[1] * 9 + [2] * 12, [1] * 1 + [2] * 15 + [0] * 5, [0] * 21], np.int32)
HIDDEN = draw.normal(size=(B, L, D)).astype(np.float32)
SOME = draw.random((B, L)) < 0.4
UPSTREAM = draw.normal(size=(2, B, L)).astype(np.float32)


def model_and_params(tied):
    config = DecoderConfig(V, D, 1, 1, 1, 8, 8, init_std=0.5, tied=tied)
    return decoder.Decoder(config), decoder.init(config, jax.random.key(0))


def plainly(model, params, hidden, wanted, temperature):
    """The same by the definition, all logits at once."""
    full = jax.nn.log_softmax(decoder.logits(model, params, hidden)[:, :-1] / temperature)
    logp = jnp.take_along_axis(full, TOKEN[:, 1:, None], axis=-1)[..., 0]
    spread = -(jnp.exp(full) * full).sum(-1)
    here = (SEGMENT[:, 1:] == SEGMENT[:, :-1]) & (SEGMENT[:, 1:] > 0) & wanted[:, 1:]
    return tuple(jnp.pad(jnp.where(here, x, 0.0), ((0, 0), (1, 0))) for x in (logp, spread))


@pytest.mark.parametrize("chunk", [1, 4, 128])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("wanted", [None, SOME], ids=["all", "some"])
def test_values_and_gradients_are_those_of_the_definition(chunk, tied, wanted):
    model, params = model_and_params(tied)

    def total(found):
        return sum((up * x).sum() for up, x in zip(UPSTREAM, found, strict=True)), found

    def ours(params, hidden):
        return total(
            likelihood.token_logp(
                model, params, hidden, TOKEN, SEGMENT, wanted=wanted, temperature=0.7, entropy=True, chunk=chunk
            )
        )

    def theirs(params, hidden):
        return total(plainly(model, params, hidden, np.ones((B, L), bool) if wanted is None else wanted, 0.7))

    with jax.default_matmul_precision("highest"):
        found = [jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(params, HIDDEN) for f in (ours, theirs)]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * max(1e-6, np.abs(other).max()))


def test_nothing_wanted_gives_zeros_and_zero_gradients():
    model, params = model_and_params(True)

    def total(params, hidden):
        wanted = np.zeros((B, L), bool)
        return likelihood.token_logp(model, params, hidden, TOKEN, SEGMENT, wanted=wanted)[0].sum()

    value, grads = jax.value_and_grad(total, argnums=(0, 1))(params, HIDDEN)
    assert value == 0 and all(not np.any(g) for g in jax.tree.leaves(grads))


def compiled(loss, *args):
    return jax.jit(jax.grad(loss)).lower(*args).compile().as_text()


def test_logits_of_all_positions_never_exist():
    # 40 positions, chunks of 8: no array of the gradient's program is as large as [B, L, V].
    config = DecoderConfig(512, 8, 2, 1, 1, 8, 8)
    model, token = decoder.Decoder(config), jnp.zeros((2, 40), jnp.int32)
    params = decoder.init(config, jax.random.key(0))

    def loss(hidden):
        return likelihood.token_logp(model, params, hidden, token, token + 1, chunk=8, entropy=True)[0].sum()

    shapes = {
        tuple(map(int, found.split(","))) for found in re.findall(r"f32\[([\d,]+)\]", compiled(loss, jnp.zeros((2, 40, 8))))
    }
    assert max(map(np.prod, shapes)) < 2 * 40 * 512, max(shapes, key=np.prod)
    assert any(np.prod(shape) == 2 * 8 * 512 for shape in shapes)


def test_a_frozen_output_map_costs_no_gradient_of_its_own():
    model, params = model_and_params(False)

    def loss(trees):
        hidden, params = trees.get("hidden", HIDDEN), trees.get("params", frozen)
        return likelihood.token_logp(model, params, hidden, TOKEN, SEGMENT, chunk=8)[0].sum()

    frozen = params
    products = [compiled(loss, trees).count(" dot(") for trees in ({"hidden": HIDDEN}, {"hidden": HIDDEN, "params": params})]
    assert products == [3, 4]  # forward, again, towards the states; and towards the map


def test_chunks_in_which_nothing_is_wanted_are_not_computed():
    """A trap in the output map: whoever turns the poisoned states into logits gets NaN everywhere."""
    model, params = model_and_params(True)
    hidden, wanted = HIDDEN.copy(), np.zeros((B, L), bool)
    wanted[:, 3:6] = True  # predicted from states 2, 3, 4
    hidden[:, 5:] = np.nan

    def total(params):
        return likelihood.token_logp(model, params, hidden, TOKEN, SEGMENT, wanted=wanted, chunk=3)[0].sum()

    value, grads = jax.value_and_grad(total)(params)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
