"""What a run leaves behind is of use: a fitted head scores new answers, a student opens in transformers."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

import w2s_jax.run
from experiments import main, score
from tests import tiny, toy
from w2s_jax import pipeline, processes, store
from w2s_jax.models import decoder, hf_io
from w2s_jax.models.tokenizer import word_level
from w2s_jax.run import Run, find_model
from w2s_jax.types import LM, Answers

ROOT = pathlib.Path(__file__).parents[1]


def config(**observe):
    c = toy.get_config()
    c.methods = ("ntf", "shuffled")
    c.pretrain.strong.decoder.update(c.pretrain.weak.decoder)  # models of one shape share their programs
    c.student.training.update(epochs=20.0, lr=1e-2)  # enough for the student to say more than one word
    c.student.training.shape = c.teacher.shape
    c.observe.update(observe)
    return c


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    main.run(config(), workdir=str(folder), store=str(folder / "store"))
    return folder


def stored(workdir, label):
    return store.read(workdir / "store" / json.loads((workdir / "runs.json").read_text())[label]).value


def judge(workdir, method="ntf", *, teacher="pretrain:weak", role="target", says=lambda line: None, **observe):
    run = Run(config(**observe), 0, store.Store(workdir / "store", log=says), lambda *metrics: None)
    folder = method if "/" in str(method) else workdir / "trust" / method
    return pipeline.judge(run, find_model(run, teacher), folder, role=role)


def command(workdir, *flags):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.score", "--config=tests/toy.py", f"--workdir={workdir}", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_command_writes_a_line_of_json_for_each_answer_with_the_runs_own_scores(workdir):
    code, out, err = command(workdir, f"--trust={workdir}/trust/ntf")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    answers = stored(workdir, "answer target")["answers"]
    assert all(list(row) == ["id", "answer", "score"] for row in rows)
    assert [(row["id"], row["answer"]) for row in rows] == list(zip(answers.question_id, answers.final, strict=True))
    np.testing.assert_allclose([row["score"] for row in rows], stored(workdir, "trust ntf"), rtol=0, atol=6e-7)


@pytest.mark.parametrize("first", [True, False])
def test_all_processes_end_together_and_the_first_alone_writes(first, tmp_path, monkeypatch):
    told, out = [], tmp_path / "scores.jsonl"
    monkeypatch.setattr(processes, "is_first", lambda: first)
    monkeypatch.setattr(processes, "barrier", lambda name: told.append((name, out.exists() and out.read_text().count("\n"))))
    monkeypatch.setattr(pipeline, "judge", lambda *args, role: (Answers(("a", "b"), ("1", "2"), ("1", "2")), np.ones(2)))
    monkeypatch.setattr(w2s_jax.run, "find_model", lambda run, word: None)
    monkeypatch.setattr(score.cli, "folders", lambda config: ("", ""))
    monkeypatch.setattr(score.cli, "open_store", lambda store, workdir: None)
    for name, value in {"TRUST": "", "ROLE": "target", "OUT": str(out)}.items():
        monkeypatch.setattr(score, name, types.SimpleNamespace(value=value))
    score.score(config())
    assert told == [("scores written", 2 if first else False)]


def test_a_refusal_of_the_command_is_one_screen_and_writes_no_line(workdir, tmp_path):
    code, out, err = command(workdir, f"--trust={tmp_path}")
    assert code != 0 and out == ""
    assert f"error: {tmp_path}: no trust.json here; give the folder of a fitted trust function" in err
    assert "Traceback" not in err and len(err.splitlines()) < 40


def test_scores_are_those_of_the_run_bit_for_bit(workdir):
    lines = []
    answers, scores = judge(workdir, says=lines.append)
    np.testing.assert_array_equal(scores, stored(workdir, "trust ntf"))
    assert len(set(scores.tolist())) > 5  # else any order of them would pass
    assert answers == stored(workdir, "answer target")["answers"]
    assert all(line.endswith("cached") for line in lines)


def test_another_role_is_answered_and_scored(workdir):
    answers, scores = judge(workdir, role="test")
    assert len(answers) == len(scores) == 40 and 0 <= scores.min() <= scores.max() <= 1
    assert set(answers.question_id) == {question.id for question in toy.make(seed=0).questions("test")}


def test_a_folder_without_a_trust_function_is_refused(workdir, tmp_path):
    with pytest.raises(ValueError, match=r"no trust.json here; give the folder .*<workdir>/trust/<method>"):
        judge(workdir, tmp_path)
    with pytest.raises(ValueError, match="no trust.json here"):
        judge(workdir, workdir)  # the run's own folder is not that of one of its heads


def test_a_head_of_another_schema_is_refused(workdir, tmp_path):
    shutil.copytree(workdir / "trust" / "ntf", tmp_path / "old")
    described = json.loads((tmp_path / "old" / "trust.json").read_text()) | {"schema": 0}
    (tmp_path / "old" / "trust.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="has schema 0, this version reads 1: fit it again"):
        judge(workdir, tmp_path / "old")


@pytest.mark.parametrize(
    ("observe", "said"),
    [
        ({"layers": (0, -1)}, r"observe.layers=\[-1\], this config has \[0, -1\]"),
        ({"layers": (0,)}, r"observe.layers=\[-1\], this config has \[0\]"),  # of the same width
        ({"token": "eos"}, "observe.token='content', this config has 'eos'"),
    ],
)
def test_a_head_for_other_hidden_states_is_refused(workdir, observe, said):
    with pytest.raises(ValueError, match=f"trust/ntf was fitted with {said}; set it to the former"):
        judge(workdir, **observe)


def test_a_head_for_a_teacher_of_another_width_is_refused(workdir, tmp_path):
    narrow, words = dataclasses.replace(tiny.CONFIG, vocab_size=19, width=8), word_level(toy.make(seed=0).vocabulary())
    hf_io.save(LM(narrow, decoder.init(narrow, jax.random.key(0)), words), tmp_path)
    with pytest.raises(
        ValueError, match="have 8 features, this trust head was fitted on 16: use the teacher and observe.layers"
    ):
        judge(workdir, teacher=str(tmp_path))


def test_a_head_that_needs_what_a_new_pool_has_not_is_refused(workdir):
    with pytest.raises(ValueError, match="trust 'controls' needs score/ntf, which scoring a new pool cannot give; choose"):
        judge(workdir, "shuffled")


def test_a_teacher_that_the_head_was_not_fitted_on_is_noted(workdir):
    lines = []
    judge(workdir, says=lines.append)
    assert not any("note:" in line for line in lines)
    _, scores = judge(workdir, teacher="pretrain:strong", says=lines.append)
    assert (scores != stored(workdir, "trust ntf")).any()
    (note,) = [line for line in lines if "note:" in line]
    assert "was fitted on the teacher 'weak', another model than this 'strong'" in note


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is the reference here")
def test_transformers_opens_the_student_and_gives_the_same_answers(workdir):
    import torch
    import transformers

    torch.set_num_threads(1)
    folder = workdir / "student" / "ntf"
    hf, report = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = stored(workdir, "answer test ntf")
    questions = toy.make(seed=0).questions("test")
    assert ours["answers"].question_id == tuple(question.id for question in questions)
    theirs = []
    with torch.no_grad():
        for question in questions:
            logits = hf(**tokenizer(question.prompt, return_tensors="pt")).logits[0, -1]
            candidates = [tokenizer.convert_tokens_to_ids(option) for option in question.options]
            theirs.append(logits[candidates].log_softmax(0).numpy())
    np.testing.assert_allclose(np.stack(theirs), ours["extra"]["option_logp"], rtol=0, atol=1e-4)
    final = tuple(question.options[row.argmax()] for question, row in zip(questions, theirs, strict=True))
    assert final == ours["answers"].final and len(set(final)) > 1
