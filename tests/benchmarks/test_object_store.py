"""Training reads from an S3 server that errs, and loses nothing that a retry could have had."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("moto", reason="the extra 's3-test' is not installed")
pytest.importorskip("s3fs", reason="the extra 's3-test' is not installed")
pytest.importorskip("flask_cors", reason="the extra 's3-test' is not installed")

from benchmarks.object_store import make_parser, measure  # noqa: E402  (needs what is looked for above)

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_errors_and_a_dead_span_cost_no_sample() -> None:
    given = ["--dead-seconds", "10", "--dead-after", "40", "--samples", "192", "--readers", "2", "--timeout", "4"]
    found: dict[str, Any] = measure(make_parser().parse_args(given))
    assert set(found) == {"ranges", "shards"}
    for row in found.values():
        assert row["requests"] > 40 and row["errors_injected"] > 5 and row["retries"] > 5 and row["wait_seconds"] > 5
        assert (row["samples"], row["samples_lost"], row["samples_replaced"]) == (192, 0, 0)
