"""Finds the four kinds of thing that can be added: a task, a trust function, a model family, a student objective.

A config word is the name of a module in the kind's package, or the dotted path of a module anywhere (a fork's own file, which
Python must be able to import). There is no registry: the file's presence is its registration.
"""

import ast
import difflib
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
from types import ModuleType
from typing import Any

KINDS = {  # kind -> (package, the function that makes a module of it a plug-in)
    "task": ("w2s_jax.tasks", "make"),
    "trust": ("w2s_jax.trust", "make"),
    "family": ("w2s_jax.models.families", "decoder_config"),
    "objective": ("w2s_jax.student", "make"),
}


def resolve(kind: str, word: str) -> ModuleType:
    """Imports the module that a config word names.

    >>> resolve("trust", "neural").__name__
    'w2s_jax.trust.neural'

    Raises:
        ValueError: there is no such module, or it is no plug-in of that kind.
    """
    package, entry = KINDS[kind]
    name = word if "." in word else f"{package}.{word}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it imports is not
        module = None
    if hasattr(module, entry):
        return module
    problem = f"has no function {entry}()" if module else "is not there"
    words = available(kind)
    raise ValueError(
        f"{kind} {word!r}: the module {name} {problem}{_did_you_mean(word, words)}; allowed are {', '.join(words)}, or the "
        f"dotted path of your own module that has {entry}(); change the word in the config"
    )


def make(kind: str, word: str, /, **kw: Any) -> Any:
    """Calls the `make` (of a family: the `decoder_config`) of the module that a config word names.

    Raises:
        ValueError: the word is unknown, or a keyword is unknown or missing.
    """
    module = resolve(kind, word)
    entry = getattr(module, KINDS[kind][1])
    parameters = inspect.signature(entry).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters) and (unknown := [name for name in kw if name not in known]):
        raise ValueError(
            f"{kind} {word!r} knows no {unknown[0]!r}{_did_you_mean(unknown[0], known)}; its keywords are "
            f"{', '.join(known) or 'none'}; change the config's arguments of this {kind}"
        )
    if missing := [p.name for p in parameters if p.name in known and p.default is p.empty and p.name not in kw]:
        raise ValueError(
            f"{kind} {word!r} needs {', '.join(missing)}; its keywords are {', '.join(known)}; add it to the config's "
            f"arguments of this {kind}"
        )
    return entry(**kw)


def source_words(kind: str, word: str) -> tuple[str, ...]:
    """The module names that a store key must hold for this plug-in: hand them to `Store.stage(code=...)`."""
    return (resolve(kind, word).__name__,)


def defaults(kind: str, word: str) -> dict[str, Any]:
    """The keywords of a plug-in's `make` that have a literal default, read from its source: nothing heavy is imported.

    In the place of a default of None stands the type of the number that it may be (`int`, or `float` by its annotation).
    Configs take their keys from here, so that a default stands in one place, its signature.

    >>> defaults("trust", "confidence")
    {'span': 'final'}
    """
    package, entry = KINDS[kind]
    if "." in word:
        spec = importlib.util.find_spec(word)
        file = pathlib.Path(spec.origin) if spec else None
    else:  # finding the package imports nothing of it; finding a module in it would import the package
        file = pathlib.Path(importlib.util.find_spec(package).submodule_search_locations[0]) / f"{word}.py"
    source = file.read_bytes() if file and file.exists() else b""
    makes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == entry]
    if not makes:
        resolve(kind, word)  # which says what is wrong
        return {}
    arguments = makes[0].args
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    found = {argument.arg: (ast.literal_eval(value), argument.annotation) for argument, value in pairs if value is not None}
    return {name: _number(kind_of) if value is None else value for name, (value, kind_of) in found.items()}


def _number(annotation: ast.expr | None) -> type:
    """The type of an optional number, from its annotation, such as `float | None`."""
    return float if annotation is not None and "float" in ast.unparse(annotation) else int


def available(kind: str) -> list[str]:
    """The bare words of a kind, found without importing the modules."""
    package, entry = KINDS[kind]
    try:
        folders = importlib.import_module(package).__path__
    except ModuleNotFoundError:
        return []
    return sorted(m.name for m in pkgutil.iter_modules(folders) if _defines(m.module_finder.find_spec(m.name).origin, entry))


def _defines(file: str, name: str) -> bool:
    """Says whether a source file defines or imports `name` at its top level."""
    for node in ast.parse(pathlib.Path(file).read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == name for target in node.targets):
            return True
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return True
    return False


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
