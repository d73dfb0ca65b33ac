"""A staged sweep is ordinary runs over one store: what they share is computed once, and its table says what they say."""

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments import main as cli
from experiments import staged, sweep
from tests import toy
from w2s_jax import figures, processes, sweep_page

ROOT = pathlib.Path(__file__).parents[1]
AXIS = "select.n=10,20"


def config():
    c = toy.get_config()
    c.methods = ("naive", "ntf", "gold")
    return c


class Sweep:
    """A folder, and what is said while sweeps run in it."""

    def __init__(self, folder):
        self.folder, self.lines = folder, []

    def run(self, axes, method="", workdir="first"):
        """The table, and the labels of the stages that were computed."""
        del self.lines[:]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cli, "folders", lambda c: (str(self.folder / workdir), str(self.folder / "store")))
            patch.setattr(cli, "say", self.lines.append)
            out = pathlib.Path(staged.sweep(config(), axes, method))
        found = json.loads((out / "sweep.json").read_text())
        return found, [line.split("  ")[0] for line in self.lines if "computed in" in line]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two points, its table, what it computed."""
    one = Sweep(tmp_path_factory.mktemp("staged"))
    return one, *one.run([AXIS])


def test_what_the_points_have_in_common_is_computed_once(swept):
    _, _, computed = swept
    for shared in ("pretrain weak", "pretrain strong", "answer target", "observe source", "calibrate ntf", "trust ntf"):
        assert computed.count(shared) == 1, shared
    for own in ("select ntf", "teach ntf", "score ntf", "audit ntf"):
        assert computed.count(own) == 2, own


def test_the_table_says_what_a_run_with_these_settings_says(swept, tmp_path):
    one, found, _ = swept
    assert [point["settings"] for point in found["points"]] == [{"select.n": 10}, {"select.n": 20}]
    point, c = found["points"][0], config()
    c.select.n = 10
    folder = cli.run(c, workdir=str(tmp_path), store=str(one.folder / "store"), tell=cli.keep_silent)
    alone = pathlib.Path(folder, "recovery.json")
    (mine,) = (line for line in json.loads(alone.read_text())["summary"] if line["method"] == "ntf")
    assert mine["n_selected"] == 10 and point == point | {name: mine[name] for name in point if name in mine}
    assert {"accuracy", "gt", "recovery", "purity", "auc", "verdict", "seeds"} <= set(point) & set(mine)
    assert (one.folder / "first" / "staged" / point["report"] / "recovery.json").read_bytes() == alone.read_bytes()
    assert found["points"][0]["purity"] != found["points"][1]["purity"]


def test_a_sweep_that_is_run_again_computes_nothing_and_one_value_more_only_its_own(swept):
    one, found, _ = swept
    again, computed = one.run([AXIS])
    assert computed == [] and again == found
    other, computed = one.run(["select.n=10,5"], workdir="other")
    assert other["points"][0] == found["points"][0] and {"select ntf", "teach ntf"} <= set(computed)
    assert not any(label.startswith(("pretrain", "answer source", "observe", "calibrate")) for label in computed)


def test_two_axes_are_every_pair_and_another_method_can_be_told(swept):
    one, _, _ = swept
    found, _ = one.run([AXIS, "recover.margin=0.02,0.5"], "naive", workdir="pairs")
    pairs = [{"select.n": n, "recover.margin": m} for n in (10, 20) for m in (0.02, 0.5)]
    assert [point["settings"] for point in found["points"]] == pairs and found["method"] == "naive"
    verdicts = [point["verdict"] for point in found["points"]]
    assert verdicts[1] == verdicts[3] == "near-lossless" != verdicts[0]
    assert (one.folder / "pairs" / "staged" / "index.html").read_text().count("<svg") == 2


def test_the_page_reports_and_names_no_best(swept):
    one, found, _ = swept
    folder = one.folder / "first" / "staged"
    page = (folder / "index.html").read_text()
    assert "none is exported as the best" in page and "best" not in found and not (folder / "best").exists()
    assert page.count("<svg") == 2 and "http" not in page.replace("http://www.w3.org", "")
    for point in found["points"]:
        assert f'href="{point["report"]}/index.html"' in page and (folder / point["report"] / "index.html").exists()
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [row["select.n"] for row in rows] == ["10", "20"]
    assert [float(row["accuracy"]) for row in rows] == pytest.approx([point["accuracy"] for point in found["points"]])
    assert "| 1 | 20 | 20 |" in (folder / "sweep.md").read_text()


def test_the_figure_of_one_axis_has_each_value_and_leaves_out_what_is_unknown():
    measured = {name: np.array([0.5, 0.6]) for name in ("accuracy", "accuracy_lo", "accuracy_hi", "base")}
    unknown = {name: np.full(2, np.nan) for name in ("gt", "teacher_accuracy")}
    drawn = figures.setting("select.n", ["17", "23"], "ntf", measured | unknown)
    assert ">17<" in drawn and ">23<" in drawn and ">NTF<" in drawn and ">base<" in drawn and ">gold<" not in drawn


def test_a_sweep_without_gold_has_a_page_without_a_figure(tmp_path):
    names = ("accuracy", "accuracy_lo", "accuracy_hi", "base", "gt", "teacher_accuracy", "recovery", "recovery_lo")
    line = dict.fromkeys((*names, "recovery_hi", "purity", "auc", "verdict")) | {
        "n_selected": 3,
        "seeds": 1,
        "reason": "no gold",
    }
    one = sweep_page.Staged({"select.n": (3, 4)}, ({"select.n": 3}, {"select.n": 4}), "ntf", (line, line), ("a", "b"))
    sweep_page.write_points(tmp_path, one, title="t")
    assert "<svg" not in (tmp_path / "index.html").read_text() and "no gold" in (tmp_path / "sweep.md").read_text()


# Refusals


@pytest.mark.parametrize(
    "axes, said",
    [
        (["selct.n=1,2"], "config has no key 'selct', did you mean 'select'"),
        (["select.nn=1,2"], "config.select has no key 'nn', did you mean 'n'"),
        (["select=1,2"], "config.select is a section; name one of its keys: .*rule"),
        (["select.n=10"], "an axis has two values or more.*with --config.select.n=10"),
        (["select.n"], "an axis has two values or more"),
        (["select.n=10,many"], "'many' is no int"),
        (["select.n=10,1.5"], "'1.5' is no int"),
        (["observe.layers=(-1,),3"], "'3' is no tuple"),
        (["teacher.chat=True,2"], "'2' is no bool"),
        (["student.training.lr=1e-4,0.0001"], "a value is there twice"),
        (["select.n=1,2", "select.n=3,4"], "select.n is given twice"),
        (["select.n=1,2", "config.select.n=3,4"], "select.n is given twice"),
    ],
)
def test_what_is_no_axis_is_refused(axes, said):
    with pytest.raises(ValueError, match=f"--staged={axes[-1].partition('=')[0]}.*{said}"):
        staged.read(config(), axes)


def test_values_have_the_types_that_their_keys_have():
    axes = [
        "observe.layers=(-1,),(0, -1)",
        "student.training.lr=1,1e-4",
        "teacher.chat=true,false",
        "select.rule=top_n,fraction",
    ]
    assert staged.read(config(), axes) == {
        "observe.layers": ((-1,), (0, -1)), "student.training.lr": (1.0, 1e-4), "teacher.chat": (True, False),
        "select.rule": ("top_n", "fraction"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "axes, method, said",
    [
        (["select.rule=top_n,best"], "", "at select.rule=best: select.rule='best': allowed are"),
        (["methods=('ntf',),('naive',)"], "", r"at methods=\('naive',\): there is no method 'ntf' to tell of; name one.*naive"),
        ([AXIS], "nft", "there is no method 'nft' to tell of; name one with --method: naive, ntf, gold"),
        (["chain.models=(),('pretrain:strong',)"], "", "a staged sweep is of one student"),
    ],
)
def test_what_is_wrong_with_a_later_point_is_said_before_the_first_one_runs(axes, method, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        Sweep(tmp_path).run(axes, method)
    assert not list(tmp_path.iterdir())


def test_points_have_folders_of_their_own():
    names = [staged.folder_name({"teacher.model": model}) for model in ("a/b", "a?b", "a-b", "a" * 200, "a" * 201)]
    assert (
        len(set(names)) == 5 and names[2] == "teacher.model=a-b" and all(len(name) < 100 and "/" not in name for name in names)
    )


def test_the_two_kinds_of_sweep_are_not_mixed():
    with pytest.raises(ValueError, match="--axis=lr=1,2 varies the heads of one run.*--config.trust.from_="):
        sweep.of_flags(config(), ["lr=1,2"], [], [AXIS], "")
    with pytest.raises(ValueError, match="--outer=width=4,8 varies the heads"):
        sweep.of_flags(config(), [], ["width=4,8"], [AXIS], "")
    with pytest.raises(ValueError, match="--method=ntf is for the table of a staged sweep"):
        sweep.of_flags(config(), ["lr=1,2"], [], [], "ntf")


def test_the_command_takes_staged_axes_and_says_what_is_wrong_in_one_screen(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.sweep", "--config=tests/toy.py", f"--workdir={tmp_path}", "--staged=selct.n=1,2"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "did you mean 'select'?" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("first", [True, False])
def test_all_processes_end_together(first, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(processes, "is_first", lambda: first)
    monkeypatch.setattr(processes, "barrier", told.append)
    monkeypatch.setattr(cli, "folders", lambda c: (str(tmp_path), str(tmp_path / "store")))
    monkeypatch.setattr(cli, "run", lambda config, *, workdir, **settings: workdir)
    monkeypatch.setattr(staged, "summary_of", lambda report, method: {})
    monkeypatch.setattr(sweep_page, "write_points", lambda *given, **settings: told.append("page"))
    monkeypatch.setattr(sweep_page, "points_table", lambda found: (["point"], []))
    monkeypatch.setattr(sweep_page, "note_on_points", lambda found: "")
    staged.sweep(config(), [AXIS], "")
    assert told == ["page"] * first + ["sweep written"]
