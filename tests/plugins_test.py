"""What finding a plug-in promises: one file and one word, and an error that says what there is."""

import importlib

import pytest

from w2s_jax import plugins, selection
from w2s_jax.trust import confidence

FORK = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Mine:
    depth: int
    lr: float = 0.1

def make(*, depth, lr=0.1):
    return Mine(depth, lr)
"""


@pytest.fixture
def fork(tmp_path, monkeypatch):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "empty.py").touch()
    (tmp_path / "plain" / "theirs.py").write_text(FORK)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_word_is_the_name_of_a_file():
    assert plugins.resolve("trust", "confidence") is confidence
    assert plugins.source_words("trust", "confidence") == ("w2s_jax.trust.confidence",)


def test_a_dotted_path_is_a_file_of_a_fork(fork):
    assert plugins.make("trust", "plain.theirs", depth=3).depth == 3
    assert plugins.source_words("trust", "plain.theirs") == ("plain.theirs",)


def test_only_files_with_the_entry_function_are_offered():
    words = plugins.available("trust")
    assert {"confidence", "neural"} <= set(words)
    assert "artefact" not in words


def test_a_file_offers_what_it_defines_assigns_or_imports(tmp_path, monkeypatch):
    sources = {
        "defined": "def make(): pass",
        "assigned": "make = dict",
        "imported": "from builtins import dict as make",
        "hidden": "class A:\n    def make(self): pass\nmake_up = 1\nfrom os import path",
    }
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.setattr(importlib.import_module("w2s_jax.trust"), "__path__", [str(tmp_path)])
    assert plugins.available("trust") == ["assigned", "defined", "imported"]


def test_defaults_are_those_of_the_signature_without_importing_it(fork, tmp_path):
    with (tmp_path / "plain" / "theirs.py").open("a") as file:
        file.write("\nraise ImportError('nobody asked for more than the signature')\n")
    assert plugins.defaults("trust", "plain.theirs") == {"lr": 0.1}
    with pytest.raises(ValueError, match=r"plain.empty has no function make\(\)"):
        plugins.defaults("trust", "plain.empty")


@pytest.mark.parametrize(
    "word, said",
    [
        ("confidense", r"not there \(did you mean 'confidence'\?\); allowed are .*confidence.*neural.* or the dotted path"),
        ("artefact", r"has no function make\(\)"),
        ("no.such.thing", "no.such.thing is not there"),
        ("plain.missing", "plain.missing is not there"),
        ("plain.empty", r"plain.empty has no function make\(\)"),
    ],
)
def test_a_wrong_word_is_told_what_exists(word, said, fork):
    with pytest.raises(ValueError, match=said):
        plugins.resolve("trust", word)


def test_what_a_fork_fails_to_import_is_not_mistaken_for_a_wrong_word(fork, tmp_path):
    (tmp_path / "plain" / "broken.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        plugins.resolve("trust", "plain.broken")


def test_unknown_and_missing_keywords_are_named(fork):
    with pytest.raises(ValueError, match=r"knows no 'dept' \(did you mean 'depth'\?\); its keywords are depth, lr"):
        plugins.make("trust", "plain.theirs", dept=3)
    with pytest.raises(ValueError, match="needs depth"):
        plugins.make("trust", "plain.theirs", lr=0.2)


def test_a_family_is_found_by_its_own_entry_function(tmp_path, monkeypatch):
    (tmp_path / "their").mkdir()
    (tmp_path / "their" / "family.py").write_text("def decoder_config(hf):\n    return dict(hf)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert plugins.make("family", "their.family", hf={"a": 1}) == {"a": 1}


def test_selection_is_no_plug_in():
    with pytest.raises(ValueError, match=r"has no function make\(\)"):
        plugins.resolve("trust", selection.__name__)
