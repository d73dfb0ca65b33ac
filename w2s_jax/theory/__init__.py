"""What theory says of weak-to-strong learning, computed: pure functions, plain keywords, no language model.

    expansion  how much of a weak teacher's errors a student must correct, by how sets of points expand (`partition`,
               `neighbours`, `expanding`, `bounds`, `two_views`, `probing`)
    linear     a logistic teacher and a logistic student: does the student beat itself? (`gaussian`, `pairs`, `flow`)
    gains      what foretells a student's gain, on planted worlds and finished runs (`misfit`, `overlap`, `kernels`, `planted`)

A module of a study has `study(**keywords) -> Study`; `experiments/theory.py` runs it and `study_page.py` writes it down.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbers in rows.

    Attributes:
        name: of the file.
        head: titles of the columns.
        rows: a cell for each column; None = unknown.
        note: what the numbers are.
    """

    name: str
    head: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Figure:
    """Lines.

    Attributes:
        name: of the file.
        title, x_label, y_label, caption: texts.
        series: points (x, y) of each line, by its name.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Heat:
    """A quantity over two others.

    Attributes:
        name: of the file.
        title, x_label, y_label, caption: texts.
        x, y: centres of the cells, ascending.
        value: f[len(y), len(x)]; NaN = no such cell.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    y: Sequence[float]
    value: np.ndarray
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        title, lead: heading, and the sentence below it.
        tables, figures: in the order of the page.
    """

    title: str
    lead: str
    tables: tuple[Table, ...]
    figures: tuple[Figure | Heat, ...]
