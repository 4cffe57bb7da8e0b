"""A loss's term of one's own: a class and its entry in the configuration, and no other file of the project touched."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.step import make_batch
from cloc.config import ConfigError, validate
from cloc.config.terms import Need
from cloc.contracts import Batch, Features
from cloc.data.tokenizer import Tokenizer
from cloc.engine import run
from cloc.engine.accumulation import accumulated
from cloc.losses.global_batch import GlobalBatch, local_mean
from cloc.losses.objective import ClocLoss
from cloc.losses.term import Term
from tests.engine.test_accumulation import gradients, tiny
from tests.kit.resuming import configure, make_squares, weights


class Inside(Term):
    """A region's embedding is near that of its picture."""

    needs = frozenset({Need.REGIONS, Need.PROMPTER})
    label = "in"

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, features: Features, batch: Batch, gathered: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        cosine = (features.region * features.image.unsqueeze(1)).sum(-1)[batch.region_valid]
        loss = local_mean((1 - self.margin - cosine).clamp(min=0).sum(), gathered.regions)
        return loss, {"inside_cosine": local_mean(cosine.sum(), gathered.regions)}


class Trained(Inside):
    """Holds a weight that no optimizer would move."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))


class Taught(Inside):
    needs = frozenset({Need.TEACHER})


NAME = f"{__name__}.Inside"


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")
    return make_squares(tmp_path_factory.mktemp("squares"))


def added(weight: float = 0.5, **arguments: Any) -> str:
    given = "".join(f",{key}:{value}" for key, value in arguments.items())
    return f"+loss.terms.inside={{_target_:{NAME},weight:{weight}{given}}}"


@pytest.mark.parametrize("parts", [1, 2])
def test_it_trains_and_is_logged(parts: int, squares: Path, tmp_path: Path, capsys: Any) -> None:
    """Two steps through the whole engine, with the micro-batches of a step in one graph and through cached features."""
    two = ["samples=16", f"trainer.accumulate={parts}"]
    run.train(configure(squares, tmp_path / "with", *two, added(margin=0.05)))
    with (tmp_path / "with" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        total = float(row["train/lambda"]) * (
            float(row["loss/region"]) + 3 * float(row["loss/grounding"]) + 0.5 * float(row["loss/inside"])
        )
        assert float(row["loss"]) == pytest.approx(float(row["loss/global"]) + total, rel=1e-5)
        assert -1 <= float(row["train/inside_cosine"]) <= 1
    shown = " ".join(capsys.readouterr().out.split())
    assert f"in {float(rows[-1]['loss/inside']):.3f}" in shown
    run.train(configure(squares, tmp_path / "without", *two, added(weight=0)))
    one, other = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert not torch.equal(one["model.prompter.proj.weight"], other["model.prompter.proj.weight"])
    assert "inside" not in (tmp_path / "without" / "metrics.csv").read_text()


def test_it_accumulates_as_in_one_graph() -> None:
    batch = make_batch(8, 3, 32, Tokenizer("open_clip", 77))
    valid = torch.arange(3) < torch.tensor([3, 1, 0, 0, 2, 0, 3, 2]).unsqueeze(1)
    batch = replace(batch, region_valid=valid)
    loss = ClocLoss(terms={"inside": {"_target_": NAME, "weight": 3.0}})
    whole, cached = tiny().eval(), tiny().eval()
    expected, terms = loss(whole(batch), batch), accumulated(cached, loss, batch, 4)
    expected.total.backward()
    terms.total.backward()
    assert list(terms.terms) == ["global", "region", "grounding", "inside"]
    torch.testing.assert_close(terms.terms["inside"], expected.terms["inside"])
    for name, value in gradients(whole).items():
        torch.testing.assert_close(gradients(cached)[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("name", "node", "message"),
    [
        ("region", {"_target_": NAME}, r"loss\.terms\.region: a name of its own is wanted"),
        ("a/b", {"_target_": NAME}, r"loss\.terms\.a/b: a name of its own"),
        ("mine", {"_target_": NAME, "weight": -1}, r"loss\.terms\.mine\.weight=-1: must be at least 0"),
        ("mine", {"_target_": NAME, "margn": 1}, r"loss\.terms\.mine\.margn: .* did you mean 'margin'"),
        ("mine", {"_target_": "torch.nn.ReLU"}, r"loss\.terms\.mine\._target_='torch.nn.ReLU': must name a subclass"),
        ("mine", {"_target_": f"{__name__}.Trained"}, r"loss\.terms\.mine: factor would be trained, but by no optim"),
        ("mine", 0.5, r"loss\.terms\.mine=0\.5: must be a node"),
    ],
)
def test_what_is_no_term_is_refused(name: str, node: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClocLoss(terms={name: node})


def test_what_it_needs_is_looked_for(squares: Path, tmp_path: Path) -> None:
    bare = ["model.prompter=null", "model.grounding=null", "loss.region=0", "loss.grounding=0"]
    with pytest.raises(ConfigError, match=r"loss\.terms\.inside\.weight=0\.5 needs a Prompter, but model\.prompter is"):
        validate(configure(squares, tmp_path, *bare, added()))
    validate(configure(squares, tmp_path, *bare, added(weight=0)))
    taught = f"+loss.terms.mine={{_target_:{__name__}.Taught}}"
    with pytest.raises(ConfigError, match=r"loss\.terms\.mine\.weight=1\.0 needs a teacher, but there is none"):
        validate(configure(squares, tmp_path, taught))
