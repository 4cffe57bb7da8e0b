"""What passes between folders says of itself what its rows are."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
from torch import Tensor

from benchmarks.step import make_batch
from cloc.contracts import Batch, Features, Per, per, per_picture
from cloc.data.tokenizer import Tokenizer
from cloc.engine.accumulation import split


@pytest.mark.parametrize("kind", [Batch, Features])
def test_every_field_says_what_its_rows_are(kind: type) -> None:
    assert {one.name: per(one) for one in fields(kind)}.keys() == set(kind.__slots__)


def test_a_field_that_does_not_is_named() -> None:
    @dataclass
    class Other:
        images: Tensor = per_picture()
        depth: Tensor | None = None

    known, unknown = fields(Other)
    assert per(known) is Per.PICTURE
    with pytest.raises(TypeError, match=r"depth: declare it by per_picture\(\), per_phrase\(\) or per_batch\(\)"):
        per(unknown)


def test_rows_are_what_their_field_says() -> None:
    """In a batch and in its micro-batches, phrases and what points to them included."""
    batch = make_batch(8, 3, 32, Tokenizer("open_clip", 77))
    micros, phrases = split(batch, 4)
    for found, own in [(batch, len(batch.phrases)), *zip(micros, map(len, phrases), strict=True)]:
        rows = {Per.PICTURE: len(found.images), Per.PHRASE: own}
        for one in fields(Batch):
            value = getattr(found, one.name)
            if per(one) is Per.BATCH or value is None:
                assert value == getattr(batch, one.name)
                continue
            assert len(value) == rows[per(one)], one.name
            if one.metadata.get("into_phrases"):
                assert int(value.max()) < own, one.name
    texts = [batch.phrase_id[batch.region_phrase], *(micro.phrase_id[micro.region_phrase] for micro in micros)]
    for start, micro in enumerate(texts[1:]):
        valid = micros[start].region_valid
        assert (micro[valid] == texts[0][2 * start : 2 * start + 2][valid]).all()
