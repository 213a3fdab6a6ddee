"""COCO's JSON files become shards: boxes, masks, labels and captions as annotated, and clear words for what does not fit together."""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtgen.errors import ConfigError, DataError
from mtgen.shards.input_files import share
from mtgen.shards.make import make
from mtgen.shards.validate import validate

WIDTH, HEIGHT = 8, 6


def thing(number: int, category: int, box: list[float], image: int = 7, **more: Any) -> dict[str, Any]:
    """An annotation whose segmentation is its box."""
    x, y, w, h = box
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": w * h,
        "segmentation": [corners],
    } | more


def instances(*things: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": list(things),
    }


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """Options of the recipe: a folder with the image a.jpg, and the path of the instances."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(
        tmp_path / "images/a.jpg"
    )
    return {"images": str(tmp_path / "images"), "instances": str(tmp_path / "instances.json"), "split": "train"}


def made(given: dict[str, Any], contents: dict[str, Any]) -> dict[str, bytes]:
    """Name -> bytes of everything in the shards that are made from `contents`, which `validate` finds nothing wrong with."""
    Path(given["instances"]).write_text(json.dumps(contents), encoding="utf-8")
    out = Path(given["instances"]).with_name("out")
    make("coco", out, **given)
    assert validate(out).problems == []
    found = {}
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                found[f"{shard.name.partition('-')[0]}/{member.name}"] = content.read()
    return found


def mask(found: dict[str, bytes]) -> list[list[int]]:
    return np.asarray(Image.open(io.BytesIO(found["train/a.mask.png"]))).tolist()


def about(found: dict[str, bytes]) -> dict[str, Any]:
    return json.loads(found["train/a.json"])


def test_boxes_and_labels_are_in_classes_numbered_by_rising_category_id(given: dict[str, Any]) -> None:
    found = made(given, instances(thing(1, 18, [1, 2, 3.5, 2]), thing(2, 3, [0, 0, 8, 6])))
    assert about(found) == {"width": 8, "height": 6, "boxes": [[1, 2, 4.5, 4, 1], [0, 0, 8, 6, 0]], "labels": [0, 1]}
    card = json.loads((Path(given["instances"]).with_name("out") / "dataset.json").read_text())
    assert (card["classes"], card["mask_classes"]) == (["car", "dog"], ["background", "car", "dog"])


def test_the_image_file_is_stored_as_it_is(given: dict[str, Any]) -> None:
    assert made(given, instances())["train/a.jpg"] == (Path(given["images"]) / "a.jpg").read_bytes()


@pytest.mark.parametrize("reverse", [False, True])
def test_in_the_mask_the_smaller_thing_is_in_front(given: dict[str, Any], reverse: bool) -> None:
    things = [thing(1, 18, [2, 1, 3, 2]), thing(2, 3, [1, 0, 6, 5])]
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[0:5, 1:7] = 1
    expected[1:3, 2:5] = 2
    assert mask(made(given, instances(*(reversed(things) if reverse else things)))) == expected.tolist()


@pytest.mark.parametrize("counts", ["8240l0", [8, 2, 4, 2, 32]], ids=["compressed", "plain"])
def test_a_crowd_is_unknown_in_the_mask_and_no_box_but_a_label(given: dict[str, Any], counts: str | list[int]) -> None:
    crowd = thing(1, 3, [1, 2, 2, 2], iscrowd=1, segmentation={"size": [HEIGHT, WIDTH], "counts": counts})
    found = made(given, instances(crowd, thing(2, 18, [5, 0, 1, 1])))
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[2:4, 1:3] = 255
    expected[0, 5] = 2
    assert mask(found) == expected.tolist()
    assert about(found)["boxes"] == [[5, 0, 6, 1, 1]] and about(found)["labels"] == [0, 1]


def test_a_thing_without_segmentation_leaves_its_box_unknown_in_the_mask(given: dict[str, Any]) -> None:
    values = np.asarray(
        mask(made(given, instances(thing(1, 3, [0, 0, 2, 2]), thing(2, 3, [4, 1, 2, 3], segmentation=[]))))
    )
    assert (values[1:4, 4:6] == 255).all() and (values == 255).sum() == 6 and (values == 1).sum() == 4


def test_boxes_alone_make_no_masks(given: dict[str, Any]) -> None:
    found = made(given, instances(thing(1, 3, [0, 0, 2, 2], segmentation=[])))
    assert sorted(found) == ["train/a.jpg", "train/a.json"]


def test_masks_can_be_left_out(given: dict[str, Any]) -> None:
    assert "train/a.mask.png" not in made(given | {"masks": False}, instances(thing(1, 3, [0, 0, 2, 2])))


def test_a_box_is_cut_at_the_images_edges_and_left_out_where_nothing_is_left(given: dict[str, Any]) -> None:
    found = made(given, instances(thing(1, 3, [-1, 4, 3, 2.5]), thing(2, 18, [2, 2, 0, 3])))
    assert about(found)["boxes"] == [[0, 4, 2, 6, 0]] and about(found)["labels"] == [0, 1]


def test_an_image_without_annotations_has_nothing_to_be_found(given: dict[str, Any]) -> None:
    contents = instances(thing(1, 3, [0, 0, 2, 2]))
    contents["images"].append({"id": 8, "file_name": "b.png", "width": 3, "height": 2})
    Image.new("L", (3, 2)).save(Path(given["images"]) / "b.png")
    found = made(given, contents)
    assert json.loads(found["train/b.json"]) == {"width": 3, "height": 2, "boxes": [], "labels": []}
    assert not np.asarray(Image.open(io.BytesIO(found["train/b.mask.png"]))).any()


def test_the_first_caption_of_an_image_is_stored(given: dict[str, Any], tmp_path: Path) -> None:
    entries = [
        {"image_id": 9, "caption": "not ours"},
        {"image_id": 7, "caption": "a café \n"},
        {"image_id": 7, "caption": "second"},
    ]
    images = [{"id": 9, "file_name": "z.jpg", "width": 1, "height": 1}]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": entries}))
    found = made(given | {"captions": str(tmp_path / "captions.json")}, instances())
    assert found["train/a.txt"].decode() == "a café"


def test_without_a_split_a_share_is_split_off_by_the_seed(given: dict[str, Any]) -> None:
    contents = instances()
    contents["images"] = [{"id": i, "file_name": f"sub/{i}.png", "width": 2, "height": 2} for i in range(20)]
    (Path(given["images"]) / "sub").mkdir()
    for i in range(20):
        Image.new("L", (2, 2), i).save(Path(given["images"]) / f"sub/{i}.png")
    del given["split"]
    found = made(given | {"test": 0.4}, contents)
    images = {name.split("/sub_")[1].split("-")[0]: name.split("/")[0] for name in found if name.endswith(".png")}
    assert images == {str(i): "test" if share(0, f"sub/{i}.png") < 0.4 else "train" for i in range(20)}


def test_a_split_and_a_share_contradict_each_other(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split=train takes all samples, which leaves no share for test=0.3"):
        make("coco", tmp_path / "out", **given, test=0.3)


def altered(**changes: Any) -> dict[str, Any]:
    return instances() | changes


RUNS = {"size": [HEIGHT, WIDTH], "counts": [48]}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "image file missing": (
        altered(images=[{"id": 4, "file_name": "none.jpg", "width": 8, "height": 6}]),
        r"instances.json: image 4: there is no file .*/images/none.jpg",
    ),
    "image file elsewhere": (
        altered(images=[{"id": 4, "file_name": "../instances.json", "width": 8, "height": 6}]),
        r"image 4: '../instances.json' leads out of",
    ),
    "image of another size": (
        altered(images=[{"id": 4, "file_name": "a.jpg", "width": 6, "height": 8}]),
        r"a.jpg: 8x6, and instances.json says 6x8 \(image 4\)",
    ),
    "image id twice": (altered(images=instances()["images"] * 2), "two images have the id 7"),
    "no images": (altered(images=[]), "instances.json: names no images"),
    "category id twice": (
        altered(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]),
        "two categories have the id 1",
    ),
    "more categories than a mask holds": (
        instances(thing(1, 3, [0, 0, 2, 2])) | {"categories": [{"id": i, "name": str(i)} for i in range(255)]},
        "255 categories, and a mask has room for 254; masks=false",
    ),
    "category unknown": (
        instances(thing(5, 4, [0, 0, 2, 2])),
        r"annotations.0 \(id 5\): category_id 4 is none of the file's categories",
    ),
    "annotation without image": (
        instances(thing(5, 3, [0, 0, 2, 2], image=8)),
        r"annotations.0 \(id 5\): image_id 8 is none of the file's images",
    ),
    "box reversed": (instances(thing(5, 3, [4, 4, -2, 2])), "annotation 5 of image 7: reversed box"),
    "box outside": (
        instances(thing(5, 3, [9, 1, 2, 2])),
        "annotation 5 of image 7: box from .* outside its image of 8x6",
    ),
    "box NaN": (
        instances(thing(5, 3, [0, 0, 2, 2], bbox=[0, 0, float("nan"), 2])),
        "instances.json: annotations.0.bbox: ",
    ),
    "annotation that is no object": (altered(annotations=[3]), "instances.json: annotations.0: not an object$"),
    "box of three": (
        instances(thing(5, 3, [0, 0, 2, 2], bbox=[0, 0, 2])),
        "instances.json: annotations.0.bbox: field required",
    ),
    "box missing": (
        instances({"id": 5, "image_id": 7, "category_id": 3}),
        "instances.json: annotations.0.bbox: field required",
    ),
    "polygon of text": (
        instances(thing(5, 3, [0, 0, 2, 2], segmentation=[["x"]])),
        "instances.json: annotations.0.segmentation: ",
    ),
    "polygon of half points": (
        instances(thing(5, 3, [0, 0, 2, 2], segmentation=[[1, 2, 3]])),
        "annotation 5 of image 7: a polygon of 3",
    ),
    "runs of another size": (
        instances(thing(5, 3, [0, 0, 2, 2], segmentation=RUNS | {"size": [8, 6]})),
        "annotation 5 of image 7: a segmentation of 6x8, its image has 8x6",
    ),
    "runs too short": (
        instances(thing(5, 3, [0, 0, 2, 2], segmentation=RUNS | {"counts": [40]})),
        "annotation 5 of image 7: run lengths .* they add up to 40",
    ),
    "runs damaged": (
        instances(thing(5, 3, [0, 0, 2, 2], segmentation=RUNS | {"counts": "52 "})),
        "annotation 5 of image 7: not a compressed run length",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_together_is_named_in_one_line_and_nothing_is_left(
    given: dict[str, Any], tmp_path: Path, name: str
) -> None:
    contents, message = WRONG[name]
    with pytest.raises(DataError, match=message) as error:
        made(given, contents)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "instances.json"]


TEXTS = {
    b"": "not readable as JSON",
    b"{": "not readable as JSON",
    b"\xff\xfe{}": "not readable as JSON",
    b"[" * 100_000: "not readable as JSON",
    b"[1]": "not an object; the file has to be an object with the lists images and categories and annotations",
    b'{"images": 3}': "images: input should be a valid list; the file has to be",
    b'{"images": [], "annotations": []}': "categories: field required; the file has to be",
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:20]))
def test_json_that_is_broken_or_of_another_kind_is_named_in_one_line(
    given: dict[str, Any], tmp_path: Path, text: bytes
) -> None:
    Path(given["instances"]).write_bytes(text)
    with pytest.raises(DataError, match="^" + re.escape(f"{given['instances']}: {TEXTS[text]}")) as error:
        make("coco", tmp_path / "out", **given)
    assert "\n" not in str(error.value)


def test_fields_that_are_not_used_may_hold_anything(given: dict[str, Any]) -> None:
    found = made(
        given, instances(thing(1, 3, [0, 0, 2, 2], score=float("nan"), attributes={"worn": None}, keypoints=[1e400]))
    )
    assert about(found)["boxes"] == [[0, 0, 2, 2, 0]]


def test_files_that_are_not_there_are_named(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"instances.json: cannot be read \(No such file"):
        make("coco", tmp_path / "out", **given)
    with pytest.raises(DataError, match="images=nowhere: there is no such folder"):
        make("coco", tmp_path / "out", **given | {"images": "nowhere"})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"image_id": 8, "caption": "x"}], r"annotations.0: image_id 8 is none of the file's images"),
        ([], "no caption in it is of an image of the instances"),
        ([{"image_id": 7}], "captions.json: annotations.0.caption: field required"),
        ([{"image_id": 7, "caption": "half of a pair: \ud800"}], "captions.json: annotations.0.caption: .*unicode"),
    ],
)
def test_captions_that_belong_to_no_image_are_refused(
    given: dict[str, Any], tmp_path: Path, entries: list[Any], message: str
) -> None:
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": entries}))
    with pytest.raises(DataError, match=message):
        made(given | {"captions": str(tmp_path / "captions.json")}, instances())


def test_two_images_of_one_name_are_named(given: dict[str, Any]) -> None:
    twice = [{"id": i, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT} for i in (1, 2)]
    with pytest.raises(DataError, match="its key would be 'a', which .*a.jpg has"):
        made(given, altered(images=twice))


def test_two_processes_make_the_bytes_of_one(given: dict[str, Any], tmp_path: Path) -> None:
    contents = instances(thing(1, 3, [0, 0, 2, 2]))
    contents["images"].append({"id": 8, "file_name": "b.png", "width": 3, "height": 2})
    Image.new("L", (3, 2)).save(Path(given["images"]) / "b.png")
    Path(given["instances"]).write_text(json.dumps(contents))
    for processes in (1, 2):
        make("coco", tmp_path / str(processes), processes=processes, samples_per_shard=1, **given)
    shards = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "12"]
    assert shards[0] == shards[1] and len(shards[0]) == 3
