"""The page of a study shows every table and figure, and its files hold their numbers."""

import csv
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from experiments import theory
from experiments.configs import theory_linear
from w2s_jax import figures, processes, study_page
from w2s_jax.theory import Figure, Heat, Study, Table, linear


def study(**changed):
    table = Table("shares", ("d", "share", "word"), ((10, 0.8125, "a<b"), (1000, None, "c|d")), "A note.")
    line = Figure("rise", "How it rises", "step", "cosine", {"short": [(1.0, 0.2), (100.0, 0.5)], "long": [(1.0, 0.1)]}, "Up.")
    heat = Heat("phase", "where it helps", "s", "t", (0.25, 0.75), (0.1, 0.3, 0.5), np.array([[1, -1], [0, np.nan], [0.5, 0]]))
    return Study(**({"title": "A <study>", "lead": "It leads.", "tables": (table,), "figures": (line, heat)} | changed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study_page.write(folder, study(), {"config": "seed: 0"})
    return folder


def test_the_files_hold_the_numbers(folder):
    kept = json.loads((folder / "study.json").read_text())
    assert kept["tables"][0]["rows"] == [[10, 0.8125, "a<b"], [1000, None, "c|d"]]
    assert kept["figures"][0]["series"]["short"] == [[1.0, 0.2], [100.0, 0.5]]
    assert kept["figures"][1]["value"] == [[1.0, -1.0], [0.0, None], [0.5, 0.0]]
    rows = {name: list(csv.reader((folder / "data" / f"{name}.csv").open())) for name in ("shares", "rise", "phase")}
    assert rows["shares"][1:] == [["10", "0.8125", "a<b"], ["1000", "", "c|d"]]
    assert rows["rise"] == [["series", "step", "cosine"], ["short", "1", "0.2"], ["short", "100", "0.5"], ["long", "1", "0.1"]]
    assert rows["phase"][1:4] == [["0.25", "0.1", "1"], ["0.75", "0.1", "-1"], ["0.25", "0.3", "0"]]
    assert "| 1,000 | – | c\\|d |" in (folder / "study.md").read_text()


def test_the_page_stands_alone_and_shows_all(folder):
    page = (folder / "index.html").read_text()
    assert "A &lt;study&gt;" in page and "<study>" not in page
    for text in (
        "It leads.",
        "<h2>Shares</h2>",
        "0.8125",
        "A note.",
        "<b>How it rises.</b> Up.",
        "<b>Where it helps.</b>",
        "seed: 0",
    ):
        assert text in page, text
    assert not re.search(r'(src|href)="https?:', page)
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 3  # the lines for both kinds of screen, the plane for all
    assert all(ET.fromstring(re.sub("xlink:", "", drawing)) is not None for drawing in drawings)
    for link in re.findall(r'<a href="([^"]*)"', page):
        assert (folder / link).exists(), link


def test_what_an_earlier_study_wrote_and_this_one_does_not_is_removed_and_nothing_else(tmp_path):
    study_page.write(tmp_path, study())
    (tmp_path / "data" / "mine.csv").write_text("kept")
    study_page.write(tmp_path, study(figures=()))
    assert sorted(file.name for file in (tmp_path / "data").iterdir()) == ["mine.csv", "shares.csv"]
    assert (tmp_path / "study.md").exists() and (tmp_path / "study.json").exists()


def test_lines_are_named_and_a_wide_range_is_logarithmic():
    def places(xs):
        line = Figure("one", "t", "x", "y", {"only one": [(x, 0.0) for x in xs]})
        path = re.search(r'<path d="(M [^"]*)"[^>]*stroke: #0072b2', figures.lines(line))[1]
        return [float(point.split()[0]) for point in re.split("[ML] ", path)[1:]]

    a, b, c = places([1, 10, 100])
    assert b - a == pytest.approx(c - b, rel=0.01)
    a, b, c = places([1, 2, 3])
    assert b - a == pytest.approx(c - b, rel=0.01)
    for narrow in (False, True):
        drawn = figures.lines(study().figures[0], narrow=narrow)
        assert ">short<" in drawn and ">long<" in drawn and ">cosine<" in drawn


def test_a_plane_is_blue_above_zero_and_orange_below():
    drawn = figures.plane(study().figures[1])
    full = [figures._diverging(side) for side in (0.5, -0.5)]
    words = ["#" + "".join(f"{round(255 * c):02x}" for c in tint) for tint in full]
    assert all(word in drawn for word in words)
    flat = figures.plane(Heat("flat", "t", "x", "y", (0.0,), (0.0,), np.array([[0.0]])))
    assert "#" + "f" * 6 in flat and words[0] not in flat


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"figures": (Figure("shares", "", "", "", {}),)}, "'shares' names two"),
        ({"tables": (Table("a", ("x", "y"), ((1,),)),)}, "a row of 1 cells under 2 titles"),
    ],
)
def test_a_study_that_is_none_is_refused(changed, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        study_page.write(tmp_path, study(**changed))


def test_the_runner_hands_the_config_over_and_writes_the_page(tmp_path, monkeypatch, capsys):
    asked = {}

    def small(**keywords):
        asked.update(keywords)
        return study()

    monkeypatch.setattr(linear, "study", small)
    monkeypatch.setattr(theory.cli, "folders", lambda config: (str(tmp_path), ""))
    config = theory_linear.get_config("quick")
    folder = theory.run(config)
    assert asked == {name: value for name, value in config.to_dict().items() if name != "name"}
    assert (tmp_path / "study" / "index.html").exists() and folder == str(tmp_path / "study")
    assert "0.8125" in capsys.readouterr().out
    config.name = "quickstart"
    with pytest.raises(ValueError, match="'quickstart' is no study.*theory_linear.py"):
        theory.run(config)


@pytest.mark.parametrize("first", [True, False])
def test_all_processes_end_together_and_the_first_alone_studies(first, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(processes, "is_first", lambda: first)
    monkeypatch.setattr(processes, "barrier", lambda name: told.append((name, (tmp_path / "study" / "index.html").exists())))
    monkeypatch.setattr(linear, "study", lambda **keywords: study())
    monkeypatch.setattr(theory.cli, "folders", lambda config: (str(tmp_path), ""))
    theory.run(theory_linear.get_config("quick"))
    assert told == [("study written", first)]
