"""A language model writes freely, token by token (stage answer, and the rollouts of `student.grpo`).

A fixed number of slots, each with a row of the key-value cache, is kept busy: a row that has ended leaves its slot to the next
one (continuous batching). Each prompt is read once, some of them together, and copied to its S samples' slots. Tokens are then
written by one compiled loop, which ends early when enough slots are free. The cache is as long as the longest row that is being
written needs it, in steps of `room`; prompts go in longest first, so that what is too large fails at the start.

A row's tokens depend on (key, question id, sample number) alone: its random bits are made of these, and neither slot, company,
order, cache length nor devices enter them.

Source: iteration-level scheduling, Yu et al. (Orca, OSDI 2022); drawing, see `drawing`.
"""

import collections
import dataclasses
import functools
import zlib
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from w2s_jax import packing, processes
from w2s_jax.drawing import Drawing, draw, restricted
from w2s_jax.models import decoder, sharding
from w2s_jax.models.compute import Compute
from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.decoder import Cache, Decoder
from w2s_jax.models.lora import Adapters
from w2s_jax.progress import Progress
from w2s_jax.tasks.asking import Asked
from w2s_jax.types import LM, Ragged, Rollout

VERSION = "3"
STEPS = 32
"""Most tokens that a slot writes before the host looks."""
READ_TOGETHER = 8
"""Prompts that are read together."""


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


def room(length: int) -> int:
    """Cache slots for rows up to a length."""
    return packing.few(length, least=16)


def longest_prompt(config: DecoderConfig, row_length: int, max_new_tokens: int) -> int:
    """Tokens of the longest prompt that leaves room for its answer.

    Raises:
        ValueError: no prompt does.
    """
    allowed = min(row_length, config.max_position) - max_new_tokens - 1
    if allowed < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} leaves no room for a prompt in rows of {row_length} tokens and a context of "
            f"{config.max_position}: raise this model's shape.row_length, or lower its max_new_tokens in the config"
        )
    return allowed


# ---- The three programs ----------------------------------------------------------------------------------------------


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


# ---- The host's side -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Row:
    """A sample of a question: what it has written so far.

    Attributes:
        number: r.
        question: n.
        limit: the most tokens to write.
        token, logp, model_logp: one entry for each token written.
        ended: whether nothing will be added.
    """

    number: int
    question: int
    limit: int
    token: list[int] = dataclasses.field(default_factory=list)
    logp: list[float] = dataclasses.field(default_factory=list)
    model_logp: list[float] = dataclasses.field(default_factory=list)
    ended: bool = False

    def add(self, token: np.ndarray, logp: np.ndarray, model_logp: np.ndarray, stop_ids, stop_text) -> None:
        """Takes new tokens, up to the one that ends the row; `stop_text` tells whether tokens spell a stop text."""
        before = len(self.token)
        for mine, new in ((self.token, token), (self.logp, logp), (self.model_logp, model_logp)):
            mine.extend(new.tolist())
        if stop_text is not None and stop_text(self.token):
            end = next(t for t in range(before + 1, len(self.token) + 1) if stop_text(self.token[:t]))
            for mine in (self.token, self.logp, self.model_logp):
                del mine[end:]
            self.ended = True
        self.ended |= len(self.token) >= self.limit or self.token[-1] in stop_ids


def generate(
    lm: LM,
    asked: Sequence[Asked],
    *,
    num_samples: int,
    drawing: Drawing,
    max_new_tokens: int | Sequence[int],
    num_slots: int,
    row_length: int,
    compute: Compute,
    key: jax.Array,
    stop_ids: Sequence[int] | None = None,
    stop_texts: Sequence[str] = (),
    adapters: Adapters | None = None,
    label: str = "answer",
) -> Rollout:
    """Writes S answers to each prompt.

    Args:
        lm: the model that answers.
        asked: N questions as the model reads them.
        num_samples: S.
        drawing: how tokens are drawn.
        max_new_tokens: an answer that reaches it is cut; one number, or one for each question.
        num_slots: B, rows that are written together; on a mesh a multiple of data * fsdp.
        row_length: longest prompt and answer together that later passes can take, in tokens.
        compute: how the model computes.
        key: consumed.
        stop_ids: tokens that end an answer; None = the tokenizer's.
        stop_texts: texts that end an answer, beside the stop tokens.
        adapters: applied beside the parameters, or None.
        label: what the progress bar says.

    Returns:
        R = N * S rows; a completion holds what ended it; `logp` under `drawing` (of greedy answers: under the model itself),
        `model_logp` under the model itself.

    Raises:
        ValueError: a prompt is too long, a number is out of range, the model has no stop token, or its scores are no numbers.
    """
    limits = np.broadcast_to(np.asarray(max_new_tokens, np.int32), (len(asked),))
    _refuse(lm, asked, num_samples, limits, num_slots, row_length, stop_texts, compute)
    stop_ids = _stop_ids(lm, stop_texts) if stop_ids is None else stop_ids
    model = compute.model(lm.config, lora_scale=adapters.scale if adapters else 0.0)
    static = {"model": model, "drawing": drawing, "num_steps": STEPS}
    params = compute.unstack(lm.config, lm.params)
    lora = compute.unstack(lm.config, adapters.tree) if adapters else None
    stop = np.array(sorted(stop_ids) or [-1], np.int32)
    word = [zlib.crc32(question.id.encode()) for question in asked]
    spelled = functools.partial(_spells, lm.tokenizer, tuple(stop_texts)) if stop_texts else None

    rows = [Row(r, r // num_samples, int(limits[r // num_samples])) for r in range(len(asked) * num_samples)]
    order = sorted(range(len(asked)), key=lambda n: -len(asked[n].prompt))
    unread = collections.deque(order)
    ready: Ready | None = None
    waiting: collections.deque[tuple[Row, int]] = collections.deque()  # rows, and their places in `ready`
    in_slot: list[Row | None] = [None] * num_slots
    num_together = read_together(num_slots, num_samples, compute)
    longest = max((len(question.prompt) for question in asked), default=1)
    num_cached = room(longest + min(STEPS, int(limits.max(initial=1))))
    slots = empty(config=lm.config, num_rows=num_slots, num_slots=num_cached, dtype=model.dtype, mesh=model.mesh)

    with Progress(label, int(sum(row.limit for row in rows)), unit="tok") as progress:
        while True:
            while (free := [b for b, row in enumerate(in_slot) if row is None]) and (waiting or unread):
                if not waiting:
                    chosen = [unread.popleft() for _ in range(min(num_together, len(unread)))]
                    placed = compute.place_rows(_padded([asked[n].prompt for n in chosen], num_together))
                    ready = read(params, lora, *placed, model=model)
                    waiting.extend((rows[n * num_samples + s], p) for p, n in enumerate(chosen) for s in range(num_samples))
                admitted = {b: waiting.popleft() for b in free[: len(waiting)]}
                if slots.cache.num_slots < ready.cache.num_slots:
                    slots = resize(slots, num_slots=ready.cache.num_slots, mesh=model.mesh)
                slots = admit(
                    slots, ready, *compute.place_rows(_orders(admitted, num_slots, word, num_samples)), mesh=model.mesh
                )
                in_slot = [admitted[b][0] if b in admitted else row for b, row in enumerate(in_slot)]
            if not any(in_slot):
                break
            num_cached = room(max(_reach(asked, row) for row in in_slot if row))
            if num_cached != slots.cache.num_slots:
                slots = resize(slots, num_slots=num_cached, mesh=model.mesh)
            halted = np.array([row is None for row in in_slot])
            # While rows wait, the loop ends as soon as an eighth of the slots are free.
            least = num_slots - max(1, num_slots // 8) + 1 if waiting or unread else 1
            before = [len(row.token) if row else 0 for row in in_slot]
            slots, *written = write(params, lora, slots, compute.place_rows(halted), np.int32(least), stop, key, **static)
            count, token, logp, model_logp = map(processes.fetch, (slots.count, *written))
            added = 0
            for b, row in enumerate(in_slot):
                if row is None:
                    continue
                new = slice(count[b] - before[b])
                _refuse_nan(asked[row.question], model_logp[b, new])
                row.add(token[b, new], logp[b, new], model_logp[b, new], stop_ids, spelled)
                added += len(row.token) - before[b]
                if row.ended:
                    added += row.limit - len(row.token)  # what it might have written is not left to do
                    in_slot[b] = None
            progress.add(added)

    columns = [Ragged.of([getattr(row, name) for row in rows], dtype) for name, dtype in COLUMNS.items()]
    return Rollout(Ragged.of([asked[row.question].prompt for row in rows], np.int32), *columns)


COLUMNS = {"token": np.int32, "logp": np.float32, "model_logp": np.float32}


def _reach(asked: Sequence[Asked], row: Row) -> int:
    """Cache slots that a row may need until the host looks again; its last token is never put there."""
    return len(asked[row.question].prompt) + min(len(row.token) + STEPS, row.limit)


def read_together(num_slots: int, num_samples: int, compute: Compute) -> int:
    """Prompts to read together: what the slots can take, but no more than a few; on a mesh as many as split over it."""
    split = compute.mesh.shape["data"] * compute.mesh.shape["fsdp"]
    return -(-min(READ_TOGETHER, -(-num_slots // num_samples)) // split) * split


def _padded(prompts: Sequence[Sequence[int]], num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    token, length = np.zeros((num_rows, room(max(map(len, prompts)))), np.int32), np.ones(num_rows, np.int32)
    for p, prompt in enumerate(prompts):
        token[p, : len(prompt)], length[p] = prompt, len(prompt)
    return token, length


def _orders(admitted, num_slots: int, word: Sequence[int], num_samples: int) -> tuple[np.ndarray, ...]:
    """What `admit` takes: slot, source, limit, word."""
    slot, source, limit = (np.full(num_slots, fill, np.int32) for fill in (num_slots, 0, 1))
    words = np.zeros((num_slots, 2), np.uint32)
    for i, (b, (row, place)) in enumerate(admitted.items()):
        slot[i], source[i], limit[i] = b, place, row.limit
        words[i] = word[row.question], row.number % num_samples
    return slot, source, limit, words


def _spells(tokenizer, stop_texts: tuple[str, ...], token: Sequence[int]) -> bool:
    text = tokenizer.decode(token)
    return any(stop in text for stop in stop_texts)


def _stop_ids(lm: LM, stop_texts: Sequence[str]) -> tuple[int, ...]:
    if not lm.tokenizer.stop_ids and not stop_texts:
        raise ValueError(
            "the model names no stop token (eos_token_id in generation_config.json or config.json): answers would never end; "
            "add it there"
        )
    return lm.tokenizer.stop_ids


def _refuse(lm, asked, num_samples, limits, num_slots, row_length, stop_texts, compute: Compute) -> None:
    for name, value in (("num_samples", num_samples), ("max_new_tokens", min(limits, default=1)), ("num_slots", num_slots)):
        if value < 1:
            raise ValueError(f"{name}={value}: allowed is 1 or more; change {name} in the config")
    if "" in stop_texts:
        raise ValueError("stop_texts holds an empty text, which every answer holds; take it out of stop_texts in the config")
    split = compute.mesh.shape["data"] * compute.mesh.shape["fsdp"]
    if num_slots % split:
        raise ValueError(
            f"num_slots={num_slots}: these rows cannot be split over data * fsdp = {split} devices; use a multiple of {split}"
        )
    for question, limit in zip(asked, limits, strict=True):
        if len(question.prompt) > (allowed := longest_prompt(lm.config, row_length, int(limit))):
            raise ValueError(
                f"question {question.id!r} has {len(question.prompt)} tokens, allowed are {allowed}: raise shape.row_length of "
                "this model in the config, or shorten the prompt (fewer shots)"
            )


def _refuse_nan(question: Asked, logp: np.ndarray) -> None:
    if not np.isfinite(logp).all():
        raise ValueError(
            f"the model gives question {question.id!r} scores that are no numbers: its weights are damaged, or it was trained "
            "with too large a rate (lower lr in the config)"
        )
