"""Attention: who sees whom (`Sight`), and back ends that compute it, chosen by name.

A back end maps `(q [B,T,H,C], k [B,S,J,C], v [B,S,J,C], sight, scale)` to `[B,T,H,C]` in the dtype of `q`; `scale` multiplies
the scores. Query head h reads key-value head h // (H // J), and no back end repeats keys or values in memory. The softmax is
float32 at least.

    name     where    what                                                    scores in memory
    auto     any      the one below that suits the device and the dtype
    xla      any      matrix products, block by block                         a block's
    jax      any      `jax.nn.dot_product_attention` as XLA compiles it       yes
    cudnn    GPU      the same through cuDNN; half precision only             no, but a mask as large
    splash   TPU      Pallas kernel that skips what no token sees             no
    tokamax  any      `tokamax.dot_product_attention` (pip install tokamax)   depends on the device

Over a cache there are one or few queries, and the keys lie ready for the product: `over_cache` does it, whatever the back end.
"""

import functools
from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

VERSION = "5"
LANES = 128
"""The splash kernel takes rows whose length is a multiple of this."""
BLOCK = 128
"""Queries that `xla` attends for at once in packed rows."""


@flax.struct.dataclass
class Sight:
    """Who sees whom.

    Attributes:
        mask: bool[B, T, S], [b, t, s] = token t sees s.
        segment: i32[B, T] that alone, with the window, the mask was made from (S = T); None if there is more to it.
        window: how many tokens are seen at most, oneself included; 0 = no limit.
    """

    mask: jax.Array
    segment: jax.Array | None
    window: int = flax.struct.field(pytree_node=False, default=0)


def segment_sight(segment: jax.Array, window: int = 0) -> Sight:
    """Packed rows: a token sees the earlier ones of its segment, and itself.

    Padding (segment 0) counts as a segment of its own: nothing real sees it, and no row of the mask is empty, so that no
    back end meets a softmax over nothing.

    Args:
        segment: i32[B, L]; the tokens of a segment stand side by side, in order.
        window: see `Sight`.

    >>> segment_sight(jnp.array([[1, 1, 2]])).mask.astype(int)[0].tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    place = jnp.arange(segment.shape[1])
    same = segment[:, :, None] == segment[:, None, :]
    return Sight(same & within(place[:, None], place[None, :], window), segment, window)


def prefix_sight(segment: jax.Array, prefix: jax.Array, position: jax.Array, window: int = 0) -> Sight:
    """Packed rows in which segments share what stands before them: a token sees the earlier ones of its segment and its prefix.

    Args:
        segment: see `segment_sight`.
        prefix: i32[B, L], the number of an earlier segment of the row, 0 = none.
        position: i32[B, L]; where a window ends is counted by it, as others' segments may stand between prefix and token.
        window: see `Sight`.

    Two answers, 2 and 3, to the prompt 1:

    >>> prefix_sight(jnp.array([[1, 2, 3]]), jnp.array([[0, 1, 1]]), jnp.array([[0, 1, 1]])).mask.astype(int)[0].tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    place = jnp.arange(segment.shape[1])
    seen = segment[:, :, None] == segment[:, None, :]
    seen |= (prefix[:, :, None] == segment[:, None, :]) & (prefix[:, :, None] > 0)
    seen &= within(place[:, None], place[None, :], 0)
    if window:
        seen &= within(position[:, :, None], position[:, None, :], window)
    return Sight(seen, None)


def cache_sight(position: jax.Array, num_slots: int, window: int = 0) -> Sight:
    """New tokens over a cache: slot s holds the token at position s, so those up to their own are seen.

    Args:
        position: i32[B, T].
        num_slots: S.
        window: see `Sight`.
    """
    return Sight(within(position[:, :, None], jnp.arange(num_slots), window), None, window)


def within(here: jax.Array, there: jax.Array, window: int) -> jax.Array:
    """Says whether place `there` is `here` or before it, and fewer than `window` places away (0 = any number)."""
    near = here >= there
    return near & (here - there < window) if window else near


def xla(q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight, scale: float) -> jax.Array:
    """Attends by matrix products; a block's scores exist in memory, those of a packed row never all at once.

    Rows of whole blocks are done `BLOCK` queries at a time, each block with the keys up to its end (and within the window):
    what lies behind is never computed.
    """
    L = q.shape[1]
    if L <= BLOCK or L % BLOCK:
        return dense(q, k, v, sight.mask, scale)
    parts = []
    for start in range(0, L, BLOCK):
        here = slice(start, start + BLOCK)
        seen = slice(max(0, start - sight.window + 1) if sight.window else 0, start + BLOCK)
        parts.append(dense(q[:, here], k[:, seen], v[:, seen], sight.mask[:, here, seen], scale))
    return jnp.concatenate(parts, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def dense(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    """Attends everywhere, then masks; the query heads of a key-value head are laid end to end, as rows of one product.

    The backward pass keeps no scores: it makes them again from the queries, the keys and each row's normaliser, and takes the
    sum over keys that the softmax's gradient asks for from the result, which is narrower. Source: arXiv 2205.14135, B.2.
    """
    return _forward(q, k, v, mask, scale)[0]


def _forward(q, k, v, mask, scale):
    score = _scores(q, k, mask, scale)
    total = jax.nn.logsumexp(score, axis=-1, keepdims=True)
    share = jnp.exp(score - total).astype(v.dtype)
    out = _unstacked(jnp.einsum("bjts,bsjc->bjtc", share, v), q.shape)
    return out, (q, k, v, mask, out, total)


def _backward(scale, kept, gradient):
    q, k, v, mask, out, total = kept
    heads = k.shape[2]
    share = jnp.exp(_scores(q, k, mask, scale) - total)
    down = _stacked(gradient, heads)
    to_v = jnp.einsum("bjts,bjtc->bsjc", share.astype(v.dtype), down)
    to_share = jnp.einsum("bjtc,bsjc->bjts", down, v, preferred_element_type=share.dtype)
    mean = jnp.sum(gradient.astype(share.dtype) * out, axis=-1)  # [B, T, H]
    to_score = (share * (to_share - _stacked(mean[..., None], heads)) * scale).astype(q.dtype)
    to_q = _unstacked(jnp.einsum("bjts,bsjc->bjtc", to_score, k), q.shape)
    return to_q, jnp.einsum("bjts,bjtc->bsjc", to_score, _stacked(q, heads)), to_v, None


dense.defvjp(_forward, _backward)


def _scores(q: jax.Array, k: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    """Masked scores [B, J, H / J * T, S]."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    score = jnp.einsum("bjtc,bsjc->bjts", _stacked(q, k.shape[2]), k, preferred_element_type=wide) * scale
    return jnp.where(jnp.tile(mask[:, None], (1, 1, q.shape[2] // k.shape[2], 1)), score, jnp.finfo(wide).min)


def _stacked(x: jax.Array, heads: int) -> jax.Array:
    """[B, T, H, C] -> [B, J, H / J * T, C]."""
    B, T, H, C = x.shape
    return x.reshape(B, T, heads, H // heads, C).transpose(0, 2, 3, 1, 4).reshape(B, heads, H // heads * T, C)


def _unstacked(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The way back, to the queries' shape."""
    B, T, H, C = shape
    heads = x.shape[1]
    return x.reshape(B, heads, H // heads, T, C).transpose(0, 3, 1, 2, 4).reshape(shape)


def over_cache(q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight, scale: float) -> jax.Array:
    """Attends over a cache.

    Args:
        q: [B,T,H,C].
        k: [B,J,C,S], as the product with the queries reads it; another order is copied into this one at every token.
        v: [B,J,S,C].
        sight, scale: see the module.
    """
    B, T, H, C = q.shape
    J, S = k.shape[1], k.shape[3]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    stacked = q.reshape(B, T, J, H // J, C).transpose(0, 2, 3, 1, 4).reshape(B, J, H // J * T, C)
    score = jnp.einsum("bjtc,bjcs->bjts", stacked, k.astype(q.dtype), preferred_element_type=wide)
    score = jnp.where(sight.mask[:, None, None], score.reshape(B, J, H // J, T, S) * scale, jnp.finfo(wide).min)
    share = jax.nn.softmax(score, axis=-1).astype(q.dtype).reshape(B, J, H // J * T, S)
    out = jnp.einsum("bjts,bjsc->bjtc", share, v.astype(q.dtype))
    return out.reshape(B, J, H // J, T, C).transpose(0, 3, 1, 2, 4).reshape(B, T, H, C)


def fused(q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight, scale: float, *, implementation: str) -> jax.Array:
    """Attends by `jax.nn.dot_product_attention`."""
    return jax.nn.dot_product_attention(q, k, v, mask=sight.mask[:, None], scale=scale, implementation=implementation)


def splash(
    q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight, scale: float, *, mesh: Mesh | None, interpret: bool = False
) -> jax.Array:
    """Attends by the TPU's splash kernel, row by row and key-value head by key-value head.

    Args:
        mesh: rows are split over its data and fsdp axes and heads over tensor, each device running its own kernel; None = one
            device.
        interpret: run the kernel's operations one by one, on any device.

    Raises:
        ValueError: the rows' length is no multiple of `LANES`.
    """
    B, L, H, C = q.shape
    J = k.shape[2]
    assert sight.segment is not None, "see SEES_PREFIXES"
    if L % LANES:
        raise ValueError(
            f"attention='splash' needs rows whose length is a multiple of {LANES}, they have {L} tokens; change "
            "shape.row_length in the config, or take attention='xla'"
        )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    causal = splash_attention_mask.CausalMask((L, L))
    near = splash_attention_mask.LocalMask((L, L), (sight.window - 1, 0), 0) if sight.window else causal
    mask = splash_attention_mask.MultiHeadMask([near] * (H // J))
    kernel = splash_attention_kernel.make_splash_mqa_single_device(mask, interpret=interpret)

    def attend(q, k, v, segment):
        ids = splash_attention_kernel.SegmentIds(q=segment, kv=segment)
        over_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
        grouped = (q * scale).reshape(*q.shape[:2], -1, H // J, C).transpose(0, 2, 3, 1, 4)  # [B, J, H/J, L, C]
        out = jax.vmap(over_heads)(grouped, k.swapaxes(1, 2), v.swapaxes(1, 2), ids)
        return out.transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)

    if mesh is None:
        return attend(q, k, v, sight.segment)
    rows, heads = P(("data", "fsdp")), P(("data", "fsdp"), None, "tensor", None)
    split = jax.shard_map(attend, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return split(q, k, v, sight.segment)


def from_tokamax(q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight, scale: float) -> jax.Array:
    """Attends by tokamax, which picks a kernel for the device.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import tokamax
    except ImportError:
        raise ValueError(
            "attention='tokamax' needs the package: pip install -e '.[kernels]', or take attention='auto'"
        ) from None
    return tokamax.dot_product_attention(q, k, v, mask=sight.mask[:, None], scale=scale)


BACK_ENDS: Mapping[str, Callable[[Mesh | None], Callable[..., jax.Array]]] = {
    "xla": lambda mesh: xla,
    "jax": lambda mesh: functools.partial(fused, implementation="xla"),
    "cudnn": lambda mesh: functools.partial(fused, implementation="cudnn"),
    "splash": lambda mesh: functools.partial(splash, mesh=mesh),
    "tokamax": lambda mesh: from_tokamax,
}
"""Name -> maker, given the mesh (None = one device)."""
NAMES = ("auto", *BACK_ENDS)
SEES_PREFIXES = frozenset(BACK_ENDS) - {"splash"}
"""Those that take `prefix_sight`; splash makes its own mask of segments."""


def suited(platform: str, dtype: str) -> str:
    """The back end that "auto" stands for.

    >>> [suited(platform, "bfloat16") for platform in ("cpu", "gpu", "tpu")]
    ['xla', 'cudnn', 'splash']
    >>> suited("gpu", "float32")  # cuDNN attends in half precision only
    'xla'
    """
    halves = jnp.dtype(dtype).itemsize == 2
    return {"tpu": "splash", "gpu": "cudnn" if halves else "xla"}.get(platform, "xla")


def back_end(name: str, mesh: Mesh | None = None) -> Callable[..., jax.Array]:
    """Finds a back end by name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in BACK_ENDS:
        raise ValueError(f"attention={name!r}; choose one of {', '.join(BACK_ENDS)}")
    return BACK_ENDS[name](mesh)
