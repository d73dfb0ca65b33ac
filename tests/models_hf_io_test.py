"""Hugging Face directories: what is written is read back bit for bit, transformers reads it too, and damage is named."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from w2s_jax import files, sampling
from w2s_jax.drawing import Drawing
from w2s_jax.models import checkpoint, decoder, hf_io, rope, tokenizer
from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.families import FAMILIES
from w2s_jax.tasks.asking import Asked
from w2s_jax.types import LM

from . import tiny

WORDS = tokenizer.word_level([f"w{i}" for i in range(30)])

CONFIG = DecoderConfig(32, 16, 5, 4, 2, 4, 24, family="llama")
CONFIGS = {
    "llama": CONFIG,
    "qwen2": dataclasses.replace(CONFIG, family="qwen2", qkv_bias=True, tied=True),
    "qwen3": dataclasses.replace(CONFIG, family="qwen3", qk_norm=True, head_dim=6),
    "olmo2": dataclasses.replace(CONFIG, family="olmo2", norm_place="post", qk_norm=True, qk_norm_joint=True),
    "gemma3_text": dataclasses.replace(
        CONFIG, family="gemma3_text", norm_place="sandwich", norm_offset=1.0, qk_norm=True, activation="gelu_tanh",
        score_dim=7.0, embed_scale=4.0, tied=True, pattern=("local", "global"), window=3, rope_theta=1e6,
        rope_scaling=rope.Linear(8.0), local_rope_theta=1e4,
    ),
}  # fmt: skip


def noise(config, dtype=jnp.float32):
    leaves, tree = jax.tree.flatten(decoder.shapes(config))
    draw = np.random.RandomState(0)
    return jax.tree.unflatten(tree, [jnp.asarray(0.3 * draw.standard_normal(leaf.shape), dtype) for leaf in leaves])


def assert_same_bits(a, b):
    def check(x, y):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x).view(np.uint8), np.asarray(y).view(np.uint8))

    jax.tree.map(check, a, b)


@pytest.fixture
def saved(tmp_path):
    hf_io.save(LM(CONFIG, noise(CONFIG), WORDS), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama", jnp.float32),
        ("qwen2", jnp.bfloat16),
        ("qwen3", jnp.float16),
        ("olmo2", jnp.float32),
        ("gemma3_text", jnp.bfloat16),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_saved_model_comes_back_bit_for_bit(name, dtype, tmp_path):
    lm = LM(CONFIGS[name], noise(CONFIGS[name], dtype), WORDS)
    one, many = tmp_path / "one", tmp_path / "many"
    hf_io.save(lm, one)
    hf_io.save(lm, many, max_shard_bytes=3000)
    assert len(list(many.glob("*.safetensors"))) > 3 and len(list(one.glob("*.safetensors"))) == 1
    for path in (one, many):
        back = hf_io.load(path)
        assert back.config == lm.config
        assert_same_bits(back.params, lm.params)
    key = hf_io.load(one).key
    assert key == files.content_key(one)
    # A smaller model written over a larger one leaves no shard behind, and the same model always has the same key.
    hf_io.save(lm, many)
    assert files.content_key(many) == key
    assert jax.tree.leaves(hf_io.load(one, dtype=jnp.float32).params)[0].dtype == jnp.float32


def test_a_config_that_its_family_cannot_write_down_is_refused(tmp_path):
    config = dataclasses.replace(CONFIG, qk_norm=True)
    with pytest.raises(ValueError, match=r"family 'llama' cannot store {'qk_norm': True}: it would be read back as \[False\]"):
        hf_io.save(LM(config, noise(config), WORDS), tmp_path)


def test_the_key_follows_the_content(saved):
    before = hf_io.load(saved).key
    (saved / "notes.txt").write_text("not part of the model")
    assert hf_io.load(saved).key == before
    weights = load_file(saved / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    assert hf_io.load(saved).key != before
    assert hf_io.load(saved, key="known").key == "known"


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is the reference here")
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_opens_an_export_and_says_the_same_tokens(name, tmp_path):
    import torch
    import transformers

    torch.set_num_threads(1)
    config = dataclasses.replace(CONFIGS[name], num_layers=3)
    lm = LM(config, noise(config), WORDS)
    hf_io.save(lm, tmp_path)
    hf, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    prompts = [[5, 9, 3], [7], [2, 8, 30, 4, 6, 11, 12]]
    asked = [Asked(f"q{n}", prompt, (), ()) for n, prompt in enumerate(prompts)]
    settings = dict(num_samples=1, drawing=Drawing(0.0), max_new_tokens=12, num_slots=2, row_length=64, key=jax.random.key(0))
    ours = sampling.generate(hf_io.load(tmp_path), asked, compute=tiny.compute(), **settings).completion
    for n, prompt in enumerate(prompts):
        with torch.no_grad():
            theirs = hf.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0].tolist()
        assert prompt + ours[n].tolist() == theirs
    # transformers 5 forces its own tokenizer class on qwen2, whatever tokenizer_config.json says.
    if name != "qwen2":
        assert transformers.AutoTokenizer.from_pretrained(tmp_path)("w1 w2 <eos>")["input_ids"] == [3, 4, 1]


def edit(path, **fields):
    file = path / "config.json"
    hf = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in hf.items() if value != "DELETE"}))


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling: low_freq_factor is missing"),
        (
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 8.0}},
            "'dynamic' is not supported; .*'default' or 'linear'",
        ),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_scaling and rope_parameters scale .* differently"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 8.0, "x": 1}}, "rope_scaling: nothing reads x = 1"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters: rope_type = 'yarn'"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "rope_parameters: factor is missing"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "nothing reads full_attention"),
        ("llama", {"rope_theta": 5e5}, r"rope_theta is given as \[10000.0, 500000.0\]"),
        ("llama", {"attention_bias": True}, "attention_bias = True is not supported; allowed is False"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; allowed is 'silu'"),
        ("llama", {"quantization_config": {"bits": 4}}, "nothing reads quantization_config = {'bits': 4}"),
        ("llama", {"vocab_size": "DELETE"}, "vocab_size is missing"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ("llama", {"hidden_size": "x"}, "hidden_size = 'x'; allowed is a whole number from 1"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads = 0; allowed is a whole number from 1"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers = True; allowed is a whole number from 1"),
        ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps = '1e-6'; allowed is a number above 0"),
        ("llama", {"rope_theta": float("inf")}, "rope_theta = inf; allowed is a number above 0"),
        ("llama", {"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no'; allowed is true or false"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling = 'linear'; allowed is an object"),
        ("llama", {"model_type": ["llama"]}, r"model_type = \['llama'\]; allowed are"),
        ("llama", {"model_type": "gpt2"}, r"model_type = 'gpt2'; allowed are \['gemma3', 'gemma3_text', 'llama',"),
        ("qwen2", {"use_sliding_window": True}, "max_window_layers is missing"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}, "sliding_window is missing"),
        ("qwen2", {"layer_types": ["full_attention"] * 4 + ["sliding_attention"]}, "but use_sliding_window is not set"),
        ("qwen2", {"layer_types": ["full_attention"] * 4}, "layer_types lists 4 layers, num_hidden_layers = 5"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 5}, "layer_types holds 'chunked_attention'; allowed are 'full_att"),
        ("qwen2", {"layer_types": 3}, "layer_types = 3; allowed is a list"),
        ("qwen2", {"dual_chunk_attention_config": {}}, "dual_chunk_attention_config"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("qwen3", {"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ("olmo2", {"clip_qkv": 8.0}, "nothing reads clip_qkv = 8.0"),
        ("olmo2", {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 is not supported; allowed is null"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not supported; allowed is null"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("gemma3_text", {"hidden_activation": "gelu"}, "hidden_activation = 'gelu' .* 'gelu_pytorch_tanh'"),
        ("gemma3_text", {"rope_local_base_freq": 5e3}, r"rope_local_base_freq is given as \[5000.0, 10000.0\]"),
        ("gemma3_text", {"rope_parameters": {"sliding_attention": {"type": "linear", "factor": 2.0}}}, "'default' there"),
        ("gemma3_text", {"rope_parameters": {"chunked_attention": {}}}, "rope_parameters: nothing reads chunked_attention"),
        ("gemma3_text", {"_sliding_window_pattern": 6}, r"sliding_window_pattern is given as \[2, 6\]"),
        ("gemma3_text", {"model_type": "gemma3", "architectures": "DELETE"}, "text_config is missing; allowed is an object"),
    ],
)
def test_configs_that_would_be_computed_wrongly_are_refused(family, fields, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES[family].hf_config(CONFIGS[family])))
    assert hf_io.read_config(tmp_path) == CONFIGS[family]
    edit(tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        hf_io.read_config(tmp_path)


def test_both_styles_of_config_and_the_fields_of_released_models_are_read(tmp_path):
    hf = FAMILIES["llama"].hf_config(CONFIG)
    old = {name: value for name, value in hf.items() if name != "rope_parameters"} | {"rope_scaling": None, "pretraining_tp": 1}
    new = {name: value for name, value in hf.items() if name not in ("rope_theta", "head_dim")}
    smollm = hf | {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}}
    for style in (old, new, smollm):
        assert FAMILIES["llama"].decoder_config(style) == CONFIG
    scaled = dataclasses.replace(CONFIG, rope_scaling=rope.Llama3(8.0, 1.0, 4.0, 256))
    hf = FAMILIES["llama"].hf_config(scaled)
    for left_out in ("rope_scaling", "rope_parameters"):
        assert FAMILIES["llama"].decoder_config({name: hf[name] for name in hf if name != left_out}) == scaled
    qwen = FAMILIES["qwen2"].hf_config(CONFIGS["qwen2"]) | {"sliding_window": 4096, "max_window_layers": 3, "use_mrope": False}
    assert FAMILIES["qwen2"].decoder_config(qwen) == CONFIGS["qwen2"]


def test_layers_with_a_window_are_read_from_a_list_a_pattern_or_a_first_layer():
    gemma = FAMILIES["gemma3"].hf_config(CONFIGS["gemma3_text"])
    kinds = gemma.pop("layer_types")
    assert FAMILIES["gemma3"].decoder_config(gemma) == CONFIGS["gemma3_text"]
    del gemma["sliding_window_pattern"]
    assert FAMILIES["gemma3"].decoder_config(gemma).pattern == ("local",) * 5 + ("global",)
    assert FAMILIES["gemma3"].decoder_config(gemma | {"layer_types": kinds}) == CONFIGS["gemma3_text"]
    # transformers writes its default next to a list that does not follow it.
    odd = gemma | {"layer_types": kinds[::-1], "_sliding_window_pattern": 6}
    assert FAMILIES["gemma3"].decoder_config(odd) == CONFIGS["gemma3_text"]
    qwen = FAMILIES["qwen2"].hf_config(CONFIGS["qwen2"]) | {"use_sliding_window": True, "sliding_window": 9}
    late = FAMILIES["qwen2"].decoder_config(qwen | {"max_window_layers": 3})
    assert late.kinds == ("global",) * 3 + ("local",) * 2 and late.window == 9 and late.local_rope_theta is None
    assert FAMILIES["qwen2"].decoder_config(FAMILIES["qwen2"].hf_config(late)) == late
    assert FAMILIES["qwen2"].decoder_config(qwen | {"max_window_layers": 28}) == CONFIGS["qwen2"]


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_a_checkpoint_with_a_vision_tower_is_read_as_text_and_says_so(prefix, tmp_path, caplog):
    lm = LM(CONFIGS["gemma3_text"], noise(CONFIGS["gemma3_text"]), WORDS)
    hf_io.save(lm, tmp_path)
    hf = json.loads((tmp_path / "config.json").read_text())
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "vision_config": {"hidden_size": 8}}
    (tmp_path / "config.json").write_text(json.dumps(outer | {"text_config": hf, "mm_tokens_per_image": 4}))
    stored = {prefix + name.removeprefix("model."): x for name, x in load_file(tmp_path / "model.safetensors").items()}
    below = prefix.removesuffix("language_model.") if prefix.startswith("model.") else ""
    eyes = {f"{below}vision_tower.x": np.zeros(2), f"{below}multi_modal_projector.y": np.zeros(2)}
    save_file(stored | eyes, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level("WARNING", logger="absl"):
        back = hf_io.load(tmp_path)
    assert f"read as a text model; 2 other tensors, such as {below}multi_modal_projector.y, are left out" in caplog.text
    assert back.config == lm.config
    assert_same_bits(back.params, lm.params)
    save_file(stored | {"model.norm.weight": np.zeros(16)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="norm.weight both mean model.norm.weight; remove one of them"):
        hf_io.check(tmp_path)
    edit(tmp_path, mm_depth=3)
    with pytest.raises(ValueError, match="nothing reads mm_depth = 3"):
        hf_io.check(tmp_path)


def test_wrong_weights_are_listed_in_one_table_before_any_is_read(saved):
    weights = load_file(saved / "model.safetensors")
    weights["model.layers.0.self_attn.query_proj.weight"] = weights.pop("model.layers.0.self_attn.q_proj.weight")
    weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"][:, :3].copy()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(2, np.float32)  # harmless
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(ValueError) as error:
        hf_io.check(saved)
    with pytest.raises(ValueError, match="1 missing, 1 unexpected, 1 misshapen"):
        hf_io.load(saved)
    lines = str(error.value).splitlines()
    assert "(1 missing, 1 unexpected, 1 misshapen)" in lines[0]
    assert "missing     model.layers.0.self_attn.q_proj.weight (16, 16)" in lines[1]
    assert "(near: model.layers.0.self_attn.query_proj.weight)" in lines[1]
    assert "unexpected  model.layers.0.self_attn.query_proj.weight" in lines[2]
    assert "misshapen   model.layers.1.mlp.up_proj.weight is (24, 3), config.json asks for (24, 16)" in lines[3]
    assert len(lines) == 4


def test_tied_models_may_repeat_their_head(tmp_path):
    config = CONFIGS["qwen2"]
    lm = LM(config, noise(config), WORDS)
    hf_io.save(lm, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].copy()}, tmp_path / "model.safetensors")
    assert_same_bits(hf_io.load(tmp_path).params, lm.params)


def test_damaged_and_missing_files_are_named(saved, tmp_path):
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    for cut, message in [(len(whole) - 8, "cut off or damaged"), (100, "cut off or no safetensors"), (0, "cut off or no")]:
        file.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=message):
            hf_io.load(saved)
    file.unlink()
    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        hf_io.load(saved)
    hf_io.save(LM(CONFIG, noise(CONFIG), WORDS), saved, max_shard_bytes=3000)
    shard = next(saved.glob("model-00002*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=f"{shard.name} has .* cut off or damaged; fetch it again"):
        hf_io.load(saved)
    shard.write_bytes(whole)
    index = json.loads((saved / checkpoint.INDEX).read_text())
    lost = index | {"weight_map": index["weight_map"] | {"model.extra.weight": shard.name}}
    (saved / checkpoint.INDEX).write_text(json.dumps(lost))
    with pytest.raises(ValueError, match="names 1 tensors that are in no shard, such as model.extra.weight"):
        hf_io.load(saved)
    (saved / checkpoint.INDEX).write_text(json.dumps(index))
    hf_io.check(saved)
    shard.unlink()
    with pytest.raises(ValueError, match=f"1 shards that are not there: {shard.name}"):
        hf_io.load(saved)
    with pytest.raises(ValueError, match="config.json does not exist"):
        hf_io.load(tmp_path / "nowhere")


def test_a_header_that_contradicts_itself_is_named(saved):
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"dtype":"F32"', b'"dtype":"F16"', 1))
    with pytest.raises(ValueError, match=r"of shape .* in F16 cannot be \d+ bytes long; the file is damaged: fetch it again"):
        hf_io.check(saved)
    length = int.from_bytes(whole[:8], "little")
    file.write_bytes(whole[:8] + b"[]".ljust(length) + whole[8 + length :])
    with pytest.raises(ValueError, match="is no safetensors file: its header is no JSON object"):
        hf_io.check(saved)


def test_a_directory_is_judged_without_its_tensors_or_tokenizer(saved, monkeypatch):
    (saved / "tokenizer.json").unlink()
    monkeypatch.setattr(checkpoint.Tensor, "view", None)
    assert hf_io.check(saved) == hf_io.check(str(saved)) == CONFIG


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", checkpoint.INDEX])
@pytest.mark.parametrize(
    ("text", "said"), [("{", "is no JSON: "), ("", "is no JSON: "), ("[]", "is no JSON object but a list")]
)
def test_a_file_that_is_no_json_object_is_named(name, text, said, saved):
    (saved / name).write_text(text)
    with pytest.raises(ValueError, match=f"{saved / name} {said}.*fetch it again"):
        hf_io.load(saved)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"model.norm.weight": 1}}])
def test_an_index_without_a_map_is_named(index, saved):
    (saved / checkpoint.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"{checkpoint.INDEX} has no weight_map from tensors to files; fetch it again"):
        hf_io.check(saved)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(saved):
    tokenizer.word_level([f"w{i}" for i in range(40)]).save(saved)
    with pytest.raises(ValueError, match="tokenizer has 42 ids, config.json has vocab_size = 32"):
        hf_io.load(saved)


def test_special_tokens_that_a_model_does_not_know_may_be_there_but_not_be_used(tmp_path):
    words = tokenizer.word_level([f"w{i}" for i in range(30)])
    words.inner.add_special_tokens({"additional_special_tokens": ["<image>"]})
    hf_io.save(LM(CONFIG, noise(CONFIG), words), tmp_path)
    known = hf_io.load(tmp_path).tokenizer
    assert known.vocab_size == 33 and known.encode("w1 w2", bos=False) == [3, 4]
    with pytest.raises(ValueError, match=r"a text spells \['<image>'\], which this model does not know"):
        known.encode_batch(["w1", "w1 <image>"], bos=False)


def test_numbers_of_a_kind_that_is_not_read_are_refused(saved):
    weights = load_file(saved / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(np.int8)
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(ValueError, match="model.norm.weight and 0 others are stored as I8; allowed are F32, F16, BF16"):
        hf_io.load(saved)
