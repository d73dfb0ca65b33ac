"""PEFT directories: adapters come back bit for bit, PEFT computes the same with them, and what does not fit is named."""

import dataclasses
import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import tiny
from w2s_jax.models import decoder, hf_io, lora, peft_io, sharding
from w2s_jax.models.lora import Adapters

UNEVEN = dataclasses.replace(tiny.CONFIG, num_layers=3, pattern=("global", "global"))  # a stack and a block that stands apart
TOKEN = np.array([[3, 1, 4, 1, 5, 9, 2, 6]], np.int32)
needs_peft = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("peft", "torch"))), reason="the peft library is the reference here"
)


def adapters_of(config, targets=lora.TARGETS, rank=3, alpha=5.0):
    """Adapters of which no entry is zero."""
    tree = lora.init(decoder.shapes(config), jax.random.key(1), rank, targets)
    draw = np.random.RandomState(0)
    return Adapters(jax.tree.map(lambda x: jnp.asarray(0.3 * draw.standard_normal(x.shape), x.dtype), tree), rank, alpha)


def logits(params, adapters=None):
    model = decoder.Decoder(tiny.CONFIG, lora_scale=adapters.scale if adapters else 0.0)
    trees = decoder.variables(params, adapters and adapters.tree)
    with jax.default_matmul_precision("highest"):
        hidden = model.apply(trees, TOKEN, jnp.ones_like(TOKEN), jnp.arange(TOKEN.size)[None]).hidden
        return np.asarray(decoder.logits(model, params, hidden))[0]


def gap(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.fixture
def saved(tmp_path):
    """An adapter directory for the tiny model, and its adapters."""
    adapters = adapters_of(tiny.CONFIG, ("q", "down"))
    peft_io.save(adapters, tiny.CONFIG, tmp_path / "adapter", base="some/base")
    return tmp_path / "adapter", adapters


def edit(path, **fields):
    file = path / peft_io.CONFIG
    described = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in described.items() if value != "DELETE"}))


@pytest.mark.parametrize("config", [tiny.CONFIG, UNEVEN], ids=["stacked", "with a rest"])
@pytest.mark.parametrize("targets", [("q", "v"), lora.TARGETS], ids=len)
def test_saved_adapters_come_back_bit_for_bit(config, targets, tmp_path):
    adapters = adapters_of(config, targets)
    peft_io.save(adapters, config, tmp_path, base="some/base")
    for mesh in (None, sharding.make_mesh()):
        back = peft_io.load(tmp_path, config, mesh=mesh)
        assert (back.rank, back.alpha, back.scale) == (3, 5.0, 5 / 3)
        assert jax.tree.structure(back.tree) == jax.tree.structure(adapters.tree)
        jax.tree.map(np.testing.assert_array_equal, back.tree, adapters.tree)
    assert peft_io.is_adapter(tmp_path) and peft_io.base_of(tmp_path) == "some/base"
    assert len(load_file(tmp_path / peft_io.WEIGHTS)) == 2 * config.num_layers * len(targets)


def test_the_files_carry_pefts_names_and_layout(saved):
    path, adapters = saved
    tensors = load_file(path / peft_io.WEIGHTS)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    block = adapters.tree["layers"]["block_0"]["attn"]["q"]
    np.testing.assert_array_equal(tensors[name.format("A")], np.asarray(block["a"][1]).T)
    np.testing.assert_array_equal(tensors[name.format("B")], np.asarray(block["b"][1]).T)
    described = json.loads((path / peft_io.CONFIG).read_text())
    assert described["target_modules"] == ["down_proj", "q_proj"]
    assert (described["r"], described["lora_alpha"], described["peft_type"]) == (3, 5, "LORA")


def test_adapters_of_half_precision_are_read_in_float32(saved):
    path, adapters = saved
    halves = {name: value.astype(np.float16) for name, value in load_file(path / peft_io.WEIGHTS).items()}
    save_file(halves, path / peft_io.WEIGHTS)
    back = peft_io.load(path, tiny.CONFIG).tree
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, np.asarray(y, np.float16).astype(np.float32)), back, adapters.tree
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {np.dtype(np.float32)}


def test_a_rank_stabilised_adapter_is_scaled_by_the_root(saved):
    edit(saved[0], use_rslora=True)
    assert peft_io.load(saved[0], tiny.CONFIG).scale == pytest.approx(5 / math.sqrt(3))


@needs_peft
@pytest.mark.parametrize("targets", [("q", "v"), lora.TARGETS], ids=len)
def test_peft_opens_a_saved_adapter_and_computes_the_same(targets, tmp_path):
    import peft
    import torch
    import transformers

    torch.set_num_threads(1)
    lm, adapters = tiny.lm(), adapters_of(tiny.CONFIG, targets)
    hf_io.save(lm, tmp_path / "base")
    peft_io.save(adapters, tiny.CONFIG, tmp_path / "adapter", base=str(tmp_path / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32).eval()
    for theirs in (model, opened):
        with torch.no_grad():
            want = theirs(torch.tensor(TOKEN.astype(int))).logits[0].numpy()
        assert gap(logits(lm.params, adapters), want) <= 1e-5
        assert gap(logits(lora.merge(lm.params, adapters)), want) <= 1e-5
    assert gap(logits(lm.params), want) > 1e-2


@needs_peft
@pytest.mark.parametrize(
    "settings",
    [{"target_modules": "all-linear"}, {"target_modules": ["q_proj", "v_proj"], "use_rslora": True}],
    ids=["all", "rs"],
)
def test_an_adapter_that_peft_trained_is_computed_the_same(settings, tmp_path):
    import peft
    import torch
    import transformers

    torch.set_num_threads(1)
    lm = tiny.lm()
    hf_io.save(lm, tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **settings))
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.5)
    token = torch.tensor(TOKEN.astype(int))
    for _ in range(3):
        optimizer.zero_grad()
        model(token, labels=token).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        want = model(token).logits[0].numpy()
    adapters = peft_io.load(tmp_path / "adapter", lm.config, base=peft_io.base_of(tmp_path / "adapter"))
    assert gap(logits(lm.params, adapters), want) <= 1e-5
    assert gap(logits(lm.params), want) > 1e-2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, r"use_dora = True \(allowed: None\).*merge_and_unload"),
        ({"bias": "all"}, r"bias = 'all' \(allowed: 'none'\)"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 4}}, "alpha_pattern.*; rank_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "'pissa' .allowed: True, 'gaussian'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"task_type": "SEQ_CLS"}, "task_type = 'SEQ_CLS' .allowed: 'CAUSAL_LM'"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3' .allowed: 'LORA'"),
        ({"peft_type": "DELETE"}, "peft_type is missing"),
        ({"revision": "v2"}, "revision = 'v2'"),
        ({"a_setting_of_tomorrow": 3}, "a_setting_of_tomorrow = 3"),
        ({"r": "DELETE"}, "r is missing; allowed is a whole number from 1"),
        ({"lora_alpha": "8"}, "lora_alpha = '8'; allowed is a number above 0"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_settings_that_would_be_computed_wrongly_are_refused(fields, message, saved):
    edit(saved[0], **fields)
    with pytest.raises(ValueError, match=message) as error:
        peft_io.load(saved[0], tiny.CONFIG)
    assert str(saved[0] / peft_io.CONFIG) in str(error.value)


def test_settings_that_are_off_are_no_settings(saved):
    edit(saved[0], use_dora=False, modules_to_save=[], a_setting_of_tomorrow=None, loftq_config={}, lora_dropout=0.1)
    assert peft_io.check(saved[0], tiny.CONFIG) == (3, 5.0)


def test_an_adapter_of_another_width_is_refused_with_a_table(saved):
    wider = dataclasses.replace(tiny.CONFIG, width=24)
    with pytest.raises(ValueError) as error:
        peft_io.load(saved[0], wider, base="other/base")
    lines = str(error.value).splitlines()
    assert "not those of its base model other/base (0 missing, 0 unexpected, 4 misshapen)" in lines[0]
    assert "layers.0.mlp.down_proj.lora_B.weight is (16, 3), base model other/base asks for (24, 3)" in lines[1]
    assert len(lines) == 5


def test_an_adapter_of_a_deeper_model_or_of_another_rank_is_refused(saved):
    with pytest.raises(ValueError, match="0 missing, 4 unexpected"):
        peft_io.load(saved[0], dataclasses.replace(tiny.CONFIG, num_layers=1))
    with pytest.raises(ValueError, match="4 missing, 0 unexpected"):
        peft_io.load(saved[0], dataclasses.replace(tiny.CONFIG, num_layers=3))
    edit(saved[0], r=2)
    with pytest.raises(ValueError, match="8 misshapen"):
        peft_io.load(saved[0], tiny.CONFIG)


def test_tensors_that_are_no_adapter_of_a_block_are_refused(saved):
    tensors = load_file(saved[0] / peft_io.WEIGHTS)
    save_file({**tensors, "base_model.model.lm_head.lora_A.weight": np.zeros((3, 16), np.float32)}, saved[0] / peft_io.WEIGHTS)
    with pytest.raises(ValueError, match="unexpected  base_model.model.lm_head.lora_A.weight"):
        peft_io.load(saved[0], tiny.CONFIG)


def test_damaged_and_missing_files_are_named(saved, tmp_path):
    path, _ = saved
    file = path / peft_io.WEIGHTS
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match=f"{file} has .* cut off or damaged; fetch it again"):
        peft_io.load(path, tiny.CONFIG)
    file.unlink()
    with pytest.raises(ValueError, match="has no adapter_model.safetensors.*safe_serialization"):
        peft_io.load(path, tiny.CONFIG)
    edit(path, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="base_model_name_or_path = None; write the directory or hub id"):
        peft_io.base_of(path)
    (path / peft_io.CONFIG).write_text("{")
    with pytest.raises(ValueError, match="adapter_config.json is no JSON"):
        peft_io.load(path, tiny.CONFIG)
    with pytest.raises(ValueError, match="adapter_config.json does not exist"):
        peft_io.load(tmp_path / "nowhere", tiny.CONFIG)
