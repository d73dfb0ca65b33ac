"""Selective weak-to-strong: the student labels what it knows by itself, its view of the questions mends what the teacher says.

    self_known   the student's own answer where P(IK) says that it knows, else the weak label
    smoothed     weak labels smoothed over a graph of the student's embeddings
    selective    both, and trust: the own, the weak, the smoothed label or none, see `routing`

The student, before it is taught, answers source and target, and its hidden states at the last token of the questions are kept
(stages answer, observe). P(IK) (stage know) and what a smoothed label is worth (stages smooth, assure) are fitted on the
labelled source and applied to the target (stage relabel); no gold of the target is here. A label's score, which the selection
goes by, is how probable it is that the label is right, whoever gave it: P(IK), the trust score, or the confidence of the
smoothed label. With `student.soft_labels` labels are soft: the teacher's probabilities, the smoothed ones, and of an own answer
that answer alone, as a student has nothing to learn from its own probabilities.

Source: arXiv 2511.14166. Deviations: see `knowing`, `smoothing` and `routing`; and gamma is always where the own label beats
    the weak one, though in `selective` the questions below it may get a smoothed label or none.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy.special import logit

from w2s_jax import features, knowing, plugins, routing, smoothing
from w2s_jax.looking import Labelling, Looked, answer, observe
from w2s_jax.packing import Shape
from w2s_jax.run import Model, Run
from w2s_jax.settings import compute_of, computing_of
from w2s_jax.store import Ref, Stored
from w2s_jax.tasks.asking import Asking
from w2s_jax.tasks.roles import Demonstrations, leave_out, portions
from w2s_jax.trust import hidden, regression
from w2s_jax.types import Answers, Question, Ragged, Relabelled, Rollout

VERSION = "1"
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}  # how samples say what the model itself would
NODES = ("question", "option")
KNOWING, SMOOTHING = ("num_samples", "l2", "shares"), ("nodes", "neighbours", "sigma", "alpha")


# ---- The relabellers -------------------------------------------------------------------------------------------------


def self_known(
    run: Run,
    seen: Labelling,
    scores: Stored,
    *,
    teacher: Model,
    student: Model,
    shown: Demonstrations,
    grade: Ref,
    layers: Sequence[int | str],
    **knowing_how,
) -> Stored:
    """The student's own answer where P(IK) is at least gamma, else the weak label; `knowing_how`: see `know`."""
    source, target = ask_student(run, seen, student, shown, layers)
    known = know(run, seen, source, student, grade, **knowing_how)

    def fn(work, *, soft: bool, **inputs):
        own, weak = own_labels(target, seen.unlabelled, known), weak_labels(seen.unlabelled, scores)
        routes = routing.route(
            own.sure,
            weak.sure,
            np.zeros(len(weak.sure)),
            gamma=known.value["gamma"],
            trust_threshold=0.0,
            smoothed_threshold=1.0,
            own=own.there,
            weak=weak.there,
        )
        return mix(routes, {"self": own, "weak": weak}, of_knowing(own, known), soft=soft)

    return relabel(run, "self_known", fn, seen, scores=scores, known=known, own=target.answered, observed=target.observed)


def smoothed(
    run: Run,
    seen: Labelling,
    scores: Stored,
    *,
    teacher: Model,
    student: Model,
    shown: Demonstrations,
    grade: Ref,
    layers: Sequence[int | str],
    **smoothing_how,
) -> Stored:
    """All weak labels, smoothed; `smoothing_how`: see `smooth`."""
    source, target = ask_student(run, seen, student, shown, layers)
    smooth_of, sure = smooth_both(run, seen, source, target, student, grade, layers, **smoothing_how)

    def fn(work, *, soft: bool, **inputs):
        weak = weak_labels(seen.unlabelled, scores)
        mended = smoothed_labels(target.questions, seen.unlabelled, smooth_of, sure)
        routes = np.full(len(weak.sure), routing.ROUTES.index("smoothed"), np.int8)
        return mix(routes, {"weak": weak, "smoothed": mended}, of_smoothing(mended, smooth_of, sure), soft=soft)

    return relabel(run, "smoothed", fn, seen, scores=scores, smoothed=smooth_of, sure=sure)


def selective(
    run: Run,
    seen: Labelling,
    scores: Stored,
    *,
    teacher: Model,
    student: Model,
    shown: Demonstrations,
    grade: Ref,
    layers: Sequence[int | str],
    trust_threshold: float,
    smoothed_threshold: float,
    **how,
) -> Stored:
    """Own, weak, smoothed or no label, see `routing`; `how`: see `know` and `smooth`."""
    source, target = ask_student(run, seen, student, shown, layers)
    known = know(run, seen, source, student, grade, **{name: how[name] for name in KNOWING})
    smoothing_how = {name: how[name] for name in SMOOTHING}
    smooth_of, sure = smooth_both(run, seen, source, target, student, grade, layers, **smoothing_how)
    thresholds = {"trust_threshold": trust_threshold, "smoothed_threshold": smoothed_threshold}

    def fn(work, *, soft: bool, **inputs):
        own, weak = own_labels(target, seen.unlabelled, known), weak_labels(seen.unlabelled, scores)
        mended = smoothed_labels(target.questions, seen.unlabelled, smooth_of, sure)
        routes = routing.route(
            own.sure, weak.sure, mended.sure, gamma=known.value["gamma"], **thresholds, own=own.there, weak=weak.there
        )
        found = of_knowing(own, known) | of_smoothing(mended, smooth_of, sure)
        return mix(routes, {"self": own, "weak": weak, "smoothed": mended}, found, soft=soft)

    asked = {"own": target.answered, "observed": target.observed}
    return relabel(
        run, "selective", fn, seen, scores=scores, known=known, smoothed=smooth_of, sure=sure, **asked, thresholds=thresholds
    )


def check(run: Run, *, word: str, **args: Any) -> None:
    """Finds out, before anything is computed, what the relabeller `word` is asked for in vain.

    Raises:
        ValueError: a keyword is out of range, or the task cannot give what is needed.
    """
    free = run.task.interface == "free"

    def say(name: str, allowed: str) -> ValueError:
        return ValueError(f"relabel.{word}.{name}={args[name]!r}: allowed {allowed}; change it in the config")

    if not args["layers"]:
        raise say("layers", "is at least one layer; -1 is the last")
    if "num_samples" in args:
        if args["num_samples"] < 0:
            raise say("num_samples", "are 0 (options: the exact probability of a right one) and more (samples of a question)")
        if free and not args["num_samples"]:
            raise say("num_samples", "is 1 or more here: free answers have no probability that could be summed, 10 is usual")
        if not args["l2"] or not min(args["l2"]) > 0:
            raise say("l2", "are one or more numbers above 0")
        if len(args["shares"]) != len(knowing.PARTS) or not min(args["shares"]) > 0:
            raise say("shares", f"are three numbers above 0, the shares of the source to {', '.join(knowing.PARTS)} on")
    if "alpha" in args:
        if free:
            raise ValueError(
                f"relabel={word!r} smooths the probabilities of options, and free answers have "
                "none; use relabel='self_known' (the method self_known), or take the method out of methods in the config"
            )
        smoothing.refuse_alpha(args["alpha"])
        if args["nodes"] not in NODES:
            raise say("nodes", f"are {', '.join(map(repr, NODES))}")
        if args["neighbours"] < 1:
            raise say("neighbours", "is 1 or more")
        if not args["sigma"] >= 0:
            raise say("sigma", "is a distance, or 0 for the median one to a neighbour")
        if args["nodes"] == "question":
            for role in ("source", "target"):
                refuse_other_options(run.task.questions(role), role)
    routing.refuse_thresholds(**{name: args[name] for name in ("trust_threshold", "smoothed_threshold") if name in args})


def refuse_other_options(questions: Sequence[Question], role: str) -> None:
    """Makes sure that an option is the same class in all questions.

    Raises:
        ValueError: it is not.
    """
    for question in questions:
        if question.options != questions[0].options:
            raise ValueError(
                f"nodes='question' takes each option for a class that all questions share, but {questions[0].id!r} and "
                f"{question.id!r} of the {role} have other options; set nodes='option' in the relabel section of the config"
            )


# ---- What the student says and sees ----------------------------------------------------------------------------------


def ask_student(
    run: Run, seen: Labelling, student: Model, shown: Demonstrations, layers: Sequence[int | str]
) -> tuple[Looked, Looked]:
    """The student's own answers to source and target, and its hidden states at the questions.

    The source without what the student is shown, nor what the teacher is.
    """
    found = []
    for role, questions in (("source", leave_out(seen.labelled.questions, shown)), ("target", seen.unlabelled.questions)):
        answered = answer(run, student, questions, "student", shown, f"answer {role} student", once=True)
        label = f"observe {role} student"
        observed = observe(run, student, answered, "student", label, layers=tuple(layers), token="prompt")
        found.append(Looked(answered, observed, tuple(questions), shown, role))
    return found[0], found[1]


def table(stored: Stored) -> np.ndarray:
    """f64[N, F]: hidden states, layers end to end."""
    x = np.load(stored.path / "x.npy", mmap_mode="r", allow_pickle=False)
    return np.asarray(x, np.float64).reshape(len(x), -1)


def every_option(questions: Sequence[Question]) -> tuple[Answers, tuple[np.ndarray, np.ndarray]]:
    """Each option of each question as an answer, and their places (question, option)."""
    place = [(n, o) for n, q in enumerate(questions) for o in range(len(q.options))]
    texts = tuple(questions[n].options[o] for n, o in place)
    n, o = np.array(place, int).reshape(-1, 2).T
    return Answers(tuple(questions[i].id for i in n), texts, texts), (n, o)


def weak_rows(looked: Looked, questions: Sequence[Question]) -> np.ndarray:
    """i[N]: the row of each question in what a model answered once to each."""
    at = {i: r for r, i in enumerate(looked.answers.question_id)}
    return np.array([at[q.id] for q in questions], int)


# ---- P(IK) -----------------------------------------------------------------------------------------------------------


def know(
    run: Run,
    seen: Labelling,
    own: Looked,
    student: Model,
    grade: Ref,
    *,
    num_samples: int,
    l2: Sequence[float],
    shares: Sequence[float],
) -> Stored:
    """P(IK) of the student, see `knowing.fit`.

    Args:
        run: config, seed, store.
        seen: the source as the teacher labels it.
        own: the source as the student answers and sees it.
        student: the model.
        grade: of the source's gold, see `relabelling.Relabeller`.
        num_samples: K samples at temperature 1 to each question; 0 = the exact probability of right options.
        l2: penalties to choose from.
        shares: of the source, to fit, tune and judge on.
    """
    further, seed = None, None
    if num_samples and run.task.interface == "free":
        further = sample(run, student, own, num_samples)
    elif num_samples:
        seed = np.asarray(jax.random.key_data(run.key("know")))
    of: dict[str, list[bool]] = {}
    for i, right in zip(seen.labelled.answers.question_id, seen.correct, strict=True):
        of.setdefault(i, []).append(right)
    weak = np.array([np.mean(of[q.id]) for q in own.questions])

    def fn(work, *, grade: Callable[[Answers], np.ndarray], **inputs):
        if further is not None:
            ik = knowing.share(grade(further.value["answers"]), num_samples)
        else:
            probability = np.exp(own.extra["option_logp"].astype(np.float64))
            options, place = every_option(own.questions)
            right = np.zeros(probability.shape, bool)
            right[place] = grade(options)
            ik = knowing.expected(probability, right)
            if seed is not None:
                ik = knowing.drawn(probability, right, num_samples, seed)
        return knowing.fit(table(own.observed), ik, grade(own.answers), weak, inputs["part"], l2=l2)

    found = run.stage(
        "know",
        fn,
        code=("w2s_jax.knowing", *plugins.source_words("task", run.config.tasks.name)),
        label="know source",
        alone=True,
        own=own.answered,
        observed=own.observed,
        further=further,
        weak=weak,
        part=parts(run, own.questions, seen.unlabelled.questions, shares),
        num_samples=num_samples,
        l2=tuple(l2),
        seed=seed,
        grade=grade,
        **run.judged_by,
    )
    told = found.value
    run.store.log(
        f"{run.prefix}P(IK): gamma {told['gamma']:.3f}; on {told['rows']} held-back questions AUC {told['auc']:.3f}, ECE "
        f"{told['ece']:.3f} (before Platt's map {told['raw_ece']:.3f}); share right of the student's own labels "
        f"{told['own']:.3f}, of the weak ones {told['weak']:.3f}, of both mixed {told['mixed']:.3f}"
    )
    return found


def sample(run: Run, student: Model, own: Looked, num_samples: int) -> Stored:
    """The student's samples of free answers to each question of the source."""
    writing = {"num_samples": num_samples, **PLAIN}
    return answer(run, student, own.questions, "student", own.shown, "answer source student again", further=writing)


def parts(run: Run, questions: Sequence[Question], target: Sequence[Question], shares: Sequence[float]) -> np.ndarray:
    """i8[N]: what each question of the source is for, see `knowing`.

    Questions of a group (a passage) have one use, so that those judged on are as new as those of the target; where the target
    has questions of the same groups, they are not new to it either.
    """
    together = not {q.group for q in questions if q.group} & {q.group for q in target}
    split = portions(questions, tuple(shares), f"know {run.seed}", whole_groups=together)
    of = {q.id: k for k, part in enumerate(split) for q in part}
    return np.array([of[q.id] for q in questions], np.int8)


# ---- Smoothing -------------------------------------------------------------------------------------------------------


def smooth_both(
    run: Run,
    seen: Labelling,
    source: Looked,
    target: Looked,
    student: Model,
    grade: Ref,
    layers: Sequence[int | str],
    **how,
) -> tuple[Stored, Stored]:
    """The target's smoothed labels, and how sure they are, by what the source's are worth."""
    found = [
        smooth(run, weak, own, student, layers, **how) for weak, own in ((seen.labelled, source), (seen.unlabelled, target))
    ]
    return found[1], assure(run, seen, source, found[0], grade)


def smooth(
    run: Run,
    weak: Looked,
    own: Looked,
    student: Model,
    layers: Sequence[int | str],
    *,
    nodes: str,
    neighbours: int,
    sigma: float,
    alpha: float,
) -> Stored:
    """A role's weak labels smoothed over a graph of the student's embeddings.

    Args:
        run: config, seed, store.
        weak: the role as the teacher labels it.
        own: the role as the student sees it.
        student: the model.
        layers: whose hidden states are the embeddings, standardised.
        nodes: "option" = each option of each question, at the end of the prompt and the option; "question" = the questions, at
            their end, with a class for each option: for tasks whose questions all have the same ones.
        neighbours, sigma, alpha: see `smoothing`.

    Returns:
        Stored `value` f32[N, O], the smoothed probability of each question's options, and what the graph is like: `nodes`,
        `edges`, `components`, `isolated`, `sigma`, `steps`.
    """
    questions = own.questions
    embedded = own.observed if nodes == "question" else observe_options(run, own, student, layers)
    answers, (n, o) = every_option(questions)

    def fn(work, **inputs):
        probability = np.exp(weak.extra["option_logp"][weak_rows(weak, questions)].astype(np.float64))
        x = table(embedded)
        moments = hidden.moments(x)
        x = (x - moments["mean"]) / moments["scale"]
        if nodes == "question":
            y, group = probability, None
        else:
            y, group = probability[n, o][:, None], n
        graph = smoothing.graph(x, neighbours, sigma=sigma, group=group)
        f, steps = smoothing.smooth(smoothing.walk(graph.weight), y, alpha=alpha)
        value = np.zeros(probability.shape)
        if nodes == "question":
            value = f
        else:
            value[n, o] = f[:, 0]
        about = {"nodes": len(x), "edges": graph.edges, "components": graph.components, "isolated": graph.isolated}
        about |= {"sigma": graph.sigma, "steps": steps}
        return {"value": (value / value.sum(1, keepdims=True)).astype(np.float32), **about}

    found = run.stage(
        "smooth",
        fn,
        code=("w2s_jax.smoothing", "w2s_jax.trust.hidden"),
        label=f"smooth {own.role}",
        alone=True,
        answered=weak.answered,
        own=own.answered,
        embedded=embedded,
        nodes=nodes,
        neighbours=neighbours,
        sigma=sigma,
        alpha=alpha,
    )
    told = found.value
    apart = "" if told["components"] == 1 else ": labels do not pass between them"
    run.store.log(
        f"{run.prefix}graph of the {own.role}: {told['nodes']:,} points, {told['edges']:,} edges, {told['components']:,} "
        f"component(s){apart}, {told['isolated']:,} points without neighbours"
    )
    return found


def observe_options(run: Run, own: Looked, student: Model, layers: Sequence[int | str]) -> Stored:
    """The student's hidden states after each option of each question, a file `x.npy`."""
    section, asked_for = run.config.student, {"layers": tuple(layers), "token": "content"}
    asking = {"style": section.style, "chat": section.chat}

    def fn(work, **inputs):
        lm = run.load(student, section.param_dtype)
        asked = Asking(lm.tokenizer, **asking, context=lm.config.max_position, demonstrations=own.shown)
        features.observe(
            lm,
            with_options(own.questions, asked),
            **asked_for,
            shape=Shape(**section.shape),
            compute=compute_of(run.mesh, section),
            out=work.out,
            partial=work.partial,
        )

    return run.stage(
        "observe_options",
        fn,
        code=("w2s_jax.features", "w2s_jax.tasks.asking", "w2s_jax.models.peft_io"),
        label=f"observe options {own.role} student",
        student=student.ref,
        questions=own.questions,
        shown=own.shown,
        asking=asking,
        **asked_for,
        computing=computing_of(run.config, section),
        shape=section.shape.to_dict(),
    )


def with_options(questions: Sequence[Question], asking: Asking) -> Rollout:
    """Each question with each of its options behind it."""
    said = [(one.prompt, option) for one in map(asking.ask, questions) for option in one.candidates]
    prompt, completion = (Ragged.of(column, np.int32) for column in zip(*said, strict=True))
    return Rollout(prompt, completion, Ragged(np.zeros(len(completion.flat), np.float32), completion.offset))


def assure(run: Run, seen: Labelling, own: Looked, smoothed: Stored, grade: Ref) -> Stored:
    """Platt's map from the confidence of a smoothed label to how probable it is that it is right, from the source's.

    Nothing about the source's smoothed labels was fitted on its gold, so all of them count. `weak` and `smoothed` say what
    share of the source's labels is right, before and after.
    """
    rows = weak_rows(seen.labelled, own.questions)

    def fn(work, *, grade: Callable[[Answers], np.ndarray], weak: np.ndarray, **inputs):
        value = smoothed.value["value"]
        right = grade(most_probable(own.questions, value))
        fitted = regression.platt(confidence(value), right)
        return fitted | {"weak": float(weak.mean()), "smoothed": float(right.mean())}

    return run.stage(
        "assure",
        fn,
        code=("w2s_jax.trust.regression", *plugins.source_words("task", run.config.tasks.name)),
        label="assure source",
        alone=True,
        smoothed=smoothed,
        weak=np.asarray(seen.correct, bool)[rows],
        grade=grade,
        **run.judged_by,
    )


def most_probable(questions: Sequence[Question], value: np.ndarray) -> Answers:
    """The most probable option of each question as its answer; `value` f[N, O]."""
    texts = tuple(q.options[o] for q, o in zip(questions, value.argmax(1), strict=True))
    return Answers(tuple(q.id for q in questions), texts, texts)


def confidence(value: np.ndarray) -> np.ndarray:
    """f64[N]: the log-odds of the most probable option."""
    return logit(np.clip(value.max(1).astype(np.float64), 1e-6, 1 - 1e-6))


# ---- Mixing ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of one route, row for row with the weak ones.

    Attributes:
        answers: R answers.
        sure: f32[R], how probable it is that each is right.
        target: f32[R, O], the same as soft labels, or None.
    """

    answers: Answers
    sure: np.ndarray
    target: np.ndarray | None

    @property
    def there(self) -> np.ndarray:
        """bool[R], where there is an answer."""
        return np.array([final != "" for final in self.answers.final], bool)


def weak_labels(weak: Looked, scores: Stored) -> Labels:
    """The teacher's own."""
    option_logp = weak.extra.get("option_logp")
    return Labels(weak.answers, scores.value, None if option_logp is None else np.exp(option_logp))


def own_labels(own: Looked, weak: Looked, known: Stored) -> Labels:
    """The student's own, with P(IK)."""
    rows = weak_rows(own, [Question(i, "", "") for i in weak.answers.question_id])
    target = None
    if "option_logp" in own.extra:
        target = np.zeros((len(rows), own.extra["option_logp"].shape[1]), np.float32)
        said = [q.options.index(final) for q, final in zip(own.questions, own.answers.final, strict=True)]
        target[np.arange(len(rows)), np.array(said)[rows]] = 1.0
    p = knowing.probability(table(own.observed), known.value)
    return Labels(own.answers[rows], p[rows], target)


def smoothed_labels(questions: Sequence[Question], weak: Looked, smoothed: Stored, sure: Stored) -> Labels:
    """The most probable after smoothing, with what the source's were worth; rows as in the weak ones."""
    at = {q.id: n for n, q in enumerate(questions)}
    rows = np.array([at[i] for i in weak.answers.question_id], int)
    value = smoothed.value["value"]
    p = regression.probability(confidence(value), {name: sure.value[name] for name in ("slope", "shift")})
    return Labels(most_probable(questions, value)[rows], p[rows], value[rows])


def mix(routes: np.ndarray, labels: Mapping[str, Labels], found: Mapping[str, Any], *, soft: bool) -> Relabelled:
    """The labels of each row's route, also as soft ones; what is dropped has no final answer, and the weak one's words."""
    words = [routing.ROUTES[route] for route in routes]
    weak, rows = labels["weak"], range(len(routes))
    of = [labels.get(word, weak) for word in words]
    dropped = np.array([word == "drop" for word in words], bool)
    answers = Answers(
        weak.answers.question_id,
        tuple(one.answers.text[r] for r, one in zip(rows, of, strict=True)),
        tuple("" if dropped[r] else one.answers.final[r] for r, one in zip(rows, of, strict=True)),
    )
    score = np.array([one.sure[r] for r, one in zip(rows, of, strict=True)], np.float32)
    target = None
    if soft and weak.target is not None:
        target = np.stack([one.target[r] for r, one in zip(rows, of, strict=True)]).astype(np.float32)
    numbers = {f"num_{word}": count for word, count in routing.counts(routes).items()}
    return Relabelled(
        answers,
        tuple("weak" if word == "drop" else word for word in words),
        np.where(dropped, np.float32(0), score),
        target,
        found={**found, "route": routes, **numbers},
    )


def of_knowing(own: Labels, known: Stored) -> dict[str, Any]:
    """What P(IK) found, for those who look at it afterwards; `held_*` are of held-back rows of the source."""
    names = ("rows", "auc", "ece", "brier", "raw_ece", "raw_brier", "own", "weak", "mixed")
    found = {"p_ik": own.sure, "gamma": known.value["gamma"], "l2": known.value["l2"], "self": np.array(own.answers.final)}
    return found | {f"held_{name}": known.value[name] for name in names}


def of_smoothing(mended: Labels, smoothed: Stored, sure: Stored) -> dict[str, Any]:
    """What smoothing found; `source_*` are shares of right labels in the source."""
    about = {name: smoothed.value[name] for name in ("nodes", "edges", "components", "isolated", "sigma", "steps")}
    found = {"smoothed": mended.target, "smoothed_sure": mended.sure, "smoothed_label": np.array(mended.answers.final)}
    return found | about | {f"source_{name}": sure.value[name] for name in ("weak", "smoothed")}


def relabel(run: Run, word: str, fn: Callable[..., Relabelled], seen: Labelling, **inputs: Any) -> Stored:
    """The stage that all relabellers end in."""
    found = run.stage(
        "relabel",
        fn,
        code=("w2s_jax.routing", "w2s_jax.knowing", "w2s_jax.trust.regression"),
        label=f"relabel {word}",
        alone=True,
        word=word,
        soft=bool(run.config.student.soft_labels),
        answered=seen.unlabelled.answered,
        **inputs,
    )
    told = ", ".join(f"{found.value.found[f'num_{route}']:,} {route}" for route in routing.ROUTES)
    run.store.log(f"{run.prefix}labels of {word}: {told}")
    return found
