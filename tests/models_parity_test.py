"""The decoder computes what transformers computes: every layer's hidden state, and the logits.

With torch: random tiny models of each family, made and saved by transformers, are loaded and compared on packed ragged rows
against one unpacked forward pass per segment. Without torch: stored goldens, `tests/golden/decoder_<family>.npz`, for models
whose weights come from a numpy seed through our own `save`.

`PYTHONPATH=. python tests/models_parity_test.py` (needs torch) writes the goldens that are not there. To delete one first is
legitimate when the inputs, sizes or seeds in this file change; never to make a failing comparison pass.
"""

import dataclasses
import functools
import importlib.util
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from w2s_jax.models import decoder, hf_io, rope, tokenizer
from w2s_jax.models.config import DecoderConfig
from w2s_jax.types import LM

GOLDEN = pathlib.Path(__file__).parent / "golden"
TOLERANCE = 1e-5
VOCAB, LENGTHS = 32, [[5, 1, 7], [9, 3]]
SIZES = (VOCAB, 24, 3, 4, 2, 6, 40)
QWEN3 = DecoderConfig(VOCAB, 24, 3, 4, 2, 10, 40, family="qwen3", qk_norm=True)
CONFIGS = {
    "llama": DecoderConfig(*SIZES, family="llama", mlp_bias=True),
    "qwen2": DecoderConfig(*SIZES, family="qwen2", qkv_bias=True, tied=True, rope_theta=1e6),
    "qwen3": QWEN3,
    "olmo2": DecoderConfig(*SIZES, family="olmo2", norm_place="post", qk_norm=True, qk_norm_joint=True, rope_theta=5e5),
    # One group and two blocks left over; every text but the shortest is longer than the window.
    "gemma3": DecoderConfig(
        VOCAB, 24, 5, 4, 2, 6, 40, family="gemma3_text", norm_place="sandwich", norm_offset=1.0, qk_norm=True, score_dim=10.0,
        activation="gelu_tanh", embed_scale=24**0.5, tied=True, pattern=("local", "local", "global"), window=4,
        rope_theta=1e6, rope_scaling=rope.Linear(8.0), local_rope_theta=1e4,
    ),
    "linear": DecoderConfig(*SIZES, family="llama", rope_scaling=rope.Linear(4.0)),
    # Of the three frequencies one is kept, one blended, one divided.
    "llama3": DecoderConfig(*SIZES, family="llama", rope_scaling=rope.Llama3(8.0, 1.0, 4.0, 256)),
    "windows": dataclasses.replace(QWEN3, pattern=("global", "local", "local"), window=4),
}  # fmt: skip
PLAIN = {"rope_type": "default"}
THEIRS = {
    "llama": ("Llama", dict(mlp_bias=True, rope_parameters=PLAIN | {"rope_theta": 1e4})),
    "qwen2": ("Qwen2", dict(rope_parameters=PLAIN | {"rope_theta": 1e6})),
    "qwen3": ("Qwen3", dict(rope_parameters=PLAIN | {"rope_theta": 1e4})),
    "olmo2": ("Olmo2", dict(rope_parameters=PLAIN | {"rope_theta": 5e5}, rms_norm_eps=1e-6)),
    "gemma3": (
        "Gemma3Text",
        dict(
            sliding_window=4, sliding_window_pattern=3, query_pre_attn_scalar=10, num_hidden_layers=5,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": PLAIN | {"rope_theta": 1e4},
            },
        ),
    ),
    "linear": ("Llama", dict(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4})),
    "llama3": (
        "Llama",
        dict(
            rope_parameters={
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256, "rope_theta": 1e4,
            }
        ),
    ),
    "windows": (
        "Qwen3",
        dict(rope_parameters=PLAIN | {"rope_theta": 1e4}, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ),
}  # fmt: skip
"""Class and settings of the same model in transformers."""
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is the reference here")


def rows():
    """Packed ragged rows: token, segment, position, each i32[2, 16]."""
    draw = np.random.RandomState(0)
    token, segment, position = np.zeros((3, len(LENGTHS), 16), np.int32)
    for b, lengths in enumerate(LENGTHS):
        start = 0
        for number, length in enumerate(lengths, 1):
            part = slice(start, start + length)
            token[b, part], segment[b, part], position[b, part] = draw.randint(0, VOCAB, length), number, np.arange(length)
            start += length
    return token, segment, position


def seeded(config, seed=1):
    """Parameters from a numpy seed whose stream is frozen; nothing is left at a special value such as 0 or 1."""
    draw = np.random.RandomState(seed)
    shapes = traverse_util.flatten_dict(decoder.shapes(config), sep="/")
    values = {name: 0.3 * draw.standard_normal(shapes[name].shape).astype(np.float32) for name in sorted(shapes)}
    return traverse_util.unflatten_dict({name: x + name.endswith("scale") for name, x in values.items()}, sep="/")


@functools.partial(jax.jit, static_argnames=("config", "layers"))
def states(body, config, layers):
    token, segment, position = rows()
    everywhere = np.broadcast_to(np.arange(token.shape[1]), token.shape)
    return decoder.Decoder(config).apply({"params": body}, token, segment, position, everywhere, layers=layers)


def ours(lm, layers):
    """All hidden states [P,B,L,D] and logits [B,L,V]."""
    # Without its head a model is the same program tied or not, which saves a compilation.
    body = {name: part for name, part in lm.params.items() if name != "head"}
    with jax.default_matmul_precision("highest"):
        out = states(body, dataclasses.replace(lm.config, tied=True), layers)
        return [np.asarray(out.probe), np.asarray(decoder.logits(decoder.Decoder(lm.config), lm.params, out.hidden))]


def theirs(path):
    """The same from transformers, one segment at a time; padding stays zero."""
    import torch
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    # transformers keeps the pre-norm state of the last block to itself, so it is caught on its way into the norm.
    caught = []
    model.model.norm.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    token, segment, _ = rows()
    hidden = np.zeros((model.config.num_hidden_layers + 2, *token.shape, model.config.hidden_size), np.float32)
    logits = np.zeros((*token.shape, VOCAB), np.float32)
    for b in range(len(token)):
        for number in range(1, segment[b].max() + 1):
            part = segment[b] == number
            with torch.no_grad():
                out = model(torch.tensor(token[b, part][None].astype(int)), output_hidden_states=True)
            hidden[:, b, part] = torch.stack([*out.hidden_states, caught[-1]])[:, 0].numpy()
            logits[b, part] = out.logits[0].numpy()
    return hidden, logits


def layer_words(config):
    return (*range(config.num_layers + 1), "prenorm")


def assert_close(got, want, names):
    real = rows()[1] > 0
    for a, b, name in zip(got, want, names, strict=True):
        error = np.abs(a[real] - b[real]).max() / np.abs(b[real]).max()
        assert error <= TOLERANCE, f"{name}: {error:.1e}"


@needs_torch
@pytest.mark.parametrize(
    ("name", "num_kv_heads"),
    [(name, heads) for name in CONFIGS for heads in (4, 2, 1) if heads == 2 or name not in ("linear", "llama3", "windows")],
)
def test_hidden_states_and_logits_are_those_of_transformers(name, num_kv_heads, tmp_path):
    import torch
    import transformers

    config = CONFIGS[name]
    family, settings = THEIRS[name]
    sizes = dict(
        vocab_size=VOCAB, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=num_kv_heads,
        head_dim=config.head_dim, intermediate_size=40, max_position_embeddings=64, bos_token_id=None, eos_token_id=1,
        pad_token_id=None,
    )  # fmt: skip
    if name == "qwen2":
        sizes.pop("head_dim")
    for tied in (False, True):
        path = tmp_path / str(tied)
        written = getattr(transformers, f"{family}Config")(**sizes | settings, tie_word_embeddings=tied)
        hf = transformers.AutoModelForCausalLM.from_config(written)
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in hf.parameters():
                weight.copy_(torch.randn_like(weight) * 0.3 + (1.0 if weight.ndim == 1 else 0.0))
        hf.save_pretrained(path)
        tokenizer.word_level([f"w{i}" for i in range(VOCAB - 2)]).save(path)
        lm = hf_io.load(path)
        assert lm.config == dataclasses.replace(config, num_kv_heads=num_kv_heads, tied=tied, max_position=64)
        words = layer_words(lm.config)
        hidden, logits = theirs(path)
        got, got_logits = ours(lm, words)
        assert_close([*got, got_logits], [*hidden, logits], [*words, "logits"])


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_and_logits_are_the_stored_ones(name, tmp_path):
    config = CONFIGS[name]
    hf_io.save(LM(config, seeded(config), tokenizer.word_level([f"w{i}" for i in range(VOCAB - 2)])), tmp_path)
    words = layer_words(config)
    got, logits = ours(hf_io.load(tmp_path), words)
    stored = np.load(GOLDEN / f"decoder_{name}.npz")
    assert_close([*got, logits], [*stored["hidden"], stored["logits"]], [*words, "logits"])


@needs_torch
def test_goldens_are_what_transformers_computes_today(tmp_path):
    config = CONFIGS["qwen3"]
    hf_io.save(LM(config, seeded(config), tokenizer.word_level([f"w{i}" for i in range(VOCAB - 2)])), tmp_path)
    hidden, logits = theirs(tmp_path)
    stored = np.load(GOLDEN / "decoder_qwen3.npz")
    assert_close([*stored["hidden"], stored["logits"]], [*hidden, logits], [*layer_words(config), "logits"])


def natural(config):
    """Weights of the size that training leaves: outputs as large as inputs, norms near 1."""
    draw = np.random.RandomState(0)

    def leaf(path, x):
        noise = draw.standard_normal(x.shape).astype(np.float32)
        if path[-1].key == "scale":
            return 1 - config.norm_offset + 0.1 * noise
        return noise * (x.shape[-2] if path[-1].key == "kernel" else config.width) ** -0.5

    return jax.tree_util.tree_map_with_path(leaf, decoder.shapes(config))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "olmo2", "gemma3"])
def test_bfloat16_compute_stays_within_two_percent_of_float32(name):
    # Relative to the norm of the tensor. transformers' own bfloat16 is as far from its float32.
    config, real = CONFIGS[name], rows()[1] > 0
    params, words = natural(config), layer_words(config)
    exact, rough = (computed(config, params, words, dtype) for dtype in ("float32", "bfloat16"))
    for a, b, word in zip(rough, exact, [*words, "logits"], strict=True):
        a, b = np.asarray(a)[real], np.asarray(b)[real]
        assert 0 < np.linalg.norm(a - b) <= 2e-2 * np.linalg.norm(b), word


def computed(config, params, layers, dtype):
    model = decoder.Decoder(config, dtype=jnp.dtype(dtype))
    token, segment, position = rows()
    everywhere = np.broadcast_to(np.arange(token.shape[1]), token.shape)

    @jax.jit
    def run(params):
        out = model.apply({"params": params}, token, segment, position, everywhere, layers=layers)
        return [*out.probe, decoder.logits(model, params, out.hidden)]

    return run(params)


def update():
    """Writes the goldens that are not there yet; delete those that are to change."""
    GOLDEN.mkdir(exist_ok=True)
    for name, config in CONFIGS.items():
        if (GOLDEN / f"decoder_{name}.npz").exists():
            continue
        with tempfile.TemporaryDirectory() as path:
            hf_io.save(LM(config, seeded(config), tokenizer.word_level([f"w{i}" for i in range(VOCAB - 2)])), path)
            hidden, logits = theirs(path)
        np.savez_compressed(GOLDEN / f"decoder_{name}.npz", hidden=hidden, logits=logits)


if __name__ == "__main__":
    sys.exit(update())
