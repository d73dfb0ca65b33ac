"""Several processes share one run: on two processes of this machine, joined as on a cluster."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from w2s_jax import processes

ROOT = pathlib.Path(__file__).parents[1]
START = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from w2s_jax import processes
from w2s_jax.models import sharding
from w2s_jax.store import Store

folder, coordinator, process_id = sys.argv[1:]
processes.join(coordinator, 2, int(process_id))
me = jax.process_index()
"""


def start(command, **variables):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def in_two(text, folder):
    """Runs a program in two processes; what each printed, or the errors."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"
    both = [start([sys.executable, "-uc", START + text, str(folder), coordinator, str(i)]) for i in range(2)]
    try:
        ended = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], ended
    return [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in ended]


def test_what_the_first_decides_all_know_and_shared_arrays_come_back_whole(tmp_path):
    out = in_two(
        """
for decided in (True, ["é" * 100, 1.5], "", None):
    assert processes.from_first(lambda: decided if me == 0 else 1 / 0) == decided
mesh = sharding.make_mesh(data=2)
x = np.arange(12.0).reshape(4, 3)
tree = processes.place({"rows": x, "all": x}, NamedSharding(mesh, P("data")))
whole = processes.place(tree["all"], NamedSharding(mesh, P()))
print([s.data.shape for s in tree["rows"].addressable_shards], tree["rows"].is_fully_addressable)
for shared in (tree["rows"], whole, jax.jit(lambda x: x + 0)(tree["rows"]), x, jax.numpy.array(x)):
    assert isinstance(found := processes.fetch(shared), np.ndarray) and (found == x).all()
store = Store(folder + "/store", log=lambda line: None)
print(store.stage("fit", lambda work, x: (print("called"), (work.out / "one").mkdir(), 7)[-1], alone=True, x=x).value)
for wrong in (lambda: sharding.make_mesh(), lambda: sharding.make_mesh(4), lambda: store.stage("a", None, x=me, y=1),
              lambda: Store(f"{folder}/own{me}")):
    try:
        wrong()
    except ValueError as error:
        print(error)
print(processes.is_first(), processes.several())
""",
        tmp_path,
    )
    assert out[0][0] == out[1][0] == "[(2, 3)] False"
    assert out[0][1:3] == ["called", "7"] and out[1][1] == "7"
    differ = "differ between process 0 and process 1; give all the same flags, code, data and models"
    for i, lines in enumerate((out[0][3:], out[1][2:])):
        assert "uses 1 of 2 devices; with 2 processes it must use all, such as --config.mesh.data=2" in lines[0]
        assert "needs 4 devices, 2 are here" in lines[1]
        assert lines[2] == f"a: {'inputs.x (0 -> 1)' if i else 'inputs'} {differ}"
        assert "is not the same folder in all processes: process 1 did not see what process 0 wrote" in lines[3]
        assert lines[4] == f"{i == 0} True"


def test_a_single_process_starts_no_collective(monkeypatch):
    from jax.experimental import multihost_utils

    for name in ("broadcast_one_to_all", "sync_global_devices", "process_allgather"):
        monkeypatch.setattr(multihost_utils, name, None)
    processes.barrier("x")
    assert processes.from_first(lambda: {1: np}) == {1: np}  # not even written as JSON
    assert processes.is_first() and not processes.several()


@pytest.mark.parametrize(
    "place, expected",
    [
        (("h:1", 2, None), "--coordinator=h:1 needs --process_id too"),
        (("h:1", None, None), "needs --num_processes and --process_id too"),
        (("h:1", 2, 2), "--process_id=2: allowed are 0 to 1"),
        (("", None, None), "did not find each other.*give --coordinator"),
    ],
)
def test_a_place_that_is_not_whole_is_refused(place, expected):
    with pytest.raises(ValueError, match=expected):
        processes.join(*place)


# ---- Whole runs

TOY = ["--config=tests/toy.py", "--config.mesh.data=2", "--config.methods=('naive','ntf')"]
TOY += ["--config.pretrain.strong.training.epochs=30"]  # long enough for a kill behind a checkpoint


def launched(workdir, cache, *flags):
    command = [sys.executable, "-m", "launch.local", "--processes=2", "--", *TOY, f"--workdir={workdir}", *flags]
    return start(command, JAX_COMPILATION_CACHE_DIR=str(cache))


def report(workdir):
    return (workdir / "report" / "recovery.json").read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with two devices: the workdir, the folder of its compiled programs, and what it printed."""
    folder = tmp_path_factory.mktemp("alone")
    command = [sys.executable, "-m", "experiments.main", *TOY, f"--workdir={folder / 'run'}"]
    process = start(command, JAX_NUM_CPU_DEVICES="2", JAX_COMPILATION_CACHE_DIR=str(folder / "cache"))
    out, err = process.communicate()
    assert process.returncode == 0, err
    return folder / "run", folder / "cache", out


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_two_processes_end_with_what_one_does_also_after_a_kill(killed, alone, tmp_path):
    process = launched(tmp_path, alone[1])
    while not list(tmp_path.glob("store/pretrain-*.partial/checkpoints/*/_CHECKPOINT_METADATA")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[killed]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and f"process {killed} was ended by SIGKILL" in err, err
    assert not (tmp_path / "report").exists()

    process = launched(tmp_path, alone[1])
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert report(tmp_path) == report(alone[0])
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    assert metrics == (alone[0] / "metrics.jsonl").read_bytes()
    runs = [json.loads((folder / "runs.json").read_text()) for folder in (tmp_path, alone[0])]
    assert runs[0] == runs[1]
    assert out == alone[2]  # the table comes once, and nothing else with it
    assert not [line for line in err.splitlines() if line.startswith("[process 1]") and "computed in" in line]

    process = launched(tmp_path, alone[1])
    _, err = process.communicate()
    assert process.returncode == 0 and "computed in" not in err and "cached" in err


@pytest.mark.slow
def test_a_fault_in_one_process_ends_all_with_its_message(alone):
    """Process 1 alone is given another number of labels to select, in a run whose earlier stages are finished."""
    from launch import command, local

    coordinator = f"localhost:{local.free_port()}"
    members = {}
    for i, flags in enumerate((["--config.select.n=20"], ["--config.select.n=21"])):
        words = local.member(coordinator, 2, i, [*TOY, f"--workdir={alone[0]}", *flags])
        members[f"process {i}"] = ["env", "JAX_PLATFORMS=cpu", f"JAX_COMPILATION_CACHE_DIR={alone[1]}", *words]
    began = time.monotonic()
    with pytest.raises(ValueError) as error:
        command.follow(members)
    assert "process 1 failed with exit code 1" in str(error.value)
    assert "inputs.amounts.n (20 -> 21) differ between process 0 and process 1" in str(error.value)
    assert time.monotonic() - began < 240
