"""The account of a cache folder: which shards lie there, how large each is, when it was used last.

Stands below ``cache`` at the start of ``data → models → losses → evaluation → engine``. Room is made without a look at
every file: the account is a database of one file, changed by one process of the host at a time. The files are what
counts. Each run makes the account anew from them before it first needs room, and so does whoever finds it missing,
damaged or from another version; until then it may say too much, never too little: a file is noted before it is made,
and forgotten after it has gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import Timeout

from cloc.files import PART, LinkError, host_lock, make_folder, move, open_database, remove_database

T = TypeVar("T")
LOCKS = "locks"
STRIPES = 4096
"""Lock files of a cache folder at most: shards share them by their names' first three digits."""
_ACCOUNT = "cache.sqlite"
_VERSION = 1
_FRESH = 60 * 10**9  # nanoseconds before a run's start since which an account is new enough for it
_TOGETHER = 64  # of the shards used longest ago, looked at together
_ROUNDS = 8
_NAME = re.compile(r"[0-9a-f]{16}-[\w.-]{0,90}\.tar")
_DISK = (3, 5, 6, 8, 10, 13, 14)  # SQLite's codes of what is not the database's fault: rights, locks, I/O, a full disk
_TABLES = (
    "CREATE TABLE shards (name TEXT PRIMARY KEY, bytes INTEGER NOT NULL, used INTEGER NOT NULL, part INTEGER NOT NULL)",
    "CREATE INDEX by_use ON shards (part, used)",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    "INSERT INTO facts VALUES ('bytes', 0), ('made', 0)",
    f"PRAGMA user_version={_VERSION}",
)


class Ledger:
    """Room in a cache folder. May be pickled into workers.

    Args:
        folder: of the cache.
        limit: bytes of all shards in it, those being fetched included.
        since: nanoseconds; an account that was made before this run is made anew.
    """

    def __init__(self, folder: Path, limit: int, since: int) -> None:
        self.folder, self.limit, self.since = folder, limit, since

    def place(self, name: str) -> Path:
        """Where a shard of this name lies."""
        return self.folder / name[:2] / name

    def lock(self, name: str) -> Path:
        """The lock that a shard, or an index, shares with others."""
        make_folder(self.folder, LOCKS)
        return self.folder / LOCKS / (f"{name[:3]}.lock" if name.endswith(".tar") else f"index-{name[:3]}.lock")

    def reserve(self, name: str, size: int, make: Callable[[], T]) -> T | None:
        """Make room for a shard that is about to be fetched, by whoever holds its lock.

        Args:
            name: of the shard.
            size: its bytes.
            make: makes its file, once the room is noted.

        Returns:
            What ``make`` returns; None where the room is taken by other fetches.

        Raises:
            OSError: the account cannot be written.
        """

        def note(database: sqlite3.Connection) -> bool:
            self._forget(database, name)  # of a process that was killed: nobody else holds this shard's lock
            if not self._make_room(database, size, name):
                return False
            _put(database, name, size, part=True)
            return True

        with self._alone():
            if not self._change(note):
                return None
            try:
                return make()
            except BaseException:
                self._change(lambda database: self._forget(database, name))
                raise

    def keep(self, name: str, size: int) -> None:
        """Note that a shard is whole."""
        with self._alone():
            self._change(lambda database: _put(database, name, size, part=False))

    def forget(self, name: str) -> None:
        """Note that a shard has gone, be it whole or not."""
        with self._alone():
            self._change(lambda database: self._forget(database, name))

    def held(self) -> int:
        """Bytes of all shards, as the account says."""
        with self._alone():
            return self._change(_total)

    def prepare(self) -> None:
        """Make the account, where this run has not done so."""
        with self._alone():
            self._change(lambda database: None)

    def _alone(self) -> contextlib.AbstractContextManager[object]:
        make_folder(self.folder)
        return host_lock(self.folder / "room.lock")

    def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something with the account, which is made anew where it is damaged."""
        path = self.folder / _ACCOUNT
        for again in (True, False):
            try:
                with open_database(path) as database:
                    if self._is_usable(database):
                        return work(database)
                remove_database(path)
                with open_database(path) as database:
                    self._fill(database)
                    return work(database)
            except LinkError:
                remove_database(path)
            except sqlite3.Error as error:
                disk = getattr(error, "sqlite_errorcode", 0) & 0xFF in _DISK
                if disk or not again:
                    number = errno.ENOSPC if "full" in str(error) else errno.EROFS if "readonly" in str(error) else 0
                    raise OSError(number or errno.EIO, str(error), str(path)) from error
                remove_database(path)
        raise AssertionError("the second attempt returns or raises")

    def _is_usable(self, database: sqlite3.Connection) -> bool:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        return version == _VERSION and _fact(database, "made") >= self.since - _FRESH

    def _fill(self, database: sqlite3.Connection) -> None:
        """Make the account from the files, and take over what earlier versions left, all in one folder."""
        for line in _TABLES:
            database.execute(line)
        self._take_over()
        rows = [row for sub in self._folders() for row in _files(sub)]
        database.executemany("INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?)", rows)
        database.execute("UPDATE facts SET value=(SELECT COALESCE(SUM(bytes), 0) FROM shards) WHERE name='bytes'")
        database.execute("UPDATE facts SET value=? WHERE name='made'", (time.time_ns(),))

    def _folders(self) -> Iterator[Path]:
        for entry in os.scandir(self.folder):
            if re.fullmatch("[0-9a-f]{2}", entry.name) and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)

    def _take_over(self) -> None:
        for entry in list(os.scandir(self.folder)):
            path, name = self.folder / entry.name, entry.name.removesuffix(".lock")
            if entry.name.endswith(".lock") and re.fullmatch(f"{_NAME.pattern}(?:{PART})?", name):
                if not _held(path):
                    path.unlink(missing_ok=True)
            elif _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                make_folder(self.folder, entry.name[:2])
                move(path, self.place(entry.name))  # its note stays behind: the file is hashed again when it is used
                path.with_suffix(".checked").unlink(missing_ok=True)
            elif re.fullmatch(_NAME.pattern + PART, entry.name) and not _held(
                path.with_name(f"{entry.name.removesuffix(PART)}.lock")
            ):
                path.unlink(missing_ok=True)

    def _make_room(self, database: sqlite3.Connection, size: int, mine: str) -> bool:
        """Remove what was used longest ago until so many bytes fit."""
        if _total(database) + size <= self.limit:
            return True
        for (name,) in database.execute("SELECT name FROM shards WHERE part=1").fetchall():
            self._settle(database, name, mine)
        for number in range(_ROUNDS):
            if _total(database) + size <= self.limit:
                return True
            if not self._remove_oldest(database, size, at_once=number == _ROUNDS - 1):
                break
        return self._recount(database) + size <= self.limit

    def _remove_oldest(self, database: sqlite3.Connection, size: int, at_once: bool) -> bool:
        """Look at the shards whose noted use is oldest, and remove those that were not used since.

        Uses are noted beside the shards, by their readers; the account learns of them here. Returns whether there was
        any shard left.
        """
        query = "SELECT name, bytes, used FROM shards WHERE part=0 ORDER BY used LIMIT ?"
        rows = database.execute(query, (_TOGETHER,)).fetchall()
        for name, _, noted in rows:
            path = self._own(name)
            used = None if path is None else last_use(path)
            if used is not None and used > noted and not at_once:
                database.execute("UPDATE shards SET used=? WHERE name=?", (used, name))
                continue
            self._forget(database, name)
            if _total(database) + size <= self.limit:
                break
        return bool(rows)

    def _own(self, name: str) -> Path | None:
        """Path of a shard that the account names: the account is a file that others may have written."""
        if not isinstance(name, str) or not _NAME.fullmatch(name) or self.place(name).parent.is_symlink():
            return None
        return self.place(name)

    def _settle(self, database: sqlite3.Connection, name: str, mine: str) -> None:
        """Decide about a fetch: leave it where its process lives; else it is a whole shard by now, or none."""
        path = self._own(name)
        if path is None:
            self._forget(database, name)
        elif self.lock(name) == self.lock(mine) or not _held(self.lock(name)):
            if path.is_file() and not path.is_symlink():
                _put(database, name, path.stat().st_size, part=False)
            else:
                self._forget(database, name)

    def _forget(self, database: sqlite3.Connection, name: str) -> None:
        """Remove a shard, first its files."""
        path = self._own(name)
        if path is not None:
            for file in (path.with_name(f"{name}{PART}"), path, path.with_suffix(".checked")):
                with contextlib.suppress(IsADirectoryError, NotADirectoryError):  # told where it is used
                    file.unlink(missing_ok=True)
        gone = database.execute("SELECT bytes FROM shards WHERE name=?", (name,)).fetchone()
        if gone is not None:
            database.execute("DELETE FROM shards WHERE name=?", (name,))
            database.execute("UPDATE facts SET value=value-? WHERE name='bytes'", gone)

    def _recount(self, database: sqlite3.Connection) -> int:
        database.execute("UPDATE facts SET value=(SELECT COALESCE(SUM(bytes), 0) FROM shards) WHERE name='bytes'")
        return _total(database)


def last_use(path: Path) -> int | None:
    """When a shard was used last, in nanoseconds; None where there is none."""
    try:
        used = path.lstat().st_mtime_ns
        with contextlib.suppress(FileNotFoundError):
            used = path.with_suffix(".checked").lstat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None
    return used


def _put(database: sqlite3.Connection, name: str, size: int, part: bool) -> None:
    known = database.execute("SELECT bytes FROM shards WHERE name=?", (name,)).fetchone()
    row = (name, size, time.time_ns(), int(part))
    database.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?)", row)
    database.execute("UPDATE facts SET value=value+? WHERE name='bytes'", (size - (known[0] if known else 0),))


def _fact(database: sqlite3.Connection, name: str) -> int:
    found = database.execute("SELECT value FROM facts WHERE name=?", (name,)).fetchone()
    if found is None or not isinstance(found[0], int):
        raise sqlite3.DatabaseError(f"no {name}")
    return int(found[0])


def _total(database: sqlite3.Connection) -> int:
    return _fact(database, "bytes")


def _files(folder: Path) -> Iterator[tuple[str, int, int, int]]:
    """Name, bytes, last use of every shard in a folder, and whether it is one that is being fetched."""
    for entry in os.scandir(folder):
        name = entry.name.removesuffix(PART)
        if not _NAME.fullmatch(name) or not name.startswith(folder.name):
            continue
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                used = last_use(Path(entry.path)) if name == entry.name else None
                yield name, status.st_size, used or status.st_mtime_ns, int(name != entry.name)


def _held(lock: Path) -> bool:
    """Whether some process, or thread, holds a lock."""
    if not os.path.lexists(lock):
        return False
    try:
        with host_lock(lock, timeout=0):
            return False
    except (Timeout, RuntimeError):  # the latter: by another lock of this very thread
        return True
