"""Trains a small model from scratch on a task's own corpus (stage pretrain), for runs that download nothing.

It is `student.trainer.teach` from fresh parameters; the result is a Hugging Face directory like any other model.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from w2s_jax.models import decoder
from w2s_jax.models.compute import Compute
from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.tokenizer import word_level
from w2s_jax.packing import Shape
from w2s_jax.student import Objective, trainer
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import LM, Answers, Lesson, Question

VERSION = "1"


def pretrain(
    questions: Sequence[Question],
    finals: Sequence[str],
    vocabulary: Sequence[str],
    objective: Objective,
    *,
    decoder_kw: Mapping[str, object],
    style: str,
    training: trainer.Training,
    shape: Shape,
    compute: Compute,
    key: jax.Array,
    partial,
    log: Callable[[int, Mapping[str, float]], None],
    label: str,
) -> LM:
    """A model that has read the corpus `questions` with the answers `finals`.

    Args:
        questions, finals: the corpus.
        vocabulary: the words of the tokenizer.
        objective: how it learns, such as SFT.
        decoder_kw: fields of `DecoderConfig`, all but the vocabulary's size.
        style: layout of the questions, see `tasks.prompts`.
        training, shape, compute, key, partial, log, label: see `trainer.teach`.
    """
    tokenizer = word_level(vocabulary)
    config = DecoderConfig(vocab_size=tokenizer.vocab_size, **decoder_kw)
    key_init, key_teach = jax.random.split(key)
    fresh = LM(config, compute.place_params(decoder.init(config, key_init)), tokenizer)
    ids = tuple(q.id for q in questions)
    lesson = Lesson(tuple(questions), Answers(ids, tuple(finals), tuple(finals)), np.ones(len(questions), np.float32))
    taught = trainer.teach(
        fresh, lesson, objective, encode=Asking(tokenizer, style, False, config.max_position).answer, training=training,
        shape=shape, compute=compute, key=key_teach, partial=partial, log=log, label=label,
    )  # fmt: skip
    return taught.lm
