"""What decoding runs on the devices: B slots, each with a row of the key-value cache, and the programs that fill them.

    read     some prompts into a cache of their own
    admit    copies of them into slots
    write    tokens in all slots, until enough have ended
    resize   the cache, when the longest row has outgrown it or needs less

`sampling` decides what goes where.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from w2s_jax.drawing import Drawing, draw, restricted
from w2s_jax.models import decoder, sharding
from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.decoder import Cache, Decoder

VERSION = "1"


@flax.struct.dataclass
class Ready:
    """Prompts that were read and wait for slots.

    Attributes:
        cache: of P rows and T slots.
        hidden: [P, D], what the first token is drawn from.
        length: i32[P].
    """

    cache: Cache
    hidden: jax.Array
    length: jax.Array


@flax.struct.dataclass
class Slots:
    """B rows that are being written.

    Attributes:
        cache: of B rows and S slots.
        hidden: [B, D], what the next token is drawn from.
        length: i32[B], tokens in the cache.
        count: i32[B], tokens written.
        limit: i32[B], the most tokens to write.
        word: u32[B, 2], question and sample number: with the key, all that a row's randomness depends on.
        going: bool[B], neither ended nor empty.
    """

    cache: Cache
    hidden: jax.Array
    length: jax.Array
    count: jax.Array
    limit: jax.Array
    word: jax.Array
    going: jax.Array


@functools.partial(jax.jit, static_argnames="model")
def read(params, lora, token, length, *, model: Decoder) -> Ready:
    """Reads P prompts, i32[P, T]."""
    hidden, cache = decoder.prefill(model, params, lora, token, length)
    return Ready(cache, hidden, length)


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="slots")
def admit(slots: Slots, ready: Ready, slot, source, limit, word, *, mesh) -> Slots:
    """Puts copies of the prompts `source` (i32[B]) into the slots `slot` (i32[B]; B = nowhere)."""

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[slot].set(new.astype(old.dtype), mode="drop")

    admitted = Slots(
        slots.cache.replaced(slot, ready.cache, source),
        put(slots.hidden, ready.hidden[source]),
        put(slots.length, ready.length[source]),
        put(slots.count, jnp.zeros_like(source)),
        put(slots.limit, limit),
        put(slots.word, word),
        put(slots.going, jnp.ones_like(source, bool)),
    )
    return pinned(admitted, mesh)


@functools.partial(jax.jit, static_argnames=("num_slots", "mesh"))
def resize(slots: Slots, *, num_slots: int, mesh) -> Slots:
    """Gives the cache another length."""
    return pinned(slots.replace(cache=slots.cache.resized(num_slots)), mesh)


@functools.partial(jax.jit, static_argnames=("model", "drawing", "num_steps"), donate_argnames="slots")
def write(params, lora, slots: Slots, halted, least, stop, key, *, model: Decoder, drawing: Drawing, num_steps: int):
    """Writes up to `num_steps` tokens in each slot, as long as `least` of them are going.

    Args:
        params, lora: unstacked; lora may be None.
        slots: donated.
        halted: bool[B], rows to end.
        least: i32, at least 1.
        stop: i32[n], tokens that end a row.
        key: of the run.
        model, drawing, num_steps: static.

    Returns:
        The slots; and, each [B, num_steps], the tokens, their log-probability under `drawing` and under the model itself (nats,
        f32), of which each row's first (new count - old count) count.
    """
    keys = jax.vmap(lambda w: jax.random.fold_in(jax.random.fold_in(key, w[0]), w[1]))(slots.word)

    def choose(hidden, count):
        logits = decoder.logits(model, params, hidden)
        own = jax.nn.log_softmax(logits)
        if drawing.greedy:
            token = jnp.argmax(logits, axis=-1)
            return token, _of(own, token), _of(own, token)
        tempered = restricted(logits, drawing)
        token = draw(tempered, jax.vmap(jax.random.fold_in)(keys, count))
        return token, _of(tempered, token), _of(own, token)

    def step(carry):
        t, slots, written = carry
        token, *logp = choose(slots.hidden, slots.count)
        written = [x.at[:, t].set(jnp.where(slots.going, new, 0)) for x, new in zip(written, (token, *logp), strict=True)]
        count = slots.count + slots.going
        going = slots.going & ~jnp.isin(token, stop) & (count < slots.limit)
        hidden, cache = decoder.extend(model, params, lora, slots.cache, token[:, None], slots.length[:, None], going[:, None])
        slots = slots.replace(cache=cache, hidden=hidden[:, 0], length=slots.length + going, count=count, going=going)
        return t + 1, pinned(slots, model.mesh), written

    nothing = jnp.zeros((slots.going.shape[0], num_steps))
    start = 0, slots.replace(going=slots.going & ~halted), [nothing.astype(jnp.int32), nothing, nothing]
    _, slots, written = jax.lax.while_loop(lambda c: (c[0] < num_steps) & (jnp.sum(c[1].going) >= least), step, start)
    return slots, *written


def _of(logp: jax.Array, token: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]


def pinned(slots: Slots, mesh) -> Slots:
    """Rows over the data and fsdp axes, heads of the cache over tensor where it divides them; nothing without a mesh."""
    if mesh is None:
        return slots
    rest = jax.tree.map(functools.partial(sharding.constrain_rows, mesh=mesh), slots.replace(cache=None))
    place = sharding.cache_sharding(slots.cache.num_heads, mesh)
    return rest.replace(cache=jax.lax.with_sharding_constraint(slots.cache, place))


@functools.partial(jax.jit, static_argnames=("config", "num_rows", "num_slots", "dtype", "mesh"))
def empty(*, config: DecoderConfig, num_rows: int, num_slots: int, dtype, mesh) -> Slots:
    """B slots in which nothing is written yet."""
    none = jnp.zeros(num_rows, jnp.int32)
    cache = decoder.init_cache(config, num_rows, num_slots, dtype)
    hidden, word = jnp.zeros((num_rows, config.width), dtype), jnp.zeros((num_rows, 2), jnp.uint32)
    return pinned(Slots(cache, hidden, none, none, none, word, none > 0), mesh)
