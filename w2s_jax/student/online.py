"""Teaching on what the student itself writes (stage teach, objectives that are `OnPolicy`).

A round: the student as it is writes a group of answers to each of some questions, a reward judges each answer, what it was
better than the others of its group becomes its advantage, and the packed answers are learnt in `inner_steps` optimizer steps.
A prompt is read once for all answers to it, when they are written and when they are learnt.

A round depends on the student at its start, on the key and on its own number, on nothing else; so a killed run continues at the
last checkpoint, which is at the start of a round, and ends with the same bits. The reference, where the loss needs one, is the
student before the first step. The student's old log-probabilities are those of the model as it is trained, never taken from
sampling; how far the two are apart on a token is logged as `sampler_gap` (mean, nats) and `sampler_gap_max`. In float32 tests
allow 1e-4 (the quickstart's largest was 1.5e-5). In bfloat16, where both round in their own order, it was 0.14 (mean 0.02) on a
model of two layers; tests allow 0.5.

Source: arXiv 2402.03300 (groups instead of a critic), 2503.14476 (groups that say nothing are asked again).
Deviations: 1. under the attention back end `splash`, whose masks know segments only, learning repeats prompts for each answer.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import logging

from w2s_jax import packing, processes, sampling
from w2s_jax.drawing import Drawing
from w2s_jax.models import lora
from w2s_jax.models.attention import SEES_PREFIXES
from w2s_jax.models.compute import Compute
from w2s_jax.models.decoder import Decoder, variables
from w2s_jax.models.likelihood import token_logp
from w2s_jax.packing import Shape
from w2s_jax.student import OnPolicy, trainer
from w2s_jax.student.advantages import zero_variance
from w2s_jax.student.trainer import Made, Taught, Training
from w2s_jax.tasks.asking import Asked, Asking
from w2s_jax.types import LM, Batch, Lesson, Ragged

VERSION = "3"
TRIES = 3
"""How often groups that say nothing are replaced by other questions in a round."""
SHOWN = 8
"""Rounds of which completions are kept for the reader."""


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """How the student is asked, and how its answers are read.

    Attributes:
        asking: its layout and tokenizer.
        extract: text -> final answer.
        agree: (finals, wanted) -> bool[R].
        stop_texts: texts that end an answer.
        num_slots: answers written together.
        row_length: longest prompt and answer together.
        compute: how the model computes while it writes.
    """

    asking: Asking
    extract: Callable[[str], str]
    agree: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    stop_texts: tuple[str, ...]
    num_slots: int
    row_length: int
    compute: Compute


@dataclasses.dataclass(frozen=True)
class Group:
    """A question of a round and what was written to it.

    Attributes:
        row: k, its row in the lesson.
        prompt: tokens.
        completion, logp: S answers' tokens and their log-probabilities when drawn.
        text, final: as written, and as read.
        reward: f64[S].
        cut: bool[S], answers that reached their greatest length without ending.
    """

    row: int
    prompt: np.ndarray
    completion: list[np.ndarray]
    logp: list[np.ndarray]
    text: tuple[str, ...]
    final: tuple[str, ...]
    reward: np.ndarray
    cut: np.ndarray


@functools.partial(jax.jit, static_argnames=("model", "temperature"))
def rescored(params, adapters, batch: Batch, *, model: Decoder, temperature: float) -> jax.Array:
    """f32[B, L]: log-probabilities of the tokens that have a weight, nats, under a student that is not being trained."""
    hidden = model.apply(variables(params, adapters), batch.token, batch.segment, batch.position, prefix=batch.prefix).hidden
    wanted = batch.weight != 0
    return token_logp(model, params, hidden, batch.token, batch.segment, wanted=wanted, temperature=temperature)[0]


def teach(
    lm: LM,
    lesson: Lesson,
    objective: OnPolicy,
    dialogue: Dialogue,
    *,
    training: Training,
    shape: Shape,
    compute: Compute,
    key: jax.Array,
    partial,
    log: Callable[[int, Mapping[str, float]], None],
    label: str = "teach",
) -> Taught:
    """Trains a copy of `lm`; adapters are merged into it at the end.

    Args:
        lesson: what to agree with: K questions, trusted answers, weights.
        objective: reward, advantage and loss.
        dialogue: how answers are got.
        lm, training, shape, compute, key, partial, log, label: see `trainer.teach`; `training.epochs` counts passes over the
            lesson, and a step takes as many micro-batches as a round fills.

    Raises:
        ValueError: the lesson is empty; a prompt is too long; what `refuse`, `sampling.generate` and `trainer.teach` refuse.
    """
    refuse(training)
    rows = np.flatnonzero(np.asarray(lesson.weight) > 0)
    if not len(rows):
        raise ValueError("the lesson is empty: no weak label was selected; change the select section of the config")
    *keys, key_order, key_write = jax.random.split(key, 4)
    asked = [dialogue.asking.ask(question) for question in lesson.questions]
    _refuse_long([asked[k] for k in rows], lm, objective, dialogue)
    num_asked, num_rounds = rounds_of(objective, training, len(rows))
    seed = int(jax.random.randint(key_order, (), 0, np.iinfo(np.int32).max))
    order = grain.MapDataset.range(len(rows)).shuffle(seed=seed).batch(num_asked, drop_remainder=True).repeat(None)
    num_steps = num_rounds * objective.inner_steps
    shown = {round(r) for r in np.linspace(0, num_rounds - 1, min(SHOWN, num_rounds))}
    model = compute.model(lm.config, lora_scale=training.lora_scale)
    shared = model.attention in SEES_PREFIXES
    if processes.is_first() and shared and (warning := cut_groups([asked[k] for k in rows], objective, shape)):
        logging.warning("%s: %s", label, warning)

    def score(learnt, batch: Batch) -> np.ndarray:
        adapters = learnt["model"] if training.lora_rank else None
        params = lm.params if training.lora_rank else learnt["model"]
        batch = compute.place_rows(batch.replace(extra={}))  # so that one program computes both
        return rescored(params, adapters, batch, model=model, temperature=objective.temperature)

    def collect(round_number: int, learnt) -> tuple[list[Batch], dict[str, float], int]:
        """The micro-batches of a round, its metrics, its tokens."""
        jax.block_until_ready(learnt)
        began = time.monotonic()
        write = functools.partial(
            _write, lm, lesson, asked, objective, dialogue, training, learnt, jax.random.fold_in(key_write, round_number)
        )
        chosen = rows[np.asarray(order[round_number])]
        spare = np.random.default_rng((seed, round_number)).permutation(np.setdiff1d(rows, chosen))
        groups, written, means = _groups(write, chosen, spare, objective)
        ended = time.monotonic()
        batches = _batches(groups, lesson.weight, objective, shape, shared=shared)
        passes = {"logp_old": functools.partial(score, learnt)} if objective.inner_steps > 1 else {}
        if objective.beta:
            passes["logp_ref"] = functools.partial(score, {"model": None} if training.lora_rank else {"model": lm.params})
        for name, run in passes.items():
            scored = [processes.fetch(run(batch)) for batch in batches]
            batches = [b.replace(extra={**b.extra, name: logp}) for b, logp in zip(batches, scored, strict=True)]
        if round_number in shown and processes.is_first():
            _keep(partial / "completions" / f"{round_number:06d}.json", round_number, groups[0], lesson)
        num_written = sum(map(len, (c for group in written for c in group.completion)))
        num_tokens = int(sum((batch.segment > 0).sum() for batch in batches))
        metrics = _metrics(groups, means) | {"speed/written_tokens_per_s": num_written / (ended - began)}
        if clock:  # the round before this one
            metrics["speed/learnt_tokens_per_s"] = objective.inner_steps * clock["tokens"] / (began - clock["began"])
        clock.update(began=time.monotonic(), tokens=num_tokens)
        return batches, metrics, num_tokens

    clock: dict[str, float] = {}
    current: dict[int, tuple] = {}  # the round that is being learnt

    def make(step: int, learnt) -> Made:
        round_number, inner = divmod(step, objective.inner_steps)
        if round_number not in current:
            current.clear()
            current[round_number] = collect(round_number, learnt)
        batches, metrics, num_tokens = current[round_number]
        return Made(jax.tree.map(lambda *x: np.stack(x), *batches), num_tokens, metrics if inner == 0 else {})

    longest = max(len(question.prompt) for question in asked) + objective.max_new_tokens
    return trainer.optimise(
        lm,
        objective,
        make,
        num_steps=num_steps,
        boundary=objective.inner_steps,
        num_tokens=num_steps * num_asked * objective.group_size * longest,
        training=training,
        compute=compute,
        keys=keys,
        partial=partial,
        log=log,
        label=label,
    )


def rounds_of(objective: OnPolicy, training: Training, num_questions: int) -> tuple[int, int]:
    """How many questions a round asks, and how many rounds there are, of a lesson's questions with a weight above 0."""
    num_asked = min(objective.questions, num_questions)
    return num_asked, max(1, round(training.epochs * num_questions / num_asked))


def refuse(training: Training) -> None:
    """Refuses what a training on one's own answers cannot do.

    Raises:
        ValueError: `training.accumulation` is not 1.
    """
    if training.accumulation != 1:
        raise ValueError(
            f"training.accumulation={training.accumulation}: allowed is 1 with this objective, whose steps take all answers of "
            "a round, in as many micro-batches as they fill; change student.training.accumulation in the config"
        )


def _refuse_long(asked: Sequence[Asked], lm: LM, objective: OnPolicy, dialogue: Dialogue) -> None:
    """Before the first round, not in the one that asks the longest question."""
    allowed = sampling.longest_prompt(lm.config, dialogue.row_length, objective.max_new_tokens)
    for question in asked:
        if len(question.prompt) > allowed:
            raise ValueError(
                f"question {question.id!r} has {len(question.prompt)} tokens, allowed are {allowed} beside "
                f"max_new_tokens={objective.max_new_tokens} in rows of {dialogue.row_length}: raise student.shape.row_length "
                "and student.training.shape.row_length in the config, or shorten the prompt (fewer shots)"
            )


def cut_groups(asked: Sequence[Asked], objective: OnPolicy, shape: Shape) -> str:
    """A warning where device rows are too short for a group behind its prompt, "" where they are not.

    A cut group's prompt is read again in each row that it takes, and rows stay empty at their ends. It costs time only.

    Args:
        asked: the lesson's questions.
        objective: whose group size and greatest length of an answer count.
        shape: of the training.
    """
    longest = max(len(question.prompt) for question in asked)
    needed = longest - 1 + objective.group_size * (objective.max_new_tokens + 1)
    if needed <= shape.row_length:
        return ""
    return (
        f"student.training.shape.row_length={shape.row_length} cuts groups, which costs time: {objective.group_size} answers "
        f"of up to {objective.max_new_tokens} tokens behind a prompt of up to {longest} are whole in rows of {needed}"
    )


def _write(lm, lesson: Lesson, asked: Sequence[Asked], objective, dialogue: Dialogue, training, learnt, key, chosen) -> tuple:
    """Groups of answers to the lesson's rows `chosen`, and the means of the reward's parts."""
    adapters = lora.Adapters(learnt["model"], training.lora_rank, training.lora_alpha) if training.lora_rank else None
    S = objective.group_size
    rollout = sampling.generate(
        lm if adapters else dataclasses.replace(lm, params=learnt["model"]),
        [asked[k] for k in chosen],
        num_samples=S,
        drawing=Drawing(objective.temperature),
        max_new_tokens=objective.max_new_tokens,
        stop_texts=dialogue.stop_texts,
        num_slots=dialogue.num_slots,
        row_length=dialogue.row_length,
        compute=dialogue.compute,
        key=key,
        adapters=adapters,
        label="write",
    )
    text = tuple(dialogue.asking.tokenizer.decode(tokens) for tokens in rollout.completion)
    final = tuple(map(dialogue.extract, text))
    of = np.repeat(chosen, S)
    cut = np.array(
        [is_cut(*answer, objective.max_new_tokens, dialogue) for answer in zip(rollout.completion, text, strict=True)]
    )
    reward, means = objective.reward(
        texts=text,
        finals=final,
        wanted=tuple(lesson.answers.final[k] for k in of),
        agree=dialogue.agree,
        questions=tuple(lesson.questions[k] for k in of),
        num_tokens=rollout.completion.length,
        cut=cut,
    )
    groups = []
    for i, k in enumerate(chosen):
        mine = slice(i * S, (i + 1) * S)
        completion, logp = ([column[r] for r in range(mine.start, mine.stop)] for column in (rollout.completion, rollout.logp))
        written = (completion, logp, text[mine], final[mine], reward[mine], cut[mine])
        groups.append(Group(int(k), rollout.prompt[mine.start], *written))
    return groups, means


def is_cut(tokens: np.ndarray, text: str, max_new_tokens: int, dialogue: Dialogue) -> bool:
    """Whether an answer reached its greatest length without ending, by a stop token or a stop text."""
    ended = tokens[-1] in dialogue.asking.tokenizer.stop_ids or any(stop in text for stop in dialogue.stop_texts)
    return len(tokens) >= max_new_tokens and not ended


def _groups(
    write, chosen: np.ndarray, spare: np.ndarray, objective: OnPolicy
) -> tuple[list[Group], list[Group], dict[str, float]]:
    """The groups of a round; those that say nothing give way to other questions where the objective wants that.

    Returns:
        the groups to learn from; all that were written; and the means of the reward's parts over the latter.
    """
    groups, means = write(chosen)
    written, told = list(groups), [(len(groups), means)]
    for _ in range(TRIES if objective.zero_variance == "resample" else 0):
        dull = [i for i, group in enumerate(groups) if says_nothing(group)]
        if not dull or not len(spare):
            break
        others, means = write(spare[: len(dull)])
        spare = spare[len(dull) :]
        written, told = written + others, [*told, (len(others), means)]
        for i, other in zip(dull, others, strict=False):
            groups[i] = other
    return groups, written, {name: sum(n * part[name] for n, part in told) / len(written) for name in means}


def says_nothing(group: Group) -> bool:
    """Whether all answers of a group are worth the same."""
    return bool(zero_variance(group.reward[None])[0])


def _batches(groups: Sequence[Group], weight: np.ndarray, objective: OnPolicy, shape: Shape, *, shared: bool) -> list[Batch]:
    """The answers of a round, packed; so many micro-batches that there are few numbers of them, the last ones empty.

    Where prompts are `shared`, one copy of a prompt stands before as many answers to it as a device row takes: its last token
    opens each of them and is what their first token is predicted from, the others are a stem that they all see.
    """
    advantage = objective.advantage(np.stack([group.reward for group in groups]))
    silent = [objective.zero_variance != "keep" and says_nothing(group) for group in groups]
    bundles = [(g, some) for g, group in enumerate(groups) for some in _bundles(group, shape.row_length if shared else 0)]

    def rows(at_stem: Callable[..., Any], at_answer: Callable[..., Any], dtype) -> Ragged:
        """Values at a bundle's stem, and at an answer, from the token that opens it."""
        return Ragged.of(
            [np.concatenate([at_stem(groups[g]), *(at_answer(g, s, n) for n, s in enumerate(some, 1))]) for g, some in bundles],
            dtype,
        )

    def along(value: Callable[[int, int], Any]) -> Ragged:
        """Values at the answers' tokens, 0 in prompts."""

        def at_answer(g: int, s: int, n: int) -> np.ndarray:
            return np.append(0.0, np.broadcast_to(value(g, s), len(groups[g].completion[s])))

        return rows(lambda group: np.zeros(len(group.prompt) - 1), at_answer, np.float32)

    token = rows(
        lambda group: group.prompt[:-1], lambda g, s, n: np.append(groups[g].prompt[-1], groups[g].completion[s]), np.int32
    )
    branch = rows(
        lambda group: np.zeros(len(group.prompt) - 1), lambda g, s, n: np.full(1 + len(groups[g].completion[s]), n), np.int32
    )
    columns = {
        "advantage": along(lambda g, s: advantage[g, s]),
        "share": along(lambda g, s: 1 / len(groups[g].completion[s])),
        "logp_sampler": along(lambda g, s: groups[g].logp[s]),
    }
    trusted = along(lambda g, s: 0.0 if silent[g] else weight[groups[g].row])
    bins = packing.pack(token.length, shape)
    parts = [[bins[z] for z in zs] for zs in packing.batches(len(bins), shape)]
    parts += [[] for _ in range(packing.few(len(parts)) - len(parts))]
    lay_out = functools.partial(packing.lay_out, shape=shape, weight=trusted, along=columns, branch=branch if shared else None)
    return [lay_out(token, part) for part in parts]


def _bundles(group: Group, row_length: int) -> Iterator[list[int]]:
    """The numbers of a group's answers, so many together as fit a row behind one copy of their prompt, at least one."""
    stem = len(group.prompt) - 1
    together: list[int] = []
    used = stem
    for s, completion in enumerate(group.completion):
        if together and used + 1 + len(completion) > row_length:
            yield together
            together, used = [], stem
        together.append(s)
        used += 1 + len(completion)
    yield together


def vacant(objective: OnPolicy, shape: Shape, *, shared: bool) -> Batch:
    """A micro-batch without answers, of all that a step reads; what a plan is made for."""
    names = ["advantage", "share", "logp_sampler"]
    names += ["logp_old"] if objective.inner_steps > 1 else []
    names += ["logp_ref"] if objective.beta else []
    none, branch = Ragged.of([], np.float32), Ragged.of([], np.int32) if shared else None
    return packing.lay_out(Ragged.of([], np.int32), [], shape, weight=none, along=dict.fromkeys(names, none), branch=branch)


def most_batches(objective: OnPolicy, shape: Shape) -> int:
    """The most micro-batches that a round can fill: each answer in a device row of its own."""
    return packing.few(-(-objective.questions * objective.group_size // shape.batch_rows))


def _metrics(groups: Sequence[Group], means: Mapping[str, float]) -> dict[str, float]:
    length = np.array([len(completion) for group in groups for completion in group.completion])
    final = [final for group in groups for final in group.final]
    return {
        "reward": float(np.mean([group.reward for group in groups])),
        **{f"reward/{name}": value for name, value in means.items()},
        "zero_variance_frac": float(np.mean([says_nothing(group) for group in groups])),
        "answered_frac": float(np.mean([f != "" for f in final])),
        "cut_frac": float(np.mean([group.cut for group in groups])),
        "completion_tokens": float(length.mean()),
    }


def _keep(path, round_number: int, group: Group, lesson: Lesson) -> None:
    """One group of a round, for the reader."""
    path.parent.mkdir(parents=True, exist_ok=True)
    question = lesson.questions[group.row]
    answers = [
        {"text": text, "final": final, "reward": float(reward)}
        for text, final, reward in zip(group.text, group.final, group.reward, strict=True)
    ]
    wanted = lesson.answers.final[group.row]
    kept = {"round": round_number, "question": question.prompt, "wanted": wanted, "answers": answers}
    path.write_text(json.dumps(kept, ensure_ascii=False, indent=1))


def completions(partial) -> list[dict]:
    """What `teach` kept for the reader, in order."""
    folder = partial / "completions"
    return [json.loads(file.read_text()) for file in sorted(folder.iterdir())] if folder.exists() else []
