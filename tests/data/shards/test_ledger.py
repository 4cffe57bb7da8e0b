"""The account of a cache folder: never too little, made anew from the files, whatever was killed or planted."""

from __future__ import annotations

import multiprocessing
import os
import random
import sqlite3
import time
from pathlib import Path

import pytest
from filelock import FileLock

from cloc.data.shards.ledger import STRIPES, Ledger
from cloc.files import create

SIZE = 100


def name(number: int) -> str:
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}-shard.tar"


def fetch(ledger: Ledger, number: int, size: int = SIZE) -> bool:
    """As the cache does it."""
    own, path = name(number), ledger.place(name(number))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(ledger.lock(own)):
        part = path.with_name(f"{own}.part")
        part.unlink(missing_ok=True)
        file = ledger.reserve(own, size, lambda: create(part))
        if file is None:
            return False
        with file:
            file.write(bytes(size))
        part.rename(path)
        path.with_suffix(".checked").write_bytes(b"{}")
        ledger.keep(own, size)
    return True


def use(ledger: Ledger, number: int) -> None:
    now = time.time_ns()
    os.utime(ledger.place(name(number)).with_suffix(".checked"), ns=(now, now))


def held(ledger: Ledger) -> int:
    """Bytes of the files themselves, those that are being fetched included."""
    return sum(path.stat().st_size for path in ledger.folder.glob("*/*.tar*"))


def there(ledger: Ledger, numbers: range) -> list[int]:
    return [number for number in numbers if ledger.place(name(number)).is_file()]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "cache", 5 * SIZE, time.time_ns())


def test_what_was_used_longest_ago_leaves(ledger: Ledger) -> None:
    for number in range(5):
        assert fetch(ledger, number)
    for number in (0, 2):
        use(ledger, number)
    assert fetch(ledger, 5) and fetch(ledger, 6)
    assert there(ledger, range(7)) == [0, 2, 4, 5, 6] and held(ledger) == ledger.held() == 5 * SIZE


def test_many_shards_that_were_all_used_since(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than are looked at together: room is made all the same, and the uses are learned on the way."""
    monkeypatch.setattr("cloc.data.shards.ledger._TOGETHER", 4)
    ledger.limit = 50 * SIZE
    for number in range(50):
        fetch(ledger, number)
    for number in range(50):
        use(ledger, number)
    assert fetch(ledger, 50) and held(ledger) == ledger.held() == ledger.limit


def test_there_is_no_room_while_others_fetch(ledger: Ledger) -> None:
    assert ledger.reserve(name(1), 5 * SIZE, lambda: True)
    with FileLock(ledger.lock(name(1))):
        assert not fetch(ledger, 2)
    assert fetch(ledger, 2)  # it was killed: its lock is free


@pytest.mark.parametrize("damage", ["removed", "cut", "foreign", "version", "tables", "total", "link", "folderful"])
def test_a_missing_or_damaged_account_is_made_from_the_files(damage: str, ledger: Ledger, tmp_path: Path) -> None:
    for number in range(5):
        fetch(ledger, number)
    account = ledger.folder / "cache.sqlite"
    if damage in ("removed", "link"):
        account.unlink()
    if damage == "link":
        (tmp_path / "precious").write_text("untouched")
        account.symlink_to(tmp_path / "precious")
    if damage == "cut":
        account.write_bytes(account.read_bytes()[:3000])
    if damage in ("foreign", "folderful"):
        account.write_bytes(b"not a database" * 500)
    if damage in ("version", "tables", "total"):
        line = {
            "version": "PRAGMA user_version=99",
            "tables": "DROP TABLE shards",
            "total": "UPDATE facts SET value='x'",
        }[damage]
        with sqlite3.connect(account) as database:
            database.execute(line)
    assert fetch(ledger, 5) and fetch(ledger, 6)
    assert held(ledger) == ledger.held() == 5 * SIZE and there(ledger, range(7)) == [2, 3, 4, 5, 6]
    if damage == "link":
        assert (tmp_path / "precious").read_text() == "untouched" and not account.is_symlink()


def test_names_that_lead_out_of_the_folder_are_not_removed(ledger: Ledger, tmp_path: Path) -> None:
    fetch(ledger, 0)
    (tmp_path / "precious").write_text("untouched")
    with sqlite3.connect(ledger.folder / "cache.sqlite") as database:
        for planted in ("../../precious", "aa/../../precious", str(tmp_path / "precious")):
            database.execute("INSERT INTO shards VALUES (?, 100, 0, 0), (?, 100, 0, 1)", (planted, planted + "x"))
        database.execute("UPDATE facts SET value=700 WHERE name='bytes'")
    for number in range(1, 6):
        assert fetch(ledger, number)
    assert (tmp_path / "precious").read_text() == "untouched" and held(ledger) == ledger.held() == 5 * SIZE


def test_files_that_were_removed_by_hand_are_forgotten(ledger: Ledger) -> None:
    for number in range(5):
        fetch(ledger, number)
    for number in range(4):
        ledger.place(name(number)).unlink()
    for number in range(5, 9):
        assert fetch(ledger, number)
    assert there(ledger, range(9)) == [4, 5, 6, 7, 8]


def test_a_later_run_counts_what_nobody_noted(ledger: Ledger) -> None:
    fetch(ledger, 0)
    for number in range(1, 5):
        path = ledger.place(name(number))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(SIZE))
    assert ledger.held() == SIZE
    later = Ledger(ledger.folder, ledger.limit, time.time_ns() + 3600 * 10**9)
    assert later.held() == 5 * SIZE


def test_a_fetch_that_was_killed_before_it_was_noted_as_whole_is_kept(ledger: Ledger) -> None:
    for number in range(4):
        fetch(ledger, number)
    own, path = name(4), ledger.place(name(4))
    path.parent.mkdir(exist_ok=True)
    assert ledger.reserve(own, SIZE, lambda: True)
    path.write_bytes(bytes(SIZE))  # renamed, and killed
    assert fetch(ledger, 5)
    assert there(ledger, range(6)) == [1, 2, 3, 4, 5] and ledger.held() == 5 * SIZE


def test_a_flat_folder_of_an_earlier_version_is_taken_over(ledger: Ledger) -> None:
    ledger.folder.mkdir()
    for number in range(3):
        (ledger.folder / name(number)).write_bytes(bytes(SIZE))
        (ledger.folder / name(number)).with_suffix(".checked").write_text("{}")
        (ledger.folder / f"{name(number)}.lock").touch()
    (ledger.folder / f"{name(3)}.part").write_bytes(bytes(SIZE))
    (ledger.folder / f"{name(4)}.part").write_bytes(bytes(SIZE))
    (ledger.folder / "of a user.tar").write_bytes(b"stays")
    with FileLock(ledger.folder / f"{name(4)}.lock"):
        ledger.prepare()
    assert there(ledger, range(3)) == [0, 1, 2] and ledger.held() == 3 * SIZE
    left = {path.name for path in ledger.folder.iterdir() if path.is_file()}
    assert left - {f"{name(4)}.lock"} == {
        "cache.sqlite",
        "cache.sqlite-journal",
        "room.lock",
        "of a user.tar",
        f"{name(4)}.part",
    }


def test_locks_are_few(ledger: Ledger) -> None:
    ledger.limit = 1 << 30
    locks = {ledger.lock(name(number)) for number in range(2000)}
    assert len(locks) <= STRIPES and {path.parent for path in locks} == {ledger.folder / "locks"}
    assert not {ledger.lock(f"{number:032x}.json") for number in range(500)} & locks


def _fetch_for_ever(folder: Path, limit: int, seed: int) -> None:
    ledger, rng = Ledger(folder, limit, time.time_ns()), random.Random(seed)
    while True:
        fetch(ledger, rng.randrange(40), rng.choice([10, SIZE, 2 * SIZE]))


@pytest.mark.slow
@pytest.mark.distributed
def test_kills_at_any_moment_leave_nothing_wrong(ledger: Ledger) -> None:
    """Processes that share a folder, each killed a while later: the limit holds throughout, and the account agrees."""
    context, rng = multiprocessing.get_context("fork"), random.Random(0)
    ledger.prepare()

    def start() -> multiprocessing.process.BaseProcess:
        process = context.Process(target=_fetch_for_ever, args=(ledger.folder, ledger.limit, rng.randrange(1 << 30)))
        process.start()
        return process

    processes = [start() for _ in range(3)]
    for _ in range(40):
        time.sleep(rng.uniform(0.02, 0.2))
        victim = rng.randrange(3)
        processes[victim].kill()
        processes[victim].join()
        with FileLock(ledger.folder / "room.lock"):
            assert held(ledger) <= ledger.limit
        processes[victim] = start()
    for process in processes:
        process.kill()
        process.join()
    assert fetch(ledger, 100, 5 * SIZE) and there(ledger, range(40)) == []  # all else could be removed
    assert held(ledger) == ledger.held() == 5 * SIZE and not list(ledger.folder.rglob("*.part"))
