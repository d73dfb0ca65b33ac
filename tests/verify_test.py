"""`verify` tells a model that is computed right from one that is not, with transformers and with a stored golden."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest

from experiments import verify
from tests import tiny
from w2s_jax import files
from w2s_jax.models import hf_io

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is the reference here")


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr(verify, "TEXTS", ("a b c d e", "p o", "h h i i j a"))


@pytest.fixture
def folder(tmp_path):
    hf_io.save(tiny.lm(), tmp_path / "model")
    return tmp_path / "model"


def states(lm, dtype="float32"):
    return verify.ours(lm, dtype)


def spoilt():
    """The tiny model with one weight of its second block changed."""
    lm = tiny.lm()
    params = jax.tree.map(np.array, lm.params)
    params["layers"]["block_0"]["mlp"]["down"]["kernel"][1, 3, 2] += 0.5
    return dataclasses.replace(lm, params=params)


@needs_torch
def test_transformers_agrees_and_a_spoilt_weight_is_found_in_its_layer(folder, capsys):
    reference = verify.theirs(str(folder), "float32")
    errors, more = verify.against(states(tiny.lm()), reference)
    assert max(errors.values()) < 1e-5 and more["top-1 agreement"] == 1 and more["largest KL (nats)"] < 1e-9
    assert verify.say_verdict(errors, more, 1e-4, "it")
    errors, more = verify.against(states(spoilt()), reference)
    assert not verify.say_verdict(errors, more, 1e-4, "it")
    assert "NOT the same as it: first in layer 2" in capsys.readouterr().out
    assert errors["layer 1"] < 1e-5 and more["largest KL (nats)"] > 1e-6


def test_a_golden_tells_the_same_without_the_reference(tmp_path, folder):
    golden = verify.make_golden(states(tiny.lm()), files.content_key(folder), "models/tiny")
    (tmp_path / "golden.json").write_text(json.dumps(golden))
    golden = verify.read_golden(str(tmp_path / "golden.json"), files.content_key(folder))
    errors, more = verify.against_golden(states(tiny.lm()), golden)
    assert set(errors) == {"layer 0", "layer 1", "layer 2", "logits"} and max(errors.values()) < 1e-6
    assert more["top-1 agreement"] == 1
    errors, _ = verify.against_golden(states(spoilt()), golden)
    assert errors["layer 1"] < 1e-6 and errors["layer 2"] > 1e-3 and errors["logits"] > 1e-3


def test_bfloat16_is_within_its_tolerance(folder):
    errors, _ = verify.against(states(tiny.lm(), "bfloat16"), states(tiny.lm()))
    assert 1e-4 < max(errors.values()) < verify.TOLERANCES["bfloat16"]


def test_a_golden_of_another_model_is_refused_by_name(tmp_path):
    golden = verify.make_golden(states(tiny.lm()), "a" * 64, "models/tiny")
    (tmp_path / "golden.json").write_text(json.dumps(golden))
    with pytest.raises(ValueError, match="is of another model, tiny"):
        verify.read_golden(str(tmp_path / "golden.json"), "b" * 64)
    (tmp_path / "golden.json").write_text("[]")
    with pytest.raises(ValueError, match="no file that --write made"):
        verify.read_golden(str(tmp_path / "golden.json"), "b" * 64)


def test_other_tokens_are_refused_with_the_text():
    one = states(tiny.lm())
    other = dataclasses.replace(one, ids=[[1], *one.ids[1:]])
    with pytest.raises(ValueError, match="tokenizers disagree on 'a b c d e'"):
        verify.against(one, other)
