"""A model's answers to questions, with what trust functions may ask of them (stage answer).

`by_choice` for tasks with options, `by_writing` for free answers; both return the same three things:

    rollout   the tokens, for the teacher-forced pass that observes hidden states
    answers   R canonical answers
    extra     entries of `Evidence.extra`: answer_logp, completion_logp, and option_logp where there are options

`majority` makes one row of S samples, the answer that most of them give.

Source: self-consistency, arXiv 2203.11171, for `majority`.
Deviations: 1. the paper breaks no ties; the answer with the larger sum of `completion_logp` wins, then the one given first.
    2. answers are counted as canonical strings: 1/2 and 0.5 are two answers.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from w2s_jax import choosing, codec, processes, sampling
from w2s_jax.drawing import Drawing
from w2s_jax.models.compute import Compute
from w2s_jax.packing import Shape
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import LM, Answers, Question, Ragged, Rollout

VERSION = "3"

ROWS_PER_PART = 1024


def by_choice(
    lm: LM, questions: Sequence[Question], asking: Asking, *, normalise: str, shape: Shape, compute: Compute, label: str
) -> dict[str, Any]:
    """One of the options for each question; see `choosing.choose`. `answer_logp` is the chosen option's, among the options."""
    asked = [asking.ask(q) for q in questions]
    found = choosing.choose(lm, asked, normalise=normalise, shape=shape, compute=compute, label=label)
    final = tuple(q.options[o] for q, o in zip(questions, found.option, strict=True))
    answer_logp = found.option_logp[np.arange(len(final)), found.option]
    return {
        "rollout": found.rollout,
        "answers": Answers(tuple(q.id for q in questions), final, final),
        "extra": {"option_logp": found.option_logp, "answer_logp": answer_logp, "completion_logp": answer_logp},
    }


def by_writing(
    lm: LM,
    questions: Sequence[Question],
    asking: Asking,
    extract: Callable[[str], str],
    *,
    written: Callable[[str], tuple[int, int] | None] | None = None,
    num_samples: int,
    drawing: Drawing,
    max_new_tokens: int,
    stop_texts: Sequence[str],
    num_slots: int,
    row_length: int,
    compute: Compute,
    key: jax.Array,
    partial,
    label: str,
) -> dict[str, Any]:
    """S free texts for each question; see `sampling.generate`. `extract` finds the final answer in a text.

    Questions are written to part by part, each of about `ROWS_PER_PART` rows, and each part is kept in the durable folder
    `partial`: a killed pass continues behind its last part, and ends with the same bits.

    `written` finds the final answer's place in a text, where it need not stand as `extract` gives it. `answer_logp` is the mean
    over the tokens that spell it there, `completion_logp` that over all tokens, both under the model itself, however tokens
    were drawn.
    """
    asked = [asking.ask(q) for q in questions]
    write = functools.partial(
        sampling.generate,
        lm,
        num_samples=num_samples,
        drawing=drawing,
        max_new_tokens=max_new_tokens,
        stop_texts=stop_texts,
        num_slots=num_slots,
        row_length=row_length,
        compute=compute,
        key=key,
    )
    num_asked = max(1, ROWS_PER_PART // num_samples)
    starts = range(0, len(asked), num_asked)
    parts = []
    for i, start in enumerate(starts):
        folder = partial / f"written.{i:05d}"
        said = label if len(starts) == 1 else f"{label} {i + 1}/{len(starts)}"
        if not processes.from_first(lambda folder=folder: (folder / "value.json").exists()):
            part = write(asked[start : start + num_asked], label=said)
            if processes.is_first():
                folder.mkdir(parents=True, exist_ok=True)
                codec.write(part, folder, said)
            processes.barrier(f"written: {said}")
        parts.append(codec.read(folder))
    rollout = Rollout.joined(parts)
    text = tuple(lm.tokenizer.decode(tokens) for tokens in rollout.completion)
    final = tuple(extract(t) for t in text)
    spans = [written(t) if written and found else last_place(t, found) for t, found in zip(text, final, strict=True)]
    rows = list(zip(rollout.completion, rollout.model_logp, spans, strict=True))
    extra = {
        "answer_logp": [span_logp(lm.tokenizer, tokens, logp, span) for tokens, logp, span in rows],
        "completion_logp": [logp.mean() if len(logp) else -np.inf for _, logp, _ in rows],
    }
    return {
        "rollout": rollout,
        "answers": Answers(tuple(q.id for q in questions for _ in range(num_samples)), text, final),
        "extra": {name: np.array(values, np.float32) for name, values in extra.items()},
    }


def majority(answered: dict[str, Any], num_samples: int) -> dict[str, Any]:
    """Keeps one row of each question's S: the most probable one (`completion_logp`) that gives its most frequent answer.

    Rows without an answer do not vote; where no row has one, the most probable row is kept, with no answer.

    Args:
        answered: what `by_writing` returns, R = N * S rows.
        num_samples: S.

    Returns:
        The same of N rows, with one more entry of `extra`: `vote_share` f32[N], the share of the S rows that gave the answer, 0
        where there is none.
    """
    final, logp = answered["answers"].final, answered["extra"]["completion_logp"]
    kept, share = [], []
    for start in range(0, len(final), num_samples):
        rows = range(start, start + num_samples)
        votes: dict[str, list[int]] = {}
        for row in rows:
            if final[row]:
                votes.setdefault(final[row], []).append(row)
        chosen = max(votes.values(), key=lambda voters: (len(voters), logp[voters].sum()), default=[])
        kept.append(max(chosen or rows, key=lambda row: logp[row]))
        share.append(len(chosen) / num_samples)
    rollout = answered["rollout"]

    def picked(column: Ragged | None) -> Ragged | None:
        return None if column is None else Ragged.of([column[row] for row in kept], column.flat.dtype)

    return {
        "rollout": Rollout(*(picked(getattr(rollout, field.name)) for field in dataclasses.fields(Rollout))),
        "answers": answered["answers"][kept],
        "extra": {name: value[kept] for name, value in answered["extra"].items()} | {"vote_share": np.array(share, np.float32)},
    }


def last_place(text: str, final: str) -> tuple[int, int] | None:
    """Where a text has an answer last: first character, and behind the last; None where it does not have it as it stands.

    >>> last_place("17, so 17.", "17"), last_place("seventeen", "17"), last_place("17", "")
    ((7, 9), None, None)
    """
    start = text.rfind(final) if final else -1
    return None if start < 0 else (start, start + len(final))


def span_logp(tokenizer, tokens: np.ndarray, logp: np.ndarray, span: tuple[int, int] | None) -> float:
    """Mean log-probability of the tokens that spell a part of their text, first character to behind the last; None = all."""
    if not len(tokens):
        return -np.inf
    if span is None:
        return float(logp.mean())

    def first_beyond(place: int) -> int:
        """The first token whose text ends behind that character; texts are long, so it is looked for by bisection."""
        return bisect.bisect_right(range(len(tokens)), place, key=lambda t: len(tokenizer.decode(tokens[: t + 1])))

    inside = logp[first_beyond(span[0]) : first_beyond(span[1] - 1) + 1]
    return float(inside.mean() if len(inside) else logp.mean())
