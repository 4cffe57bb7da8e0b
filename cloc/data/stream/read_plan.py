"""What the hosts of a job will read, told and checked before it begins (beside ``sources``)."""

from __future__ import annotations

import numpy as np

from cloc.config import ConfigError
from cloc.data.stream.lanes import DealtOrder, lanes_read
from cloc.data.stream.sources import ShardSources


def plan_reading(data: ShardSources, seed: int, samples: int, batch_size: int, hosts: int = 1) -> dict[str, str]:
    """Say what reading ``samples`` samples on so many hosts means.

    Args:
        data: that is read.
        seed: of the run.
        samples: budget of the run.
        batch_size: global batch B.
        hosts: of the job; each has equally many processes, in order.

    Returns:
        Lines for people, by name.
    """
    orders = data.orders(seed)
    rows = _sources(data, orders, samples)
    lanes = lanes_read(batch_size, data.streams, hosts)
    remote = [part.manifest.remote != "" for part in data.parts]
    whole = np.zeros(hosts)  # bytes of the shards that each host fetches whole
    touched, total, ranged = np.zeros(hosts), 0, 0
    for part, order, away in zip(data.parts, orders, remote, strict=True):
        cached = np.where(order.sizes <= data.cache.limit, order.sizes, 0)
        if away:
            whole += _bytes_read(order, cached, lanes)
            total, ranged = total + part.manifest.bytes, ranged + int((order.sizes - cached).sum())
        touched += _bytes_read(order, order.sizes, lanes)
    share = touched.max() / max(1, sum(part.manifest.bytes for part in data.parts))
    rows["reads"] = "each sample by itself: no byte is read twice in a pass (amplification 1.0)"
    if any(remote):
        often = "once" if whole.max() <= data.cache.limit else "once a pass"
        amplification = (whole.sum() + ranged) / max(1, total)
        rows["reads"] = (
            f"{1 - ranged / max(1, total):.0%} of the remote bytes by whole shards, fetched {often} by each host "
            f"that reads from them ({hosts} host(s), amplification {amplification:.4f}); the rest by one request a "
            "sample"
        )
    if hosts > 1:
        rows["reads"] += f"; a host touches shards of {share:.1%} of the bytes"
    if why := _why(data.streams, batch_size, hosts):
        rows["streams"] = why
    return rows


def check_cache(data: ShardSources, seed: int, batch_size: int, hosts: int = 1) -> None:
    """Refuse a cache in which shards would come and go many times a pass; arguments as of :func:`plan_reading`.

    Raises:
        ConfigError: says how large it must be.
    """
    lanes, needed = lanes_read(batch_size, data.streams, hosts), np.zeros(hosts)
    for part, order in zip(data.parts, data.orders(seed), strict=True):
        if part.manifest.remote:  # the windows that are read, and the next ones, which are fetched meanwhile
            held = _bytes_read(order, np.where(order.sizes <= data.cache.limit, order.sizes, 0), lanes)
            windows = lanes @ np.array([order.window_bytes(lane) for lane in range(data.streams)])
            needed += np.minimum(held, 2 * windows)
    if (most := int(needed.max())) > data.cache.limit:
        cause, remedy = "", ""
        if data.streams > 1:
            own = int(lanes.sum(axis=1).max())
            cause = f" by a host, which reads {own} of data.streams={data.streams}, each with windows of its own"
            remedy = ", fewer data.streams for a run that begins" if own > 1 else ""
        raise ConfigError(
            f"data.cache_bytes={data.cache.limit:,}: {most:,} bytes of shards are read at a time{cause}, so they would "
            f"be fetched again and again; give at least that, or 0 to ask for each sample by itself{remedy}"
        )


def _sources(data: ShardSources, orders: list[DealtOrder], samples: int) -> dict[str, str]:
    total, rows = sum(part.weight for part in data.parts), {}
    for part, order in zip(data.parts, orders, strict=True):
        name = "data" if len(data.parts) == 1 else f"data: {part.name}"
        share, lanes = part.weight / total, range(data.streams)
        shards, size = max(map(order.window_shards, lanes)), max(map(order.window_bytes, lanes))
        each = f" in each of {data.streams} streams" if data.streams > 1 else ""
        rows[name] = (
            f"{share:.1%} of the samples, {samples * share / order.length:,.1f} passes over {order.length:,} in "
            f"{len(order.samples)} shards; {shards} ({size / 2**20:,.0f} MiB) mixed at a time{each}"
        )
    return rows


def _bytes_read(order: DealtOrder, sizes: np.ndarray, lanes: np.ndarray) -> np.ndarray:
    """Bytes ``[hosts]`` of all shards that each host reads from; ``lanes`` is that of :func:`lanes_read`."""
    return np.array([sizes[order.shards(np.flatnonzero(own))].sum() for own in lanes], dtype=float)


def _why(streams: int, batch_size: int, hosts: int) -> str:
    """Why hosts read what others read too, and what would change it; empty where they do not."""
    if hosts == 1:
        return ""
    remedy = f"data.streams={hosts}, or another multiple of the hosts that divides batch_size, gives each its own"
    if streams == 1:
        return f"every host reads from all shards; {remedy}"
    reasons = []
    if streams % hosts:
        reasons.append(f"{hosts} hosts do not divide data.streams={streams}")
    if batch_size % streams:
        reasons.append(f"data.streams={streams} does not divide batch_size={batch_size}")
    if reasons:
        return f"{' and '.join(reasons)}, so hosts read from shards of their neighbors; {remedy}"
    return f"each host reads {streams // hosts} of {streams} streams, and no other"
