"""Was the right label chosen? Labels of a selective method beside the target's gold, once every student is stored.

    labels    what share of the weak, the student's own and the smoothed labels is right, and of those given in the end
    routes    how many rows went to whom, and how right the labels of each route are
    four ways P(IK) says known or not, the weak label is right or wrong; in how many of each the own label is right
    P(IK)     discrimination and calibration on the target, of the student's own answers

Source: arXiv 2511.14166 (four-way table, accuracy of labels before and after). Deviations: 1. accuracy by route, and P(IK)
judged on the target beside the held-back source, are ours.
Everything here is pure numpy on the host, and the order of rows does not matter.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from w2s_jax import metrics, routing

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Selective:
    """The labels of one selective method; None = undefined, not made, or no gold, with a `reason`. Shares are fractions.

    Attributes:
        method: its id.
        n, kept: labels in all, and those that were not dropped.
        weak, own, smoothed: what share of all of them is right, by whom.
        given: what share of the kept ones is right, as they were given in the end.
        weak_kept: what share of the weak labels is right on these rows.
        gamma: the threshold of P(IK), infinite = the weak label was never worse.
        auc, auc_lo, auc_hi, ece, brier: of P(IK) on the target, for the own label's being right.
        source_auc, source_ece, source_rows: the same on held-back rows of the source, which P(IK) was not fitted on.
        components, isolated: pieces of the graph of labels that were smoothed, and its points without neighbours.
        route: f64[4, 4], for each of `routing.ROUTES` rows, share of rows, share right as given, share of weak labels right;
            NaN where there is none.
        table: i64[2, 2, 2]: [known, weak right, own right]; i64[0, 2, 2] without P(IK) or gold.
    """

    method: str
    n: int
    kept: int
    weak: float | None
    own: float | None
    smoothed: float | None
    given: float | None
    weak_kept: float | None
    gamma: float | None
    auc: float | None
    auc_lo: float | None
    auc_hi: float | None
    ece: float | None
    brier: float | None
    source_auc: float | None
    source_ece: float | None
    source_rows: int | None
    components: int | None
    isolated: int | None
    route: np.ndarray
    table: np.ndarray
    reason: str = ""


def measure(
    route: np.ndarray,
    weak: np.ndarray | None,
    given: np.ndarray | None,
    *,
    own: np.ndarray | None = None,
    smoothed: np.ndarray | None = None,
    p_ik: np.ndarray | None = None,
    gamma: float | None = None,
    cluster: Sequence[str] | None = None,
    method: str = "",
    **known,
) -> Selective:
    """Measures the labels of R rows.

    Args:
        route: i[R], places in `routing.ROUTES`.
        weak, given: bool[R], whether the weak label, and the label that was given, is right; None where there is no gold.
        own, smoothed: bool[R], the same of the student's own and the smoothed label; None where the method has none.
        p_ik, gamma: f[R] and the threshold, or None.
        cluster: R names, for the interval, see `metrics.auc_interval`.
        method: what the result calls them.
        **known: what was known before, for the fields of these names.

    >>> right = np.array([True, False, False])
    >>> found = measure(np.array([1, 0, 3]), right, np.array([True, True, False]))
    >>> found.kept, found.weak_kept, found.given, found.route[1].tolist()
    (2, 0.5, 1.0, [1.0, 0.3333333333333333, 1.0, 1.0])
    """
    there = route != routing.ROUTES.index("drop")
    reasons: list[str] = [] if weak is not None else ["no gold: which labels are right is not known"]

    def value(measured: Callable, *args, told: bool = True):
        try:
            return measured(*args)
        except metrics.Undefined as reason:
            if told:
                reasons.append(f"P(IK): {reason}")
            return None

    judged = p_ik is not None and own is not None
    limits = value(metrics.auc_interval, p_ik, own, cluster, told=False) if judged else None
    none = np.zeros((0, 2, 2), np.int64)
    fields = {
        "weak": mean(weak),
        "own": mean(own),
        "smoothed": mean(smoothed),
        "given": None if given is None else mean(given[there]),
        "weak_kept": None if weak is None else mean(weak[there]),
        "gamma": gamma,
        "auc": value(metrics.auc, p_ik, own) if judged else None,
        "auc_lo": limits and limits[0],
        "auc_hi": limits and limits[1],
        "ece": value(metrics.ece, p_ik, own) if judged else None,
        "brier": value(metrics.brier, p_ik, own) if judged else None,
        "route": by_route(route, weak, given),
        "table": routing.table(p_ik >= gamma, weak, own) if judged and weak is not None else none,
    }
    names = ("source_auc", "source_ece", "source_rows", "components", "isolated")
    fields |= {name: known.get(name) for name in names}
    return Selective(method=method, n=len(route), kept=int(there.sum()), **fields, reason="; ".join(dict.fromkeys(reasons)))


def by_route(route: np.ndarray, weak: np.ndarray | None, given: np.ndarray | None) -> np.ndarray:
    """f64[4, 4], see `Selective`."""
    drop = routing.ROUTES.index("drop")
    lines = []
    for place in range(len(routing.ROUTES)):
        rows = route == place
        shares = [mean(None if right is None else right[rows]) for right in (given if place != drop else None, weak)]
        shares = [np.nan if share is None else share for share in shares]
        lines.append([rows.sum(), rows.sum() / max(len(route), 1), *shares])
    return np.array(lines, np.float64)


def mean(right: np.ndarray | None) -> float | None:
    return None if right is None or not len(right) else float(np.mean(right))
