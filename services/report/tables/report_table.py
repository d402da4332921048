"""A table as a value: columns, and cells that know their text, their number and how they are marked."""

import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace

from services.report.view import ABSENT

Number = int | float
# What the script of the page reads as a number by itself; any other cell with a value carries it.
_PLAIN = re.compile(r"[-+\N{MINUS SIGN}]?[\d,]*\.?\d+(e[-+]?\d+)?%?")


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Args:
        name: Its heading.
        small: Heading of what stands below, in its cells, in small print; in files that is a column of its own.
        unit: Of its values where the caption says it; files repeat it in the heading.
        is_text: Whether it is set flush left.
        is_prose: Whether its texts are long.
    """

    name: str
    small: str = ""
    unit: str = ""
    is_text: bool = False
    is_prose: bool = False

    @property
    def css(self) -> str:
        """Classes of its cells."""
        return " ".join(["text"] * (self.is_text or self.is_prose) + ["prose"] * self.is_prose)


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell.

    Args:
        text: What is shown.
        value: The number behind the text, for sorting and for files, a pair of two for an interval, or None.
        small: Shown below the text in small print.
        small_value: The number behind that.
        style: ``strong``, or classes of the style sheet.
        role: Of an arm, whose mark stands before the text.
        badge: A word after the text, such as ``ship``.
    """

    text: str
    value: Number | tuple[Number, Number] | None = None
    small: str = ""
    small_value: Number | tuple[Number, Number] | None = None
    style: str = ""
    role: str = ""
    badge: str = ""

    @property
    def sort_key(self) -> str:
        """What the page sorts by where that is not the text itself, else empty."""
        if self.value is None or (not self.small and _PLAIN.fullmatch(self.text)):
            return ""
        return repr(self.value[0] if isinstance(self.value, tuple) else self.value)


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Args:
        name: Identifier in the page and name of its files.
        title: What it shows in a few words, for screen readers and file headings.
        caption: How to read it.
        columns: The first one names the row.
        rows: Cells, or texts of cells that are nothing but text; each row as long as `columns`.
        style: Class of the table.

    Raises:
        ValueError: A row has another number of cells than there are columns.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    style: str = ""

    def __post_init__(self) -> None:
        """Check the lengths of the rows: a missing cell would shift all that follow."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.name!r} has {len(self.columns)} columns, got a row of {len(row)} cells")


def table(
    name: str,
    title: str,
    caption: str,
    columns: Sequence[Column | str],
    rows: Sequence[Sequence[Cell | str]],
    style: str = "",
) -> Table:
    """Return a table from columns and cells, of which plain texts may be given as such."""
    return Table(
        name,
        title,
        caption,
        tuple(column if isinstance(column, Column) else Column(column) for column in columns),
        tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows),
        style,
    )


def without(shown: Table, names: Container[str], *, unless: Callable[[Cell], bool]) -> Table:
    """Return a table without those of some columns in none of whose cells something is to be read.

    Args:
        shown: The table.
        names: Of the columns.
        unless: Whether something is to be read in a cell.
    """
    kept = [
        index
        for index, column in enumerate(shown.columns)
        if column.name not in names or any(unless(row[index]) for row in shown.rows)
    ]
    rows = tuple(tuple(row[index] for index in kept) for row in shown.rows)
    return replace(shown, columns=tuple(shown.columns[index] for index in kept), rows=rows)


def count(number: int | None) -> Cell:
    """Return a cell with a count."""
    return Cell(ABSENT) if number is None else Cell(f"{number:,}", number)


def amount(number: float | None, form: str = ",.1f") -> Cell:
    """Return a cell with an amount in a format of Python's."""
    return Cell(ABSENT) if number is None else Cell(format(number, form).replace("-", "\N{MINUS SIGN}"), number)


def share(part: float, whole: float) -> Cell:
    """Return a cell with a share in percent, of nothing without a number."""
    return Cell(f"{part / whole:.1%}", 100 * part / whole) if whole > 0 else Cell(ABSENT)


def flat_columns(shown: Table) -> Iterator[tuple[str, str, bool, list[Cell]]]:
    """Yield what files have as columns: heading, which end of an interval (or empty), whether it is text, cells.

    Small print is a column of its own, and so is either end of an interval.
    """
    for index, column in enumerate(shown.columns):
        cells = [row[index] for row in shown.rows]
        yield from _ends(_heading(column.name, column.unit), bool(column.css) or index == 0, cells)
        if any(cell.small for cell in cells):
            below = [Cell(cell.small, cell.small_value) for cell in cells]
            is_text = all(cell.small_value is None for cell in cells)
            yield from _ends(_heading(column.small or f"{column.name}, below", column.unit), is_text, below)


def _heading(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _ends(heading: str, is_text: bool, cells: list[Cell]) -> Iterator[tuple[str, str, bool, list[Cell]]]:
    if not any(isinstance(cell.value, tuple) for cell in cells):
        yield heading, "", is_text, cells
        return
    for end, word in enumerate(("low", "high")):
        values = [cell.value[end] if isinstance(cell.value, tuple) else None for cell in cells]
        yield heading, word, False, [Cell(_end_text(cell.text, end), v) for cell, v in zip(cells, values, strict=True)]


def _end_text(text: str, end: int) -> str:
    """Return one end of an interval that is written ``1.5 to 2.5``, perhaps with more behind a comma."""
    parts = text.partition(",")[0].split(" to ")
    return parts[end] if len(parts) == 2 else ABSENT
