"""What theory predicts of a link stands beside what came of it, from the students' own answers; gold is looked at last."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest

from tests import tiny, toy
from w2s_jax import gain_page, pipeline
from w2s_jax.analysis import gains
from w2s_jax.models import decoder, hf_io
from w2s_jax.models.tokenizer import word_level
from w2s_jax.run import Run, find_model
from w2s_jax.store import Store, Stored
from w2s_jax.types import LM, Question

METHODS = ("naive", "ntf", "gold", "oracle")


def config(models, arg=None, **analysis):
    c = toy.get_config(arg)
    c.methods = METHODS
    c.teacher.model, c.student.model = (str(models / name) for name in ("weak", "strong"))
    c.analysis.update(easy_first=False, gains=50, neighbours=3, **analysis)
    return c


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    words = word_level(toy.make(seed=0).vocabulary())
    for seed, (name, width) in enumerate((("weak", 16), ("strong", 24))):
        sizes = dataclasses.replace(tiny.CONFIG, vocab_size=20, width=width)
        hf_io.save(LM(sizes, decoder.init(sizes, jax.random.key(seed)), words), folder / name)
    return folder


def a_run(c, root, lines=None):
    return Run(c, 0, Store(root, log=(lines if lines is not None else []).append), lambda *metrics: None)


@pytest.fixture(scope="module")
def linked(models, tmp_path_factory):
    """The store's folder, the models, the link, and what was measured of it."""
    root = tmp_path_factory.mktemp("linked")
    c = config(models)
    one = a_run(c, root)
    teacher, student = (find_model(one, word) for word in (c.teacher.model, c.student.model))
    link = pipeline.link(one, teacher, student)
    return root, teacher, student, link, gains.measure(one, teacher, student, link)


def sums(ids):
    return np.array([(int(i.split()[1]) + int(i.split()[3])) % 5 for i in ids])


def test_each_method_that_was_taught_weak_labels_has_a_row_that_its_arrays_give(linked):
    found = linked[-1]
    assert [one.method for one in found.rows] == ["naive", "ntf"] and not found.notes
    arrays = found.arrays
    assert (arrays["gold"] == sums(arrays["id"])).all() and len(set(arrays["id"])) == 50
    for one in found.rows:
        choice = linked[3].choices[one.method]
        weak = dict(zip(choice.offer.answers.question_id, choice.offer.answers.final, strict=True))
        assert [weak[i] for i in arrays["id"]] == [str(k) for k in arrays[f"weak/{one.method}"]]
        taught = np.isin(arrays["id"], choice.chosen.value.answers.question_id)
        assert (arrays[f"taught/{one.method}"] == taught).all() and one.taught == taught.sum() < 25
        right, said = arrays[f"weak_right/{one.method}"], arrays[f"answer/{one.method}"]
        assert (right == (arrays[f"weak/{one.method}"] == arrays["gold"])).all()
        assert (arrays[f"right/{one.method}"] == (said == arrays["gold"])).all()
        assert one.held_out and one.n == 50
        assert one.misfit == pytest.approx(np.mean(said[~taught] != arrays[f"weak/{one.method}"][~taught]))
        assert one.gain == pytest.approx((said == arrays["gold"])[~taught].mean() - right[~taught].mean())
        assert one.gain_lo <= one.gain <= one.gain_hi and abs(one.gain) <= one.misfit
        assert one.test_gain == pytest.approx(
            linked[3].trial.trained[one.method].correct.mean() - linked[3].trial.weak.correct.mean()
        )
        assert one.self_gain == pytest.approx(one.accuracy - one.untaught) and one.gain == pytest.approx(one.accuracy - one.weak)
        assert 0 <= one.cka <= 1 and 0 <= one.kernel_norm <= 1 and one.kernel_gain is not None and one.rule is not None
        assert one.misfit_squared > 0 and one.misfit_divergence > 0 and 0 <= one.overlap <= 1


def test_states_are_those_of_the_question_before_any_answer(linked, models):
    found = linked[-1]
    arrays = found.arrays
    assert arrays["teacher"].shape == (50, 16) and arrays["student"].shape == (50, 24)
    lm = hf_io.load(str(models / "strong"))
    tokens = lm.tokenizer.encode(str(arrays["id"][7]), bos=True)
    from w2s_jax.models.compute import Compute
    from w2s_jax.models.compute import model as build

    batch = np.array(tokens)[None]
    out = build_states(lm, batch, Compute, build)
    assert np.abs(out - arrays["student"][7]).max() < 1e-5


def build_states(lm, token, Compute, build):
    from w2s_jax.features import gathered
    from w2s_jax.types import Batch

    batch = Batch(token, np.ones_like(token), np.arange(token.shape[1])[None], probe=np.array([[token.shape[1] - 1]]))
    from w2s_jax.models import compute

    return np.asarray(gathered(lm.params, batch, model=compute.model(lm.config), layers=(-1,)))[0, 0, 0]
