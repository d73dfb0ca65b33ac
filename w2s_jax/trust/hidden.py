"""The teacher's hidden states as the table that probes work on: R rows of F numbers, standardised by the source's."""

import numpy as np

from w2s_jax.types import Evidence

VERSION = "1"


def table(evidence: Evidence, width: int | None = None) -> np.ndarray:
    """f64[R, F]: the probe points end to end.

    Raises:
        ValueError: they are not finite, or not `width` numbers, those that a probe was fitted on.
    """
    x = np.asarray(evidence.x, np.float64).reshape(len(evidence.x), -1)
    if width is not None and x.shape[1] != width:
        raise ValueError(
            f"the hidden states have {x.shape[1]} features, this probe was fitted on {width}: use the teacher and "
            "observe.layers that it was fitted with, or fit a new one (trust.from_='')"
        )
    if not np.isfinite(x).all():
        raise ValueError("the teacher's hidden states hold NaN or infinity: check its weights, or use teacher.dtype='float32'")
    return x


def moments(x: np.ndarray) -> dict[str, np.ndarray]:
    """`mean` and `scale` f64[F] of the source; a feature that never moves has scale 1."""
    scale = x.std(0)
    return {"mean": x.mean(0), "scale": np.where(scale > 1e-6, scale, 1.0)}


def refuse_one_kind(correct: np.ndarray) -> None:
    """Makes sure that there are right and wrong labels to tell apart.

    Raises:
        ValueError: all are right, or all are wrong.
    """
    if correct.all() or not correct.any():
        raise ValueError(
            f"all {len(correct)} weak labels of the source are {'right' if correct.all() else 'wrong'}: a probe needs both; "
            "change tasks.source (more or harder questions) in the config, or the teacher"
        )
