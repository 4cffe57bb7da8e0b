"""One backbone of each family: built from its configuration it makes a step and loads again, or is refused before."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import backbones
from benchmarks.backbones import BACKBONES, END, OPEN_CLIP, REFUSED, START, Backbone, listed, measure
from tests.kit.paths import ROOT

QUICK = ("mobilenetv4_conv_small", "convnext_atto", "resnet10t", "pvt_v2_b0", "PE-Core-T-16-384")
# Of the rest, those whose step and rebuilding take a second or two; `python -m benchmarks.backbones` tries all.
SLOW = """
cait_xxs24_224 eva02_tiny_patch14_224 vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 fastvit_t8
fastvit_mci0 tiny_vit_5m_224 davit_tiny efficientvit_b0 efficientvit_m0 nextvit_small
swin_tiny_patch4_window7_224 volo_d1_224 vit_small_patch14_dinov2 vit_small_patch16_dinov3
vit_tiny_r_s16_p8_224 coat_lite_tiny convit_tiny xcit_nano_12_p16_224 twins_svt_small nest_tiny hiera_tiny_224
maxvit_pico_rw_256 coatnet_pico_rw_224 gcvit_xxtiny repvit_m0_9 shvit_s1 levit_128s mobilevit_xxs
edgenext_xx_small efficientformerv2_s0 poolformer_s12 caformer_s18 mambaout_femto convnextv2_atto
mobilenetv3_small_050 tf_efficientnet_lite0 ghostnet_050 regnetx_002 hrnet_w18_small mixer_s32_224 RN50
coca_ViT-B-32 ViT-B-16-SigLIP EVA02-B-16 MobileCLIP2-S0 convnext_base_w ViTamin-S mvitv2_tiny
""".split()
NAMED = {(one.tower, one.name): one for one in BACKBONES}
BY_NAME = {one.name: one for one in listed(OPEN_CLIP, "OpenClipTower")} | {
    one.name: one for one in BACKBONES if one.tower == "TimmTower"
}


def check_trained(backbone: Backbone) -> None:
    outcome = measure(backbone)
    assert outcome.says == "" and outcome.trains and outcome.loads
    assert outcome.layers > 0 and outcome.depths > 1 and outcome.exports


@pytest.mark.parametrize("name", QUICK)
def test_a_backbone_trains_and_loads(name: str) -> None:
    check_trained(BY_NAME[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_backbones_train_and_load(name: str) -> None:
    check_trained(BY_NAME[name])


@pytest.mark.parametrize("name", REFUSED)
def test_a_backbone_that_cannot_is_refused_before_the_run(name: str) -> None:
    outcome = measure(BY_NAME[name])
    assert not outcome.trains and REFUSED[name] in outcome.says and "\n" not in outcome.says
    assert "model." in outcome.says and re.search(r"; (give|set|did you mean|open_clip\.list_models)", outcome.says)


def test_each_family_is_there_once() -> None:
    assert len(NAMED) == len(BACKBONES) and REFUSED.keys() <= BY_NAME.keys()
    assert len({one.family for one in BACKBONES}) > 100 and len(listed(OPEN_CLIP, "OpenClipTower")) >= 7


def test_the_table_of_the_page_is_that_of_the_list() -> None:
    page = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    written = page.partition(START)[2].partition(END)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in written.splitlines() if line.startswith("| ")]
    rows = [cells for cells in rows if cells[0] != "family"]
    assert [(cells[0], cells[1].strip("`"), int(cells[2])) for cells in rows] == [
        (one.family, one.name, one.size) for one in BACKBONES
    ]
    assert {cells[1].strip("`") for cells in rows if cells[3] == "refused"} == REFUSED.keys()
    assert all(cells[3:5] in (["yes", "yes"], ["refused", "refused"]) for cells in rows) and "FAILED" not in written
    assert all(REFUSED[cells[1].strip("`")] in cells[-1] for cells in rows if cells[3] == "refused")


def test_the_command_writes_its_table_and_ends_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\nold\n{END}\nbehind\n", encoding="utf-8")
    assert backbones.main(["--only", "mobilenetv4", "pit_ti", "--write", str(page)]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == {"families": 2, "train": 1, "load": 1, "refused": 1, "failed": 0}
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("behind\n") and "old" not in text
    assert "| MobileNet V4 | `mobilenetv4_conv_small` | 64 | yes | yes | – |" in text
    assert "| PiT | `pit_ti_224` | 64 | refused | refused |" in text


def test_a_backbone_that_fails_after_it_was_accepted_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(backbone: Backbone) -> None:
        raise AssertionError(f"{backbone.name}: no gradient")

    monkeypatch.setattr(backbones, "measure", fails)
    assert backbones.main(["--only", "mobilenetv4"]) == 1
    assert "FAILED: AssertionError: mobilenetv4_conv_small: no gradient" in capsys.readouterr().out
