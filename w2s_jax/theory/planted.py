"""Planted worlds in which a weak teacher and a strong student are probes, so that every predictor of gain can be held to it.

    regressions  truth, teacher and student are linear; the teacher sees some of the features and fits few noisy answers, the
                 student sees half of them and fits the teacher's answers. The truth stands in the features of the student, as
                 the theorem of misfit wants, or in all (`blind`): then it is outside the student's class. Misfit and kernels
                 are measured on its questions, errors on new ones.
    patterns     a question shows its answer by an easy pattern, a hard one, or both (overlap); the teacher sees the easy
                 one alone, the student the hard one and the easy one less clearly. The share of overlap is drawn, that of
                 hard questions is not.

Source: arXiv 2405.15116 and 2502.00620 (linear worlds), arXiv 2412.03881 (patterns); sizes and draws are ours.
"""

import numpy as np
from scipy.special import expit

from w2s_jax.theory import kernels, misfit, overlap
from w2s_jax.trust.regression import logistic

VERSION = "1"
NEW = 2000  # questions on which errors are measured
HARD = 0.3  # share of questions with a hard pattern alone
FAINT, CLEAR = 0.4, 1.5  # how clearly the student sees an easy and a hard pattern; the teacher's easy one has 1
Predicted = dict[str, tuple[float, float]]
"""Predictor -> (predicted, realised)."""


def regressions(
    rng: np.random.Generator, *, blind: bool, size: int = 300, features: int = 24, ridge: float = 1e-3
) -> Predicted:
    """Draws one linear world.

    Args:
        rng: of the draw.
        blind: whether the truth is beyond what the student sees.
        size: questions that the student is taught.
        features: of a question, standard normal.
        ridge: of the kernels, see `kernels.projection`.
    """
    seen_t = np.sort(rng.permutation(features)[: rng.integers(4, features)])
    half = features // 2
    seen_s = np.arange(half)
    true = rng.normal(size=features) * (blind | (np.arange(features) < half)) / np.sqrt(half)
    few = int(rng.integers(2 * features, 8 * features))

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(n, features))
        return x, x @ true

    x_t, y_t = draw(few)
    y_t = y_t + rng.normal(size=few) * 0.5
    x_s, y_s = draw(size)
    x_new, y_new = draw(NEW)
    weak_s, weak_new = (kernels.ridge_probe(x_t[:, seen_t], y_t[:, None], x[:, seen_t], ridge=1e-9)[:, 0] for x in (x_s, x_new))
    said_s, said_new = (
        kernels.ridge_probe(x_s[:, seen_s], weak_s[:, None], x[:, seen_s], ridge=1e-9)[:, 0] for x in (x_s, x_new)
    )
    missed, _ = misfit.squared(said_s, weak_s, y_s)
    _, gain = misfit.squared(said_new, weak_new, y_new)
    shaped = kernels.shape(x_s[:, seen_t], x_s[:, seen_s], y_s, ridge=ridge)
    realised = float(gain.mean())
    alike = kernels.cka(x_s[:, seen_t], x_s[:, seen_s])
    return {
        "misfit_squared": (float(missed.mean()), realised),
        "kernel_gain": (shaped.gain, realised),
        "kernel_norm": (shaped.norm, realised),
        "cka": (alike, realised),
    }


def patterns(rng: np.random.Generator, *, size: int = 400, width: int = 8) -> Predicted:
    """Draws one world of patterns; besides the density that is found there is the planted one, `overlap_planted`.

    Args:
        rng: of the draw.
        size: questions that each of the two is taught.
        width: features of each pattern.
    """
    share = rng.uniform(0.02, 1 - HARD - 0.05)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        y, kind = rng.integers(0, 2, n), rng.choice(3, n, p=[HARD, 1 - HARD - share, share])
        side = (2 * y - 1)[:, None]
        clear, dim, hard = rng.normal(size=(3, n, width))
        clear += side * (kind != overlap.HARD)[:, None]
        dim += FAINT * side * (kind != overlap.HARD)[:, None]
        hard += CLEAR * side * (kind != overlap.EASY)[:, None]
        return clear, np.concatenate([dim, hard], axis=1), y, kind

    seen, _, y_t, _ = draw(size)
    weight, bias = logistic(seen, y_t, l2=0.01)
    seen, x, _, kind = draw(size)
    belief = expit(seen @ weight + bias)
    own, shift = logistic(x, belief > 0.5, l2=0.01)
    seen, x_new, y_new, _ = draw(NEW)
    weak_new, said_new = seen @ weight + bias > 0, x_new @ own + shift > 0
    missed, gain = misfit.answers(said_new != weak_new, weak_new == y_new, said_new == y_new)
    found = overlap.detect(overlap.confidence(np.stack([belief, 1 - belief], axis=1)), x)
    realised = float(gain.mean())
    return {
        "overlap": (found.density(), realised),
        "overlap_planted": (float(np.mean(kind == overlap.OVERLAP)), realised),
        "misfit": (float(missed.mean()), realised),
    }
