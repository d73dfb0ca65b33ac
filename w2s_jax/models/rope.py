"""Rotary positions: how fast each pair of dimensions turns, and the turning itself. Source: arXiv 2104.09864.

The pairing of dimension c with c + C/2 is that of the Hugging Face checkpoints.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

VERSION = "1"


class Scaling(Protocol):
    """How a model that was extended to longer contexts slows its frequencies down."""

    def slow(self, frequency: np.ndarray) -> np.ndarray:
        """Maps f64[C // 2], radians per position, to the same."""
        ...


@dataclasses.dataclass(frozen=True)
class Linear:
    """All frequencies divided by one factor: positions are read as if they lay closer together (arXiv 2306.15595)."""

    factor: float

    def slow(self, frequency: np.ndarray) -> np.ndarray:
        """See `Scaling`."""
        return frequency / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Slow frequencies divided, fast ones kept, those between blended (arXiv 2407.21783, as in the released llama 3.1 code).

    Attributes:
        factor: divides what is slow.
        low: a dimension is slow if it turns fewer times than this within `original`.
        high: it is fast if it turns more often than this; above `low`.
        original: longest segment before the extension.
    """

    factor: float
    low: float
    high: float
    original: int

    def __post_init__(self):
        if self.high <= self.low:
            raise ValueError(f"rope: high_freq_factor = {self.high} must be above low_freq_factor = {self.low}")

    def slow(self, frequency: np.ndarray) -> np.ndarray:
        """See `Scaling`."""
        turns = self.original * frequency / (2 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return (kept + (1 - kept) / self.factor) * frequency


def rotation(position: jax.Array, head_dim: int, theta: float, scaling: Scaling | None = None) -> tuple[jax.Array, jax.Array]:
    """Computes the cosine and sine of each token's angles.

    Args:
        position: i32[B, T].
        head_dim: C.
        theta: dimension c turns by theta ** (-2c / C) radians per position, before scaling.
        scaling: applied to these; None = as they are.

    Returns:
        cos and sin, f32[B, T, C // 2].
    """
    frequency = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None:
        frequency = scaling.slow(frequency)
    # Rounded to float32 once, on the host: an error in a frequency grows with the position.
    angle = position[..., None].astype(jnp.float32) * frequency.astype(np.float32)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns heads [B, T, H, C] by their tokens' angles."""
    low, high = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)
