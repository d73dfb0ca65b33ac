"""Texts as points for `probing`: a language model's hidden states, weak labels by rules of words, true labels by subject.

Stage in: questions of a set whose rows name their subject, a model. Stage out: x f32[R, D], weak and gold i[R].

What is asked of a text is whether its subject is one of `subjects` (class 1) or not (class 0). A rule of words labels it with
the class of which it has more words, and abstains where it has as many of one as of the other; no model and no true label takes
part.

Source: arXiv 2405.16043, section 6 (rules of words over texts that a model embeds). The task, the words and the layer are ours.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from w2s_jax import features
from w2s_jax.models import hf_io, hub, sharding
from w2s_jax.models.compute import Compute
from w2s_jax.packing import Shape
from w2s_jax.tasks import choice
from w2s_jax.theory.partition import ABSTAIN
from w2s_jax.types import Question, Ragged, Rollout

VERSION = "1"


def embedded(
    *,
    model: str,
    root: str,
    split: str,
    size: int,
    subjects: Sequence[str],
    words: Sequence[str],
    other_words: Sequence[str],
    ending: str,
    layer: int,
    shape: Mapping[str, Any],
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The points of a world of texts.

    Args:
        model: a Hugging Face directory or hub id.
        root, split: folder of local rows ("" = the hub) and "dataset:split", see `tasks.choice`.
        size: R, half of them of `subjects`.
        subjects: which are class 1; all others are class 0.
        words, other_words: of class 1 and class 0, see `labelled_by_words`.
        ending: what is put behind each question; the state is that of its last token.
        layer: whose states, 0..M.
        shape: of the model's passes, see `packing.Shape`; longer texts are left out.
        seed: of which texts are drawn.

    Returns:
        x f32[R, D], weak i[R] (1, 0 or `ABSTAIN`), gold i[R].

    Raises:
        ValueError: an unknown subject, too few texts of a class, or whatever reading rows and models is refused for.
    """
    lm = hf_io.load(hub.local_folder(model))
    shape = Shape(**shape)
    questions = choice.make(root=root, source=(), target=(split,), test=()).questions("target")
    tokens = lm.tokenizer.encode_batch([one.prompt + ending for one in questions], bos=True)
    fitting = [k for k, row in enumerate(tokens) if len(row) <= shape.row_length]
    gold = of_subjects([questions[k] for k in fitting], subjects)
    rng = np.random.default_rng(seed)
    rows = np.sort(np.concatenate([drawn(rng, gold, each, size // 2, split) for each in (0, 1)]))
    chosen = [fitting[k] for k in rows]
    weak = labelled_by_words([questions[k].prompt for k in chosen], words, other_words)  # refuses before the model has read
    prompt, nothing = Ragged.of([tokens[k] for k in chosen], np.int32), Ragged.of([[]] * len(chosen), np.int32)
    with tempfile.TemporaryDirectory() as folder:
        out = epath.Path(folder)
        x = features.observe(
            lm,
            Rollout(prompt, nothing, Ragged(np.zeros(0, np.float32), nothing.offset)),
            layers=(layer,),
            token="prompt",
            shape=shape,
            compute=Compute(sharding.make_mesh()),
            out=out,
            partial=out,
        )
        states = np.array(x[:, 0])
    return states, weak, gold[rows]


def of_subjects(questions: Sequence[Question], subjects: Sequence[str]) -> np.ndarray:
    """i[R]: 1 = the question's subject is among these, 0 = it is not.

    Raises:
        ValueError: no question is of one of the subjects.
    """
    found = [one.meta["subject"] for one in questions]
    if unknown := [one for one in subjects if one not in found]:
        raise ValueError(
            f"texts.subjects names {unknown[0]!r}, of which there is no text; there are {', '.join(sorted(set(found)))}: "
            "change it in the config"
        )
    return np.isin(found, list(subjects)).astype(int)


def drawn(rng: np.random.Generator, gold: np.ndarray, each: int, num: int, split: str) -> np.ndarray:
    """i[num]: as many texts of a class.

    Raises:
        ValueError: there are not so many.
    """
    there = np.flatnonzero(gold == each)
    if not 1 <= num <= len(there):
        raise ValueError(
            f"{split} has {len(there)} texts of class {each} that fit texts.shape.row_length, {num} are wanted (half of "
            "texts.size): change one of these in the config"
        )
    return rng.choice(there, num, replace=False)


def labelled_by_words(texts: Sequence[str], words: Sequence[str], other_words: Sequence[str]) -> np.ndarray:
    """i[R]: 1 or 0, the class of which a text has more words; `ABSTAIN` where it has as many.

    Args:
        texts: R texts.
        words, other_words: regular expressions of whole words, whatever their case.

    Raises:
        ValueError: there are no words of a class, or one is no regular expression.

    >>> labelled_by_words(["The law of mass", "Mass, and masses", "A law"], ("mass(es)?",), ("law",))
    array([-1,  1,  0])
    """
    of, other = (whole_words(some, name) for some, name in ((words, "words"), (other_words, "other_words")))
    more = np.array([len(of.findall(text)) - len(other.findall(text)) for text in texts])
    return np.select([more > 0, more < 0], [1, 0], ABSTAIN)


def whole_words(words: Sequence[str], name: str) -> re.Pattern:
    if not words:
        raise ValueError(f"texts.{name} is empty, so one class would have no weak label: name words in the config")
    try:
        return re.compile(rf"\b(?:{'|'.join(f'(?:{word})' for word in words)})\b", re.IGNORECASE)
    except re.error as error:
        raise ValueError(
            f"texts.{name}={tuple(words)!r}: {error}; they are regular expressions: mend them in the config"
        ) from error
