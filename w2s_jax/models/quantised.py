"""A frozen base in fewer bits: the kernels of the blocks are kept in int8 or nf4 and widened where they are used.

Needs the extra `pip install 'w2s_jax[quant]'`; this is the only file that knows the library (qwix). A packed kernel is a pytree
of codes and scales that stands in the place of the array, stacked like it. Embeddings, norms and biases stay as they are.

A student taught on such a base is saved as the widened base with its adapters merged, which is what was trained; its adapters
on their own go on the base as it was. While a student writes, its kernels are widened: decoding reads them at every token.

    int8  one scale for each output of a layer; a weight moves by half a step at most, 1/255 of its column's largest
    nf4   16 levels for each block of 64 inputs of an output; a weight moves by at most 0.152 of its block's largest

Source: arXiv 2305.14314 (nf4, and a frozen base under adapters).
Deviations: 1. scales are not quantised again. 2. A block lies along the inputs of one output. 3. nf4 takes a byte for each
weight wherever the back end does not pack four bits (CPU), and its codes are gathered whole over the mesh's `tensor` axis.
"""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp

VERSION = "1"

FORMATS = ("int8", "nf4")
BLOCK = 64


def require(word: str) -> None:
    """Checks that a format can be used.

    Raises:
        ValueError: there is no such format, or the library is not installed.
    """
    if word not in FORMATS:
        raise ValueError(
            f"quantise={word!r}: allowed are '' (not), {', '.join(FORMATS)}; change student.quantise in the config"
        )
    if importlib.util.find_spec("qwix") is None:
        raise ValueError(f"quantise={word!r} needs a package: pip install 'w2s_jax[quant]', or set student.quantise to ''")


def pack(kernel: jax.Array, word: str) -> Any:
    """Packs a kernel [..., in, out]; the scales get the kernel's dtype.

    Raises:
        ValueError: see `require`; or the inputs cannot be cut into blocks (nf4).
    """
    require(word)
    import qwix

    *stack, num_in, _ = kernel.shape
    if word == "nf4" and num_in % BLOCK:
        raise ValueError(
            f"nf4 cuts the inputs of a linear map into blocks of {BLOCK}, this one has {num_in}; set student.quantise to 'int8'"
        )
    apart = (*range(len(stack)), kernel.ndim - 1)
    tiles = {kernel.ndim - 2: BLOCK} if word == "nf4" else {}
    wide = kernel.astype(jnp.float32)
    return qwix.quantize(
        wide, jnp.int8 if word == "int8" else word, channelwise_axes=apart, tiled_axes=tiles, scale_dtype=kernel.dtype
    )


def widen(kernel: Any) -> jax.Array:
    """The array that a packed kernel stands for; an array is returned as it is."""
    if not is_packed(kernel):
        return kernel
    import qwix

    return jax.jit(qwix.dequantize)(kernel)


def is_packed(kernel: Any) -> bool:
    """Says whether `pack` made it."""
    return hasattr(kernel, "qvalue")


def product(x: jax.Array, kernel: Any, dtype: jnp.dtype) -> jax.Array:
    """Multiplies x [..., in] by a kernel [in, out], packed or not, in `dtype`."""
    if not is_packed(kernel):
        return x @ kernel.astype(dtype)
    # Otherwise the widened kernels of all layers would be kept for the backward pass.
    return jax.checkpoint(lambda x, kernel: x @ widen(kernel).astype(dtype))(x, kernel)
