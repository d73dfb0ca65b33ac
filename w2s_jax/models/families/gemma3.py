"""Gemma 3, text: norms on both sides, local and global blocks with a rotation each. Source: arXiv 2503.19786.

Checkpoints with a vision tower (`model_type` "gemma3") are read as text: their `text_config`, and the tensors below
`language_model`. What is written is always the text model alone (`model_type` "gemma3_text").
"""

from collections.abc import Mapping
from typing import Any

from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.families import llama, windows
from w2s_jax.models.families import names as name_tables
from w2s_jax.models.families.fields import ANY, NUMBER, OBJECT, WHOLE, Fields, hf_scaling

VERSION = "1"

DEFAULTS = dict(
    vocab_size=262_208, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8,
    num_key_value_heads=4, head_dim=256, max_position_embeddings=131_072, rms_norm_eps=1e-6, tie_word_embeddings=True,
    query_pre_attn_scalar=256, sliding_window=4096,
)  # fmt: skip
"""What an absent field means; the released checkpoints with a vision tower leave most of them out."""

LOCAL_PER_GLOBAL = 5
PREFIXES = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
VISION = tuple(f"{prefix}{part}." for prefix in ("", "model.") for part in ("vision_tower", "multi_modal_projector"))


def canonical(stored: str) -> str | None:
    """The name of a stored tensor as a text model has it; None for those that are for images."""
    if stored.startswith(VISION):
        return None
    return next((name + stored.removeprefix(prefix) for prefix, name in PREFIXES if stored.startswith(prefix)), stored)


def names(config: DecoderConfig) -> tuple[name_tables.Name, ...]:
    """Names of llama, but for the norms."""
    norms = {
        "attn_norm": "input_layernorm",
        "attn_out_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    }
    return name_tables.decoder_names(config, norms)


def text_fields(hf: Mapping[str, Any]) -> Fields:
    """Finds the fields of the text model, and checks those around them.

    Raises:
        ValueError: a field around them is unknown.
    """
    if hf.get("model_type") == "gemma3":
        outer = Fields(hf)
        outer.only(architectures=(["Gemma3ForConditionalGeneration"],), tie_word_embeddings=(True,))
        hf = outer.take("text_config", OBJECT)
        # How images enter; without one they change nothing.
        for name in ("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"):
            outer.take(name, ANY, None)
        outer.take("initializer_range", NUMBER, None)
        outer.close()
        where = "config.json: text_config"
    else:
        where = "config.json"
    fields = Fields(DEFAULTS | {name: value for name, value in hf.items() if value is not None}, where)
    fields.only(model_type=("gemma3_text",), architectures=(["Gemma3ForCausalLM"],))
    return fields


def pattern(fields: Fields, num_layers: int) -> tuple[str, ...]:
    """Reads the repeating group: a number of local blocks and then a global one, unless the layers are listed otherwise."""
    # transformers wrote both spellings, in some versions next to a list that does not follow it.
    sizes = {fields.take(name, WHOLE, None) for name in ("sliding_window_pattern", "_sliding_window_pattern")} - {None}
    if len(sizes) > 1:
        raise ValueError(f"{fields.where}: sliding_window_pattern is given as {sorted(sizes)}; keep one of them")
    group = group_of(*sizes or (LOCAL_PER_GLOBAL + 1,))
    kinds = windows.kinds(fields, num_layers)
    if kinds is None or (sizes and windows.repeats(kinds, group)):
        return group
    return windows.shortest_pattern(kinds)


def group_of(size: int) -> tuple[str, ...]:
    """One global block, local ones before it."""
    return ("local",) * (size - 1) + ("global",)


def rotations(fields: Fields) -> dict[str, Any]:
    """Reads the rotation of global and of local blocks, in the styles of transformers 4 and 5.

    Raises:
        ValueError: see `Fields.rope`; or that of local blocks is scaled.
    """
    nested = Fields(fields.take("rope_parameters", OBJECT, {}), f"{fields.where}: rope_parameters")
    of_global, of_local = (nested.take(name, OBJECT, {}) for name in ("full_attention", "sliding_attention"))
    nested.close()
    styles = {"rope_scaling": fields.take("rope_scaling", OBJECT, {}), "rope_parameters: full_attention": of_global}
    theta, scaling = fields.rotation("rope_theta", 1_000_000.0, styles)
    local = {"rope_parameters: sliding_attention": of_local}
    local_theta, local_scaling = fields.rotation("rope_local_base_freq", 10_000.0, local)
    if local_scaling is not None:
        raise ValueError(
            f"{fields.where}: rope_parameters: sliding_attention is scaled; allowed is rope_type = 'default' there"
        )
    return dict(rope_theta=theta, rope_scaling=scaling, local_rope_theta=local_theta)


def decoder_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Reads a `config.json`.

    Raises:
        ValueError: a field asks for something that the decoder does not compute, or is unknown.
    """
    fields = text_fields(hf)
    fields.only(
        hidden_activation=("gelu_pytorch_tanh",),
        attn_logit_softcapping=(),
        final_logit_softcapping=(),
        use_bidirectional_attention=(False,),
    )
    sizes = llama.sizes(fields) | rotations(fields)
    kinds = pattern(fields, sizes["num_layers"])
    window, score_dim = fields.take("sliding_window", WHOLE), float(fields.take("query_pre_attn_scalar", NUMBER))
    if "local" not in kinds:
        window, sizes["local_rope_theta"] = 0, None
    config = DecoderConfig(
        **sizes,
        pattern=kinds,
        window=window,
        norm_place="sandwich",
        norm_offset=1.0,
        qk_norm=True,
        score_dim=None if score_dim == sizes["head_dim"] else score_dim,
        activation="gelu_tanh",
        embed_scale=sizes["width"] ** 0.5,
        family="gemma3_text",
    )
    fields.close()
    return config


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """Writes a `config.json`, without token ids and dtype."""
    scaling = hf_scaling(config.rope_scaling)
    score_dim = config.head_dim if config.score_dim is None else config.score_dim
    local_theta = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    written = llama.hf_sizes(config) | dict(
        architectures=["Gemma3ForCausalLM"],
        hidden_activation="gelu_pytorch_tanh",
        layer_types=windows.layer_types(config),
        query_pre_attn_scalar=int(score_dim) if score_dim == int(score_dim) else score_dim,
        rope_parameters={
            "full_attention": scaling | {"rope_theta": config.rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
        },
        rope_theta=config.rope_theta,
        rope_local_base_freq=local_theta,
    )
    if config.window:
        written["sliding_window"] = config.window
    if config.rope_scaling is not None:
        written["rope_scaling"] = scaling
    if config.pattern == group_of(len(config.pattern)):
        written["sliding_window_pattern"] = len(config.pattern)
    return written
