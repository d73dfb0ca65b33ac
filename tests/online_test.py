"""Teaching on what the student writes: rounds that can be killed, moved and split, and that learn what they say they learn.

Run as a script (with eight simulated devices) it prints what the tests of meshes compare.
"""

import dataclasses
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny, toy
from w2s_jax import pipeline, teaching
from w2s_jax.models import decoder, hf_io, sharding
from w2s_jax.models.compute import Compute
from w2s_jax.packing import Shape
from w2s_jax.run import Run, find_model
from w2s_jax.store import Store
from w2s_jax.student import grpo, online, rewards, sft, trainer
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import LM, Answers, Lesson, Question

ROOT = pathlib.Path(__file__).parents[1]
SHAPE = Shape(row_length=16, batch_rows=8, max_segments=4)
ADAMW = trainer.Optimizer(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1.0)
FULL = trainer.Training(
    epochs=1.0, accumulation=1, lr=3e-3, schedule="constant", warmup_frac=0.0, optimizer=ADAMW, lora_rank=0, lora_alpha=8.0,
    lora_targets=("q", "k", "v", "o", "gate", "up", "down"), checkpoint_every=2,
)  # fmt: skip
LORA = dataclasses.replace(FULL, lora_rank=4)
BOTH = pytest.mark.parametrize("training", [FULL, LORA], ids=["full", "lora"])
make = functools.partial(grpo.make, group_size=4, questions=6, max_new_tokens=3)


# ---- Rewards of a user's own, named by their dotted paths ---------------------------------------------------------------


def first_letters(*, texts, **about):
    """How early in the alphabet an answer's words are: hardly ever equal within a group."""
    return [-np.mean([tiny.WORDS.index(word) for word in text.split()] or [20]) for text in texts]


def only_some(*, texts, questions, **about):
    """As `first_letters`, but whatever is said to a question with an even number is worth the same."""
    found = first_letters(texts=texts)
    return [1.0 if int(q.id[1:]) % 2 == 0 else x for q, x in zip(questions, found, strict=True)]


def nothing(*, texts, **about):
    return np.zeros(len(texts))


def not_a_number(*, texts, **about):
    return [float("nan")] * len(texts)


def one_too_few(*, texts, **about):
    return [0.0] * (len(texts) - 1)


def own(name, **settings):
    return make(rewards=(f"tests.online_test.{name}",), **settings)


# ---- A student of milliseconds ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm():
    return tiny.lm()


def lesson(n=24, weight=None, final="a", words=3):
    rng = np.random.default_rng(0)
    questions = tuple(Question(f"q{i}", "t", " ".join(rng.choice(list(tiny.WORDS), words))) for i in range(n))
    finals = (final,) * n
    weight = np.ones(n, np.float32) if weight is None else np.asarray(weight, np.float32)
    return Lesson(questions, Answers(tuple(q.id for q in questions), finals, finals), weight)


def first_word(text):
    return next(iter(text.split()), "")


def dialogue(lm, compute, **changes):
    asking = Asking(lm.tokenizer, "direct", False, 64)
    settings = {"stop_texts": (), "num_slots": 8, "row_length": 16, "compute": compute} | changes
    return online.Dialogue(asking, first_word, rewards.equal, **settings)


def taught(lm, folder, objective, training=FULL, given=None, shape=SHAPE, log=lambda step, metrics: None, compute=None, **how):
    compute = compute or tiny.compute()
    return online.teach(
        lm, given or lesson(), objective, dialogue(lm, compute, **how), training=training, shape=shape, compute=compute,
        key=jax.random.key(0), partial=pathlib.Path(folder), log=log,
    )  # fmt: skip


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(leaves(one.lm.params), leaves(other.lm.params), strict=True))


def gap(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(np.asarray(b)).max(), 1e-30))


@pytest.fixture
def steps(monkeypatch):
    """What each optimizer step was given: (what is learnt before it, its micro-batches), copied to the host."""
    seen, step = [], trainer.train_step

    def recorded(state, frozen, batches, lr, **static):
        seen.append(jax.tree.map(np.array, (state.learnt, batches)))
        return step(state, frozen, batches, lr, **static)

    monkeypatch.setattr(trainer, "train_step", recorded)
    return seen


def lasting(metrics):
    """What the writer keeps."""
    return {name: value for name, value in metrics.items() if not name.startswith("speed/")}


# ---- Killed and resumed -------------------------------------------------------------------------------------------------


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "training, inner_steps",
    [
        pytest.param(FULL, 1, id="full-1"),
        pytest.param(LORA, 2, id="lora-2"),
        pytest.param(FULL, 2, id="full-2", marks=SLOW),
        pytest.param(LORA, 1, id="lora-1", marks=SLOW),
    ],
)
def test_a_killed_training_goes_on_at_its_last_round_and_ends_with_the_same_bits(lm, tmp_path, training, inner_steps):
    objective = own("first_letters", inner_steps=inner_steps, beta=0.1)
    training = dataclasses.replace(training, epochs=1.5, checkpoint_every=3)  # 6 rounds; with two steps each saved at 4, 8
    told = {}
    whole = taught(lm, tmp_path / "whole", objective, training, log=lambda step, metrics: told.update({step: lasting(metrics)}))
    assert len(told) == 6 * inner_steps
    for kill in (2, 4):
        folder, found = tmp_path / f"killed {kill}", {}

        def log(step, metrics, kill=kill, found=found):
            found[step] = lasting(metrics)
            if step == kill:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            taught(lm, folder, objective, training, log=log)
        first = []

        def log_again(step, metrics, found=found, first=first):
            first.append(step)
            found[step] = lasting(metrics)

        resumed = taught(lm, folder, objective, training, log=log_again)
        every = 3 if inner_steps == 1 else 4
        # What a step measured is fetched one step late, so a state may have been saved behind the one that was logged last.
        assert first[0] in (kill // every * every, (kill + 1) // every * every) and first[0] % inner_steps == 0
        assert same(whole, resumed) and found == told
        assert online.completions(folder) == online.completions(tmp_path / "whole") != []


def test_a_training_killed_while_it_writes_goes_on(lm, tmp_path, monkeypatch):
    objective, calls, write = own("first_letters"), [], online._write
    whole = taught(lm, tmp_path / "whole", objective)

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(online, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        taught(lm, tmp_path / "killed", objective)
    steps = []
    assert same(whole, taught(lm, tmp_path / "killed", objective, log=lambda step, metrics: steps.append(step)))
    assert steps == [2, 3]


def start(workdir, cache):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    flags = ("--config=tests/toy.py:objective=grpo", "--config.methods=('naive','ntf')", f"--workdir={workdir}")
    command = [sys.executable, "-m", "experiments.main", *flags]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_run_killed_without_warning_while_it_teaches_ends_with_the_same_bits(tmp_path):
    whole = start(tmp_path / "whole", tmp_path / "cache")
    assert whole.wait() == 0, whole.stderr.read()
    kills, written = 0, 0
    for wanted in (3, 5, 6, 9, 11):  # steps of which something is to be written before the kill comes
        process, lines = start(tmp_path / "killed", tmp_path / "cache"), tmp_path / "killed" / "metrics.jsonl"
        while process.poll() is None:
            written = sum('"teach' in line for line in lines.read_text().splitlines()) if lines.exists() else 0
            if written >= wanted:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        kills += process.wait() != 0
    process = start(tmp_path / "killed", tmp_path / "cache")
    assert process.wait() == 0, process.stderr.read()
    assert kills >= 3
    for name in ("report/recovery.json", "metrics.jsonl", "student/ntf/model.safetensors", "student/naive/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


# ---- What a round does --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [FULL, pytest.param(LORA, marks=SLOW)], ids=["full", "lora"])
def test_the_student_learns_what_is_rewarded_and_the_start_is_left_alone(lm, tmp_path, training):
    before, told = leaves(lm.params), []
    objective = make(max_new_tokens=1, group_size=8, questions=8)
    training = dataclasses.replace(training, epochs=10.0, lr=2e-2)
    taught(lm, tmp_path, objective, training, log=lambda step, metrics: told.append(metrics))
    assert told[0]["reward"] < 0.3 and np.mean([metrics["reward"] for metrics in told[-3:]]) > 0.9
    assert told[0]["reward"] == told[0]["reward/agreement"] and told[-1]["zero_variance_frac"] > told[0]["zero_variance_frac"]
    assert all(np.array_equal(a, b) for a, b in zip(before, leaves(lm.params), strict=True))


@BOTH
def test_old_and_reference_log_probabilities_are_those_of_the_round_and_of_the_start(lm, tmp_path, training, steps):
    objective = own("first_letters", inner_steps=2, beta=0.1, temperature=0.7)
    taught(lm, tmp_path, objective, dataclasses.replace(training, lr=3e-2))
    assert len(steps) == 8
    starts = [learnt["model"] for learnt, _ in steps]
    for step, (_, batches) in enumerate(steps):
        real = batches.weight != 0
        for name, learnt in (("logp_old", starts[step // 2 * 2]), ("logp_ref", starts[0])):
            wanted = by_hand(lm, learnt, batches, 0.7, training)
            assert np.abs(batches.extra[name] - wanted)[real].max() < 1e-4, (step, name)
        moved = np.abs(batches.extra["logp_old"] - batches.extra["logp_ref"])[real].max()
        assert (moved < 1e-5) == (step < 2) and (moved > 0.01) == (step >= 2)
    assert np.array_equal(steps[2][1].token, steps[3][1].token), "two steps on the same answers"
    assert not np.array_equal(steps[1][1].token, steps[2][1].token)


@functools.partial(jax.jit, static_argnames=("model", "temperature"))
def all_logp(variables, head, token, segment, position, *, model, temperature):
    logp = jax.nn.log_softmax(model.apply(variables, token, segment, position).hidden @ head.T / temperature)
    return jnp.pad(jnp.take_along_axis(logp[:, :-1], token[:, 1:, None], axis=-1)[..., 0], ((0, 0), (1, 0)))


def by_hand(lm, learnt, batches, temperature, training):
    """f32[A, B, L]: log-probabilities of the answers' tokens, each answer alone behind its prompt, from the logits."""
    params = lm.params if training.lora_rank else learnt
    variables = {"params": params, "lora": learnt} if training.lora_rank else {"params": params}
    model = tiny.compute().model(lm.config, lora_scale=training.lora_scale)
    settings = {"model": model, "temperature": temperature}
    found = np.zeros(batches.token.shape, np.float32)
    for a, b, places in answers(batches):
        token, real = np.zeros((1, batches.token.shape[2]), np.int32), np.zeros((1, batches.token.shape[2]), np.int32)
        token[0, : len(places)], real[0, : len(places)] = batches.token[a, b, places], 1
        logp = all_logp(variables, params["embed"]["weight"], token, real, np.arange(token.shape[1])[None], **settings)
        found[a, b, places] = np.where(batches.weight[a, b, places] != 0, logp[0, : len(places)], 0)
    return found


@pytest.mark.parametrize("settings, each", [({}, 0), ({"inner_steps": 2, "beta": 0.1}, 2), ({"beta": 0.1}, 1)])
def test_a_pass_without_gradients_is_made_only_where_it_is_needed(lm, tmp_path, settings, each, steps, monkeypatch):
    calls, program = [], online.rescored

    def counted(*arguments, **static):
        calls.append(1)
        return program(*arguments, **static)

    monkeypatch.setattr(online, "rescored", counted)
    objective = own("first_letters", **settings)
    taught(lm, tmp_path, objective)
    rounds = [batches for _, batches in steps[:: objective.inner_steps]]
    assert len(rounds) == 4 and len(calls) == each * sum(batches.token.shape[0] for batches in rounds)
    names = {"advantage", "share", "logp_sampler"}
    names |= {"logp_ref"} if objective.beta else set()
    names |= {"logp_old"} if objective.inner_steps > 1 else set()
    assert all(set(batches.extra) == names for batches in rounds)


def test_each_completion_token_is_told_its_advantage_its_share_and_its_trust(lm, tmp_path, steps):
    weight = np.linspace(0.1, 1, 24, dtype=np.float32)
    given = lesson(weight=weight)
    taught(lm, tmp_path, own("first_letters"), given=given)
    of_prompt = {tuple(lm.tokenizer.encode(q.prompt, bos=True)): w for q, w in zip(given.questions, weight, strict=True)}
    seen = set()
    for _, batches in steps:
        per_question = {}
        for token, w, extra in segments(batches):
            real = w != 0
            assert not real[:3].any() and real[3:].all() and 1 <= real.sum() <= 3
            prompt = tuple(token[:3])
            seen.add(prompt)
            assert np.all(w[real] == of_prompt[prompt]), "a question counts as much as its label is trusted"
            assert np.allclose(extra["share"][real], 1 / real.sum()) and np.ptp(extra["advantage"][real]) == 0
            assert np.all(extra["logp_sampler"][real] < 0) and not any(extra[name][~real].any() for name in extra)
            per_question.setdefault(prompt, []).append(float(extra["advantage"][3]))
        assert len(per_question) == 6
        assert all(len(a) == 4 and abs(sum(a)) < 1e-5 and max(map(abs, a)) > 0 for a in per_question.values())
    assert len(seen) == 24, "an epoch asks every question once"


def segments(batches):
    for a, b, places in answers(batches):
        extra = {name: value[a, b, places] for name, value in batches.extra.items()}
        yield batches.token[a, b, places], batches.weight[a, b, places], extra


def answers(batches):
    """Micro-batch, row and places of each answer, those of its prompt before its own."""
    for a, b in np.ndindex(batches.token.shape[:2]):
        segment, prefix = batches.segment[a, b], batches.prefix[a, b]
        for s in np.unique(segment[prefix > 0]):
            yield a, b, np.flatnonzero((segment == s) | (segment == prefix[segment == s][0]))


def test_a_question_without_trust_is_never_asked(lm, tmp_path, steps):
    weight = np.array([1.0, 0.0] * 12, np.float32)
    given = lesson(weight=weight)
    taught(lm, tmp_path, own("only_some", zero_variance="resample"), dataclasses.replace(FULL, epochs=2.0), given=given)
    trusted = {tuple(lm.tokenizer.encode(q.prompt, bos=True)) for q in given.questions[::2]}
    asked = {tuple(token[:3]) for _, batches in steps for token, _, _ in segments(batches)}
    assert asked == trusted and len(steps) == 4, "12 questions, 6 a round, twice"


@pytest.mark.slow
def test_a_student_on_a_packed_base_writes_what_it_is_trained_on(lm, tmp_path):
    pytest.importorskip("qwix")
    hf_io.save(lm, tmp_path / "base")
    packed = hf_io.load(tmp_path / "base", quantise="int8", dtype=np.float32, mesh=tiny.compute().mesh)
    told = []
    objective = own("first_letters", beta=0.1, inner_steps=2)
    student = taught(packed, tmp_path / "run", objective, LORA, log=lambda step, metrics: told.append(metrics))
    assert max(metrics["sampler_gap_max"] for metrics in told) < 1e-4 and len(told) > 3
    assert student.adapters is not None


@BOTH
def test_prompts_shared_by_their_answers_teach_what_repeated_ones_teach(lm, tmp_path, training, steps, monkeypatch):
    objective = own("first_letters", inner_steps=2, beta=0.1)
    students, rounds = [], []
    for shared in (True, False):
        monkeypatch.setattr(online, "SEES_PREFIXES", {"xla"} if shared else set())
        students.append(taught(lm, tmp_path / str(shared), objective, training).lm)
        rounds.append([batches for _, batches in steps])
        steps.clear()
    together, apart = rounds
    assert all(batches.prefix is None for batches in apart)
    for one, other in zip(together, apart, strict=True):
        assert (one.weight != 0).sum() == (other.weight != 0).sum()
        assert (one.segment > 0).sum() < (other.segment > 0).sum(), "a prompt of 3 tokens, once for several answers"
    assert max(map(gap, *map(leaves, (student.params for student in students)))) < 1e-4


def test_a_group_too_long_for_a_row_is_cut_between_answers():
    completion = [np.zeros(n, np.int32) for n in (3, 3, 4, 1)]
    group = online.Group(0, np.zeros(5, np.int32), completion, [], (), (), np.zeros(4), np.zeros(4, bool))
    for row_length, bundles in {
        19: [[0, 1, 2, 3]],
        18: [[0, 1, 2], [3]],
        12: [[0, 1], [2, 3]],
        9: [[0], [1], [2], [3]],
    }.items():
        assert list(online._bundles(group, row_length)) == bundles
        assert max(4 + sum(1 + len(completion[s]) for s in some) for some in bundles) <= row_length


def test_a_shape_that_cuts_groups_is_warned_of_with_one_that_does_not():
    objective = types.SimpleNamespace(group_size=4, max_new_tokens=3)
    asked = [types.SimpleNamespace(prompt=[0] * n) for n in (2, 5)]
    group = online.Group(0, np.zeros(5, np.int32), [np.zeros(3, np.int32)] * 4, [], (), (), np.zeros(4), np.zeros(4, bool))
    for row_length, whole in ((20, True), (19, False)):
        assert (len(list(online._bundles(group, row_length))) == 1) == whole
        said = online.cut_groups(asked, objective, Shape(row_length, 1, 8))
        assert said == "" if whole else "row_length=19 cuts groups" in said and said.endswith("are whole in rows of 20")


def test_a_training_says_once_that_its_rows_cut_groups(lm, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(online.logging, "warning", lambda text, *words: said.append(text % words))
    monkeypatch.setattr(trainer, "optimise", lambda *args, **settings: None)  # what is said is said before the first step
    for shape in (dataclasses.replace(SHAPE, row_length=128), SHAPE):
        taught(lm, tmp_path, own("first_letters"), shape=shape)
    assert len(said) == 1 and "row_length=16 cuts groups" in said[0]


# ---- Groups that say nothing --------------------------------------------------------------------------------------------


def first_round(lm, tmp_path, steps, **settings):
    """The first micro-batches, and what was measured with them."""
    told = []
    one = dataclasses.replace(FULL, epochs=0.25, optimizer=dataclasses.replace(ADAMW, clip_norm=0.0))
    student = taught(lm, tmp_path, own("only_some", **settings), one, log=lambda step, metrics: told.append(metrics))
    assert len(told) == 1
    return steps[-1][1], told[0], student


def is_dull(lm, token):
    prompts = {tuple(lm.tokenizer.encode(q.prompt, bos=True)): int(q.id[1:]) % 2 == 0 for q in lesson().questions}
    return prompts[tuple(token[:3])]


def test_a_group_that_says_nothing_is_kept_masked_or_replaced(lm, tmp_path, steps):
    kept, told, _ = first_round(lm, tmp_path / "keep", steps, zero_variance="keep")
    masked, told_masked, _ = first_round(lm, tmp_path / "mask", steps, zero_variance="mask")
    replaced, told_replaced, _ = first_round(lm, tmp_path / "resample", steps, zero_variance="resample")
    dull = [is_dull(lm, token) for token, _, _ in segments(kept)]
    assert 0 < sum(dull) < len(dull) == 24
    share = sum(dull) / len(dull)
    assert told["zero_variance_frac"] == told_masked["zero_variance_frac"] == pytest.approx(share)
    for batches, weight in ((kept, 1.0), (masked, 0.0)):
        for token, w, extra in segments(batches):
            assert not is_dull(lm, token) or (np.all(w[3:] == weight) and not extra["advantage"].any())
            assert is_dull(lm, token) or (np.all(w[3:] == 1) and extra["advantage"][3:].any())
    # A kept group has no gradient but counts in the denominator; a masked one is as if it were not there.
    assert told["grad_norm"] == pytest.approx((1 - share) * told_masked["grad_norm"], rel=1e-4)
    assert told_replaced["zero_variance_frac"] == 0 and not any(is_dull(lm, token) for token, _, _ in segments(replaced))
    counts = {}
    for token, _, _ in segments(replaced):
        counts[tuple(token[:3])] = counts.get(tuple(token[:3]), 0) + 1
    assert set(counts.values()) == {4} and len(counts) == 6, "six questions, none of them twice"
    lively = {tuple(token[:3]) for token, _, _ in segments(kept) if not is_dull(lm, token)}
    assert lively < set(counts), "those that said something stay"


def test_what_is_told_of_the_rewards_parts_is_of_all_answers_that_were_written():
    def write(chosen):
        rewards = np.array([[1.0, 1.0] if k < 2 else [0.0, 1.0] for k in chosen])
        empty = np.zeros(0, np.int32)
        groups = [online.Group(k, empty, [], [], (), (), reward, np.zeros(2, bool)) for k, reward in zip(chosen, rewards)]
        return groups, {"part": float(rewards.mean())}

    objective = own("nothing", zero_variance="resample")
    groups, written, means = online._groups(write, np.array([0, 1, 5]), np.array([6, 7, 8]), objective)
    assert [group.row for group in groups] == [6, 7, 5] and [group.row for group in written] == [0, 1, 5, 6, 7]
    assert means == {"part": pytest.approx((2 * 1.0 + 3 * 0.5) / 5)}


def test_an_answer_is_cut_unless_a_stop_token_or_a_stop_text_ends_it():
    tokenizer = types.SimpleNamespace(stop_ids=(9,))
    dialogue = types.SimpleNamespace(asking=types.SimpleNamespace(tokenizer=tokenizer), stop_texts=("Question:",))
    answers = {(1, 2, 9): "so 4", (1, 2, 3): "so 4", (1, 2, 4): "4 Question:", (1, 3): "so"}
    cut = [online.is_cut(np.array(tokens), text, 3, dialogue) for tokens, text in answers.items()]
    assert cut == [False, True, False, False]


@pytest.mark.parametrize("zero_variance", ["keep", "mask", "resample"])
def test_rewards_that_are_all_equal_teach_nothing(lm, tmp_path, zero_variance):
    told = []
    objective = own("nothing", zero_variance=zero_variance)
    student = taught(lm, tmp_path, objective, log=lambda step, metrics: told.append(metrics))
    assert all(np.array_equal(a, b) for a, b in zip(leaves(lm.params), leaves(student.lm.params), strict=True))
    assert all(metrics["grad_norm"] == 0 and metrics["zero_variance_frac"] == 1 for metrics in told) and len(told) == 4


def test_where_no_other_question_is_left_the_group_is_masked(lm, tmp_path, steps):
    given = lesson(n=6)
    taught(lm, tmp_path, own("only_some", zero_variance="resample"), given=given)
    weights = {is_dull(lm, token): w[3:].max() for token, w, _ in segments(steps[0][1])}
    assert weights == {True: 0.0, False: 1.0}


# ---- Beside supervised learning -----------------------------------------------------------------------------------------


@BOTH
def test_with_every_advantage_1_a_step_is_that_of_weighted_fine_tuning_on_the_same_completions(lm, tmp_path, training, steps):
    base = own("first_letters", loss="dapo")
    objective = dataclasses.replace(base, advantage=lambda found: np.ones_like(found, np.float32))
    given = lesson(weight=np.linspace(0.1, 1, 24))
    training = dataclasses.replace(training, epochs=0.25, optimizer=dataclasses.replace(ADAMW, eps=1e-2, clip_norm=0.0))
    student = taught(lm, tmp_path, objective, training, given)
    ((learnt, batches),) = steps
    optimizer = training.optimizer
    state = trainer.TrainState(learnt, trainer.moments(learnt, optimizer=optimizer, mesh=None))
    static = trainer.statics(tiny.compute(), lm.config, sft.make(), training)
    frozen = lm.params if training.lora_rank else {}
    start = jax.tree.map(np.array, learnt)
    state, _ = trainer.train_step(state, frozen, batches, np.float32(training.lr), **static)
    found = student.adapters.tree if training.lora_rank else student.lm.params
    for before, a, b in zip(leaves(start["model"]), leaves(found), leaves(state.learnt["model"]), strict=True):
        assert np.abs(a - b).max() <= 1e-4 * max(np.abs(b - before).max(), 1e-9)
    assert max(np.abs(a - b).max() for a, b in zip(leaves(start["model"]), leaves(found), strict=True)) > 1e-4


# ---- The sampler and the trainer ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("dtype, most", [("float32", 1e-4), pytest.param("bfloat16", 0.5, marks=SLOW)])
def test_sampler_and_trainer_agree_on_what_was_written(lm, tmp_path, training, dtype, most):
    told, compute = [], Compute(tiny.compute().mesh, dtype)
    training = dataclasses.replace(training, epochs=2.0, lr=1e-2)
    taught(lm, tmp_path, own("first_letters"), training, log=lambda step, metrics: told.append(metrics), compute=compute)
    gaps = [metrics["sampler_gap_max"] for metrics in told]
    print(dtype, max(gaps), max(metrics["sampler_gap"] for metrics in told))
    assert len(told) == 8 and 0 < max(gaps) < most
    assert all(0 < metrics["sampler_gap"] <= metrics["sampler_gap_max"] for metrics in told)
    assert dtype == "float32" or min(gaps) > 1e-4, "the looser bound is needed"


# ---- What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, said",
    [
        (
            {"training": dataclasses.replace(FULL, accumulation=2)},
            r"training\.accumulation=2: allowed is 1 with this objective",
        ),
        ({"given": lesson(n=0)}, "the lesson is empty: no weak label was selected; change the select section"),
        ({"given": lesson(weight=np.zeros(24))}, "the lesson is empty"),
        (
            {"given": lesson(words=14)},
            r"question 'q0' has 14 tokens, allowed are 12 beside max_new_tokens=3 in rows of 16: raise student\.shape",
        ),
        ({"row_length": 4}, r"max_new_tokens=3 leaves no room for a prompt"),
        ({"objective": own("not_a_number")}, r"reward tests\.online_test\.not_a_number returned nan for row 0"),
        (
            {"objective": own("one_too_few")},
            r"reward tests\.online_test\.one_too_few returned an array of shape \(23,\): allowed",
        ),
    ],
)
def test_what_cannot_be_taught_is_refused_in_words(lm, tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        taught(lm, tmp_path, change.pop("objective", own("first_letters")), **change)
    assert not (tmp_path / "checkpoints").exists()


# ---- The path -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_target_without_gold_is_taught_and_leaves_what_was_written(tmp_path):
    config = toy.get_config("objective=grpo,target_gold=none")
    config.methods = ("naive",)
    run = Run(config, 0, Store(tmp_path / "store", workdir=tmp_path), lambda *metrics: None)
    trial = pipeline.link(run, *(find_model(run, word) for word in (config.teacher.model, config.student.model))).trial
    assert trial.objective == "grpo" and set(trial.trained) == {"naive"}
    labels = json.loads((tmp_path / "runs.json").read_text())
    kept = json.loads((tmp_path / "store" / labels["teach naive"] / teaching.COMPLETIONS).read_text())
    assert [one["round"] for one in kept] == sorted({one["round"] for one in kept}) and kept[0]["round"] == 0
    assert all(one["wanted"] in toy.DIGITS and len(one["answers"]) == 4 for one in kept)
    assert all(answer["reward"] == float(answer["final"] == one["wanted"]) for one in kept for answer in one["answers"])


# ---- Meshes and micro-batches -------------------------------------------------------------------------------------------

MESHES = {"1x1x1": (1, 1, 1), "2x1x1": (2, 1, 1), "1x8x1": (1, 8, 1), "2x2x2": (2, 2, 2)}
ROWS = {1: 16, 2: 8, 4: 4}  # micro-batches of a round -> rows of one


def on_mesh(sizes, folder, training, batch_rows=16, max_segments=1):
    """The student, what it wrote, and the loss and gradient norm of each step."""
    config = dataclasses.replace(tiny.CONFIG, num_heads=4, num_kv_heads=2)
    compute = Compute(sharding.make_mesh(*sizes))
    params = compute.place_params(jax.device_put(decoder.init(config, jax.random.key(3))))
    lm, written, told, counts, write = LM(config, params, tiny.lm().tokenizer), [], [], [], online._write
    step = trainer.train_step

    def recorded(*arguments):
        groups, means = write(*arguments)
        written.extend([int(t) for t in c] for group in groups for c in group.completion)
        return groups, means

    def counted(state, frozen, batches, lr, **static):
        counts.append(batches.token.shape[0])
        return step(state, frozen, batches, lr, **static)

    online._write, trainer.train_step = recorded, counted
    try:
        objective = own("first_letters", questions=8, inner_steps=2, beta=0.1)
        shape = Shape(row_length=16, batch_rows=batch_rows, max_segments=max_segments)
        student = taught(
            lm, folder, objective, training, lesson(n=64), shape, compute=compute,
            log=lambda step, metrics: told.append((metrics["loss"], metrics["grad_norm"], metrics["sampler_gap_max"])),
        )  # fmt: skip
    finally:
        online._write, trainer.train_step = write, step
    return {"params": leaves(student.lm.params), "written": written, "told": told, "counts": counts}


def compared(one, other):
    """Largest gaps: of the parameters, of the first gradient norm, of the loss at any step relative to the largest."""
    losses = [[loss for loss, *_ in found["told"]] for found in (one, other)]
    return {
        "params": max(map(gap, one["params"], other["params"])),
        "gradient": abs(one["told"][0][1] / other["told"][0][1] - 1),
        "loss": gap(*losses),
        "written": one["written"] == other["written"],
        "steps": len(one["told"]),
        "counts": sorted(set(one["counts"])),
        "sampler": max(found[2] for found in one["told"]),
    }


def main(folder):
    assert jax.device_count() == 8
    found = {}
    for lora_rank in (0, 4):
        training = dataclasses.replace(FULL, epochs=1.25, lr=1e-3, lora_rank=lora_rank)  # 10 rounds of 2 steps
        made = {name: on_mesh(sizes, folder / f"{lora_rank}-{name}", training) for name, sizes in MESHES.items()}
        for name in MESHES:
            found[f"lora {lora_rank} mesh {name}"] = compared(made[name], made["1x1x1"])
        for count, batch_rows in ROWS.items():
            other = on_mesh((2, 1, 1), folder / f"{lora_rank}-parts{count}", training, batch_rows)
            found[f"lora {lora_rank} parts {count}"] = compared(other, made["1x1x1"])
    print(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.online_test", str(tmp_path_factory.mktemp("meshes"))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("where", [*(f"mesh {name}" for name in MESHES), *(f"parts {count}" for count in ROWS)])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_neither_mesh_nor_micro_batches_change_what_is_written_or_learnt(found, where, lora_rank):
    one = found[f"lora {lora_rank} {where}"]
    assert one["steps"] == 20 and one["written"], one
    assert one["gradient"] <= 1e-5 and one["loss"] <= 1e-4 and one["params"] <= 1e-4 and one["sampler"] < 1e-4, one
    if where.startswith("parts"):
        assert max(one["counts"]) == int(where.split()[1]), one


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
