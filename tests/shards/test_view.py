"""The page shows the samples, is self-contained, and runs no code of the data set."""

import base64
import hashlib
import io
import json
import wave
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from typer.testing import CliRunner

from mtgen.cli import app
from mtgen.errors import ConfigError, DataError
from mtgen.shards.view import MAX_SOUND_BYTES, MAX_VIEW_SIDE_PIXELS, view

Write = Callable[..., Path]
RNG = np.random.default_rng(0)
SMALL = RNG.integers(0, 256, (8, 12, 3), np.uint8)
CARD = {"name": "set", "classes": ["cat", "dog"], "mask_classes": ["background", "cat"]}


def encoded(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def wav(frames: int = 80) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(2 * frames))
    return file.getvalue()


def boxes(*rows: Any) -> bytes:
    return json.dumps({"boxes": rows}).encode()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(sample, ..., **card)`: a data set of one split; a sample is `{suffix: bytes}`."""

    def written(*samples: dict[str, Any], **card: Any) -> Path:
        folder = tmp_path / "data"
        folder.mkdir()
        with webdataset.TarWriter(str(folder / "train-0.tar"), encoder=False) as tar:
            for number, sample in enumerate(samples):
                tar.write(
                    {"__key__": f"{number:03d}", **({} if "jpg" in sample else {"png": encoded(SMALL)}), **sample}
                )
        content = {**CARD, "splits": {"train": {"samples": len(samples), "shards": "train-0.tar"}}, **card}
        (folder / "dataset.json").write_text(json.dumps(content))
        return folder

    return written


class Page(HTMLParser):
    """The parsed page: elements with their attributes, and all text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.script = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.script += data
        elif self.inside != "style":
            self.text += data

    def all(self, tag: str, css_class: str | None = None) -> list[dict[str, str | None]]:
        """The attributes of all elements with a tag and, if given, a CSS class."""
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and (css_class is None or css_class in (attributes.get("class") or "").split())
        ]

    def file(self, tag: str, css_class: str | None = None) -> bytes:
        """The bytes in the data URI of the first such element."""
        return base64.b64decode((self.all(tag, css_class)[0]["src"] or "").partition(",")[2])


def page(folder: Path, **options: Any) -> Page:
    return Page(view(folder, out=folder.parent / "page.html", **options))


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7*7 }} &amp;"


def test_hostile_text_is_escaped_and_only_the_pages_script_may_run(write: Write) -> None:
    sample = {"__key__": 'k"><script>', "cls": b"0", "txt": HOSTILE.encode(), "json": boxes([0, 0, 4, 4, 0])}
    shown = page(write(sample, name=HOSTILE, classes=[HOSTILE], mask_classes=[], source=HOSTILE, licence=HOSTILE))
    assert shown.text.count(HOSTILE) >= 5 and 'k"><script>' in shown.text
    assert len(shown.all("script")) == 1 and "alert" not in shown.script
    assert not [name for _, attributes in shown.elements for name in attributes if name.startswith("on")]
    digest = base64.b64encode(hashlib.sha256(shown.script.encode()).digest()).decode()
    policy = shown.all("meta")[1]["content"] or ""
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_the_page_is_self_contained(write: Write) -> None:
    shown = page(write({"txt": b"see https://example.org/x.png", "wav": wav(), "mask.png": encoded(SMALL[..., 0] % 2)}))
    links = [
        value
        for _, attributes in shown.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "poster", "data")
    ]
    assert len(links) == 3 and all((link or "").startswith("data:") for link in links)
    assert "url(" not in shown.source and "@import" not in shown.source and "fetch" not in shown.script


def test_a_small_image_is_lossless_and_a_large_one_is_reduced(write: Write) -> None:
    shown = page(write({}, {"jpg": encoded(np.zeros((600, 1200), np.uint8), "JPEG")}))
    assert (pixels(shown.file("img")) == SMALL).all()
    large = base64.b64decode((shown.all("img")[1]["src"] or "").partition(",")[2])
    assert Image.open(io.BytesIO(large)).size == (MAX_VIEW_SIDE_PIXELS, MAX_VIEW_SIDE_PIXELS // 2)
    assert "aspect-ratio:1200/600" in (shown.all("div", "picture")[1]["style"] or "")


def test_exif_orientation_is_applied(write: Write) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    shown = page(write({"jpg": encoded(SMALL, "JPEG", exif=exif)}))
    upright = Image.open(io.BytesIO(shown.file("img")))
    assert upright.size == (8, 12) and 0x0112 not in upright.getexif()


def test_background_is_transparent_and_other_mask_classes_are_colored(write: Write) -> None:
    mask = np.array([[0, 1, 255]] * 8, np.uint8).repeat(4, 1)
    shown = page(write({"mask.png": encoded(mask)}))
    drawn = np.asarray(Image.open(io.BytesIO(shown.file("img", "mask"))).convert("RGBA"))
    assert drawn.shape == (8, 12, 4)
    assert (drawn[mask == 0, 3] == 0).all() and (drawn[mask > 0, 3] == 255).all()
    (color,) = {tuple(value) for value in drawn[mask == 1, :3].tolist()}
    assert [chip["style"] for chip in shown.all("span", "chip")] == [
        "background:#{:02x}{:02x}{:02x}".format(*color),
        "background:#888888",
    ]


def test_boxes_are_drawn_at_their_coordinates(write: Write) -> None:
    shown = page(write({"json": boxes([3, 2, 9, 8, 1])}, {"json": boxes()}, {}))
    (rect,) = [attributes for attributes in shown.all("rect") if "stroke" in attributes]
    assert [rect[name] for name in ("x", "y", "width", "height")] == ["25.0", "25.0", "50.0", "75.0"]
    assert shown.text.count("no objects") == 1
    assert [item["data-classes"] for item in shown.all("li") if "data-classes" in item] == [" 1 ", "  ", "  "]


def test_sound_is_embedded_as_stored_unless_it_is_too_large(write: Write) -> None:
    shown = page(write({"wav": wav()}, {"wav": wav(MAX_SOUND_BYTES)}))
    assert shown.file("audio") == wav() and len(shown.all("audio")) == 1
    assert "sound: 4.0 MB, too large for this page" in shown.text


def test_damaged_components_are_named_and_the_rest_is_shown(write: Write) -> None:
    image, mask = encoded(SMALL), encoded(SMALL[..., 0] % 2)
    damaged = {"png": image.replace(b"IDAT", b"IDAT\xff\xff"), "mask.png": mask.replace(b"IDAT", b"IDAT\xff\xff")}
    bad = {**damaged, "json": b"{", "txt": b"\xff"}
    shown = page(write(bad, {"txt": b"a whole one"}))
    assert [kind for kind in ("image", "mask", "boxes", "caption") if f"{kind}: " in shown.text] == [
        "image",
        "mask",
        "boxes",
        "caption",
    ]
    assert "a whole one" in shown.text and len(shown.all("img")) == 1


def test_samples_with_problems_are_left_out_and_counted(write: Write) -> None:
    shown = page(write({}, {"png": b"x"}))
    assert "1 problem: mtgen shards validate lists it" in shown.text and len(shown.all("div", "picture")) == 1


@pytest.mark.parametrize(
    "form", [np.zeros((8, 12, 4), np.uint8), np.zeros((8, 12), np.uint16), np.zeros((8, 12), np.bool_)]
)
def test_images_of_other_bit_depths_are_shown(form: np.ndarray, write: Write) -> None:
    shown = page(write({"png": encoded(form)}))
    assert pixels(shown.file("img")).dtype == np.uint8 and not shown.all("p", "problem")


@pytest.mark.parametrize(("mode", "form"), [("P", "png"), ("CMYK", "jpg"), ("L", "png"), ("RGBA", "png")])
def test_images_are_shown_in_their_colors(mode: str, form: str, write: Write) -> None:
    colors = Image.fromarray(np.array([[[230, 20, 20], [20, 20, 230]]], np.uint8)).resize(
        (32, 16), Image.Resampling.NEAREST
    )
    if mode == "L":
        colors = colors.convert("L")
    file = io.BytesIO()
    (colors.quantize(4) if mode == "P" else colors.convert(mode)).save(file, {"png": "PNG", "jpg": "JPEG"}[form])
    found = pixels(page(write({form: file.getvalue()})).file("img"))
    for column in (4, 27):
        assert np.abs(found[8, column].astype(int) - np.asarray(colors)[8, column]).max() < 30


def test_the_choice_of_samples_is_a_function_of_the_seed(write: Write) -> None:
    folder = write(*({"txt": f"sample-{number};".encode()} for number in range(40)))
    one, again, other = (page(folder, n=10, seed=seed) for seed in (0, 0, 1))
    assert one.source == again.source and one.text != other.text
    assert len(one.all("div", "picture")) == 10 and "10 of 40 samples" in one.text
    assert len(page(folder, n=99).all("div", "picture")) == 40


def test_the_command_writes_a_page_named_for_the_split(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write({}, name="my set/1")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["shards", "view", str(folder), "-n", "5"])
    assert done.exit_code == 0 and "wrote my_set_1-train.html" in done.stdout
    assert (tmp_path / "my_set_1-train.html").is_file()


def test_files_other_than_html_are_never_overwritten(write: Write) -> None:
    folder = write({})
    before = (folder / "dataset.json").read_bytes()
    with pytest.raises(ConfigError, match=r"dataset.json: the page is an HTML file"):
        view(folder, out=folder / "dataset.json")
    assert (folder / "dataset.json").read_bytes() == before


def test_a_page_that_is_not_writable_is_one_clear_error(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"page.html: cannot be written \(No such file or directory\)"):
        view(write({}), out=tmp_path / "nowhere/page.html")


def test_an_unknown_split_is_one_clear_error(write: Write) -> None:
    with pytest.raises(DataError, match="no split 'tran'.*train"):
        view(write({}), "tran")
