"""What a model makes of answers that another one gave: a reward, or their likelihood.

Both read question and answer once, packed, in the device shape of any other pass.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from w2s_jax import choosing, features, packing
from w2s_jax.models.compute import Compute
from w2s_jax.packing import Shape
from w2s_jax.progress import Progress
from w2s_jax.types import LM, Batch, Ragged

VERSION = "1"
Reply = tuple[list[int], list[int]]
"""The tokens of a question and of an answer to it, under the judge's tokenizer."""


def rewards(lm: LM, replies: Sequence[Reply], *, head: np.ndarray, shape: Shape, compute: Compute, label: str) -> np.ndarray:
    """f32[R]: a sequence classifier's reward at the last token of each reply.

    Args:
        lm: the classifier's decoder.
        replies: R of them.
        head: see `hf_io.load_classifier`. With one label its logit is the reward; with two, the second's minus the first's, the
            log-odds of the second.
        shape: device shape.
        compute: how the model computes.
        label: what the progress bar says.
    """
    token = Ragged.of([[*prompt, *answer] for prompt, answer in replies], np.int32)
    model = compute.model(lm.config)

    def program(batch: Batch) -> jax.Array:
        return features.gathered(lm.params, compute.place_rows(batch), model=model, layers=(-1,))

    hidden = _by_row(program, token, shape, label, probe=token.length - 1)
    logits = np.stack(hidden)[:, 0].astype(np.float64) @ head.T.astype(np.float64)
    return (logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]).astype(np.float32)


def likelihoods(lm: LM, replies: Sequence[Reply], *, shape: Shape, compute: Compute, label: str) -> np.ndarray:
    """f32[R]: the mean log-probability of each answer's tokens, nats, over the whole vocabulary."""
    token = Ragged.of([[*prompt, *answer] for prompt, answer in replies], np.int32)
    weight = Ragged.of([[0.0] * len(prompt) + [1.0] * len(answer) for prompt, answer in replies], np.float32)
    model = compute.model(lm.config)

    def program(batch: Batch) -> jax.Array:
        return choosing.continuation_logp(lm.params, compute.place_rows(batch), model=model)

    logp = _by_row(program, token, shape, label, weight=weight)
    return np.array(
        [row[len(prompt) :].astype(np.float64).mean() for row, (prompt, _) in zip(logp, replies, strict=True)], np.float32
    )


def _by_row(program: Callable[[Batch], jax.Array], token: Ragged, shape: Shape, label: str, **segments) -> list[np.ndarray]:
    """A program's result for each row, in the rows' order."""
    found: list[np.ndarray] = [np.empty(0)] * len(token)
    with Progress(label, len(token.flat), unit="tok") as progress:
        for rows, values, tokens in packing.sweep(program, token, shape, **segments):
            for row, value in zip(rows, values, strict=True):
                found[row] = value
            progress.add(tokens)
    return found
