"""The pipeline's pixels equal those of a slow reference with Pillow and NumPy."""

import io
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from helpers.devices import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mtgen.data.decode import Channels, ImageDecoder
from mtgen.data.geometry import Window, window
from mtgen.data.image_io import dali_problem, header
from mtgen.errors import DataError

Encode = Callable[..., bytes]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colors with some texture, so that a shifted or mirrored result differs clearly."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    noise = np.random.default_rng(seed).integers(0, 30, (height, width, 3))
    return (np.stack([200 * x, 200 * y, 200 * (1 - x) * y], 2) + noise).astype(np.uint8)


def classes(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return ((7 * x + 13 * y) % 11).astype(np.uint8)


def nearest(mask: np.ndarray, region: Window, side: int) -> np.ndarray:
    (x0, y0), (w, h) = region.start[0], region.size[0]
    y = y0 + np.floor((np.arange(side) + 0.5) * h / side).astype(int)
    x = x0 + np.floor((np.arange(side) + 0.5) * w / side).astype(int)
    cut = mask[np.ix_(y, x)]
    return cut[:, ::-1] if region.mirror[0] else cut


def triangular(image: np.ndarray, region: Window, side: int) -> np.ndarray:
    (x0, y0), (w, h) = region.start[0], region.size[0]
    cut = Image.fromarray(image).crop((x0, y0, x0 + w, y0 + h)).resize((side, side), Image.Resampling.BILINEAR)
    pixels = np.asarray(cut).astype(np.float32) / 127.5 - 1
    return pixels[:, ::-1] if region.mirror[0] else pixels


def window_at(x: int, y: int, w: int, h: int, mirror: bool = False) -> Window:
    return Window(np.array([[x, y]], np.int32), np.array([[w, h]], np.int32), np.array([mirror]))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_image_and_mask_equal_the_reference_for_any_window(
    data: st.DataObject, encode: Encode, decoder32: ImageDecoder
) -> None:
    width, height = data.draw(st.integers(2, 90)), data.draw(st.integers(2, 90))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
    region = window_at(x, y, w, h, data.draw(st.booleans()))
    image, mask = picture(height, width), classes(height, width)
    out, labels = decoder32.decode([encode(image)], [encode(mask)], region, str)
    difference = np.abs(out[0].permute(1, 2, 0).numpy() - triangular(image, region, 32))
    assert difference.max() <= 2.1 / 127.5  # both round to 8 bits, twice
    wrong = labels[0].numpy() != nearest(mask, region, 32)
    ties = w % 32 and h % 32  # where a pixel's center falls on an edge, rounding may choose either side
    assert wrong.mean() <= (0.07 if ties else 0.0)


@pytest.fixture(scope="module")
def decoder32() -> ImageDecoder:
    return ImageDecoder(32, "rgb", 1, "cpu", 4)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("mirror", [False, True])
def test_the_mask_is_exact_at_integer_scales(
    factor: int, mirror: bool, encode: Encode, decoder32: ImageDecoder
) -> None:
    side = 32 * factor
    mask, region = classes(side + 5, side + 9), window_at(3, 2, side, side, mirror)
    _, labels = decoder32.decode([encode(picture(side + 5, side + 9))], [encode(mask)], region, str)
    assert np.array_equal(labels[0].numpy(), nearest(mask, region, 32))


@pytest.mark.parametrize("factor", [1, 2])
def test_rectangular_output_has_the_requested_height_and_width(factor: int, encode: Encode) -> None:
    image, mask = picture(50, 110), classes(50, 110)
    region = window_at(7, 1, 48 * factor, 24 * factor, True)
    out, labels = ImageDecoder((24, 48), "rgb", 1, "cpu", 1).decode([encode(image)], [encode(mask)], region, str)
    cut = (
        Image.fromarray(image)
        .crop((7, 1, 7 + 48 * factor, 1 + 24 * factor))
        .resize((48, 24), Image.Resampling.BILINEAR)
    )
    assert np.abs(out[0].permute(1, 2, 0).numpy() - (np.asarray(cut)[:, ::-1] / 127.5 - 1)).max() <= 2.1 / 127.5
    step = slice(factor // 2, None, factor)
    assert np.array_equal(labels[0].numpy(), mask[1 : 1 + 24 * factor, 7 : 7 + 48 * factor][step, step][:, ::-1])


def test_a_window_of_the_same_size_keeps_every_pixel(encode: Encode, decoder32: ImageDecoder) -> None:
    image, mask = picture(40, 50), classes(40, 50)
    out, labels = decoder32.decode([encode(image)], [encode(mask)], window_at(11, 3, 32, 32, True), str)
    assert np.allclose(out[0].permute(1, 2, 0).numpy(), image[3:35, 11:43][:, ::-1] / 127.5 - 1, atol=1e-6)
    assert np.array_equal(labels[0].numpy(), mask[3:35, 11:43][:, ::-1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("form", "options", "furthest", "mean"),
    [("PNG", {}, 2.1, 0.5), ("JPEG", {"subsampling": 0}, 6.0, 1.0), ("JPEG", {"subsampling": 2}, 64.0, 2.0)],
)
def test_a_batch_of_photographs_is_that_of_pillow_on_every_device(
    device: str, form: str, options: dict[str, Any], furthest: float, mean: float
) -> None:
    """A GPU decodes JPEG with nvJPEG, which rounds otherwise, and enlarges halved colors by repetition."""
    sizes, regions = [(40, 50), (64, 33), (90, 120)], [(3, 2, 32, 37), (0, 5, 33, 50), (20, 10, 96, 64)]
    files, masks, references = [], [], []
    windows = [window_at(*region, number == 1) for number, region in enumerate(regions)]
    for number, (height, width) in enumerate(sizes):
        file, mask = io.BytesIO(), io.BytesIO()
        Image.fromarray(picture(height, width, number)).save(file, form, quality=95, **options)
        Image.fromarray(classes(height, width)).save(mask, "PNG")
        files.append(file.getvalue())
        masks.append(mask.getvalue())
        references.append(triangular(np.asarray(Image.open(file).convert("RGB")), windows[number], 32))
    whole = Window(*(np.concatenate([getattr(one, part) for one in windows]) for part in ("start", "size", "mirror")))
    out, labels = ImageDecoder(32, "rgb", 1, device, 4).decode(files, masks, whole, str)
    assert out.device.type == labels.device.type == device
    away = np.abs(out.permute(0, 2, 3, 1).cpu().numpy() - np.stack(references)) * 127.5
    assert away.max() <= furthest and away.mean() <= mean
    expected = nearest(classes(*sizes[2]), windows[2], 32)
    assert (labels[2].cpu().numpy() != expected).mean() == 0.0  # 96 and 64 pixels: no center falls on an edge


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "L", {}),
        ("PNG", "P", {}),
        ("PNG", "1", {}),
        ("PNG", "RGBA", {}),
        ("JPEG", "RGB", {"quality": 90}),
        ("JPEG", "RGB", {"quality": 90, "progressive": True}),
        ("JPEG", "L", {"quality": 90}),
        ("JPEG", "CMYK", {"quality": 90}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGB", {"quality": 90}),
    ],
)
@pytest.mark.parametrize("channels", ["rgb", "gray"])
@pytest.mark.parametrize("whole", [False, True])
def test_every_file_format_and_mode_decodes_as_by_pillow(
    form: str, mode: str, options: dict[str, Any], channels: Channels, whole: bool
) -> None:
    file = io.BytesIO()
    Image.fromarray(picture(32, 32)).convert(mode).save(file, form, **options)
    reference = np.asarray(Image.open(file).convert("RGB" if channels == "rgb" else "L"), dtype=np.float32).reshape(
        32, 32, -1
    )
    out, _ = ImageDecoder(32, channels, 1, "cpu", 1, masks=False, whole=whole).decode(
        [file.getvalue()], [None], window_at(0, 0, 32, 32), str
    )
    assert np.abs((out[0].permute(1, 2, 0).numpy() + 1) * 127.5 - reference).max() <= 1.01


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_windows_are_in_coordinates_of_the_image_as_displayed(orientation: int, form: str) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x112] = orientation
    options: dict[str, Any] = {"JPEG": {"quality": 100, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}}[form]
    Image.fromarray(picture(60, 44)).save(file, form, exif=exif, **options)
    displayed = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    assert header(file.getvalue())[1:] == displayed.size
    out, _ = ImageDecoder(32, "rgb", 1, "cpu", 1, masks=False).decode(
        [file.getvalue()], [None], window_at(5, 9, 32, 32), str
    )
    reference = np.asarray(displayed.crop((5, 9, 37, 41)), dtype=np.float32)
    assert np.abs((out[0].permute(1, 2, 0).numpy() + 1) * 127.5 - reference).max() <= 1.01


def test_a_webp_that_dali_cannot_read_is_detected_without_decoding() -> None:
    exif, seen = Image.Exif(), set()
    exif[0x112] = 6
    for side, lossless in product(range(8, 20), (False, True)):
        file = io.BytesIO()
        Image.fromarray(picture(side, side)).save(file, "WEBP", exif=exif, lossless=lossless)
        data = file.getvalue()
        try:
            ImageDecoder(8, "rgb", 1, "cpu", 1, masks=False).decode([data], [None], window_at(0, 0, 8, 8), str)
        except DataError:
            readable = False
        else:
            readable = True
        assert (dali_problem(data) is None) == readable, f"{side}, lossless: {lossless}"
        seen.add(readable)
    assert seen == {True, False}, "DALI reads all of them now: delete `dali_problem`"


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("orientation", [1, 6])
def test_whole_images_are_equal_with_and_without_cropping(factor: int, orientation: int, encode: Encode) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    shape = (
        (24 * factor, 48 * factor) if orientation == 1 else (48 * factor, 24 * factor)
    )  # as stored; displayed it is 48 by 24
    images = [encode(picture(*shape), exif=exif) for _ in range(3)]
    masks = [encode(classes(24 * factor, 48 * factor)), None, encode(classes(24 * factor, 48 * factor))]
    size = np.array([[48 * factor, 24 * factor]] * 3, np.int32)
    region = Window(np.zeros((3, 2), np.int32), size, np.array([True, False, False]))
    cut, whole = (
        ImageDecoder((24, 48), "rgb", 1, "cpu", 3, whole=whole).decode(images, masks, region, str)
        for whole in (False, True)
    )
    assert torch.equal(cut[0], whole[0]) and torch.equal(cut[1], whole[1])
    assert not torch.equal(whole[0][0], whole[0][1]) and torch.equal(whole[0][1], whole[0][2])


def test_16_bits_per_channel_become_8(decoder32: ImageDecoder) -> None:
    file = io.BytesIO()
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(values).save(file, "PNG")
    out, _ = decoder32.decode([file.getvalue()], [None], window_at(0, 0, 32, 32), str)
    assert np.abs((out[0].permute(1, 2, 0).numpy() + 1) * 127.5 - (values // 257)[..., None]).max() <= 1.01


def test_a_missing_mask_is_unknown_everywhere_and_does_not_affect_its_neighbors(
    encode: Encode, decoder32: ImageDecoder
) -> None:
    images, mask = [encode(picture(40, 40)) for _ in range(3)], encode(classes(40, 40))
    side = np.full(3, 40)
    region = window(side, side, 1.0, False, 0, np.arange(3))
    _, labels = decoder32.decode(images, [mask, None, mask], region, str)
    assert (labels[1] == 255).all()
    assert torch.equal(labels[0], labels[2]) and labels[0].max() == 10


def test_batch_sizes_may_vary(encode: Encode, decoder32: ImageDecoder) -> None:
    data = encode(picture(32, 32))
    for count in (4, 1, 3):
        side = np.full(count, 32)
        out, _ = decoder32.decode(
            [data] * count, [None] * count, window(side, side, 1.0, False, 0, np.arange(count)), str
        )
        assert out.shape == (count, 3, 32, 32)


def test_the_next_batch_does_not_overwrite_results(encode: Encode, decoder32: ImageDecoder) -> None:
    region = window_at(0, 0, 32, 32)
    first, _ = decoder32.decode([encode(picture(32, 32, 1))], [None], region, str)
    before = first.clone()
    decoder32.decode([encode(255 - picture(32, 32, 2))], [None], region, str)
    assert torch.equal(first, before)


@pytest.mark.parametrize(
    ("form", "harm", "message"),
    [
        ("JPEG", lambda data: data[: len(data) // 2], "damaged JPEG"),
        ("JPEG", lambda data: data[:-2], "damaged JPEG"),
        ("PNG", lambda data: data[: len(data) // 2], "damaged PNG"),
        ("PNG", lambda data: data[:-12], "damaged PNG.*IEND"),
        ("WEBP", lambda data: data[: len(data) // 2], "damaged WebP"),
        ("PNG", lambda data: b"not an image" * 9, "not a JPEG, PNG or WebP"),
    ],
)
def test_a_damaged_image_is_named_among_its_neighbors(
    form: str, harm: Callable[[bytes], bytes], message: str, encode: Encode, decoder32: ImageDecoder
) -> None:
    whole = encode(picture(32, 32), form)
    side = np.full(3, 32)
    region = window(side, side, 1.0, False, 0, np.arange(3))
    with pytest.raises(DataError, match=rf"^shard: key1: image: {message}.*mtgen shards validate") as raised:
        decoder32.decode([whole, harm(whole), whole], [None] * 3, region, lambda row: f"shard: key{row}")
    assert "\n" not in str(raised.value)


def test_a_damaged_mask_is_named_as_the_mask(encode: Encode, decoder32: ImageDecoder) -> None:
    with pytest.raises(DataError, match="^row 0: mask: damaged PNG"):
        decoder32.decode(
            [encode(picture(32, 32))], [encode(classes(32, 32))[:60]], window_at(0, 0, 32, 32), lambda row: f"row {row}"
        )


def test_decoding_continues_after_a_damaged_image(encode: Encode, decoder32: ImageDecoder) -> None:
    region, whole = window_at(0, 0, 32, 32), encode(picture(32, 32))
    before, _ = decoder32.decode([whole], [None], region, str)
    with pytest.raises(DataError):
        decoder32.decode([whole[:90]], [None], region, str)
    assert torch.equal(decoder32.decode([whole], [None], region, str)[0], before)
