"""Rows of a CSV or Parquet table, and the cells that labelled data needs.

A table is streamed: one row at a time for CSV, one record batch at a time for Parquet.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from capture.errors import DataError
from capture.flow_key import parse_address

# IANA protocol numbers by the names that flow tables use.
PROTOCOLS: Final[Mapping[str, int]] = {
    "icmp": 1,
    "igmp": 2,
    "tcp": 6,
    "udp": 17,
    "ipv6": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ipv6-icmp": 58,
    "icmp6": 58,
    "icmpv6": 58,
    "ospf": 89,
    "pim": 103,
    "vrrp": 112,
    "sctp": 132,
    "udplite": 136,
}
_parse_address = lru_cache(maxsize=65536)(parse_address)

PARQUET_SUFFIXES: Final = (".parquet", ".pq")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: its cells by column name, and where it stands for error messages."""

    where: str
    cells: Mapping[str, Any]

    def text(self, column: str) -> str:
        """The cell as stripped text; empty where the column or the value is missing, or no number (NaN)."""
        value = self.cells.get(column)
        return "" if value is None or value != value else str(value).strip()

    def port(self, column: str) -> int:
        """A port, 0 to 65535; an empty cell is 0."""
        text = self.text(column) or "0"
        try:
            port = int(text) if text.lstrip("-").isdigit() else int(float(text))
        except (ValueError, OverflowError):
            port = -1
        if not 0 <= port <= 0xFFFF:
            raise DataError(f"{self.where}: {column} is {text!r}; expected a port from 0 to 65535")
        return port

    def address(self, column: str) -> bytes:
        """An IP address as 16 bytes in network order; IPv4 as ::ffff:a.b.c.d."""
        text = self.text(column)
        try:
            return _parse_address(text)
        except ValueError:
            raise DataError(f"{self.where}: {column} is {text!r}; expected an IPv4 or IPv6 address") from None

    def protocol(self, column: str) -> int:
        """An IP protocol number, given by name or number."""
        text = self.text(column).lower()
        number = PROTOCOLS.get(text, -1)
        if number < 0 and text.isdigit():
            number = int(text)
        if not 0 <= number <= 255:
            raise DataError(
                f"{self.where}: {column} is {text!r}; expected a name such as tcp, udp, icmp, or a number to 255"
            )
        return number

    def epoch_s(self, column: str) -> float | None:
        """Seconds since the Unix epoch, or None where the cell is empty."""
        text = self.text(column)
        if not text:
            return None
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < 2**33:
            raise DataError(f"{self.where}: {column} is {text!r}; expected seconds since the Unix epoch")
        return seconds


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose header has been read.

    Attributes:
        path: the file.
        columns: names in file order.
        rows: the rows, once.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Iterator[Row]

    def need(self, columns: tuple[str, ...]) -> None:
        """Refuse a table that lacks one of the columns.

        Raises:
            DataError: names the first one missing and those that are there.
        """
        for column in columns:
            if column not in self.columns:
                there = ", ".join(self.columns) or "none"
                raise DataError(f"{self.path}: no column {column!r}; the columns are {there}")


@contextmanager
def open_table(path: Path) -> Iterator[Table]:
    """Open a CSV (RFC 4180, UTF-8, first line names the columns) or Parquet file (by its suffix).

    Raises:
        DataError: the file cannot be read as a table, also later, while rows are taken.
    """
    try:
        if path.suffix.lower() in PARQUET_SUFFIXES:
            with _parquet_table(path) as table:
                yield table
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                header = tuple(name.strip() for name in next(reader, ()))
                if len(set(header)) != len(header):
                    twice = next(name for name in header if header.count(name) > 1)
                    raise DataError(f"{path}: two columns are called {twice!r}; give each its own name")
                yield Table(path, header, _csv_rows(path, header, reader))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; expected a CSV or Parquet table") from None
    except csv.Error as error:
        raise DataError(f"{path}: is not a CSV table: {error}") from None


def _csv_rows(path: Path, header: tuple[str, ...], reader: Any) -> Iterator[Row]:
    for cells in reader:
        if not cells:
            continue
        where = f"{path.name}, line {reader.line_num}"
        if len(cells) > len(header):
            raise DataError(
                f"{where}: {len(cells)} cells under {len(header)} columns; quote cells with commas"
            )
        yield Row(where, dict(zip(header, cells, strict=False)))


@contextmanager
def _parquet_table(path: Path) -> Iterator[Table]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow; pip install 'netcls[arrow]' or give CSV"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            columns = tuple(file.schema_arrow.names)
            yield Table(path, columns, _parquet_rows(path, columns, file))
    except pa.ArrowInvalid as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: is not a Parquet table: {reason}") from None


def _parquet_rows(path: Path, columns: tuple[str, ...], file: Any) -> Iterator[Row]:
    number = 0
    for batch in file.iter_batches(batch_size=8192):
        lists = [column.to_pylist() for column in batch.columns]
        for cells in zip(*lists, strict=True):
            number += 1
            yield Row(f"{path.name}, row {number}", dict(zip(columns, cells, strict=True)))
