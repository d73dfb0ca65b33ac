"""A sweep trains each head as it would be trained alone, in few programs, and chooses by held-back source rows only."""

import csv
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from experiments import main as cli
from experiments import sweep
from tests import toy
from tests.trust_test import world
from w2s_jax import grid, metrics, pipeline, plugins, processes, store, sweep_page
from w2s_jax.run import Run, find_model
from w2s_jax.settings import method_row
from w2s_jax.trust import artefact, neural

ROOT = pathlib.Path(__file__).parents[1]
KEY = jax.random.key(0)
SMALL = dict(width=8, blocks=1, epochs=4, batch_rows=32, lr=3e-3)
VARIED = (
    {}, {"seed": 3}, {"lr": 1e-2}, {"weight_decay": 3.0}, {"dropout": 0.5}, {"class_weight": 0.0}, {"label_noise": 0.3},
    {"source_rows": 100, "seed": 1},
)  # fmt: skip
AXES = ["lr=1e-3,1e-2", "seed=0,1"]


def config(**observe):
    c = toy.get_config()
    c.tasks.update(num_source=120, num_target=50)
    c.observe.update(observe)
    c.trust.neural.update(held_back_frac=0.6)
    return c


@pytest.fixture(autouse=True)
def _few_labels_will_do(monkeypatch):
    """The toy's teacher is right nine times in 72."""
    monkeypatch.setattr(grid, "LEAST", 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store in which the teacher has been trained and has answered."""
    folder = tmp_path_factory.mktemp("sweep")
    run = started(config(), folder)
    pipeline.source_and_target(run, find_model(run, run.config.teacher.model))
    return folder


def started(c, folder, says=lambda line: None):
    return Run(c, 0, store.Store(folder / "store", log=says), lambda *metrics: None)


def swept(c, folder, axes=AXES, outer=(), most=64, says=lambda line: None):
    run = started(c, folder, says)
    return grid.sweep(run, find_model(run, c.teacher.model), grid.read(c, axes, outer), most=most)


def alone(head, evidence, correct):
    return neural.make(**SMALL | head).fit(evidence, correct, KEY)


# One program for many heads


def test_each_head_is_what_it_would_be_if_it_were_trained_alone():
    evidence, correct = world()
    states, records = neural.fit_heads([neural.make(**SMALL | one) for one in VARIED], evidence, correct, KEY)
    scores = neural.score_heads([neural.make(**SMALL)], states, evidence)
    for h, one in enumerate(VARIED):
        single = alone(one, evidence, correct)
        np.testing.assert_allclose(scores[h], single.score(evidence), atol=1e-5)
        assert records["quality"][h].max() == pytest.approx(single.held_back["quality"], abs=1e-5)
        assert h == 0 or abs(scores[h] - scores[0]).max() > 1e-3, one


def test_a_head_that_looks_at_one_layer_is_one_fitted_to_that_layer_alone():
    evidence, correct = world()
    three = type(evidence)(evidence.answers, np.concatenate([evidence.x[:, :, ::-1], evidence.x, 0 * evidence.x + 1], 1))
    heads = [neural.make(**SMALL)] * 3
    states, _ = neural.fit_heads(heads, three, correct, KEY, points=[0, 1, 2])
    scores = neural.score_heads(heads, states, three, [0, 1, 2])
    for point in range(3):
        one = type(evidence)(evidence.answers, three.x[:, [point]])
        np.testing.assert_allclose(scores[point], alone({}, one, correct).score(one), atol=1e-5)


def test_label_noise_turns_that_share_of_the_training_labels_round_and_no_held_back_one():
    mask = np.r_[np.ones(150), np.zeros(50)].astype(np.float32)
    drawn = np.asarray(neural._drawn(KEY, mask, 30))
    assert drawn.sum() == 30 and drawn[150:].sum() == 0
    fewer, all_rows = np.asarray(neural._drawn(KEY, mask, 12)), np.asarray(neural._drawn(KEY, mask, 500))
    assert (fewer <= drawn).all() and fewer.sum() == 12 and (all_rows == mask).all()
    evidence, correct = world(rows=600)
    quality = [alone({"label_noise": noise, "epochs": 12}, evidence, correct).held_back["quality"] for noise in (0.0, 1.0)]
    assert quality[0] > 0.85 and quality[1] < 0.35  # all labels turned round: the held-back ones are not


@pytest.mark.slow
def test_eight_devices_fit_the_heads_that_one_does():
    code = """
import jax, numpy as np
from tests.trust_test import world
from tests.sweep_test import SMALL, VARIED, KEY
from w2s_jax.trust import neural
evidence, correct = world()
heads = [neural.make(**SMALL | one) for one in VARIED]
states = [neural.fit_heads(heads, evidence, correct, KEY, devices=some)[0] for some in ((), jax.devices())]
scores = [neural.score_heads(heads, state, evidence) for state in states]
print(jax.device_count(), abs(scores[0] - scores[1]).max(), scores[0].std())
"""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    devices, gap, spread = map(float, done.stdout.split())
    assert devices == 8 and gap < 1e-5 < spread


# The sweep


def test_each_combination_of_static_shapes_is_compiled_once(folder):
    before = neural.train_heads._cache_size()
    found = swept(config(), folder, ["seed=0,1,2,3,4", "source_rows=0,40"], ["width=4,8"], most=4)
    assert neural.train_heads._cache_size() == before + 2 and len(found.head) == 20


def test_the_order_in_which_axes_are_named_does_not_matter(folder):
    found = swept(config(), folder, AXES, ["width=16"])
    lines = []
    again = swept(config(), folder, AXES[::-1], ["width=16"], says=lines.append)
    assert found.head == again.head and found.best == again.best and list(found.axes) == ["width", "seed", "lr"]
    assert lines and all(line.endswith("cached") for line in lines)


def test_the_best_head_is_the_one_of_the_highest_held_back_auc_and_is_kept(folder):
    c = config(layers=(0, -1))
    found = swept(c, folder, [*AXES, "layer=0,-1"])
    assert found.best == int(np.argmax(found.quality)) and len(found.head) == 8
    kept, described = artefact.read(found.chosen.path / "trust")
    best = found.head[found.best]
    assert described["about"]["layers"] == [best["layer"]] and described["held_back"]["quality"] == found.quality[found.best]
    run = started(c, folder)
    labelled, correct, unlabelled = pipeline.source_and_target(run, find_model(run, c.teacher.model))
    at = [(0, -1).index(best["layer"])]
    seen = [type(e)(e.answers, e.x[:, at]) for e in (labelled.evidence(), unlabelled.evidence())]
    args = {name: value for name, value in best.items() if name != "layer"}
    single = plugins.make("trust", "neural", **c.trust.neural.to_dict() | args).fit(seen[0], correct, run.key("calibrate"))
    np.testing.assert_allclose(kept.score(seen[1]), single.score(seen[1]), atol=1e-5)
    gold = run.task.gold("target").grade(unlabelled.answers)
    assert found.auc[found.best] == pytest.approx(metrics.auc(kept.score(seen[1]), gold), abs=0.01)


def test_a_run_with_the_flags_of_the_best_head_uses_it(folder, monkeypatch):
    c = config()
    monkeypatch.setattr(cli, "folders", lambda config: (str(folder / "run"), str(folder / "store")))
    out = pathlib.Path(sweep.sweep(c, AXES, [], most=64, given=["--config=tests/toy.py"]))
    found = json.loads((out / "sweep.json").read_text())
    best = next(head for head in found["heads"] if head["head"] == found["best"])
    assert best is found["heads"][0] and len(found["heads"]) == 4
    flags = (out / "best" / "flags.txt").read_text().split()
    assert flags == [
        "--config=tests/toy.py", *(f"--config.trust.neural.{name}={value}" for name, value in best["settings"].items())
    ]  # fmt: skip
    c.trust.from_ = str(out / "best")
    assert method_row(c, "ntf").reused == str(out / "best") and method_row(c, "ntf").args["lr"] == best["settings"]["lr"]
    rows = list(csv.DictReader((out / "sweep.csv").open()))
    assert [float(row["held_back_auc"]) for row in rows] == sorted((float(r["held_back_auc"]) for r in rows), reverse=True)
    page = (out / "index.html").read_text()
    assert page.count("<svg") == 2 and "http" not in page.replace("http://www.w3.org", "")
    assert "chosen by its AUC on held-back source rows alone" in (out / "sweep.md").read_text()


def test_a_killed_sweep_continues_and_ends_with_the_same_bytes(folder, tmp_path, monkeypatch):
    c = config()
    axes = [*AXES, "dropout=0,0.2", "weight_decay=0,0.1"]
    whole = swept(c, folder, axes, most=4)
    for stored in (folder / "store").glob("sweep-*"):  # the same store without the sweep's own stages
        stored.rename(tmp_path / stored.name)
    real, calls = neural.fit_heads, []

    def killed(*args, **kw):
        calls.append(len(args[0]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kw)

    monkeypatch.setattr(neural, "fit_heads", killed)
    with pytest.raises(KeyboardInterrupt):
        swept(c, folder, axes, most=4)
    again = swept(c, folder, axes, most=4)
    assert calls == [4] * 5  # two chunks, the one that was killed, and two more
    for name in ("quality", "auc", "purity"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(again, name))
    made = sorted((folder / "store").glob("sweep-*/trust/*"))
    assert len(made) == 8
    for file in made:
        assert file.read_bytes() == (tmp_path / file.relative_to(folder / "store")).read_bytes()


def test_a_head_that_diverges_is_never_the_best_and_stops_nothing(folder):
    found = swept(config(), folder, ["lr=1e-3,inf", "seed=0,1"])
    assert found.best in (0, 2) and np.isnan(found.quality[1::2]).all() and np.isfinite(found.quality[::2]).all()
    with pytest.raises(ValueError, match="the loss of every head of the sweep is not finite: lower the values of lr"):
        swept(config(), folder, ["lr=inf", "seed=0,1,2,3"])


def test_without_gold_on_the_target_a_head_is_chosen_all_the_same(folder):
    c = config()
    c.tasks.target_gold = "none"
    found, known = swept(c, folder), swept(config(), folder)
    assert np.isnan(found.auc).all() and np.isnan(found.purity).all()
    assert found.best == known.best and np.isfinite(known.auc).all()


def test_the_targets_gold_has_no_say_in_the_choice(folder):
    c = config()
    c.tasks.target_gold = "wrong"
    found, known = swept(c, folder), swept(config(), folder)
    assert found.best == known.best and found.chosen.key == known.chosen.key
    assert (found.purity != known.purity).any()


def test_gold_is_not_looked_at_before_a_head_is_chosen(folder, tmp_path):
    run = started(config(), folder)
    none = store.Stored("0" * 64, type(run.store.root)(tmp_path / "choose"))
    with pytest.raises(ValueError, match="no head has been chosen, so looking at the target's gold could still change"):
        pipeline.appraise(run, none, none, None)


def test_chunks_hold_as_many_heads_as_fit_and_are_of_one_size():
    head, devices = neural.make(**SMALL), jax.devices()[:1]
    shape = (10_000, 1, 1000)
    assert grid.chunk_size(20, head, shape, 64, devices) == 20
    assert grid.chunk_size(20, head, shape, 8, devices) == 7  # three chunks, of 7, 7 and 6
    assert grid.chunk_size(10, head, shape, 64, devices * 8) == 16
    assert grid.bytes_of(head, shape) > 2000 * 1000 * 4  # the held-back rows alone
    assert grid.chunk_size(10**6, head, shape, 10**6, devices) * grid.bytes_of(head, shape) <= grid.HOST_BYTES


# Refusals


@pytest.mark.parametrize(
    "axes, outer, said",
    [
        ([], [], "a sweep needs an axis, such as --axis=lr"),
        (["lr"], [], "allowed are one or more values"),
        (["lr=,"], [], "allowed are one or more values"),
        (["seed=1,1"], [], "allowed are one or more values, each once"),
        (["seed=0", "seed=1"], [], "seed is given twice"),
        (["seed=a"], [], "'a' is no int"),
        (["learning_rate=1"], [], "there is no such axis"),
        (["drop_out=0"], [], "did you mean 'dropout'?"),
        (["width=8,16"], [], "width is a static shape.*an outer axis.*write --outer=width=8,16"),
        (["select.n=5,10"], [], "a staged axis, .*write --staged=select.n=5,10 in a sweep of its own"),
        (["student.training.lr=1"], [], "a staged axis"),
        ([], ["lr=1"], "lr is a compiled axis; write --axis=lr=1"),
        (["held_back_frac=0.1,0.2"], [], "held_back_frac is no axis.*--config.trust.neural.held_back_frac="),
        (["layer=0,-1"], [], "layer '0' is not looked at; observe.layers has -1"),
    ],
)
def test_what_is_no_axis_is_refused_with_what_it_is(axes, outer, said):
    with pytest.raises(ValueError, match=said):
        grid.read(config(), axes, outer)


def test_too_few_held_back_labels_to_choose_by_are_refused(folder, monkeypatch):
    monkeypatch.setattr(grid, "LEAST", 10)
    c = config()
    c.trust.neural.held_back_frac = 0.05
    with pytest.raises(ValueError, match="too few to choose a head by, at least 10 of each.*held_back_frac=0.05"):
        swept(c, folder)


def test_more_rows_than_the_source_has_are_refused(folder):
    with pytest.raises(ValueError, match="source_rows=5000: 48 source rows are left to train on"):
        swept(config(), folder, ["source_rows=0,5000"])


def test_the_command_says_what_is_wrong_in_one_screen(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.sweep", "--config=tests/toy.py", f"--workdir={tmp_path}", "--axis=epochs=1,2"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "epochs is a static shape" in done.stderr and "Traceback" not in done.stderr


def test_flags_are_told_as_they_were_given():
    given = ["--config", "a.py", "--axis=lr=1", "--config.select.n=5", "-config.methods=('a', 'b')", "--store=x"]
    assert sweep.config_flags(given) == ["--config=a.py", "--config.select.n=5", "-config.methods=('a','b')"]
    assert sweep.settings({"layer": "prenorm", "lr": 1e-4}) == {
        "config.observe.layers": "('prenorm',)", "config.trust.neural.lr": "0.0001"
    }  # fmt: skip


@pytest.mark.parametrize("first", [True, False])
def test_all_processes_end_together(first, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(processes, "is_first", lambda: first)
    monkeypatch.setattr(processes, "barrier", told.append)
    monkeypatch.setattr(cli, "folders", lambda c: (str(tmp_path), str(tmp_path / "store")))
    monkeypatch.setattr(cli, "open_store", lambda *where: None)
    monkeypatch.setattr("w2s_jax.run.find_model", lambda run, word: word)
    monkeypatch.setattr(grid, "sweep", lambda *given, **settings: types.SimpleNamespace(head=({"lr": 1.0},), best=0))
    monkeypatch.setattr(sweep, "export", lambda *given: None)
    monkeypatch.setattr(sweep_page, "ranked", lambda found: [0])
    monkeypatch.setattr(sweep_page, "write_heads", lambda *given, **settings: told.append("page"))
    monkeypatch.setattr(sweep_page, "heads_table", lambda *given: (["head"], []))
    monkeypatch.setattr(sweep_page, "note_on_heads", lambda found: "")
    sweep.sweep(config(), AXES, [], most=64, given=[])
    assert told == ["page"] * first + ["sweep written"]
