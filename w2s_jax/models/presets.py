"""Shapes of released models by hub id, for planning before any weights are there.

Numbers are those of the `config.json` on the hub. A model that was trained further from another has its shape; where a
base model's `config.json` differs in context or `norm_eps`, so does it here.
"""

import dataclasses
import difflib
from collections.abc import Mapping

from w2s_jax.models import rope
from w2s_jax.models.config import DecoderConfig

VERSION = "1"


def olmo2(width: int, num_layers: int, num_heads: int, num_kv_heads: int, mlp_width: int) -> DecoderConfig:
    """OLMo 2, arXiv 2501.00656."""
    return DecoderConfig(
        100_352, width, num_layers, num_heads, num_kv_heads, width // num_heads, mlp_width, family="olmo2",
        rope_theta=500_000.0, norm_place="post", qk_norm=True, qk_norm_joint=True, max_position=4096,
    )  # fmt: skip


def qwen3(width: int, num_layers: int, num_heads: int, mlp_width: int, tied: bool) -> DecoderConfig:
    """Qwen3, arXiv 2505.09388."""
    return DecoderConfig(
        151_936, width, num_layers, num_heads, 8, 128, mlp_width, family="qwen3",
        rope_theta=1_000_000.0, qk_norm=True, tied=tied, max_position=40_960,
    )  # fmt: skip


def qwen25(width: int, num_layers: int, num_heads: int, num_kv_heads: int, mlp_width: int) -> DecoderConfig:
    """Qwen2.5, arXiv 2412.15115; up to 3B the embedding is shared and its table a little shorter."""
    small = width <= 2048
    return DecoderConfig(
        151_936 if small else 152_064, width, num_layers, num_heads, num_kv_heads, width // num_heads, mlp_width,
        family="qwen2", rope_theta=1_000_000.0, qkv_bias=True, tied=small, max_position=32_768,
    )  # fmt: skip


def gemma3(
    width: int, num_layers: int, num_heads: int, num_kv_heads: int, mlp_width: int, head_dim: int = 256, large: bool = True
) -> DecoderConfig:
    """Gemma 3, arXiv 2503.19786; the large ones also read images, have longer contexts and wider windows."""
    return DecoderConfig(
        262_208 if large else 262_144, width, num_layers, num_heads, num_kv_heads, head_dim, mlp_width, family="gemma3_text",
        rope_theta=1_000_000.0, rope_scaling=rope.Linear(8.0) if large else None, local_rope_theta=10_000.0,
        norm_place="sandwich", norm_offset=1.0, qk_norm=True, activation="gelu_tanh", embed_scale=width**0.5, tied=True,
        pattern=("local",) * 5 + ("global",), window=1024 if large else 512, max_position=131_072 if large else 32_768,
    )  # fmt: skip


def smollm2(
    width: int, num_layers: int, num_heads: int, num_kv_heads: int, mlp_width: int, rope_theta: float, init_std: float
) -> DecoderConfig:
    """SmolLM2, arXiv 2502.02737."""
    return DecoderConfig(
        49_152, width, num_layers, num_heads, num_kv_heads, width // num_heads, mlp_width, family="llama",
        rope_theta=rope_theta, norm_eps=1e-5, tied=True, max_position=8192, init_std=init_std,
    )  # fmt: skip


def llama3(width: int, num_layers: int, num_heads: int, mlp_width: int, stretch: float, tied: bool) -> DecoderConfig:
    """Llama 3.1 and 3.2, arXiv 2407.21783."""
    return DecoderConfig(
        128_256, width, num_layers, num_heads, 8, width // num_heads, mlp_width, family="llama",
        rope_theta=500_000.0, rope_scaling=rope.Llama3(stretch, 1.0, 4.0, 8192), norm_eps=1e-5, tied=tied,
        max_position=131_072,
    )  # fmt: skip


def same(config: DecoderConfig, *ids: str) -> dict[str, DecoderConfig]:
    """One shape under several ids."""
    return dict.fromkeys(ids, config)


def with_base(config: DecoderConfig, hub_id: str) -> dict[str, DecoderConfig]:
    """A post-trained Qwen3, and the model that it was trained from, which has a shorter context."""
    return {hub_id: config, f"{hub_id}-Base": dataclasses.replace(config, max_position=32_768)}


def further(config: DecoderConfig, hub_id: str, *suffixes: str) -> dict[str, DecoderConfig]:
    """A base model, and those of its shape that were trained from it."""
    return same(config, hub_id, *(f"{hub_id}-{suffix}" for suffix in suffixes))


def with_instruct(config: DecoderConfig, hub_id: str, **base: float) -> dict[str, DecoderConfig]:
    """An instruction-tuned Qwen2.5, and its base model with what is different there."""
    return {hub_id: dataclasses.replace(config, **base), f"{hub_id}-Instruct": config}


GEMMA3_27B = dataclasses.replace(gemma3(5376, 62, 32, 16, 21_504, head_dim=128), score_dim=168.0)

PRESETS: Mapping[str, DecoderConfig] = {
    **further(olmo2(2048, 16, 16, 16, 8192), "allenai/OLMo-2-0425-1B", "SFT", "DPO", "Instruct"),
    **further(olmo2(4096, 32, 32, 32, 11_008), "allenai/OLMo-2-1124-7B", "SFT", "DPO", "Instruct"),
    **further(olmo2(5120, 40, 40, 40, 13_824), "allenai/OLMo-2-1124-13B", "SFT", "DPO", "Instruct"),
    **with_base(qwen3(1024, 28, 16, 3072, tied=True), "Qwen/Qwen3-0.6B"),
    **with_base(qwen3(2048, 28, 16, 6144, tied=True), "Qwen/Qwen3-1.7B"),
    **with_base(qwen3(2560, 36, 32, 9728, tied=True), "Qwen/Qwen3-4B"),
    **with_base(qwen3(4096, 36, 32, 12_288, tied=False), "Qwen/Qwen3-8B"),
    **with_base(qwen3(5120, 40, 40, 17_408, tied=False), "Qwen/Qwen3-14B"),
    "Qwen/Qwen3-32B": qwen3(5120, 64, 64, 25_600, tied=False),
    **same(gemma3(640, 18, 4, 1, 2048, large=False), "google/gemma-3-270m", "google/gemma-3-270m-it"),
    **same(gemma3(1152, 26, 4, 1, 6912, large=False), "google/gemma-3-1b-pt", "google/gemma-3-1b-it"),
    **same(gemma3(2560, 34, 8, 4, 10_240), "google/gemma-3-4b-pt", "google/gemma-3-4b-it"),
    **same(gemma3(3840, 48, 16, 8, 15_360), "google/gemma-3-12b-pt", "google/gemma-3-12b-it"),
    **same(GEMMA3_27B, "google/gemma-3-27b-pt", "google/gemma-3-27b-it"),
    **with_instruct(qwen25(896, 24, 14, 2, 4864), "Qwen/Qwen2.5-0.5B"),
    **with_instruct(qwen25(1536, 28, 12, 2, 8960), "Qwen/Qwen2.5-1.5B", max_position=131_072),
    **with_instruct(qwen25(2048, 36, 16, 2, 11_008), "Qwen/Qwen2.5-3B"),
    **with_instruct(qwen25(3584, 28, 28, 4, 18_944), "Qwen/Qwen2.5-7B", max_position=131_072),
    **with_instruct(qwen25(5120, 48, 40, 8, 13_824), "Qwen/Qwen2.5-14B", max_position=131_072, norm_eps=1e-5),
    **with_instruct(qwen25(5120, 64, 40, 8, 27_648), "Qwen/Qwen2.5-32B", max_position=131_072, norm_eps=1e-5),
    **further(smollm2(576, 30, 9, 3, 1536, 100_000.0, 1 / 24), "HuggingFaceTB/SmolLM2-135M", "Instruct"),
    **further(smollm2(960, 32, 15, 5, 2560, 100_000.0, 0.02), "HuggingFaceTB/SmolLM2-360M", "Instruct"),
    **further(smollm2(2048, 24, 32, 32, 8192, 130_000.0, 0.02), "HuggingFaceTB/SmolLM2-1.7B", "Instruct"),
    **further(llama3(2048, 16, 32, 8192, 32.0, tied=True), "meta-llama/Llama-3.2-1B", "Instruct"),
    **further(llama3(3072, 28, 24, 8192, 32.0, tied=True), "meta-llama/Llama-3.2-3B", "Instruct"),
    **further(llama3(4096, 32, 32, 14_336, 8.0, tied=False), "meta-llama/Llama-3.1-8B", "Instruct"),
}
"""Hub id -> shape of the (text) model."""


def preset(hub_id: str) -> DecoderConfig:
    """Finds a shape by hub id.

    Raises:
        ValueError: there is none under that id.

    >>> preset("Qwen/Qwen3-0.6B").width
    1024
    """
    if hub_id not in PRESETS:
        near = difflib.get_close_matches(hub_id, PRESETS, n=3, cutoff=0.0)
        raise ValueError(f"no preset {hub_id!r}; the nearest are {', '.join(near)} (all are in w2s_jax/models/presets.py)")
    return PRESETS[hub_id]
