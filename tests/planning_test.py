"""Planning: what is planned is what runs, loops are multiplied out, and what does not fit gets the smallest change that does.

`python -m tests.planning_test --update NAME` rewrites a golden plan for the installed jax and libtpu. Do so after an intended
change of a program (read the difference) or for a new pair of versions.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import plan
from tests import tiny, toy
from tests.gathering_test import classifier
from w2s_jax.models import decoder
from w2s_jax.models.config import DecoderConfig
from w2s_jax.models.tokenizer import word_level
from w2s_jax.packing import Shape
from w2s_jax.planning import budget, hlo, phases, search, topology
from w2s_jax.settings import method_row, objective_of
from w2s_jax.student import trainer
from w2s_jax.tasks.asking import Asking
from w2s_jax.types import Answers, Lesson

ROOT = pathlib.Path(__file__).parent.parent


def command(*arguments, timeout=600):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.plan", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


# ---- What is planned is what runs --------------------------------------------------------------------------------------


def subprocess_of_two_devices(*arguments) -> str:
    two = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    env = os.environ | two | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__, *arguments], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def split_toy(interface="choice", objective="sft"):
    """The toy over two devices, with adapters on parameters of half the size."""
    config = toy.get_config(f"interface={interface},objective={objective}")
    config.mesh.fsdp = 2
    config.student.training.update(lora_rank=2, accumulation=1 if objective == "grpo" else 2)
    config.student.training.shape.row_length = 8 if objective == "grpo" else 32  # one answer fills a row, as is planned
    config.student.param_dtype = config.teacher.param_dtype = "bfloat16"
    return config


def held(tree) -> int:
    """The bytes of arrays on the first device."""
    return sum(
        sum(shard.data.nbytes for shard in x.addressable_shards if shard.device == jax.devices()[0])
        if isinstance(x, jax.Array)
        else np.asarray(x).nbytes
        for x in jax.tree.leaves(tree)
    )


def plan_and_hold() -> None:
    """Plans the toy for two devices, then makes the arrays that its training takes, as the trainer makes them."""
    from w2s_jax.models import decoder, sharding
    from w2s_jax.settings import compute_of, training_of
    from w2s_jax.student import sft, trainer

    config = split_toy()
    found = plan.plan(config, "cpu:2", stages=("observe",))
    (teach,) = (phase for phase in phases.phases(config, jax.devices()) if phase.stage == "teach")
    shape, training = phases.shape_of(config, config.student.model), training_of(config.student.training)
    compute = compute_of(sharding.make_mesh(**config.mesh), config.student)
    params = compute.place_params(jax.tree.map(lambda x: x.astype(jnp.bfloat16), decoder.init(shape, jax.random.key(0))))
    learnt = compute.place_params(
        trainer.fresh(params, jax.random.key(0), jax.random.key(1), objective=sft.make(), training=training)
    )
    state = trainer.TrainState(learnt, trainer.moments(learnt, optimizer=training.optimizer, mesh=compute.mesh))
    plan_of = sft.make().plan(phases.LESSON, lambda question, final: ([1], [1]), phases.device_shape(
        "student.training.shape", config.student.training.shape, compute.mesh), jax.random.key(0))  # fmt: skip
    batches = compute.place_rows(jax.tree.map(lambda *x: np.stack(x), plan_of.batch(0), plan_of.batch(1)), axis=1)
    real = (state, params, batches, np.float32(0))
    both = [[held(argument), budget.device_bytes(planned)] for argument, planned in zip(real, teach.arguments, strict=True)]
    print(json.dumps({"plan": found, "report": plan.report(found), "held and planned": both}))


def test_a_small_config_is_planned_and_its_bytes_are_those_of_the_real_arrays():
    said = json.loads(subprocess_of_two_devices("--hold").splitlines()[-1])
    found, (phase,) = said["plan"], said["plan"]["phases"]
    assert found["fits"] and found["exact"] and found["num_devices"] == 2
    assert phase["phase"] == "observe teacher" and phase["flops"] > 0 and phase["needs"] > phase["arguments"] > 0
    assert "observe teacher" in said["report"] and "everything fits" in said["report"]
    for real, planned in said["held and planned"]:
        assert real == planned > 0


def run_as_planned(folder, interface, objective) -> None:
    """Runs the toy on two simulated devices; says of each planned program whether just that was called."""
    from w2s_jax import choosing, features, pipeline, slots
    from w2s_jax.run import Run, find_model
    from w2s_jax.settings import compute_of
    from w2s_jax.store import Store
    from w2s_jax.student import online, trainer
    from w2s_jax.tasks.asking import Asked

    config = split_toy(interface, objective)
    config.select.n = 10  # the toy finishes few free answers
    config.methods = ("naive", "self_known")
    config.relabel.self_known.num_samples = 0 if interface == "choice" else 2
    for section in (*config.pretrain.values(), config.student):
        section.training.epochs = 0.1
    for who in ("teacher", "student"):
        # The longest prompts that fit are as long as those that there are.
        config[who].shape.row_length = 20 if interface == "choice" else 9
    called = []

    def record(module, name):
        program = getattr(module, name)

        def recorded(*arguments, **settings):
            leaves, tree = jax.tree.flatten(arguments)
            called.append((name, [(np.shape(x), x.dtype, held(x)) for x in leaves], tree, settings))
            return program(*arguments, **settings)

        recorded.name, recorded.lower = name, program.lower
        setattr(module, name, recorded)

    record(features, "gathered")
    record(trainer, "train_step")
    for module, name in (
        (choosing, "candidate_logits"),
        (choosing, "continuation_logp"),
        (slots, "read"),
        (slots, "write"),
        (online, "rescored"),
    ):
        record(module, name)
    planned = {phase.name: phase for phase in phases.phases(config, jax.devices())}
    if interface == "choice":  # the toy's answers are words of one token, as letters are
        planned["answer in texts"] = planned["answer teacher"]
        config.teacher.style = config.student.style = "letter"
        planned |= {phase.name: phase for phase in phases.phases(config, jax.devices())}
        config.teacher.style = config.student.style = "direct"
    run = Run(config, 0, Store(f"{folder}/store", workdir=folder), lambda *metrics: None)
    teacher, student = (find_model(run, word) for word in (config.teacher.model, config.student.model))
    pipeline.link(run, teacher, student)
    if interface == "choice":
        texts = [Asked("q", (2, 3), ((4, 5), (6, 7)), (1, 1))]
        settings = {"shape": phases.Shape(**config.teacher.shape), "compute": compute_of(run.mesh, config.teacher)}
        choosing.choose(run.load(teacher, "bfloat16"), texts, normalise="none", **settings)
    for name, phase in planned.items():
        if phase.stage != "calibrate":
            leaves, tree = jax.tree.flatten(phase.arguments)
            shapes = [(x.shape, x.dtype, budget.device_bytes(x)) for x in leaves]
            print(name, (phase.program.name, shapes, tree, dict(phase.settings)) in called, sep=": ")
    scoring = planned["score student" if interface == "choice" else "score student (read)"]
    compiled = scoring.lower().compile().memory_analysis()
    print("compiler", compiled.argument_size_in_bytes == budget.device_bytes(scoring.arguments), sep=": ")


@pytest.mark.slow
@pytest.mark.parametrize("interface, objective", [("choice", "sft"), ("free", "sft"), ("choice", "grpo"), ("choice", "raven")])
def test_a_run_calls_the_planned_programs_with_the_planned_shapes(interface, objective, tmp_path):
    said = subprocess_of_two_devices("--run", str(tmp_path), interface, objective)
    judged = dict(line.split(": ") for line in said.splitlines() if line.endswith((": True", ": False")))
    names = ["pretrain weak", "pretrain strong", "observe teacher", "relabel student (observe 1)", "teach student", "compiler"]
    if interface == "choice":
        names += ["answer teacher", "score student", "answer in texts", "relabel student"]
    else:
        stages = ("answer teacher", "score student", "relabel student", "relabel student again")
        names += [f"{stage} ({part})" for stage in stages for part in ("read", "write")]
    if objective == "grpo":
        names += [f"teach student ({part})" for part in ("read", "write", "rescore")]
    assert judged == dict.fromkeys(names, "True"), said


@pytest.mark.parametrize("word, changes", [("auxiliary_confidence", {}), ("raven", {"student.raven.teachers": 3})])
def test_batches_over_options_are_planned_as_a_lesson_makes_them(word, changes):
    config = toy.get_config(f"objective={word}")
    config.update_from_flattened_dict(changes)
    (teach,) = (phase for phase in phases.phases(config, jax.devices("cpu")[:1]) if phase.stage == "teach")
    task, objective = toy.make(seed=0), objective_of(config)
    asked = Asking(word_level(task.vocabulary()), config.student.style, False, 64)
    questions = task.questions("target")
    experts = np.full((len(questions), 3, 5), 0.2, np.float32) if word == "raven" else None
    final = ("0",) * len(questions)
    lesson = Lesson(questions, Answers(final, final, final), np.ones(len(questions), np.float32), None, experts)
    device, model = Shape(**config.student.training.shape), teach.settings["model"]
    plan_of = trainer.planned(objective, lesson, asked.ask, device, jax.random.key(0), model)
    batch = trainer.dated(objective, plan_of.batch(0), 0.5)
    real, planned = (jax.tree.leaves_with_path(x) for x in (batch, teach.arguments[2]))
    assert [(path, x.shape, x.dtype) for path, x in real] == [(path, x.shape[1:], x.dtype) for path, x in planned]
    own = jax.tree.leaves(teach.arguments[0].learnt["own"])
    assert [x.shape for x in own] == ([(3,)] if word == "raven" else [])


def test_a_chains_students_and_the_models_beside_the_teacher_are_planned_for(tmp_path):
    judge = classifier(tmp_path / "judge")
    (judge / "model.safetensors").unlink()  # its config.json is enough
    c = toy.get_config()
    c.methods = ("naive", "ntf", "committee", "reward_model")
    c.trust.committee.models, c.trust.reward_model.model = ("pretrain:strong", str(judge)), str(judge)
    c.chain.update(models=("pretrain:strong", "pretrain:weak"), controls=(), head="reuse")
    with pytest.raises(ValueError, match="ForSequenceClassification"):  # no member of a committee
        phases.phases(c, jax.devices("cpu")[:1])
    c.trust.committee.models = ("pretrain:strong",)
    found = {phase.name: phase for phase in phases.phases(c, jax.devices("cpu")[:1])}
    each = ("answer teacher", "observe teacher", "gather member 1", "gather reward 1", "teach student", "score student")
    gen = {f"{name} gen {n}" for name in each for n in (1, 2)}
    assert set(found) == {"pretrain weak", "pretrain strong", "calibrate head gen 1"} | gen
    held = {name: budget.device_bytes(phase.arguments[0]) for name, phase in found.items()}
    weak, strong = (4 * params_of(c.pretrain[name].decoder) for name in ("weak", "strong"))
    assert held["answer teacher gen 1"] == held["score student gen 2"] == weak != strong
    assert held["answer teacher gen 2"] == held["score student gen 1"] == held["gather member 1 gen 1"] == strong
    assert held["gather reward 1 gen 1"] == sum(p.size for p in jax.tree.leaves(decoder.shapes(JUDGE))) * 4
    assert found["answer teacher gen 1"].section == "teacher" and found["answer teacher gen 2"].section == "student"


def params_of(section):
    sizes = decoder.shapes(DecoderConfig(vocab_size=word_level(toy.make(seed=0).vocabulary()).vocab_size, **section.to_dict()))
    return sum(leaf.size for leaf in jax.tree.leaves(sizes))


JUDGE = dataclasses.replace(tiny.CONFIG, vocab_size=25)


def test_the_models_beside_the_teacher_are_named_in_the_plan(tmp_path):
    judged = phases.judges(
        [method_row(c, method) for c in [two_judges()] for method in ("reward_model", "committee", "naive", "again")]
    )
    assert judged == {
        "gather reward 1": ("reward", "r"), "gather member 1": ("committee_share", "a"),
        "gather member 2": ("committee_share", "b"), "gather likelihood 1": ("likelihood", "a"),
    }  # fmt: skip


def test_teachers_in_numbers_are_members_in_the_plan():
    c = toy.get_config()
    c.relabel.boosted.models, c.relabel.experts.models = ("a", "b"), ("b", "c")
    judged = phases.judges([method_row(c, method) for method in ("naive", "boosted", "experts")])
    assert list(judged.values()) == [("committee_share", word) for word in "abc"]


def test_a_student_that_is_asked_before_it_is_taught_is_planned_for():
    def found(*methods, **changes):
        c = toy.get_config()
        c.methods = methods
        c.update_from_flattened_dict(changes)
        return {phase.name: phase for phase in phases.phases(c, jax.devices("cpu")[:1])}

    assert not [name for name in found("naive", "ntf") if name.startswith("relabel")]
    one = found("naive", "self_known", "selective")
    asked, seen = one["relabel student"], one["relabel student (observe 1)"]
    assert [name for name in one if name.startswith("relabel")] == ["relabel student", "relabel student (observe 1)"]
    assert asked.key == one["score student"].key and asked.section == seen.section == "student"
    assert seen.program is one["observe teacher"].program
    strong = 4 * params_of(toy.get_config().pretrain["strong"].decoder)
    assert budget.device_bytes(seen.arguments[0]) == strong != budget.device_bytes(one["observe teacher"].arguments[0])
    two = found("self_known", "smoothed", **{"relabel.smoothed.layers": (0, -1)})
    assert two["relabel student (observe 2)"].settings["layers"] == (0, -1)


def two_judges():
    c = toy.get_config()
    with c.unlocked():
        c.method.again = toy.base.row("reward_model", kind="likelihood", model="a")
    c.trust.committee.models, c.trust.reward_model.model = ("a", "b"), "r"
    return c


def test_the_table_fits_a_terminal():
    row = budget.Budget(
        "pretrain strong", 999 << 20, 999 << 20, 999 << 20, 999 << 20, 3996 << 20, 16 << 30, 9.99e14, 9.99e11, 9.99e11, 0.999,
        10_000, 999.0, 999.0,
    )  # fmt: skip
    lines = plan.table([dataclasses.asdict(row) | {"fits": row.fits}])
    assert max(map(len, lines)) <= 120, lines
    assert "999 MiB" in lines[1] and "999T" in lines[1] and "999 ms" in lines[1]


# ---- Loops are multiplied out ------------------------------------------------------------------------------------------


def compiled_text(length, width=64):
    def program(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    shapes = (jax.ShapeDtypeStruct((8, width), jnp.float32), jax.ShapeDtypeStruct((length, width, width), jnp.float32))
    return jax.jit(program).lower(*shapes).compile().as_text()


def test_the_body_of_a_scan_counts_as_often_as_it_runs():
    short, long = (hlo.cost(compiled_text(length)) for length in (4, 32))
    assert short.flops == 4 * 2 * 8 * 64 * 64 and long.flops == 8 * short.flops
    # Each round reads its own slice of the stack, not the whole of it.
    assert 32 * 64 * 64 * 4 <= long.bytes <= 4 * 32 * 64 * 64 * 4


UNROLLED = """HloModule unrolled

%body (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p = (s32[], bf16[8,16]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %w = bf16[16,16]{1,0:T(8,128)(2,1)} constant({...})
  %y = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} convolution(%x, %w), dim_labels=bf_io->bf
  %z = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} convolution(%y, %w), dim_labels=bf_io->bf
  ROOT %out = (s32[], bf16[8,16]{1,0:T(8,128)(2,1)S(1)}) tuple(%next, %z)
}

%condition (p.1: (s32[], bf16[8,16])) -> pred[] {
  %p.1 = (s32[], bf16[8,16]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %bound = s32[]{:T(128)} constant(6)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

ENTRY %main (a: s32[], b: bf16[8,16]) -> bf16[8,16] {
  %a = s32[]{:T(128)} parameter(0)
  %b = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(1)
  %start = (s32[], bf16[8,16]{1,0:T(8,128)(2,1)S(1)}) tuple(%a, %b)
  %loop = (s32[], bf16[8,16]{1,0:T(8,128)(2,1)S(1)}) while(%start), condition=%condition, body=%body
  %result = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%loop), index=1
  ROOT %copied = bf16[8,16]{1,0:T(8,128)(2,1)} copy(%result)
}
"""


def test_a_loop_that_may_end_before_its_last_step_counts_all_of_them():
    c = toy.get_config("interface=free")
    (write,) = (p for p in phases.phases(c, jax.devices("cpu")[:1]) if p.name == "answer teacher (write)")

    def flops(num_steps):
        phase = dataclasses.replace(write, settings={**write.settings, "num_steps": num_steps})
        return hlo.cost(phase.lower().compile().as_text()).flops

    assert flops(12) == 6 * flops(2) > 0


def test_a_loop_that_the_compiler_unrolled_and_on_chip_memory_are_seen():
    cost = hlo.cost(UNROLLED)
    assert cost.flops == 3 * 2 * (2 * 8 * 16 * 16)  # three rounds of two products
    # The weight is read from main memory in each product; the state stays on the chip until it is copied out.
    assert cost.bytes == 3 * (2 * 16 * 16 * 2 + 3 * 4) + 3 * (2 * 4 + 1) + 8 * 16 * 2


def test_what_is_compiled_does_not_grow_with_the_layers():
    def observed(num_layers):
        config = toy.get_config()
        config.pretrain.weak.decoder.num_layers = num_layers
        found = {phase.stage: phase for phase in phases.phases(config, jax.devices()[:1])}
        return hlo.num_instructions(found["observe"].lower().compile().as_text())

    assert observed(12) <= 1.05 * observed(4)


# ---- What does not fit -------------------------------------------------------------------------------------------------


def toy_phases(**changes):
    config = toy.get_config()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config, phases.phases(config, jax.devices()[:1])


def test_changes_are_tried_in_the_order_that_is_written_down():
    config, found = toy_phases(student__training__lora_rank=4)
    teach = [phase for phase in found if phase.stage == "teach"]
    tried = list(search.changes(config, teach, num_devices=4))
    meshes = [{"mesh.data": 1, "mesh.fsdp": 4 // t, "mesh.tensor": t} for t in (1, 2, 4)]
    rows = [{"student.training.shape.batch_rows": 4 // k, "student.training.accumulation": k} for k in (2, 4)]
    singles = [*meshes, {"student.remat": "dots"}, {"student.remat": "full"}, *rows, {"student.param_dtype": "bfloat16"}]
    assert tried[: len(singles)] == singles
    assert tried[len(singles)] == meshes[0] | {"student.remat": "dots"}


def test_trained_parameters_are_never_narrowed():
    config, found = toy_phases()
    tried = search.changes(config, [phase for phase in found if phase.stage == "teach"], num_devices=1)
    assert not any("student.param_dtype" in change for change in tried)
    with pytest.raises(ValueError, match="parameters in bfloat16 cannot all be trained"):
        toy_phases(student__param_dtype="bfloat16")


def test_the_first_change_that_fits_is_found_by_compiling_it(monkeypatch):
    def scoring(config, devices):
        return [phase for phase in phases.phases(config, devices) if phase.stage == "score"]

    monkeypatch.setattr(search, "phases", scoring)
    config, devices = toy.get_config(), tuple(jax.devices()[:1])
    needs = budget.budget(*scoring(config, devices), topology.Chip("cpu", None, None, None)).needs
    chip = topology.Chip("cpu", needs - 1, 1.0, 1.0)
    planner = search.Planner(topology.Topology("cpu:1", devices, chip, True, ""), log=lambda line: None)
    assert not planner.budget(*scoring(config, devices)).fits
    change = search.smallest_change(config, planner, scoring(config, devices))
    assert change == {"student.shape.batch_rows": 2} and planner.num_compiled == 2
    assert 0 < planner.budget(*scoring(search.changed(config, change), devices)).needs < needs
    assert planner.num_compiled == 2 and config.student.shape.batch_rows == 4  # compiled once; the config is as it was


@pytest.mark.parametrize(
    "word, said",
    [
        ("v9:4x4", "allowed are a TPU slice (v5e, v5p, v6e"),
        ("v5e-16", "allowed are"),
        ("gpu:h200", "gpu:<kind>x<count>"),
        ("gpu:gtx8", "allowed are"),
        ("cpu:0", "allowed are"),
    ],
)
def test_a_topology_that_does_not_exist_is_told_what_does(word, said):
    with pytest.raises(ValueError) as error:
        topology.find(word)
    assert f"--topology={word}" in str(error.value) and said in str(error.value)


def test_without_the_compiler_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'w2s_jax\[plan\]'"):
        topology.find("v5e:2x2")


def test_what_the_mesh_does_not_divide_is_named():
    mesh = jax.sharding.AbstractMesh((1, 8, 1), ("data", "fsdp", "tensor"))
    with pytest.raises(ValueError, match=r"teacher.shape.batch_rows=4: these rows cannot be split over data \* fsdp = 8"):
        phases.device_shape("teacher.shape", toy.get_config().teacher.shape, mesh)
    with pytest.raises(ValueError, match="needs 64 devices"):
        toy_phases(mesh__tensor=64)


def test_models_are_known_by_hub_id_directory_or_section(tmp_path):
    config = toy.get_config()
    assert phases.shape_of(config, "Qwen/Qwen3-14B").width == 5120
    assert phases.shape_of(config, "pretrain:strong").width == 32
    with pytest.raises(ValueError, match="neither a directory here nor known by its hub id.*Qwen/Qwen3-14B"):
        phases.shape_of(config, "Qwen/Qwen3-14C")
    with pytest.raises(ValueError, match="pretrain sections are (weak, strong|strong, weak)"):
        phases.shape_of(config, "pretrain:medium")
    with pytest.raises(ValueError, match="config.json does not exist"):
        phases.shape_of(config, str(tmp_path))


# ---- Golden plans ------------------------------------------------------------------------------------------------------

BFLOAT16 = ("--config.teacher.dtype=bfloat16", "--config.student.dtype=bfloat16")
WORLD = "--config=experiments/configs/world_knowledge.py"
GOLDEN = {
    "qwen3_0.6b_14b": (f"{WORLD}:qwen3_0.6b_14b", "--topology=v5e:4x4", "--config.mesh.fsdp=4", "--config.mesh.tensor=4"),
    "olmo2_1b_13b": (f"{WORLD}:olmo2_1b_13b", "--topology=v5p:2x2x1", "--config.mesh.fsdp=4"),
}
KEPT = ("phase", "arguments", "temporaries", "output", "beside", "needs", "flops", "moved", "received", "fits")


def golden_file(name) -> pathlib.Path:
    versions = "_".join(f"{package}{importlib.metadata.version(package)}" for package in ("jax", "libtpu"))
    return ROOT / "tests" / "golden" / f"plan_{name}_{versions}.json"


def planned(name) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "plan.json"
        code, said, progress = command(*GOLDEN[name], *BFLOAT16, "--nosearch", f"--json={file}", timeout=3600)
        assert file.exists(), (code, said, progress)
        print(said)
        return [{key: phase[key] for key in KEPT} for phase in json.loads(file.read_text())["phases"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_a_plan_is_within_a_tenth_of_the_golden_one(name):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'w2s_jax[plan]'")
    if not golden_file(name).exists():
        pytest.skip(f"no {golden_file(name).name}: python -m tests.planning_test --update {name}")
    for now, then in zip(planned(name), json.loads(golden_file(name).read_text()), strict=True):
        assert (now["phase"], now["fits"]) == (then["phase"], then["fits"])
        for key in KEPT[1:-1]:
            assert now[key] == pytest.approx(then[key], rel=0.1, abs=1 << 20), (now["phase"], key)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["xla", "jax"])
def test_every_attention_back_end_is_planned_for_a_tpu(attention):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'w2s_jax[plan]'")
    flags = ("--config=tests/toy.py", "--topology=v5e:2x2", "--config.mesh.fsdp=4", "--stages=teach,observe")
    code, said, progress = command(*flags, f"--config.teacher.attention={attention}", f"--config.student.attention={attention}")
    assert code == 0 and "everything fits" in said, progress


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        run_as_planned(*sys.argv[2:])
    elif sys.argv[1] == "--hold":
        plan_and_hold()
    else:
        golden_file(sys.argv[2]).write_text(json.dumps(planned(sys.argv[2]), indent=1) + "\n")
