"""Texts as points: which states, which labels, which texts."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.configs import theory_expansion
from tests import tiny
from w2s_jax.models import decoder, hf_io
from w2s_jax.models.tokenizer import word_level
from w2s_jax.theory import expansion, texts
from w2s_jax.theory.partition import ABSTAIN
from w2s_jax.types import LM

SUBJECTS = {"physics": "the mass of a star", "biology": "the mass of a cell", "law": "she went to court"}
VOCABULARY = sorted({word for text in SUBJECTS.values() for word in text.split()} | set("0123456789") | {".", "so"})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sixty questions, twenty of a subject, and a model that can read them: the keywords that embed them."""
    folder = tmp_path_factory.mktemp("texts")
    lines = []
    for k in range(60):
        subject = sorted(SUBJECTS)[k % 3]
        said = f"{SUBJECTS[subject]} {' '.join(str(k))}" + " so" * (12 if k >= 54 else 0)
        row = {"id": f"own/{k}", "question": said, "choices": ["a", "b"], "answer": k % 2, "subject": subject}
        lines.append(json.dumps(row))
    (folder / "own.test.jsonl").write_text("\n".join(lines))
    config = dataclasses.replace(tiny.CONFIG, vocab_size=len(VOCABULARY) + 2)
    hf_io.save(LM(config, decoder.init(config, jax.random.key(0)), word_level(VOCABULARY), key="small"), folder / "model")
    given = theory_expansion.get_config("texts").texts.to_dict()
    return given | {
        "model": str(folder / "model"),
        "root": str(folder),
        "split": "own:test",
        "size": 20,
        "subjects": ("physics", "biology"),
        "words": ("mass", "star|cell"),
        "other_words": ("court",),
        "ending": " .",
        "layer": 1,
        "shape": {"row_length": 16, "batch_rows": 2, "max_segments": 2},
        "seed": 3,
    }


def test_states_are_those_of_the_last_token_and_labels_those_of_words_and_subjects(world):
    x, weak, gold = texts.embedded(**world)
    lm = hf_io.load(world["model"])
    assert x.shape == (20, lm.config.width) and gold.sum() == 10
    assert (weak == gold).all()  # these words say it all
    again = texts.embedded(**world)
    assert (x == again[0]).all() and (gold == again[2]).all()
    other = texts.embedded(**world | {"seed": 4})
    assert (other[0] != x).any()
    # Each state is what a pass over that text alone leaves behind its last token.
    said = [json.loads(line) for line in open(world["root"] + "/own.test.jsonl")]
    alone = []
    for row in said:
        token = np.array([lm.tokenizer.encode(row["question"] + " .", bos=True)])
        position = np.arange(token.shape[1])[None]
        out = (
            tiny.compute()
            .model(lm.config)
            .apply({"params": lm.params}, token, np.ones_like(token), position, probe=position[:, -1:], layers=(1,))
        )
        alone.append(np.asarray(out.probe).reshape(-1))
    alone = np.array(alone)
    which = np.abs(x[:, None] - alone).max(-1).argmin(1)
    assert np.abs(x - alone[which]).max() < 1e-5 and len(set(which)) == 20
    assert (gold == [said[k]["subject"] != "law" for k in which]).all()
    assert which.max() < 54  # longer texts than a row are left out


def test_words_are_whole_and_ties_abstain():
    said = ["Mass of masses", "the courtly mass", "court and mass", "nothing", "COURT court mass"]
    assert texts.labelled_by_words(said, ("mass(es)?", "star"), ("court",)).tolist() == [1, 1, ABSTAIN, ABSTAIN, 0]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"subjects": ("physics", "poetry")}, "'poetry', of which there is no text; there are biology, law, physics"),
        ({"size": 60}, "has 18 texts of class 0 that fit texts.shape.row_length, 30 are wanted"),
        ({"size": 1}, "0 are wanted"),
        ({"words": ("(mass",)}, "texts.words=.'.mass',.*mend them in the config"),
        ({"other_words": ()}, "texts.other_words is empty"),
        ({"split": "none:test"}, "none"),
        ({"layer": 9}, "9"),
    ],
)
def test_what_cannot_be_embedded_is_refused(world, change, said):
    with pytest.raises(ValueError, match=said):
        texts.embedded(**world | change)


def test_the_study_examines_texts(world):
    config = theory_expansion.get_config("texts").to_dict()
    del config["name"]
    words = {name: value for name, value in world.items() if name != "seed"} | {"size": 36}
    found = expansion.study(**config | {"texts": words, "neighbours": 2, "resamples": 2})
    assert [table.name for table in found.tables] == [f"texts_eta_0_{way}" for way in ("counted", "oracle", "granted")]
    assert not found.figures
    assert "18 points that no probe was fitted on" in found.tables[0].note
