"""The command line: defaults, and one clear line for every mistake."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments import main
from experiments.configs import base
from experiments.writer import Writer

ROOT = pathlib.Path(__file__).parents[1]


def command(*arguments, timeout=120):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.main", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--config.studnt.training.lr=1"], "did you mean 'student'?"),
        (["--config.student.training.lrr=1"], "config.student.training has no key 'lrr', did you mean 'lr'?"),
        (["--config=experiments/configs/quickstart.py:sedes=5"], "allowed are seeds="),
        (["--config=experiments/configs/quickstart.py:seeds=many"], "'many' is no int"),
        (
            ["--config=experiments/configs/nowhere.py"],
            "experiments/configs has base.py, chess.py, endgame.py, quantitative.py, quickstart.py",
        ),
        (["--config", "experiments/configs/nowhere.py"], "there is no file"),
        (["--config.select.n=many"], "many"),
        (["--confg=x"], "config"),
        (["surplus"], "surplus"),
    ],
)
def test_a_mistyped_flag_is_one_screen_that_names_what_exists(flags, expected):
    code, said = command(*flags)
    assert code != 0 and expected in said, said
    assert "Traceback" not in said and len(said.splitlines()) < 40


@pytest.mark.parametrize(
    "flags, platforms, expected",
    [
        (
            ["--require_backend=gpu"],
            "cpu",
            "JAX found cpu only; python -m experiments.doctor --require_backend=gpu",
        ),
        ([], "tpu", "JAX found no device to compute on"),
        (["--coordinator=localhost:1", "--num_processes=2"], "cpu", "--coordinator=localhost:1 needs --process_id too"),
    ],
)
def test_it_never_computes_elsewhere_than_asked(flags, platforms, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    code, said = command(*flags, f"--workdir={tmp_path / 'run'}")
    assert code == 1 and expected in said and "Traceback" not in said, said
    assert not (tmp_path / "run").exists()


def test_help_and_configs_load_no_jax():
    """Which is what keeps `--help` below two seconds."""
    code = (
        "import sys; from experiments import main; from experiments.configs import base; base.get_config(); print(*sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"jax", "flax", "transformers", "datasets", "numpy"} & set(said.split())


def test_a_wrong_key_is_found_where_it_departs():
    config = base.get_config()
    assert "config.teacher has no key 'modle', did you mean 'model'?" in main.wrong_key(config, "teacher.modle")
    assert main.wrong_key(config, "select.n.x") == "config.select.n is a value, it has no keys"
    assert main.wrong_key(config, "student.training.lr") == ""


def test_config_arguments_are_read_by_one_grammar():
    assert base.words("olmo,seeds=5", variant="qwen", seeds=1) == {"variant": "olmo", "seeds": 5}
    with pytest.raises(ValueError, match="'rounds=2': allowed are seeds=..."):
        base.words("rounds=2", seeds=1)


BAD = [
    ("trust.name", "neurl", "did you mean 'neural'"),
    ("methods", ("naive", "ntff"), "method 'ntff' is not in the config"),
    ("select.n", 10_000, "select.n=10000: the target has 60 answered questions"),
    ("select.rule", "best", "select.rule='best': allowed are top_n"),
    ("teacher.style", "lettre", "unknown prompt style 'lettre'"),
    ("teacher.model", "", "no model is named"),
    ("teacher.model", "pretrain:week", "name one of them"),
    ("student.training.schedule", "step", "allowed are cosine"),
    ("student.objective", "sftt", "did you mean 'sft'"),
    ("tasks.name", "tests.nothing", "tests.nothing"),
    ("tasks.num_target", 0, "the target role has no questions"),
    ("teacher.shape.row_length", 4, "allowed are 4: raise shape.row_length"),
    ("observe.layers", (7,), "layer 7"),
    ("student.attention", "flash", "flash"),
    ("mesh.data", 3, "needs 3 devices"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return str(tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize("key, value, message", BAD, ids=[f"{key}={value}" for key, value, _ in BAD])
def test_a_bad_setting_is_refused_in_words(key, value, message, shared, tmp_path):
    from tests import toy

    config = toy.get_config()
    *sections, last = key.split(".")
    node = config
    for word in sections:
        node = node[word]
    node[last] = value
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        main.run(config, workdir=str(tmp_path), store=shared)


@pytest.mark.parametrize("start", ["run", "sweep", "transfer"])
def test_a_study_of_theory_is_refused_with_the_command_that_runs_it(start, tmp_path):
    from experiments import sweep, transfer
    from experiments.configs import theory_linear

    begin = {
        "run": lambda config: main.run(config, workdir=str(tmp_path / "run"), store=str(tmp_path / "run" / "store")),
        "sweep": lambda config: sweep.of_flags(config, [], [], ["pairs=1,2"], ""),
        "transfer": lambda config: transfer.run(config, ("a:b", "c:d")),
    }
    with pytest.raises(ValueError, match="'theory_linear' .*python -m experiments.theory"):
        begin[start](theory_linear.get_config("quick"))
    assert not (tmp_path / "run").exists()


def test_an_unknown_keyword_is_refused_with_the_known_ones(shared, tmp_path):
    from tests import toy

    config = toy.get_config()
    config.trust.neural = {"widht": 3}
    with pytest.raises(ValueError, match="knows no 'widht' .did you mean 'width'"):
        main.run(config, workdir=str(tmp_path), store=shared)


def test_each_seed_has_labels_of_its_own_and_those_of_seeds_that_are_gone_are_forgotten(tmp_path, monkeypatch):
    from tests import toy
    from w2s_jax import pipeline, recovery

    def link(run, teacher, student):
        run.stage("teach", lambda work, **inputs: None, label="teach ntf", seed=run.seed)
        return pipeline.Linked(recovery.Trial("d", teacher, student, "sft", 0, run.seed, None, None, {}), {}, {}, {})

    monkeypatch.setattr(pipeline, "link", link)
    monkeypatch.setattr("w2s_jax.run.find_model", lambda run, word: word)
    config = toy.get_config("seeds=2")
    for seeds, labels in (((0, 1), {"seed 0 teach ntf", "seed 1 teach ntf"}), ((1,), {"teach ntf"})):
        config.seeds = seeds
        main.run(config, workdir=str(tmp_path), store=str(tmp_path / "store"))
        assert set(json.loads((tmp_path / "runs.json").read_text())) == labels


def test_students_and_trust_functions_are_linked_by_method_and_seed(tmp_path):
    labels = {
        "teach ntf": "teach-1",
        "seed 3 teach ntf": "teach-2",
        "seed 3 naive-chain gen 2 teach ntf": "teach-2",
        "calibrate ntf": "calibrate-1",
        "answer ntf": "answer-1",
    }
    for folder, inside in (("teach-1", "model"), ("teach-2", "model"), ("calibrate-1", "trust"), ("answer-1", "model")):
        (tmp_path / "store" / folder / inside).mkdir(parents=True)
        (tmp_path / "store" / folder / inside / "name").write_text(folder)
    (tmp_path / "run" / "student").mkdir(parents=True)
    (tmp_path / "run" / "student" / "mine.txt").write_text("")
    (tmp_path / "run" / "student" / "naive").symlink_to(tmp_path / "store" / "teach-1")  # of a method that is gone
    (tmp_path / "run" / "runs.json").write_text(json.dumps(labels))
    for _ in range(2):
        main.link_results(str(tmp_path / "run"), str(tmp_path / "store"))
    found = {
        str(p.relative_to(tmp_path / "run")): (p / "name").read_text() for p in (tmp_path / "run").glob("*/*") if p.is_dir()
    }
    chained = {"student/seed3_naive-chain_gen2_ntf": "teach-2"}
    assert found == {"student/ntf": "teach-1", "student/seed3_ntf": "teach-2", "trust/ntf": "calibrate-1"} | chained
    assert (tmp_path / "run" / "student" / "mine.txt").exists()


def logged(folder, *trainings):
    """A workdir's metrics.jsonl: for each training its stage, its artefact, and what each step measured."""
    with open(folder / "metrics.jsonl", "w") as file:
        for stage, artefact, steps in trainings:
            for step, measured in enumerate(steps):
                file.write(json.dumps({"stage": stage, "artefact": artefact, "step": step, **measured}) + "\n")


def test_curves_and_texts_are_those_of_the_seed_and_of_students_that_wrote(tmp_path):
    wrote = [{"reward": 0.5, "loss": 1.0}, {"loss": 1.0}, {"reward": 0.75, "loss": 1.0}]  # a round of two steps, and another
    nothing = [{"reward": 0.0}, {"reward": 0.0}]
    logged(
        tmp_path,
        ("seed 3 teach ntf", "teach-1", wrote),
        ("teach ntf", "teach-3", nothing),
        ("seed 3 teach naive", "teach-2", nothing),
    )
    (tmp_path / "runs.json").write_text(
        json.dumps({"seed 3 teach ntf": "teach-1", "seed 3 teach naive": "teach-2", "teach ntf": "teach-3"})
    )
    for folder in ("teach-1", "teach-2", "teach-3"):
        (tmp_path / "store" / folder).mkdir(parents=True)
    for folder in ("teach-1", "teach-3"):
        (tmp_path / "store" / folder / "completions.json").write_text(json.dumps([{"round": 0}]))
    found = main.read_learning(str(tmp_path), str(tmp_path / "store"), "seed 3 ", ("naive", "ntf", "gold"))
    assert set(found) == {"ntf"} and found["ntf"].rounds == [{"round": 0}]
    assert found["ntf"].curves == {"reward": [(0, 0.5), (2, 0.75)]}
    (tmp_path / "metrics.jsonl").unlink()
    assert main.read_learning(str(tmp_path), str(tmp_path / "store"), "seed 3 ", ("ntf",))["ntf"].curves == {}


def test_the_area_of_learning_is_of_the_seed_and_of_what_was_logged_here(tmp_path):
    labels = {"seed 3 teach ntf": "teach-1", "teach ntf": "teach-2", "seed 3 teach naive": "teach-3"}
    (tmp_path / "runs.json").write_text(json.dumps(labels))
    assert main.read_learnt(str(tmp_path), "seed 3 ", ("ntf",)) == {}
    losses = {"teach-1": (3.0, 1.0), "teach-2": (9.0, 9.0), "teach-3": (5.0, 2.0)}
    logged(tmp_path, *((stage, a, [{"loss": loss, "lr": 0.1} for loss in losses[a]]) for stage, a in labels.items()))
    found = main.read_learnt(str(tmp_path), "seed 3 ", ("naive", "ntf", "gold"))
    assert {method: (one.curve, one.steps, one.area) for method, one in found.items()} == {
        "naive": ("loss", 2, 3.5),
        "ntf": ("loss", 2, 2.0),
    }


def test_a_student_of_earlier_settings_has_its_own_curves_and_not_those_of_the_one_between(tmp_path):
    for artefact, rewards in (("teach-a", (0.5, 0.75)), ("teach-b", (0.25, 0.125, 0.0))):  # the third run found teach-a made
        writer = Writer(tmp_path, tensorboard=False)
        for step, reward in enumerate(rewards):
            writer("teach ntf", artefact, step, {"reward": reward})
    for artefact, curve in (("teach-a", [(0, 0.5), (1, 0.75)]), ("teach-b", [(0, 0.25), (1, 0.125), (2, 0.0)])):
        (tmp_path / "runs.json").write_text(json.dumps({"teach ntf": artefact}))
        (tmp_path / artefact).mkdir()
        (tmp_path / artefact / "completions.json").write_text("[]")
        assert main.read_learning(str(tmp_path), str(tmp_path), "", ("ntf",))["ntf"].curves == {"reward": curve}
        assert main.read_learnt(str(tmp_path), "", ("ntf",))["ntf"].steps == len(curve)


def test_a_half_line_of_metrics_does_not_end_a_run(tmp_path):
    logged(tmp_path, ("teach ntf", "teach-1", [{"loss": 3.0}, {"loss": 1.0}]))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "teach n')  # of a student that another workdir has taught to its end since
    (tmp_path / "runs.json").write_text(json.dumps({"teach ntf": "teach-1"}))
    assert main.read_learnt(str(tmp_path), "", ("ntf",))["ntf"].steps == 2


def test_a_training_names_the_artefact_that_it_makes(tmp_path, monkeypatch):
    from tests import toy
    from w2s_jax import run as running
    from w2s_jax import store

    def pretrain(*given, log, **settings):
        log(0, {"loss": 1.0})

    monkeypatch.setattr(running, "pretrain", pretrain)
    monkeypatch.setattr(running.hf_io, "save", lambda lm, folder: None)
    kept, told = store.Store(tmp_path, log=lambda line: None), []
    run = running.Run(toy.get_config(), 0, kept, lambda *said: told.append(said), prefix="seed 0 ")
    model = running.find_model(run, "pretrain:weak")
    assert told == [("seed 0 pretrain weak", pathlib.Path(model.folder).parent.name, 0, {"loss": 1.0})]


def test_progress_leaves_standard_output_to_the_table(capsys):
    main.say("half way")
    assert tuple(capsys.readouterr()) == ("", "half way\n")


def test_an_unwritable_workdir_is_refused(tmp_path):
    from tests import toy

    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write in .*--workdir"):
        main.run(toy.get_config(), workdir=str(tmp_path / "file" / "run"), store=str(tmp_path / "store"))


def test_metrics_are_cut_back_to_where_an_artefact_resumes(tmp_path):
    writer = Writer(tmp_path, tensorboard=False)
    for artefact in ("teach-1", "teach-2"):  # the second of other settings
        for step in range(5):
            writer("teach ntf", artefact, step, {"loss": 1.0})
    writer("teach gold", "teach-3", 0, {"loss": 2.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "teach n')  # a kill in the middle of a line
    again = Writer(tmp_path, tensorboard=False)
    again("teach ntf", "teach-2", 3, {"loss": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    kept = [("teach-1", s) for s in range(5)] + [("teach-2", s) for s in range(3)] + [("teach-3", 0)]
    assert [(row["artefact"], row["step"]) for row in lines] == [*kept, ("teach-2", 3)]
    assert {row["stage"] for row in lines if row["artefact"] != "teach-3"} == {"teach ntf"}
