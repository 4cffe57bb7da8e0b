"""The one place that writes: atomic, exclusive, through no planted link, synced, readable as the umask asks.

Below everything; every folder of ``cloc`` writes through it. What is written appears under its name whole or not at
all: it is made under a random hidden name beside it, synced, and renamed. A folder that was downloaded may hold links
where ``cloc`` writes, so:

- a link (or pipe) at the name of a file is replaced, never followed;
- below the folder that the user named, folders that ``cloc`` makes itself (``report``, ``checkpoints``) are refused
  where they are links: :func:`make_folder`. Links on the way to the folder that the user named are his own;
- what grows (logs) or is held open (locks) is refused where it is anything but a file of its own.

What others named is read through :func:`open_file`, which takes files alone: opening a pipe would wait for ever.
"""

from __future__ import annotations

from cloc.files.basics import PART, LinkError, create, hidden, publish, settle, sync_folder
from cloc.files.database import move, open_database, remove_database
from cloc.files.folders import discard, hidden_folder, into_folder, make_folder, private_folder, remove_parts
from cloc.files.in_place import append, clear, host_lock, open_lock, reopen
from cloc.files.reading import open_file, open_plain, read_file
from cloc.files.whole import Content, new_path, open_new, write_file, write_json, write_link, write_tensors

__all__ = [
    "Content",
    "LinkError",
    "PART",
    "append",
    "clear",
    "create",
    "discard",
    "hidden",
    "hidden_folder",
    "host_lock",
    "into_folder",
    "make_folder",
    "move",
    "new_path",
    "open_database",
    "open_file",
    "open_lock",
    "open_new",
    "open_plain",
    "private_folder",
    "publish",
    "read_file",
    "remove_database",
    "remove_parts",
    "reopen",
    "settle",
    "sync_folder",
    "write_file",
    "write_json",
    "write_link",
    "write_tensors",
]
