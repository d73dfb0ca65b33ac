"""The doctor knows what was tested, and says what to type."""

import pathlib

import jax
import pytest

from experiments import doctor

ROOT = pathlib.Path(__file__).parents[1]


def test_the_readme_shows_the_combinations_that_the_doctor_calls_tested():
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| 3.")]
    shown = {tuple(cell.strip() for cell in line.strip("|").split("|"))[:6] for line in lines}
    assert shown == {tuple(one.values()) for one in doctor.TESTED}


def test_nothing_is_wrong_here_and_each_package_is_named():
    found = {what: (value, remedy) for what, value, remedy in doctor.examine("cpu")}
    assert found["jax"] == (jax.__version__, "") and set(doctor.PACKAGES) <= set(found)
    assert not any(remedy for _, remedy in found.values() if not remedy.startswith("note: "))


@pytest.mark.parametrize("wanted, typed", [("tpu", "pip install -e '.[tpu]'"), ("gpu", "pip install -e '.[cuda]'")])
def test_a_missing_backend_is_answered_with_what_to_type(wanted, typed):
    (remedy,) = [remedy for what, _, remedy in doctor.examine(wanted) if what == "devices"]
    assert typed in remedy


def test_an_untested_combination_is_told_the_nearest_and_is_no_fault(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "9.9")
    remedy = {what: remedy for what, _, remedy in doctor.examine("cpu")}["tested combination"]
    assert remedy.startswith("note: ") and "jax==" in remedy and "flax==" in remedy


def test_a_missing_package_is_a_fault(monkeypatch):
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "" if name == "grain" else real(name))
    assert ("grain", "missing", "pip install -e .") in list(doctor.examine("cpu"))
