"""The one name table of a family, used for loading and for saving."""

import dataclasses
from collections.abc import Iterator, Mapping

from w2s_jax.models.config import DecoderConfig

VERSION = "2"


@dataclasses.dataclass(frozen=True)
class Name:
    """One parameter's two names.

    Attributes:
        ours: path below the decoder or, where `hf` has a `{}` for the layer, below a block.
        hf: name of the tensor on disk.
        transposed: linear maps are [in, out] here and [out, in] on disk.
    """

    ours: str
    hf: str
    transposed: bool = False

    @property
    def in_block(self) -> bool:
        """Whether each layer has one."""
        return "{}" in self.hf


def linear(ours: str, hf: str, bias: bool) -> Iterator[Name]:
    """Names a linear map."""
    yield Name(f"{ours}/kernel", f"{hf}.weight", transposed=True)
    if bias:
        yield Name(f"{ours}/bias", f"{hf}.bias")


def decoder_names(config: DecoderConfig, norms: Mapping[str, str]) -> tuple[Name, ...]:
    """The names that llama gave and its descendants kept, in file order.

    Args:
        config: the decoder's.
        norms: our name of each norm of a block -> its name on disk; which name stands where differs between families.
    """
    layer = "model.layers.{}."

    def norm(ours: str) -> Iterator[Name]:
        if ours in norms:
            yield Name(f"{ours}/scale", f"{layer}{norms[ours]}.weight")

    table = [Name("embed/weight", "model.embed_tokens.weight"), *norm("attn_norm")]
    for part in "qkv":
        table += linear(f"attn/{part}", f"{layer}self_attn.{part}_proj", config.qkv_bias)
    table += linear("attn/o", f"{layer}self_attn.o_proj", config.out_bias)
    if config.qk_norm:
        table += [Name(f"attn/{part}_norm/scale", f"{layer}self_attn.{part}_norm.weight") for part in "qk"]
    table += [*norm("attn_out_norm"), *norm("mlp_norm")]
    for part in ("gate", "up", "down"):
        table += linear(f"mlp/{part}", f"{layer}mlp.{part}_proj", config.mlp_bias)
    table += [*norm("mlp_out_norm"), Name("norm/scale", "model.norm.weight")]
    if not config.tied:
        table.append(Name("head/kernel", "lm_head.weight", transposed=True))
    return tuple(table)


def llama_names(config: DecoderConfig) -> tuple[Name, ...]:
    """The table of llama, and of those that changed no norm."""
    return decoder_names(config, {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"})


def as_stored(stored: str) -> str:
    """The `canonical` of families that store their tensors under the names of the table."""
    return stored
