"""Every value that flows from one stage of the path to the next, and the axis alphabet they share.

Axis letters, used by fields, annotations, docstrings and local names alike:

    N  questions                      B  rows of a device batch      V  vocabulary
    S  samples per question           L  tokens in a device row      M  layers
    R  rows = N * S (row r belongs    G  gathered positions in a     F  features
       to question r // S)               device row                  O  options of a question
    K  rows kept by a selection       D  model width                 P  probe points (layers observed)
    H/J  query / key-value heads      C  width of one head           T  new tokens fed to a KV cache

Text is ragged on the host (`Ragged`) and packed on the device (`Batch`). Nothing in this file imports from the project.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import numpy as np

VERSION = "4"


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: row r is `flat[offset[r]:offset[r + 1]]`.

    Attributes:
        flat: the rows' values, end to end; any dtype.
        offset: i64[R + 1], from 0 to `len(flat)`, never decreasing.
    """

    flat: np.ndarray
    offset: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Sequence], dtype) -> "Ragged":
        """Joins rows into one flat array.

        >>> Ragged.of([[1, 2], [], [3]], np.int32)[0]
        array([1, 2], dtype=int32)
        """
        rows = [np.asarray(row, dtype) for row in rows]
        offset = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return cls(np.concatenate([np.zeros(0, dtype), *rows]), offset)

    @classmethod
    def joined(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """The rows of several, one after another.

        >>> Ragged.joined([Ragged.of([[1], [2, 3]], np.int32), Ragged.of([[4]], np.int32)])[2]
        array([4], dtype=int32)
        """
        length = np.concatenate([part.length for part in parts])
        return cls(np.concatenate([part.flat for part in parts]), np.cumsum([0, *length], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offset) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.flat[self.offset[row] : self.offset[row + 1]]

    @property
    def length(self) -> np.ndarray:
        """i64[R], tokens in each row."""
        return np.diff(self.offset)


@dataclasses.dataclass(frozen=True)
class Question:
    """One question without its answer.

    Attributes:
        id: unique among all questions of a run, stable between runs.
        task: the dataset it comes from, such as "arc_easy".
        prompt: the question's own text; layout, letters, demonstrations and chat template are added by `tasks.prompts`.
        options: the canonical answers to choose from, in order; empty in free generation.
        meta: what is known about its difficulty and kind (level, rating, themes, subject).
        group: questions that share a passage or a game, for clustered intervals; "" = its own group.
    """

    id: str
    task: str
    prompt: str
    options: tuple[str, ...] = ()
    meta: Mapping[str, str] = dataclasses.field(default_factory=dict)
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was answered: R rows, S consecutive rows to a question.

    Attributes:
        question_id: R ids.
        text: R texts as written.
        final: R canonical final answers, "" where none was found.
    """

    question_id: tuple[str, ...]
    text: tuple[str, ...]
    final: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.question_id)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> "Answers":
        return Answers(*(tuple(column[r] for r in rows) for column in (self.question_id, self.text, self.final)))


@dataclasses.dataclass(frozen=True, repr=False)
class Gold:
    """The true answers of a split. Made by a task, opened in `pipeline.py` only, which hands the target's to what looks
    back (`afterwards`) when all students are stored; its repr hides the values.

    Attributes:
        question_id: N ids.
        accepted: for each of them the accepted canonical answers, the reference first.
        text: N texts that show how the reference answers are found, or None where they stand alone.
        agree: (found, wanted) -> bool[R]: which canonical answers are the same; None = equal strings are. "" agrees with
            nothing.
    """

    question_id: tuple[str, ...]
    accepted: tuple[tuple[str, ...], ...]
    text: tuple[str, ...] | None = dataclasses.field(default=None, compare=False)
    agree: Callable[[Sequence[str], Sequence[str]], np.ndarray] | None = dataclasses.field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.question_id)

    def __repr__(self) -> str:
        return f"Gold({len(self)} answers, hidden)"

    def grade(self, answers: Answers) -> np.ndarray:
        """Says which rows are right: bool[R]; no answer ("") is wrong.

        Raises:
            ValueError: a row's question has no gold answer in this split.
        """
        accepted = dict(zip(self.question_id, self.accepted, strict=True))
        if missing := [i for i in answers.question_id if i not in accepted]:
            raise ValueError(
                f"no gold answer for {len(missing)} questions, the first is {missing[0]!r}; grade a split with its own gold"
            )
        agree = self.agree or _equal
        asked = [
            (row, final, wanted)
            for row, (i, final) in enumerate(zip(answers.question_id, answers.final, strict=True))
            for wanted in accepted[i]
        ]
        right = np.zeros(len(answers), bool)
        if asked:
            row, found, wanted = zip(*asked)
            np.logical_or.at(right, list(row), agree(found, wanted))
        return right

    def answers(self) -> Answers:
        """The reference answers as rows, one to a question."""
        final = tuple(accepted[0] for accepted in self.accepted)
        return Answers(self.question_id, self.text or final, final)


def _equal(found: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    return np.array([a == b != "" for a, b in zip(found, wanted, strict=True)], bool)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """The tokens of R answers under one model's tokenizer.

    Attributes:
        prompt: i32 tokens of each row's prompt.
        completion: i32 tokens of each row's answer.
        logp: f32, one for each completion token, nats, under the distribution it was drawn or chosen from.
        model_logp: the same under the model itself, untempered and with all tokens allowed; None where options were chosen.
    """

    prompt: Ragged
    completion: Ragged
    logp: Ragged
    model_logp: Ragged | None = None

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> "Rollout":
        def kept(column: Ragged | None) -> Ragged | None:
            return None if column is None else Ragged.of([column[r] for r in rows], column.flat.dtype)

        return Rollout(**{field.name: kept(getattr(self, field.name)) for field in dataclasses.fields(self)})

    @classmethod
    def joined(cls, parts: Sequence["Rollout"]) -> "Rollout":
        """The rows of several, one after another; they have the same fields."""
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in dataclasses.fields(cls)}
        return cls(**{name: None if column[0] is None else Ragged.joined(column) for name, column in columns.items()})


@dataclasses.dataclass(frozen=True)
class Evidence:
    """All that a trust function may look at; it has no gold field.

    Attributes:
        answers: R weak answers.
        x: f32[R, P, D], the teacher's hidden state at the final answer token for each of P probe points (layers).
        extra: what particular trust functions ask for by name in `needs`, each with R rows, such as
            `option_logp` f32[R, O] (nats, normalised over the options, -inf where a question has fewer) or
            `answer_logp` f32[R] (mean nats per token of the answer).
    """

    answers: Answers
    x: np.ndarray
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __getitem__(self, rows: np.ndarray) -> "Evidence":
        return Evidence(self.answers[rows], self.x[rows], {name: value[rows] for name, value in self.extra.items()})


@dataclasses.dataclass(frozen=True)
class Selection:
    """What the student will be taught: K of R rows.

    Attributes:
        row: i32[K], ascending, at most one to a question.
        weight: f32[K] in [0, 1].
        score: f32[R] in [0, 1], the trust score that every row got.
        answers: K answers to teach (weak ones, unless a relabeller or a gold row replaced them).
        origin: K words of {"weak", "self", "smoothed", "gold"}.
    """

    row: np.ndarray
    weight: np.ndarray
    score: np.ndarray
    answers: Answers
    origin: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Relabelled:
    """Labels of the target in place of the teacher's own, row for row; selection goes by them.

    Attributes:
        answers: R answers; `final` is "" where a row is to be dropped.
        origin: R words of {"weak", "self", "smoothed"}: whose labels they are.
        score: f32[R] in [0, 1], how sure it is that they are right.
        target: f32[R, O] soft labels over each question's options, or None.
        experts: f32[R, T, O], the soft labels of each of T teachers, or None.
        found: what came up on the way and is looked at afterwards, by name: arrays with R rows, and numbers.
    """

    answers: Answers
    origin: tuple[str, ...]
    score: np.ndarray
    target: np.ndarray | None = None
    experts: np.ndarray | None = None
    found: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Certificate:
    """How pure the selection of a trust function is at least, from labelled questions that nothing was fitted on.

    Attributes:
        purity, delta, bound, pool: what was to be certified, and how: see `certificate.Terms`.
        threshold: the smallest one whose bound reaches `purity`; None = nothing is certified.
        curve: f64[thresholds, 6]: threshold, calibration questions that reach it, share of them right (NaN where there are
            none), lower bound of the purity, target questions that reach it, share of all answered ones of the target.
        caveats: why it may not hold for this target, such as "not valid out of distribution: ...".
    """

    purity: float
    delta: float
    bound: str
    pool: str
    threshold: float | None
    curve: np.ndarray
    caveats: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Lesson:
    """All that a student objective may look at; re-tokenised by the student's tokenizer.

    Attributes:
        questions: K questions.
        answers: K answers to learn.
        weight: f32[K] in [0, 1].
        target: f32[K, O] soft labels over each question's options, or None.
        experts: f32[K, T, O], the soft labels of each of T teachers, or None.
    """

    questions: tuple[Question, ...]
    answers: Answers
    weight: np.ndarray
    target: np.ndarray | None = None
    experts: np.ndarray | None = None


@flax.struct.dataclass
class Batch:
    """The one device layout, for extraction, SFT, GRPO and scoring: B rows of L packed tokens.

    Attributes:
        token: i32[B, L].
        segment: i32[B, L], 0 = padding, else 1, 2, ... within its row; a token attends to its own segment only.
        position: i32[B, L], place within its segment, from 0; behind a prefix, it goes on.
        weight: f32[B, L] or None: the loss weight of *predicting this token* from those before it.
        probe: i32[B, G] or None: the positions at which hidden states are gathered (0 where unused).
        prefix: i32[B, L] or None: the segment whose tokens are seen beside one's own (0 = none): a prompt that answers share.
        extra: further per-token or per-segment arrays that an objective needs, by name.
    """

    token: jax.Array
    segment: jax.Array
    position: jax.Array
    weight: jax.Array | None = None
    probe: jax.Array | None = None
    prefix: jax.Array | None = None
    extra: Mapping[str, jax.Array] = flax.struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LM:
    """A language model: a teacher and a student are the same type; on disk it is a Hugging Face directory.

    Attributes:
        config: `models.config.DecoderConfig`.
        params: nested dict of arrays, the `params` collection of `models.decoder.Decoder`.
        tokenizer: `models.tokenizer.Tokenizer`.
        key: content hash; two LMs with equal keys are the same model.
    """

    config: Any
    params: Any
    tokenizer: Any
    key: str = ""


@dataclasses.dataclass(frozen=True)
class Score:
    """One model on one test set; the per-question vector is kept for paired statistics.

    Attributes:
        question_id: N ids.
        group: N cluster names ("" = its own).
        test: N names of the dataset that each question comes from.
        correct: bool[N].
    """

    question_id: tuple[str, ...]
    group: tuple[str, ...]
    test: tuple[str, ...]
    correct: np.ndarray


@dataclasses.dataclass(frozen=True)
class Audit:
    """How good the trust scores and the selection really were; made after the student is stored.

    Attributes:
        auc, ece, brier, purity: fractions, None where undefined (say, all labels right), `reason` says why.
        auc_interval, purity_interval: their 95 % intervals (lo, hi), or None.
        reliability: f64[bins, 3]: mean score, share correct, rows of each equal-width bin.
        histogram: f64[bins, 3]: left edge, rows with a correct label, rows with a wrong one.
        curve: f64[points, 3]: n, purity of the n most trusted rows, purity of n random rows.
    """

    auc: float | None
    ece: float | None
    brier: float | None
    purity: float | None
    auc_interval: tuple[float, float] | None
    purity_interval: tuple[float, float] | None
    reliability: np.ndarray
    histogram: np.ndarray
    curve: np.ndarray
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Recovery:
    """One row of the result table; all ratios are fractions (0.99, not 99), None = undefined with a `reason`.

    Attributes:
        method: row id, such as "ntf".
        domain, test, teacher, student, objective: what was run; `test` = a dataset, or "mean" (macro average).
        generation, seed: place in the chain, and the run's seed.
        uses_target_gold: whether gold labels of the target reached the student.
        accuracy: of the trained student.
        base, gt, teacher_accuracy: of the student before, of the student trained on gold labels, of the teacher.
        recovery: (accuracy - base) / (gt - base), with its 95 % interval.
        pgr: (accuracy - teacher) / (gt - teacher).
        reason: why something is None, or "".
        n_selected, n_test: rows taught, questions scored.
        purity, auc, ece, brier: of the selection and of the trust scores, on the target.
    """

    method: str
    domain: str
    test: str
    teacher: str
    student: str
    objective: str
    generation: int
    seed: int
    uses_target_gold: bool
    accuracy: float | None
    base: float | None
    gt: float | None
    teacher_accuracy: float | None
    recovery: float | None
    recovery_lo: float | None
    recovery_hi: float | None
    pgr: float | None
    reason: str
    n_selected: int
    n_test: int
    purity: float | None
    auc: float | None
    ece: float | None
    brier: float | None
