"""Rows of a CSV or Parquet file, as texts with their line numbers."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_blockout.data.errors import DataCorrupt, DataMissing, DataUnsuitable
from nas_blockout.serialization import near

PARQUET = (".parquet", ".pq")
_DELIMITERS = (",", ";", "\t")  # the second is what spreadsheets write where the comma is a decimal point


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Args:
        line: Its first line in a text file, from 1; of a Parquet file the number of the row, from 1.
        cells: Text of every column that was asked for, without spaces around it; empty where there is none.
        problem: Why it is no row of the table; None if it is one.
    """

    line: int
    cells: Mapping[str, str]
    problem: str | None = None


def rows_of(table: Path, columns: Mapping[str, str]) -> list[Row]:
    """Read columns of a table.

    Args:
        table: A file whose first line names its columns: UTF-8 text separated by commas, semicolons or tabs, or, with
            the suffix ``.parquet`` or ``.pq``, a Parquet file.
        columns: By the setting that names it, the name of each column to read.

    Raises:
        DataMissing: There is no such file.
        DataCorrupt: It is no table of its format; the message has the line.
        DataUnsuitable: It lacks a column, or nothing here reads Parquet.
    """
    if not table.is_file():
        raise DataMissing(f"there is no table {table}; set table to a CSV or Parquet file with a row an image")
    return list(_parquet_rows(table, columns) if table.suffix.lower() in PARQUET else _text_rows(table, columns))


def _text_rows(table: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    text = _decoded(table)
    first = text.partition("\n")[0]
    # The delimiter is the one under which the first line names the most of the columns that are asked for.
    delimiter = max(_DELIMITERS, key=lambda each: len(set(columns.values()) & set(_cells(first, each))))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not names and cells:
                names = [cell.strip() for cell in cells]
                _require_columns(table, names, columns)
            elif cells:
                yield _row(line, cells, names, columns)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataCorrupt(f"{table} must be a table of text, got from line {line} on: {error}; correct it") from error
    if not names:
        raise DataUnsuitable(f"{table} must name its columns in the first line, got an empty file")


def _row(line: int, cells: Sequence[str], names: Sequence[str], columns: Mapping[str, str]) -> Row:
    if len(cells) != len(names):
        return Row(line, {}, f"must have {len(names)} cells, as the first line, got {len(cells)}")
    by_name = dict(zip(names, cells, strict=True))
    return Row(line, {name: by_name[name].strip() for name in columns.values()})


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _decoded(table: Path) -> str:
    content = table.read_bytes()
    try:
        return content.decode("utf-8-sig")  # spreadsheets begin a file with a mark of its encoding
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataCorrupt(
            f"{table} must be UTF-8 text, line {line} is not (byte {content[error.start]:#04x}); save it as UTF-8"
        ) from error


def _parquet_rows(table: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataUnsuitable(
            f"reading {table.name} needs pyarrow, which is not installed: pip install 'nas-blockout[parquet]', or save "
            "the table as CSV"
        ) from error
    try:
        _require_columns(table, parquet.read_schema(table).names, columns)
        content: Any = parquet.read_table(table, columns=sorted(set(columns.values()))).to_pylist()
    except (ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        raise DataCorrupt(f"{table} must be a Parquet file, got: {text}; write it again") from error
    for number, cells in enumerate(content, 1):
        yield Row(number, {name: "" if cells[name] is None else str(cells[name]).strip() for name in cells})


def _require_columns(table: Path, names: Sequence[str], columns: Mapping[str, str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1 and name in columns.values()}):
        raise DataUnsuitable(f"{table} must name every column once, got {', '.join(twice)} several times")
    for setting, name in columns.items():
        if name not in names:
            raise DataUnsuitable(f"{setting} must name a column of {table}, got {name!r}; {near(name, names)}")
