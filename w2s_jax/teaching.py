"""From labels and the trust in them to a student: the stages select and teach, and the lesson between them.

Source: arXiv 2606.01000.
"""

import dataclasses
import functools
import inspect
import json
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from w2s_jax import plugins, processes, selection
from w2s_jax.looking import Looked
from w2s_jax.models import hf_io, peft_io
from w2s_jax.packing import Shape
from w2s_jax.run import Model, Run
from w2s_jax.settings import Row, compute_of, computing_of, keywords_of, training_of, writing_of
from w2s_jax.store import Stored
from w2s_jax.student import OnPolicy, OverOptions, online, rewards, trainer
from w2s_jax.tasks.asking import Asking
from w2s_jax.tasks.roles import Demonstrations
from w2s_jax.types import Answers, Gold, Lesson, Question, Selection

VERSION = "1"
COMPLETIONS = "completions.json"  # beside a student that learnt from what it wrote


@dataclasses.dataclass(frozen=True)
class Offer:
    """The labels of the target that a method chooses from, R rows.

    Attributes:
        scores: the stored trust scores of the teacher's own labels.
        unlabelled: these labels, as the teacher gave them to this method.
        relabelled: the stored `Relabelled` that takes their place, or None.
    """

    scores: Stored
    unlabelled: Looked
    relabelled: Stored | None = None

    @property
    def stored(self) -> Stored:
        """Where the scores that the selection goes by come from."""
        return self.relabelled or self.scores

    @property
    def answers(self) -> Answers:
        return self.relabelled.value.answers if self.relabelled else self.unlabelled.answers

    @property
    def score(self) -> np.ndarray:
        """f32[R]."""
        return self.relabelled.value.score if self.relabelled else self.scores.value

    @property
    def there(self) -> np.ndarray:
        """i[K]: the rows that were not dropped when they were relabelled."""
        final = self.answers.final
        return np.flatnonzero([text != "" for text in final]) if self.relabelled else np.arange(len(final))

    @property
    def origin(self) -> tuple[str, ...]:
        """R words, see `types.Selection`."""
        return self.relabelled.value.origin if self.relabelled else ("weak",) * len(self.answers)


def select(
    run: Run,
    row: Row,
    offer: Offer,
    questions: Sequence[Question],
    num_taught: int | None,
    certified: Stored | None = None,
) -> Stored:
    """The rows that the student will be taught; `num_taught` of them where another row has settled the number.

    Equal numbers are what makes methods comparable, whatever the rule; equal classes too, under a rule that makes them.
    """
    section = run.config.select
    rule = selection.RULES[section.rule]
    wanted = inspect.signature(rule).parameters
    if row.everything:
        rule, amounts = selection.fraction, {"fraction": 1.0}
    elif row.matches or (num_taught is not None and not row.leads and "n" not in wanted):
        rule, amounts = selection.top_n, {"n": num_taught}
    else:
        amounts = {name: section[name] for name in wanted if name in section}
        if "classes" in wanted:
            amounts["classes"] = selection.classes(questions, offer.answers, section.balance)
        if "certificate" in wanted:
            amounts["certificate"] = certified.value
    if offer.relabelled and "n" in amounts:
        refuse_dropped(row, offer, amounts["n"])

    def fn(work, **inputs):
        chosen = rule(offer.score, offer.answers, **amounts)
        return dataclasses.replace(chosen, origin=tuple(offer.origin[r] for r in chosen.row))

    return run.stage(
        "select",
        fn,
        code=("w2s_jax.selection",),
        label=f"select {row.method}",
        scores=offer.stored,
        answers=offer.answers,
        rule=rule.__name__,
        amounts=amounts,
    )


def refuse_dropped(row: Row, offer: Offer, n: int) -> None:
    """Makes sure that a row which drops labels keeps as many as all methods teach.

    Raises:
        ValueError: it does not.
    """
    before, kept = ({i for i, final in zip(a.question_id, a.final) if final} for a in (offer.unlabelled.answers, offer.answers))
    if len(kept) < n and len(kept) < len(before):
        raise ValueError(
            f"method {row.method!r} keeps the labels of {len(kept)} of {len(before)} target questions and drops the others, "
            f"but all methods teach {n}: lower select.n or the thresholds in relabel.{row.relabel} (see the labels' log line), "
            "give tasks.target more questions, or take the method out of methods in the config"
        )


def compose(chosen: Selection, questions: Sequence[Question], gold: Gold | None) -> Lesson:
    """The lesson of a selection; with `gold`, the gold answers to the same questions (rows marked `uses_target_gold`)."""
    of, answers = {q.id: q for q in questions}, chosen.answers
    if gold is not None:
        true = gold.answers()
        final = dict(zip(true.question_id, true.final, strict=True))
        texts = tuple(final[i] for i in answers.question_id)
        answers = Answers(answers.question_id, texts, texts)
    return Lesson(tuple(of[i] for i in answers.question_id), answers, chosen.weight)


def soften(lesson: Lesson, chosen: Selection, offer: Offer, soft_labels: bool) -> Lesson:
    """A lesson of weak labels with what else is known of them: each teacher's own labels where a relabeller asked several, and
    (`soft_labels`) soft ones, a relabeller's or the teacher's.

    Raises:
        ValueError: the teacher's probabilities are asked for, and its answers are free.
    """
    target = experts = None
    if offer.relabelled:
        experts = offer.relabelled.value.experts
        target = offer.relabelled.value.target if soft_labels else None
    elif soft_labels:
        if "option_logp" not in offer.unlabelled.extra:
            raise ValueError(
                "student.soft_labels=True: soft labels are probabilities of options, and these questions have none; set it to "
                "False in the config"
            )
        target = np.exp(offer.unlabelled.extra["option_logp"])
    row = chosen.row
    return dataclasses.replace(
        lesson,
        target=None if target is None else target[row],
        experts=None if experts is None else experts[row],
    )


def teach(run: Run, method: str, student: Model, lesson: Lesson, shown: Demonstrations) -> Stored:
    """The student after the lesson, a Hugging Face directory `model`; adapters also on their own, as a PEFT one, `adapter`."""
    section = run.config.student
    word, asking = section.objective, {"style": section.style, "chat": section.chat}
    args = keywords_of(section, word)
    objective = plugins.make("objective", word, **args)

    def fn(work, **inputs):
        lm = run.load(student, section.param_dtype, section.quantise)
        asked = Asking(lm.tokenizer, **asking, context=lm.config.max_position, demonstrations=shown)
        if isinstance(objective, OnPolicy):
            learn = functools.partial(online.teach, dialogue=dialogue_of(run, section, asked))
        else:
            encode = asked.ask if isinstance(objective, OverOptions) else asked.answer
            learn = functools.partial(trainer.teach, encode=encode)
        taught = learn(
            lm,
            lesson,
            objective,
            training=training_of(section.training),
            shape=Shape(**section.training.shape),
            compute=compute_of(run.mesh, section),
            key=run.key("teach"),
            partial=work.partial,
            log=functools.partial(run.log, f"{run.prefix}teach {method}", work.out.name),
            label=f"teach {method}",
        )
        hf_io.save(taught.lm, work.out / "model")
        if taught.adapters and not student.adapter:  # on a base with an adapter of its own it would say nothing alone
            peft_io.save(taught.adapters, lm.config, work.out / "adapter", base=student.hub_id or student.folder)
        if processes.is_first() and (written := online.completions(work.partial)):
            (work.out / COMPLETIONS).write_text(json.dumps(written, ensure_ascii=False, indent=1))

    code = ("student.trainer", "models.hf_io", "models.peft_io", "tasks.asking")
    code = (*(f"w2s_jax.{module}" for module in code), *plugins.source_words("objective", word))
    reading = {}
    if isinstance(objective, OnPolicy):  # the task reads the answers, and a reward may be a user's own
        reading = {"writing": writing_of(section), "shape": section.shape.to_dict()}
        reading |= run.judged_by
        code += ("w2s_jax.student.online", *plugins.source_words("task", run.config.tasks.name))
        code += rewards.source_words(objective.rewards)
    return run.stage(
        "teach",
        fn,
        code=code,
        label=f"teach {method}",
        student=student.ref,
        lesson=lesson,
        objective=word,
        args=args,
        training=section.training.to_dict(),
        asking=asking,
        shown=shown,
        computing=computing_of(run.config, section),
        quantise=section.quantise,
        seed=run.seed,
        **reading,
    )


def dialogue_of(run: Run, section: ConfigDict, asking: Asking) -> online.Dialogue:
    """How a student writes and is read while it learns."""
    return online.Dialogue(
        asking=asking,
        extract=run.task.extract,
        agree=getattr(run.task, "agree", rewards.equal),
        stop_texts=tuple(section.stop_texts),
        num_slots=section.num_slots,
        row_length=min(section.shape.row_length, section.training.shape.row_length),
        compute=compute_of(run.mesh, section, dtype=section.decode_dtype),
    )
