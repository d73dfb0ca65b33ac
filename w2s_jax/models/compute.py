"""How a model computes, apart from what it is: number format, attention back end, rematerialisation, devices."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from w2s_jax import processes
from w2s_jax.models import attention, decoder, sharding
from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.decoder import REMAT, Decoder

VERSION = "1"
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Compute:
    """See the module.

    Attributes:
        mesh: the devices, from `sharding.make_mesh`.
        dtype: of activations and products; norms and losses keep float32, parameters the format that they are loaded in.
        attention: a back end's name in `models.attention`; "auto" = what suits the mesh's devices and the dtype.
        remat: a policy's name in `models.decoder.REMAT`; for training only.
    """

    mesh: Mesh
    dtype: str = "float32"
    attention: str = "auto"
    remat: str = "none"

    def __post_init__(self):
        for name, allowed in (("dtype", DTYPES), ("attention", attention.NAMES), ("remat", REMAT)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: allowed are {', '.join(allowed)}; change it in the config")

    def model(self, config: DecoderConfig, lora_scale: float = 0.0) -> Decoder:
        """The decoder of that shape under these settings."""
        mesh = self.mesh if self.mesh.size > 1 else None
        name = attention.suited(self.mesh.devices.flat[0].platform, self.dtype) if self.attention == "auto" else self.attention
        return Decoder(config, jnp.dtype(self.dtype), name, self.remat, lora_scale, mesh)

    def place_params(self, tree: Any) -> Any:
        """Puts parameters, adapters or shapes' arrays where the rules want them."""
        if self.mesh.size == 1:
            # One device has one way to hold an array, and this is the name of it that programs give their results.
            return processes.place(tree, NamedSharding(self.mesh, PartitionSpec()))
        return jax.tree.map(processes.place, tree, sharding.param_shardings(tree, self.mesh))

    def unstack(self, config: DecoderConfig, tree: Any) -> Any:
        """The unrolled form of parameters or adapters (see `decoder.unstack`), as decoding wants it.

        It is in this format, and repeated over the fsdp axis: gathering weights for every token would cost more than computing.
        """
        mesh = self.mesh if self.mesh.size > 1 else None
        return _unstacked(tree, config=config, dtype=jnp.dtype(self.dtype), mesh=mesh)

    def place_rows(self, tree: Any, axis: int = 0) -> Any:
        """Splits the rows (along `axis`) of host arrays over the data and fsdp axes."""
        spec = PartitionSpec(*[None] * axis, *sharding.ROWS)
        return processes.place(tree, NamedSharding(self.mesh, spec))


@functools.partial(jax.jit, static_argnames=("config", "dtype", "mesh"))
def _unstacked(tree, *, config: DecoderConfig, dtype, mesh: Mesh | None):
    """One program for all trees of a shape: a student that learns from what it writes is unstacked in every round."""
    tree = decoder.unstack(config, tree, dtype)
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, sharding.param_shardings(tree, mesh, whole_over=("fsdp",)))
