"""A process that judges pairs of answers for `grading`; it is run as a program, never imported for what it does.

It imports nothing of the project, so neither JAX nor a device: a line `["found", "wanted"]` comes in, one of `"same"`,
`"different"`, `"unread"` or `"exhausted"` goes out, after a first line `"ready"` or `{"error": ...}`. Whoever started it sets
the deadline; it limits itself in CPU time and memory. It ends when its input does.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable

VERSION = "1"
PACKAGES = ("math-verify", "latex2sympy2_extended", "sympy")
"""What a verdict goes by, beside the code here."""


def math_verify() -> Callable[[str, str], str]:
    """The judge: are two LaTeX strings the same answer?

    LaTeX alone is read: plain expressions would be evaluated as Python by sympy. Its own alarms are off, the deadline is ours.
    """
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    read = {"extraction_config": [LatexExtractionConfig()], "fallback_mode": "no_fallback", "parsing_timeout": None}

    def judge(found: str, wanted: str) -> str:
        there, here = (parse(f"${latex}$", raise_on_error=True, **read) for latex in (wanted, found))
        if not there or not here:
            return "unread"
        return "same" if verify(there, here, timeout_seconds=None, raise_on_error=True) else "different"

    return judge


def serve(load: Callable[[], Callable[[str, str], str]], cpu_seconds: float, memory_bytes: int) -> None:
    """Answers line by line until the input ends; `load` imports what is slow and returns the judge."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # whatever a judge imports
    os.environ["JAX_PLATFORMS"] = "cpu"
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no reply

    def reply(content) -> None:
        print(json.dumps(content), file=replies, flush=True)

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        judge = load()
    except Exception as error:
        return reply({"error": repr(error)})
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    reply("ready")
    for line in sys.stdin:
        found, wanted = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # its signal ends the process, in foreign code too
        try:
            verdict = judge(found, wanted)
        except MemoryError:
            verdict = "exhausted"
        except Exception:
            verdict = "unread"
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        reply(verdict)


if __name__ == "__main__":
    serve(math_verify, float(sys.argv[1]), int(sys.argv[2]))
