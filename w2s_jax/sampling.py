"""A language model writes freely, token by token (stage answer, and the rollouts of `student.online`).

A fixed number of slots (`slots`) is kept busy: a row that has ended leaves its slot to the next one (continuous batching). Each
prompt is read once, some of them together, and copied to its S samples' slots. Tokens are then written by one compiled loop,
which ends early when enough slots are free. The cache is as long as the longest row that is being written needs it, in steps of
`room`; prompts go in longest first, so that what is too large fails at the start.

A row's tokens depend on (key, question id, sample number) alone: its random bits are made of these, and neither slot, company,
order, cache length nor devices enter them.

Source: iteration-level scheduling, Yu et al. (Orca, OSDI 2022); drawing, see `drawing`.
"""

import collections
import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from w2s_jax import packing, processes, slots
from w2s_jax.drawing import Drawing
from w2s_jax.models.compute import Compute
from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.lora import Adapters
from w2s_jax.progress import Progress
from w2s_jax.tasks.asking import Asked
from w2s_jax.types import LM, Ragged, Rollout

VERSION = "3"
STEPS = 32
"""Most tokens that a slot writes before the host looks."""
READ_TOGETHER = 8
"""Prompts that are read together."""


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
    params = compute.unstack(lm.config, lm.params)
    lora = compute.unstack(lm.config, adapters.tree) if adapters else None
    static = {"model": model, "drawing": drawing, "num_steps": STEPS}
    stop = np.array(sorted(stop_ids) or [-1], np.int32)
    spelled = functools.partial(_spells, lm.tokenizer, tuple(stop_texts)) if stop_texts else None

    rows = [Row(question, s, int(limit)) for question, limit in zip(asked, limits, strict=True) for s in range(num_samples)]
    waiting = Waiting(rows, num_samples, read_together(num_slots, num_samples, compute))
    in_slot: list[Row | None] = [None] * num_slots
    sizes = {"num_rows": num_slots, "num_slots": room(max(map(_reach, rows), default=1))}
    state = slots.empty(config=lm.config, **sizes, dtype=model.dtype, mesh=model.mesh)

    with Progress(label, sum(row.limit for row in rows), unit="tok") as progress:
        while waiting or any(in_slot):
            for prompts, places in waiting.fill(in_slot):
                if prompts:
                    ready = slots.read(params, lora, *compute.place_rows(prompts), model=model)
                state = resized(state, max(state.cache.num_slots, ready.cache.num_slots), model.mesh)
                state = slots.admit(state, ready, *compute.place_rows(places), mesh=model.mesh)
            state = resized(state, room(max(_reach(row) for row in in_slot if row)), model.mesh)
            # While rows wait, the loop ends as soon as an eighth of the slots are free.
            least = num_slots - max(1, num_slots // 8) + 1 if waiting else 1
            halted = compute.place_rows(np.array([row is None for row in in_slot]))
            state, *written = slots.write(params, lora, state, halted, np.int32(least), stop, key, **static)
            written = [processes.fetch(x) for x in (state.count, *written)]
            for b, row in enumerate(in_slot):
                if row is not None:
                    progress.add(row.add(*(x[b] for x in written), stop_ids, spelled))
                    in_slot[b] = None if row.ended else row
    columns = [Ragged.of([getattr(row, name) for row in rows], dtype) for name, dtype in COLUMNS.items()]
    return Rollout(Ragged.of([row.question.prompt for row in rows], np.int32), *columns)


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


# ---- The host's side -------------------------------------------------------------------------------------------------

COLUMNS = {"token": np.int32, "logp": np.float32, "model_logp": np.float32}


@dataclasses.dataclass(eq=False)
class Row:
    """A sample of a question: what it has written so far.

    Attributes:
        question: as the model reads it.
        sample: s, its number among the question's.
        limit: the most tokens to write.
        token, logp, model_logp: one entry for each token written.
        ended: whether nothing will be added.
    """

    question: Asked
    sample: int
    limit: int
    token: list[int] = dataclasses.field(default_factory=list)
    logp: list[float] = dataclasses.field(default_factory=list)
    model_logp: list[float] = dataclasses.field(default_factory=list)
    ended: bool = False

    @property
    def word(self) -> tuple[int, int]:
        """What its randomness depends on, beside the key."""
        return zlib.crc32(self.question.id.encode()), self.sample

    def add(self, count, token, logp, model_logp, stop_ids: Sequence[int], spelled: Callable | None) -> int:
        """Takes what was written, up to the token that ends the row.

        Args:
            count: tokens that the slot has written in all.
            token, logp, model_logp: of the latest ones, at the front.
            stop_ids: tokens that end it.
            spelled: whether tokens spell a text that ends it, or None.

        Returns:
            how many of the tokens that it might have written are no longer to be written.
        """
        before = len(self.token)
        new = slice(int(count) - before)
        if not np.isfinite(model_logp[new]).all():
            raise ValueError(
                f"the model gives question {self.question.id!r} scores that are no numbers: its weights are damaged, or it was "
                "trained with too large a rate (lower lr in the config)"
            )
        columns = self.token, self.logp, self.model_logp
        for mine, latest in zip(columns, (token, logp, model_logp), strict=True):
            mine.extend(latest[new].tolist())
        if spelled is not None and spelled(self.token):
            end = next(t for t in range(before + 1, len(self.token) + 1) if spelled(self.token[:t]))
            for mine in columns:
                del mine[end:]
            self.ended = True
        self.ended |= len(self.token) >= self.limit or self.token[-1] in stop_ids
        return (self.limit if self.ended else len(self.token)) - before


class Waiting:
    """The rows that have no slot yet, in the order in which they get one: longest prompts first, a question's samples together.

    Args:
        rows: S to a question.
        num_samples: S.
        num_together: prompts that are read together.
    """

    def __init__(self, rows: Sequence[Row], num_samples: int, num_together: int):
        groups = [rows[start : start + num_samples] for start in range(0, len(rows), num_samples)]
        self.unread = collections.deque(sorted(groups, key=lambda group: -len(group[0].question.prompt)))
        self.read: collections.deque[tuple[Row, int]] = collections.deque()  # rows, and the places of their prompts
        self.num_together = num_together

    def __bool__(self) -> bool:
        return bool(self.unread or self.read)

    def fill(self, in_slot: list[Row | None]) -> Iterator[tuple[tuple, tuple]]:
        """Gives free slots to rows, and says how.

        Args:
            in_slot: B rows or None, changed in place.

        Yields:
            prompts: token i32[P, T] and length i32[P] to be read now, or () if those read last hold all that is admitted.
            places: what `slots.admit` takes.
        """
        while self and None in in_slot:
            prompts: tuple = ()
            if not self.read:
                groups = [self.unread.popleft() for _ in range(min(self.num_together, len(self.unread)))]
                prompts = _padded([group[0].question.prompt for group in groups], self.num_together)
                self.read.extend((row, place) for place, group in enumerate(groups) for row in group)
            free = [b for b, row in enumerate(in_slot) if row is None]
            admitted = [(b, *self.read.popleft()) for b in free[: len(self.read)]]
            for b, row, _ in admitted:
                in_slot[b] = row
            yield prompts, _places(admitted, len(in_slot))


def resized(state: slots.Slots, num_slots: int, mesh) -> slots.Slots:
    """The same with a cache of that length."""
    return state if state.cache.num_slots == num_slots else slots.resize(state, num_slots=num_slots, mesh=mesh)


def _reach(row: Row) -> int:
    """Cache slots that a row may need until the host looks again; its last token is never put there."""
    return len(row.question.prompt) + min(len(row.token) + STEPS, row.limit)


def read_together(num_slots: int, num_samples: int, compute: Compute) -> int:
    """Prompts to read together: what the slots can take, but no more than a few; on a mesh as many as split over it."""
    split = compute.mesh.shape["data"] * compute.mesh.shape["fsdp"]
    return -(-min(READ_TOGETHER, -(-num_slots // num_samples)) // split) * split


def _padded(prompts: Sequence[Sequence[int]], num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    token, length = np.zeros((num_rows, room(max(map(len, prompts)))), np.int32), np.ones(num_rows, np.int32)
    for p, prompt in enumerate(prompts):
        token[p, : len(prompt)], length[p] = prompt, len(prompt)
    return token, length


def _places(admitted: Sequence[tuple[int, Row, int]], num_slots: int) -> tuple[np.ndarray, ...]:
    """What `slots.admit` takes: slot, source, limit, word."""
    slot, source, limit = (np.full(num_slots, fill, np.int32) for fill in (num_slots, 0, 1))
    word = np.zeros((num_slots, 2), np.uint32)
    for i, (b, row, place) in enumerate(admitted):
        slot[i], source[i], limit[i], word[i] = b, place, row.limit, row.word
    return slot, source, limit, word


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
