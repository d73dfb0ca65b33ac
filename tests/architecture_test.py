"""The shape of the project, checked on its syntax trees: import order, one door for gold, nothing unsafe, version words.

Version words: a module with a `VERSION` takes part in stages, and its word goes into the keys of what it computes. Golden file
`golden/code_versions.json` remembers each module's word and the digest of its code (without docstrings and comments). After a
change of a module:

- results may differ: give it another VERSION, then `python tests/architecture_test.py --update`;
- results cannot differ (a rename, a message, a faster way to the same bits): only `python tests/architecture_test.py --update`.
"""

import ast
import hashlib
import json
import pathlib
import re
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "code_versions.json"

TIERS = (  # a file imports from tiers above its own only; files and folders of one tier ignore each other
    ("types",),  # L0
    ("codec", "files", "processes"),
    ("metrics", "store", "plugins", "packing", "progress"),  # L1
    ("tasks", "models", "comparison"),  # L2
    ("drawing",),
    ("slots",),
    ("choosing", "sampling", "features", "recovery"),  # L3
    ("trust", "selection", "certificate", "answering", "judgement", "voting"),
    ("knowing", "smoothing", "routing"),  # L4
    ("student",),  # L5
    ("scoring", "pretrain"),  # L6
    ("settings",),
    ("run",),
    ("looking",),
    ("gathering",),
    ("selective", "teachers"),
    ("relabelling",),
    ("calibrating", "teaching"),
    ("pipeline",),  # L7
    ("costs",),
    ("chain", "planning", "grid"),  # L8
    ("theory",),
    ("analysis",),  # L9
    ("figures", "typesetting"),
    ("chain_page", "cost_page", "gain_page", "mechanism_page", "study_page", "sweep_page", "transfer_page"),
    ("report",),  # L10
    ("experiments",),
)
TIER = {area: number for number, areas in enumerate(TIERS) for area in areas}
GOLD_DOOR = "w2s_jax/pipeline.py"
READS_ENVIRONMENT = ("experiments/main.py", "experiments/doctor.py", "launch/")
VAGUE = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
UNSAFE_KEYWORDS = {"allow_pickle", "trust_remote_code"}
TAKES_PART = {"packing", "types"} | {area for areas in TIERS[TIER["tasks"] : TIER["pipeline"] + 1] for area in areas}
"""They need a version word."""


def sources(*folders: str) -> list[pathlib.Path]:
    """The project's source files, as paths from its root."""
    return sorted(path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))


def tree(path: pathlib.Path) -> ast.Module:
    return ast.parse((ROOT / path).read_bytes(), str(path))


def module(path: pathlib.Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def area(name: str) -> str:
    """The word of the table that a module belongs to: "w2s_jax.models.decoder" -> "models"; "" for w2s_jax itself."""
    top, _, rest = name.partition(".")
    return top if top == "experiments" else rest.partition(".")[0]


def imports(path: pathlib.Path) -> Iterator[str]:
    """The project modules that a file imports, at its top or within a function."""
    package = module(path) if path.name == "__init__.py" else module(path.parent)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "w2s_jax" else [base]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ("w2s_jax", "experiments"))


def breaches(path: pathlib.Path) -> list[str]:
    """What a file imports against the order."""
    own = area(module(path))
    targets = {target: area(target) for target in imports(path)}
    if own == "":  # w2s_jax/__init__.py: below all
        return [f"{path} imports {target}" for target in targets]
    return [
        f"{path} ({own}) imports {target}"
        for target, other in targets.items()
        if other not in ("", own) and not TIER.get(other, len(TIERS)) < TIER[own]
    ]


def calls_gold(path: pathlib.Path) -> list[int]:
    """The lines that open gold: `x.gold(...)`, `task.gold` handed on, or the name looked up by its string."""
    lines = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            looked_up = isinstance(node.func, ast.Name | ast.Attribute) and getattr(
                node.func, "id", getattr(node.func, "attr", "")
            ) in ("getattr", "attrgetter", "methodcaller")
            by_name = looked_up and any(isinstance(a, ast.Constant) and a.value == "gold" for a in node.args)
            if by_name or (isinstance(node.func, ast.Attribute) and node.func.attr == "gold"):
                lines.append(node.lineno)
        elif isinstance(node, ast.Attribute) and node.attr == "gold":
            if getattr(node.value, "id", getattr(node.value, "attr", "")) == "task":
                lines.append(node.lineno)
    return sorted(set(lines))


def unsafe(path: pathlib.Path) -> list[str]:
    """Pickle in any form, and code from a model repository."""
    found = []
    for node in ast.walk(tree(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"{path}:{node.lineno} imports {name}" for name in names if name.split(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.keyword) and node.arg in UNSAFE_KEYWORDS:
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                found.append(f"{path}:{node.value.lineno} {node.arg} is not False")
    return found


def environment_reads(path: pathlib.Path) -> list[int]:
    """The lines that touch os.environ other than by setting one variable, or call os.getenv."""
    nodes = list(ast.walk(tree(path)))
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    is_set = {id(target.value) for target in targets if isinstance(target, ast.Subscript)}
    lines = []
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            if node.attr in ("getenv", "environb") or (node.attr == "environ" and id(node) not in is_set):
                lines.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            lines += [node.lineno for alias in node.names if alias.name in ("environ", "getenv", "environb")]
    return lines


def version(path: pathlib.Path) -> str | None:
    """The module's `VERSION`."""
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == ["VERSION"]:
            return ast.literal_eval(node.value)
    return None


def code_digest(path: pathlib.Path) -> str:
    """A digest of what the code does: no comments, docstrings, positions; the same in every Python version."""

    def plain(node):
        if isinstance(node, list):
            return [plain(item) for item in node]
        if isinstance(node, ast.AST):
            fields = {name: plain(child) for name, child in ast.iter_fields(node) if name not in ("kind", "type_comment")}
            return [type(node).__name__, {name: child for name, child in fields.items() if child not in ([], None)}]
        return f"{type(node).__name__} {node!r}"

    root = tree(path)
    for node in ast.walk(root):
        may_have_one = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if may_have_one and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(json.dumps(plain(root), sort_keys=True).encode()).hexdigest()[:16]


def code_versions() -> dict[str, dict[str, str]]:
    """Word and digest of every module that has a version word."""
    return {
        module(path): {"version": word, "digest": code_digest(path)}
        for path in sources("w2s_jax")
        if (word := version(path)) is not None
    }


def outdated(now: dict, then: dict) -> list[str]:
    """What the golden file does not say yet, and what to do about it."""
    update = "`python tests/architecture_test.py --update`"
    found = []
    for name in sorted({*now, *then}):
        old, new = then.get(name), now.get(name)
        if old == new:
            continue
        if old is None or new is None or old["version"] != new["version"]:
            found.append(f"{name}: new, gone, or with another VERSION; run {update}")
        else:
            found.append(
                f"{name}: its code changed and VERSION = {new['version']!r} did not, so stores would serve what the old code "
                f"computed; change VERSION if results may differ, then (or, if they cannot differ, only) run {update}"
            )
    return found


def test_every_file_has_a_place_in_the_order():
    lost = [str(path) for path in sources("w2s_jax", "experiments") if area(module(path)) not in {"", *TIER}]
    assert not lost, f"{lost}: add a line to TIERS in {pathlib.Path(__file__).name} (and to the tree in WORKSPACE.md)"


def test_a_file_imports_only_from_below():
    found = [line for path in sources("w2s_jax", "experiments") if area(module(path)) in {"", *TIER} for line in breaches(path)]
    assert not found, "\n".join(found)


def test_gold_is_opened_in_one_file():
    others = [path for path in sources("w2s_jax", "experiments") if str(path) != GOLD_DOOR]
    found = [f"{path}:{line}" for path in others for line in calls_gold(path)]
    assert not found, f"{found}: only {GOLD_DOOR} calls Task.gold; hand over what it computed instead"


def test_no_file_has_a_name_that_says_nothing():
    found = [str(path) for path in sources("w2s_jax", "experiments", "launch") if path.name in VAGUE]
    assert not found, f"{found}: name the file after the part of the method it holds"


def test_nothing_is_unpickled_and_no_foreign_code_is_run():
    found = [line for path in sources("w2s_jax", "experiments", "launch") for line in unsafe(path)]
    assert not found, "\n".join(found)


def test_the_environment_is_read_at_the_entrance_only():
    found = [
        f"{path}:{line}"
        for path in sources("w2s_jax", "experiments")
        if not str(path).startswith(READS_ENVIRONMENT)
        for line in environment_reads(path)
    ]
    assert not found, f"{found}: read it in {READS_ENVIRONMENT[0]} and pass the value on"


def test_every_module_that_takes_part_in_a_stage_has_a_version_word():
    lost = [str(path) for path in sources("w2s_jax") if area(module(path)) in TAKES_PART and path.name != "__init__.py"]
    lost = [path for path in lost if version(pathlib.Path(path)) is None]
    assert not lost, f'{lost}: add VERSION = "1" near the top, or a change there would be served stale'


def test_no_code_changes_without_its_version_word():
    found = outdated(code_versions(), json.loads(GOLDEN.read_text()))
    assert not found, "\n".join(found)


# The checks themselves, on files that break each rule


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return pathlib.Path(name)

    return write


@pytest.mark.parametrize(
    "name, text, wrong",
    [
        ("w2s_jax/models/x.py", "from w2s_jax import types, store\nfrom w2s_jax.models.y import z", 0),
        ("w2s_jax/models/x.py", "from w2s_jax.tasks import choice", 1),
        ("w2s_jax/models/x.py", "def f():\n    from w2s_jax import pipeline", 1),
        ("w2s_jax/models/x.py", "from ..trust import neural", 1),
        ("w2s_jax/models/x.py", "from . import y\nfrom .y import z", 0),
        ("w2s_jax/models/__init__.py", "from .y import z\nfrom ..store import Store", 0),
        ("w2s_jax/models/x.py", "import w2s_jax.nowhere", 1),
        ("w2s_jax/store.py", "from w2s_jax import metrics", 1),
        ("w2s_jax/__init__.py", "from w2s_jax import types", 1),
        ("w2s_jax/report.py", "from experiments import main", 1),
        ("experiments/main.py", "from w2s_jax import report\nfrom experiments.configs import base", 0),
    ],
)
def test_the_order_check_sees(name, text, wrong, project):
    assert len(breaches(project(name, text))) == wrong


@pytest.mark.parametrize(
    "check, text, wrong",
    [
        (calls_gold, "task.gold('test')", 1),
        (calls_gold, "getattr(task, 'gold')('test')", 1),
        (calls_gold, "map(run.task.gold, roles)", 1),
        (calls_gold, "config.methods.gold\ngold(1)", 0),
        (unsafe, "import pickle", 1),
        (unsafe, "from dill import load", 1),
        (unsafe, "np.load(f, allow_pickle=True)\nAutoModel.f(trust_remote_code=flag)", 2),
        (unsafe, "np.load(f, allow_pickle=False)", 0),
        (environment_reads, "os.environ['A']", 1),
        (environment_reads, "os.environ.get('A')\nos.getenv('A')\nfrom os import environ", 3),
        (environment_reads, "os.environ['A'] = '1'", 0),
    ],
)
def test_the_check_sees(check, text, wrong, project):
    assert len(check(project("w2s_jax/x.py", text))) == wrong


def test_the_digest_is_of_the_code_not_of_its_prose(project):
    def digest(text):
        return code_digest(project("w2s_jax/x.py", text))

    base = digest('"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    assert digest('"""Other."""\ndef f(x):\n    """Other."""\n    # why\n    return (x\n            + 1)\n') == base
    assert digest("def f(x):\n    return x + 1.0\n") != base
    assert digest("def f(x):\n    return x - 1\n") != base


def test_a_change_is_told_what_to_do():
    then = {"a": {"version": "1", "digest": "x"}, "b": {"version": "1", "digest": "x"}}
    now = {"a": {"version": "1", "digest": "y"}, "b": {"version": "2", "digest": "y"}}
    said = outdated(now, then)
    assert re.match(r"a: its code changed and VERSION = '1' did not.*--update", said[0])
    assert re.match(r"b: new, gone, or with another VERSION; run .*--update", said[1])
    assert outdated(now, now) == []


def update() -> None:
    """Rewrites the golden file and names the modules that keep their word although their code changed."""
    now, then = code_versions(), json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for name in now:
        if name in then and now[name] != then[name] and now[name]["version"] == then[name]["version"]:
            print(f"{name} changed and keeps its version word: finished stages stay valid. Is that so?")
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python tests/architecture_test.py --update")
    update()
