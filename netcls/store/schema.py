"""The tables of the store, and opening the file that holds them.

One row a flow: its newest event, what was said of it before, and its kept packets. Newest told first is descending
``seq``, and every index ends with it, so a page of the newest flows with any one filter reads little
more than it shows.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Final

from capture.errors import NetclsError

APPLICATION_ID: Final = 0x6E636C73  # "ncls"; tells our files from SQLite files of other programs
VERSION: Final = 1
PAGE_BYTES: Final = 4096
_BUSY_S: Final = 5.0

_TABLES: Final = """
CREATE TABLE flows (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    flow_id INTEGER NOT NULL UNIQUE,
    told_s INTEGER NOT NULL,
    first_told_s INTEGER NOT NULL,
    label TEXT NOT NULL,
    probability REAL,
    unknown INTEGER,
    final INTEGER NOT NULL,
    src BLOB NOT NULL,
    dest BLOB NOT NULL,
    src_port INTEGER,
    dest_port INTEGER,
    proto TEXT NOT NULL,
    packets INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    text TEXT NOT NULL,
    line BLOB NOT NULL,
    earlier BLOB NOT NULL,
    kept BLOB
);
CREATE INDEX flows_label ON flows (label);
CREATE INDEX flows_src ON flows (src);
CREATE INDEX flows_dest ON flows (dest);
CREATE INDEX flows_unknown ON flows (unknown) WHERE unknown = 1;
CREATE TABLE rates (
    step_s INTEGER NOT NULL,
    begin_s INTEGER NOT NULL,
    label TEXT NOT NULL,
    flows INTEGER NOT NULL,
    packets INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (step_s, begin_s, label)
) WITHOUT ROWID;
CREATE TABLE labels (
    flow_id INTEGER PRIMARY KEY,
    label TEXT NOT NULL,
    note TEXT NOT NULL,
    told_s INTEGER NOT NULL,
    line BLOB NOT NULL,
    kept BLOB
);
"""


class StoreError(NetclsError):
    """The store's file cannot be used: another program's, of a later version, or not writable."""


def open_database(path: Path | None) -> tuple[sqlite3.Connection, list[str]]:
    """The connection that writes, with all tables there, and warnings.

    A damaged file is set aside under a new name, and an empty one takes its place: history is worth less than an
    appliance that runs.

    Args:
        path: of the file, made if it is not there; None: in memory.

    Raises:
        StoreError: if the file is another program's or of a later version, or cannot be opened.
    """
    if path is None:
        return _opened(":memory:"), []
    try:
        return _opened(path), []
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
            raise StoreError(
                f"store {path} cannot be opened: {error}; expected a writable file in a folder that exists"
            ) from None
        aside = _set_aside(path)
        return _opened(path), [
            f"store {path} is damaged ({error}); it was set aside as {aside.name}, and history begins anew"
        ]


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that can only read; for the thread that opens it.

    Raises:
        StoreError: if the file is not one of ours, or is not there.
    """
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)
        database.execute("PRAGMA query_only = ON")
        _check(database, path)
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"store {path} cannot be read: {error}; expected a file that netcls serve made"
        ) from None
    return database


def is_store(path: Path) -> bool:
    """True for an SQLite file with our mark."""
    try:
        with path.open("rb") as file:
            head = file.read(72)
    except OSError:
        return False
    return head.startswith(b"SQLite format 3\0") and head[68:72] == APPLICATION_ID.to_bytes(4, "big")


def _opened(path: Path | str) -> sqlite3.Connection:
    if isinstance(path, Path) and not path.exists():
        # SQLite would make it readable for everyone; whom users talk to is nobody else's business.
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o640))
    database = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False, isolation_level=None)
    try:
        _check(database, path)
        # Before the first table: sets how the file shrinks.
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA journal_size_limit = 16777216")
        database.execute("PRAGMA foreign_keys = OFF")
        database.execute("PRAGMA trusted_schema = OFF")
        if database.execute("PRAGMA user_version").fetchone()[0] == 0:
            database.executescript(
                f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; {_TABLES} COMMIT;"
            )
        database.execute("SELECT max(seq) FROM flows").fetchone()
    except BaseException:
        database.close()
        raise
    return database


def _check(database: sqlite3.Connection, path: Path | str) -> None:
    """Refuse what is not ours; an empty file is.

    Raises:
        StoreError: for the file of another program, or of a later version of netcls.
        sqlite3.DatabaseError: for a damaged one.
    """
    mark = database.execute("PRAGMA application_id").fetchone()[0]
    version = database.execute("PRAGMA user_version").fetchone()[0]
    tables = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if mark != APPLICATION_ID and (tables or mark):
        database.close()
        raise StoreError(f"store {path} is an SQLite file of another program; give another path")
    if version > VERSION:
        database.close()
        raise StoreError(
            f"store {path} has version {version}, expected at most {VERSION}; use the netcls that wrote it, or give "
            "another path"
        )


def _set_aside(path: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    target = path.with_name(f"{path.name}.damaged-{stamp}")
    for ending in ("", "-wal", "-shm"):
        source = path.with_name(path.name + ending)
        if source.exists():
            source.rename(target.with_name(target.name + ending))
    return target
