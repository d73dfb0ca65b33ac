"""How many operations a decoder's passes take: two for each multiplication in a matrix product, as XLA counts them.

    maps        2 x tokens x weights of the blocks' linear maps
    attention   4 x pairs x H C in each block; a pair is a token and one that it is compared with: all of its segment, before
                and behind it, as products that are masked afterwards compare them; a token that is written, those before it
    logits      2 x D V for each position that is turned into logits; the others cost nothing

A training step makes two products more of each map: the gradients of its input and of its weights; where adapters are trained
the second is theirs alone. The backward pass makes attention's scores, the logits and the adapters' inner numbers once more.

Left out: padding, and what kernels skip or compute beyond a token's segment (windows of local blocks too); elementwise work,
norms, rotation, softmax, lookups of embeddings; the optimizer; what `remat` repeats.
"""

import dataclasses

import numpy as np

from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.lora import TARGETS
from w2s_jax.types import Batch

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Load:
    """What a model is given to do. Numbers may be fractions where they come from means.

    Attributes:
        tokens: read, without padding.
        pairs: of tokens that attention compares.
        logits: positions that are turned into logits.
    """

    tokens: float = 0
    pairs: float = 0
    logits: float = 0

    def __add__(self, other: "Load") -> "Load":
        return Load(self.tokens + other.tokens, self.pairs + other.pairs, self.logits + other.logits)

    def __mul__(self, times: float) -> "Load":
        return Load(self.tokens * times, self.pairs * times, self.logits * times)


def reading(length: np.ndarray, logits: int = 0) -> Load:
    """Segments of these lengths are read, each on its own.

    >>> reading(np.array([2, 3]), logits=2)
    Load(tokens=5, pairs=13, logits=2)
    """
    length = np.asarray(length, np.int64)
    return Load(int(length.sum()), int((length**2).sum()), int(logits))


def writing(prompt: np.ndarray, completion: np.ndarray) -> Load:
    """Tokens are written behind prompts that were read, one by one; the last one of an answer is not read again.

    Args:
        prompt, completion: f[R], tokens of each answer's prompt and of the answer.

    >>> writing(np.array([2.0]), np.array([3.0]))
    Load(tokens=2.0, pairs=7.0, logits=3.0)
    """
    fed = np.maximum(completion - 1, 0)
    return Load(float(fed.sum()), float((fed * prompt + fed * (fed + 1) / 2).sum()), float(np.sum(completion)))


def learning(batch: Batch) -> Load:
    """The rows of a host batch are read, and the tokens that have a weight predicted."""
    segment, num_rows, length = batch.segment, *batch.segment.shape
    place = np.arange(num_rows)[:, None] * (length + 1)
    size = np.bincount((place + segment).ravel(), minlength=num_rows * (length + 1))
    real = segment > 0
    pairs = size[place + segment][real].sum()
    if batch.prefix is not None:
        pairs += size[place + batch.prefix][real & (batch.prefix > 0)].sum()
    logits = real if batch.weight is None else batch.weight != 0
    return Load(int(real.sum()), int(pairs), int(logits.sum()))


def maps(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """The linear maps of a block, by the name that adapters know them by: numbers in and out."""
    D, heads, shared = config.width, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = {"q": (D, heads), "k": (D, shared), "v": (D, shared), "o": (heads, D)}
    return attention | {"gate": (D, config.mlp_width), "up": (D, config.mlp_width), "down": (config.mlp_width, D)}


def forward(config: DecoderConfig, load: Load, *, rank: int = 0, targets: tuple[str, ...] = TARGETS) -> float:
    """Operations of a pass without gradients.

    Args:
        config: the decoder's.
        load: what it is given.
        rank, targets: of adapters beside the weights; 0 = none.
    """
    weights, adapters, attention, head = _of_one(config, rank, targets, 1, 1)
    return load.tokens * (weights + adapters) + load.pairs * attention + load.logits * head


def training(config: DecoderConfig, load: Load, *, rank: int, targets: tuple[str, ...] = TARGETS) -> float:
    """Operations of training steps on a load: forward and backward.

    Args:
        config: the decoder's.
        load: what is learnt from.
        rank, targets: of the adapters that are trained; 0 = all parameters are.
    """
    # Of an adapter's two maps the inner one is made again, and both have two gradients.
    weights, adapters, attention, head = _of_one(config, rank, targets, 4, 3)
    scores_again = 7 / 2  # products of attention: two forward; the scores again and two for each of them backward
    products = (2, 3) if rank else (3, 4)
    return (
        load.tokens * (products[0] * weights + adapters)
        + load.pairs * scores_again * attention
        + load.logits * products[1] * head
    )


def _of_one(
    config: DecoderConfig, rank: int, targets: tuple[str, ...], inner: int, outer: int
) -> tuple[float, float, float, float]:
    """Operations for one token in the linear maps and in their adapters, for one pair, for one position's logits.

    `inner`, `outer`: how many products an adapter's first and second map take.
    """
    sizes, M = maps(config), config.num_layers
    weights = 2 * M * sum(a * b for a, b in sizes.values())
    adapters = 2 * M * rank * sum(inner * sizes[name][0] + outer * sizes[name][1] for name in targets if rank)
    return weights, adapters, 4 * M * config.num_heads * config.head_dim, 2 * config.width * config.vocab_size
