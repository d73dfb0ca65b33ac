"""Shapes of released models: as their config.json says, and with as many parameters as were published."""

import math

import jax
import pytest

from w2s_jax.models import decoder, presets
from w2s_jax.models.families import family
from w2s_jax.models.presets import PRESETS, preset

# Totals of the safetensors files on the hub. Tied models that store their head once more are marked.
PUBLISHED = {
    "allenai/OLMo-2-0425-1B": 1_484_916_736,
    "allenai/OLMo-2-1124-7B": 7_298_617_344,
    "allenai/OLMo-2-1124-13B": 13_716_198_400,
    "Qwen/Qwen3-0.6B": 751_632_384 - 151_936 * 1024,  # head stored
    "Qwen/Qwen3-1.7B": 2_031_739_904 - 151_936 * 2048,  # head stored
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b-pt": 999_885_952,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
}
# Totals with the vision tower, which is the same in all three, and a projection from its width 1152.
PUBLISHED_WITH_VISION = {
    "google/gemma-3-4b-pt": 4_300_079_472,
    "google/gemma-3-12b-pt": 12_187_325_040,
    "google/gemma-3-27b-pt": 27_432_406_640,
}
VISION_TOWER = 416_866_032


def count(hub_id):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(decoder.shapes(preset(hub_id))))


@pytest.mark.parametrize("hub_id", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(hub_id):
    assert count(hub_id) == PUBLISHED[hub_id]


@pytest.mark.parametrize("hub_id", PUBLISHED_WITH_VISION)
def test_a_preset_that_can_see_has_the_published_number_but_for_its_eyes(hub_id):
    projection = 1152 * preset(hub_id).width + 1152
    assert count(hub_id) == PUBLISHED_WITH_VISION[hub_id] - VISION_TOWER - projection


def test_every_preset_has_the_shape_of_one_that_was_counted():
    def sizes(hub_id):
        return str(decoder.shapes(preset(hub_id)))

    counted = {sizes(hub_id) for hub_id in (*PUBLISHED, *PUBLISHED_WITH_VISION)}
    assert {hub_id for hub_id in PRESETS if sizes(hub_id) not in counted} == set()


@pytest.mark.parametrize("hub_id", PRESETS)
def test_the_family_can_write_every_preset_down(hub_id):
    config = preset(hub_id)
    assert family(config.family).decoder_config(family(config.family).hf_config(config)) == config


OLMO2 = dict(
    architectures=["Olmo2ForCausalLM"], attention_bias=False, attention_dropout=0.0, eos_token_id=100257, hidden_act="silu",
    hidden_size=5120, initializer_range=0.02, intermediate_size=13824, max_position_embeddings=4096, model_type="olmo2",
    num_attention_heads=40, num_hidden_layers=40, num_key_value_heads=40, pad_token_id=100277, rms_norm_eps=1e-06,
    rope_scaling=None, rope_theta=500000, tie_word_embeddings=False, torch_dtype="float32", use_cache=True, vocab_size=100352,
)  # fmt: skip
QWEN3 = dict(
    architectures=["Qwen3ForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=151643, eos_token_id=151645,
    head_dim=128, hidden_act="silu", hidden_size=5120, initializer_range=0.02, intermediate_size=25600,
    max_position_embeddings=40960, max_window_layers=64, model_type="qwen3", num_attention_heads=64, num_hidden_layers=64,
    num_key_value_heads=8, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=1000000, sliding_window=None,
    tie_word_embeddings=False, torch_dtype="bfloat16", use_cache=True, use_sliding_window=False, vocab_size=151936,
)  # fmt: skip
QWEN25 = dict(
    architectures=["Qwen2ForCausalLM"], attention_dropout=0.0, bos_token_id=151643, eos_token_id=151643, hidden_act="silu",
    hidden_size=5120, initializer_range=0.02, intermediate_size=27648, max_position_embeddings=131072, max_window_layers=64,
    model_type="qwen2", num_attention_heads=40, num_hidden_layers=64, num_key_value_heads=8, rms_norm_eps=1e-05,
    rope_theta=1000000.0, sliding_window=131072, tie_word_embeddings=False, use_cache=True, use_sliding_window=False,
    vocab_size=152064,
)  # fmt: skip
GEMMA3_1B = dict(
    architectures=["Gemma3ForCausalLM"], attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=None,
    bos_token_id=2, cache_implementation="hybrid", eos_token_id=1, final_logit_softcapping=None, head_dim=256,
    hidden_activation="gelu_pytorch_tanh", hidden_size=1152, initializer_range=0.02, intermediate_size=6912,
    max_position_embeddings=32768, model_type="gemma3_text", num_attention_heads=4, num_hidden_layers=26,
    num_key_value_heads=1, pad_token_id=0, query_pre_attn_scalar=256, rms_norm_eps=1e-06, rope_local_base_freq=10000,
    rope_scaling=None, rope_theta=1000000, sliding_window=512, sliding_window_pattern=6, vocab_size=262144,
)  # fmt: skip
GEMMA3_27B = dict(
    architectures=["Gemma3ForConditionalGeneration"], boi_token_index=255999, eoi_token_index=256000, eos_token_id=[1, 106],
    image_token_index=262144, initializer_range=0.02, mm_tokens_per_image=256, model_type="gemma3", torch_dtype="bfloat16",
    text_config=dict(
        head_dim=128, hidden_size=5376, intermediate_size=21504, model_type="gemma3_text", num_attention_heads=32,
        num_hidden_layers=62, num_key_value_heads=16, query_pre_attn_scalar=168, sliding_window=1024,
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
    ),
    vision_config={"hidden_size": 1152, "model_type": "siglip_vision_model"},
)  # fmt: skip
LLAMA32 = dict(
    architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=128000, head_dim=64,
    eos_token_id=128001, hidden_act="silu", hidden_size=2048, initializer_range=0.02, intermediate_size=8192,
    max_position_embeddings=131072, mlp_bias=False, model_type="llama", num_attention_heads=32, num_hidden_layers=16,
    num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-05, rope_theta=500000.0, tie_word_embeddings=True,
    rope_scaling={
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    use_cache=True, vocab_size=128256,
)  # fmt: skip


@pytest.mark.parametrize(
    ("hub_id", "released"),
    [
        ("allenai/OLMo-2-1124-13B", OLMO2),
        ("Qwen/Qwen3-32B", QWEN3),
        ("Qwen/Qwen2.5-32B", QWEN25),
        ("google/gemma-3-1b-it", GEMMA3_1B),
        ("google/gemma-3-27b-it", GEMMA3_27B),
        ("meta-llama/Llama-3.2-1B", LLAMA32),
    ],
)
def test_the_released_config_is_read_as_the_preset(hub_id, released):
    assert family(released["model_type"]).decoder_config(released) == preset(hub_id)


def test_an_unknown_id_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no preset 'Qwen/Qwen3-8'; the nearest are Qwen/Qwen3-8B, "):
        presets.preset("Qwen/Qwen3-8")
