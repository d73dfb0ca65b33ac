"""The decoder's own laws: packing, probing, caching, adapters, log-probabilities, constant program size."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2s_jax import packing
from w2s_jax.models import attention, decoder, layers, likelihood, lora, rope
from w2s_jax.models.config import DecoderConfig
from w2s_jax.packing import Shape
from w2s_jax.types import Ragged

# A group of two blocks and one left over exercise both ways in which blocks are stored.
CONFIG = DecoderConfig(32, 16, 3, 4, 2, 6, 24, qkv_bias=True, qk_norm=True, pattern=("global", "global"), init_std=0.3)
PARAMS = decoder.init(CONFIG, jax.random.key(0))
MODEL = decoder.Decoder(CONFIG, lora_scale=0.5)
# All that other families do differently, at once.
OTHER = DecoderConfig(
    32, 16, 3, 4, 2, 6, 24, norm_place="sandwich", norm_offset=1.0, qk_norm=True, qk_norm_joint=True, activation="gelu_tanh",
    embed_scale=4.0, score_dim=10.0, tied=True, pattern=("local", "global"), window=3, local_rope_theta=1e3,
    rope_scaling=rope.Linear(8.0), init_std=0.3,
)  # fmt: skip
WINDOW = {"local": {}, "global": dict(window=0, local_rope_theta=None)}
LENGTHS = [5, 1, 7, 3]


@pytest.fixture(autouse=True)
def exact_matmuls():
    with jax.default_matmul_precision("highest"):
        yield


@functools.partial(jax.jit, static_argnames=("model", "layers"))
def run(model, params, adapters, token, segment, position, probe=None, layers=(-1,)):
    out = model.apply(decoder.variables(params, adapters), token, segment, position, probe, layers=layers)
    logp, entropy = likelihood.token_logp(model, params, out.hidden, token, segment, entropy=True, chunk=4)
    return out, logp, entropy


def texts(lengths=LENGTHS, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(0, CONFIG.vocab_size, length).astype(np.int32) for length in lengths]


def packed(rows):
    """token, segment, position, i32[4, 16], of up to 4 rows of texts; padding holds a real token's id.

    All tests share one shape and, where they can, one model, and so a few compilations.
    """
    token, segment, position = np.zeros((3, 4, 16), np.int32)
    token[:] = 7
    for b, row in enumerate(rows):
        start = 0
        for number, text in enumerate(row, 1):
            part = slice(start, start := start + len(text))
            token[b, part], segment[b, part], position[b, part] = text, number, np.arange(len(text))
    return token, segment, position


def noisy_adapters(params=PARAMS):
    draw = np.random.default_rng(5)
    shapes = jax.eval_shape(lambda: lora.init(params, jax.random.key(1), 2))
    return jax.tree.map(lambda x: draw.normal(0, 0.2, x.shape).astype(np.float32), shapes)


def close(a, b, tolerance=1e-5):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def test_packing_padding_and_row_order_do_not_change_a_text():
    words = texts()
    layouts = [
        [[text] for text in words],  # alone, padded
        [[words[2], words[0]], [], [words[3]], [words[1]]],
        [[words[1], words[3]], [words[0]], [], [words[2]]],
    ]
    seen = []
    for layout in layouts:
        token, segment, position = packed(layout)
        out, logp, entropy = run(MODEL, PARAMS, None, token, segment, position)
        found = {}
        for b, row in enumerate(layout):
            for number, text in enumerate(row, 1):
                part = segment[b] == number
                found[text.tobytes()] = [np.asarray(x)[b, part] for x in (out.hidden, logp, entropy)]
        seen.append([np.concatenate(columns) for columns in zip(*[found[text.tobytes()] for text in words], strict=True)])
    for other in seen[1:]:
        for a, b in zip(other, seen[0], strict=True):
            close(a, b)


def test_logp_is_log_softmax_of_the_previous_logits_and_zero_where_nothing_precedes():
    token, segment, position = packed([texts([5, 4]), texts([3])])
    out, logp, entropy = run(MODEL, PARAMS, None, token, segment, position)
    logits = decoder.logits(MODEL, PARAMS, out.hidden)
    full = jax.nn.log_softmax(logits)
    want, chaos = np.zeros((2, 4, 16), np.float32)
    for b, t in np.ndindex(4, 16):
        if segment[b, t] and position[b, t]:
            want[b, t] = full[b, t - 1, token[b, t]]
            chaos[b, t] = -(jnp.exp(full[b, t - 1]) * full[b, t - 1]).sum()
    close(logp, want)
    close(entropy, chaos)
    warm, none = likelihood.token_logp(MODEL, PARAMS, out.hidden, token, segment, temperature=2.0)
    assert none is None
    close(warm[0, 1], jax.nn.log_softmax(logits[0, 0] / 2)[token[0, 1]])


def test_probes_are_gathered_states_and_only_gathered_ones_leave_the_scan():
    batch = packed([texts([9]), texts([4, 5])])
    everywhere = np.broadcast_to(np.arange(16), (4, 16))
    layers = (0, 1, 2, 3, -1, "prenorm")
    out, _, _ = run(MODEL, PARAMS, None, *batch, everywhere, layers)
    some = np.array([[8, 0], [3, 7], [0, 0], [15, 1]], np.int32)
    few, _, _ = run(MODEL, PARAMS, None, *batch, some, layers)
    close(few.probe, np.take_along_axis(np.asarray(out.probe), some[None, :, :, None], axis=2))
    close(out.probe[3], out.hidden)
    close(out.probe[4], out.hidden)
    close(out.probe[0], PARAMS["embed"]["weight"][batch[0]])
    scale = jnp.sqrt(jnp.mean(out.probe[5] ** 2, -1, keepdims=True) + CONFIG.norm_eps)
    close(out.probe[5] / scale, out.hidden)
    jaxpr = jax.make_jaxpr(lambda p: MODEL.apply({"params": p}, *batch, some, layers=(1,)).probe)(PARAMS)
    (scan,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    leaving = {out.aval.shape for out in scan.outvars}
    assert leaving == {(4, 16, 16), (1, 2, 4, 2, 16)}, leaving  # the carry [B,L,D], and [groups, blocks, B, G, D]
    with pytest.raises(ValueError, match=r"layer 4; allowed are -4..3 and 'prenorm'"):
        decoder.resolve_layers((4,), 3)


@pytest.mark.parametrize("config", [CONFIG, OTHER], ids=["plain", "other"])
def test_cached_prefill_and_decode_equal_the_full_pass(config):
    model, weights = decoder.Decoder(config, lora_scale=0.5), decoder.init(config, jax.random.key(0))
    adapters = noisy_adapters(weights)
    words = texts([9, 6, 8, 7])
    token, segment, position = packed([[text] for text in words])
    out, _, _ = run(model, weights, adapters, token, segment, position)
    params, thin = jax.jit(lambda *trees: [decoder.unstack(config, tree) for tree in trees])(weights, adapters)
    prompts = np.array([5, 2, 4, 6])
    # The cache is dirty: what a row held before must not be seen.
    cache = jax.tree.map(lambda x: x + 3.0, decoder.init_cache(config, 4, 12))
    extend = jax.jit(decoder.extend, static_argnums=0)
    place = np.broadcast_to(np.arange(6), (4, 6))
    # Padding claims position 0, which it must not overwrite.
    valid = place < prompts[:, None]
    hidden, cache = extend(model, params, thin, cache, token[:, :6], np.where(valid, place, 0), valid)
    got = np.zeros(out.hidden.shape, np.float32)
    for b, length in enumerate(prompts):
        got[b, :length] = hidden[b, :length]
    for step in range(7):
        at = (prompts + step)[:, None]
        on = at < np.array([[9], [6], [8], [7]])
        now = np.minimum(at, 11)
        hidden, cache = extend(model, params, thin, cache, np.take_along_axis(token, now, 1), now, on)
        for b in np.flatnonzero(on):
            got[b, at[b]] = hidden[b]
    real = segment > 0
    close(got[real], np.asarray(out.hidden)[real])
    logps = [jax.nn.log_softmax(decoder.logits(model, params, x[real])) for x in (got, np.asarray(out.hidden))]
    np.testing.assert_allclose(*logps, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [CONFIG, OTHER], ids=["plain", "other"])
def test_a_prefilled_sequence_continues_in_any_row_of_a_larger_or_smaller_cache(config):
    model, weights = decoder.Decoder(config, lora_scale=0.5), decoder.init(config, jax.random.key(0))
    adapters = noisy_adapters(weights)
    token, segment, position = packed([[text] for text in texts([9, 6])])
    want = np.asarray(run(model, weights, adapters, token, segment, position)[0].hidden)
    params, thin = jax.jit(lambda *trees: [decoder.unstack(config, tree) for tree in trees])(weights, adapters)
    length = np.array([5, 4])
    last, ready = jax.jit(decoder.prefill, static_argnums=0)(model, params, thin, token[:2, :6], length)
    close(last, want[[0, 1], length - 1])

    @jax.jit
    def admit(cache, ready):
        # Two copies of the second sequence, one of the first; the fourth is put nowhere.
        return cache.resized(16).replaced(jnp.array([3, 0, 1, 4]), ready, jnp.array([1, 1, 0, 0])).resized(12)

    dirty = jax.tree.map(lambda x: x + 3.0, decoder.init_cache(config, 4, 8))
    cache = admit(dirty, ready)
    np.testing.assert_array_equal(cache.layer[0][0][2, :, :, :8], dirty.layer[0][0][2])
    source = np.array([1, 0, 0, 1])
    for step in range(2):
        at = (length[source] + step)[:, None]
        hidden, cache = decoder.extend(model, params, thin, cache, np.take_along_axis(token[source], at, 1), at, at > 0)
        for b in (0, 1, 3):
            close(hidden[b, 0], want[source[b], at[b, 0]])


@pytest.mark.parametrize("config", [CONFIG, OTHER], ids=["plain", "other"])
def test_fresh_adapters_change_nothing_and_merged_ones_equal_applied_ones(config):
    batch = packed([texts([9]), texts([4, 5])])
    model, params = decoder.Decoder(config, lora_scale=0.5), decoder.init(config, jax.random.key(0))
    base, _, _ = run(model, params, None, *batch)
    fresh, _, _ = run(model, params, lora.init(params, jax.random.key(1), 2), *batch)
    close(fresh.hidden, base.hidden)
    adapters = noisy_adapters(params)
    applied, _, _ = run(model, params, adapters, *batch)
    merged, _, _ = run(model, lora.merge(params, lora.Adapters(adapters, 2, 1.0)), None, *batch)
    close(merged.hidden, applied.hidden)
    assert np.abs(applied.hidden - base.hidden).max() > 0.01 * np.abs(base.hidden).max()


def test_adapters_start_like_those_of_peft_and_only_where_asked():
    adapters = lora.init(PARAMS, jax.random.key(0), 4, ("q", "down"))
    block = adapters["layers"]["block_1"]
    assert jax.tree.map(jnp.shape, block) == {
        "attn": {"q": {"a": (1, 16, 4), "b": (1, 4, 24)}},
        "mlp": {"down": {"a": (1, 24, 4), "b": (1, 4, 16)}},
    }
    a = np.asarray(block["mlp"]["down"]["a"])
    assert np.abs(a).max() <= 24**-0.5 and np.abs(a).max() > 0.8 * 24**-0.5
    with pytest.raises(ValueError, match=r"\('query',\); choose one or more of \['down', 'gate'"):
        lora.init(PARAMS, jax.random.key(0), 4, ("query",))
    with pytest.raises(ValueError, match="rank = 0"):
        lora.init(PARAMS, jax.random.key(0), 0)


def test_rematerialisation_and_back_end_change_neither_loss_nor_gradients():
    batch = packed([texts([9]), texts([4, 5])])

    def loss(params, adapters, model):
        return run(model, params, adapters, *batch)[1].sum()

    adapters = noisy_adapters()
    ways = [dict(), dict(remat="dots", attention="jax")]
    first, other = [
        jax.value_and_grad(loss, argnums=(0, 1))(PARAMS, adapters, decoder.Decoder(CONFIG, lora_scale=0.5, **way))
        for way in ways
    ]
    jax.tree.map(close, other, first)
    for way in (dict(remat="some"), dict(attention="flash")):
        with pytest.raises(ValueError, match="choose one of"):
            run(decoder.Decoder(CONFIG, **way), PARAMS, None, *batch)


def test_the_backward_pass_keeps_no_scores_one_array_a_norm_and_two_a_gate():
    config = DecoderConfig(32, 20, 3, 4, 2, 6, 44)
    params = decoder.init(config, jax.random.key(0))
    token, segment, position = packed([texts([9]), texts([4, 5])])
    B, L = token.shape

    def hidden(adapters):
        variables = decoder.variables(params, adapters)
        return decoder.Decoder(config, lora_scale=0.5).apply(variables, token, segment, position).hidden

    sizes = [x.size for x in jax.tree.leaves(jax.vjp(hidden, noisy_adapters(params))[1])]
    assert sizes.count(3 * B * L * config.mlp_width) == 2  # gate and up
    # Attention and the MLP: what enters its norm, and what comes out, which the adapters' gradients need.
    assert sizes.count(3 * B * L * config.width) == 4
    assert max(sizes) == 3 * B * L * config.mlp_width < 3 * B * config.num_heads * L * L


def test_gradients_of_adapters_turn_no_rows_around():
    """As long as rows have two axes, XLA for the CPU writes inputs and gradients anew, column by column."""
    num_in, num_out, rank = 20, 44, 2
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 8, num_in), (num_in, rank), (rank, num_out))]
    step = jax.grad(lambda x, a, b: jnp.sin(layers.low_rank(x, a, b, 0.5)).sum(), argnums=(0, 1, 2))
    text = jax.jit(step).lower(*shapes).compile().as_text()
    assert "f32[32,44]" in text and not re.findall(r"f32\[(?:20|44),32\]", text)


@pytest.mark.parametrize("pattern", [("global",), ("local",) * 5 + ("global",)], ids=["plain", "gemma3"])
def test_program_size_does_not_grow_with_depth(pattern):
    def instructions(num_groups):
        # Two blocks beyond the whole groups, as Gemma 3 has them at most sizes.
        num_layers = num_groups * len(pattern) + 2 * (len(pattern) > 1)
        config = dataclasses.replace(OTHER, num_layers=num_layers, pattern=pattern, **WINDOW[pattern[0]])
        model = decoder.Decoder(config, remat="full")
        batch = [np.ones((1, 8), np.int32)] * 3
        step = jax.grad(lambda p: model.apply({"params": p}, *batch, batch[0], layers=(1,)).probe.sum())
        return jax.jit(step).lower(decoder.shapes(config)).as_text().count("\n")

    assert instructions(2) == instructions(8)


def test_bfloat16_compute_stays_near_float32():
    batch = packed([texts([9]), texts([4, 5])])
    exact, logp, _ = run(decoder.Decoder(CONFIG), PARAMS, None, *batch)
    rough, rough_logp, _ = run(decoder.Decoder(CONFIG, dtype=jnp.bfloat16), PARAMS, None, *batch)
    assert rough.hidden.dtype == jnp.bfloat16 and rough_logp.dtype == jnp.float32
    real = batch[1] > 0
    close(np.asarray(rough.hidden, np.float32)[real], np.asarray(exact.hidden)[real], 0.05)


def test_a_window_hides_what_is_further_back_in_rows_and_in_the_cache_alike():
    segment = jnp.array([[1, 1, 1, 1, 2, 2, 0]])
    near = attention.segment_sight(segment, 2).mask[0].astype(int).tolist()
    assert near == [[1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0],
                    [0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1]]  # fmt: skip
    alone = jnp.ones((1, 9), jnp.int32)
    for window in (0, 1, 4, 9, 20):
        cached = attention.cache_sight(jnp.arange(9)[None], 9, window).mask
        np.testing.assert_array_equal(cached, attention.segment_sight(alone, window).mask)


@pytest.mark.parametrize("config", [CONFIG, OTHER], ids=["plain", "other"])
def test_answers_that_share_a_prompt_are_as_probable_as_each_behind_its_own(config):
    draw = np.random.default_rng(0)
    prompt, *answers = (draw.integers(1, 32, n).astype(np.int32) for n in (5, 4, 6, 1))
    params, model = decoder.init(config, jax.random.key(1)), decoder.Decoder(config)
    apart = packed([[np.concatenate([prompt, answer])] for answer in answers])
    _, wanted, _ = run(model, params, None, *apart)
    together = np.concatenate([prompt[:-1], *(np.append(prompt[-1], answer) for answer in answers)])
    branch = np.repeat([0, 1, 2, 3], [4, *(1 + len(answer) for answer in answers)])
    batch = packing.lay_out(Ragged.of([together], np.int32), [[0]], Shape(20, 1, 1), branch=Ragged.of([branch], np.int32))
    hidden = model.apply({"params": params}, batch.token, batch.segment, batch.position, prefix=batch.prefix).hidden
    logp, _ = likelihood.token_logp(model, params, hidden, batch.token, batch.segment, chunk=4)
    for number, answer in enumerate(answers):
        mine = np.asarray(logp)[0, : len(branch)][branch == number + 1][1:]
        own = np.asarray(wanted)[number, len(prompt) : len(prompt) + len(answer)]
        assert len(mine) == len(answer)
        close(mine, own, 1e-5)


def test_local_blocks_do_not_see_past_their_window():
    config = dataclasses.replace(OTHER, num_layers=1, pattern=("local",))
    params, (token, *rest) = decoder.init(config, jax.random.key(0)), packed([texts([9])])
    other = token.copy()
    other[0, 2] = (token[0, 2] + 1) % 32
    before, after = (run(decoder.Decoder(config), params, None, x, *rest)[0] for x in (token, other))
    moved = np.abs(np.asarray(after.hidden) - np.asarray(before.hidden))[0, :9].max(-1) > 0
    assert moved.tolist() == [False, False, True, True, True, False, False, False, False]


def test_scaled_rotation_slows_what_it_should():
    frequency = np.array([1.0, 0.05, 0.001])
    np.testing.assert_allclose(rope.Linear(4.0).slow(frequency), frequency / 4)
    # 256 tokens hold 41, 2 and 0.04 turns.
    kept = (256 * 0.05 / (2 * np.pi) - 1) / 3
    want = [1.0, 0.05 * (kept + (1 - kept) / 8), 0.001 / 8]
    np.testing.assert_allclose(rope.Llama3(8.0, 1.0, 4.0, 256).slow(frequency), want)
    with pytest.raises(ValueError, match="high_freq_factor = 1.0 must be above low_freq_factor = 4.0"):
        rope.Llama3(8.0, 4.0, 1.0, 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [(dict(num_heads=5), "num_heads = 5 is no multiple"), (dict(head_dim=5), "even"),
     (dict(pattern=("far",)), "pattern"), (dict(pattern=("local",)), "window = 0 with pattern"), (dict(window=3), "window = 3"),
     (dict(local_rope_theta=1e4), "local_rope_theta = 10000.0, but"), (dict(qk_norm_joint=True), "set both, or neither"),
     (dict(norm_place="before"), "norm_place = 'before'; allowed are pre"), (dict(activation="relu"), "activation = 'relu'"),
     (dict(num_layers=0), "num_layers = 0")],
)  # fmt: skip
def test_impossible_shapes_are_refused(change, message):
    sizes = dict(vocab_size=8, width=4, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=4, mlp_width=8)
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**sizes | change)
