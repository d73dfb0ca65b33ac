r"""What an answer is worth to a student that learns by reinforcement. The aim is the trusted weak answer: no gold comes here.

A reward is a plain function of R completions, called with keywords. It names those it reads, `**about` takes the rest:

    texts           R completions as written
    finals          R final answers found in them, "" where none was found
    wanted          R trusted weak answers, each repeated for the samples of its question
    agree           (finals, wanted) -> bool[R]: are two final answers the same answer? "" agrees with nothing
    questions       R questions (`types.Question`)
    num_tokens      i64[R], tokens of each completion
    cut             bool[R], the completion reached `max_new_tokens` without stopping
    max_new_tokens  the most tokens that a completion may have
    overlong_buffer see `overlong`

and returns R numbers. The config names it by its word here, or by a dotted path, `package.module.function`.

Source: overlong, arXiv 2503.14476 (soft overlong punishment); agreement with a trusted weak answer, arXiv 2606.01000.
Deviations: 1. 2606.01000 does not spell its reward out; agreement as 1 or 0 is our reading. 2. a completion is cut at
`max_new_tokens`, so the branch of 2503.14476 beyond that length is its value at that length, -1.
"""

import importlib
from collections.abc import Callable, Sequence

import numpy as np

VERSION = "1"

Reward = Callable[..., Sequence[float]]


def agreement(*, finals: Sequence[str], wanted: Sequence[str], agree: Callable, **about) -> np.ndarray:
    """1 where the final answer is the trusted weak answer, else 0.

    >>> agreement(finals=["7", "", "8"], wanted=["7", "", "7"], agree=equal).tolist()
    [1.0, 0.0, 0.0]
    """
    found = np.array([final != "" for final in finals], bool)
    return (found & np.asarray(agree(finals, wanted), bool)).astype(np.float64)


def answered(*, finals: Sequence[str], **about) -> np.ndarray:
    """1 where a final answer was found, else 0."""
    return np.array([final != "" for final in finals], np.float64)


def boxed_format(*, texts: Sequence[str], **about) -> np.ndarray:
    r"""1 where the text has a closed \boxed{...} with something in it, else 0.

    >>> boxed_format(texts=[r"so \boxed{\frac{1}{2}}", r"so \boxed{", r"\boxed{ }", "2"]).tolist()
    [1.0, 0.0, 0.0, 0.0]
    """
    return np.array([_has_box(text) for text in texts], np.float64)


def overlong(*, num_tokens: Sequence[int], max_new_tokens: int, overlong_buffer: int, **about) -> np.ndarray:
    """0 up to `overlong_buffer` tokens before the end, from there down along a line to -1 at `max_new_tokens`.

    >>> overlong(num_tokens=[80, 90, 100], max_new_tokens=100, overlong_buffer=20).tolist()
    [0.0, -0.5, -1.0]
    """
    room = max_new_tokens - overlong_buffer - np.asarray(num_tokens, np.float64)
    return np.clip(room, -overlong_buffer, 0) / overlong_buffer


REWARDS = {function.__name__: function for function in (agreement, answered, boxed_format, overlong)}


def equal(found: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """The `agree` of a task that has none: equality of strings, bool[R]; "" agrees with nothing."""
    return np.array([one == other != "" for one, other in zip(found, wanted, strict=True)], bool)


def resolve(word: str) -> Reward:
    """Finds the function that a config word names.

    >>> resolve("w2s_jax.student.rewards.agreement") is agreement
    True

    Raises:
        ValueError: there is no such function.
    """
    module, _, name = word.rpartition(".")
    if not module:
        function = REWARDS.get(word)
    else:
        try:
            function = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there, something that it imports is not
            function = None
    if not callable(function):
        raise ValueError(
            f"reward {word!r}: there is no such function; allowed are {', '.join(REWARDS)}, or the dotted path of your own, "
            "package.module.function; change student.grpo.rewards in the config"
        )
    return function


def source_words(functions: Sequence[Reward]) -> tuple[str, ...]:
    """The modules that a store key must hold for these rewards: hand them to `Store.stage(code=...)`."""
    return tuple(sorted({function.__module__ for function in functions}))


def total(functions: Sequence[Reward], weights: Sequence[float], **about) -> tuple[np.ndarray, dict[str, float]]:
    """Adds up the rewards of R completions.

    Args:
        functions: as `resolve` gives them.
        weights: one for each function.
        about: the keywords that the module's page lists; `texts` settles R.

    Returns:
        f64[R] weighted sums, and each function's own mean, unweighted, by its name.

    Raises:
        ValueError: a function returns other than R finite numbers.
    """
    R = len(about["texts"])
    rewards, means = np.zeros(R), {}
    for function, weight in zip(functions, weights, strict=True):
        name = _name(function)
        value = _numbers(name, function(**about), R)
        rewards += weight * value
        means[name] = float(value.mean()) if R else 0.0
    return rewards, means


def _numbers(name, value, R) -> np.ndarray:
    try:
        value = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {name} returned what is no sequence of numbers ({error}); mend the function") from error
    if value.shape != (R,):
        raise ValueError(f"reward {name} returned an array of shape {value.shape}: allowed is ({R},), one number for each text")
    if not np.isfinite(value).all():
        row = int(np.flatnonzero(~np.isfinite(value))[0])
        raise ValueError(f"reward {name} returned {value[row]} for row {row}: allowed are finite numbers; mend the function")
    return value


def _name(function) -> str:
    """The bare name of a function of this module, the dotted path of any other."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return name if function.__module__ == __name__ else f"{function.__module__}.{name}"


def _has_box(text: str) -> bool:
    opening = r"\boxed{"
    start = text.find(opening)
    while start >= 0:
        first = at = start + len(opening)
        depth = 1
        while at < len(text) and depth:
            if text[at] == "\\":
                at += 1  # an escaped brace is no brace
            else:
                depth += (text[at] == "{") - (text[at] == "}")
            at += 1
        if not depth and text[first : at - 1].strip():
            return True
        start = text.find(opening, first)
    return False
