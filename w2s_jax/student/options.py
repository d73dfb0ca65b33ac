"""What objectives over options share: a lesson as batches in which each question stands with all its options.

    s_ko = sum of log p(t) over the tokens t of option o, normalised as answers are (`choosing.NORMALISE`)
    p_ko = exp(s_ko) / sum of exp(s_kj) over the options j of question k
    loss = - sum_k w_k sum_o y_ko log p_ko  /  sum_k w_k

so that what is learnt is what will be asked: the student answers with its largest s_ko. No stop token is learnt. The soft
labels y are `Lesson.target`, or 1 at the taught answer where a lesson has none (gold labels). What an objective puts in the
place of y or w is its own affair: see `soft`, `auxiliary_confidence`, `adaptive`, `confidence_weighted`, `raven`.

A prompt stands once in a batch, as the stem of its options, and its last token opens each of them. Under the attention back
end `splash`, whose masks know segments only, prompts are repeated for each option instead. Batches have `columns_of` columns
for options, so that lessons share a program; their order is settled by the key, and batch = f(index) as in `sft`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from w2s_jax import packing
from w2s_jax.choosing import NORMALISE
from w2s_jax.packing import Shape
from w2s_jax.student import Ask, Plan
from w2s_jax.tasks.asking import Asked
from w2s_jax.types import Batch, Lesson, Ragged

VERSION = "1"
TOLERANCE = 1e-3
"""How far the sum of a question's soft labels may be from 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The common part of an objective over options; hashable, equal where `make` was called with equal words.

    Attributes:
        normalise: what options of several tokens are ranked by, a name in `choosing.NORMALISE`; as the student is asked.
        needs, temperature, maxima: see `student.Loss`.
    """

    normalise: str
    needs: frozenset[str] = frozenset({"option_logp"})
    temperature: float = 1.0
    maxima: frozenset[str] = frozenset()

    def __post_init__(self):
        self.refuse(self.normalise not in NORMALISE, "normalise", self.normalise, f"one of {', '.join(NORMALISE)}")

    def refuse(self, wrong: bool, name: str, value: Any, allowed: str) -> None:
        """Raises ValueError about a keyword where it is wrong."""
        if wrong:
            word = type(self).__module__.rpartition(".")[-1]
            raise ValueError(f"{name}={value!r}: allowed is {allowed}; change student.{word}.{name} in the config")

    def init(self, key: jax.Array) -> dict:
        return {}

    def columns(self, lesson: Lesson) -> dict[str, np.ndarray]:
        """What a loss reads of each question, f32[K, ...]: `weight` [K], `target` [K, O], and more."""
        return {"weight": np.asarray(lesson.weight, np.float32), "target": labels(lesson)}

    def plan(self, lesson: Lesson, ask: Ask, shape: Shape, key: jax.Array, *, shared: bool) -> Plan:
        """See `plan` of the module."""
        refuse_choiceless(lesson)
        return plan(lesson, self.columns(lesson), ask, shape, key, normalise=self.normalise, shared=shared)


# ---- The lesson, on the host -----------------------------------------------------------------------------------------


def refuse_choiceless(lesson: Lesson) -> None:
    """Makes sure that there are questions, and something to choose in each.

    Raises:
        ValueError: the lesson is empty, or a question has fewer than two options.
    """
    if not lesson.questions:
        raise ValueError("the lesson is empty: no weak label was selected; change the select section of the config")
    for question in lesson.questions:
        if len(question.options) < 2:
            raise ValueError(
                f"question {question.id!r} has {len(question.options)} options, an objective over options needs two or more: "
                "set student.objective to sft or grpo in the config, which learn from free answers"
            )


def columns_of(lesson: Lesson) -> int:
    """O, options that a batch has room for, from the most that a question has; few numbers, as when questions are asked."""
    return max(4, 1 << (max(len(question.options) for question in lesson.questions) - 1).bit_length())


def labels(lesson: Lesson) -> np.ndarray:
    """f32[K, O]: the soft labels of each question, 0 beyond its options; 1 at the taught answer where the lesson has none.

    Raises:
        ValueError: they are no probabilities over each question's options, or a taught answer is none of them.
    """
    return hard(lesson) if lesson.target is None else checked("target", lesson.target, lesson)


def hard(lesson: Lesson) -> np.ndarray:
    """f32[K, O]: 1 at the taught answer, the first of equal options.

    Raises:
        ValueError: it is none of the question's options.
    """
    found = np.zeros((len(lesson.questions), columns_of(lesson)), np.float32)
    for k, (question, final) in enumerate(zip(lesson.questions, lesson.answers.final, strict=True)):
        if final not in question.options:
            raise ValueError(
                f"answer {final!r} to question {question.id!r} is none of its options: {list(question.options)}; mend the row"
            )
        found[k, question.options.index(final)] = 1.0
    return found


def checked(name: str, given: np.ndarray, lesson: Lesson) -> np.ndarray:
    """Soft labels f32[K, ..., O] with as many columns as the lesson's batches.

    Args:
        name: what errors call them.
        given: f32[K, ..., any number of columns].
        lesson: whose questions they are for.

    Raises:
        ValueError: they are no probabilities over each question's options.
    """
    given, mend = np.asarray(given, np.float32), "mend what makes them (the row's relabel), or set student.soft_labels to False"
    num_options = np.array([len(question.options) for question in lesson.questions])
    if len(given) != len(num_options) or given.shape[-1] < num_options.max():
        raise ValueError(
            f"{name} has the shape {given.shape}: allowed are {len(num_options)} rows, one to a question, and "
            f"{num_options.max()} columns or more, one to an option; {mend}"
        )
    beyond = np.arange(given.shape[-1]) >= num_options.reshape(-1, *[1] * (given.ndim - 1))
    wrong = ~(abs(given.sum(axis=-1) - 1) <= TOLERANCE) | ~(given >= 0).all(axis=-1) | (beyond & (given != 0)).any(axis=-1)
    if wrong.any():
        k = int(np.argwhere(wrong)[0][0])
        raise ValueError(
            f"{name} of question {lesson.questions[k].id!r} is {given[k].tolist()}: allowed are numbers of 0 or more over its "
            f"{num_options[k]} options that add up to 1, and 0 beyond; {mend}"
        )
    found = np.zeros((*given.shape[:-1], columns_of(lesson)), np.float32)
    width = min(given.shape[-1], found.shape[-1])
    found[..., :width] = given[..., :width]
    return found


def scales(asked: Sequence[Asked], normalise: str, num_columns: int) -> np.ndarray:
    """f32[K, O]: what each option's log-probability is multiplied by before options are compared, 0 beyond the options.

    Where all options are single tokens it is 1, whatever `normalise` says, as when questions are asked.
    """
    rank = NORMALISE["none" if all(len(c) == 1 for a in asked for c in a.candidates) else normalise]
    found = np.zeros((len(asked), num_columns), np.float32)
    for k, one in enumerate(asked):
        sizes = zip(one.candidates, one.num_bytes, strict=True)
        found[k, : len(one.candidates)] = [rank(1.0, len(candidate), num_bytes) for candidate, num_bytes in sizes]
    return found


def plan(
    lesson: Lesson,
    columns: Mapping[str, np.ndarray],
    ask: Ask,
    shape: Shape,
    key: jax.Array,
    *,
    normalise: str,
    shared: bool,
) -> Plan:
    """Makes the lesson into batches.

    Args:
        lesson: K questions with two options or more.
        columns: what a loss reads of each question, f32[K, ...]; `weight` [K], and `target` [K, O].
        ask: the student's layout and tokenizer.
        shape: device shape; `max_segments` counts questions.
        key: of the batches' order.
        normalise: a name in `choosing.NORMALISE`.
        shared: whether options share one copy of their prompt.

    Returns:
        Batches with `columns` and `scale` (see `models.likelihood.option_logp`) in `extra`, each [B, G, ...].

    Raises:
        ValueError: a question with its options is longer than the device row.
    """
    asked = [ask(question) for question in lesson.questions]
    # The prompt's last token opens each option: it is what the option's first token is predicted from.
    parts = [(a.prompt[:-1], a.prompt[-1:]) if shared else ([], a.prompt) for a in asked]
    token = Ragged.of(
        [[*stem, *(t for c in a.candidates for t in (*opening, *c))] for (stem, opening), a in zip(parts, asked, strict=True)],
        np.int32,
    )
    refuse_long(asked, token.length, shape.row_length, shared)
    branch = Ragged.of(
        [
            np.repeat(np.arange(len(a.candidates) + 1), [len(stem), *(len(opening) + len(c) for c in a.candidates)])
            for (stem, opening), a in zip(parts, asked, strict=True)
        ],
        np.int32,
    )
    weight = Ragged.of(
        [
            np.concatenate([np.zeros(len(stem)), *(np.repeat([0.0, w], [len(opening), len(c)]) for c in a.candidates)])
            for (stem, opening), a, w in zip(parts, asked, columns["weight"], strict=True)
        ],
        np.float32,
    )
    extra = {**columns, "scale": scales(asked, normalise, columns["target"].shape[-1])}
    bins = packing.pack(token.length, shape)
    seed = int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))
    order = grain.MapDataset.range(len(bins)).shuffle(seed=seed).repeat(None)

    def batch(index: int) -> Batch:
        chosen = [bins[int(order[index * shape.batch_rows + b])] for b in range(shape.batch_rows)]
        found = packing.lay_out(token, chosen, shape, weight=weight, extra=extra, branch=branch)
        return found if shared else found.replace(prefix=None)

    return Plan(len(bins) / shape.batch_rows, batch, int(token.length.sum()))


def refuse_long(asked: Sequence[Asked], length: np.ndarray, allowed: int, shared: bool) -> None:
    """Makes sure that every question fits a device row with all its options.

    Raises:
        ValueError: one does not.
    """
    if length.max() > allowed:
        k = int(length.argmax())
        once = "once" if shared else "for each of them, as student.attention='splash' shares no prompts (xla does)"
        raise ValueError(
            f"question {asked[k].id!r} has {length[k]} tokens with its {len(asked[k].candidates)} options and its prompt "
            f"{once}, allowed are {allowed}: raise student.training.shape.row_length in the config, or shorten the prompt "
            "(fewer shots)"
        )


# ---- The loss, on the device -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Questions:
    """The questions of a batch as a loss sees them: K places, some of them empty.

    Attributes:
        logp: f32[K, O], nats, of each option among its question's; 0 where there is none.
        target: f32[K, O], the labels.
        weight: f32[K], 0 at empty places.
        real: bool[K, O], where there is an option.
    """

    logp: jax.Array
    target: jax.Array
    weight: jax.Array
    real: jax.Array

    @property
    def p(self) -> jax.Array:
        """f32[K, O]: what the student believes, without gradient."""
        return jnp.where(self.real, jnp.exp(jax.lax.stop_gradient(self.logp)), 0.0)

    @property
    def hardened(self) -> jax.Array:
        """f32[K, O]: 1 at the student's most probable option, without gradient."""
        return one_hot(self.p)


def read(out: Mapping[str, jax.Array], batch: Batch) -> Questions:
    """The questions of a batch."""
    scale = column(batch, "scale")
    return Questions(out["option_logp"], column(batch, "target"), column(batch, "weight"), scale > 0)


def column(batch: Batch, name: str) -> jax.Array:
    """[K, ...]: what the batch says of its questions, [B, G, ...]."""
    return batch.extra[name].reshape(-1, *batch.extra[name].shape[2:])


def one_hot(x: jax.Array) -> jax.Array:
    """1 at the largest of each row, the first of equals: f32[K, O]."""
    return jax.nn.one_hot(x.argmax(axis=-1), x.shape[-1])


def cross_entropy(
    asked: Questions, target: jax.Array, weight: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """What `student.Loss.loss` returns, for labels in place of the lesson's.

    Args:
        asked: the questions.
        target: f32[K, O], labels to learn; 0 beyond the options.
        weight: f32[K], 0 at empty places; None = the lesson's.

    Returns:
        sum, denominator, and the metrics' sums: `agreement`, whether student and lesson (not `target`) have one most probable
        option.
    """
    weight = asked.weight if weight is None else weight
    agree = (asked.hardened * one_hot(asked.target)).sum(axis=-1)
    cost = -(target * asked.logp).sum(axis=-1)
    return (weight * cost).sum(), weight.sum(), {"agreement": (weight * agree).sum()}
