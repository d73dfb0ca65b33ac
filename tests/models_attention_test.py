"""Every attention back end computes the same, with segments, windows, shared heads and a cache; none lets others' tokens in."""

import functools
import importlib.util
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2s_jax.models import attention
from w2s_jax.models.compute import Compute
from w2s_jax.models.sharding import make_mesh

B, L, H, J, C = 2, 256, 4, 2, 16
LENGTHS = [[50, 1, 60, 145], [250]]
SEGMENT = np.zeros((B, L), np.int32)
for b, lengths in enumerate(LENGTHS):
    SEGMENT[b, : sum(lengths)] = np.repeat(np.arange(len(lengths)) + 1, lengths)
BACK_ENDS = {
    "xla": attention.back_end("xla"),
    "jax": attention.back_end("jax"),
    "splash": functools.partial(attention.splash, mesh=None, interpret=True),
}
if importlib.util.find_spec("tokamax"):
    BACK_ENDS["tokamax"] = attention.back_end("tokamax")


def arrays(length=L):
    draw = np.random.default_rng(0)
    return [draw.normal(size=(B, length, heads, C)).astype(np.float32) for heads in (H, J, J)]


def reference(q, k, v, mask, scale):
    """Head by head and in float64, by the definition."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, h in np.ndindex(len(q), H):
        score = q[b, :, h] @ k[b, :, h // (H // J)].T * scale
        share = np.exp(np.where(mask[b], score, -np.inf) - np.where(mask[b], score, -np.inf).max(-1, keepdims=True))
        out[b, :, h] = share / share.sum(-1, keepdims=True) @ v[b, :, h // (H // J)]
    return out


def plain_mask(window):
    mask = np.zeros((B, L, L), bool)
    for b, t, s in np.ndindex(B, L, L):
        mask[b, t, s] = SEGMENT[b, t] == SEGMENT[b, s] and s <= t and (not window or t - s < window)
    return mask


@pytest.mark.parametrize("name", BACK_ENDS)
@pytest.mark.parametrize("window", [0, 5])
def test_a_back_end_computes_the_definition(name, window):
    real = SEGMENT > 0
    with jax.default_matmul_precision("highest"), warnings.catch_warnings(action="ignore"):
        out = jax.jit(BACK_ENDS[name], static_argnums=4)(*arrays(), attention.segment_sight(SEGMENT, window), 0.3)
    want = reference(*arrays(), plain_mask(window), 0.3)
    assert np.abs(out - want)[real].max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("name", [name for name in BACK_ENDS if name in attention.SEES_PREFIXES])
@pytest.mark.parametrize("window", [0, 5])
def test_a_prefix_is_seen_by_those_that_share_it_and_by_no_one_else(name, window):
    segment, prefix, position = (np.zeros((B, L), np.int32) for _ in range(3))
    parts = {1: np.arange(9), 2: np.arange(9, 14), 3: np.arange(14, 140), 4: np.arange(140, 150)}  # 2 and 3 share 1
    for number, places in parts.items():
        segment[1, places] = number
        prefix[1, places] = number in (2, 3)
        position[1, places] = np.arange(len(places)) + (9 if number in (2, 3) else 0)
    with jax.default_matmul_precision("highest"), warnings.catch_warnings(action="ignore"):
        sight = attention.prefix_sight(segment, prefix, position, window)
        out = np.asarray(jax.jit(BACK_ENDS[name], static_argnums=4)(*arrays(), sight, 0.3))
    for number, own in parts.items():
        whole = np.concatenate([parts[1], own]) if number in (2, 3) else own
        near = np.subtract.outer(range(len(whole)), range(len(whole)))
        mask = (near >= 0) & (near < window if window else True)
        want = reference(*(x[1:, whole] for x in arrays()), mask[None], 0.3)[0, -len(own) :]
        assert np.abs(out[1, own] - want).max() <= 1e-5 * np.abs(want).max(), number


@pytest.mark.parametrize("name", [name for name in BACK_ENDS if name != "xla"])
def test_gradients_are_those_of_xla(name):
    def loss(qkv, attend):
        out = attend(*qkv, attention.segment_sight(SEGMENT, 5), 0.3)
        return jnp.sum(jnp.where(SEGMENT[..., None, None] > 0, jnp.sin(out), 0))

    with jax.default_matmul_precision("highest"), warnings.catch_warnings(action="ignore"):
        want, found = (jax.jit(jax.grad(loss), static_argnums=1)(arrays(), BACK_ENDS[n]) for n in ("xla", name))
    for a, b in zip(found, want, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("name", BACK_ENDS)
def test_padding_and_other_segments_are_not_let_in(name):
    q, k, v = arrays()
    sight = attention.segment_sight(SEGMENT)
    strange = [np.where((np.arange(L) >= 50)[:, None, None], 9.0, x).astype(np.float32) for x in (k, v)]
    with warnings.catch_warnings(action="ignore"):
        one, other = (BACK_ENDS[name](q, *kv, sight, 0.5)[0, :50] for kv in ((k, v), strange))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("window", [0, 3])
def test_over_a_cache_a_token_sees_what_was_fed_and_nothing_later(window):
    q, k, v = arrays(16)
    position = np.array([[4, 5], [9, 10]], np.int32)
    sight = attention.cache_sight(position, 16, window)

    def attend(k, v):
        return attention.over_cache(q[:, :2], k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), sight, 0.5)

    want = attend(k, v)
    np.testing.assert_allclose(want, attention.dense(q[:, :2], k, v, sight.mask, 0.5), rtol=1e-4, atol=1e-5)
    later = [np.where((np.arange(16) > 5)[:, None, None], 9.0, x).astype(np.float32) for x in (k, v)]
    np.testing.assert_array_equal(attend(*later)[0], want[0])
    assert abs(attend(*later)[1] - want[1]).max() > 0.1


def test_splash_names_the_row_length_that_it_cannot_take():
    with pytest.raises(ValueError, match="multiple of 128, they have 100 tokens; change shape.row_length"):
        attention.splash(*arrays(100), attention.segment_sight(SEGMENT[:, :100]), 1.0, mesh=None)


def test_splash_runs_on_a_tpu_and_splits_rows_and_heads_over_a_mesh():
    """The kernel is compiled for a TPU, not run: its program calls it, and gathers no queries."""
    mesh = jax.sharding.AbstractMesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    sharded = functools.partial(attention.splash, mesh=mesh)
    args = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in arrays()]

    def run(q, k, v):
        return sharded(q, k, v, attention.segment_sight(SEGMENT), 0.3)

    text = jax.jit(run).trace(*args).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text


def test_auto_means_xla_here_and_is_a_name_of_its_own_in_the_config():
    compute = Compute(make_mesh(devices=jax.devices()[:1]))
    from tests import tiny

    assert compute.attention == "auto" and compute.model(tiny.CONFIG).attention == "xla"
    with pytest.raises(ValueError, match="attention='flash': allowed are auto, xla"):
        Compute(compute.mesh, attention="flash")
