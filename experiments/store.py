"""Looks after a store: lists its artefacts, deletes those that no run uses any more.

    python -m experiments.store ls --store=DIR
    python -m experiments.store gc --store=DIR [--keep=WORKDIR]... [--yes]

`gc` keeps every artefact that a `runs.json` names: that of the folder the store lies in, that of each `--keep`, and those of
the points of a staged sweep in either. Its
partial work is kept with it, and so is whatever a process is computing now. Without `--yes` it says what it would delete.
"""

import contextlib
import dataclasses
import json
import time

from absl import app, flags
from etils import epath

FLAGS = flags.FLAGS
flags.DEFINE_string("store", None, "The store's folder (of a run: <workdir>/store unless it was given).", required=True)
flags.DEFINE_multi_string("keep", [], "gc: a workdir whose artefacts stay; may be repeated.")
flags.DEFINE_bool("yes", False, "gc: delete, instead of saying what would be deleted.")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One folder of a store; `state` is "finished", "partial" (scratch of an unfinished stage) or "broken" (no manifest)."""

    path: epath.Path
    state: str
    size: int
    age_s: float

    @property
    def artefact(self) -> str:
        return self.path.name.removesuffix(".partial")


def entries(root: epath.Path) -> list[Entry]:
    """The folders of a store, oldest first."""
    from w2s_jax import files, store  # late: it imports JAX, and --help should not

    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; correct --store")
    found = []
    for path in root.iterdir():
        if path.is_dir() and store.FOLDER.fullmatch(path.name.removesuffix(".partial")):
            finished = (path / "manifest.json").exists()
            state = "partial" if path.name.endswith(".partial") else "finished" if finished else "broken"
            size = sum(file.stat().length for file in files.walk(path).values())
            found.append(Entry(path, state, size, time.time() - (path / "manifest.json" if finished else path).stat().mtime))
    return sorted(found, key=lambda entry: (-entry.age_s, entry.path.name))


def unreached(root: epath.Path, workdirs: list[epath.Path]) -> list[Entry]:
    """The folders that no `runs.json` of a workdir names.

    Raises:
        ValueError: there is no `runs.json` to go by, which would make everything rubbish.
    """
    runs = runs_of(root.parent)
    for workdir in workdirs:
        if not (own := runs_of(workdir)):
            raise ValueError(f"{workdir / 'runs.json'}: no such file, so it is unknown what that run uses; correct --keep")
        runs += own
    if not runs:
        raise ValueError(f"no runs.json beside {root} and no --keep: nothing says what to keep; give --keep=WORKDIR")
    used = {artefact for path in runs for artefact in json.loads(path.read_text()).values()}
    return [entry for entry in entries(root) if entry.artefact not in used]


def runs_of(workdir: epath.Path) -> list[epath.Path]:
    """The `runs.json` of a workdir, and those of the points of its staged sweep."""
    points = workdir / "staged" / "points"
    folders = [workdir, *(sorted(points.iterdir()) if points.is_dir() else ())]
    return [folder / "runs.json" for folder in folders if (folder / "runs.json").exists()]


def main(argv: list[str]) -> None:
    if argv[1:] not in (["ls"], ["gc"]):
        raise app.UsageError(f"got {' '.join(argv[1:]) or 'no command'!r}; allowed are ls and gc")
    root = epath.Path(FLAGS.store)
    try:
        if argv[1] == "ls":
            rows = entries(root)
        else:
            rows = unreached(root, [epath.Path(workdir) for workdir in FLAGS.keep])
    except ValueError as error:
        raise SystemExit(f"experiments.store: {error}") from error
    for entry in rows:
        stage, _, key = entry.artefact.rpartition("-")
        print(f"{stage:<12} {key}  {_size(entry.size):>10}  {_age(entry.age_s):>8}  {entry.state}")
    total = f"{len(rows)} folders, {_size(sum(entry.size for entry in rows))}"
    if argv[1] == "ls":
        print(total)
    elif not FLAGS.yes:
        print(f"{total} would be deleted; --yes deletes them")
    else:
        deleted = [entry for entry in rows if _delete(entry)]
        print(f"{len(deleted)} folders, {_size(sum(entry.size for entry in deleted))} deleted")


def _delete(entry: Entry) -> bool:
    """Deletes a folder unless a process holds its lock."""
    from w2s_jax import files

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(entry.path.parent / entry.artefact, print, wait=False))
        except BlockingIOError:
            print(f"{entry.path.name} is being computed now; kept")
            return False
        entry.path.rmtree()
    return True


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    app.run(main)
