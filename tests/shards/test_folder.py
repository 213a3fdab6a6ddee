"""The recipe folder: files are stored unchanged with the labels beside them; errors name unusable files."""

import io
import json
import os
import tarfile
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtgen.errors import DataError
from mtgen.shards.input_files import held_out, key_of
from mtgen.shards.make import make, next_steps
from mtgen.shards.validate import validate

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def picture(path: Path, pixels: np.ndarray = PIXELS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def members(folder: Path) -> dict[str, bytes]:
    """Split/name -> bytes of everything in the shards of a data set."""
    found = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                found[f"{shard.name.partition('-')[0]}/{member.name}"] = content.read()
    return found


def test_labels_beside_an_image_are_stored_with_it(tmp_path: Path) -> None:
    image = picture(tmp_path / "in/cat/x.jpg")
    mask = np.array([[0, 1, 255, 2]], np.uint8).repeat(2, 1).repeat(6, 0)
    picture(tmp_path / "in/cat/x.mask.png", mask)
    (tmp_path / "in/cat/x.txt").write_text("eine Kätzin\n", encoding="utf-8")
    (tmp_path / "in/cat/x.json").write_text('{"boxes": [[0, 0, 4.5, 3, 0]], "labels": [0]}')
    with wave.open(str(tmp_path / "in/cat/x.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(100))
    picture(tmp_path / "in/dog/y.webp")
    card = make("folder", tmp_path / "out", images=str(tmp_path / "in"), test=0)
    found = members(tmp_path / "out")
    assert found["train/cat_x-" + key_of("cat/x")[-8:] + ".jpg"] == image.read_bytes()
    key = f"train/{key_of('cat/x')}"
    assert found[f"{key}.cls"] == b"0" and found[f"train/{key_of('dog/y')}.cls"] == b"1"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found[f"{key}.mask.png"]))), mask)
    assert found[f"{key}.txt"].decode() == "eine Kätzin"
    assert json.loads(found[f"{key}.json"]) == {"width": 8, "height": 6, "boxes": [[0, 0, 4.5, 3, 0]], "labels": [0]}
    assert found[f"{key}.wav"] == (tmp_path / "in/cat/x.wav").read_bytes()
    assert (card.classes, card.mask_classes) == (["cat", "dog"], ["class 0", "class 1", "class 2"])
    assert validate(tmp_path / "out").problems == []


def test_split_folders_are_the_splits(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/2.png", "val/a/3.png", "test/b/4.png"):
        picture(tmp_path / "in" / name)
    card = make("folder", tmp_path / "out", images=str(tmp_path / "in"))
    assert {name: split.samples for name, split in card.splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert card.classes == ["a", "b"]


def test_without_split_folders_the_test_split_is_chosen_by_the_seed(tmp_path: Path) -> None:
    for i in range(40):
        picture(tmp_path / f"in/{i:02d}.png")
    names = {}
    for seed in (0, 1):
        card = make("folder", tmp_path / str(seed), seed=seed, images=str(tmp_path / "in"), test=0.3)
        assert card.classes == [] and sum(split.samples for split in card.splits.values()) == 40
        names[seed] = {name for name in members(tmp_path / str(seed)) if name.startswith("test/")}
        assert names[seed] == {f"test/{name}" for name in held_out(seed, [f"{i:02d}.png" for i in range(40)], 0.3)}
        assert len(names[seed]) == 12
    assert names[0] != names[1]


def test_masks_may_be_in_a_parallel_folder_and_have_a_palette(tmp_path: Path) -> None:
    picture(tmp_path / "in/a/x.png")
    mask = Image.fromarray(np.full((6, 8), 1, np.uint8), "P")
    mask.putpalette([0, 0, 0, 255, 0, 0])
    (tmp_path / "masks/a").mkdir(parents=True)
    mask.save(tmp_path / "masks/a/x.png")
    make(
        "folder",
        tmp_path / "out",
        images=str(tmp_path / "in"),
        masks=str(tmp_path / "masks"),
        mask_classes=["ground", "thing"],
        test=0,
    )
    stored = Image.open(io.BytesIO(members(tmp_path / "out")[f"train/{key_of('a/x')}.mask.png"]))
    assert stored.mode == "L" and (np.asarray(stored) == 1).all()


def test_an_image_of_another_format_is_stored_as_png_without_loss(tmp_path: Path) -> None:
    picture(tmp_path / "in/x.bmp")
    make("folder", tmp_path / "out", images=str(tmp_path / "in"), test=0)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(members(tmp_path / "out")["train/x.png"]))), PIXELS)


@pytest.mark.parametrize("suffix", ["tif", "pgm"])
def test_16_bits_stay_16(tmp_path: Path, suffix: str) -> None:
    deep = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    picture(tmp_path / f"in/x.{suffix}", deep)
    make("folder", tmp_path / "out", images=str(tmp_path / "in"), test=0)
    stored = np.asarray(Image.open(io.BytesIO(members(tmp_path / "out")["train/x.png"])))
    assert np.array_equal(stored, deep) and validate(tmp_path / "out").problems == []


def test_a_jpeg_with_a_second_image_in_it_is_a_jpeg(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(PIXELS).save(
        tmp_path / "in/x.jpg", "MPO", save_all=True, append_images=[Image.fromarray(255 - PIXELS)]
    )
    make("folder", tmp_path / "out", images=str(tmp_path / "in"), test=0)
    assert list(members(tmp_path / "out")) == ["train/x.jpg"] and validate(tmp_path / "out").problems == []


def test_names_that_are_not_utf8_and_empty_captions_are_accepted(tmp_path: Path) -> None:
    picture(tmp_path / "in/x.png")
    (tmp_path / "in/x.txt").write_text(" \n")
    os.rename(picture(tmp_path / "in/y.png"), os.fsencode(tmp_path / "in") + b"/caf\xe9.png")
    make("folder", tmp_path / "out", images=str(tmp_path / "in"), test=0)
    assert len(members(tmp_path / "out")) == 2 and validate(tmp_path / "out").problems == []


def test_masks_that_would_be_ignored_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "in/x.png")
    picture(tmp_path / "masks/y_mask.png", PIXELS[..., 0])
    with pytest.raises(DataError, match=r"masks=.*: has no x\.png, nor a mask for any other image"):
        make("folder", tmp_path / "out", images=str(tmp_path / "in"), masks=str(tmp_path / "masks"))
    picture(tmp_path / "in/x.mask.jpg", PIXELS[..., 0])
    with pytest.raises(DataError, match=r"x\.mask\.jpg: has the name of a mask of x\.png, but a mask has to be a PNG"):
        make("folder", tmp_path / "out", images=str(tmp_path / "in"))


def test_an_image_beside_the_split_folders_is_an_error(tmp_path: Path) -> None:
    for name in ("train/cat/a", "test/cat/b", "cover"):
        picture(tmp_path / f"in/{name}.png")
    with pytest.raises(DataError, match=r"cover\.png: is outside the folders train and test"):
        make("folder", tmp_path / "out", images=str(tmp_path / "in"))


def test_a_broken_link_is_named_and_a_folder_is_not_an_image(tmp_path: Path) -> None:
    picture(tmp_path / "in/album.jpg/x.png")
    make("folder", tmp_path / "out", images=str(tmp_path / "in"), test=0)
    assert [content for name, content in members(tmp_path / "out").items() if name.endswith(".cls")] == [b"0"]
    (tmp_path / "in/gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png: is a link to a missing file"):
        make("folder", tmp_path / "other", images=str(tmp_path / "in"))


def test_an_interrupted_run_is_not_resumed_if_its_sources_changed(tmp_path: Path) -> None:
    for name in "abc":
        picture(tmp_path / f"in/{name}.png")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    options = {"images": str(tmp_path / "in"), "test": 0, "samples_per_shard": 1}
    with pytest.raises(KeyboardInterrupt):
        make("folder", tmp_path / "out", progress=stop, **options)
    assert (tmp_path / ".out.partial/train-000000.tar").is_file()
    changed = picture(tmp_path / "in/a.png", 255 - PIXELS)
    make("folder", tmp_path / "out", **options)
    assert members(tmp_path / "out")["train/a.png"] == changed.read_bytes()


INVALID: list[tuple[str, bytes, str]] = [
    ("x.json", b"[1]", "x.json: has to be an object"),
    ("x.json", b"{", "x.json: not valid JSON"),
    ("x.json", b'{"boxes": [["a"]]}', "x.json: a box is"),
    ("x.json", b'{"boxes": [[4, 0, 2, 3, 0]]}', r"x.png: its box \[4, 0, 2, 3, 0\] is not"),
    ("x.json", b'{"boxes": [[0, 0, NaN, 3, 0]]}', "x.png: its box"),
    ("x.json", b'{"boxes": [[0, 0, 2, 3, 0.7]]}', "x.json: box .* the last number, its class"),
    ("x.json", b'{"boxes": [[0, 0, 2, 3, NaN]]}', "x.json: box .* the last number, its class"),
    ("x.json", b'{"width": 80, "height": 60, "boxes": []}', "x.json: is for 80x60 pixels, but x.png has 8x6"),
    ("x.txt", b"caf\xe9", "x.txt: not UTF-8 at byte 3"),
    ("x.mask.png", b"no picture", "x.mask.png: not a JPEG, PNG or WebP file"),
    ("x.wav", b"no sound", "x.png: its sound is not a WAV or FLAC"),
    ("y.jpg", b"no picture", "y.jpg: its image: not a JPEG, PNG or WebP file"),
    ("y.bmp", b"no picture", "y.bmp: damaged image"),
    ("x.webp", b"RIFF", "x.webp: "),
]


@pytest.mark.parametrize(
    ("name", "content", "message"), INVALID, ids=[f"{name}-{content[:12]!r}" for name, content, _ in INVALID]
)
def test_an_unusable_file_is_named_and_nothing_is_left_behind(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    picture(tmp_path / "in/x.png")
    (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        make("folder", tmp_path / "out", images=str(tmp_path / "in"), classes=["a"], test=0)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_two_images_with_the_same_name_are_named(tmp_path: Path) -> None:
    for suffix in ("png", "jpg"):
        picture(tmp_path / f"in/x.{suffix}")
    with pytest.raises(DataError, match="x.png: its key would be 'x', which .*x.jpg has; rename one of them"):
        make("folder", tmp_path / "out", images=str(tmp_path / "in"), test=0)


def test_a_folder_that_is_missing_or_has_no_images_is_named(tmp_path: Path) -> None:
    for images, message in ((tmp_path / "none", "the folder does not exist"), (tmp_path, "no images in it")):
        with pytest.raises(DataError, match=message):
            make("folder", tmp_path / "out", images=str(images))


def test_classes_are_named_by_an_option_or_a_file(tmp_path: Path) -> None:
    picture(tmp_path / "in/x.png")
    picture(tmp_path / "in/x.mask.png", np.array([[0, 1]], np.uint8).repeat(4, 1).repeat(6, 0))
    (tmp_path / "names.txt").write_text("background\nKätzin\n", encoding="utf-8")
    for number, given in enumerate((["background", "Kätzin"], str(tmp_path / "names.txt"))):
        assert (
            make(
                "folder", tmp_path / f"out{number}", images=str(tmp_path / "in"), mask_classes=given, test=0
            ).mask_classes[1]
            == "Kätzin"
        )
    with pytest.raises(DataError, match=r"missing.txt: cannot be read .*one class name per line"):
        make("folder", tmp_path / "none", images=str(tmp_path / "in"), classes=str(tmp_path / "missing.txt"))


def test_the_message_names_the_next_steps_and_unnamed_mask_classes(tmp_path: Path) -> None:
    picture(tmp_path / "in/x.png")
    picture(tmp_path / "in/x.mask.png", np.array([[0, 1]], np.uint8).repeat(4, 1).repeat(6, 0))
    card = make("folder", tmp_path / "out", images=str(tmp_path / "in"), test=0)
    message = next_steps(tmp_path / "out", card)
    assert (
        "1 train. Next: mtgen shards validate" in message
        and "class 0 to class 1" in message
        and "mask_classes=FILE" in message
    )
    assert "mask_classes" not in next_steps(
        tmp_path / "out", card.model_copy(update={"mask_classes": ["background", "cat"]})
    )


def test_all_unusable_images_are_named_at_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        picture(tmp_path / f"in/{name}.png")
    (tmp_path / "in/b.png").write_bytes((tmp_path / "in/b.png").read_bytes()[:40])
    (tmp_path / "in/d.txt").write_bytes(b"\xff")
    picture(tmp_path / "in/a.jpg")
    with pytest.raises(DataError) as error:
        make("folder", tmp_path / "out", images=str(tmp_path / "in"), test=0, samples_per_shard=2)
    lines = str(error.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        str(tmp_path / "in" / name) for name in ("a.png", "b.png", "d.txt")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_if_there_are_many_unusable_images_some_are_named_and_all_are_counted(tmp_path: Path) -> None:
    for number in range(25):
        picture(tmp_path / f"in/{number}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="and 5 more$"):
        make("folder", tmp_path / "out", images=str(tmp_path / "in"), test=0)


def test_a_class_folder_may_be_a_link(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere/x.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/cat").symlink_to(tmp_path / "elsewhere")
    card = make("folder", tmp_path / "out", images=str(tmp_path / "in"), test=0)
    assert (card.classes, card.splits["train"].samples) == (["cat"], 1)


def test_a_circular_link_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "in/cat/x.png")
    (tmp_path / "in/cat/again").symlink_to(tmp_path / "in")
    with pytest.raises(DataError, match="cat/again: is a link to a folder that contains it; remove it"):
        make("folder", tmp_path / "out", images=str(tmp_path / "in"), test=0)
