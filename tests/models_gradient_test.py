"""The gradient of the SFT loss is torch's, tensor by tensor, for every family, for all parameters and for adapters.

The reference is a model that transformers opens from our export, run one text at a time with torch's own differentiation; its
adapters are written as a parametrisation W + scale * (a b)^T of each linear map. Packed rows, prompts without weight, texts
longer than the window.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is the reference here")

import jax  # noqa: E402
import transformers  # noqa: E402
from flax import traverse_util  # noqa: E402

from w2s_jax.models import decoder, hf_io, likelihood, lora, tokenizer  # noqa: E402
from w2s_jax.student import sft  # noqa: E402
from w2s_jax.types import LM, Batch  # noqa: E402

from .models_parity_test import CONFIGS, VOCAB, rows, seeded  # noqa: E402

TOLERANCE = 1e-4
SCALE, RANK = 0.5, 2


def batch():
    """The packed rows of the parity tests; the first third of each text is prompt, and texts differ in trust."""
    token, segment, position = rows()
    trust = np.array([0.0, 1.0, 0.25, 0.75], np.float32)[segment]
    length = (segment[:, :, None] == segment[:, None, :]).sum(-1)
    weight = np.where((segment > 0) & (3 * position >= length) & (position > 0), trust, 0.0)
    return Batch(token=token, segment=segment, position=position, weight=weight.astype(np.float32))


def our_loss(params, adapters, config):
    data = batch()
    model = decoder.Decoder(config, lora_scale=SCALE)
    hidden = model.apply(decoder.variables(params, adapters), data.token, data.segment, data.position).hidden
    logp, _ = likelihood.token_logp(model, params, hidden, data.token, data.segment, chunk=8)
    total, count, _ = sft.make().loss({"logp": logp}, {}, data)
    return total / count


def their_loss(model):
    data = batch()
    total = 0.0
    for b in range(len(data.token)):
        for number in range(1, data.segment[b].max() + 1):
            part = data.segment[b] == number
            token = torch.tensor(data.token[b, part][None].astype(int))
            logp = torch.log_softmax(model(token).logits[0, :-1], -1).gather(1, token[0, 1:, None])[:, 0]
            total = total - (logp * torch.tensor(data.weight[b, part][1:])).sum()
    return total / data.weight.sum()


class LowRank(torch.nn.Module):
    """W + scale * (a b)^T."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.tensor(np.asarray(x))) for x in (a, b))

    def forward(self, weight):
        return weight + SCALE * (self.a @ self.b).T


def opened(config, params, path):
    """The same model in torch."""
    hf_io.save(LM(config, params, tokenizer.word_level([f"w{i}" for i in range(VOCAB - 2)])), path)
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    # Some families call a token padding by default, and torch would leave its row of the embedding without a gradient.
    model.get_input_embeddings().padding_idx = None
    return model


def assert_same(ours, theirs):
    gaps = {}
    for name, want in theirs.items():
        got = np.asarray(ours[name])
        assert got.shape == want.shape and np.linalg.norm(want) > 0, name
        gaps[name] = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert max(gaps.values()) <= TOLERANCE, max(gaps.items(), key=lambda item: item[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "olmo2", "gemma3"])
def test_gradients_are_those_of_torch_with_and_without_adapters(name, tmp_path):
    config = CONFIGS[name]
    params = seeded(config)
    shapes = jax.eval_shape(lambda: lora.init(params, jax.random.key(0), RANK))
    draw = np.random.RandomState(3)
    adapters = jax.tree.map(lambda x: 0.2 * draw.standard_normal(x.shape).astype(np.float32), shapes)
    run = jax.jit(jax.value_and_grad(our_loss, argnums=(0, 1)), static_argnums=2)

    with jax.default_matmul_precision("highest"):
        value, (ours, _) = run(params, None, config)
        adapted, (_, our_thin) = run(params, adapters, config)
    model = opened(config, params, tmp_path)
    loss = their_loss(model)
    loss.backward()
    assert abs(value - loss.item()) <= 1e-5 * loss.item()
    theirs = {hf: weight.grad.numpy() for hf, weight in model.named_parameters()}
    flat = traverse_util.flatten_dict(ours, sep="/")
    found = {}
    for path, row, hf, entry in hf_io.places(config):
        leaf = flat[path] if row is None else flat[path][row]
        found[hf] = leaf.T if entry.transposed else leaf
    assert_same(found, theirs)

    model.zero_grad()
    flat, flat_grad = (traverse_util.flatten_dict(tree, sep="/") for tree in (adapters, our_thin))
    ours, maps = {}, {}
    for path, row, hf, _ in hf_io.places(config):
        path = path.removesuffix("/kernel")
        if row is None and not path.startswith("rest_") or f"{path}/a" not in flat:
            continue
        a, b = (flat[f"{path}/{x}"] if row is None else flat[f"{path}/{x}"][row] for x in "ab")
        maps[hf] = LowRank(a, b)
        torch.nn.utils.parametrize.register_parametrization(model.get_submodule(hf.removesuffix(".weight")), "weight", maps[hf])
        for x in "ab":
            ours[hf, x] = flat_grad[f"{path}/{x}"] if row is None else flat_grad[f"{path}/{x}"][row]
    assert len(maps) == 7 * config.num_layers
    loss = their_loss(model)
    loss.backward()
    assert abs(adapted - loss.item()) <= 1e-5 * loss.item() and abs(adapted - value) > 1e-3
    assert_same(ours, {(hf, x): getattr(thin, x).grad.numpy() for hf, thin in maps.items() for x in "ab"})
