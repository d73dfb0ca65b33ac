"""Qwen2 and Qwen2.5: llama with biases on queries, keys and values. Source: arXiv 2407.10671, arXiv 2412.15115."""

from collections.abc import Mapping
from typing import Any

from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.families import llama, windows
from w2s_jax.models.families import names as name_tables
from w2s_jax.models.families.fields import ANY, COUNT, FLAG, WHOLE, Fields

VERSION = "2"

names = name_tables.llama_names
canonical = name_tables.as_stored


def windowed(fields: Fields, num_layers: int) -> dict[str, Any]:
    """Reads which layers look back over a window: those listed, or those from `max_window_layers` on.

    Raises:
        ValueError: layers with a window are listed, but `use_sliding_window` is not set.
    """
    fields.only(use_mrope=(False,))
    kinds = windows.kinds(fields, num_layers)
    if not fields.take("use_sliding_window", FLAG, False):
        fields.take("sliding_window", ANY, None)  # harmless while it is not used
        if kinds is not None and "local" in kinds:
            raise ValueError(
                f"{fields.where}: layer_types lists 'sliding_attention', but use_sliding_window is not set; allowed is "
                "'full_attention' in every layer, or use_sliding_window = true"
            )
        return {}
    if kinds is None:
        first = fields.take("max_window_layers", COUNT)
        kinds = tuple("global" if layer < first else "local" for layer in range(num_layers))
    window = fields.take("sliding_window", WHOLE)
    return dict(pattern=windows.shortest_pattern(kinds), window=window if "local" in kinds else 0)


def hf_windowed(config: DecoderConfig) -> dict[str, Any]:
    """Writes what `windowed` reads."""
    if not config.window:
        return dict(use_sliding_window=False)
    return dict(use_sliding_window=True, sliding_window=config.window, layer_types=windows.layer_types(config))


def decoder_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Reads a `config.json`.

    Raises:
        ValueError: a field asks for something that the decoder does not compute, or is unknown.
    """
    fields = Fields(hf)
    fields.only(architectures=(["Qwen2ForCausalLM"],))
    sizes = llama.sizes(fields) | llama.gates(fields)
    config = DecoderConfig(**sizes, **windowed(fields, sizes["num_layers"]), qkv_bias=True, family="qwen2")
    fields.close()
    return config


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """Writes a `config.json`, without token ids and dtype."""
    written = llama.hf_sizes(config) | llama.hf_gates(config) | hf_windowed(config)
    del written["attention_bias"]  # the biases of this family are no choice
    return written | dict(architectures=["Qwen2ForCausalLM"])
