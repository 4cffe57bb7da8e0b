"""Manifests of version 1, whose offsets stand in the JSON, and what is wrong with files of offsets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cloc.data.shards.index import load_manifest
from cloc.data.shards.manifest import MANIFEST_NAME
from cloc.data.shards.offsets import OFFSETS_NAME


def version_one(folder: Path) -> dict[str, Any]:
    """Write the manifest of a folder as version 1 has it; return what it holds."""
    manifest = load_manifest(folder)
    shards = [shard.to_json() for shard in manifest.shards]
    record = {"version": 1, "categories": list(manifest.categories), "shards": shards}
    (folder / MANIFEST_NAME).write_text(json.dumps(record))
    (folder / OFFSETS_NAME).unlink(missing_ok=True)
    return record
