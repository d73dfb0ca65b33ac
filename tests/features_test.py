"""Hidden states do not depend on how rows were packed, and a killed pass loses nothing."""

import dataclasses

import numpy as np
import pytest

from tests import tiny
from tests.choosing_test import full_pass, questions
from w2s_jax import choosing, features
from w2s_jax.packing import Shape
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import Ragged, Rollout

WIDE, NARROW = Shape(64, 2, 8), Shape(16, 3, 2)


@pytest.fixture(scope="module")
def lm():
    return tiny.lm()


def rollout(lm, shape=WIDE):
    asked = [Asking(lm.tokenizer, "direct", False, 64).ask(q) for q in questions(n=40, single=False)]
    return choosing.choose(lm, asked, normalise="token", shape=shape, compute=tiny.compute()).rollout


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
    with pytest.raises(ValueError, match="observe.token='last': allowed are .*'prompt' \\(the last token of the question\\)"):
        observe(lm, found, tmp_path / "c", token="last")
    endless = dataclasses.replace(lm, tokenizer=dataclasses.replace(lm.tokenizer, stop_ids=()))
    with pytest.raises(ValueError, match="observe.token='eos', but the model names no stop token"):
        observe(endless, found, tmp_path / "c", token="eos")


@pytest.mark.parametrize(
    ("token", "sequences"),
    [
        ("content", [[3, 4, 5], [6, 7, 8], [9]]),
        ("eos", [[3, 4, 5, 2], [6, 7, 8, 1], [9, 1]]),
        ("prompt", [[3, 4], [6], [9]]),
    ],
)
def test_the_token_to_look_at_is_the_last_before_the_stop_token_the_one_that_ended_the_answer_or_the_prompts(token, sequences):
    def ragged(rows, dtype=np.int32):
        return Ragged.of(rows, dtype)

    said = Rollout(ragged([[3, 4], [6], [9]]), ragged([[5, 2], [7, 8], [1]]), ragged([[0, 0], [0, 0], [0]], np.float32))
    found, probe = features.sequences(said, token, (1, 2))
    assert [row.tolist() for row in found] == sequences
    assert probe.tolist() == [len(row) - 1 for row in sequences]


def test_the_end_of_the_question_is_observed_whatever_was_answered(lm, tmp_path):
    found = rollout(lm)
    longer = dataclasses.replace(found, completion=Ragged.of([[3, 4, 5]] * 40, np.int32))
    x = observe(lm, found, tmp_path / "a", token="prompt")
    np.testing.assert_array_equal(x, observe(lm, longer, tmp_path / "b", token="prompt"))
    for r in range(40):
        hidden, _ = full_pass(lm, list(found.prompt[r]))
        np.testing.assert_allclose(x[r, 2], hidden[-1], atol=1e-5 * abs(hidden).max())


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
