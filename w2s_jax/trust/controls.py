"""Controls: trust functions that must not help, and one that cannot be beaten.

    random     a number drawn for each answer: its top n is a random n of the weak labels (the `naive` row)
    constant   the share of right labels in the source, for every row: takes them all (the `naive_all` row)
    shuffled   another row's scores, dealt out at random: same score distribution, no information
    oracle     1 where the label is right. For audits and ceilings only: it is given the target's gold.

Two are matched to the selection of another row. They draw as many questions at random, scored above 1/2 where all others are
below, so that the top n are those:

    same_purity          as many right and as many wrong labels as that selection has: what is left of its effect is due to
                         which right labels it takes, not to how many. It is given the target's gold, and its row is marked.
    difficulty_matched   as many questions of each difficulty (`difficulty`): what is left is due to what the trust function
                         sees beyond difficulty. It needs no gold.

A head that is fitted on flipped labels is no trust function of its own but the row `flipped`, see `settings.Row`.

Source: arXiv 2606.01000 (naive baseline); the matched controls are ours.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from w2s_jax.tasks import difficulty as difficulties
from w2s_jax.trust import NoProducts
from w2s_jax.types import Answers, Evidence, Question

VERSION = "2"


@dataclasses.dataclass(frozen=True)
class Random(NoProducts):
    """A uniform draw for each answer, from (key, question id, text) alone: the order of rows does not matter."""

    word: np.ndarray | None = None
    needs: frozenset[str] = frozenset()

    def fit(self, evidence: Evidence, correct: np.ndarray, key: jax.Array) -> "Random":
        return dataclasses.replace(self, word=np.asarray(jax.random.key_data(key), np.uint32))

    def score(self, evidence: Evidence) -> np.ndarray:
        return _draw(self.word, "random", evidence.answers)

    def state(self) -> Mapping[str, np.ndarray]:
        return {"word": self.word}

    def restore(self, state: Mapping[str, np.ndarray]) -> "Random":
        return dataclasses.replace(self, word=state["word"])


@dataclasses.dataclass(frozen=True)
class Shuffled(Random):
    """The scores of the row named in `needs`, sorted, dealt out in the order of a random draw."""

    def score(self, evidence: Evidence) -> np.ndarray:
        (name,) = self.needs
        other = np.asarray(evidence.extra[name], np.float32)
        dealt = np.empty_like(other)
        dealt[np.argsort(_draw(self.word, "shuffled", evidence.answers), kind="stable")] = np.sort(other)
        return dealt


@dataclasses.dataclass(frozen=True)
class Constant(NoProducts):
    """The prior: what share of the source labels was right."""

    prior: np.ndarray | None = None
    needs: frozenset[str] = frozenset()

    def fit(self, evidence: Evidence, correct: np.ndarray, key: jax.Array) -> "Constant":
        return dataclasses.replace(self, prior=np.float32([np.mean(correct)]))

    def score(self, evidence: Evidence) -> np.ndarray:
        return np.broadcast_to(self.prior, (len(evidence.answers),)).astype(np.float32)

    def state(self) -> Mapping[str, np.ndarray]:
        return {"prior": self.prior}

    def restore(self, state: Mapping[str, np.ndarray]) -> "Constant":
        return dataclasses.replace(self, prior=state["prior"])


@dataclasses.dataclass(frozen=True)
class Oracle(NoProducts):
    """Knows. `needs` the target's gold, which only a row with `uses_target_gold` is given."""

    needs: frozenset[str] = frozenset({"correct"})

    def fit(self, evidence: Evidence, correct: np.ndarray, key: jax.Array) -> "Oracle":
        return self

    def score(self, evidence: Evidence) -> np.ndarray:
        return np.asarray(evidence.extra["correct"], np.float32)

    def state(self) -> Mapping[str, np.ndarray]:
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> "Oracle":
        return self


@dataclasses.dataclass(frozen=True)
class SamePurity(Random):
    """A random subset with the purity of the selection of the row `of`; given the target's gold."""

    of: str = ""

    def score(self, evidence: Evidence) -> np.ndarray:
        lot = _draw(self.word, "same_purity", evidence.answers)
        selected, right = evidence.extra[f"selected/{self.of}"], evidence.extra["correct"]
        num_right, num_wrong = int((selected & right).sum()), int((selected & ~right).sum())
        row = _one_of_each(lot, evidence.answers)
        # Several samples to a question: where the drawn rows hold too few of a kind, questions that have one give it instead.
        for value, wanted in ((True, num_right), (False, num_wrong)):
            preferred = _one_of_each(lot + (right == value), evidence.answers)
            instead = {evidence.answers.question_id[r]: r for r in preferred}
            other = np.array([instead[evidence.answers.question_id[r]] for r in row], int)
            short = max(wanted - int((right[row] == value).sum()), 0)
            place = np.flatnonzero((right[row] != value) & (right[other] == value))[:short]
            row[place] = other[place]
        return _set_above(lot, np.concatenate([row[right[row]][:num_right], row[~right[row]][:num_wrong]]))


@dataclasses.dataclass(frozen=True)
class DifficultyMatched(Random):
    """A random subset with as many questions of each difficulty as the selection of the row `of` has."""

    of: str = ""

    def score(self, evidence: Evidence) -> np.ndarray:
        lot = _draw(self.word, "difficulty_matched", evidence.answers)
        selected, level = evidence.extra[f"selected/{self.of}"], evidence.extra["difficulty"]
        row = _one_of_each(lot, evidence.answers)
        chosen = [row[level[row] == one][: int((level[selected] == one).sum())] for one in np.unique(level[selected])]
        return _set_above(lot, np.concatenate(chosen))


def difficulty(questions: Sequence[Question], answers: Answers, logp: np.ndarray) -> np.ndarray:
    """How hard each question is, as far as it can be told without gold: the strata of `difficulty_matched`.

    Data set by data set, the first of these that it has: `meta["level"]` of two kinds or more (each a stratum);
    `meta["rating"]`, of two numbers or more (its deciles); else the teacher's confidence, its mean probability over a
    question's rows (its deciles: a head that merely repeats the confidence is then matched to itself).

    Args:
        questions: N questions.
        answers: R rows; all rows of a question are in one stratum.
        logp: f32[R], nats, the teacher's mean log-probability of each answer.

    Returns:
        i32[R], the number of each row's stratum.
    """
    place = {q.id: n for n, q in enumerate(questions)}
    at = np.array([place[i] for i in answers.question_id], int)
    rows = np.bincount(at, minlength=len(questions))
    confidence = np.bincount(at, np.exp(np.minimum(logp, 0.0)), len(questions)) / np.maximum(rows, 1)
    stratum, count = np.zeros(len(questions), np.int32), 0
    for mine, asked in difficulties.by_data_set(questions):
        level, rating = difficulties.words(asked, "level"), difficulties.numbers(asked, "rating")
        if level is not None:
            kinds = np.unique(level, return_inverse=True)[1]
        else:
            value = confidence[mine] if rating is None else rating
            kinds = np.searchsorted(np.quantile(value, np.arange(1, 10) / 10), value, side="left")
        stratum[mine] = count + kinds
        count += int(kinds.max()) + 1
    return stratum[at]


def _one_of_each(lot: np.ndarray, answers: Answers) -> np.ndarray:
    """One answered row of each question, the one of the highest lot; i[N] in the order of lots, the highest first."""
    rows, seen = [], set()
    for row in np.argsort(-lot, kind="stable"):
        if answers.final[row] != "" and answers.question_id[row] not in seen:
            seen.add(answers.question_id[row])
            rows.append(row)
    return np.array(rows, int)


def _set_above(lot: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Scores f32[R]: the lots, halved, and those of `rows` above all others."""
    score = lot / 2
    score[rows] += 0.5
    return score


def _draw(word: np.ndarray, purpose: str, answers: Answers) -> np.ndarray:
    """f32[R] uniform in [0, 1), one for each (word, purpose, question id, answer text)."""
    salt = word.tobytes() + purpose.encode()
    digests = (
        hashlib.sha256(salt + f"{i}\0{text}".encode()).digest()
        for i, text in zip(answers.question_id, answers.text, strict=True)
    )
    return np.array([int.from_bytes(d[:3], "little") / 2**24 for d in digests], np.float32)


KINDS = {"random": Random, "constant": Constant, "oracle": Oracle}
OF_ANOTHER = {  # kind -> what it asks for of the other row, and whatever else
    "shuffled": lambda of: Shuffled(needs=frozenset({f"score/{of}"})),
    "same_purity": lambda of: SamePurity(needs=frozenset({f"selected/{of}", "correct"}), of=of),
    "difficulty_matched": lambda of: DifficultyMatched(needs=frozenset({f"selected/{of}", "difficulty"}), of=of),
}


def make(*, kind: str, of: str = "") -> Random | Constant | Oracle:
    """The control of that kind; `of` is the method row whose scores are dealt out or whose selection is matched, as "ntf"."""
    if kind in OF_ANOTHER:
        if not of:
            raise ValueError(f"kind={kind!r} needs of=<method row>, such as of='ntf'; change the row's args in the config")
        return OF_ANOTHER[kind](of)
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: allowed are {', '.join([*KINDS, *OF_ANOTHER])}; change the row's args in the config")
    return KINDS[kind]()
