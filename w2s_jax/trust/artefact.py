"""A fitted trust function on disk: `trust.json` (what it is) and `state.safetensors` (what it learnt)."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import load, save

from w2s_jax import plugins
from w2s_jax.models import checkpoint
from w2s_jax.trust import Trust

VERSION = "1"
SCHEMA = 1
FILES = ("trust.json", "state.safetensors")
KINDS = {"schema": int, "trust": str, "args": dict, "about": dict}
REMEDY = "fit it again, or give another folder"


def write(trust: Trust, folder, *, word: str, args: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes a fitted trust function.

    Args:
        trust: the fitted trust function; its `held_back`, where it has one, says how good it was on held-back source rows.
        folder: made if need be.
        word, args: how to make it again: its config word and keywords.
        about: what it was fitted on (teacher's key, layers, style), for those who reuse it.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.safetensors").write_bytes(save({name: np.ascontiguousarray(a) for name, a in trust.state().items()}))
    described = {"schema": SCHEMA, "trust": word, "args": dict(args), "about": dict(about)}
    described["held_back"] = {name: float(value) for name, value in getattr(trust, "held_back", {}).items()}
    text = json.dumps(described, indent=2, sort_keys=True)
    (folder / "trust.json").write_text(text + "\n")


def copy(folder, into) -> None:
    """Copies a fitted trust function, file by file, as it stands; `into` is made if need be."""
    into = epath.Path(into)
    into.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (into / name).write_bytes((epath.Path(folder) / name).read_bytes())


def describe(folder) -> dict[str, Any]:
    """The checked `trust.json` of a folder: how to make its trust function again, what it was fitted on, how good it was.

    Raises:
        ValueError: the folder holds no trust function, a damaged one, or one of another schema.
    """
    file = epath.Path(folder) / "trust.json"
    if not file.exists():
        raise ValueError(
            f"{file.parent}: no trust.json here; give the folder of a fitted trust function (<workdir>/trust/<method>)"
        )
    described = checkpoint.read_object(file, REMEDY)
    if missing := [name for name in KINDS if name not in described]:
        raise ValueError(f"{file} lacks {', '.join(missing)}: {REMEDY}")
    if described["schema"] != SCHEMA:
        raise ValueError(f"{file} has schema {described['schema']}, this version reads {SCHEMA}: {REMEDY}")
    for name, kind in KINDS.items():
        if not isinstance(described[name], kind):
            raise ValueError(f"{file}: {name} = {described[name]!r}, allowed is a {kind.__name__}: {REMEDY}")
    return {"held_back": {}, **described}


def read(folder) -> tuple[Trust, dict[str, Any]]:
    """The fitted trust function of a folder, and what `describe` says of it.

    Raises:
        ValueError: see `describe`; or what it learnt is missing or damaged.
    """
    described, file = describe(folder), epath.Path(folder) / "state.safetensors"
    try:
        state = load(file.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is missing, cut off or damaged ({error}): {REMEDY}") from error
    return plugins.make("trust", described["trust"], **described["args"]).restore(state), described
