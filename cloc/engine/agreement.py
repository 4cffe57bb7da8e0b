"""What the processes of a run must have in common, compared before anything is built (above ``process_group``).

Each process is started by a command of its own, on a machine of its own. Settings that differ would train another model
than any of the commands says, or leave processes waiting for each other. Credentials may differ: they are not compared.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cloc import __version__
from cloc.config import ConfigError
from cloc.config.secrets import public_tree
from cloc.config.versions import versions
from cloc.engine.process_group import backend_for, exchange

# Of a machine: where its files are and how fast it reads. The data set itself is compared by its digest.
OF_A_MACHINE = ("run_dir", "data.train", "data.cache_dir", "data.cache_bytes", "data.workers", "trainer.threads")
# Paths that may differ while what they lead to is the same.
PLACES = re.compile(
    r"base|init_from|model\.(image|text)\.(pretrained|tokenizer|name)"
    r"|datasets\..*\.(shards|relations|pictures|images|classes|template_file|frequency)"
)
NOT_COMPARED = ("python", "machine")  # of the versions: they decide nothing that is trained
SMALL = 2**20  # bytes of a file in a folder whose content is compared; of larger ones the size
SHOWN = 5  # differences in a message


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested containers by dotted keys; lists are leaves."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def is_within(key: str, names: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of those names, or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def check_same(resolved: Mapping[str, Any], data_digest: str) -> None:
    """Stop, in all processes together, where their settings, data, versions or devices differ.

    Args:
        resolved: this process's configuration as plain containers.
        data_digest: of what its ``data.train`` names.

    Raises:
        ConfigError: names the keys, both values and the processes.
    """
    measured = resolved["evaluation"]["data"] if resolved["evaluation"]["every"] else []
    idle = tuple(f"datasets.{name}" for name in resolved.get("datasets", {}) if name not in measured)
    spared = OF_A_MACHINE + idle
    leaves = {key: value for key, value in flat(public_tree(resolved)).items() if not is_within(key, spared)}
    facts = {
        "the data set (digest of its manifest)": data_digest,
        "the backend that trainer.accelerator finds": backend_for(resolved["trainer"]["accelerator"]),
        "the version of cloc": __version__,
        **{f"the version of {name}": found for name, found in versions().items() if name not in NOT_COMPARED},
    }
    everyone = exchange({key: [_digest(value), str(value)] for key, value in (leaves | facts).items()})
    different = dict(_different(everyone))
    places = [key for key in different if PLACES.fullmatch(key)]
    if places:  # all processes see the same differences, so all come here
        for key in places:
            del different[key]
        contents = {key: [content_digest(leaves.get(key)), str(leaves.get(key, "absent"))] for key in places}
        different |= _different(exchange(contents))
    if different:
        texts = list(different.values())
        more = f"; {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        raise ConfigError(
            f"{'; '.join(texts[:SHOWN])}{more}; start every process with the same command, the same packages, and the "
            "same shards in data.train"
        )


def _different(everyone: list[dict[str, list[str]]]) -> Iterator[tuple[str, str]]:
    """Keys whose value is not the same everywhere, with what to say of each."""
    absent = ["", "absent"]
    for key in dict.fromkeys(key for facts in everyone for key in facts):
        values = [facts.get(key, absent) for facts in everyone]
        for number, (digest, text) in enumerate(values):
            if digest != values[0][0]:
                yield key, f"{key} differs: {values[0][1]} on process 0, {text} on process {number}"
                break


def _digest(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 10 and 10.0 are one setting
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def content_digest(value: Any) -> str:
    """Digest of what a path leads to; of the value itself where it is no path."""
    path = Path(value).expanduser() if isinstance(value, str) else None
    if path is None or not path.exists():
        return _digest(value)
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_file():
            continue
        size = file.stat().st_size
        found.update(f"{file.relative_to(path).as_posix()} {size}\n".encode())
        if size <= SMALL or file == path:
            with file.open("rb") as handle:
                found.update(hashlib.file_digest(handle, "sha256").digest())
    return found.hexdigest()
