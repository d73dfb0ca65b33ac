"""What the store promises: never the same work twice, never a stale or damaged result, nothing lost by a kill, no gold."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_jax import codec, files, store
from w2s_jax.store import Ref, Store
from w2s_jax.types import (
    LM,
    Answers,
    Audit,
    Batch,
    Certificate,
    Evidence,
    Gold,
    Lesson,
    Question,
    Ragged,
    Recovery,
    Relabelled,
    Rollout,
    Score,
    Selection,
)

ROOT = pathlib.Path(__file__).parents[1]
ANSWERS = Answers(("q1", "q2"), ("A: sea", "\ud83d"), ("sea", ""))
QUESTION = Question("q1", "arc_easy", "What is salt?", ("sea", "land"), {"level": "3"}, "passage 1")
RAGGED = Ragged.of([[1, 2], [], [3]], np.int32)
F32 = np.array([0.25, np.nan], np.float32)
EXAMPLES = {
    Ragged: RAGGED,
    Question: QUESTION,
    Answers: ANSWERS,
    Rollout: Rollout(RAGGED, RAGGED, Ragged.of([[-0.5, -np.inf], [], [0]], np.float32)),
    Evidence: Evidence(ANSWERS, np.arange(12, dtype=np.float32).reshape(2, 2, 3), {"option_logp": F32}),
    Selection: Selection(np.array([1], np.int32), F32[:1], F32, ANSWERS[[1]], ("weak",)),
    Relabelled: Relabelled(ANSWERS, ("weak", "self"), F32, None, F32[:, None, None], {"p_ik": F32, "gamma": 0.5}),
    Lesson: Lesson((QUESTION,), ANSWERS[[0]], F32[:1], None, F32[:1, None, None]),
    Score: Score(("q1", "q2"), ("", "g"), ("arc", "arc"), np.array([True, False])),
    Audit: Audit(
        0.5, None, float("nan"), 1.0, (0.4, 0.6), None, np.zeros((2, 3)), np.zeros((0, 3)), np.ones((1, 3)), "all labels right"
    ),
    Certificate: Certificate(0.9, 0.05, "hoeffding", "population", None, np.full((2, 6), np.nan), ("another data set",)),
    Recovery: Recovery(*[None if "None" in str(f.type) else f.type("1") for f in dataclasses.fields(Recovery)]),
}


@pytest.fixture
def lines():
    return []


@pytest.fixture
def kept(tmp_path, lines):
    return Store(tmp_path / "store", workdir=tmp_path, log=lines.append)


class Counted:
    """A stage function that counts its calls."""

    def __init__(self, fn=lambda work, **inputs: inputs.get("x")):
        self.calls, self.fn = 0, fn

    def __call__(self, work, **inputs):
        self.calls += 1
        return self.fn(work, **inputs)


def same(a, b) -> bool:
    """Equal in type and value all the way down; NaN equals NaN, arrays bit by bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[word], b[word]) for word in a)
    return repr(a) == repr(b)


# The codec


def there_and_back(value, folder):
    folder.mkdir(parents=True, exist_ok=True)
    codec.write(value, folder, "value")
    return codec.read(folder)


def test_every_type_that_may_be_stored_has_an_example():
    assert set(EXAMPLES) == set(codec.TYPES.values())


@pytest.mark.parametrize("cls", EXAMPLES, ids=lambda cls: cls.__name__)
def test_a_type_comes_back_as_it_was(cls, tmp_path):
    assert same(there_and_back(EXAMPLES[cls], tmp_path), EXAMPLES[cls])


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
arrays = st.sampled_from(["?", "i1", "u2", ">i4", "f2", "f4", "f8", "c8", "U3", "S2", "bfloat16"]).flatmap(
    lambda dtype: st.sampled_from([(), (0,), (3,), (2, 0), (2, 3)]).map(lambda shape: np.ones(shape, np.dtype(dtype)))
)
numbers = st.sampled_from([np.float32(0.1), np.float64("nan"), np.int8(3), np.bool_(True), np.array(2, ml_dtypes.bfloat16)[()]])
words = st.text().filter(lambda word: not word.startswith("$"))
values = st.recursive(
    scalars | arrays | numbers,
    lambda child: st.lists(child) | st.lists(child).map(tuple) | st.dictionaries(words, child),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(values)
def test_any_nested_value_comes_back_as_it_was(tmp_path_factory, value):
    assert same(there_and_back(value, tmp_path_factory.mktemp("value")), value)


@pytest.mark.parametrize(
    "value, said",
    [
        (Gold(("q",), (("sea",),)), "gold answers are never stored"),
        ([{"a": Gold((), ())}], r"value\[0\].a: gold answers"),
        (LM(None, None, None, "key"), "Hugging Face directory"),
        (Batch(*[jnp.zeros((1, 1), int)] * 3), "Batch is not kept"),
        (jnp.zeros(2), r"np.asarray\(x\)"),
        (np.array([None]), "dtype object"),
        ({1: 2}, "key 1 cannot be kept"),
        ({"$x": 2}, "cannot be kept"),
        ({1, 2}, "builtins.set cannot be kept"),
        (np.longdouble(1), "cannot be kept"),
        (pathlib.Path("x"), "cannot be kept"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_kept_is_refused(value, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        codec.write(value, tmp_path, "value")


def test_arrays_of_an_artefact_cannot_be_changed_by_its_users(kept):
    array = kept.stage("answer", lambda work: np.zeros(2)).value
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


# Keys


def test_the_same_inputs_are_computed_once_also_by_another_process(kept, tmp_path, lines):
    fn = Counted()
    x = {"a": (1, 2.5), "b": np.arange(3), "c": ANSWERS}
    first = kept.stage("answer", fn, x=x)
    again = Store(tmp_path / "store", log=lines.append).stage("answer", fn, x=dict(reversed(x.items())))
    assert fn.calls == 1
    assert first.key == again.key
    assert same(first.value, x)
    assert same(again.value, x)
    assert lines[0].startswith(f"answer  {first.key[:8]}  computed in ")
    assert lines[1] == f"answer  {first.key[:8]}  cached"


def test_the_folder_of_a_store_is_not_in_its_keys(tmp_path, lines):
    keys = {Store(tmp_path / place, log=lines.append).stage("answer", lambda work, x: x, x=1).key for place in "ab"}
    assert len(keys) == 1


BASE = {"a": [1, 2], "lr": 0.1, "x": np.zeros((2, 3), np.float32), "of": ANSWERS, "text": ("a",) * 1000}
CHANGED = [
    {**BASE, "a": [1, 3]},
    {**BASE, "a": (1, 2)},
    {**BASE, "a": [1, 2.0]},
    {**BASE, "lr": None},
    {**BASE, "lr": float("nan")},
    {**BASE, "x": np.zeros((3, 2), np.float32)},
    {**BASE, "x": np.zeros((2, 3), np.int32)},
    {**BASE, "x": -np.zeros((2, 3), np.float32)},
    {**BASE, "of": dataclasses.replace(ANSWERS, final=("sea", "land"))},
    {**BASE, "text": ("a",) * 999 + ("b",)},
    {**BASE, "more": None},
]


@pytest.mark.parametrize("changed", CHANGED, ids=range(len(CHANGED)))
def test_any_changed_input_is_another_artefact(changed, kept):
    fn = Counted(lambda work, **inputs: None)
    assert kept.stage("answer", fn, **BASE).key != kept.stage("answer", fn, **changed).key
    assert fn.calls == 2


def test_byte_order_is_part_of_an_array_s_content(kept):
    little, big = np.array([1], "<i4"), np.array([1 << 24], ">i4")
    assert little.tobytes() == big.tobytes()
    assert kept.stage("answer", Counted(), x=little).key != kept.stage("answer", Counted(), x=big).key


def test_a_parent_counts_by_its_key_and_arrives_as_stored(kept):
    parents = [kept.stage("answer", Counted(), x=x) for x in (1, 2)]
    children = [kept.stage("trust", lambda work, of: of[0].value + 10, of=(parent,)) for parent in parents]
    assert children[0].key != children[1].key
    assert [child.value for child in children] == [11, 12]


def test_a_ref_counts_by_its_key_and_arrives_opened(kept):
    fn = Counted(lambda work, read: read() if callable(read) else read[0])
    assert kept.stage("answer", fn, read=Ref(lambda: 7, "seven")).value == 7
    assert kept.stage("answer", fn, read=Ref(lambda: 8, "seven")).value == 7
    assert kept.stage("answer", fn, read=[Ref(7, "seven")]).value == 7
    assert fn.calls == 2


def test_gold_and_functions_are_refused_as_inputs_but_not_as_refs(kept):
    gold = Gold(("q",), (("sea",),))
    with pytest.raises(ValueError, match="input x.gold: gold answers are never stored; pass it as Ref"):
        kept.stage("audit", Counted(), x={"gold": gold})
    with pytest.raises(ValueError, match="is a function"):
        kept.stage("audit", Counted(), x=len)
    with pytest.raises(ValueError, match="LM has no key"):
        kept.stage("audit", Counted(), x=LM(None, None, None))
    artefact = kept.stage("audit", lambda work, gold: gold.accepted[0][0], gold=Ref(gold, "split key"))
    assert artefact.value == "sea"
    assert "sea" not in (artefact.path / "manifest.json").read_text()


def test_gold_is_refused_as_a_result_and_nothing_is_left_finished(kept):
    fn = Counted(lambda work: (1, Gold((), ())))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"result\[1\]: gold answers are never stored"):
            kept.stage("answer", fn)
    assert fn.calls == 2


def test_the_version_word_of_an_imported_module_is_in_the_key(kept, monkeypatch):
    from w2s_jax import selection

    before = kept.stage("select", Counted(), code=["w2s_jax.selection"], x=1).key
    monkeypatch.setattr(selection, "VERSION", "another")
    assert kept.stage("select", Counted(), code=["w2s_jax.selection"], x=1).key != before


def test_the_version_word_beside_the_stage_function_is_in_the_key(kept, monkeypatch):
    before = kept.stage("select", Counted(), x=1).key
    monkeypatch.setattr(sys.modules[__name__], "VERSION", "2", raising=False)
    assert kept.stage("select", Counted(), x=1).key != before


def test_the_code_of_a_fork_and_of_what_it_imports_is_in_the_key(tmp_path, monkeypatch):
    package = tmp_path / "their_fork"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mine.py").write_text("from w2s_jax import selection\nfrom . import helper\n")
    (package / "helper.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)

    def versions():
        store._source.cache_clear()
        return store.code_versions(("their_fork.mine",))

    before = versions()
    assert {"their_fork.mine", "their_fork.helper", "w2s_jax.selection"} <= set(before)
    (package / "helper.py").write_text("x = 2\n")
    assert {name for name in before if before[name] != versions()[name]} == {"their_fork.helper"}


def test_a_module_without_version_word_is_refused():
    with pytest.raises(ValueError, match=r"w2s_jax.progress has no version word.*w2s_jax/progress.py"):
        store.code_versions(("w2s_jax.progress",))
    with pytest.raises(ValueError, match="no such module"):
        store.code_versions(("w2s_jax.nowhere",))


def test_precision_settings_are_in_the_key(kept):
    import jax

    before = kept.stage("answer", Counted(), x=1).key
    with jax.default_matmul_precision("highest"):
        assert kept.stage("answer", Counted(), x=1).key != before


# What a workdir remembers


def test_a_changed_config_reruns_what_changed_and_says_which(tmp_path, lines):
    def run(lr):
        kept = Store(tmp_path / "store", workdir=tmp_path, log=lines.append)
        answers = kept.stage("answer", Counted(), x=1)
        fn = Counted(lambda work, **inputs: 1)
        taught = kept.stage("teach", fn, label="teach ntf", of=answers, student={"lr": lr, "steps": 3})
        kept.stage("score", fn, model=taught)

    run(0.1)
    del lines[:]
    run(0.2)
    assert [line.split("  ")[0] for line in lines if "  cached" in line] == ["answer"]
    assert "teach ntf: student.lr (0.1 -> 0.2) changed since the last run in this workdir" in lines
    assert "score: model changed since the last run in this workdir" in lines
    del lines[:]
    run(0.2)
    assert [line.rpartition("  ")[2] for line in lines] == ["cached"] * 3


def test_two_uses_of_a_stage_have_two_labels(kept, tmp_path, lines):
    for split in ("source", "target", "source"):
        kept.stage("answer", Counted(), x=split)
    assert [line.split("  ")[0] for line in lines] == ["answer", "answer #2", "answer"]
    assert list(json.loads((tmp_path / "runs.json").read_text())) == ["answer", "answer #2"]


# Damage


def parts_and_value(work, x):
    (work.out / "model").mkdir()
    (work.out / "model" / "part.bin").write_bytes(bytes(range(100)))
    return {"x": np.arange(x), "y": "text"}


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().length // 2])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["model/part.bin", "value.json", "value.0.npy", "manifest.json"])
@pytest.mark.parametrize("hurt", [truncate, flip, os.remove], ids=lambda hurt: hurt.__name__)
def test_a_damaged_artefact_is_named_and_computed_again(name, hurt, kept, tmp_path, lines):
    fn = Counted(parts_and_value)
    first = kept.stage("answer", fn, x=5)
    before = {str(file): file.read_bytes() for file in files.walk(first.path).values()}
    hurt(first.path / name)
    again = Store(tmp_path / "store", log=lines.append).stage("answer", fn, x=5)
    assert fn.calls == 2
    assert same(again.value, {"x": np.arange(5), "y": "text"})
    assert {str(file): file.read_bytes() for file in files.walk(again.path).values()} == before
    if (name, hurt) != ("manifest.json", os.remove):  # then it is just not finished
        assert any(name in line and first.path.name in line for line in lines)


def test_a_truncation_is_seen_in_the_process_that_wrote_it(kept, lines):
    fn = Counted(parts_and_value)
    artefact = kept.stage("answer", fn, x=5)
    truncate(artefact.path / "value.0.npy")
    kept.stage("answer", fn, x=5)
    assert fn.calls == 2
    assert "value.0.npy has 84 bytes instead of 168" in lines[1]


def test_a_big_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(files.BIG))
    os.utime(big, (1e9, 1e9))
    hashed = []
    real = files.sha256_of
    monkeypatch.setattr(files, "sha256_of", lambda path: hashed.append(path) or real(path))

    def key():
        return Store(tmp_path / "store").content_key(big)

    assert key() == key()
    assert len(hashed) == 1
    before = key()
    flip(big)
    assert key() != before
    assert len(hashed) == 2
    key()
    assert len(hashed) == 3, "a file that has just changed is not remembered: its next change could keep the mtime"


def test_the_content_key_of_a_model_is_its_content_wherever_it_lies(tmp_path):
    keys = []
    for place in "ab":
        folder = tmp_path / place
        folder.mkdir()
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (folder / name).write_text(name)
        keys.append(files.content_key(folder))
    assert keys[0] == keys[1]
    (folder / "README.md").write_text("read me")
    assert files.content_key(folder) == keys[0]
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        flip(folder / name)
        keys.append(files.content_key(folder))
    assert len(set(keys)) == 4
    with pytest.raises(ValueError, match="no such file or folder"):
        files.content_key(tmp_path / "c")


def test_an_artefact_opens_by_its_folder(kept):
    artefact = kept.stage("answer", parts_and_value, x=2)
    assert same(store.read(artefact.path).value, artefact.value)
    flip(artefact.path / "value.json")
    with pytest.raises(ValueError, match="value.json is corrupted"):
        store.read(artefact.path)
    with pytest.raises(ValueError, match="no manifest.json"):
        store.read(artefact.path.parent)


# Kills, races, locks

WORKER = """
import pathlib, sys, time
from w2s_jax.store import Store

def slow(work, x):
    done = len(list(work.partial.iterdir()))
    if done == 0:
        (work.out / "left-over.bin").write_text("of the killed attempt")
    for i in range(done, 3):
        (work.partial / f"part{i}").write_text(f"{i} by {sys.argv[2]}")
        print("part", i, flush=True)
        time.sleep(float(sys.argv[3]))
    return tuple((work.partial / f"part{i}").read_text() for i in range(3))

print(Store(sys.argv[1], log=lambda line: print(line, flush=True)).stage("teach", slow, x=1).value, flush=True)
"""


def worker(root, name, pause):
    command = [sys.executable, "-c", WORKER, str(root), name, str(pause)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT)


def test_a_killed_stage_goes_on_where_it_stopped(tmp_path):
    first = worker(tmp_path, "first", 60)
    assert first.stdout.readline() == "part 0\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = worker(tmp_path, "second", 0)
    out = second.communicate(timeout=60)[0].splitlines()
    assert f"took over from process {first.pid} on " in out[0]
    assert out[-1] == "('0 by first', '1 by second', '2 by second')"
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "value.json"], "scratch and left-overs are gone"
    assert not folder.with_name(folder.name + ".lock").exists()


def test_of_two_racing_processes_one_computes(tmp_path):
    workers = [worker(tmp_path, name, 0.3) for name in ("one", "two")]
    out = [process.communicate(timeout=60)[0].splitlines() for process in workers]
    assert sorted("part 0" in lines for lines in out) == [False, True]
    assert out[0][-1] == out[1][-1]
    waited = [line for lines in out for line in lines if "waiting for process" in line]
    pids = [process.pid for process in workers]
    assert not waited or any(str(pid) in waited[0] for pid in pids)


def test_a_lock_file_left_by_a_dead_process_does_not_block(kept, lines):
    artefact = kept.stage("answer", Counted(), x=1)
    lock = files.beside(artefact.path, ".lock")
    lock.write_text("process 999999999 on elsewhere")
    kept.stage("answer", Counted(), x=1)
    assert "took over from process 999999999 on elsewhere" in lines[1]
    assert not lock.exists()


def test_a_held_lock_can_be_declined(tmp_path, lines):
    folder = files.writable(tmp_path, "") / "answer-0123456789abcdef"
    with files.locked(folder, lines.append):
        with pytest.raises(BlockingIOError):
            with files.locked(folder, lines.append, wait=False):
                raise AssertionError("two owners")
    with files.locked(folder, lines.append, wait=False):
        assert lines == []


def test_a_failing_stage_keeps_its_partial_work_and_frees_its_lock(kept):
    def fails(work, x):
        (work.partial / "step").write_text("1")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        kept.stage("teach", fails, x=1)
    found = kept.stage("teach", lambda work, x: (work.partial / "step").read_text(), x=1)
    assert found.value == "1"
    assert [path.name for path in kept.root.iterdir()] == [found.path.name]


def test_a_stage_function_may_not_write_the_store_s_own_files(kept):
    with pytest.raises(ValueError, match="'value.json', a name that the store needs"):
        kept.stage("teach", lambda work: (work.out / "value.json").write_text("{}"))


def test_an_unwritable_root_is_named_with_its_flags(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write in .*file/store.*--store=DIR.*--workdir"):
        Store(tmp_path / "file" / "store")


# Object stores and several processes


def test_a_store_in_an_object_store_works_alike(monkeypatch, lines):
    registry = pytest.importorskip("fsspec.registry")
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setitem(registry._registry, "gs", MemoryFileSystem)
    monkeypatch.setitem(registry._registry, "gcs", MemoryFileSystem)
    fn = Counted(parts_and_value)

    def run(x):
        return Store("gs://bucket/store", workdir="gs://bucket", log=lines.append).stage("answer", fn, x=x)

    first = run(5)
    assert same(run(5).value, {"x": np.arange(5), "y": "text"})
    assert fn.calls == 1
    flip(first.path / "model" / "part.bin")
    assert same(run(5).value, first.value)
    assert fn.calls == 2
    assert "model/part.bin is corrupted" in lines[2]
    run(6)
    assert "answer: x (5 -> 6) changed since the last run in this workdir" in lines


PROCESS = """
import sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
from w2s_jax.store import Store

def fn(work, x):
    print("called", flush=True)
    (work.out / f"shard{jax.process_index()}").write_text(str(x))
    return x

for _ in range(2):
    print(Store(sys.argv[1], log=lambda line: print("log", line)).stage("teach", fn, x=7).value)
"""


def test_of_several_processes_all_compute_and_the_first_writes_and_logs(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    commands = [[sys.executable, "-c", PROCESS, str(tmp_path), str(port), str(i)] for i in range(2)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for command in commands]
    out = [process.communicate(timeout=100)[0].splitlines() for process in processes]
    assert [line for line in out[1] if line in ("7", "called")] == ["called", "7", "7"]
    assert not any(line.startswith("log") for line in out[1])
    assert [line.rpartition("  ")[2][:8] for line in out[0] if line.startswith("log")] == ["computed", "cached"]
    (manifest,) = tmp_path.glob("*/manifest.json")
    assert list(json.loads(manifest.read_text())["files"]) == ["shard0", "shard1", "value.json"]


# The command


def command(*args):
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.store", *map(str, args)], capture_output=True, text=True, cwd=ROOT, env=env
    )
    return done.returncode, done.stdout + done.stderr


def test_gc_deletes_only_what_no_run_uses_and_only_when_told(tmp_path):
    used = Store(tmp_path / "store", workdir=tmp_path, log=lambda line: None).stage("answer", Counted(), x=1).path
    other = Store(tmp_path / "store", workdir=tmp_path / "other", log=lambda line: None).stage("answer", Counted(), x=2).path
    lost = Store(tmp_path / "store", log=lambda line: None).stage("answer", Counted(), x=3).path
    scratch = files.beside(lost, ".partial")
    scratch.mkdir()
    root = f"--store={tmp_path / 'store'}"
    assert command("ls", root)[1].count("finished") == 3
    code, out = command("gc", root, f"--keep={tmp_path / 'other'}")
    assert code == 0
    assert "2 folders" in out and "would be deleted" in out and lost.exists()
    code, out = command("gc", root, f"--keep={tmp_path / 'other'}", "--yes")
    assert code == 0
    assert [path.exists() for path in (used, other, lost, scratch)] == [True, True, False, False]


def test_gc_keeps_what_the_points_of_a_staged_sweep_use(tmp_path):
    here, there = (folder / "staged" / "points" / "select.n=1" for folder in (tmp_path, tmp_path / "other"))
    workdirs = (tmp_path, here, there, None)
    made = [
        Store(tmp_path / "store", workdir=workdir, log=lambda line: None).stage("teach", Counted(), x=x)
        for x, workdir in enumerate(workdirs)
    ]
    code, out = command("gc", f"--store={tmp_path / 'store'}", f"--keep={tmp_path / 'other'}")
    assert code == 0 and [one.key[:16] in out for one in made] == [False, False, False, True], out


def test_gc_without_anything_to_go_by_deletes_nothing(tmp_path):
    kept = Store(tmp_path / "alone" / "store", log=lambda line: None).stage("answer", Counted(), x=1).path
    code, out = command("gc", f"--store={tmp_path / 'alone' / 'store'}", "--yes")
    assert code != 0
    assert "--keep=WORKDIR" in out
    assert kept.exists()
