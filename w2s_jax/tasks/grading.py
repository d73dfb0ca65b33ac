"""Whether two canonical final answers are the same: at once where strings or exact numbers decide, else by `math-verify`.

`math-verify` hangs on some pairs and takes all memory on others, and its alarms work in a main thread only. So it runs in
processes of its own (`grading_worker.py`, started as programs: they share neither memory nor devices with this one), each
limited in CPU time and memory by itself, watched by a deadline here, and replaced after a number of pairs. A pair on which its
process hangs, dies or runs out of memory counts as different; the others come out as if it had not been there. How many did is
kept in `Grader.counts` and said in the log after each call.

The limit is on CPU time, so that a busy machine does not change verdicts; the deadline on the clock is for processes that wait.

Deviations from math-verify alone:
    1. Two exact numbers are the same only if they are equal: 0.333333 is not 1/3.
    2. Words are compared as words, never as products of letters.
"""

import concurrent.futures
import dataclasses
import fractions
import importlib.metadata
import importlib.util
import json
import os
import queue
import re
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Sequence

import numpy as np
from absl import logging

from w2s_jax import processes
from w2s_jax.progress import Progress
from w2s_jax.tasks import grading_worker

VERSION = "1"
START_SECONDS = 120.0  # until sympy is imported
CLOCK_PER_CPU = 6.0  # the deadline on the clock, in CPU limits
MAX_KNOWN = 200_000  # verdicts remembered
Pair = tuple[str, str]

_RATIONAL = re.compile(r"-?[0-9]{1,200}(?:\.[0-9]{1,200}|/[0-9]{1,200})?")
_MIXED = re.compile(r"(-?)([0-9]{1,200})\\frac\{([0-9]{1,200})\}\{([0-9]{1,200})\}")
_SCIENTIFIC = re.compile(
    r"(-?[0-9]{1,200}(?:\.[0-9]{1,200})?)(?:[eE]|\\(?:times|cdot)10\^)(?:\{(-?[0-9]{1,3})\}|(-?[0-9]{1,3}))"
)


@dataclasses.dataclass
class Counts:
    """What became of the pairs that were asked about.

    Attributes:
        num_pairs: all, repeated ones too.
        num_checked: that `math-verify` was asked about.
        num_timeouts: of these, that ran past the limit.
        num_crashes: whose process died or ran out of memory.
        num_unread: that it could not read.
    """

    num_pairs: int = 0
    num_checked: int = 0
    num_timeouts: int = 0
    num_crashes: int = 0
    num_unread: int = 0

    def __str__(self) -> str:
        return (
            f"{self.num_pairs} pairs, {self.num_checked} checked with math-verify: {self.num_timeouts} timed out, "
            f"{self.num_crashes} crashed, {self.num_unread} could not be read (all these count as different)"
        )


def exact(answer: str) -> fractions.Fraction | None:
    r"""The value of a canonical answer that is a number, None for others; 2\frac{1}{2} is two and a half.

    >>> exact("-6/4"), exact("0.50"), exact(r"4.8\times10^{3}"), exact("4.5e-1"), exact("1/0"), exact(r"\pi")
    (Fraction(-3, 2), Fraction(1, 2), Fraction(4800, 1), Fraction(9, 20), None, None)
    """
    if _RATIONAL.fullmatch(answer):
        over, _, under = answer.partition("/")
        return fractions.Fraction(over) / int(under or 1) if int(under or 1) else None
    if found := _SCIENTIFIC.fullmatch(answer):
        return fractions.Fraction(found[1]) * fractions.Fraction(10) ** int(found[2] or found[3])
    if (found := _MIXED.fullmatch(answer)) and int(found[4]):
        value = int(found[2]) + fractions.Fraction(int(found[3]), int(found[4]))
        return -value if found[1] else value
    return None


def at_once(found: str, wanted: str) -> bool | None:
    """The verdict on a pair where none but strings and exact numbers are needed, else None.

    >>> at_once("0.5", "1/2"), at_once("5", "6"), at_once("even", "odd"), at_once("", ""), at_once("x+1", "1+x")
    (True, False, False, False, None)
    """
    if not found or not wanted:
        return False
    if found == wanted:
        return True
    values = exact(found), exact(wanted)
    if None not in values:
        return values[0] == values[1]
    words = [bool(re.fullmatch(r"[^\W\d_]|[^\W\d_][\w ]*[^\W\d_]{2}[\w ]*", answer)) for answer in (found, wanted)]
    if all(word or value is not None for word, value in zip(words, values)):
        return False
    return None


def versions() -> dict[str, str]:
    """The packages that verdicts go by, with the versions that are installed; "" = none."""
    found = {}
    for package in grading_worker.PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found


class Grader:
    """Says which pairs of canonical answers are the same. Its processes start when they are first needed and end with it.

    Args:
        seconds: CPU time for a pair.
        num_workers: processes at a time.
        memory_bytes: of each process (address space).
        num_pairs: that a process judges before it is replaced.
        worker: the program that judges, see `grading_worker`.
    """

    def __init__(
        self,
        *,
        seconds: float = 5.0,
        num_workers: int = 2,
        memory_bytes: int = 2 << 30,
        num_pairs: int = 500,
        worker: str = grading_worker.__file__,
    ):
        self.counts = Counts()
        self._known: dict[Pair, bool] = {}
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        workers = [_Worker(worker, seconds, memory_bytes, num_pairs) for _ in range(num_workers)]
        for one in workers:
            self._idle.put(one)
        self._num_workers, self._own_program = num_workers, worker == grading_worker.__file__
        self.close = weakref.finalize(self, _stop, workers)

    def agree(self, found: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
        """bool[R]: are the answers found those that were wanted? "" agrees with nothing.

        Raises:
            ValueError: `math-verify` is needed and not installed, or as many answers are not wanted as found.
            RuntimeError: the processes that judge do not start.
        """
        pairs = list(zip(found, wanted, strict=True))
        verdict = {pair: at_once(*pair) if pair not in self._known else self._known[pair] for pair in dict.fromkeys(pairs)}
        counts = Counts(num_pairs=len(pairs))
        if hard := [pair for pair, known in verdict.items() if known is None]:
            self._require()
            said = processes.from_first(lambda: list(self._judge(hard)))  # several processes must not differ
            counts.num_checked = len(hard)
            counts.num_timeouts, counts.num_crashes, counts.num_unread = map(said.count, ("late", "dead", "unread"))
            verdict |= {pair: word == "same" for pair, word in zip(hard, said, strict=True)}
            if len(self._known) > MAX_KNOWN:
                self._known.clear()
            self._known |= {pair: verdict[pair] for pair in hard}
            lost = counts.num_timeouts + counts.num_crashes
            logging.log(logging.WARNING if lost else logging.INFO, "grading: %s", counts)
        for field in dataclasses.fields(Counts):
            setattr(self.counts, field.name, getattr(self.counts, field.name) + getattr(counts, field.name))
        return np.array([verdict[pair] for pair in pairs], bool)

    def _require(self) -> None:
        if self._own_program and not importlib.util.find_spec("math_verify"):
            raise ValueError(
                "answers have to be compared as mathematics, and the package math-verify is not installed: "
                "pip install 'w2s_jax[math]'"
            )

    def _judge(self, pairs: Sequence[Pair]) -> Iterable[str]:
        def judge(pair: Pair) -> str:
            worker = self._idle.get()
            try:
                return worker.judge(pair)
            finally:
                self._idle.put(worker)

        with (
            concurrent.futures.ThreadPoolExecutor(self._num_workers) as threads,
            Progress("grade", len(pairs), unit="pair") as progress,
        ):
            for word in threads.map(judge, pairs):
                progress.add(1)
                yield word


class _Worker:
    """One process that judges, started when it is needed."""

    def __init__(self, program: str, seconds: float, memory_bytes: int, num_pairs: int):
        # -P: the program's folder holds a module `math` and must not come before Python's own
        self.command = [sys.executable, "-P", program, str(seconds), str(memory_bytes)]
        self.deadline, self.num_pairs = seconds * CLOCK_PER_CPU, num_pairs
        self.process: subprocess.Popen | None = None
        self.judged = 0

    def judge(self, pair: Pair) -> str:
        """ "same", "different", "unread", "late" (it ran past a limit) or "dead" (it crashed, or took all its memory)."""
        if self.process is None or self.judged >= self.num_pairs or self.process.poll() is not None:
            self.stop()
            self.start()
        self.judged += 1
        try:
            self.process.stdin.write(json.dumps(pair).encode() + b"\n")
            said = self._read(self.deadline)
        except (EOFError, OSError):
            said = "late" if self.process.wait() == -signal.SIGPROF else "dead"
        if said in ("late", "dead", "exhausted"):
            self.stop()
        return "dead" if said == "exhausted" else said

    def start(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, bufsize=0, start_new_session=True, **pipes)
        self.judged, self.unread = 0, b""
        try:
            said = self._read(START_SECONDS)
        except (EOFError, OSError):
            said = f"it ended with {self.process.wait()}"
        if said != "ready":
            self.stop()
            why = f"no answer for {START_SECONDS:.0f} s" if said == "late" else said
            raise RuntimeError(f"the process that grades answers does not start ({why}): {' '.join(self.command)}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None

    def _read(self, seconds: float):
        """The next reply, "late" if there is none in time.

        Raises:
            EOFError: there will be none.
        """
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.unread:
                if not selector.select(max(end - time.monotonic(), 0.0)):
                    return "late"
                got = os.read(self.process.stdout.fileno(), 1 << 16)
                if not got:
                    raise EOFError
                self.unread += got
        line, _, self.unread = self.unread.partition(b"\n")
        return json.loads(line)


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.stop()
