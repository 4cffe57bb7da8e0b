"""The picture on top of README: the boxes and phrases of a line of JSON, drawn on its photograph.

    python docs/images/draw_photo.py docs/images/photo.jsonl FOLDER_OF_THE_PICTURE docs/images/photo.jpg

Where the photograph is from: docs/images/ATTRIBUTION.txt.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cloc.files import write_file

COLORS = ("#ffd43b", "#5fd4ff", "#ff8f87", "#8cf09f", "#d3b3ff", "#ffae57")
SIDE = 640  # pixels of the long side


def draw(picture: Image.Image, regions: list[dict[str, list[float]]]) -> Image.Image:
    """A picture with a labeled box for each region; boxes are xyxy in 0..1 of it."""
    scale = SIDE / max(picture.size)
    shown = picture.convert("RGB").resize((round(picture.width * scale), round(picture.height * scale)))
    pen, font = ImageDraw.Draw(shown), ImageFont.load_default(17)
    for color, region in zip(COLORS, regions, strict=False):
        x0, y0, x1, y1 = (value * (shown.size[i % 2] - 1) for i, value in enumerate(region["box"]))
        pen.rectangle((x0, y0, x1, y1), outline="black", width=5)
        pen.rectangle((x0 + 1, y0 + 1, x1 - 1, y1 - 1), outline=color, width=3)
    for color, region in zip(COLORS, regions, strict=False):  # labels above all boxes
        phrase, box = str(region["phrases"][0]), region["box"]
        width = pen.textlength(phrase, font) + 10
        x = min(box[0] * shown.width, shown.width - width)
        y = min(box[3] * shown.height, shown.height) - 25 if box[1] < 0.02 else box[1] * shown.height
        pen.rectangle((x, y, x + width, y + 24), fill=color, outline="black")
        pen.text((x + 5, y + 2), phrase, "black", font)
    return shown


def main() -> None:
    """Read the first line, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, help="JSON lines, as `data convert jsonl` reads them")
    parser.add_argument("pictures", type=Path, help="folder that their pictures are relative to")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    line = json.loads(options.lines.read_text().splitlines()[0])
    buffer = io.BytesIO()
    draw(Image.open(options.pictures / line["image"]), line["regions"]).save(buffer, "JPEG", quality=88, optimize=True)
    write_file(options.out, buffer.getvalue())


if __name__ == "__main__":
    main()
