"""Bad input as a user meets it, through a whole run: one error that names the value, what is allowed and what to change."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from experiments import main
from tests import tiny, toy
from w2s_jax.models import decoder, hf_io
from w2s_jax.models.tokenizer import word_level
from w2s_jax.types import LM

ROOT = pathlib.Path(__file__).parents[1]
WORDS = toy.make(seed=0).vocabulary()
TASK = """
from tests import toy
from w2s_jax.types import Gold

def make(*, accepted, **keywords):
    task = toy.make(**keywords)
    def gold(split):
        ids = tuple(question.id for question in task.questions(split))
        return Gold(ids, (accepted,) * len(ids)) if accepted else None
    task.gold = gold
    return task
"""
HEAD = """
import numpy as np

class Head:
    needs = frozenset()
    def __init__(self, value): self.value = value
    def fit(self, evidence, correct, key): return self
    def score(self, evidence): return np.full(len(evidence.answers), self.value)
    def state(self): return {}
    def restore(self, state): return self

def make(*, value): return Head(value)
"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A Hugging Face directory of a small model that knows the toy's words."""
    folder, words = tmp_path_factory.mktemp("models") / "sound", word_level(WORDS)
    config = dataclasses.replace(tiny.CONFIG, vocab_size=words.vocab_size)
    hf_io.save(LM(config, decoder.init(config, jax.random.key(0)), words), folder)
    return folder


@pytest.fixture
def hurt(sound, tmp_path):
    """A copy of the model to damage."""
    return pathlib.Path(shutil.copytree(sound, tmp_path / "hurt"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return str(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def config(sound):
    c = toy.get_config()
    c.teacher.model = c.student.model = str(sound)
    c.methods = ("ntf",)
    return c


@pytest.fixture
def refused(config, shared, tmp_path):
    """Runs the config and expects one error that says all of this."""

    def expect(*said):
        with pytest.raises(ValueError) as error:
            main.run(config, workdir=str(tmp_path / "run"), store=shared)
        message = str(error.value)
        assert all(part in message for part in said), message
        assert type(error.value) is ValueError and len(message.splitlines()) < 40
        assert not (tmp_path / "run" / "report").exists()

    return expect


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut(path, length=60):
    path.write_bytes(path.read_bytes()[:length])


def rename_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.scale"] = weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors")


def test_the_model_and_the_config_of_this_file_are_sound(config, shared, tmp_path):
    config.select.n = 60
    assert pathlib.Path(main.run(config, workdir=str(tmp_path), store=shared), "recovery.json").exists()


# ---- Words of the config ----------------------------------------------------------------------------------------------------


def test_a_misspelt_task_is_told_the_nearest(config, refused):
    config.tasks.name = "arithmetc"
    there = "allowed are arithmetic, chess, choice, endgame"
    refused("task 'arithmetc'", "did you mean 'arithmetic'?", there, "change the word in the config")


def test_an_unknown_keyword_of_a_task_or_of_a_row_is_told_the_known_ones(config, refused):
    config.tasks = ConfigDict({"name": "arithmetic", "num_sorce": 5})
    refused("task 'arithmetic' knows no 'num_sorce' (did you mean 'num_source'?)", "its keywords are seed, num_source")
    config.tasks, config.methods = toy.get_config().tasks, ("naive",)
    config.method.naive.args = ConfigDict({"knd": "random"})
    refused("trust 'controls' knows no 'knd' (did you mean 'kind'?)", "its keywords are kind, of")


def test_a_row_that_needs_the_scores_of_a_later_one_is_refused(config, refused):
    config.methods = ("shuffled", "ntf")
    refused("method 'shuffled'", "needs 'score/ntf'", "there is only answer_logp", "reorder or change methods in the config")


@pytest.mark.parametrize("shots", [-1, 60])
def test_more_demonstrations_than_the_source_can_spare_are_refused(config, refused, shots):
    config.teacher.shots = shots
    refused(f"shots={shots}: the source has 60 questions, allowed is 0..59", "change teacher.shots")


@pytest.mark.parametrize(("rule", "amount"), [("fraction", 1.5), ("fraction", 0.0), ("threshold", 1.5)])
def test_an_amount_that_no_pool_has_is_refused(config, refused, rule, amount):
    config.methods, config.select.rule, config.select[rule] = ("naive",), rule, amount
    refused(f"select.{rule}={amount}", f"select.{rule} in the config")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("checkpoint_every", 0, "checkpoint_every=0"),
        ("accumulation", 0, "accumulation=0"),
        ("epochs", -1.0, "epochs=-1.0"),
    ],
)
def test_a_training_that_cannot_be_is_refused(config, refused, key, value, said):
    config.student.training[key] = value
    refused(said, "allowed")


def test_an_unknown_number_format_is_refused(config, refused):
    config.teacher.dtype = "float23"
    refused("dtype='float23'", "float32", "bfloat16")


def test_bfloat16_parameters_are_for_what_is_frozen(config, refused):
    config.student.param_dtype = "bfloat16"
    refused("parameters in bfloat16 cannot all be trained", "set student.param_dtype to 'float32'", "lora_rank above 0")
    config.teacher.param_dtype = "int8"
    refused("param_dtype='int8': allowed are float32, bfloat16", "change it in the config")


def test_fewer_bits_are_for_a_frozen_base_and_need_their_package(config, refused, monkeypatch):
    config.student.quantise = "int3"
    refused("quantise='int3': allowed are '' (not), int8, nf4", "change student.quantise")
    config.student.quantise = "int8"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused("pip install 'w2s_jax[quant]'", "or set student.quantise to ''")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    refused("student.quantise='int8' is for a frozen base", "lora_rank above 0")


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_folder_without_a_fitted_head_is_refused(config, refused, tmp_path, folder):
    (tmp_path / "empty").mkdir()
    config.trust.from_ = str(tmp_path / folder)
    refused(config.trust.from_, "no trust.json here; give the folder of a fitted trust function")


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_a_forks_head_that_returns_no_probabilities_is_named(config, refused, tmp_path, monkeypatch, value):
    (tmp_path / "odd_heads").mkdir()
    (tmp_path / "odd_heads" / "flat.py").write_text(HEAD)
    monkeypatch.syspath_prepend(tmp_path)
    config.method.ntf.trust, config.method.ntf.args = "odd_heads.flat", ConfigDict({"value": value})
    refused("trust 'odd_heads.flat' returned scores", f"to {value}", "60 finite numbers in [0, 1]", "mend its score()")


# ---- Models on disk ---------------------------------------------------------------------------------------------------------

DAMAGE = {
    "weights cut off": (lambda m: cut(m / "model.safetensors", 9000), ("model.safetensors has 9000 bytes", "fetch it again")),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), ("neither model.safetensors nor", "are not read")),
    "other weights": (rename_tensor, ("1 missing, 1 unexpected", "model.norm.weight (16,)  (near: model.norm.scale)")),
    "no config": (lambda m: (m / "config.json").unlink(), ("config.json does not exist", "a model is a directory with")),
    "cut config": (lambda m: cut(m / "config.json"), ("config.json is no JSON",)),
    "unknown family": (
        lambda m: edit(m / "config.json", model_type="gpt2"),
        ("model_type = 'gpt2'", "'llama', 'olmo2', 'qwen2', 'qwen3'"),
    ),
    "unsupported field": (
        lambda m: edit(m / "config.json", attention_bias=True),
        ("attention_bias = True is not supported", "allowed is False"),
    ),
    "no tokenizer": (lambda m: (m / "tokenizer.json").unlink(), ("tokenizer.json does not exist", "only fast tokenizers")),
    "larger tokenizer": (
        lambda m: word_level((*WORDS, "surplus")).save(m),
        ("the tokenizer has 20 ids, config.json has vocab_size = 19", "take the tokenizer that the model was trained with"),
    ),
    "cut tokenizer": (lambda m: cut(m / "tokenizer.json"), ("tokenizer.json",)),
    "cut tokenizer_config": (lambda m: cut(m / "tokenizer_config.json"), ("tokenizer_config.json",)),
    "cut generation_config": (lambda m: cut(m / "generation_config.json", 9), ("generation_config.json is no JSON",)),
    "cut index": (lambda m: (m / "model.safetensors.index.json").write_text("{"), ("safetensors.index.json is no JSON",)),
    "config is a list": (lambda m: (m / "config.json").write_text("[]"), ("config.json",)),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_model_is_named_with_what_it_lacks(config, refused, hurt, what):
    damage, said = DAMAGE[what]
    damage(hurt)
    config.teacher.model = str(hurt)
    refused(str(hurt), *said)


def test_a_damaged_student_is_named_too(config, refused, hurt):
    cut(hurt / "model.safetensors", 9000)
    config.student.model = str(hurt)
    config.select.n = 60
    refused(str(hurt), "model.safetensors has 9000 bytes", "fetch it again")


def test_a_model_that_is_nowhere_is_refused_with_the_line_to_change(config, refused, monkeypatch):
    import huggingface_hub

    def unreachable(*args, **keywords):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    config.student.model = "nobody/nothing"
    refused("model 'nobody/nothing' is no directory here", "no network", "set teacher.model / student.model in the config")


# ---- Questions --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def local(config, tmp_path):
    """Makes the run read local files; returns what writes one."""

    def write(role, rows):
        (tmp_path / f"x.{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def row(i):
        return {"id": f"x/{i}", "question": f"{toy.NAMES[i // 3]} {i % 3} + 1 =", "choices": list(toy.DIGITS), "answer": i % 5}

    for role, places in (("source", range(10)), ("target", range(10, 20)), ("test", range(20, 30))):
        write(role, map(row, places))
    roles = {role: (f"x:{role}",) for role in ("source", "target", "test")}
    config.tasks = ConfigDict({"name": "choice", "root": str(tmp_path), **roles})
    return write, row


def test_a_malformed_and_a_repeated_row_reach_the_user_with_file_and_line(refused, local):
    write, row = local
    write("target", [row(10), row(11) | {"answer": 5}])
    refused("x.target.jsonl:2: answer 5 is out of range; allowed are 0 to 4")
    write("target", [row(10), row(11), row(10)])
    refused("x.target.jsonl:3: id 'x/10' is already on line 1; ids must be unique")


@pytest.mark.parametrize("role", ["source", "target", "test"])
def test_a_role_without_questions_is_refused(config, refused, local, role):
    local[0](role, [])
    refused(f"x.{role}.jsonl has no rows; put questions there or take x:{role} out of the config")
    config.tasks[role] = ()
    refused(f"the {role} role has no questions; change the tasks section of the config")


@pytest.mark.parametrize("role", ["source", "test"])
def test_only_the_target_may_be_without_answers(refused, local, role):
    write, row = local
    write(role, [row(i) | {"answer": None} for i in range(3)])
    refused(f"x.{role}.jsonl:1: no answer", "only the target may be without answers", f"--config.tasks.{role}")


@pytest.fixture
def graded(config, tmp_path, monkeypatch):
    """Makes the run's task accept these answers, whatever the question."""
    (tmp_path / "odd_tasks").mkdir()
    (tmp_path / "odd_tasks" / "flat.py").write_text(TASK)
    monkeypatch.syspath_prepend(tmp_path)

    def accept(*answers):
        config.tasks = ConfigDict({"name": "odd_tasks.flat", "accepted": answers})

    return accept


@pytest.mark.parametrize(("accepted", "word"), [(toy.DIGITS, "right"), (("none",), "wrong")])
def test_a_source_whose_labels_are_all_right_or_all_wrong_is_refused(refused, graded, accepted, word):
    graded(*accepted)
    refused(f"all 60 weak labels of the source are {word}", "needs both", "change tasks.source", "or the teacher")


def test_a_source_of_a_forks_own_without_answers_is_refused(refused, graded):
    graded()
    refused("the source has no answers", "change tasks.source in the config")


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_question_longer_than_the_models_context_is_refused(config, refused, hurt, who):
    edit(hurt / "config.json", max_position_embeddings=4)
    config[who].model = str(hurt)
    refused("question '", "has 6 tokens, the model's context", "max_position_embeddings", "is 4")


def test_a_lesson_longer_than_the_students_row_is_refused(config, refused):
    config.student.training.shape.row_length = 4
    refused("has 6 tokens, allowed are 4", "raise shape.row_length of this model in the config")


# ---- Numbers that are none --------------------------------------------------------------------------------------------------


def test_a_student_whose_loss_is_no_number_is_never_stored(config, refused, shared):
    config.student.training.update(lr=float("inf"), epochs=9.0)
    refused("the loss is ", "nan at step", "with lr=inf: lower lr (student.training.lr")
    finished = {path.parent.name for path in pathlib.Path(shared).glob("teach-*/manifest.json")}
    config.student.training.lr = 1e31
    refused("with lr=1e+31")
    assert finished == {path.parent.name for path in pathlib.Path(shared).glob("teach-*/manifest.json")}


# ---- Not refused yet: once a row is, it goes to its section ------------------------------------------------------------------


def one_step_too_far(c):
    c.student.training.update(lr=float("inf"), epochs=0.01)  # the loss is looked at before the step, not behind it


def words_that_the_model_does_not_know(c):
    sizes = dict(num_source=60, num_target=60, num_test=60, num_weak=60, num_strong=60)
    c.tasks, c.methods = ConfigDict({"name": "arithmetic", **sizes}), ("naive",)


MEANINGLESS = {
    "seeds=()": (lambda c: c.update(seeds=()), ("seeds",)),
    "methods=()": (lambda c: c.update(methods=()), ("methods",)),
    "labels='golden'": (lambda c: c.method.ntf.update(labels="golden"), ("'golden'", "weak", "gold")),
    "batch_rows=0": (lambda c: c.teacher.shape.update(batch_rows=0), ("batch_rows=0",)),
    "layers=()": (lambda c: c.observe.update(layers=()), ("observe.layers",)),
    "a student of NaN": (one_step_too_far, ("lr=inf", "lower lr")),
    "words that the model does not know": (words_that_the_model_does_not_know, ("tokenizer",)),
}


@pytest.mark.parametrize("what", MEANINGLESS)
def test_a_config_that_means_nothing_is_refused(config, refused, what):
    change, said = MEANINGLESS[what]
    config.select.n = 60
    change(config)
    refused(*said)


def test_a_task_without_a_corpus_cannot_pretrain(config, refused, local):
    config.teacher.model = "pretrain:weak"
    refused("task 'choice'", "corpus", "teacher.model")


# ---- The command ------------------------------------------------------------------------------------------------------------


def test_what_a_run_refuses_is_one_screen_on_the_command_line(sound, local, tmp_path):
    write, row = local
    write("target", [row(10), {"id": 3}])
    config = ["--config=experiments/configs/world_knowledge.py", f"--config.tasks.root={tmp_path}"]
    config += [f"--config.{who}.model={sound}" for who in ("teacher", "student")]
    config += [f"--config.tasks.{role}=('x:{role}',)" for role in ("source", "target", "test")]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.main", f"--workdir={tmp_path}/run", *config],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and done.stdout == ""
    assert "error: " in done.stderr and "x.target.jsonl:2: field 'id' is 3, allowed is text" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) < 40
