"""Grids of images: samples with masks and boxes, predictions beside labels, reconstructions, translations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from mtgen.schema import CONFIDENT_SCORE, Batch, Canvas, DatasetCard, Prediction

Pixels = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Okabe and Ito 2008 (without black), and three more: any two differ by at least 16 in CIE Lab, with normal color
# vision and with each of its three deficiencies (simulated as in Machado et al. 2009)
_COLORS = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#6600FF",
    "#00FF88",
    "#AA66FF",
)
_UNKNOWN = (128, 128, 128)
_PAPER, _INK, _CORRECT, _WRONG, _UNKNOWN_TEXT = "#FFFFFF", "#222222", "#0072B2", "#D55E00", "#777777"
_LEGEND = "; above, the predicted class: blue is correct, orange is wrong, gray is unknown"
_MASK_OPACITY = 0.6
_MIN_SIDE_PIXELS = 64  # smallest side of an image in a grid
_MARGIN, _GAP, _PAIR_GAP = 12, 8, 2  # pixels around the grid, between cells, between the images of a cell
_TEXT, _LINE = 13, 20  # height of the text and of a line, pixels
_LETTER_WIDTH = 7  # about, pixels
_MAX_COLUMNS = 10  # groups side by side


def to_uint8(image: Tensor) -> Tensor:
    """Images in [-1, 1], any shape -> uint8 on the CPU: -1 is 0, 1 is 255; values outside are clamped."""
    return image.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to("cpu", torch.uint8)


def to_pictures(image: Tensor) -> list[Image.Image]:
    """Images `[B,C,H,W]` in [-1, 1] with one or three channels -> one picture per image, `L` or `RGB`."""
    pixels = to_uint8(image).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one[..., 0] if one.shape[2] == 1 else one) for one in pixels]


def to_pixels(image: Tensor) -> Pixels:
    """Images `[B,C,H,W]` in [-1, 1] with one or three channels -> `[B,H,W,3]` uint8."""
    return to_uint8(image).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def mask_colors(mask_classes: Sequence[str]) -> NDArray[np.int16]:
    """`[M,3]`: color of each mask class; (-1, -1, -1) for a background. Ten colors, then lighter, then darker ones."""
    colors: list[NDArray[Any]] = []
    used = 0
    for name in mask_classes:
        if name.lower() == "background":
            colors.append(np.full(3, -1))
            continue
        base = np.array(ImageColor.getrgb(_COLORS[used % len(_COLORS)]))
        shade = used // len(_COLORS) % 3
        colors.append(base if shade == 0 else (base + 255) // 2 if shade == 1 else base * 2 // 3)
        used += 1
    return np.array(colors, dtype=np.int16).reshape(-1, 3)


def overlay(pixels: Pixels, mask: NDArray[np.integer], mask_classes: Sequence[str]) -> Pixels:
    """An image `[H,W,3]` with its mask `[H,W]` over it, opaque at the outlines; unknown pixels are gray."""
    colors = mask_colors(mask_classes)
    known = (mask >= 0) & (mask < len(colors))
    color = np.where(known[..., None], colors[np.where(known, mask, 0)] if len(colors) else 0, _UNKNOWN)
    opacity = np.where(_outline(mask), 1.0, _MASK_OPACITY)[..., None] * (color[..., :1] >= 0)
    return (pixels * (1 - opacity) + color * opacity).round().astype(np.uint8)


def enlarged_overlay(picture: Image.Image, mask: NDArray[np.integer], mask_classes: Sequence[str]) -> Image.Image:
    """A picture with a mask of the same size over it, enlarged by a whole factor where it is small."""
    scale = _scale(min(picture.size), None)
    return Image.fromarray(
        overlay(_enlarged(np.asarray(picture.convert("RGB")), scale), _enlarged(mask, scale), mask_classes)
    )


def _outline(mask: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Where a pixel's class differs from that of one of its four neighbors."""
    edge = np.zeros(mask.shape, dtype=np.bool_)
    for axis in (0, 1):
        differs = np.diff(mask, axis=axis) != 0
        before, after = [slice(None)] * 2, [slice(None)] * 2
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        edge[tuple(before)] |= differs
        edge[tuple(after)] |= differs
    return edge


def _enlarged(pixels: NDArray[Any], scale: int) -> NDArray[Any]:
    """Each pixel as a square of `scale` pixels."""
    return pixels.repeat(scale, 0).repeat(scale, 1)


def _scale(side: int, scale: int | None) -> int:
    """The given factor, or the smallest whole factor that enlarges `side` to `_MIN_SIDE_PIXELS`."""
    return scale or max(1, -(-_MIN_SIDE_PIXELS // side))


def _beside(pictures: Sequence[Pixels]) -> Pixels:
    """Pictures of equal height, side by side, with a thin gap between them."""
    gap = np.full((pictures[0].shape[0], _PAIR_GAP, 3), 255, dtype=np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], 1)


def _pair(pixels: Pixels, masks: Sequence[NDArray[np.integer]], mask_classes: Sequence[str], scale: int) -> Pixels:
    """An image, and beside it the same image with each of the masks."""
    large = _enlarged(pixels, scale)
    return _beside([large, *(overlay(large, _enlarged(mask, scale), mask_classes) for mask in masks)])


def _framed(pixels: Pixels, boxes: NDArray[Any], colors: NDArray[np.int16]) -> Pixels:
    """An image `[H,W,3]` with frames of one pixel, in the color of the class.

    Args:
        boxes: `[n,5+]` x0, y0, x1, y1 as fractions of the sides, class.
        colors: `[K,3]`, by class.
    """
    framed, (height, width) = pixels.copy(), pixels.shape[:2]
    for x0, y0, x1, y1, label in boxes[:, :5]:
        left, right = (int(np.clip(round(x * width), 0, width - 1)) for x in (x0, x1))
        top, bottom = (int(np.clip(round(y * height), 0, height - 1)) for y in (y0, y1))
        color = colors[int(label)]
        framed[[top, bottom], left : right + 1] = color
        framed[top : bottom + 1, [left, right]] = color
    return framed


def shown_boxes(boxes: Tensor) -> Tensor:
    """True boxes `[B,N,5]` or predicted ones `[B,N,6]` -> `[B,N]` bool: neither padding nor of a low score."""
    return boxes[..., 4] >= 0 if boxes.shape[-1] == 5 else boxes[..., 5] >= CONFIDENT_SCORE


def _frames(boxes: Tensor | None, card: DatasetCard) -> tuple[list[NDArray[Any]], NDArray[np.int16]]:
    """`[B,N,5]` or `[B,N,6]` -> the boxes of each image that are shown, and the colors of the classes."""
    if boxes is None:
        return [], mask_colors(())
    rows = [rows[shown].cpu().numpy() for rows, shown in zip(boxes, shown_boxes(boxes), strict=True)]
    return rows, box_colors(card)


def box_colors(card: DatasetCard) -> NDArray[np.int16]:
    """`[K,3]`: color of each class's boxes; that of its mask where masks have the same classes."""
    colors = mask_colors([name for name in card.mask_classes if name.lower() != "background"] or card.classes)
    if len(colors) != len(card.classes):  # masks have other classes
        colors = mask_colors([str(number) for number in range(len(card.classes))])
    return colors


@dataclass(frozen=True)
class _Cell:
    """A picture with a line of text above it, or an empty cell (`None`)."""

    pixels: Pixels | None
    caption: str = ""
    color: str = _INK


def _truncate_text(text: str, font: Font, width: int) -> str:
    """The text, truncated with an ellipsis where it is wider than `width`."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _sheet(cells: Sequence[_Cell], columns: int, title: str = "") -> Image.Image:
    """Cells of equal size in rows of `columns`; a row in which any cell has a caption has a line for captions."""
    height, width = next(cell.pixels.shape[:2] for cell in cells if cell.pixels is not None)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    columns = min(columns, len(cells))
    lines = [_LINE if any(cell.caption for cell in row) else 0 for row in rows]
    top = _MARGIN + (_LINE + _GAP if title else 0)
    page_width = 2 * _MARGIN + columns * (width + _GAP) - _GAP
    page = Image.new("RGB", (page_width, top + sum(lines) + len(rows) * (height + _GAP) - _GAP + _MARGIN), _PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(_TEXT)
    if title:
        draw.text((_MARGIN, _MARGIN), _truncate_text(title, font, page_width - 2 * _MARGIN), fill=_INK, font=font)
    for row, line in zip(rows, lines, strict=True):
        for column, cell in enumerate(row):
            left = _MARGIN + column * (width + _GAP)
            if cell.caption:
                text = _truncate_text(cell.caption, font, width)
                draw.text(
                    (left + width // 2, top + line - _TEXT // 2 + 1), text, fill=cell.color, font=font, anchor="ms"
                )
            if cell.pixels is not None:
                page.paste(Image.fromarray(cell.pixels), (left, top + line))
        top += line + height + _GAP
    return page


def sample_grid(
    canvas: Canvas, labels: Tensor, card: DatasetCard, scale: int | None = None, boxes: Tensor | None = None
) -> Image.Image:
    """Generated images, each beside itself with its mask and its boxes; one column per class, with the class above it.

    Few classes have several columns each; more than ten continue in another band of rows.

    Args:
        canvas: the generated images and masks.
        labels: `[B]` the classes that the images are conditioned on; -1: none.
        card: names the classes and mask classes.
        scale: whole factor of enlargement; default: so that an image is well visible.
        boxes: `[B,N,6]` the generated boxes, see `mtgen.networks.center_maps.decode_canvas`.
    """
    pixels, scale = to_pixels(canvas.image), _scale(canvas.image.shape[-1], scale)
    masks = [] if canvas.mask is None else [canvas.mask.argmax(1).cpu().numpy()]
    cells = [_pair(pixels[i], [mask[i] for mask in masks], card.mask_classes, scale) for i in range(len(pixels))]
    frames, colors = _frames(boxes, card)
    if frames:
        large = (_enlarged(picture, scale) for picture in pixels)
        cells = [_beside([cell, _framed(one, f, colors)]) for cell, one, f in zip(cells, large, frames, strict=True)]
    if not card.classes:
        return _sheet([_Cell(cell) for cell in cells], _square(len(cells)))
    groups: dict[int, list[Pixels]] = {}
    for number, cell in sorted(zip(labels.tolist(), cells, strict=True), key=lambda pair: pair[0]):
        groups.setdefault(number, []).append(cell)
    names = {-1: "no class", **dict(enumerate(card.classes))}
    if len(groups) == 1:
        return _sheet([_Cell(cell) for cell in cells], _square(len(cells)), names[next(iter(groups))])
    columns_per_group = max(1, _MAX_COLUMNS // len(groups))
    numbers, width = list(groups), min(len(groups), _MAX_COLUMNS)
    banded: list[_Cell] = []
    for start in range(0, len(numbers), _MAX_COLUMNS):
        band = [(names[n], groups[n]) for n in numbers[start : start + _MAX_COLUMNS]]
        banded += _band(band, columns_per_group, width)
    return _sheet(banded, columns_per_group * width)


def _square(n: int) -> int:
    """Columns of a grid of `n` cells that have no groups."""
    return max(1, min(_MAX_COLUMNS, round(n**0.5)))


def _band(groups: Sequence[tuple[str, list[Pixels]]], columns: int, width: int) -> list[_Cell]:
    """Rows of cells: each group in `columns` columns under its name, filled up to `width` groups."""
    cells = []
    for row in range(-(-max(len(pictures) for _, pictures in groups) // columns)):
        for name, pictures in [*groups, *[("", [])] * (width - len(groups))]:
            chosen = pictures[row * columns : (row + 1) * columns]
            caption = name if row == 0 else ""
            cells += [_Cell(picture, caption) for picture in chosen] + [_Cell(None)] * (columns - len(chosen))
    return cells


def prediction_grid(
    batch: Batch, prediction: Prediction, card: DatasetCard, scale: int | None = None, columns: int = 6
) -> Image.Image:
    """Real images, each beside itself with its true mask and its predicted mask; the predicted class is above.

    A correct class is blue; a wrong one is orange and followed by the true one; gray marks images of unknown class.
    """
    pixels, scale = to_pixels(batch.image), _scale(batch.image.shape[-1], scale)
    masks: list[NDArray[Any]] = []
    titles = ["image"]
    if card.mask_classes and batch.present["mask"].any():
        masks.append(batch.mask.cpu().numpy())
        titles.append("true mask")
    if prediction.mask_logits is not None:
        masks.append(prediction.mask_logits.argmax(1).cpu().numpy())
        titles.append("predicted mask")
    framed = []
    for title, boxes in (("true boxes", batch.boxes), ("predicted boxes", prediction.boxes)):
        if boxes is not None and card.classes:
            framed.append(_frames(boxes, card))
            titles.append(title)
    cells = []
    for i in range(len(pixels)):
        caption, color = _verdict(batch, prediction, card, i)
        large = _enlarged(pixels[i], scale)
        parts = [_pair(pixels[i], [mask[i] for mask in masks], card.mask_classes, scale)]
        parts += [_framed(large, frames[i], colors) for frames, colors in framed]
        cells.append(_Cell(_beside(parts), caption, color))
    return _sheet(cells, columns, " | ".join(titles) + ("" if prediction.class_logits is None else _LEGEND))


def class_names(batch: Batch, card: DatasetCard) -> list[str]:
    """`[B]` the name of each sample's class; empty where it is unknown."""
    known = zip(batch.label.tolist(), batch.present["class"].tolist(), strict=True)
    return [card.classes[label] if has_class and card.classes else "" for label, has_class in known]


def caption_texts(batch: Batch) -> list[str]:
    """`[B]` the captions of a batch whose tokens are bytes + 1; empty where there is none."""
    if batch.caption is None:
        return [""] * len(batch)
    return [bytes(token - 1 for token in row if token).decode("utf-8", "replace") for row in batch.caption.tolist()]


def labeled_grid(
    batch: Batch, words: Sequence[str], card: DatasetCard, note: str = "", columns: int = 4
) -> Image.Image:
    """Real images with their labels: text above, and beside each the same image with its mask, and with its boxes.

    Args:
        words: `[B]` class, caption or both.
        note: is appended to the title.
    """
    pixels, scale = to_pixels(batch.image), _scale(batch.image.shape[-1], None)
    if max(map(len, words)) > _MIN_SIDE_PIXELS // _LETTER_WIDTH:
        scale *= 2
    masks = [batch.mask.cpu().numpy()] if card.mask_classes and batch.present["mask"].any() else []
    frames, colors = _frames(batch.boxes if card.classes else None, card)
    cells = []
    for i, text in enumerate(words):
        parts = [_pair(pixels[i], [mask[i] for mask in masks], card.mask_classes, scale)]
        parts += [_framed(_enlarged(pixels[i], scale), frames[i], colors)] if frames else []
        cells.append(_Cell(_beside(parts), text))
    return _sheet(cells, columns, "image" + " | mask" * bool(masks) + " | boxes" * bool(frames) + note)


def _verdict(batch: Batch, prediction: Prediction, card: DatasetCard, i: int) -> tuple[str, str]:
    """The text above image `i`, and its color."""
    if prediction.class_logits is None or not card.classes:
        return "", _INK
    predicted, true = int(prediction.class_logits[i].argmax()), int(batch.label[i])
    name = card.classes[predicted]
    if not batch.present["class"][i]:
        return name, _UNKNOWN_TEXT
    return (name, _CORRECT) if predicted == true else (f"{name}, not {card.classes[true]}", _WRONG)


def reconstruction_grid(
    images: Tensor, reconstructions: Tensor, scale: int | None = None, columns: int = 8
) -> Image.Image:
    """Images `[B,C,H,W]` in [-1, 1], each beside its reconstruction."""
    scale = _scale(images.shape[-1], scale)
    pairs = zip(to_pixels(images), to_pixels(reconstructions), strict=True)
    return _sheet(
        [_Cell(_beside([_enlarged(picture, scale) for picture in pair])) for pair in pairs],
        columns,
        "image | reconstruction",
    )


def cosine_map(lines: Mapping[str, Sequence[float | None]], images: Sequence[int], title: str) -> Image.Image:
    """A heat map over time, one row per pair of tasks; orange: they conflict (-1), white: 0, blue: they agree (1).

    Args:
        lines: name of a pair -> its cosine at each position; `None`, or missing at the end: gray.
        images: positions of the columns, for the axis.
    """
    font, columns = ImageFont.load_default(_TEXT), max(len(images), 1)
    width, left = max(480, min(columns, 1600)), _MARGIN + int(max(font.getlength(name) for name in lines)) + _GAP
    page = Image.new("RGB", (left + width + _MARGIN + 60, 2 * _MARGIN + _LINE * (len(lines) + 3)), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN), title + "; orange: conflict, blue: agreement", fill=_INK, font=font)
    conflict, agree = (np.array(ImageColor.getrgb(color), dtype=float) for color in (_WRONG, _CORRECT))
    for number, (name, values) in enumerate(lines.items()):
        top = _MARGIN + _LINE * (number + 1) + _GAP
        draw.text((left - _GAP, top + _LINE // 2), name, fill=_INK, font=font, anchor="rm")
        strip = np.full((1, columns, 3), _UNKNOWN, dtype=np.uint8)
        for column, value in enumerate(values[:columns]):
            if value is not None:
                end = agree if value > 0 else conflict
                strip[0, column] = (255 + (end - 255) * min(abs(value), 1.0)).round()
        page.paste(Image.fromarray(strip).resize((width, _LINE - 2), Image.Resampling.NEAREST), (left, top))
        known = [value for value in values if value is not None]
        if known:
            draw.text((left + width + _GAP, top + _LINE // 2), f"{known[-1]:+.2f}", fill=_INK, font=font, anchor="lm")
    if images:
        bottom = _MARGIN + _LINE * (len(lines) + 1) + _GAP
        draw.text((left, bottom), f"{images[0]:,} images", fill=_INK, font=font)
        draw.text((left + width, bottom), f"{images[-1]:,}", fill=_INK, font=font, anchor="ra")
    return page


def condition_grid(
    title: str, words: Sequence[str], shown: Tensor | None, canvas: Canvas, card: DatasetCard, columns: int = 8
) -> Image.Image:
    """Generated images with their condition: text above, or a picture beside them.

    Args:
        words: `[B]` the condition in words: a caption, the class of a recording.
        shown: `[B,C,H,W]` images or `[B,H,W]` masks that the images are conditioned on; `None`: not visible.
        canvas: the generated images; their masks are not shown.
    """
    scale = _scale(canvas.image.shape[-1], None)
    cells = []
    for i, (text, picture) in enumerate(zip(words, to_pixels(canvas.image), strict=True)):
        parts = [_enlarged(picture, scale)]
        if shown is not None and shown.ndim == 4:
            parts.insert(0, _enlarged(to_pixels(shown[i : i + 1])[0], scale))
        elif shown is not None:
            black = np.zeros((*parts[0].shape[:2], 3), dtype=np.uint8)
            parts.insert(0, overlay(black, _enlarged(shown[i].cpu().numpy(), scale), card.mask_classes))
        cells.append(_Cell(_beside(parts), text))
    return _sheet(cells, columns, title)


def translation_grid(originals: Tensor, translated: Sequence[tuple[str, Tensor]]) -> Image.Image:
    """One row per image: the original, then its translation into each domain, with the domain above its column."""
    scale = _scale(originals.shape[-1], None)
    columns = [("original", to_pixels(originals)), *((name, to_pixels(images)) for name, images in translated)]
    cells = []
    for i in range(len(originals)):
        cells += [_Cell(_enlarged(pixels[i], scale), name if i == 0 else "") for name, pixels in columns]
    return _sheet(cells, len(columns))
