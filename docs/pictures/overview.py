"""Makes README's figure from one trained run: generate with labels, predict, control by layout, translate.

python docs/pictures/overview.py RUN DATA [--out FILE]

RUN has class and layout conditions and the translation task, such as `digits-all-32`. DATA is the folder of its shards.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import webdataset
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import mtgen
from mtgen.inference.box_overlay import PixelBox
from mtgen.inference.inputs import InMemoryFile
from mtgen.schema import DatasetCard
from mtgen.visualization.grids import box_colors, overlay

SIDE, GAP, LEFT, MARGIN, BAND = 96, 6, 196, 16, 22
SKIPPED = 3
"""Test digits of each class that are passed over, so that the figure is not chosen by looking."""


def one_per_class(data: Path, classes: int) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Image and mask of one test sample per class, `[H,W]` uint8."""
    found: dict[int, list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]] = {number: [] for number in range(classes)}
    shards = sorted(str(path) for path in data.glob("test-*.tar"))
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        pixels = (np.asarray(Image.open(io.BytesIO(sample[part]))) for part in ("png", "mask.png"))
        found[int(sample["cls"])].append(tuple(pixels))
    return [samples[SKIPPED] for samples in found.values()]


def panel(
    image: Image.Image | None,
    card: DatasetCard,
    mask: NDArray[np.uint8] | None = None,
    boxes: list[PixelBox] | None = None,
) -> Image.Image:
    """An image (black: none) at `SIDE` pixels, with its mask over it and its boxes."""
    if image is None:
        assert mask is not None
        image = Image.new("L", mask.shape[::-1])
    scale = SIDE / image.width
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST))
    if mask is not None:
        large = Image.fromarray(mask).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        pixels = overlay(pixels, np.asarray(large), card.mask_classes)
    picture = Image.fromarray(pixels)
    for box in boxes or []:
        corners = [round(side * scale) for side in box[:4]]
        ImageDraw.Draw(picture).rectangle(corners, outline=tuple(box_colors(card)[box.number].tolist()))
    return picture


def figure(bands: list[tuple[str, list[str], list[list[Image.Image]], list[str]]]) -> Image.Image:
    """Bands of (title, the lines under it, rows of panels, a text under each column)."""
    columns = max(len(row) for _, _, rows, _ in bands for row in rows)
    heights = [len(rows) * (SIDE + GAP) + (BAND if texts else 0) + MARGIN for _, _, rows, texts in bands]
    size = LEFT + columns * (SIDE + GAP) + MARGIN, sum(heights) + MARGIN
    sheet = Image.new("RGB", size, "white")
    draw, title, small = ImageDraw.Draw(sheet), ImageFont.load_default(20), ImageFont.load_default(14)
    top = MARGIN
    for (name, lines, rows, texts), height in zip(bands, heights, strict=True):
        draw.text((MARGIN, top + 4), name, fill="#222222", font=title)
        for number, line in enumerate(lines):
            draw.text((MARGIN, top + 36 + 19 * number), line, fill="#666666", font=small)
        for number, row in enumerate(rows):
            for column, picture in enumerate(row):
                sheet.paste(picture, (LEFT + column * (SIDE + GAP), top + number * (SIDE + GAP)))
        for column, text in enumerate(texts):
            middle = LEFT + column * (SIDE + GAP) + SIDE // 2
            draw.text((middle, top + len(rows) * (SIDE + GAP)), text, fill="#666666", font=small, anchor="ma")
        top += height
    return sheet


def main(run: str, data: Path, out: Path) -> None:
    """Write the figure."""
    model = mtgen.load(run, "cpu")
    card, classes = model.card, model.card.classes
    digits = one_per_class(data, len(classes))
    images, masks = [image for image, _ in digits], [mask for _, mask in digits]

    made = model.sample(len(classes), classes)
    found = model.predict(images)
    layouts = []
    for mask in masks:
        file = io.BytesIO()
        Image.fromarray(mask).save(file, "PNG")
        layouts.append(InMemoryFile("layout.png", file.getvalue()))
    controlled = model.sample(len(masks), layout=layouts)
    into = [classes[(number + 1) % len(classes)] for number in range(len(classes))]
    translated = [model.translate(image, name).images[0] for image, name in zip(images, into, strict=True)]

    plain = [panel(image, card) for image in found.images]
    figure(
        [
            (
                "Generate",
                ["an image with its", "mask and box,", "for each class"],
                [
                    [panel(image, card) for image in made.images],
                    [panel(*one) for one in zip(made.images, [card] * len(made), made.masks, made.boxes, strict=True)],
                ],
                [],
            ),
            (
                "Predict",
                ["class, mask and box", "of test images"],
                [
                    plain,
                    [
                        panel(*one)
                        for one in zip(found.images, [card] * len(found), found.masks, found.boxes, strict=True)
                    ],
                ],
                [name or "?" for name in found.classes],
            ),
            (
                "Control",
                ["a mask as layout,", "the image generated", "for it"],
                [[panel(None, card, mask) for mask in masks], [panel(image, card) for image in controlled.images]],
                [],
            ),
            (
                "Translate",
                ["a test image,", "the same in the style", "of another class"],
                [plain, [panel(image, card) for image in translated]],
                [f"to {name}" for name in into],
            ),
        ]
    ).save(out, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("overview.png"))
    options = parser.parse_args()
    main(options.run, options.data, options.out)
