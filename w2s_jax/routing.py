"""Whose label is taught: the student's own, the weak one, the smoothed one, or none.

    self       where P(IK) is at least gamma
    weak       else where the trust in the weak label is at least a threshold
    smoothed   else where the smoothed label is sure enough
    drop       else

Three numbers for a row, all probabilities that the label of their route is right; the first that is high enough decides.

Source: arXiv 2511.14166 for self and smoothed; trust between them, and dropping, are ours.
"""

import numpy as np

VERSION = "1"
ROUTES = ("self", "weak", "smoothed", "drop")


def route(
    p_ik: np.ndarray,
    trust: np.ndarray,
    smoothed: np.ndarray,
    *,
    gamma: float,
    trust_threshold: float,
    smoothed_threshold: float,
    own: np.ndarray | None = None,
    weak: np.ndarray | None = None,
) -> np.ndarray:
    """The route of each row, i8[R], a place in `ROUTES`.

    Args:
        p_ik, trust, smoothed: f[R], how probable it is that the own, the weak and the smoothed label is right.
        gamma, trust_threshold, smoothed_threshold: from where on each is good enough.
        own, weak: bool[R], where there is such a label; None = everywhere.

    >>> route(np.array([.9, .1, .1, .1]), np.array([.9, .9, .1, .1]), np.array([.9, .9, .9, .1]),
    ...       gamma=.5, trust_threshold=.5, smoothed_threshold=.5).tolist()
    [0, 1, 2, 3]
    """
    everywhere = np.ones(len(p_ik), bool)
    good = [
        (np.asarray(p_ik) >= gamma) & (everywhere if own is None else own),
        (np.asarray(trust) >= trust_threshold) & (everywhere if weak is None else weak),
        np.asarray(smoothed) >= smoothed_threshold,
        everywhere,
    ]
    return np.argmax(good, axis=0).astype(np.int8)


def counts(routes: np.ndarray) -> dict[str, int]:
    """How many rows go each way.

    >>> counts(np.array([0, 1, 1, 3]))
    {'self': 1, 'weak': 2, 'smoothed': 0, 'drop': 1}
    """
    return dict(zip(ROUTES, np.bincount(routes, minlength=len(ROUTES)).tolist(), strict=True))


def table(knows: np.ndarray, weak: np.ndarray, own: np.ndarray) -> np.ndarray:
    """How many rows P(IK) says known, by whether the weak and the own label are right.

    Args:
        knows, weak, own: bool[R].

    Returns:
        i64[2, 2, 2]: [knows, weak right, own right], 1 = yes; it adds up to R.

    >>> table(np.array([True, True, False]), np.array([True, False, False]), np.array([True, True, False])).tolist()
    [[[1, 0], [0, 0]], [[0, 1], [0, 1]]]
    """
    place = 4 * np.asarray(knows, int) + 2 * np.asarray(weak, int) + np.asarray(own, int)
    return np.bincount(place, minlength=8).reshape(2, 2, 2)


def refuse_thresholds(**thresholds: float) -> None:
    """Makes sure that thresholds are of probabilities.

    Raises:
        ValueError: one is not in [0, 1].
    """
    for name, value in thresholds.items():
        if not 0 <= value <= 1:
            raise ValueError(
                f"{name}={value}: allowed is a probability, 0 to 1; change `{name}` in the relabel section of the config"
            )
