"""Low-rank adapters as a pytree of their own: the base stays frozen by being outside what is trained.

The tree mirrors the parameters: beside each adapted `kernel [..., in, out]` stand `a [..., in, r]` and `b [..., r, out]`, with
the same leading (layer) axes. `model.apply({"params": params, "lora": lora}, ...)` adds `lora_scale * (x @ a @ b)`.

Source: arXiv 2106.09685, section 4.1; the start values are PEFT's.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from w2s_jax.models import quantised

VERSION = "1"

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
"""All linear maps of a block."""


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Adapters, with what makes a function of them.

    Attributes:
        tree: what `init` returns, trained or not.
        rank: r.
        alpha: they are scaled by alpha / rank.
    """

    tree: Any
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """The factor of the low-rank maps."""
        return self.alpha / self.rank


def init(params: Any, key: jax.Array, rank: int, targets: Sequence[str] = TARGETS, dtype=jnp.float32) -> Any:
    """Makes adapters that change nothing yet: `a` uniform in +-1/sqrt(in), `b` zero.

    Args:
        params: parameters, or their shapes, stacked or unstacked.
        key: consumed.
        rank: r, at least 1.
        targets: names of the linear maps to adapt.
        dtype: of the adapters.

    Raises:
        ValueError: the rank is below 1, or a target names no linear map of the model.
    """
    if rank < 1:
        raise ValueError(f"LoRA rank = {rank}; it must be at least 1")
    kernels = {path[:-1]: leaf for path, leaf in traverse_util.flatten_dict(params).items() if path[-1] == "kernel"}
    known = {path[-1] for path in kernels}
    if not targets or set(targets) - known:
        raise ValueError(f"LoRA targets = {tuple(targets)}; choose one or more of {sorted(known)}")
    chosen = sorted(path for path in kernels if path[-1] in targets)
    adapters = {}
    for path, sub in zip(chosen, jax.random.split(key, len(chosen)), strict=True):
        *layers, num_in, num_out = kernels[path].shape
        bound = num_in**-0.5
        adapters[*path, "a"] = jax.random.uniform(sub, (*layers, num_in, rank), dtype, -bound, bound)
        adapters[*path, "b"] = jnp.zeros((*layers, rank, num_out), dtype)
    return traverse_util.unflatten_dict(adapters)


def merge(params: Any, adapters: Adapters) -> Any:
    """Adds the adapters to the kernels: the same function without adapters, up to rounding in the kernels' dtype.

    Args:
        params: parameters; not changed. Packed kernels are widened, so that the result is what was trained.
        adapters: what to add.
    """
    flat, factors = traverse_util.flatten_dict(params), traverse_util.flatten_dict(adapters.tree)
    for path in (path[:-1] for path in factors if path[-1] == "a"):
        kernel, a, b = quantised.widen(flat[*path, "kernel"]), factors[*path, "a"], factors[*path, "b"]
        delta = jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32), precision="highest") * adapters.scale
        flat[*path, "kernel"] = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
    return traverse_util.unflatten_dict({path: quantised.widen(leaf) for path, leaf in flat.items()})
