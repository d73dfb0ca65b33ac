"""Grading: a judge that hangs, crashes or eats memory costs one pair, never the run, and never another pair's verdict."""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from w2s_jax import processes
from w2s_jax.tasks import grading, grading_worker, math
from w2s_jax.tasks.grading import Grader

needs_math_verify = pytest.mark.skipif(not importlib.util.find_spec("math_verify"), reason="math-verify is not installed")
JUDGE = """
    import importlib.util, os, signal, sys, time
    spec = importlib.util.spec_from_file_location("worker", {worker!r})
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)

    def judge(found, wanted):
        if "hang" in found:
            while True: pass
        if "sleep" in found: time.sleep(60)
        if "deaf" in found:  # to the signals that Python can handle
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True: sum(range(10**9))
        if "exit" in found: os._exit(3)
        if "segfault" in found: os.kill(os.getpid(), signal.SIGSEGV)
        if "memory" in found: [bytearray(1 << 24) for _ in iter(int, 1)]
        if "raise" in found: raise KeyError(found)
        if "recurse" in found: judge(found, wanted)
        if "print" in found: print("same")
        if "pid" in found: return "same" if os.getpid() % 2 == int(wanted[-1]) else "different"
        return "same" if found.strip("+") == wanted.strip("+") else "different"

    {load}
    worker.serve(load, float(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.fixture
def make(tmp_path):
    graders = []

    def make(load="load = lambda: judge", **changed):
        program = tmp_path / "judge.py"
        program.write_text(textwrap.dedent(JUDGE).format(worker=grading_worker.__file__, load=load))
        graders.append(Grader(**{"seconds": 0.3, "memory_bytes": 1 << 29, "worker": str(program)} | changed))
        return graders[-1]

    yield make
    for grader in graders:
        grader.close()


def right(grader, found):
    """What the grader says of pairs of which all are the same, but for a + that strings and numbers do not see through."""
    return grader.agree([f"{word}+" for word in found], [f"+{word}" for word in found]).tolist()


def test_the_packages_that_verdicts_go_by_are_named_with_their_versions(monkeypatch):
    def version(package):
        if package == "sympy":
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.2"

    monkeypatch.setattr(grading.importlib.metadata, "version", version)
    assert grading.versions() == {"math-verify": "1.2", "latex2sympy2_extended": "1.2", "sympy": ""}
    assert math.Math((), {}, (), None).judged_by() == grading.versions()


@pytest.mark.parametrize(
    ("bad", "kind"),
    [("hang", "num_timeouts"), ("sleep", "num_timeouts"), ("deaf", "num_timeouts"), ("exit", "num_crashes"),
     ("segfault", "num_crashes"), ("memory", "num_crashes"), ("raise", "num_unread"), ("recurse", "num_unread")],
)  # fmt: skip
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_bad_pair_costs_itself_alone(make, bad, kind, num_workers):
    grader = make(num_workers=num_workers, seconds=5.0 if bad == "memory" else 0.3)  # filling memory takes time
    found = ["a1", "a2", f"{bad}1", "a3", "a4", f"{bad}2", "a5"]
    assert right(grader, found) == [True, True, False, True, True, False, True]
    counts = {"num_timeouts": 0, "num_crashes": 0, "num_unread": 0} | {kind: 2}
    assert vars(grader.counts) == {"num_pairs": 7, "num_checked": 7} | counts


def test_verdicts_come_in_order_whatever_takes_long(make):
    grader = make(num_workers=2, seconds=5.0)
    found = [f"a{i}" for i in range(60)]
    wanted = [f"+a{i + i % 2}" for i in range(60)]
    assert grader.agree(found, wanted).tolist() == [i % 2 == 0 for i in range(60)]


def test_a_pair_is_asked_once(make):
    grader = make()
    assert right(grader, ["a", "hang", "a", "hang", "b"]) == [True, False, True, False, True]
    assert (grader.counts.num_pairs, grader.counts.num_checked, grader.counts.num_timeouts) == (5, 3, 1)
    began = time.monotonic()
    assert right(grader, ["hang", "a"]) == [False, True] and time.monotonic() - began < 0.2
    assert (grader.counts.num_pairs, grader.counts.num_checked, grader.counts.num_timeouts) == (7, 3, 1)


def test_what_a_judge_prints_is_no_verdict(make):
    assert make().agree(["print", "print", "a+"], ["x+", "y+", "a"]).tolist() == [False, False, True]


def test_processes_are_replaced_after_their_number_of_pairs(make):
    grader, seen = make(num_workers=1, num_pairs=2), []
    (worker,) = [grader._idle.get()]
    for n in range(5):
        worker.judge((f"a{n}", "b"))
        seen.append(worker.process.pid)
    assert seen[0] == seen[1] != seen[2] == seen[3] != seen[4]


def test_a_process_that_died_between_two_pairs_costs_nothing(make):
    grader = make(num_workers=1)
    assert right(grader, ["a"]) == [True]
    worker = grader._idle.get()
    worker.process.kill()
    worker.process.wait()
    grader._idle.put(worker)
    assert right(grader, ["b"]) == [True] and grader.counts.num_crashes == 0


def test_no_process_outlives_its_grader(make):
    grader = make(num_workers=2)
    right(grader, ["a", "b", "c", "hang"])
    workers = [grader._idle.get() for _ in range(2)]
    pids = [worker.process.pid for worker in workers if worker.process]
    assert pids
    for worker in workers:
        grader._idle.put(worker)
    grader.close()
    gc.collect()
    for pid in pids:
        with pytest.raises(ProcessLookupError):  # neither running nor a zombie
            os.kill(pid, 0)
    assert right(make(), ["a"]) == [True]


@pytest.mark.parametrize("end", ["sys.exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_process_outlives_the_program_that_started_it(make, end):
    worker = make()._idle.get().command[2]
    code = (
        "import os, signal, sys\nfrom w2s_jax.tasks.grading import Grader\n"
        f"grader = Grader(num_workers=1, worker={worker!r})\ngrader.agree(['a+'], ['+a'])\n"
        f"print(grader._idle.get().process.pid, flush=True)\n{end}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1])
    gone, began = False, time.monotonic()
    while not gone and time.monotonic() - began < 20:
        try:
            os.kill(int(done.stdout), 0)
            time.sleep(0.05)
        except ProcessLookupError:
            gone = True
    assert gone


def test_processes_that_cannot_judge_at_all_are_an_error_not_zeros(make):
    grader = make(load="def load(): raise ImportError('no judge here')")
    with pytest.raises(RuntimeError, match=r"does not start .*no judge here.*judge.py"):
        right(grader, ["a"])
    with pytest.raises(RuntimeError, match="it ended with 7"):
        right(make(load="sys.exit(7)"), ["a"])


def test_losses_are_said_in_the_log(make, caplog):
    with caplog.at_level("INFO", logger="absl"):
        right(make(), ["a", "b"])
        assert [record.levelname for record in caplog.records] == ["INFO"]
        right(make(), ["a", "hang", "exit", "raise"])
    assert caplog.records[-1].levelname == "WARNING"
    assert "4 pairs, 4 checked with math-verify: 1 timed out, 1 crashed, 1 could not be read" in caplog.text


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [("7", "7", True), ("", "", False), ("", "7", False), ("7", "", False), ("1/2", "0.5", True), ("2/4", "1/2", True),
     ("-1/2", "1/2", False), ("18", "18.01", False), ("4.5e33", r"4.5\times10^{33}", True), ("0.333333", "1/3", False),
     (r"2\frac{1}{2}", "5/2", True), (r"-2\frac{1}{2}", "-2.5", True), ("even", "odd", False), ("x", "y", False),
     ("friday", "7", False), ("9" * 150, "9" * 149 + "8", False)],
)  # fmt: skip
def test_strings_and_exact_numbers_need_no_process(found, wanted, same):
    grader = Grader(worker="/nowhere")
    assert grader.agree([found], [wanted]).tolist() == [same]
    assert vars(grader.counts) | {"num_pairs": 0} == vars(grading.Counts())


def test_numbers_of_any_size_are_survived():
    for text in ("9" * 6000, "1e999999999", "1e999", "-" * 300, "1/" + "0" * 100, "1." + "3" * 5000, r"1\frac{1}{0}"):
        grading.exact(text)


def test_missing_math_verify_is_said_where_it_is_needed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    grader = Grader()
    assert grader.agree(["1/2", "a"], ["0.5", "b"]).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"math-verify is not installed: pip install 'w2s_jax\[math\]'"):
        grader.agree(["x+1"], ["1+x"])


def test_the_first_process_decides_for_all(make, monkeypatch):
    monkeypatch.setattr(processes, "from_first", lambda decide: ["same", "late"])  # as heard by another process
    grader = make(load="sys.exit(7)")  # which must not start any of its own
    assert right(grader, ["a", "b"]) == [True, False] and grader.counts.num_timeouts == 1


def test_the_program_that_judges_imports_neither_jax_nor_the_project():
    heavy = "[m for m in sys.modules if m.partition('.')[0] in ('jax', 'jaxlib', 'w2s_jax')]"
    code = f"import runpy, sys; runpy.run_path({grading_worker.__file__!r}); print({heavy})"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@needs_math_verify
def test_mathematics_is_compared_by_math_verify():
    same = [(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"), ("(1/2,3)", "(0.5,3)"), ("1,2", "2,1"), ("x+1", "1+x"),
            ("2^{10}", "1024"), (r"\sqrt{3}i", r"i\sqrt{3}"), (r"12+12\sqrt{3}", r"12\sqrt{3}+12")]  # fmt: skip
    other = [(r"2\pi", r"\pi"), ("(1,2)", "(2,1)"), ("x+1", "x-1"), (r"\sqrt{2}", "1.41"), ("1,2", "1,2,3")]
    grader = Grader(seconds=20.0)
    found, wanted = zip(*same, *other)
    np.testing.assert_array_equal(grader.agree(found, wanted), [True] * len(same) + [False] * len(other))
    assert grader.counts.num_timeouts == grader.counts.num_crashes == 0
    grader.close()


@pytest.mark.slow
@needs_math_verify
def test_a_tower_of_powers_costs_its_limit_and_nothing_else():
    grader = Grader(seconds=1.0)
    assert grader.agree(["x+1", r"9^{9^{9^{9}}}", "x+2"], ["1+x", "1", "2+x"]).tolist() == [True, False, True]
    assert grader.counts.num_timeouts + grader.counts.num_crashes == 1
    grader.close()
