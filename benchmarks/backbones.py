"""Which image backbones train, load and export: one member of each family of timm and of open_clip.

    python -m benchmarks.backbones                            # all of them; about ten minutes on one core
    python -m benchmarks.backbones --only swin RN50           # those whose family or name holds a word
    python -m benchmarks.backbones --write docs/backbones.md  # and write the table there

Each is built from a configuration as ``train.py`` does it, with random weights, a Prompter and a grounding head, and
makes one step of the whole objective on a toy batch: every trained parameter must get a gradient. Then it is rebuilt
from its configuration and state dict and must give the same embeddings. What it exports to is what it declares. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.step import make_batch
from cloc.config import ConfigError
from cloc.contracts import Batch
from cloc.data.tokenizer import Tokenizer
from cloc.files import write_file
from cloc.losses.objective import ClocLoss
from cloc.models import taps
from cloc.models.build import build_model, build_trained
from cloc.models.model import Cloc
from cloc.models.positions.fourier import check_covered
from cloc.models.protocols import blocks, layers, refusals
from cloc.models.trust.registry import admit

START, END = "<!-- table of backbones -->", "<!-- end of table -->"
COLUMNS = ("family", "name", "px", "trains", "loads", "timm", "open_clip", "hf", "layers", "blocks", "says")
FORMATS = ("timm", "open_clip", "hf")

# Family: the smallest member, and the side of the picture that is tried: small, where the family takes small ones.
TIMM = """
ViT: vit_tiny_patch16_224 64
DeiT: deit_tiny_patch16_224 64
DeiT, distilled: deit_tiny_distilled_patch16_224 64
BEiT: beit_base_patch16_224 64
EVA-02: eva02_tiny_patch14_224 56
DINOv2: vit_small_patch14_dinov2 56
DINOv3: vit_small_patch16_dinov3 64
SigLIP's ViT: vit_base_patch16_siglip_224 64
SAM's ViT: samvit_base_patch16_224 64
Perception Encoder: vit_pe_core_tiny_patch16_384 64
RoPE-ViT: vit_small_patch16_rope_224 64
ViT, relative positions: vit_relpos_small_patch16_224 64
ViT upon a ResNet: vit_tiny_r_s16_p8_224 64
NaFlexViT (SigLIP 2 NaFlex): naflexvit_base_patch16_gap 64
Qwen3-VL's ViT: qwen3_vit_88m 64
ViTamin: vitamin_small_224 64
CaiT: cait_xxs24_224 64
CoaT Lite: coat_lite_tiny 64
ConViT: convit_tiny 64
TNT: tnt_s_patch16_224 64
VOLO: volo_d1_224 64
XCiT: xcit_nano_12_p16_224 64
Swin: swin_tiny_patch4_window7_224 64
Swin V2: swinv2_tiny_window8_256 64
Swin V2, Cr: swinv2_cr_tiny_224 64
Twins SVT: twins_svt_small 64
NesT: nest_tiny 64
MViT V2: mvitv2_tiny 64
Hiera: hiera_tiny_224 64
Hiera of SAM 2: hieradet_small 64
MaxViT: maxvit_pico_rw_256 64
CoAtNet: coatnet_pico_rw_224 64
DaViT: davit_tiny 64
PVT V2: pvt_v2_b0 64
GC ViT: gcvit_xxtiny 64
FocalNet: focalnet_tiny_srf 64
NextViT: nextvit_small 64
TinyViT: tiny_vit_5m_224 64
EfficientViT (MIT): efficientvit_b0 64
EfficientViT (MSRA): efficientvit_m0 64
EfficientFormer: efficientformer_l1 224
EfficientFormer V2: efficientformerv2_s0 64
FastViT: fastvit_t8 64
FastViT of MobileCLIP: fastvit_mci0 64
RepViT: repvit_m0_9 64
SHViT: shvit_s1 64
LeViT: levit_128s 64
MobileViT: mobilevit_xxs 64
MobileViT V2: mobilevitv2_050 64
EdgeNeXt: edgenext_xx_small 64
SwiftFormer: swiftformer_xs 64
iFormer: iformer_t 64
LowFormer: lowformer_b0 64
CPUBone: cpubone_nano 64
Visformer: visformer_tiny 64
PoolFormer: poolformer_s12 64
CAFormer: caformer_s18 64
MambaOut: mambaout_femto 64
MLP-Mixer: mixer_s32_224 64
gMLP: gmlp_ti16_224 64
Sequencer: sequencer2d_s 56
ConvMixer: convmixer_768_32 63
ConvNeXt: convnext_atto 64
ConvNeXt V2: convnextv2_atto 64
InceptionNeXt: inception_next_atto 64
RDNet: rdnet_tiny 64
MobileNet V2: mobilenetv2_035 64
MobileNet V3: mobilenetv3_small_050 64
MobileNet V4: mobilenetv4_conv_small 64
MnasNet: mnasnet_small 64
EfficientNet: tf_efficientnet_lite0 64
HardCoRe-NAS: hardcorenas_a 64
GhostNet: ghostnet_050 64
RepGhost: repghostnet_050 64
FasterNet: fasternet_t0 64
StarNet: starnet_s050 64
LCNet V2: lcnetv2_small 64
MobileOne: mobileone_s0 64
RepVGG: repvgg_a0 64
GENet: gernet_s 64
HGNet V2: hgnetv2_b0 64
ResNet: resnet10t 64
ResNet V2: resnetv2_18 64
ResNet of CLIP: resnet50_clip 64
LambdaNet: lambda_resnet26t 128
BoTNet: botnet26t_256 256
SE-ResNet: legacy_seresnet18 64
SK-ResNet: skresnet18 64
ResNeSt: resnest14d 64
Res2Net: res2net50_14w_8s 64
RegNet: regnetx_002 64
NFNet: nf_regnet_b0 64
RexNet: rexnet_100 64
TResNet: tresnet_m 64
SelecSLS: selecsls42 64
CSPNet: cs3darknet_s 64
CSPNeXt: cspnext_tiny 64
DenseNet: densenet121 64
DLA: dla46_c 64
DPN: dpn48b 64
HRNet: hrnet_w18_small 64
VoVNet: ese_vovnet19b_dw 64
Xception: xception41 64
Inception V3: inception_v3 128
Inception V4: inception_v4 128
VGG: vgg11 64
CrossViT: crossvit_tiny_240 240
CoaT: coat_tiny 64
PiT: pit_ti_224 64
EfficientViM: efficientvim_m1 64
CSATv2: csatv2 64
"""
OPEN_CLIP = """
CLIP ViT: ViT-B-32 64
CLIP ResNet: RN50 64
CoCa: coca_ViT-B-32 64
SigLIP: ViT-B-16-SigLIP 64
SigLIP 2: ViT-B-32-SigLIP2-256 64
EVA-02 CLIP: EVA02-B-16 64
MobileCLIP: MobileCLIP-S1 64
MobileCLIP 2: MobileCLIP2-S0 64
ConvNeXt CLIP: convnext_base_w 64
Perception Encoder: PE-Core-T-16-384 64
ViTamin CLIP: ViTamin-S 64
Swin CLIP: swin_base_patch4_window7_224 64
SigLIP 2 NaFlex: naflex_ViT-B-16 64
"""
# What the one line of those says that a configuration cannot have: before the run, and not in its first step.
REFUSED = {
    "crossvit_tiny_240": "returns 2 maps and no dense square map",
    "coat_tiny": "returns 3 maps and no dense square map",
    "pit_ti_224": "returns 0 patch tokens and no dense square map",
    "efficientvim_m1": "returns 4 maps and no dense square map",
    "csatv2": "does not divide the tower's width 386",
    "naflex_ViT-B-16": "not an open_clip architecture",
}
PARTS = {
    "text": {"_target_": "cloc.models.text.ClipText", "options": {"width": 32, "heads": 2, "layers": 1}},
    "prompter": {"_target_": "cloc.models.prompter.SharedPrompter"},
    "grounding": {"_target_": "cloc.models.grounding.SpatialHead"},
}


@dataclass(frozen=True)
class Backbone:
    """A member of a family.

    Attributes:
        family: in the words of its paper.
        name: of timm or open_clip.
        size: side of the pictures that are tried.
        tower: class of ours that takes it.
    """

    family: str
    name: str
    size: int
    tower: str

    @property
    def node(self) -> dict[str, Any]:
        """``model`` of a configuration with this backbone, and small parts besides."""
        joint_dim = 16
        if self.tower == "OpenClipTower":
            import open_clip

            joint_dim = (open_clip.get_model_config(self.name) or {"embed_dim": joint_dim})["embed_dim"]
        image = {"_target_": f"cloc.models.image.{self.tower}", "name": self.name, "image_size": self.size}
        return {"joint_dim": joint_dim, "image": image, **PARTS}


@dataclass(frozen=True)
class Outcome:
    """What became of a backbone.

    Attributes:
        trains: one step gave every trained parameter a gradient.
        loads: a model rebuilt from configuration and weights gives the same embeddings.
        exports: by format, ``yes``, ``at N px`` where another library is bound to that size, or ``–``.
        layers: whose tokens :mod:`cloc.models.taps` gives.
        blocks: that are compiled, sharded and recomputed one at a time; 0 for the tower as a whole.
        depths: layers of the optimizer's rates (``optim.layer_decay``).
        says: why it is refused, one line.
    """

    trains: bool = False
    loads: bool = False
    exports: Mapping[str, str] | None = None
    layers: int = 0
    blocks: int = 0
    depths: int = 0
    says: str = ""


def listed(text: str, tower: str) -> list[Backbone]:
    """Backbones of a list ``family: name size``."""
    rows = (line.rpartition(": ") for line in text.strip().splitlines())
    pairs = ((family, *rest.split()) for family, _, rest in rows)
    return [Backbone(family, name, int(size), tower) for family, name, size in pairs]


BACKBONES = listed(TIMM, "TimmTower") + listed(OPEN_CLIP, "OpenClipTower")


@cache
def toy_batch(size: int) -> Batch:
    """Two pictures with two boxes each."""
    return make_batch(2, 2, size, Tokenizer("open_clip", 77))


def measure(backbone: Backbone) -> Outcome:
    """Build, step, rebuild and compare a backbone.

    Raises:
        AssertionError: it is accepted, and then a parameter has no gradient or a rebuilt model differs.
    """
    try:
        model = build_model(backbone.node)
        check_covered(model.image)
    except ConfigError as error:
        return Outcome(says=str(error))
    step(model, backbone)
    reload(model, backbone)
    exports = {format: _cell(refusals(model.image, format)) for format in FORMATS}
    depth, count = taps.depth(model.image), len(blocks(model.image))
    return Outcome(True, True, exports, depth, count, layers(model.image)[1])


def step(model: Cloc, backbone: Backbone) -> None:
    """Forward and backward of the whole objective; every trained parameter must get a gradient."""
    torch.manual_seed(0)
    batch = toy_batch(backbone.size)
    ClocLoss()(model.train()(batch), batch).total.backward()
    missing = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not missing, f"{backbone.name}: no gradient for {missing[:3]} and {len(missing)} in all"


@torch.no_grad()
def reload(model: Cloc, backbone: Backbone) -> None:
    """Build again from configuration and weights, as a checkpoint is loaded; embeddings must be equal."""
    again, _ = build_trained(admit(backbone.node, backbone.name), model.state_dict(), backbone.name)
    batch = toy_batch(backbone.size)
    ours, theirs = model.eval()(batch), again.eval()(batch)
    for name in ("image", "text", "region", "grounded"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), f"{backbone.name}: {name} differs when loaded"


def _cell(reasons: Sequence[str]) -> str:
    bound = re.search(r"for (\d+) px alone", reasons[0]) if len(reasons) == 1 else None
    return f"at {bound[1]} px" if bound else "–" if reasons else "yes"


def row(backbone: Backbone, outcome: Outcome) -> str:
    """A line of the table."""
    said = outcome.says.replace("|", "/")
    exports = [(outcome.exports or {}).get(format, "") for format in FORMATS]
    counts = [str(outcome.layers), str(outcome.blocks or "–")] if outcome.trains else ["", ""]
    marks = ["yes" if good else "refused" for good in (outcome.trains, outcome.loads)]
    cells = [backbone.family, f"`{backbone.name}`", str(backbone.size), *marks, *exports, *counts, said]
    return f"| {' | '.join(cells)} |".replace("  |", " |")


def table(rows: Mapping[str, Sequence[str]]) -> str:
    """Both tables, by the class of the tower."""
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    parts = [f"`{tower}`\n\n{head}{chr(10).join(lines)}" for tower, lines in rows.items()]
    return "\n\n".join([START, *parts, END])


def write_table(path: Path, text: str) -> None:
    """Put the table in its place of a page."""
    page = path.read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    write_file(path, before + text + rest.partition(END)[2])


def main(arguments: Sequence[str]) -> int:
    """Run the command; 1 where a backbone is accepted and then fails."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.backbones", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--only", nargs="+", default=[], help="words of families or names")
    parser.add_argument("--write", type=Path, help="page whose table is written")
    asked = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    chosen = [one for one in BACKBONES if not asked.only or any(w in f"{one.family} {one.name}" for w in asked.only)]
    rows: dict[str, list[str]] = {}
    counts = {"families": len(chosen), "train": 0, "load": 0, "refused": 0, "failed": 0}
    for number, backbone in enumerate(chosen, 1):
        try:
            outcome = measure(backbone)
        except Exception as error:  # the others are still of interest  # noqa: BLE001
            outcome = Outcome(says=f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        counts["failed"] += outcome.says.startswith("FAILED")
        counts["train"] += outcome.trains
        counts["load"] += outcome.loads
        counts["refused"] += bool(outcome.says) and not outcome.says.startswith("FAILED")
        rows.setdefault(backbone.tower, []).append(row(backbone, outcome))
        console.print(f"{number}/{len(chosen)} {backbone.name}: {outcome.says or 'trains and loads'}")
    text = table(rows)
    if asked.write:
        write_table(asked.write, text)
    print(text)
    print(json.dumps(counts))
    return int(counts["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
