"""Teachers in numbers: labels that the teacher and further models give together (stage relabel).

    boosted          a vote weighed by boosting on the labelled source        `voting.boost`, `voting.vote`
    committee_vote   a vote in which all count alike
    experts          the mean of all teachers' option probabilities, and those of each teacher, for objectives that read them

The teacher of the link is the first of T. The others are asked as it is (style, chat, demonstrations), once and greedily; each
is loaded once, for source and target both, and then let go. A teacher that gives several answers to a question is asked once
and greedily too, so that every teacher has one voice; one that gives one (a greedy answer, a majority) has given it already.

With `student.soft_labels` the rows teach soft labels too: each option's part of the votes, or the mean of the probabilities.

A label's score is what the selection goes by: the elected answer's part of the votes, or the mean probability of the label;
the row's own trust function has no say in it. Votes of few teachers are often equal: the selection then draws lots.

Source: EnsemW2S, arXiv 2410.04571 (see `voting`); RAVEN (several weak teachers, weighed while the student learns: here only
what it reads is made); agreement of several models, arXiv 2606.01000.
Deviations: 1. EnsemW2S joins its models token by token; here they vote on final answers, and the text that is taught is the
       heaviest voter's own.
    2. with free answers chance is 1 in `free_options`, a number of ours.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from w2s_jax import gathering, plugins, voting
from w2s_jax.looking import Labelling, Looked
from w2s_jax.run import Model, Run
from w2s_jax.store import Ref, Stored
from w2s_jax.student import rewards
from w2s_jax.types import Answers, Question, Relabelled

VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Voice:
    """One teacher's answers, one to each question of a role.

    Attributes:
        name: what the log calls it.
        source, target: the stored answers.
    """

    name: str
    source: Stored
    target: Stored


def boosted(
    run: Run,
    seen: Labelling,
    scores: Stored,
    *,
    teacher: Model,
    grade: Ref,
    models: Sequence[str],
    order: str,
    free_options: int,
    **others: Any,
) -> Stored:
    """The vote of all teachers, each weighed by how much better than chance it is where those before it are wrong.

    Args:
        run, seen, scores, teacher, grade, others: see `relabelling.Relabeller`.
        models: the further teachers, as a model is named elsewhere in the config.
        order: whose turn it is in boosting, see `voting.ORDERS`.
        free_options: answers that a free question is taken to have: chance is 1 in so many.

    Returns:
        A stored `Relabelled`; `found` has each teacher's weight and error in boosting, and `agreement` f32[R], the share of
        teachers, counted alike, that gave the label.

    Raises:
        ValueError: no teacher is better than chance on the source.
    """
    voices = hear(run, teacher, seen, models)
    chance = chance_of(seen.labelled.questions, free_options)
    agree, names = getattr(run.task, "agree", rewards.equal), tuple(voice.name for voice in voices)
    soft = run.config.student.soft_labels

    def fn(work, *, grade, **inputs):
        right = np.array([grade(voice.source.value["answers"]) for voice in voices])
        weighed = voting.boost(right, chance, voting.ORDERS[order])
        if not weighed.weight.any():
            raise ValueError(
                f"relabel 'boosted': none of the teachers {', '.join(names)} is right more often than chance ({chance:.3f}) on "
                f"the source (they are on {', '.join(f'{share:.3f}' for share in right.mean(1))}): name other models in "
                "relabel.boosted.models of the config, or use the row committee_vote"
            )
        found = {f"weight of {name}": float(value) for name, value in zip(names, weighed.weight, strict=True)}
        found |= {f"error of {name}": float(value) for name, value in zip(names, weighed.error, strict=True)}
        elected = voting.vote([voice.target.value["answers"].final for voice in voices], weighed.weight, agree)
        return label(seen.unlabelled, voices, weighed.weight, elected, found, soft)

    stored = run.stage(
        "boosted",
        fn,
        code=("w2s_jax.voting", "w2s_jax.student.rewards", *plugins.source_words("task", run.config.tasks.name)),
        label="relabel boosted",
        alone=True,
        voices=[(voice.source, voice.target) for voice in voices],
        names=names,
        rows=seen.unlabelled.answers.question_id,
        questions=seen.unlabelled.questions,
        chance=chance,
        order=order,
        soft=soft,
        grade=grade,
        **run.judged_by,
    )
    say(run, "boosted", stored.value.found)
    return stored


def committee_vote(
    run: Run, seen: Labelling, scores: Stored, *, teacher: Model, models: Sequence[str], **others: Any
) -> Stored:
    """The vote of all teachers, who count alike; see `boosted` for the arguments. It reads no gold."""
    voices = hear(run, teacher, seen, models)
    agree, weight = getattr(run.task, "agree", rewards.equal), np.ones(len(voices))
    soft = run.config.student.soft_labels

    def fn(work, **inputs):
        elected = voting.vote([voice.target.value["answers"].final for voice in voices], weight, agree)
        return label(seen.unlabelled, voices, weight, elected, {}, soft)

    return run.stage(
        "committee_vote",
        fn,
        code=("w2s_jax.voting", "w2s_jax.student.rewards", *plugins.source_words("task", run.config.tasks.name)),
        label="relabel committee_vote",
        alone=True,
        voices=[voice.target for voice in voices],
        rows=seen.unlabelled.answers.question_id,
        questions=seen.unlabelled.questions,
        soft=soft,
        **run.judged_by,
    )


def experts(run: Run, seen: Labelling, scores: Stored, *, teacher: Model, models: Sequence[str], **others: Any) -> Stored:
    """The mean of all teachers' option probabilities, and each teacher's own beside it; for choice tasks.

    A label is the most probable answer under that mean, the first of equal ones; its score is that probability. Options that
    read alike are one answer. See `boosted` for the arguments; it reads no gold.

    Returns:
        A stored `Relabelled` with `experts` f32[R, T, O]; `found` has `agreement` f32[R], the share of
        teachers whose own answer is the label.
    """
    voices, soft = hear(run, teacher, seen, models), run.config.student.soft_labels

    def fn(work, **inputs):
        each = np.stack([np.exp(voice.target.value["extra"]["option_logp"].astype(np.float64)) for voice in voices], 1)
        mean, final, score = each.mean(1), [], []
        for question, probability in zip(seen.unlabelled.questions, mean, strict=True):
            of: dict[str, float] = {}
            for option, value in zip(question.options, probability):
                of[option] = of.get(option, 0.0) + float(value)
            final.append(max(of, key=of.__getitem__))
            score.append(min(of[final[-1]], 1.0))
        said = [voice.target.value["answers"].final for voice in voices]
        agreement = np.mean([[a == b for a, b in zip(final, one, strict=True)] for one in said], 0)
        return Relabelled(
            Answers(tuple(q.id for q in seen.unlabelled.questions), tuple(final), tuple(final)),
            ("weak",) * len(final),
            np.float32(score),
            np.float32(mean) if soft else None,
            np.float32(each),
            {"agreement": np.float32(agreement)},
        )

    return run.stage(
        "experts",
        fn,
        label="relabel experts",
        alone=True,
        voices=[voice.target for voice in voices],
        questions=seen.unlabelled.questions,
        soft=soft,
    )


# ---- Who is asked ----------------------------------------------------------------------------------------------------


def hear(run: Run, teacher: Model, seen: Labelling, models: Sequence[str]) -> list[Voice]:
    """One answer of each teacher to each question, the link's own teacher first."""
    roles = (seen.labelled, seen.unlabelled)

    single = all(looked.answers.question_id == tuple(q.id for q in looked.questions) for looked in roles)
    own = [looked.answered if single else gathering.ask_member(run, teacher, looked) for looked in roles]
    voices = [Voice(f"{teacher.name} (teacher)" if teacher.name in models else teacher.name, *own)]
    for word, member in zip(models, gathering.committee(run, models=models), strict=True):
        voices.append(Voice(word, *(gathering.ask_member(run, member, looked) for looked in roles)))
        run.let_go([member])
    return voices


def chance_of(questions: Sequence[Question], free_options: int) -> float:
    """The share of right answers that guessing gives: the mean of 1/O, or 1 in `free_options` where questions have none.

    >>> chance_of([Question("a", "t", "?", ("yes", "no")), Question("b", "t", "?", ("1", "2", "3", "4"))], 10)
    0.375
    """
    return float(np.mean([1 / len(question.options) if question.options else 1 / free_options for question in questions]))


def label(
    looked: Looked,
    voices: Sequence[Voice],
    weight: np.ndarray,
    elected: voting.Vote,
    found: Mapping[str, float],
    soft: bool,
) -> Relabelled:
    """The elected answers, row for row of the labels that they replace; with `soft`, each option's part of the votes too.

    Raises:
        ValueError: soft labels are asked for, and the questions have no options.
    """
    said = [voice.target.value["answers"] for voice in voices]
    place = {question.id: n for n, question in enumerate(looked.questions)}
    at = np.array([place[i] for i in looked.answers.question_id], int)
    text = [said[t].text[n] if t >= 0 else "" for n, t in enumerate(elected.teacher)]
    final = [said[t].final[n] if t >= 0 else "" for n, t in enumerate(elected.teacher)]
    target = None
    if soft:
        if not all(question.options for question in looked.questions):
            raise ValueError(
                "student.soft_labels=True: soft labels are probabilities of options, and these questions have none; set it to "
                "False in the config"
            )
        target = np.float32(parts(looked.questions, [answers.final for answers in said], weight)[at])
    return Relabelled(
        Answers(looked.answers.question_id, tuple(text[n] for n in at), tuple(final[n] for n in at)),
        ("weak",) * len(at),
        np.float32(elected.share[at]),
        target,
        found={**found, "agreement": np.float32(elected.agreement[at])},
    )


def parts(questions: Sequence[Question], said: Sequence[Sequence[str]], weight: np.ndarray) -> np.ndarray:
    """f64[N, O]: each option's part of the votes; options that read alike share what they are given.

    >>> parts([Question("q", "t", "?", ("a", "b", "b"))], [["a"], ["b"]], np.array([1.0, 3.0]))
    array([[0.25 , 0.375, 0.375]])
    """
    found = np.zeros((len(questions), max(len(question.options) for question in questions)))
    for n, question in enumerate(questions):
        for answers, value in zip(said, weight / np.sum(weight), strict=True):
            alike = [o for o, option in enumerate(question.options) if option == answers[n]]
            found[n, alike] += value / max(len(alike), 1)
    return found


def say(run: Run, word: str, found: Mapping[str, Any]) -> None:
    """Logs what each teacher counts for."""
    counts = [(name.removeprefix("weight of "), value) for name, value in found.items() if name.startswith("weight of ")]
    said = ", ".join(f"{name} {value:.3f}" + ("" if value else " (no better than chance)") for name, value in counts)
    run.store.log(f"{run.prefix}{word}: weights {said}")


# ---- What is refused -------------------------------------------------------------------------------------------------


def refuse_models(run: Run, word: str, models: Sequence[str]) -> None:
    """Makes sure that the further teachers are there, before anything is computed.

    Raises:
        ValueError: none is named, one twice, the teacher itself, or one that is not there or cannot be read.
    """
    where = f"set --config.relabel.{word}.models=\"('first', 'second')\""
    if isinstance(models, str) or not models or len(set(models)) < len(models):
        raise ValueError(
            f"relabel.{word}.models={models!r}: allowed is a tuple of one or more models beside the teacher, each once; {where}"
        )
    if run.config.teacher.model in models:
        raise ValueError(
            f"relabel.{word}.models={models!r} names teacher.model, which votes already: name other models; {where}"
        )
    gathering.committee(run, models=models)


def check_boosted(run: Run, *, models: Sequence[str], order: str, free_options: int) -> None:
    """Makes sure that `boosted` can be run.

    Raises:
        ValueError: see `refuse_models`; or another keyword is not allowed.
    """
    if order not in voting.ORDERS:
        raise ValueError(f"relabel.boosted.order={order!r}: allowed are {', '.join(voting.ORDERS)}; change it in the config")
    if free_options < 2:
        raise ValueError(f"relabel.boosted.free_options={free_options}: allowed are 2 and more; change it in the config")
    refuse_models(run, "boosted", models)


def check_committee_vote(run: Run, *, models: Sequence[str]) -> None:
    """As `refuse_models` does."""
    refuse_models(run, "committee_vote", models)


def check_experts(run: Run, *, models: Sequence[str]) -> None:
    """Makes sure that `experts` can be run.

    Raises:
        ValueError: see `refuse_models`; or answers are free, and have no probabilities of options.
    """
    if run.task.interface != "choice":
        raise ValueError(
            f"relabel 'experts' is made of the probabilities of options, and this task's interface is {run.task.interface!r}: "
            "use the row committee_vote or boosted instead, or take the method out of methods in the config"
        )
    refuse_models(run, "experts", models)
