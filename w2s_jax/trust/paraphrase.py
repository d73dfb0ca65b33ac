"""In what share of other wordings of its question the teacher gives the same answer. Learns nothing.

The teacher is asked each question again, once and greedily in each of K wordings: a text around the question (`wordings`), and
where there are options, in the k-th wording these also moved on by k places (`reorder`), for an answer that goes with a letter
is none. With K a multiple of the number of options, each option has stood at every place equally often.

    score = wordings in which the answer agrees with the label / K

Agreement is the task's own (equal mathematics, say) or equality; a wording without an answer agrees with nothing, and a row
without one has 0. The answers are counted, not averaged by their probability: what is asked is whether the answer holds, which
free answers can say too, and `confidence` already says how probable it is. So there are K + 1 scores and many ties, which a
selection breaks by a fixed lot.

The answers in other wordings are known as paraphrase or prompt consistency. The reliability-aware method drops the questions
whose answers have an entropy above the median over all questions, or weighs them by how frequent the answer is. Here selection
does so: select.rule=fraction with select.fraction=0.5 takes the more trusted half, and with trust.name=paraphrase
select.rule=weights weighs.

Source: reliability-aware alignment, arXiv 2406.19032; consistency over paraphrases, arXiv 2102.01017; the order of options as
    a test of it, arXiv 2308.11483.
Deviations: 1. the wordings are fixed texts of ours around the question, no model writes paraphrases: they are less unlike each
    other than these would be. 2. the share of the label's own answer takes the place of the entropy of all answers: the two
    order questions alike where the answers fall on the label and one other and the label has most of them; answers that agree
    with each other against the label have no entropy, but get no trust here. 3. half the questions are taken, and of those at
    the median some by lot. 4. weights are the share itself, no softmax with a temperature. 5. the judged label is none of the
    answers that are counted.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from w2s_jax.tasks.rewording import PLACE
from w2s_jax.trust import Untaught
from w2s_jax.types import Evidence

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Paraphrase(Untaught):
    """See the module and `make`."""

    wordings: tuple[str, ...]
    reorder: bool
    needs: frozenset[str] = frozenset({"paraphrase_share"})

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        return {"paraphrase_share": {"wordings": self.wordings, "reorder": self.reorder}}

    def score(self, evidence: Evidence) -> np.ndarray:
        return np.clip(evidence.extra["paraphrase_share"], 0.0, 1.0).astype(np.float32)


def make(
    *,
    wordings: tuple[str, ...] = (
        "Answer this as well as you can. {question}",
        "Here is a problem to solve: {question}",
        "{question}\nRead this carefully before you answer.",
        "Somebody asks: {question}\nWhat is the right answer?",
    ),
    reorder: bool = True,
) -> Paraphrase:
    r"""The trust function.

    Args:
        wordings: K texts, each with {question} where the question's own text goes. A model from scratch knows the words of its
            task alone: give it wordings of these.
        reorder: move the options on by a place more in each wording; a style that does not show them (all but `letter`) is
            none the wiser. A wording may then come twice: `("{question}", "{question}")` are two orders and nothing else.

    Raises:
        ValueError: no wordings, one without {question}, or one twice that would be asked twice alike.
    """
    change = "change --config.trust.paraphrase.wordings=\"('Consider this: {question}', '{question}\\nThink first.')\""
    if isinstance(wordings, str) or not wordings or not all(isinstance(wording, str) for wording in wordings):
        raise ValueError(f"wordings={wordings!r}: allowed is a tuple of one or more texts; {change}")
    if lacking := [wording for wording in wordings if PLACE not in wording]:
        raise ValueError(f"wordings: {lacking[0]!r} has no {PLACE}, which must stand where the question goes; {change}")
    if not reorder and len(set(wordings)) < len(wordings):
        raise ValueError(
            f"wordings={wordings!r}: allowed is each once where reorder=False, or the same is asked twice; {change}, or "
            "set trust.paraphrase.reorder=True"
        )
    return Paraphrase(tuple(wordings), reorder)
