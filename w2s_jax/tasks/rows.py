"""The rows of a task's data sets, from the hub or from local files, as three roles that do not overlap.

What tasks over named data sets share (`choice`, `math`). `source`, `target` and `test` are tuples of "dataset:split". A row
whose question occurs in an earlier role of the order test, source, target is dropped from the later one and counted in
the log, so that the roles are disjoint by text and by id, whatever the config names.

Local files: `<root>/<dataset>.<split>.jsonl[.gz]`, or the same under the domain's folder in `<root>`, one object a line; any
dataset name works that has such a file. A domain with a `table` also reads `<dataset>.<split>.csv[.gz]` with a line of column
names.
"""

import csv
import dataclasses
import difflib
import gzip
import hashlib
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from w2s_jax.tasks import Split
from w2s_jax.types import Gold, Question

VERSION = "1"
PRECEDENCE = ("test", "source", "target")
MAX_UNASKABLE_FRAC = 0.01

Row = Any
"""A named tuple of the domain with at least `id`, `question` and `answer` (None where it is not public)."""
Item = tuple[str, Row, str]
"""(data set, row, where it stands: "file:line" or its place on the hub)."""


@dataclasses.dataclass(frozen=True)
class Hub:
    """Where rows lie on the hub, and how to read their columns.

    Attributes:
        path, name: the hub id and the configuration.
        columns: a hub row and its place ("split/number", an id for rows without one) -> a row of the domain, or None for one
            that does not belong here.
        revision: "refs/convert/parquet" where the main branch holds a loading script: remote code is never run.
        split: its name there, "" = the one that was asked for.
    """

    path: str
    name: str | None
    columns: Callable[[Mapping[str, Any], str], Row]
    revision: str | None = None
    split: str = ""


@dataclasses.dataclass(frozen=True)
class Domain:
    """What the data sets of a kind of task have in common.

    Attributes:
        module: the task's module, named in messages.
        folder: of its files under the root.
        hub: the data sets that the hub has -> what a split of one consists of.
        fields: of a local file's object, named in messages.
        read: (object of a local file, where it stands) -> a row; raises ValueError for a field of the wrong type.
        tidy: (data set, row) -> the row as it is kept.
        problem: why a row cannot be asked, "" if it can: an error in a local file, on the hub counted and dropped.
        spared: why a row is left out although it is well formed, "" if it is not.
        asks: what a row asks, for overlap: (its question, its options).
        views: data sets that are a part of another one's local file: name -> (the other, which objects belong to it).
        table: (line of a local CSV file by column names, where it stands) -> a row; None = there are no such files.
    """

    module: str
    folder: str
    hub: Mapping[str, Callable[[str], tuple[Hub, ...]]]
    fields: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str], Row]
    tidy: Callable[[str, Row], Row]
    problem: Callable[[Row], str]
    spared: Callable[[Row], str]
    asks: Callable[[Row], tuple[str, frozenset[str]]]
    views: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], bool]]] = dataclasses.field(default_factory=dict)
    table: Callable[[Mapping[str, Any], str], Row] | None = None

    @property
    def endings(self) -> tuple[str, ...]:
        """Of the local files that are read."""
        return (".jsonl.gz", ".jsonl", *((".csv.gz", ".csv") if self.table else ()))


class Roles:
    """Questions, gold answers and files of a task over rows. The true answers stay inside: only `gold` gives them."""

    def __init__(
        self, questions: Mapping[Split, tuple[Question, ...]], gold: Mapping[Split, Gold | None], files: tuple[Path, ...]
    ):
        self._questions, self._gold, self._files = questions, gold, files

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(questions)} {role}" for role, questions in self._questions.items())
        return f"{type(self).__name__}({counts})"

    def questions(self, split: Split) -> tuple[Question, ...]:
        """The questions of a role, in the order of its files."""
        return self._questions[_role(split)]

    def gold(self, split: Split) -> Gold | None:
        """The true answers of a role, None where it has none."""
        return self._gold[_role(split)]

    def files(self) -> tuple[Path, ...]:
        """The local files that were read; none for the hub."""
        return self._files


def load(
    domain: Domain, entries: Mapping[str, Sequence[str]], root: str, caps: Mapping[str, int | None], seed: int
) -> tuple[dict[str, list[Item]], tuple[Path, ...]]:
    """Reads the rows of all three roles, and the local files that they came from.

    Args:
        domain: what kind of rows.
        entries: "dataset:split" entries of each role; a role may be empty.
        root: folder with local files, "" = the hub.
        caps: keep at most this many rows of a role, spread evenly over its data sets: a random subset keyed by `seed` and the
            row's id, so that a smaller cap gives a subset of a larger one. Overlap between roles is removed before, so that
            no cap changes another role.
        seed: key of the subsets; it does not change the order of rows.

    Raises:
        ValueError: unknown data set, missing file, unreadable row (with file and line), no row left, a role that is
            labelled in part only, an unlabelled source or test.
    """
    if root and not Path(root).is_dir():
        raise ValueError(
            f"--config.tasks.root={root}: there is no such folder; give the one that holds <dataset>.<split>.jsonl[.gz]"
        )
    loaded: dict[str, list[Item]] = {}
    files: list[Path] = []
    for role in PRECEDENCE:
        if caps[role] is not None and caps[role] < 1:
            raise ValueError(f"--config.tasks.max_{role} is {caps[role]}; allowed are None (no limit) and 1 or more")
        loaded[role] = []
        for dataset, split in _parse(domain, role, entries[role], root):
            path, rows = _local(domain, root, dataset, split) if root else (None, _from_hub(domain, dataset, split))
            loaded[role] += [(dataset, row, where) for row, where in rows]
            files += [path] if path and path not in files else []
        _check_labels(role, entries[role], loaded[role])
    kept = {role: _subset(items, caps[role], seed) for role, items in _disjoint(domain, loaded).items()}
    return kept, tuple(files)


def labelled(items: Sequence[Item]) -> bool:
    """Whether the rows of a role have answers: all of them, or none."""
    return bool(items) and items[0][1].answer is not None


def digest(*words: str) -> bytes:
    """Eight bytes that depend on the words alone, for orders and ids that must not change between runs."""
    return hashlib.blake2b("\0".join(words).encode(), digest_size=8).digest()


def text_field(found: Mapping[str, Any], name: str, where: str, default: str | None = None) -> str:
    """The text in a field of an object.

    Raises:
        ValueError: it is no text.
    """
    value = found.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"{where}: field {name!r} is {value!r}, allowed is text")
    return value


def plain(text: str) -> str:
    """A text without what does not change the question that it asks: case and spaces."""
    return " ".join(text.casefold().split())


def _role(split: str) -> str:
    if split not in PRECEDENCE:
        raise ValueError(f"unknown role {split!r}; allowed are 'source', 'target' and 'test'")
    return split


def _parse(domain: Domain, role: str, entries: Sequence[str], root: str) -> Iterator[tuple[str, str]]:
    """Checks a role's entries and splits each into data set and split."""
    line = f"--config.tasks.{role}"
    if isinstance(entries, str):
        raise ValueError(f"{line} is the string {entries!r}; write a tuple of 'dataset:split', such as ({entries!r},)")
    if len(set(entries)) < len(entries):
        raise ValueError(f"{line} names an entry twice: {tuple(entries)}")
    for entry in entries:
        dataset, _, split = entry.partition(":")
        if not dataset or not split:
            raise ValueError(f"{line} has the entry {entry!r}; write 'dataset:split', such as '{next(iter(domain.hub))}:test'")
        names = {*domain.hub, *_local_splits(domain, root)} if root else {*domain.hub}
        if dataset not in names:
            near = difflib.get_close_matches(dataset, names, 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{line} names the unknown data set {dataset!r}; known are {', '.join(sorted(names))}{hint}")
        yield dataset, split


def _folders(domain: Domain, root: str) -> tuple[Path, Path]:
    folder = Path(root).expanduser()
    return folder, folder / domain.folder


def _local_splits(domain: Domain, root: str) -> dict[str, list[str]]:
    """The data sets that have files under `root`, with their splits."""
    splits = defaultdict(list)
    for folder in _folders(domain, root):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if found := re.fullmatch(rf"(.+)\.([^.]+)({'|'.join(map(re.escape, domain.endings))})", path.name):
                splits[found[1]].append(found[2])
    return splits


def _local(domain: Domain, root: str, dataset: str, split: str) -> tuple[Path, list[tuple[Row, str]]]:
    """Reads one local file: its rows, each with "file:line"."""
    file, belongs = domain.views.get(dataset, (dataset, None))
    paths = [folder / f"{file}.{split}{ending}" for folder in _folders(domain, root) for ending in domain.endings]
    found = [path for path in paths if path.is_file()]
    if len(found) != 1:
        have = _local_splits(domain, root).get(file, [])
        raise ValueError(
            f"{dataset}:{split} has {len(found)} files under --config.tasks.root={root}, needed is one of "
            f"{', '.join(map(str, found or paths))}; splits of {file!r} found there: {', '.join(have) or 'none'}"
        )
    path, rows = found[0], []
    line_of: dict[str, str] = {}
    for content, where, read in _contents(path, domain):
        if belongs and not belongs(content):
            continue
        row = domain.tidy(dataset, read(content, where))
        if problem := domain.problem(row):
            raise ValueError(f"{where}: {problem}")
        if reason := domain.spared(row):
            logging.warning("%s: dropped, %s", where, reason)
            continue
        if row.id in line_of:
            raise ValueError(f"{where}: id {row.id!r} is already on line {line_of[row.id]}; ids must be unique in a file")
        line_of[row.id] = where.rpartition(":")[2]
        rows.append((row, where))
    if not rows:
        raise ValueError(f"{path} has no rows; put questions there or take {dataset}:{split} out of the config")
    return path, rows


def _contents(path: Path, domain: Domain) -> Iterator[tuple[dict[str, Any], str, Callable[[Mapping[str, Any], str], Row]]]:
    """What a file holds, row by row: the fields of a row, "file:line", and what reads it."""
    if ".csv" not in path.suffixes[-2:]:
        for number, line in _lines(path):
            yield _object(line, domain, where := f"{path}:{number}"), where, domain.read
        return
    read = [0]  # the reader counts no blank lines, so the lines tell where they stand as they are read

    def lines() -> Iterator[str]:
        for number, line in _lines(path):
            read[0] = number
            yield line

    try:
        for columns in csv.DictReader(lines(), strict=True):
            yield columns, f"{path}:{read[0]}", domain.table
    except csv.Error as error:
        raise ValueError(f"{path}:{read[0]}: {error}; is a quotation mark open there, or since a line before?") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers the lines of a text file, packed or not; blank ones are skipped."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read to its end ({error}); fetch or pack it again") from error


def _object(line: str, domain: Domain, where: str) -> dict[str, Any]:
    """The object on a line of a local file."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not a JSON object ({error}): {line.strip()[:80]!r}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where}: {str(found)[:80]!r} is not an object with the fields {', '.join(domain.fields)}")
    return found


def _from_hub(domain: Domain, dataset: str, split: str) -> list[tuple[Row, str]]:
    """Loads one split from the hub: its rows, each with its place."""
    return [item for hub in domain.hub[dataset](split) for item in _part(domain, hub, dataset, split)]


def _part(domain: Domain, hub: Hub, dataset: str, split: str) -> list[tuple[Row, str]]:
    import datasets  # here, because it takes a second to import and local files do without

    name = hub.path + (f" ({hub.name})" if hub.name else "")
    there = hub.split or split
    try:
        table = datasets.load_dataset(hub.path, hub.name, split=there, revision=hub.revision)
    except Exception as error:
        raise ValueError(
            f"{dataset}:{split} cannot be loaded from the hub, {name}: {error}\n"
            "Without a network, give a folder of local files with --config.tasks.root=DIR; otherwise check the split's name"
        ) from error
    rows, problems = [], []
    for number, columns in enumerate(table):
        where = f"{name}, split {there}, row {number}"
        try:
            row = hub.columns(columns, f"{there}/{number}")
            row = None if row is None else domain.tidy(dataset, row)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{where}: the columns {sorted(columns)} do not read as {dataset!r} ({error!r}); the data set may have changed "
                f"on the hub: update its columns in {domain.module}, or use local files, --config.tasks.root=DIR"
            ) from error
        if row is None:
            continue
        if problem := domain.problem(row) or domain.spared(row):
            problems.append(f"{where}: {problem}")
        else:
            rows.append((row, where))
    if not rows or len(problems) > MAX_UNASKABLE_FRAC * len(table):
        raise ValueError(
            f"{len(problems)} of {len(table)} rows of {name}, split {there}, cannot be asked. {''.join(problems[:1])}"
        )
    if problems:
        logging.warning("%s:%s: dropped %d of %d rows, the first: %s", dataset, split, len(problems), len(table), problems[0])
    return rows


def _check_labels(role: str, entries: Sequence[str], items: list[Item]) -> None:
    """A role has all its answers, or, for the target, none."""
    bare = [where for _, row, where in items if row.answer is None]
    if bare and len(bare) < len(items):
        raise ValueError(
            f"{bare[0]}: no answer, while other rows of the {role} {tuple(entries)} have one ({len(bare)} of {len(items)} have "
            f"none); give all rows answers or none, or change --config.tasks.{role}"
        )
    if bare and role != "target":
        raise ValueError(
            f"{bare[0]}: no answer, and no other row of the {role} {tuple(entries)} has one; "
            f"only the target may be without answers: change --config.tasks.{role}"
        )


def _disjoint(domain: Domain, loaded: dict[str, list[Item]]) -> dict[str, list[Item]]:
    """Drops what an earlier role asks already, and repeats within a role.

    Across roles two rows ask the same if their questions agree and at least half of the shorter list of options does (which
    all do that have none): MMLU-Pro asks MMLU's questions with more options and edits some. Within a role only exact repeats
    go.
    """
    taken: dict[str, list[frozenset[str]]] = defaultdict(list)
    place: dict[str, str] = {}
    kept: dict[str, list[Item]] = {}
    for role in PRECEDENCE:
        own: dict[str, set[frozenset[str]]] = defaultdict(set)
        kept[role], crossing, repeated = [], 0, 0
        for item in loaded[role]:
            _, row, where = item
            question, options = domain.asks(row)
            if any(2 * len(options & other) >= min(len(options), len(other)) for other in taken.get(question, ())):
                crossing += 1
            elif options in own[question]:
                repeated += 1
            elif row.id in place:
                raise ValueError(f"{where}: id {row.id!r} is already used at {place[row.id]}; ids must be unique in a task")
            else:
                own[question].add(options)
                place[row.id] = where
                kept[role].append(item)
        for question, seen in own.items():
            taken[question] += seen
        if loaded[role] and not kept[role]:
            raise ValueError(
                f"all {len(loaded[role])} rows of the {role} occur in an earlier role; change --config.tasks.{role}"
            )
        logging.log(
            logging.WARNING if crossing + repeated else logging.INFO,
            "%s: %d questions of %d rows, dropped: %d that an earlier role (%s) asks, %d repeats",
            role, len(kept[role]), len(loaded[role]), crossing, " > ".join(PRECEDENCE), repeated,
        )  # fmt: skip
    return kept


def _subset(items: list[Item], cap: int | None, seed: int) -> list[Item]:
    """Keeps at most `cap` rows, evenly over data sets (small ones give all they have), in the given order."""
    if cap is None or len(items) <= cap:
        return items
    strata = defaultdict(list)
    for dataset, row, _ in items:
        strata[dataset].append(row.id)
    chosen, left = set(), cap
    for rank, dataset in enumerate(sorted(strata, key=lambda name: (len(strata[name]), name))):
        ids = strata[dataset]
        share = min(len(ids), left // (len(strata) - rank))
        chosen.update(sorted(ids, key=lambda i: (digest(str(seed), i), i))[:share])
        left -= share
    return [item for item in items if item[1].id in chosen]
