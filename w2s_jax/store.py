"""Keeps every finished stage under a key made of all that its result depends on: nothing runs twice, nothing is served stale.

A store is a folder (local or gs://). For the stage "answer" with key 3f2a91c0...:

    answer-3f2a91c0d4e5f607/           the artefact; finished when manifest.json is there
        manifest.json                  schema, stage, key, code, machine, inputs, files with size and SHA-256; written last
        value.json, value.0.npy, ...   what the stage function returned
        (any other file)               what the stage function wrote itself, such as a Hugging Face model
    answer-3f2a91c0d4e5f607.partial/   scratch that survives a kill (checkpoints live there); removed once finished
    answer-3f2a91c0d4e5f607.lock       held while a process looks at or computes the artefact (local folders only)
    hashes.json                        SHA-256 of big files, valid while size, mtime and inode stay
<workdir>/runs.json                    stage label -> artefact, as of the last run in that workdir

The key is the SHA-256 of: schema, stage, inputs, parents' keys, the machine word (platform, x64, matmul precision) and the
version word of every project module that the stage's code imports. No time and no path enters it. Files are checked at every
use: sizes each time, SHA-256 once per process; what is damaged is named, dropped and computed again.

Stage in: plain values, arrays, dataclasses of `types.py`, `Stored` parents, `Ref`s. Stage out: `Stored`.
`Gold` is never written; a caller that must key on it (grade, score, audit) passes `Ref(gold, key)`.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from w2s_jax import codec, files, processes, types

SCHEMA = 1
OWN_FILES = re.compile(r"manifest\.json|value\.(json|\d+\.npy)")  # names that a stage function may not use
FOLDER = re.compile(r"[a-z][a-z0-9_]*-[0-9a-f]{16}")  # an artefact's folder
LONG = 1000  # characters; a longer sequence stands in the manifest as a digest


@dataclasses.dataclass(frozen=True)
class Stored:
    """A finished artefact. As the input of another stage it counts by its key.

    Attributes:
        key: SHA-256 of all that the artefact depends on.
        path: its folder, with the files that the stage function wrote.
    """

    key: str
    path: epath.Path

    @functools.cached_property
    def value(self) -> Any:
        """What the stage function returned, read at first use; its arrays are read-only, for all users share them."""
        return codec.read(self.path)


@dataclasses.dataclass(frozen=True)
class Ref:
    """A value that counts by a key the caller vouches for: a model by its `content_key`, a loader, a mesh, a log.

    Equal keys must mean equal results. The stage function receives `value`.
    """

    value: Any
    key: str


@dataclasses.dataclass(frozen=True)
class Work:
    """Where a stage function may write.

    Attributes:
        out: the artefact's folder, empty at the start, also after a kill. Every file in it becomes part of the artefact.
        partial: scratch that the next attempt finds again after a kill. Big results that take long are written here part by
            part (to a temporary name, then renamed) and moved to `out` at the end.
    """

    out: epath.Path
    partial: epath.Path


class Store:
    """Runs stages, each once.

    Args:
        root: the store's folder, made if need be; may be shared by workdirs and machines.
        workdir: where `runs.json` is kept; None = do not say which stages changed since the last run.
        log: receives one line for each stage and for each repair.

    Raises:
        ValueError: `root` cannot be written, or is not one folder for all processes.
    """

    def __init__(self, root, *, workdir=None, log: Callable[[str], None] = print):
        flag = "--store=DIR (by default <workdir>/store, so --workdir=DIR moves it too)"
        self.root = files.writable(root, flag)
        processes.refuse_private(self.root, flag)
        self.runs = files.writable(workdir, "--workdir=DIR") / "runs.json" if workdir is not None else None
        self.log = log
        self._hashes = files.Hashes(self.root / "hashes.json")
        self._verified: set[str] = set()  # keys whose files were hashed in this process
        self._labels: dict[str, str] = {}  # label -> artefact, in this process

    def stage(
        self, name: str, fn: Callable[..., Any], /, *, code: Sequence[str] = (), label: str = "", alone: bool = False, **inputs
    ) -> Stored:
        """Computes `fn(work, **inputs)`, or finds it finished.

        >>> import tempfile
        >>> store = Store(tempfile.mkdtemp(), log=lambda line: None)
        >>> square = store.stage("square", lambda work, x: x * x, x=np.arange(3))
        >>> store.stage("total", lambda work, of: int(of.value.sum()), of=square).value
        5

        Args:
            name: of the stage, lower case.
            fn: called as `fn(work: Work, **inputs)`, each `Ref` replaced by its value. All that its result depends on must
                come in through `inputs`. It returns None, bool, int, float, str, NumPy arrays and scalars, dataclasses of
                `types.py` (not `Gold`, `LM`, `Batch`), and tuples, lists and dicts of these; big files it writes itself.
                With several processes all of them call it, unless `alone`.
            code: the modules that do the work; their project imports are followed. A module of w2s_jax counts by its
                `VERSION`, any other (a fork's plug-in) by its source. The `VERSION` of the file that `fn` stands in, where
                there is one, counts always, without its imports.
            label: what log lines and `runs.json` call this use of the stage, such as "teach ntf"; not part of the key.
            alone: with several processes the first alone calls `fn`, for what uses no mesh; not part of the key.
            inputs: the same kinds of value, and `Stored`, `Ref`, and an `LM` that has a key.

        Raises:
            ValueError: an input or the result is of a kind that cannot be kept, a module has no version word, or the processes
                have different inputs.
        """
        if not FOLDER.fullmatch(f"{name}-{'0' * 16}"):
            raise ValueError(f"stage name {name!r}: allowed are lower-case letters, digits, _; change it in the stage() call")
        recipe = {
            "schema": SCHEMA,
            "stage": name,
            "code": {**_own_version(fn), **code_versions(tuple(code))},
            "machine": _machine(),
            "inputs": {word: _describe(value, f"stage {name!r}, input {word}") for word, value in inputs.items()},
        }
        key = files.digest(recipe)
        artefact = Stored(key, self.root / f"{name}-{key[:16]}")
        leader = processes.is_first()
        with files.locked(artefact.path, self.log) if leader else contextlib.nullcontext():
            if leader:
                label = self._note(label or name, artefact, recipe)
            decided, finished = processes.from_first(lambda: [recipe, self._finished(artefact)])
            if others := processes.where(files.digest(decided) != key):
                what = ", ".join(_changes(decided, recipe)) or "inputs"  # process 0 does not know which
                raise ValueError(
                    f"{label or name}: {what} differ between process 0 and process {', '.join(map(str, others))}; give all the "
                    "same flags, code, data and models"
                )
            if finished:
                outcome = "cached"
            else:
                start = time.monotonic()
                called = fn if leader or not alone else _nothing
                self._compute(artefact, recipe, called, {word: _resolve(value) for word, value in inputs.items()}, leader)
                outcome = f"computed in {time.monotonic() - start:.1f} s"
        if leader:
            self._verified.add(key)
            self._hashes.save()
            self.log(f"{label}  {key[:8]}  {outcome}")
        return artefact

    def forget_unused_labels(self) -> None:
        """Drops from `runs.json` what this process did not use, once a run is whole: methods and seeds that are gone."""
        if self.runs is not None and processes.is_first():
            files.write_json(self.runs, self._labels)

    def content_key(self, path) -> str:
        """As `files.content_key`, with the hashes of big files remembered in the store."""
        key = files.content_key(path, self._hashes)
        if processes.is_first():
            self._hashes.save()
        return key

    def _finished(self, artefact: Stored) -> bool:
        """Says whether an artefact can be used; a damaged one is dropped."""
        if not (artefact.path / "manifest.json").exists():
            return False
        if fault := damage(artefact.path, artefact.key, None if artefact.key in self._verified else self._hashes):
            self.log(f"{artefact.path.name}: {fault}; dropped, to be computed again")
            artefact.path.rmtree()
            return False
        files.beside(artefact.path, ".partial").rmtree(missing_ok=True)  # left where a kill fell just after the manifest
        return True

    def _compute(self, artefact: Stored, recipe: dict, fn: Callable[..., Any], inputs: dict, leader: bool) -> None:
        """Runs a stage function in all processes and writes its artefact from the first, the manifest last."""
        work = Work(artefact.path, files.beside(artefact.path, ".partial"))
        if leader:
            work.out.rmtree(missing_ok=True)
            work.out.mkdir(parents=True)
            work.partial.mkdir(parents=True, exist_ok=True)
        processes.barrier("store: folders made")
        value = fn(work, **inputs)
        processes.barrier("store: stage function done")
        if leader:
            where = f"stage {recipe['stage']!r}"
            if taken := [name for name in files.walk(work.out) if OWN_FILES.fullmatch(name)]:
                raise ValueError(f"{where} wrote {taken[0]!r}, a name that the store needs; rename it in the stage function")
            codec.write(value, work.out, f"{where}, result")
            written = {
                name: {"bytes": file.stat().length, "sha256": self._hashes(file)}
                for name, file in sorted(files.walk(work.out).items())
            }
            manifest = {**recipe, "key": artefact.key, "files": written}
            files.write_json(work.out / "manifest.json", {**manifest, "digest": files.digest(manifest)})
            work.partial.rmtree(missing_ok=True)
        processes.barrier("store: artefact written")

    def _note(self, label: str, artefact: Stored, recipe: dict) -> str:
        """Records which artefact a label uses and says what changed since the last run; returns the label, made unique."""
        unique = label
        while self._labels.setdefault(unique, artefact.path.name) != artefact.path.name:
            stem, _, number = unique.partition(" #")
            unique = f"{stem} #{int(number or 1) + 1}"
        if self.runs is not None:
            runs = files.read_json(self.runs)
            before = runs.get(unique, artefact.path.name)
            if before != artefact.path.name:
                old = files.read_json(self.root / before / "manifest.json")
                changed = [line for part in recipe for line in _changes(old.get(part), recipe[part], part)]
                what = ", ".join(line.removeprefix("inputs.") for line in changed) if old else "something"  # old one unfinished
                self.log(f"{unique}: {what} changed since the last run in this workdir")
            if runs.get(unique) != artefact.path.name:
                files.write_json(self.runs, {**runs, unique: artefact.path.name})
        return unique


def read(path) -> Stored:
    """Opens the artefact in a folder, checked against its manifest.

    Raises:
        ValueError: no finished artefact is there, or it is damaged.
    """
    path = epath.Path(path)
    key = files.read_json(path / "manifest.json").get("key", "")
    if not key:
        raise ValueError(f"{path}: no manifest.json, so no finished artefact; `python -m experiments.store ls` lists them")
    if fault := damage(path, key, files.sha256_of):
        raise ValueError(f"{path}: {fault}; run the experiment again, which drops it and computes it anew")
    return Stored(key, path)


def damage(folder: epath.Path, key: str, sha256: Callable[[epath.Path], str] | None) -> str:
    """Says what is wrong with a finished artefact: "" = nothing. Without `sha256` only sizes are checked."""
    manifest = files.read_json(folder / "manifest.json")
    if manifest.pop("digest", "") != files.digest(manifest) or manifest["schema"] != SCHEMA or manifest["key"] != key:
        return "manifest.json is damaged or belongs to another key"
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.exists():
            return f"{name} is missing"
        if (size := file.stat().length) != expected["bytes"]:
            return f"{name} has {size} bytes instead of {expected['bytes']}"
        if sha256 is not None and sha256(file) != expected["sha256"]:
            return f"{name} is corrupted (its SHA-256 differs)"
    return ""


# Keys


def code_versions(modules: tuple[str, ...]) -> dict[str, str]:
    """The version word of each module and of the project modules that it imports, directly or not.

    A module of w2s_jax counts by its `VERSION` (one without it, reached by an import, does not count); a module of another
    package counts by the SHA-256 of its source, as do the modules it imports from its own package.

    Raises:
        ValueError: a named module does not exist, or is ours and has no `VERSION`.
    """
    versions, todo, seen = {}, list(modules), set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        source, imports = _source(name)
        if source is None:
            if name in modules:
                raise ValueError(f"code={name!r}: there is no such module; change it where stage() is called")
            continue
        todo += imports
        if name.split(".")[0] != "w2s_jax":
            versions[name] = hashlib.sha256(source).hexdigest()
        elif version := getattr(importlib.import_module(name), "VERSION", None):
            versions[name] = version
        elif name in modules:
            raise ValueError(f'{name} has no version word; add VERSION = "1" near the top of {name.replace(".", "/")}.py')
    return versions


def _own_version(fn: Callable[..., Any]) -> dict[str, str]:
    """The version word of the file that a stage function stands in, if it has one."""
    name = getattr(fn, "__module__", None)
    version = getattr(sys.modules.get(name), "VERSION", None)
    return {name: version} if version else {}


@functools.cache
def _source(name: str) -> tuple[bytes | None, tuple[str, ...]]:
    """A module's source and what it imports from w2s_jax and its own package; (None, ()) where `name` is not a module."""
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):  # ValueError: __main__ in a notebook
        spec = None
    if spec is None or not spec.has_location or not str(spec.origin).endswith(".py"):
        return None, ()
    source = epath.Path(spec.origin).read_bytes()
    imports = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), spec.parent)
            imports += [base, *(f"{base}.{alias.name}" for alias in node.names)]  # an alias may be a module or a name in one
    return source, tuple(i for i in imports if i.split(".")[0] in {"w2s_jax", name.split(".")[0]})


def _machine() -> dict[str, Any]:
    """What, beside the code, decides the bits of a result."""
    return {
        "platform": jax.default_backend(),
        "x64": bool(jax.config.jax_enable_x64),
        "matmul": jax.config.jax_default_matmul_precision,
    }


def _describe(value: Any, where: str) -> Any:
    """An input as JSON: what the key hashes and the manifest shows."""

    def leaf(value, where):
        if isinstance(value, Stored | Ref | types.LM):
            if not value.key:
                raise ValueError(f"{where}: this {type(value).__name__} has no key; give it its content key")
            return {"$key": value.key}
        if isinstance(value, np.ndarray):
            raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            dtype = value.dtype.name + ("" if value.dtype.isnative else ", bytes swapped")
            return {"$digest": hashlib.sha256(raw).hexdigest(), "dtype": dtype, "shape": list(value.shape)}
        if callable(value):
            raise ValueError(f"{where}: {value!r} is a function, which has no content to key on; pass it as Ref(function, key)")
        raise ValueError(f"{where}: {codec.refusal(value)}; pass it as Ref(value, key) with a key that says what it holds")

    return _shorten(codec.encode(value, leaf, where))


def _shorten(node: Any) -> Any:
    """Replaces long lists by digests, from the inside out."""
    if isinstance(node, dict):
        return {word: _shorten(child) for word, child in node.items()}
    if isinstance(node, list):
        node = [_shorten(child) for child in node]
        if len(json.dumps(node)) > LONG:
            return {"$digest": files.digest(node), "length": len(node)}
    return node


def _changes(old: Any, new: Any, path: str = "") -> list[str]:
    """The paths at which two descriptions differ, with the values where they are short."""
    if isinstance(old, dict) and isinstance(new, dict) and not any(word.startswith("$") for word in [*old, *new]):
        words = sorted({*old, *new})
        return [line for word in words for line in _changes(old.get(word), new.get(word), f"{path}.{word}".lstrip("."))]
    if old == new:
        return []
    plain = not isinstance(old, dict | list) and not isinstance(new, dict | list)
    return [f"{path} ({old!r} -> {new!r})" if plain and len(f"{old!r}{new!r}") < 60 else path]


def _resolve(value: Any) -> Any:
    """An input as the stage function receives it: `Ref`s opened, also within containers."""
    if isinstance(value, Ref):
        return value.value
    if type(value) in (list, tuple):
        return type(value)(_resolve(item) for item in value)
    if isinstance(value, Mapping):
        return {word: _resolve(item) for word, item in value.items()}
    return value


def _nothing(work: Work, **inputs) -> None:
    """The stage function of a process that leaves the work to the first one."""
