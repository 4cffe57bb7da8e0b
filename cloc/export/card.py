"""The model card, ``README.md`` of an exported folder: what it is, how to load it, how near it is to the original.

Last step of an export (``matrix → hf | open_clip | … → verify → card``).
"""

from __future__ import annotations

from pathlib import Path

from cloc import __version__
from cloc.encoder import Encoder
from cloc.export.capabilities import FORMATS
from cloc.export.verify import Row, markdown
from cloc.export.view_change import ViewChange
from cloc.files import write_file
from cloc.models.protocols import kind
from cloc.models.weights.exported import LOADABLE

# Names that the hub knows; a module in PyTorch alone has none of its own.
LIBRARIES = {"hf": "transformers", "open_clip": "open_clip", "timm": "timm", "onnx": "onnx"}
RELOAD = '\nimport cloc\n\nmodel = cloc.load("FOLDER")  # with `pip install cloc-pretrain`\n'


def write_card(
    encoder: Encoder,
    folder: Path,
    format: str,
    usage: tuple[str, str],
    rows: list[Row],
    pictures: int,
    change: ViewChange | None = None,
) -> None:
    """Write ``README.md``.

    Args:
        encoder: the original.
        folder: the export.
        format: its name.
        usage: example code and what to know.
        rows: the compared states.
        pictures: how many pictures they were compared on.
        change: of the view, where it is not that of the training.
    """
    model, (example, notes) = encoder.model, usage
    parts = [type(part).__name__ for part in (model.prompter, model.grounding) if part is not None]
    count = sum(p.numel() for p in model.parameters()) / 1e6
    reload = RELOAD if format in LOADABLE else ""
    weights = encoder.info.get("weights") or "as trained"
    tower = f"{kind(model.image)}, {model.image.image_size} px, grid {model.grid[0]} × {model.grid[1]}"
    text = f"""---
library_name: {LIBRARIES.get(format, "pytorch")}
tags: [clip, cloc, vision-language]
---
# {encoder.name}

A contrastive image-text encoder, trained as in [CLOC](https://arxiv.org/abs/2410.02746) and exported to
{FORMATS[format].title} by cloc {__version__}.

| | |
|---|---|
| image tower | {tower}, width {model.image.width} |
| text tower | {type(model.text).__name__}, {model.text.context_length} tokens |
| region parts | {", ".join(parts) or "none (a plain CLIP)"} |
| joint width | {model.image.joint_dim} |
| parameters | {count:.1f} M |
| samples seen in training | {encoder.info.get("samples_seen", 0):,}{_of_budget(encoder)} |
| weights | {weights} |

## Use
```python
{example}
{reload}```
{notes}
{change.markdown() if change else ""}
## Parity with the trained model
Largest absolute difference in float32 between this folder, reloaded, and the checkpoint, on {pictures} pictures.
"Allowed" grows with the largest value of a state above 1; "–" informs only.

{markdown(rows)}
"""
    write_file(folder / "README.md", text)


def _of_budget(encoder: Encoder) -> str:
    budget = encoder.info["config"].get("samples")
    return f" of {budget:,}" if budget and encoder.info.get("samples_seen", 0) < budget else ""
