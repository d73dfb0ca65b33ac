"""What trust functions ask for beyond the teacher's answers and hidden states (stages named like the evidence they make).

    p_true, verbalised   the teacher is asked about its own answers            trust self_assessment
    sample_share         further samples of the teacher that agree             trust self_consistency
    paraphrase_share     the teacher's answers in other wordings that agree    trust paraphrase
    committee_share      other models that agree                               trust committee
    reward, likelihood   another model's judgement of the answers              trust reward_model

Each provider takes (run, teacher, roles, **keywords) and returns a stored f32[R] for each role, one number for each answer of
the teacher. The keywords are those that the trust function's `asks` names. `pipeline` calls `gather` for the source, to
calibrate on, and for the target, as a rule for both at once: another model than the teacher is loaded once for both, and then
let go. No gold is here.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from w2s_jax import answering, judgement, plugins
from w2s_jax.looking import Looked, answer
from w2s_jax.models import hf_io, hub
from w2s_jax.packing import Shape
from w2s_jax.run import Model, Run, find_model
from w2s_jax.settings import Row, compute_of, computing_of, refuse_rows
from w2s_jax.store import Stored
from w2s_jax.student import rewards
from w2s_jax.tasks import assessing, rewording
from w2s_jax.tasks.asking import Asking
from w2s_jax.tasks.roles import Demonstrations
from w2s_jax.types import LM, Answers, Question

VERSION = "1"
READS = ("w2s_jax.tasks.asking", "w2s_jax.models.peft_io")  # what a pass over questions depends on, beside what runs it


def gather(run: Run, teacher: Model, roles: Sequence[Looked], asks: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Stored]]:
    """The evidence that providers give, of all that is asked for; each is computed once, whoever asks for it.

    Args:
        run: config, store.
        teacher: the model whose answers are looked at.
        roles: its answers to some roles.
        asks: name of the evidence -> keywords of its provider; names that no provider has are passed over.

    Returns:
        The evidence by name, for each role.
    """
    found: list[dict[str, Stored]] = [{} for _ in roles]
    for name, keywords in asks.items():
        if name in PROVIDERS:
            for known, value in zip(found, PROVIDERS[name](run, teacher, roles, **keywords), strict=True):
                known[name] = value
    return found


def prepare(run: Run, rows: Sequence[Row]) -> None:
    """Finds out, before the teacher is asked anything, what the rows' trust functions ask for in vain.

    Raises:
        ValueError: the task cannot give what one needs, or a model that one names is not there or cannot be read.
    """
    refuse_rows(rows, run.task.interface)
    for row in rows:
        try:
            for name in row.needs & set(MODELS):
                MODELS[name](run, **row.asks[name])
        except ValueError as error:
            raise ValueError(f"method {row.method!r}: {error}") from None


# ---- The teacher about its own answers -------------------------------------------------------------------------------


def p_true(run: Run, teacher: Model, roles: Sequence[Looked]) -> list[Stored]:
    """The probability that the teacher gives to its answer's being true, see `assessing.is_true`."""
    return [self_assessed(run, teacher, looked, "p_true", assessing.is_true, np.array([1.0, 0.0])) for looked in roles]


def verbalised(run: Run, teacher: Model, roles: Sequence[Looked]) -> list[Stored]:
    """The percentage that the teacher expects of its answer's being right, as a fraction, see `assessing.how_sure`."""
    worth = np.array(assessing.GRID) / 100
    return [self_assessed(run, teacher, looked, "verbalised", assessing.how_sure, worth) for looked in roles]


def self_assessed(
    run: Run,
    teacher: Model,
    looked: Looked,
    name: str,
    wording: Callable[[Question, str], Question],
    worth: np.ndarray,
) -> Stored:
    """Asks the teacher a question with options about each different answer; f32[R], the mean of what the options are worth.

    Rows without an answer have 0.
    """
    section, answers = run.config.teacher, looked.answers
    rows = list(zip(answers.question_id, answers.final, strict=True))
    different = questions_about(looked, wording)

    def fn(work, **inputs):
        lm = run.load(teacher, section.param_dtype)
        asking = Asking(lm.tokenizer, style="letter", chat=section.chat, context=lm.config.max_position)
        found: dict[tuple[str, str], float] = {}
        if different:
            asked = list(different.values())
            passing = {"shape": Shape(**section.shape), "compute": compute_of(run.mesh, section)}
            try:
                answered = answering.by_choice(lm, asked, asking, normalise="none", **passing, label=f"{name} {looked.role}")
            except ValueError as error:
                raise ValueError(
                    f"trust 'self_assessment' asks the teacher about its own answers, and {teacher.name!r} could not be asked: "
                    f"{error}\n(confidence or entropy ask it nothing more)"
                ) from None
            found = dict(zip(different, np.exp(answered["extra"]["option_logp"].astype(np.float64)) @ worth, strict=True))
        return np.array([found.get(row, 0.0) for row in rows], np.float32)

    return run.stage(
        name,
        fn,
        code=("w2s_jax.answering", "w2s_jax.tasks.assessing", *READS),
        label=f"{name} {looked.role}",
        teacher=teacher.ref,
        answers=answers,
        questions=looked.questions,
        chat=section.chat,
        computing=computing_of(run.config, section),
        shape=section.shape.to_dict(),
    )


def questions_about(looked: Looked, wording: Callable[[Question, str], Question]) -> dict[tuple[str, str], Question]:
    """What is asked about each different answer, by (question id, answer)."""
    of = {question.id: question for question in looked.questions}
    rows = zip(looked.answers.question_id, looked.answers.final, strict=True)
    return {(i, final): wording(of[i], final) for i, final in dict.fromkeys(rows) if final}


# ---- Who agrees ------------------------------------------------------------------------------------------------------


def sample_share(run: Run, teacher: Model, roles: Sequence[Looked], *, num_samples: int, temperature: float) -> list[Stored]:
    """The share of further samples of the teacher that agree with each answer."""
    writing = {"num_samples": num_samples, "temperature": temperature}
    return [agreement(run, looked, "sample_share", [sample(run, teacher, looked, **writing)]) for looked in roles]


def sample(run: Run, teacher: Model, looked: Looked, **writing: Any) -> Stored:
    """Further samples of the teacher, written as `writing` says."""
    return answer(run, teacher, looked.questions, "teacher", looked.shown, f"answer {looked.role} again", further=writing)


def paraphrase_share(
    run: Run, teacher: Model, roles: Sequence[Looked], *, wordings: Sequence[str], reorder: bool
) -> list[Stored]:
    """The share of other wordings of its question in which the teacher agrees with each answer; once each, greedily.

    Demonstrations are shown as they are. In the k-th wording the options are moved on by k places, if `reorder`.

    Raises:
        ValueError: the teacher cannot be asked in one of the wordings.
    """
    asked = {"wordings": wordings, "reorder": reorder}
    return [agreement(run, looked, "paraphrase_share", in_wordings(run, teacher, looked, **asked)) for looked in roles]


def in_wordings(run: Run, teacher: Model, looked: Looked, *, wordings: Sequence[str], reorder: bool) -> list[Stored]:
    """The teacher's answers to the same questions in each wording."""
    said = []
    for k, wording in enumerate(wordings, 1):
        questions = [rewording.reworded(question, wording, k if reorder else 0) for question in looked.questions]
        try:
            label = f"answer {looked.role} in wording {k}"
            said.append(answer(run, teacher, questions, "teacher", looked.shown, label, once=True))
        except ValueError as error:
            raise ValueError(
                f"trust 'paraphrase' asks the teacher again in the wording {wording!r}, and {teacher.name!r} could not be "
                f"asked: {error}\n(a shorter wording in trust.paraphrase.wordings may do)"
            ) from None
    return said


def committee_share(run: Run, teacher: Model, roles: Sequence[Looked], *, models: Sequence[str]) -> list[Stored]:
    """The share of other models that agree with each answer; each is asked once, greedily, as the teacher is."""
    asked: list[list[Stored]] = [[] for _ in roles]
    for member in committee(run, models=models):
        for said, looked in zip(asked, roles, strict=True):
            said.append(ask_member(run, member, looked))
        run.let_go([member])
    return [agreement(run, looked, "committee_share", said) for said, looked in zip(asked, roles, strict=True)]


def ask_member(run: Run, member: Model, looked: Looked) -> Stored:
    """Another model's answers to the same questions, once and greedily."""
    label = f"answer {looked.role} {member.name}"
    return answer(run, member, looked.questions, "teacher", looked.shown, label, once=True)


def committee(run: Run, *, models: Sequence[str]) -> list[Model]:
    return [find_model(run, word) for word in models]


def agreement(run: Run, looked: Looked, name: str, others: Sequence[Stored]) -> Stored:
    """f32[R]: the share of the others' answers to a row's question that are the same as the row's."""
    agree = getattr(run.task, "agree", rewards.equal)
    return run.stage(
        name,
        lambda work, **inputs: share(looked.answers, [other.value["answers"] for other in others], agree),
        code=("w2s_jax.student.rewards", *plugins.source_words("task", run.config.tasks.name)),
        label=f"{name} {looked.role}",
        alone=True,
        answers=looked.answers,
        others=tuple(others),
        **run.judged_by,
    )


def share(
    answers: Answers, others: Sequence[Answers], agree: Callable[[Sequence[str], Sequence[str]], np.ndarray]
) -> np.ndarray:
    """f32[R]: of all answers that others give to a row's question, the share that agrees with the row's; 0 without an answer.

    Raises:
        ValueError: nobody was asked a row's question.
    """
    said: dict[str, list[str]] = {}
    for other in others:
        for i, final in zip(other.question_id, other.final, strict=True):
            said.setdefault(i, []).append(final)
    rows = list(zip(answers.question_id, answers.final, strict=True))
    if lost := [i for i, _ in rows if i not in said]:
        raise ValueError(
            f"nobody else was asked {len(lost)} of the questions, such as {lost[0]!r}: ask all of them the same ones"
        )
    pairs = list(dict.fromkeys((other, final) for i, final in rows for other in said[i]))  # mathematics is slow to compare
    same = dict(zip(pairs, agree(*zip(*pairs, strict=True)), strict=True)) if pairs else {}
    return np.array([np.mean([same[other, final] for other in said[i]]) for i, final in rows], np.float32)


# ---- Another model's judgement ---------------------------------------------------------------------------------------


def reward(run: Run, teacher: Model, roles: Sequence[Looked], *, model: str, style: str, chat: bool) -> list[Stored]:
    """The raw reward that a sequence classifier gives to each question and answer; -inf without an answer."""
    judge, section = find_classifier(run, model=model), run.config.teacher

    def load() -> tuple[LM, Callable[..., np.ndarray]]:
        lm, head = run.load_classifier(judge, section.param_dtype)
        return lm, functools.partial(judgement.rewards, head=head)

    asking = {"style": style or section.style, "chat": chat}
    found = [judged(run, looked, "reward", judge, load, **asking) for looked in roles]
    run.let_go([judge])
    return found


def likelihood(run: Run, teacher: Model, roles: Sequence[Looked], *, model: str, style: str, chat: bool) -> list[Stored]:
    """The mean log-probability of each answer's tokens under another model, nats; -inf without an answer."""
    judge, section = find_model(run, model), run.config.teacher

    def load() -> tuple[LM, Callable[..., np.ndarray]]:
        return run.load(judge, section.param_dtype), judgement.likelihoods

    asking = {"style": style or section.style, "chat": chat}
    found = [judged(run, looked, "likelihood", judge, load, **asking) for looked in roles]
    run.let_go([judge])
    return found


def judged(
    run: Run,
    looked: Looked,
    name: str,
    judge: Model,
    load: Callable[[], tuple[LM, Callable[..., np.ndarray]]],
    *,
    style: str,
    chat: bool,
    shown: Demonstrations = (),
) -> Stored:
    """f32[R]: what a judge makes of each answer as it was written. It computes as the teacher does, in the teacher's shape."""
    section, answers = run.config.teacher, looked.answers
    there = [r for r, final in enumerate(answers.final) if final]

    def fn(work, **inputs):
        lm, judgement_of = load()
        asking = Asking(lm.tokenizer, style=style, chat=chat, context=lm.config.max_position, demonstrations=shown)
        value = np.full(len(answers), -np.inf, np.float32)
        if there:
            replies = replies_of(looked, asking)
            passing = {"shape": Shape(**section.shape), "compute": compute_of(run.mesh, section)}
            value[there] = judgement_of(lm, replies, **passing, label=f"{name} {looked.role}")
        if np.isnan(value).any():
            raise ValueError(
                f"{judge.folder} gives answers a {name} that is no number: its weights are damaged; fetch it again"
            )
        return value

    return run.stage(
        name,
        fn,
        code=("w2s_jax.judgement", "w2s_jax.models.hf_io", *READS),
        label=f"{name} {looked.role}",
        judge=judge.ref,
        answers=answers,
        questions=looked.questions,
        asking={"style": style, "chat": chat} | ({"shown": shown} if shown else {}),
        computing=computing_of(run.config, section),
        shape=section.shape.to_dict(),
    )


def replies_of(looked: Looked, asking: Asking) -> list[judgement.Reply]:
    """What a judge reads: each question with its answer as it was written, where there is one."""
    of, answers = {question.id: question for question in looked.questions}, looked.answers
    rows = zip(answers.question_id, answers.text, answers.final, strict=True)
    return [asking.reply(of[i], text) for i, text, final in rows if final]


def find_classifier(run: Run, *, model: str, **others: Any) -> Model:
    """The sequence classifier of a config word: a local directory or a hub id.

    Raises:
        ValueError: it is not there, or cannot be read as one.
    """
    folder = hub.local_folder(model)
    hf_io.check_classifier(folder)
    name = model.rstrip("/").rpartition("/")[2]
    return Model(name, folder, run.store.content_key(folder), hub_id="" if folder == model else model)


PROVIDERS: Mapping[str, Callable[..., list[Stored]]] = {
    "p_true": p_true,
    "verbalised": verbalised,
    "sample_share": sample_share,
    "paraphrase_share": paraphrase_share,
    "committee_share": committee_share,
    "reward": reward,
    "likelihood": likelihood,
}
"""Name of the evidence -> what computes it."""

MODELS: Mapping[str, Callable[..., Any]] = {
    "committee_share": committee,
    "reward": find_classifier,
    "likelihood": lambda run, *, model, **others: find_model(run, model),
}
"""Name of the evidence -> what finds the models that it takes."""
