"""The decoder: one stack of blocks, applied scanned (training, features) or unrolled over a cache (prefill, decode).

Parameters of the scanned form are stacked over repetitions of `config.pattern`:

    embed/weight [V,D]   layers/block_<j>/... [M // len(pattern), ...]   rest_<j>/... (blocks left over)
    norm/scale [D]       head/kernel [D,V] (untied models)

`unstack` gives the unrolled form, in which `layers` is a tuple of M blocks; do it once, outside any loop, because slicing
stacked weights inside one costs a copy per step.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from w2s_jax.models import attention, layers, quantised, rope, sharding
from w2s_jax.models.config import DecoderConfig

VERSION = "2"

REMAT: Mapping[str, Callable | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What the backward pass finds in memory: all results but those that are cheaper to make again (attention's scores, the MLP's
gated product, the inside of a norm); block inputs only; or the results of weight products too."""


@flax.struct.dataclass
class Output:
    """What a forward pass returns; logits are made afterwards, and only where they are needed.

    Attributes:
        hidden: [B, L, D], after the final norm.
        probe: f32[P, B, G, D] or None: hidden states of the asked layers at the asked positions.
    """

    hidden: jax.Array
    probe: jax.Array | None = None


def resolve_layers(wanted: Sequence[int | str], num_layers: int) -> tuple[int, ...]:
    """Turns layer words into indices 0..M+1 of the probe stack, of which M + 1 is "prenorm".

    Layers count as in transformers: 0 = embeddings, i = after block i, M = after the last block *and* the final norm;
    negative ones count from M. "prenorm" = after the last block, before the final norm.

    Raises:
        ValueError: there is no such layer.

    >>> resolve_layers((0, -1, "prenorm"), 4)
    (0, 4, 5)
    """
    found = []
    for layer in wanted:
        if layer == "prenorm":
            found.append(num_layers + 1)
        elif isinstance(layer, int) and -num_layers - 1 <= layer <= num_layers:
            found.append(layer % (num_layers + 1))
        else:
            raise ValueError(f"layer {layer!r}; allowed are {-num_layers - 1}..{num_layers} and 'prenorm'")
    return tuple(found)


def widened(dtype: Any) -> jnp.dtype:
    """The dtype of what half precision is too coarse for: float32, or wider where the computation is."""
    return jnp.promote_types(dtype, jnp.float32)


def at(x: jax.Array, place: jax.Array) -> jax.Array:
    """Gathers positions i32[B,G] of x [B,L,D] into [B,G,D]."""
    return jnp.take_along_axis(x, place[:, :, None], axis=1)


class Embedding(nn.Module):
    """The token table [V, D], read as input and, in tied models, as output."""

    config: DecoderConfig
    dtype: jnp.dtype
    mesh: jax.sharding.Mesh | None

    def setup(self):
        shape = (self.config.vocab_size, self.config.width)
        self.weight = self.param("weight", nn.initializers.normal(self.config.init_std), shape, jnp.float32)

    def __call__(self, token: jax.Array) -> jax.Array:
        x = jnp.take(sharding.gather_width(self.weight, self.mesh), token, axis=0).astype(self.dtype)
        return x * jnp.asarray(self.config.embed_scale, self.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        return jnp.einsum("...d,vd->...v", hidden, self.weight.astype(self.dtype), preferred_element_type=widened(self.dtype))


class Head(nn.Module):
    """The output map [D, V] of an untied model."""

    config: DecoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        shape = (self.config.width, self.config.vocab_size)
        kernel = self.param("kernel", nn.initializers.normal(self.config.init_std), shape, jnp.float32)
        return jnp.einsum("...d,dv->...v", hidden, kernel.astype(self.dtype), preferred_element_type=widened(self.dtype))


class Group(nn.Module):
    """The repeating group of blocks, the body of the scan. Taps [len(pattern),B,G,D] are taken inside it."""

    config: DecoderConfig
    block: Callable[..., nn.Module]
    mesh: jax.sharding.Mesh | None

    @nn.compact
    def __call__(self, x, views, probe):
        taps = []
        for place, kind in enumerate(self.config.pattern):
            x, _ = self.block(name=f"block_{place}")(x, views[kind])
            x = sharding.constrain_rows(x, self.mesh)
            if probe is not None:
                taps.append(at(x, probe))
        return x, jnp.stack(taps) if taps else None


class Decoder(nn.Module):
    """A decoder language model.

    Use: `model.apply({"params": params, "lora": lora}, token, segment, position)`; leave "lora" out for the bare model.

    Attributes:
        config: its shape.
        dtype: of the computation; parameters keep theirs.
        attention: name of a back end in `models.attention`.
        remat: name of a policy in `REMAT`.
        lora_scale: factor of the adapters (alpha / rank).
        mesh: rows of activations are pinned to its data and fsdp axes; None on one device.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32
    attention: str = "xla"
    remat: str = "none"
    lora_scale: float = 0.0
    mesh: jax.sharding.Mesh | None = None

    def setup(self):
        config = self.config
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r}; choose one of {sorted(REMAT)}")
        self.embed = Embedding(config, self.dtype, self.mesh)
        if config.num_groups:
            scan = nn.scan(
                Group,
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=config.num_groups,
            )
            self.layers = scan(config, self.block(remat=self.remat, in_scan=True), self.mesh)
        block = self.block(remat=self.remat)
        self.rest = [block() for _ in range(config.num_groups * len(config.pattern), config.num_layers)]
        self.norm = layers.RMSNorm.of(config)
        if not config.tied:
            self.head = Head(config, self.dtype)

    def block(self, remat: str = "none", in_scan: bool = False) -> Callable[..., layers.Block]:
        """Returns the constructor of this model's block, which is the same in all its uses but for rematerialisation."""
        cls = layers.Block
        if remat != "none":
            # The compiler undoes recomputation by sharing subexpressions, but not across the steps of a scan.
            cls = nn.remat(cls, policy=REMAT[remat], prevent_cse=not in_scan)
        attend = attention.back_end(self.attention, self.mesh)
        return functools.partial(cls, self.config, jnp.dtype(self.dtype), attend, self.lora_scale)

    def __call__(
        self,
        token: jax.Array,
        segment: jax.Array,
        position: jax.Array,
        probe: jax.Array | None = None,
        layers: tuple[int | str, ...] = (-1,),
        prefix: jax.Array | None = None,
    ) -> Output:
        """Runs packed rows.

        Args:
            token: i32[B, L].
            segment: i32[B, L]; a token sees the earlier ones of its own segment, 0 = padding.
            position: i32[B, L], from 0 in each segment.
            probe: i32[B, G], positions at which to gather hidden states, or None.
            layers: P layers to gather from, static; see `resolve_layers`.
            prefix: i32[B, L], the segment that a token sees beside its own, 0 = none; positions go on from it. None = no token
                does.
        """
        M = self.config.num_layers
        wanted = resolve_layers(layers, M)
        # Blocks are tapped only where a state from inside the stack is asked for.
        inner = None if set(wanted) <= {0, M} else probe
        x = sharding.constrain_rows(self.embed(token), self.mesh)
        if prefix is None:
            sight = functools.partial(attention.segment_sight, segment)
        else:
            sight = functools.partial(attention.prefix_sight, segment, prefix, position)
        views = make_views(self.config, position, sight)
        taps = [None if probe is None else at(x, probe)[None]]
        if self.config.num_groups:
            x, tapped = self.layers(x, views, inner)
            if inner is not None:
                taps.append(tapped.reshape(-1, *tapped.shape[2:]))
        for block, kind in zip(self.rest, self.config.pattern, strict=False):
            x = sharding.constrain_rows(block(x, views[kind])[0], self.mesh)
            if inner is not None:
                taps.append(at(x, inner)[None])
        hidden = self.norm(x)
        if probe is None:
            return Output(hidden)
        stack = jnp.concatenate(taps)
        states = [at(hidden, probe) if i == M else stack[min(i, M)] for i in wanted]
        return Output(hidden, jnp.stack(states).astype(widened(hidden.dtype)))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Maps hidden states [..., D], after the final norm, to f32[..., V]."""
        return self.embed.logits(hidden) if self.config.tied else self.head(hidden)

    def everything(self, token: jax.Array) -> jax.Array:
        """Touches each parameter once; for `init`."""
        return self.logits(self(token, jnp.ones_like(token), jnp.zeros_like(token)).hidden)


def make_views(
    config: DecoderConfig, position: jax.Array, sight: Callable[[int], attention.Sight], slot: jax.Array | None = None
) -> dict[str, layers.View]:
    """Builds what the blocks of each kind share.

    Args:
        config: the decoder's.
        position: i32[B, T].
        sight: from a window (0 = none) to who sees whom.
        slot: see `layers.View`.
    """
    turn = functools.partial(rope.rotation, position, config.head_dim)
    views = {}
    if "global" in config.pattern:
        views["global"] = layers.View(*turn(config.rope_theta, config.rope_scaling), sight(window=0), slot)
    if "local" in config.pattern:
        base = (config.rope_theta, config.rope_scaling) if config.local_rope_theta is None else (config.local_rope_theta,)
        views["local"] = layers.View(*turn(*base), sight(window=config.window), slot)
    return views


@functools.partial(jax.jit, static_argnums=0)
def init(config: DecoderConfig, key: jax.Array) -> Any:
    """Draws fresh float32 parameters: normal kernels and embeddings (`config.init_std`), norms that scale by 1, zero biases."""
    return Decoder(config).init(key, jnp.zeros((1, 1), jnp.int32), method="everything")["params"]


def shapes(config: DecoderConfig) -> Any:
    """Returns the parameter tree with shapes in place of arrays; nothing is allocated."""
    return jax.eval_shape(functools.partial(init, config), jax.random.key(0))


def variables(params: Any, lora: Any = None) -> dict[str, Any]:
    """Assembles what `model.apply` takes; lora None = the bare model."""
    return {"params": params} if lora is None else {"params": params, "lora": lora}


def block_path(config: DecoderConfig, layer: int) -> tuple[tuple[str, ...], int | None]:
    """Says where a block's parameters are: their path in the tree, and the row of the stack (None = not stacked).

    >>> config = DecoderConfig(8, 4, 3, 1, 1, 4, 8)
    >>> block_path(config, 2)
    (('layers', 'block_0'), 2)
    """
    row, place = divmod(layer, len(config.pattern))
    return (("layers", f"block_{place}"), row) if row < config.num_groups else ((f"rest_{place}",), None)


def unstack(config: DecoderConfig, tree: Any, dtype: Any = None) -> Any:
    """Splits stacked blocks: `layers` becomes a tuple of M trees, everything else stays; packed kernels are widened.

    Call it once, outside loops: neither a slice of a stack nor a packed kernel is then made into an array at every step.

    Args:
        config: the decoder's.
        tree: `params`, or adapters of the same layout, or None (returned as it is).
        dtype: cast to this compute dtype on the way, which saves a cast in every later step; None = keep.
    """
    if tree is None:
        return None

    def cast(leaf: Any, row: int | None = None) -> jax.Array:
        x = quantised.widen(leaf if row is None else jax.tree.map(lambda part: part[row], leaf))
        return x if dtype is None else x.astype(dtype)

    blocks = []
    for layer in range(config.num_layers):
        path, row = block_path(config, layer)
        block = functools.reduce(lambda node, name: node[name], path, tree)
        blocks.append(jax.tree.map(functools.partial(cast, row=row), block, is_leaf=quantised.is_packed))
    apart = {name: jax.tree.map(cast, node) for name, node in tree.items() if name != "layers" and not name.startswith("rest_")}
    return {**apart, "layers": tuple(blocks)}


@flax.struct.dataclass
class Cache:
    """Keys and values of what was read so far; slot s of a row holds the token at position s.

    A row holds one sequence, and a token at position p sees slots 0..p. So whatever a row held before needs no clearing: a new
    sequence overwrites it from slot 0 on, and never sees past its own end.

    Attributes:
        layer: M pairs of keys [B, J, C, S] and values [B, J, S, C].
    """

    layer: tuple[tuple[jax.Array, jax.Array], ...]

    @property
    def num_slots(self) -> int:
        """S, the longest sequence that fits."""
        return self.layer[0][0].shape[3]

    @property
    def num_heads(self) -> int:
        """J, key-value heads."""
        return self.layer[0][0].shape[1]

    def resized(self, num_slots: int) -> "Cache":
        """The same with S = num_slots; what stood in slots beyond is lost."""
        more = max(0, num_slots - self.num_slots)

        def fit(x: jax.Array, axis: int) -> jax.Array:
            room = [(0, more if d == axis else 0) for d in range(x.ndim)]
            return jax.lax.slice_in_dim(jnp.pad(x, room) if more else x, 0, num_slots, axis=axis)

        return Cache(tuple((fit(k, 3), fit(v, 2)) for k, v in self.layer))

    def replaced(self, row: jax.Array, other: "Cache", source: jax.Array) -> "Cache":
        """The same with rows `source` (i32[A]) of a cache of no more slots in the place of rows `row`; row B is nowhere."""
        T = other.num_slots
        return Cache(
            tuple(
                (
                    k.at[row, :, :, :T].set(new_k[source].astype(k.dtype), mode="drop"),
                    v.at[row, :, :T].set(new_v[source].astype(v.dtype), mode="drop"),
                )
                for (k, v), (new_k, new_v) in zip(self.layer, other.layer, strict=True)
            )
        )


def init_cache(config: DecoderConfig, num_rows: int, num_slots: int, dtype: Any = jnp.float32) -> Cache:
    """Makes an empty cache for B = num_rows sequences of up to S = num_slots tokens."""
    J, C = config.num_kv_heads, config.head_dim
    keys, values = (num_rows, J, C, num_slots), (num_rows, J, num_slots, C)
    return Cache(tuple((jnp.zeros(keys, dtype), jnp.zeros(values, dtype)) for _ in range(config.num_layers)))


def prefill(model: Decoder, params: Any, lora: Any, token: jax.Array, length: jax.Array) -> tuple[jax.Array, Cache]:
    """Reads the beginning of B sequences, each padded on the right to T tokens, into a cache of S = T slots.

    Args:
        model: the decoder; `remat` is ignored.
        params, lora: from `unstack`; lora may be None.
        token: i32[B, T].
        length: i32[B], from 1 to T.

    Returns:
        hidden [B, D] of each last token, after the final norm, and the cache.
    """
    B, T = token.shape
    position = jnp.broadcast_to(jnp.arange(T), (B, T))
    segment = (position < length[:, None]).astype(jnp.int32)
    views = make_views(model.config, position, functools.partial(attention.segment_sight, segment))
    hidden, new = unrolled(model, params, lora, token, views, [None] * model.config.num_layers)
    return at(hidden, length[:, None] - 1)[:, 0], Cache(tuple((k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)) for k, v in new))


def extend(
    model: Decoder, params: Any, lora: Any, cache: Cache, token: jax.Array, position: jax.Array, valid: jax.Array
) -> tuple[jax.Array, Cache]:
    """Feeds T more tokens of each sequence, ragged, padded on the right; in decoding T = 1.

    Args:
        model: the decoder; `remat` is ignored.
        params, lora: from `unstack`; lora may be None.
        cache: donate it, and the update is in place.
        token: i32[B, T].
        position: i32[B, T], each token's place in its sequence; all earlier places were fed before or are in this call.
        valid: bool[B, T]; the rest is padding, which leaves no trace in the cache and returns arbitrary finite states.

    Returns:
        hidden [B, T, D] after the final norm, and the cache. A position at or beyond S is not stored.
    """
    config = model.config
    S = cache.num_slots
    slot = jnp.where(valid, position, S)
    views = make_views(config, position, functools.partial(attention.cache_sight, position, S), slot)
    hidden, extended = unrolled(model, params, lora, token, views, cache.layer)
    return hidden, Cache(tuple(extended))


def unrolled(model: Decoder, params: Any, lora: Any, token: jax.Array, views: Mapping[str, layers.View], cache: Sequence):
    """Applies block after block to unstacked parameters: hidden [B, T, D] after the final norm, and what each block kept."""
    config = model.config
    block = model.block()(parent=None)
    x = Embedding(config, model.dtype, model.mesh, parent=None).apply({"params": params["embed"]}, token)
    kept = []
    for layer, kind in enumerate(config.kinds):
        adapters = None if lora is None else lora["layers"][layer]
        x, part = block.apply(variables(params["layers"][layer], adapters), x, views[kind], cache[layer])
        kept.append(part)
    return layers.RMSNorm.of(config, parent=None).apply({"params": params["norm"]}, x), kept


def logits(model: Decoder, params: Any, hidden: jax.Array) -> jax.Array:
    """Maps hidden states [..., D] to f32[..., V], given stacked or unstacked parameters."""
    output = {name: params[name] for name in ("embed", "head") if name in params}
    return model.apply({"params": output}, hidden, method="logits")
