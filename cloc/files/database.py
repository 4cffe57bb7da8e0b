"""Databases of one file (SQLite): opened where they lie, refused where a link or pipe does."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cloc.files.basics import open_regular


@contextmanager
def open_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database for a transaction, which is committed when the block ends well; made where it is missing.

    For one process at a time (:func:`cloc.files.host_lock`). A process that is killed leaves the database as before the
    block; after a loss of power it may be damaged, so it should hold what can be made anew.

    Raises:
        LinkError: a link, a pipe, or a file with a second name lies there.
        sqlite3.Error: it is no database, or cannot be written.
    """
    os.close(open_regular(path, os.O_RDWR))  # SQLite follows links
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA journal_mode=TRUNCATE")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        if connection.in_transaction:
            connection.execute("COMMIT")


def remove_database(path: Path) -> None:
    """Remove a database and what SQLite leaves beside it."""
    for ending in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def move(path: Path, target: Path) -> None:
    """Give a file another name in the same file system; what has that name is replaced."""
    os.replace(path, target)
