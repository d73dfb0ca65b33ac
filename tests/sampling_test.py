"""Answers do not depend on how rows were packed, and equal what the model itself says of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from w2s_jax import features, sampling
from w2s_jax.models import decoder
from w2s_jax.packing import Shape
from w2s_jax.tasks.asking import Asked, Asking
from w2s_jax.types import Question, Ragged, Rollout

WIDE, NARROW = Shape(64, 2, 8), Shape(16, 3, 2)


@pytest.fixture(scope="module")
def lm():
    return tiny.lm()


def questions(n=14, options=("a", "b", "c d"), single=True):
    rng = np.random.default_rng(0)
    options = tuple(o for o in options if not single or " " not in o)
    return [Question(f"q{i}", "t", " ".join(rng.choice(list(tiny.WORDS), rng.integers(1, 9))), options) for i in range(n)]


@jax.jit
def _pass(params, token, segment):
    model = tiny.compute().model(tiny.CONFIG)
    hidden = model.apply({"params": params}, token, segment, jnp.arange(token.shape[1])[None]).hidden
    return hidden, jax.nn.log_softmax(decoder.logits(model, params, hidden))


def full_pass(lm, tokens):
    """(hidden states, log-probabilities of the next token) of one sequence, in a device row of its own."""
    token, segment = np.zeros((2, 1, 48), np.int32)
    token[0, : len(tokens)], segment[0, : len(tokens)] = tokens, 1
    hidden, logp = _pass(lm.params, token, segment)
    return np.asarray(hidden)[0, : len(tokens)], np.asarray(logp)[0, : len(tokens)]


def alone(lm, prompt, candidate):
    """Log-probability of a continuation."""
    _, logp = full_pass(lm, [*prompt, *candidate])
    return float(sum(logp[len(prompt) + i - 1, t] for i, t in enumerate(candidate)))


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("normalise", ["none", "token", "byte"])
def test_option_logp_is_the_models_own_whatever_the_packing(lm, single, normalise):
    asked = [Asking(lm.tokenizer, "direct", False, 64).ask(q) for q in questions(single=single)]
    found = [sampling.choose(lm, asked, normalise=normalise, shape=shape, compute=tiny.compute()) for shape in (WIDE, NARROW)]
    np.testing.assert_allclose(found[0].option_logp, found[1].option_logp, atol=1e-5)
    np.testing.assert_array_equal(found[0].option, found[1].option)
    for a, row in zip(asked, found[0].option_logp, strict=True):
        per = {"none": [1] * len(a.candidates), "token": [len(c) for c in a.candidates], "byte": a.num_bytes}[normalise]
        if single:
            per = [1] * len(a.candidates)
        scores = np.array([alone(lm, a.prompt, c) / n for c, n in zip(a.candidates, per, strict=True)])
        np.testing.assert_allclose(row, scores - np.logaddexp.reduce(scores), atol=2e-5)


def test_the_rollout_holds_the_chosen_option_and_its_logp(lm):
    asked = [Asking(lm.tokenizer, "direct", False, 64).ask(q) for q in questions(single=False)]
    found = sampling.choose(lm, asked, normalise="token", shape=WIDE, compute=tiny.compute())
    for n, a in enumerate(asked):
        assert found.rollout.completion[n].tolist() == a.candidates[found.option[n]]
        assert found.rollout.logp[n].sum() == pytest.approx(found.option_logp[n].max(), abs=1e-5)


def test_questions_with_fewer_options_never_choose_what_they_do_not_have(lm):
    asked = [Asked("q0", [3, 4], [[5], [6]], [1, 1]), Asked("q1", [3], [[5], [6], [7], [8], [9]], [1] * 5)]
    found = sampling.choose(lm, asked, normalise="none", shape=WIDE, compute=tiny.compute())
    assert found.option_logp.shape == (2, 5) and np.isneginf(found.option_logp[0, 2:]).all()
    np.testing.assert_allclose(np.exp(found.option_logp).sum(1), 1, rtol=1e-5)


def test_an_unknown_normalisation_is_refused(lm):
    with pytest.raises(ValueError, match="normalise='char': allowed are none, token, byte"):
        sampling.choose(lm, [Asked("q0", [3], [[5], [6]], [1, 1])], normalise="char", shape=WIDE, compute=tiny.compute())


def test_a_question_that_does_not_fit_with_its_longest_candidate_is_named(lm):
    def choose(longest):
        asked = [Asked("q0", [3], [[5], [6]], [1, 1]), Asked("q1", [3] * 12, [[5], [6] * longest], [1, longest])]
        return sampling.choose(lm, asked, normalise="none", shape=NARROW, compute=tiny.compute())

    assert len(choose(4).option) == 2
    with pytest.raises(ValueError, match="question 'q1' has 17 tokens, allowed are 16: raise shape.row_length"):
        choose(5)


def test_scores_that_are_no_numbers_name_the_question(lm):
    weight = lm.params["embed"]["weight"].at[9].set(jnp.nan)
    broken = dataclasses.replace(lm, params=lm.params | {"embed": {"weight": weight}})
    asked = [Asked("q0", [3, 4], [[5], [6]], [1, 1]), Asked("q1", [3, 9], [[5], [6]], [1, 1])]
    with pytest.raises(ValueError, match="the model gives question 'q1' scores that are no numbers"):
        sampling.choose(broken, asked, normalise="none", shape=Shape(16, 2, 1), compute=tiny.compute())


def generate(lm, prompts, *, ids=None, **changes):
    settings = dict(
        num_samples=1,
        temperature=0.0,
        max_new_tokens=6,
        batch_rows=4,
        row_length=64,
        compute=tiny.compute(),
        key=jax.random.key(0),
    )
    asked = [Asked(i, prompt, [], []) for i, prompt in zip(ids or [f"q{n}" for n in range(len(prompts))], prompts, strict=True)]
    return sampling.generate(lm, asked, **settings | changes)


PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13], [2, 3], [9, 9, 9, 9], [4]]


def test_greedy_tokens_are_the_most_probable_ones_of_a_full_pass(lm):
    prompts = [*PROMPTS, [5, 6, 7] * 6]  # the last one needs more slots than the others
    found = generate(lm, prompts)
    for prompt, completion, logp in zip(prompts, found.completion, found.logp, strict=True):
        said = full_pass(lm, [*prompt, *completion])[1][len(prompt) - 1 : -1]
        np.testing.assert_array_equal(said.argmax(-1), completion)
        np.testing.assert_allclose(said.max(-1), logp, atol=1e-5)


def test_an_answer_ends_with_its_first_stop_token(lm):
    found = generate(lm, PROMPTS, temperature=3.0, max_new_tokens=30, num_samples=8)
    stop = lm.tokenizer.stop_ids[0]
    ended = [c.tolist() for c in found.completion if stop in c]
    assert ended and all(c.index(stop) == len(c) - 1 for c in ended)
    assert all(len(c) == 30 for c in found.completion if stop not in c) and len(ended) < len(found.completion)
    np.testing.assert_array_equal(found.logp.offset, found.completion.offset)


def test_any_of_several_stop_tokens_ends_an_answer(lm):
    other = dataclasses.replace(lm, tokenizer=dataclasses.replace(lm.tokenizer, stop_ids=(1, 9, 10)))
    found = [c.tolist() for c in generate(other, PROMPTS, temperature=3.0, max_new_tokens=30, num_samples=8).completion]
    assert {c[-1] for c in found if len(c) < 30} == {1, 9, 10}
    assert not any({1, 9, 10} & set(c[:-1]) for c in found)


def test_the_samples_of_a_question_stand_together(lm):
    found, one = generate(lm, PROMPTS, num_samples=3), generate(lm, PROMPTS)
    for r in range(3 * len(PROMPTS)):
        assert found.prompt[r].tolist() == PROMPTS[r // 3]
        np.testing.assert_array_equal(found.completion[r], one.completion[r // 3])


def test_a_sample_depends_on_key_question_and_number_alone(lm):
    one = generate(lm, PROMPTS, temperature=1.0, num_samples=3)
    other = generate(lm, PROMPTS, temperature=1.0, num_samples=3, batch_rows=7)
    for a, b in zip(one.completion, other.completion, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(one.completion[0].tolist() != one.completion[s].tolist() for s in (1, 2))
    another = generate(lm, PROMPTS, temperature=1.0, num_samples=3, key=jax.random.key(1))
    assert any(a.tolist() != b.tolist() for a, b in zip(one.completion, another.completion, strict=True))
    alone = generate(lm, PROMPTS[3:4], ids=["q3"], temperature=1.0, num_samples=3)
    renamed = generate(lm, PROMPTS[3:4], ids=["other"], temperature=1.0, num_samples=3)
    assert [c.tolist() for c in alone.completion] == [one.completion[r].tolist() for r in (9, 10, 11)]
    assert any(a.tolist() != b.tolist() for a, b in zip(alone.completion, renamed.completion, strict=True))


def test_samples_follow_the_models_tempered_distribution_token_by_token(lm):
    from scipy import stats

    def tempered(tokens):
        p = np.exp(full_pass(lm, tokens)[1][-1].astype(np.float64) / 2)
        return p / p.sum()

    def fits(drawn, p):
        counts, rare = np.bincount(drawn, minlength=len(p)), p * len(drawn) < 5
        observed, expected = np.append(counts[~rare], counts[rare].sum()), np.append(p[~rare], p[rare].sum()) * len(drawn)
        keep = expected > 0
        return stats.chisquare(observed[keep], expected[keep]).pvalue > 1e-3

    found = generate(lm, [[3, 4]], temperature=2.0, num_samples=2000, max_new_tokens=2, batch_rows=256)
    first = np.array([c[0] for c in found.completion])
    assert fits(first, tempered([3, 4]))
    np.testing.assert_allclose([logp[0] for logp in found.logp], np.log(tempered([3, 4]))[first], atol=1e-4)
    often = int(np.bincount(first).argmax())
    assert fits([c[1] for c in found.completion if c[0] == often], tempered([3, 4, often]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"row_length": 11}, "question 'q2' has 7 tokens, allowed are 4"),
        ({"max_new_tokens": 63}, "max_new_tokens=63 leaves no room for a prompt in rows of 64 tokens"),
    ],
)
def test_bad_requests_are_refused(lm, changes, message):
    with pytest.raises(ValueError, match=message):
        generate(lm, PROMPTS, **changes)


def test_a_context_shorter_than_the_row_and_a_model_without_a_stop_token_are_refused(lm):
    short = dataclasses.replace(lm, config=dataclasses.replace(lm.config, max_position=12))
    with pytest.raises(ValueError, match="question 'q2' has 7 tokens, allowed are 5"):
        generate(short, PROMPTS)
    endless = dataclasses.replace(lm, tokenizer=dataclasses.replace(lm.tokenizer, stop_ids=()))
    with pytest.raises(ValueError, match="the model names no stop token"):
        generate(endless, PROMPTS)


# features


def rollout(lm, shape=WIDE):
    asked = [Asking(lm.tokenizer, "direct", False, 64).ask(q) for q in questions(n=40, single=False)]
    return sampling.choose(lm, asked, normalise="token", shape=shape, compute=tiny.compute()).rollout


def observe(lm, rollout, folder, layers=(0, 1, -1, "prenorm"), token="content", shape=WIDE):
    (folder / "out").mkdir(parents=True, exist_ok=True)
    (folder / "partial").mkdir(exist_ok=True)
    return features.observe(
        lm,
        rollout,
        layers=layers,
        token=token,
        shape=shape,
        compute=tiny.compute(),
        out=folder / "out",
        partial=folder / "partial",
    )


def test_hidden_states_are_those_of_the_answers_last_token_whatever_the_packing(lm, tmp_path):
    found = rollout(lm)
    x, narrow = observe(lm, found, tmp_path / "a"), observe(lm, found, tmp_path / "b", shape=NARROW)
    assert x.shape == (40, 4, 16) and x.dtype == np.float32 and not x.flags.writeable
    assert abs(x - narrow).max() < 1e-5 * abs(x).max()
    for r in range(40):
        hidden, _ = full_pass(lm, [*found.prompt[r], *found.completion[r]])
        np.testing.assert_allclose(x[r, 2], hidden[-1], atol=1e-5 * abs(hidden).max())
    assert abs(x[:, 1] - x[:, 2]).max() > 0.1


def test_the_stop_token_can_be_observed_instead(lm, tmp_path):
    found = rollout(lm)
    assert abs(observe(lm, found, tmp_path / "a") - observe(lm, found, tmp_path / "b", token="eos")).max() > 0.1
    with pytest.raises(ValueError, match="observe.token='last': allowed are"):
        observe(lm, found, tmp_path / "c", token="last")
    endless = dataclasses.replace(lm, tokenizer=dataclasses.replace(lm.tokenizer, stop_ids=()))
    with pytest.raises(ValueError, match="observe.token='eos', but the model names no stop token"):
        observe(endless, found, tmp_path / "c", token="eos")


@pytest.mark.parametrize(
    ("token", "sequences"),
    [("content", [[3, 4, 5], [6, 7, 8], [9]]), ("eos", [[3, 4, 5, 2], [6, 7, 8, 1], [9, 1]])],
)
def test_the_token_to_look_at_is_the_last_before_the_stop_token_or_the_one_that_ended_the_answer(token, sequences):
    def ragged(rows, dtype=np.int32):
        return Ragged.of(rows, dtype)

    said = Rollout(ragged([[3, 4], [6], [9]]), ragged([[5, 2], [7, 8], [1]]), ragged([[0, 0], [0, 0], [0]], np.float32))
    found, probe = features._sequences(said, token, (1, 2))
    assert [row.tolist() for row in found] == sequences
    assert probe.tolist() == [len(row) - 1 for row in sequences]


def test_a_part_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def full_disk(file, array, **keywords):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        features._write_part(tmp_path / "x.00000.npy", [np.zeros(3)])
    assert not (tmp_path / "x.00000.npy").exists()


def test_a_killed_pass_continues_behind_its_last_part(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "ROWS_PER_PART", 8)
    found = rollout(lm)
    whole = np.array(observe(lm, found, tmp_path / "whole", shape=NARROW))
    write, written = features._write_part, []

    def dying(path, values):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, values)

    monkeypatch.setattr(features, "_write_part", dying)
    with pytest.raises(KeyboardInterrupt):
        observe(lm, found, tmp_path / "killed", shape=NARROW)
    resumed = []
    monkeypatch.setattr(features, "_write_part", lambda path, values: (resumed.append(path), write(path, values)))
    np.testing.assert_array_equal(observe(lm, found, tmp_path / "killed", shape=NARROW), whole)
    assert resumed and not set(resumed) & set(written)
    assert all(len(np.load(part)) <= 8 for part in (*written, *resumed))
