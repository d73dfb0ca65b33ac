"""Expansion on embeddings: constants, bounds and realised errors of a logistic probe that is taught by weak labels.

Stage in: embeddings of R texts (hidden states, say), their weak labels, their true labels. Stage out: an `Examination`, a
table.

The points are cut in two. On one half probes are fitted to the weak labels: the student on all covered points, others on
resamples of them; together they are the family. On the other half everything is measured, in three ways:

    counted    the measured points are the population, neighbours are each other's k nearest: c is exact for them and these
               probes, and so the bounds are true of the student on these points
    oracle     the paper's check: n(x) is the nearest point of B, c(U) the share of A whose n(x) is in U over the share of B in
               U, and the smallest over the resamples' probes is taken. It estimates the population's constant, by sets found
               at random: where a worse set was missed, a bound may fail
    granted    the oracle's constants with every probe taken as robust (rho = 0), with which the tables of the paper come out;
               where probes are not robust such a bound may fail

Source: arXiv 2405.16043, sections 5 and 6 (there: paraphrases as neighbours, five folds). Deviations: 1. nearest embeddings
in place of paraphrases, after centring and scaling rows to length one. 2. q is the one with the smallest bound. 3. no
correction of the oracle's constant for the sample's size. 4. n(x) counts as a neighbour wherever it lies; which probes are
robust is judged by the k nearest alone, and the oracle's constant takes no notice of eta.
"""

import dataclasses
from functools import partial

import numpy as np
from etils import epath
from scipy import sparse

from w2s_jax.theory import Table
from w2s_jax.theory.expanding import Profile, by_oracle
from w2s_jax.theory.judging import CORRECTION, Population, Verdict, judge, promised
from w2s_jax.theory.neighbours import caution, nearest, nearest_of
from w2s_jax.theory.partition import ABSTAIN
from w2s_jax.trust.regression import logistic

VERSION = "1"
ARRAYS = "report/gains.npz"  # in a run's workdir, see `analysis.gains`


@dataclasses.dataclass(frozen=True)
class Examination:
    """What was found on the measured points.

    Attributes:
        counted, oracle, granted: verdicts of all theorems about the student, in the three ways.
        points, coverage, accuracy, weak_accuracy, gold_accuracy: measured points, share of them with a weak label; right
            labels of the student on all, of the weak labels on the covered ones, of a probe taught by true labels on all.
        caution: what is to be said of the graph, "" = it is connected.
    """

    counted: tuple[Verdict, ...]
    oracle: tuple[Verdict, ...]
    granted: tuple[Verdict, ...]
    points: int
    coverage: float
    accuracy: float
    weak_accuracy: float
    gold_accuracy: float
    caution: str

    def tables(self, name: str) -> tuple[Table, ...]:
        """The verdicts as rows, a table for each way."""
        points = (
            f"{self.points} points that no probe was fitted on, {self.coverage:.3f} of them with a weak label. Right: weak "
            f"labels {self.weak_accuracy:.3f} where there are any; on all points the student {self.accuracy:.3f}, a probe "
            f"taught by true labels {self.gold_accuracy:.3f}. {self.caution}"
        )
        said = {
            "counted": f"Constants are counted, for these points, probes and nearest neighbours: a bound is true. {points}",
            "oracle": "Constants are estimated: neighbours of the other part are the nearest point there alone.",
            "granted": "The oracle's constants with every probe taken as robust: such a bound may fail.",
        }
        head = ("theorem", "on", "points", "alpha", "f != weak", "not robust", "c", "q", "bound", "error", "why not")
        return tuple(
            Table(name=f"{name}_{way}", head=head, rows=tuple(map(_line, getattr(self, way))), note=note.strip())
            for way, note in said.items()
        )


def _line(v: Verdict) -> tuple:
    where = f"{'S' if v.theorem in CORRECTION else 'T'}_{v.label}"
    numbers = (v.alpha, v.err, v.rho, v.c, v.q, v.bound, v.realised)
    return (v.theorem, where, v.points, *(n if n is None else float(n) for n in numbers), v.reason)


def examine(
    x: np.ndarray,
    weak: np.ndarray,
    gold: np.ndarray,
    *,
    neighbours: int,
    eta: float,
    resamples: int,
    l2: float,
    seed: int,
) -> Examination:
    """Measures expansion, bounds and errors.

    Args:
        x: f[R, D].
        weak: i[R], a class or `ABSTAIN`.
        gold: i[R], a class.
        neighbours: k of the graph.
        eta: share of neighbours that may differ where a probe counts as robust.
        resamples: probes beside the student, each on a bootstrap of the covered points.
        l2: see `regression.logistic`; of standardised features.
        seed: of halves and resamples.

    Raises:
        ValueError: shapes differ, no point has a weak label or every covered one has the same, or eta is not in [0, 1).
    """
    x, weak, gold = np.asarray(x, np.float64), np.asarray(weak), np.asarray(gold)
    if x.ndim != 2 or not len(x) == len(weak) == len(gold):
        raise ValueError(f"x has shape {x.shape}, weak {weak.shape}, gold {gold.shape}; needed are [R, D], [R], [R]")
    if not np.isfinite(x).all():
        raise ValueError(f"x has {int((~np.isfinite(x)).sum())} values that are no numbers; see how the embeddings were made")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    fit, rest = order[: len(x) // 2], np.sort(order[len(x) // 2 :])
    x = (x - x[fit].mean(axis=0)) / np.maximum(x[fit].std(axis=0), 1e-8)
    covered = fit[weak[fit] != ABSTAIN]
    classes = np.unique(gold)
    if len(np.unique(weak[covered])) < 2:
        raise ValueError(
            f"the {len(covered)} weak labels to learn from are of {len(np.unique(weak[covered]))} class; needed are two"
        )
    drawn = [covered, *(rng.choice(covered, len(covered)) for _ in range(resamples))]
    f = np.stack([taught(x[rows], weak[rows], x[rest], l2=l2) for rows in drawn])
    near = x[rest] / np.maximum(np.linalg.norm(x[rest], axis=1, keepdims=True), 1e-8)
    graph = nearest(near, neighbours)
    population = Population(gold[rest], weak[rest], graph, f, f[0])
    nobody = sparse.csr_matrix(graph.shape, dtype=np.int64)  # on which everything is robust
    known = weak[rest] != ABSTAIN
    by_gold = taught(x[fit], gold[fit], x[rest], l2=l2) if len(classes) > 1 else gold[rest]
    return Examination(
        counted=judge(population, eta=eta),
        oracle=judge(population, eta=eta, expand=partial(_by_nearest, x=near)),
        granted=judge(dataclasses.replace(population, graph=nobody), expand=partial(_by_nearest, x=near)),
        points=len(rest),
        coverage=float(known.mean()),
        accuracy=float(np.mean(f[0] == gold[rest])),
        weak_accuracy=float(np.mean(weak[rest][known] == gold[rest][known])),
        gold_accuracy=float(np.mean(by_gold == gold[rest])),
        caution=caution(graph),
    )


@dataclasses.dataclass(frozen=True)
class Promise:
    """What expansion promises of a student that is there.

    Attributes:
        verdicts: of all theorems.
        error: the bound on its share of wrong answers over all points; None where no theorem gives one below 1.
        reason: why there is none.
    """

    verdicts: tuple[Verdict, ...]
    error: float | None
    reason: str = ""


def promise(
    x: np.ndarray,
    weak: np.ndarray,
    gold: np.ndarray,
    student: np.ndarray,
    *,
    neighbours: int,
    resamples: int,
    l2: float,
    seed: int,
) -> Promise:
    """Holds a student's own labels against the theorems, with all constants counted on these points.

    Neighbours are nearest embeddings; the family is the student and probes that are taught by resamples of the weak labels. The
    constants hold for this family on these points, and the bound is true of them; it uses the true labels.

    Args:
        x: f[R, D].
        weak: i[R], a class or `ABSTAIN`.
        gold: i[R], a class.
        student: i[R], what the student says.
        neighbours, resamples, l2, seed: as in `examine`.

    Raises:
        ValueError: shapes differ, or no point has a weak label.
    """
    x = np.asarray(x, np.float64)
    if not len(x) == len(weak) == len(gold) == len(student):
        raise ValueError(
            f"x, weak, gold, student have {len(x)}, {len(weak)}, {len(gold)}, {len(student)} rows; one number a row"
        )
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-8)
    rng = np.random.default_rng(seed)
    covered = np.flatnonzero(weak != ABSTAIN)
    drawn = [rng.choice(covered, len(covered)) for _ in range(resamples)] if len(covered) else []
    f = np.stack([student, *(taught(x[rows], weak[rows], x, l2=l2) for rows in drawn)])
    near = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8)
    population = Population(gold, weak, nearest(near, neighbours), f, student)
    verdicts = judge(population)
    if any(verdict.bound is not None and verdict.bound < 1 for verdict in verdicts):
        return Promise(verdicts, float(promised(verdicts, population)))
    reasons = dict.fromkeys(verdict.reason or f"Theorem {verdict.theorem} says no more than 1" for verdict in verdicts)
    return Promise(verdicts, None, next(iter(reasons)))


def taught(x: np.ndarray, label: np.ndarray, at: np.ndarray, *, l2: float) -> np.ndarray:
    """The labels i[Q] that a logistic probe, fitted to x f[R, D] and label i[R], gives at f[Q, D]: one against the rest."""
    classes = np.unique(label)
    if len(classes) == 1:
        return np.full(len(at), classes[0])
    scores = []
    for each in classes[1:] if len(classes) == 2 else classes:
        weight, bias = logistic(x, label == each, l2=l2)
        scores.append(at @ weight + bias)
    if len(classes) == 2:
        return classes[(scores[0] > 0).astype(int)]
    return classes[np.argmax(scores, axis=0)]


def loaded(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads x, weak and gold from an .npz.

    Raises:
        ValueError: there is no such file, or an array is missing.
    """
    if not epath.Path(path).exists():
        raise ValueError(f"arrays={path!r}: no such file; it is an .npz with x f[R, D], weak i[R], gold i[R]")
    with epath.Path(path).open("rb") as file, np.load(file) as found:
        if missing := {"x", "weak", "gold"} - set(found):
            raise ValueError(
                f"{path} has no {sorted(missing)}; it holds {sorted(found)}; needed are x f[R, D], weak i[R], gold i[R]"
            )
        return found["x"], found["weak"], found["gold"]


def of_run(run: str, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads x, weak and gold of a finished run: the untaught student's states, the labels that a method taught, true classes.

    A question that the method did not teach has no weak label here; one whose true class is unknown is left out.

    Args:
        run: its workdir.
        method: of its table.

    Raises:
        ValueError: the run has no arrays, no such method, or answers that are no classes.
    """
    path = epath.Path(run) / ARRAYS
    if not path.exists():
        raise ValueError(
            f"run={run!r}: there is no {ARRAYS}; run it with --config.analysis.gains=500 (its students are in the store)"
        )
    with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
        methods = [name.removeprefix("weak/") for name in found if name.startswith("weak/")]
        if method not in methods:
            raise ValueError(f"run_method={method!r}: {run} has {', '.join(methods)}; change it in the config")
        weak = np.where(found[f"taught/{method}"], found[f"weak/{method}"], ABSTAIN)
        known = found["gold"] >= 0
        if not known.any():
            raise ValueError(f"run={run!r}: its answers are no classes, as of free questions; name another run in the config")
        return found["student"][known], weak[known], found["gold"][known]


def _by_nearest(family: np.ndarray, a: np.ndarray, b: np.ndarray, *, x: np.ndarray) -> Profile:
    return by_oracle(family, nearest_of(x, a, b), a, b)
