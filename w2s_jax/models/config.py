"""The shape of a decoder, free of any family's vocabulary."""

import dataclasses

from w2s_jax.models.rope import Scaling

VERSION = "2"

KINDS = ("global", "local")
"""Kinds of block: "global" sees its whole segment up to now, "local" the last `window` tokens of it."""

NORM_PLACES = ("pre", "post", "sandwich")
"""Where the norms of attention and MLP stand: before each, on the output of each, or both."""

ACTIVATIONS = ("silu", "gelu_tanh")
"""Functions that the MLP's gate goes through; "gelu_tanh" is the tanh approximation of GELU."""


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What `models.decoder.Decoder` is built from; made by a family adapter, or by hand to train from scratch.

    Attributes:
        vocab_size: V, rows of the embedding.
        width: D.
        num_layers: M.
        num_heads, num_kv_heads: H and J; H is a multiple of J (J = H: multi-head, J = 1: multi-query).
        head_dim: C, even; H * C need not be D.
        mlp_width: inner width of the gated MLP.
        rope_theta: base of the rotary frequencies.
        rope_scaling: what slows them down, in models extended to longer contexts; None = nothing.
        local_rope_theta: base in local blocks, where nothing slows them; None = there as in global blocks.
        norm_place: a word of `NORM_PLACES`; the final norm is there in any case.
        norm_eps: added to the mean square in RMSNorm.
        norm_offset: RMSNorm multiplies by this plus its weights.
        qkv_bias, out_bias, mlp_bias: which linear maps carry a bias.
        qk_norm: RMSNorm of queries and keys, before the rotation.
        qk_norm_joint: that norm is over all heads together (H * C, J * C) and not over C of each.
        score_dim: attention scores are divided by the root of this; None = C.
        activation: a word of `ACTIVATIONS`.
        embed_scale: factor of the embeddings where they enter the first block, rounded to the compute dtype.
        tied: the embedding, without that factor, is also the output head.
        max_position: longest segment that the model was made for.
        init_std: standard deviation of fresh weights.
        pattern: block kinds of the repeating group; layer i is of kind `pattern[i % len(pattern)]`.
        window: tokens that a local block sees, oneself included; 0 where there are no local blocks.
        family: adapter in `models.families` that names the parameters on disk.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float = 10_000.0
    rope_scaling: Scaling | None = None
    local_rope_theta: float | None = None
    norm_place: str = "pre"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    qk_norm_joint: bool = False
    score_dim: float | None = None
    activation: str = "silu"
    embed_scale: float = 1.0
    tied: bool = False
    max_position: int = 2048
    init_std: float = 0.02
    pattern: tuple[str, ...] = ("global",)
    window: int = 0
    family: str = "llama"

    def __post_init__(self):
        sizes = ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_width", "max_position")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"DecoderConfig.{name} = {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"DecoderConfig.num_heads = {self.num_heads} is no multiple of num_kv_heads = {self.num_kv_heads}; "
                "each key-value head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"DecoderConfig.head_dim = {self.head_dim}; the rotary embedding needs an even number")
        if not self.pattern or set(self.pattern) - set(KINDS):
            raise ValueError(f"DecoderConfig.pattern = {self.pattern}; it is a tuple of one or more of {KINDS}")
        for name, words in (("norm_place", NORM_PLACES), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in words:
                raise ValueError(f"DecoderConfig.{name} = {getattr(self, name)!r}; allowed are {', '.join(words)}")
        if self.window < 0 or (self.window > 0) != ("local" in self.pattern):
            raise ValueError(
                f"DecoderConfig.window = {self.window} with pattern = {self.pattern}; it is at least 1 where there are local "
                "blocks, and 0 where there are none"
            )
        if self.local_rope_theta is not None and not self.window:
            raise ValueError(f"DecoderConfig.local_rope_theta = {self.local_rope_theta}, but pattern has no local blocks")
        if self.qk_norm_joint and not self.qk_norm:
            raise ValueError("DecoderConfig.qk_norm_joint is set and qk_norm is not; set both, or neither")

    @property
    def score_scale(self) -> float:
        """Factor of the attention scores."""
        return (self.score_dim or self.head_dim) ** -0.5

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each of the M blocks.

        >>> DecoderConfig(8, 4, 3, 1, 1, 4, 8).kinds
        ('global', 'global', 'global')
        """
        return tuple(self.pattern[layer % len(self.pattern)] for layer in range(self.num_layers))

    @property
    def num_groups(self) -> int:
        """Whole repetitions of `pattern`; the M - num_groups * len(pattern) blocks left over stand apart."""
        return self.num_layers // len(self.pattern)
