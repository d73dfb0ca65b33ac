"""A fitted trust function on disk: it comes back, and damage is named together with what to do."""

import dataclasses
import json

import numpy as np
import pytest

from w2s_jax import plugins
from w2s_jax.trust import artefact, neural

REMEDY = "fit it again, or give another folder"


@pytest.fixture
def folder(tmp_path):
    head = plugins.make("trust", "controls", kind="constant").restore({"prior": np.float32(0.6)})
    artefact.write(head, tmp_path, word="controls", args={"kind": "constant"}, about={"teacher": "t"})
    return tmp_path


def test_the_description_needs_no_state(folder):
    (folder / "state.safetensors").unlink()
    about = {"schema": 1, "trust": "controls", "args": {"kind": "constant"}, "about": {"teacher": "t"}, "held_back": {}}
    assert artefact.describe(folder) == artefact.describe(str(folder)) == about


def test_the_description_says_how_good_the_head_was_on_held_back_rows(tmp_path):
    learnt = {"fitted": {"mean": np.zeros(1, np.float32)}, "held_back": {"auc": np.float32(0.5)}}
    head = dataclasses.replace(neural.make(width=2, blocks=0), **learnt)
    artefact.write(head, tmp_path, word="neural", args={"width": 2, "blocks": 0}, about={})
    assert artefact.describe(tmp_path)["held_back"] == {"auc": 0.5}


def test_one_written_before_held_back_was_kept_is_read(folder):
    described = artefact.describe(folder)
    (folder / "trust.json").write_text(json.dumps({name: described[name] for name in artefact.KINDS}))
    assert artefact.read(folder)[1] == described


def test_a_copy_is_the_same_trust_function_in_another_folder(folder, tmp_path):
    artefact.copy(str(folder), tmp_path / "new" / "place")
    for name in artefact.FILES:
        assert (tmp_path / "new" / "place" / name).read_bytes() == (folder / name).read_bytes()
    assert artefact.read(tmp_path / "new" / "place")[0].prior.tolist() == [np.float32(0.6)]


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-2])])
def test_a_state_that_is_missing_or_cut_off_is_named(damage, folder):
    damage(file := folder / "state.safetensors")
    with pytest.raises(ValueError, match=f"{file} is missing, cut off or damaged .*: {REMEDY}"):
        artefact.read(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema": 1', "is no JSON: .*"),
        ("[]", "is no JSON object but a list"),
        ("{}", "lacks schema, trust, args, about"),
        ('{"schema": 1, "trust": "neural", "about": {}}', "lacks args"),
        ('{"schema": 0, "trust": "neural", "args": {}, "about": {}}', "has schema 0, this version reads 1"),
    ],
)
def test_a_damaged_description_is_named(text, said, folder):
    (file := folder / "trust.json").write_text(text)
    for ask in (artefact.describe, artefact.read):
        with pytest.raises(ValueError, match=f"{file} {said}: {REMEDY}"):
            ask(folder)


def test_a_description_with_a_value_of_another_kind_is_named(folder):
    file = folder / "trust.json"
    file.write_text(json.dumps(artefact.describe(folder) | {"args": [1]}))
    with pytest.raises(ValueError, match=rf"{file}: args = \[1\], allowed is a dict: {REMEDY}"):
        artefact.describe(folder)
