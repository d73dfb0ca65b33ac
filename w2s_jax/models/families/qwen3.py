"""Qwen3, dense: llama with normalised query and key heads, whose size is free of the width. Source: arXiv 2505.09388."""

from collections.abc import Mapping
from typing import Any

from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.families import llama, qwen2
from w2s_jax.models.families import names as name_tables
from w2s_jax.models.families.fields import WHOLE, Fields

VERSION = "2"

names = name_tables.llama_names
canonical = name_tables.as_stored


def decoder_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Reads a `config.json`.

    Raises:
        ValueError: a field asks for something that the decoder does not compute, or is unknown.
    """
    fields = Fields(hf)
    fields.only(architectures=(["Qwen3ForCausalLM"],))
    sizes = llama.sizes(fields) | llama.gates(fields)
    # Absent, it is 128 in transformers whatever the width.
    sizes["head_dim"] = fields.take("head_dim", WHOLE, 128)
    config = DecoderConfig(**sizes, **qwen2.windowed(fields, sizes["num_layers"]), qk_norm=True, family="qwen3")
    fields.close()
    return config


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """Writes a `config.json`, without token ids and dtype."""
    written = llama.hf_sizes(config) | llama.hf_gates(config) | qwen2.hf_windowed(config)
    return written | dict(architectures=["Qwen3ForCausalLM"])
