"""OLMo 2: norms on the outputs of attention and MLP, queries and keys normalised over all heads. Source: arXiv 2501.00656."""

from collections.abc import Mapping
from typing import Any

from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.families import llama
from w2s_jax.models.families import names as name_tables
from w2s_jax.models.families.fields import Fields

VERSION = "1"

canonical = name_tables.as_stored


def names(config: DecoderConfig) -> tuple[name_tables.Name, ...]:
    """Names of llama, but for the norms."""
    norms = {"attn_out_norm": "post_attention_layernorm", "mlp_out_norm": "post_feedforward_layernorm"}
    return name_tables.decoder_names(config, norms)


def decoder_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Reads a `config.json`.

    Raises:
        ValueError: a field asks for something that the decoder does not compute, or is unknown.
    """
    fields = Fields(hf)
    fields.only(architectures=(["Olmo2ForCausalLM"],))
    sizes = llama.sizes(fields) | llama.gates(fields)
    config = DecoderConfig(**sizes, norm_place="post", qk_norm=True, qk_norm_joint=True, family="olmo2")
    fields.close()
    return config


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """Writes a `config.json`, without token ids and dtype."""
    return llama.hf_sizes(config) | llama.hf_gates(config) | dict(architectures=["Olmo2ForCausalLM"])
