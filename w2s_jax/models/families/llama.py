"""Llama and models of its shape, such as SmolLM2. Source: arXiv 2302.13971; arXiv 2307.09288 (grouped queries)."""

from collections.abc import Mapping
from typing import Any

from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.families import names as name_tables
from w2s_jax.models.families.fields import FLAG, NUMBER, WHOLE, Fields, hf_scaling

VERSION = "2"

names = name_tables.llama_names
canonical = name_tables.as_stored


def sizes(fields: Fields) -> dict[str, Any]:
    """Reads what llama and its descendants write alike, and checks what none of them may ask for."""
    fields.only(
        # In transformers one flag gives a bias to all four maps of attention; no released model of these families uses it.
        attention_bias=(False,),
        attention_dropout=(0.0,),
        is_encoder_decoder=(False,),
        is_decoder=(False, True),
        pruned_heads=({},),
    )
    num_heads = fields.take("num_attention_heads", WHOLE)
    width = fields.take("hidden_size", WHOLE)
    return dict(
        vocab_size=fields.take("vocab_size", WHOLE),
        width=width,
        num_layers=fields.take("num_hidden_layers", WHOLE),
        num_heads=num_heads,
        num_kv_heads=fields.take("num_key_value_heads", WHOLE, num_heads),
        head_dim=fields.take("head_dim", WHOLE, width // num_heads),
        mlp_width=fields.take("intermediate_size", WHOLE),
        norm_eps=fields.take("rms_norm_eps", NUMBER),
        tied=fields.take("tie_word_embeddings", FLAG, False),
        max_position=fields.take("max_position_embeddings", WHOLE),
        init_std=fields.take("initializer_range", NUMBER, 0.02),
    )


def gates(fields: Fields) -> dict[str, Any]:
    """Reads what only the closer descendants share: the MLP's activation and one rotation for all layers."""
    fields.only(hidden_act=("silu",))
    return fields.rope()


def hf_sizes(config: DecoderConfig) -> dict[str, Any]:
    """Writes what `sizes` reads."""
    return dict(
        model_type=config.family,
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.mlp_width,
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=config.tied,
        max_position_embeddings=config.max_position,
        initializer_range=config.init_std,
        attention_bias=False,
        attention_dropout=0.0,
    )


def hf_gates(config: DecoderConfig) -> dict[str, Any]:
    """Writes what `gates` reads, in the styles of transformers 4 and 5."""
    scaling = hf_scaling(config.rope_scaling)
    written = dict(hidden_act="silu", rope_theta=config.rope_theta, rope_parameters=scaling | {"rope_theta": config.rope_theta})
    return written if config.rope_scaling is None else written | {"rope_scaling": scaling}


def decoder_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Reads a `config.json`.

    Raises:
        ValueError: a field asks for something that the decoder does not compute, or is unknown.
    """
    fields = Fields(hf)
    fields.only(architectures=(["LlamaForCausalLM"],), pretraining_tp=(1,), rope_interleaved=(False,))
    mlp_bias = fields.take("mlp_bias", FLAG, False)
    config = DecoderConfig(**sizes(fields), **gates(fields), mlp_bias=mlp_bias, family="llama")
    fields.close()
    return config


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """Writes a `config.json`, without token ids and dtype."""
    return hf_sizes(config) | hf_gates(config) | dict(architectures=["LlamaForCausalLM"], mlp_bias=config.mlp_bias)
