"""Each number of a prediction stands in its own column, and what is undefined or of another seed is told apart."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from w2s_jax import gain_page
from w2s_jax.analysis.gains import Gain, Gains

NTF = Gain(
    "ntf", 1, 1200, 700, True, 480, weak=0.61, untaught=0.52, accuracy=0.73,
    misfit=0.344, gain=0.123, gain_lo=0.087, gain_hi=0.161,
    misfit_squared=0.456, gain_squared=-0.211, gain_squared_lo=-0.314, gain_squared_hi=-0.104,
    misfit_divergence=1.234, gain_divergence=0.567, gain_divergence_lo=0.432, gain_divergence_hi=0.698,
    overlap=0.271, overlap_all=0.315, probe_gain=-0.045, cka=0.876, kernel_norm=0.654, kernel_gap=0.512, kernel_gain=0.0432,
    bound=0.405, bound_gain=0.0768, gain_all=0.098, rule=-0.0321, self_gain=0.222, self_gain_lo=0.187, self_gain_hi=0.257,
    test_gain=-0.019, test_gain_lo=-0.052, test_gain_hi=0.014,
)  # fmt: skip
BARE = Gain(
    "naive", 1, 1200, 1190, False, 1200, gain=0.02, gain_lo=-0.01, gain_hi=0.05, gain_divergence=0.03, gain_divergence_lo=-0.04,
    gain_divergence_hi=0.08, reasons=("bound: too few", "rule: none"),
)  # fmt: skip
EARLIER = dataclasses.replace(NTF, seed=0, gain=0.777, misfit=0.888, reasons=("of another seed: told elsewhere",))
FOUND = Gains(
    (EARLIER, BARE, dataclasses.replace(NTF, reasons=("rule: none",))), {"id": np.arange(3)}, ("one note", "one note")
)


def told(found, several=False):
    return "\n".join(gain_page.markdown(found, several)), gain_page.section(found, several)


def test_each_number_stands_in_its_column_of_both_tables():
    markdown, page = told(FOUND)
    for line in (
        "| method | questions | misfit, % | gain, % [95 %] | misfit² | gain² [95 %] | misfit, nats | gain, nats [95 %] |",
        "| NTF | 480 of 1,200 | 34.4 | 12.3 [8.7, 16.1] | 0.46 | −0.21 [−0.31, −0.10] | 1.23 | 0.57 [0.43, 0.70] |",
        "| Naive | 1,200 of 1,200 | – | 2.0 [−1.0, 5.0] | – | – | – | 0.03 [−0.04, 0.08] |",
        "| method | overlap, % | probe's gain, % | kernel gain² | kernel norm | CKA | gain on test, % [95 %] |",
        "| NTF | 27.1 | −4.5 | 0.043 | 0.65 | 0.88 | −1.9 [−5.2, 1.4] |",
        "| method | expansion, % | gain, all questions, % | sign rule | beats itself by, % [95 %] |",
        "| NTF | 7.7 | 9.8 | −0.032 | 22.2 [18.7, 25.7] |",
        "| Naive | inapplicable | – | – | – |",
    ):
        assert line in markdown, line
        cells = line.strip("| ").split(" | ")
        html = "".join(f"<th>{cell}</th>" if cells[0] == "method" else cell for cell in cells)
        assert cells[0] != "method" or html.replace("'", "&#x27;") in page
        assert all(cell.partition(" [")[0].replace("'", "&#x27;") in page for cell in cells), line
    assert "77.7" not in page + markdown and "88.8" not in page + markdown, "an earlier seed's"


def test_what_is_undefined_is_said_once_with_all_whom_it_concerns():
    wanted = ["Naive: bound: too few.", "Naive, NTF: rule: none.", "One note."]
    assert gain_page.remarks(FOUND) == wanted
    markdown, page = told(FOUND)
    assert all(f"- {said}" in markdown and said in page for said in wanted) and "another seed" not in markdown + page


def test_of_several_seeds_it_is_said_that_one_is_shown_and_of_nothing_nothing():
    for several in (False, True):
        assert all((gain_page.ONE_SEED in text) == several for text in told(FOUND, several))
    assert told(Gains(), True) == ("", "")
    markdown, page = told(Gains(notes=("no gold here",)))
    assert "- No gold here." in markdown and "No gold here." in page and gain_page.NOTE not in markdown and "<table" not in page


@pytest.mark.parametrize("held_out, said", [(True, "not taught"), (False, "all")])
def test_the_terminal_is_told_of_the_row_ntf_of_the_last_seed(held_out, said):
    rows = tuple(dataclasses.replace(one, held_out=held_out) for one in FOUND.rows)
    assert gain_page.terminal_lines(Gains(rows)) == [
        f"ntf: misfit 34.4 %, gain over its labels 12.3 % [8.7, 16.1] ({said} questions)"
    ]
    assert gain_page.terminal_lines(Gains((dataclasses.replace(NTF, gain=None),))) == []


def test_the_files_hold_all_seeds_and_the_arrays_and_a_later_run_without_takes_them_away(tmp_path):
    lines = list(csv.DictReader(gain_page.data(FOUND)["gains.csv"].splitlines()))
    assert [(line["method"], line["seed"], line["gain"]) for line in lines] == [
        ("ntf", "0", "0.777"), ("naive", "1", "0.02"), ("ntf", "1", "0.123"),
    ]  # fmt: skip
    gain_page.write(tmp_path, FOUND, {"domain": "d", "teacher": "t", "student": "s"})
    kept = json.loads((tmp_path / "gains.json").read_text())
    assert [one["seed"] for one in kept["rows"]] == [0, 1, 1] and kept["rows"][1]["misfit"] is None
    assert (kept["schema"], kept["domain"], kept["teacher"], kept["student"]) == (1, "d", "t", "s")
    assert kept["notes"] == ["one note", "one note"] and kept["rows"][1]["reasons"] == ["bound: too few", "rule: none"]
    assert np.load(tmp_path / "gains.npz")["id"].tolist() == [0, 1, 2]
    gain_page.write(tmp_path, Gains(notes=("nothing",)), {})
    assert list(tmp_path.iterdir()) == [] and gain_page.data(Gains(notes=("nothing",))) == {}
