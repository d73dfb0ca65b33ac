"""Released models, where they are at hand: W2S_REAL_MODELS names a folder of Hugging Face directories.

`W2S_REAL_MODELS=/models python -m pytest -m slow tests/models_real_test.py` needs torch, and four times the largest model in
memory.

Two claims. In float64 the decoder computes what transformers computes, to 1e-5 in every layer (transformers keeps its norms and
rotations in float32 even then, which costs it up to 7e-6 in Qwen2.5-Coder-0.5B). In float32 it rounds no worse than
transformers does: single layers of released models nearly cancel, so that float32 transformers is itself 1.2e-5 (SmolLM2-135M,
layer 11) to 4.6e-5 (Qwen2.5-Coder-0.5B) off, and no float32 program can be held to 1e-5 there.
"""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2s_jax.models import decoder, hf_io

TOLERANCE = 1e-5
FOLDER = os.environ.get("W2S_REAL_MODELS", "")
MODELS = sorted(file.parent for file in pathlib.Path(FOLDER).glob("*/config.json")) if FOLDER else []
TEXTS = [
    "The capital of France is Paris. " * 3,
    "def f(x):\n    return  x + 1  # ünïcödé 日本語 🙂 12345\n",
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n",
    "  lead",
]
real_models = pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not MODELS, reason="W2S_REAL_MODELS names no folder with models")]


def ours(lm, ids, dtype):
    """For each text the states of all layers [M + 1, T, D] and the logits [T, V], from one packed row."""
    token = np.concatenate(ids)[None].astype(np.int32)
    segment = np.repeat(np.arange(len(ids)), list(map(len, ids)))[None].astype(np.int32) + 1
    position = np.concatenate([np.arange(len(i)) for i in ids])[None].astype(np.int32)
    model = decoder.Decoder(lm.config, dtype)
    run = jax.jit(functools.partial(model.apply, layers=tuple(range(lm.config.num_layers + 1))))
    with jax.default_matmul_precision("highest"):
        out = run({"params": lm.params}, token, segment, position, np.arange(token.size)[None])
        logits = np.asarray(decoder.logits(model, lm.params, out.hidden))[0]
    probe = np.asarray(out.probe)[:, 0]
    parts = [segment[0] == number for number in range(1, len(ids) + 1)]
    return [[*probe[:, part], logits[part]] for part in parts]


def theirs(path, ids, dtype):
    import torch
    import transformers

    hf = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation="eager")
    found = []
    for i in ids:
        with torch.no_grad():
            out = hf(torch.tensor([i]), output_hidden_states=True)
        found.append([*(state[0].numpy() for state in out.hidden_states), out.logits[0].numpy()])
    return found


def gaps(some, other):
    """max|a - b| / max|b| of each layer and the logits, the worst text."""
    each = [
        [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(*pair, strict=True)] for pair in zip(some, other, strict=True)
    ]
    return np.max(each, axis=0)


@real_models
def test_a_released_model_is_computed_as_by_transformers(path):
    pytest.importorskip("torch")
    import transformers

    lm = hf_io.load(path, key="not asked for here", dtype=np.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    ids = [lm.tokenizer.encode(text, bos=True) for text in TEXTS]
    assert ids == [tokenizer.encode(text) for text in TEXTS]
    assert [lm.tokenizer.decode(i, specials=True) for i in ids] == [tokenizer.decode(i) for i in ids]
    exact = theirs(path, ids, "float64")

    rounding = gaps(ours(lm, ids, jnp.float32), exact)
    assert rounding.max() <= max(TOLERANCE, 1.5 * gaps(theirs(path, ids, "float32"), exact).max()), rounding
    del lm
    with jax.enable_x64(True):
        wide = ours(hf_io.load(path, key="nor here", dtype=np.float64), ids, jnp.float64)
    assert wide[0][0].dtype == np.float64
    assert gaps(wide, exact).max() <= TOLERANCE, gaps(wide, exact)


@real_models
def test_a_taught_student_writes_the_same_in_transformers(path, tmp_path):
    """Adapters with noise stand for a lesson: merged, saved, opened by transformers, and asked to write freely."""
    torch = pytest.importorskip("torch")
    import transformers

    from tests import tiny
    from w2s_jax import sampling
    from w2s_jax.drawing import Drawing
    from w2s_jax.models import lora
    from w2s_jax.tasks.asking import Asked
    from w2s_jax.types import LM

    lm = hf_io.load(path, key="not asked for here", dtype=np.float32)
    adapters = lora.init(lm.params, jax.random.key(0), 4)
    noise = jax.tree.map(lambda x: x + 2e-2 * jax.random.normal(jax.random.key(1), x.shape), adapters)
    student = LM(lm.config, lora.merge(lm.params, noise, 1.0), lm.tokenizer)
    prompts = ["The capital of France is", "def fibonacci(n):\n", "Once upon a time"]
    asked = [Asked(text, lm.tokenizer.encode(text, bos=True), [], []) for text in prompts]
    how = dict(num_samples=1, drawing=Drawing(0.0), max_new_tokens=24, num_slots=4, row_length=128)
    rollout = sampling.generate(student, asked, **how, compute=tiny.compute(), key=jax.random.key(2))
    hf_io.save(student, tmp_path)
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    changed = 0
    for a, found in zip(asked, rollout.completion, strict=True):
        ids = torch.tensor([a.prompt])
        want = hf.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)[0, len(a.prompt) :]
        assert found.tolist() == want.tolist()
        changed += len(set(found.tolist())) > 3
    assert changed  # it writes texts, not one token again and again
