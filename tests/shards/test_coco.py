"""The recipe coco: boxes, masks, labels and captions as annotated, and clear errors for inconsistent files."""

import io
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtgen.errors import ConfigError, DataError
from mtgen.shards.input_files import held_out
from mtgen.shards.make import BadSamples, make
from mtgen.shards.validate import validate

WIDTH, HEIGHT = 8, 6


def annotation(number: int, category: int, box: list[float], image: int = 7, **more: Any) -> dict[str, Any]:
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


def instances(*annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": list(annotations),
    }


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Options of the recipe: a folder with the image a.jpg, and the path of the instances file."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(
        tmp_path / "images/a.jpg"
    )
    return {"images": str(tmp_path / "images"), "instances": str(tmp_path / "instances.json"), "split": "train"}


def make_shards(options: dict[str, Any], contents: dict[str, Any]) -> dict[str, bytes]:
    """Make valid shards from `contents`; returns name -> bytes of everything in them."""
    Path(options["instances"]).write_text(json.dumps(contents), encoding="utf-8")
    out = Path(options["instances"]).with_name("out")
    make("coco", out, **options)
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


def annotations_of(found: dict[str, bytes]) -> dict[str, Any]:
    return json.loads(found["train/a.json"])


def test_classes_are_numbered_in_the_order_of_the_category_ids(options: dict[str, Any]) -> None:
    found = make_shards(options, instances(annotation(1, 18, [1, 2, 3.5, 2]), annotation(2, 3, [0, 0, 8, 6])))
    assert annotations_of(found) == {
        "width": 8,
        "height": 6,
        "boxes": [[1, 2, 4.5, 4, 1], [0, 0, 8, 6, 0]],
        "labels": [0, 1],
    }
    card = json.loads((Path(options["instances"]).with_name("out") / "dataset.json").read_text())
    assert (card["classes"], card["mask_classes"]) == (["car", "dog"], ["background", "car", "dog"])


def test_the_image_file_is_stored_unchanged(options: dict[str, Any]) -> None:
    assert make_shards(options, instances())["train/a.jpg"] == (Path(options["images"]) / "a.jpg").read_bytes()


@pytest.mark.parametrize("reverse", [False, True])
def test_in_the_mask_smaller_objects_are_in_front(options: dict[str, Any], reverse: bool) -> None:
    annotations = [annotation(1, 18, [2, 1, 3, 2]), annotation(2, 3, [1, 0, 6, 5])]
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[0:5, 1:7] = 1
    expected[1:3, 2:5] = 2
    assert (
        mask(make_shards(options, instances(*(reversed(annotations) if reverse else annotations)))) == expected.tolist()
    )


@pytest.mark.parametrize("counts", ["8240l0", [8, 2, 4, 2, 32]], ids=["compressed", "plain"])
def test_a_crowd_is_unknown_in_the_mask_and_has_a_label_but_no_box(
    options: dict[str, Any], counts: str | list[int]
) -> None:
    crowd = annotation(1, 3, [1, 2, 2, 2], iscrowd=1, segmentation={"size": [HEIGHT, WIDTH], "counts": counts})
    found = make_shards(options, instances(crowd, annotation(2, 18, [5, 0, 1, 1])))
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[2:4, 1:3] = 255
    expected[0, 5] = 2
    assert mask(found) == expected.tolist()
    assert annotations_of(found)["boxes"] == [[5, 0, 6, 1, 1]] and annotations_of(found)["labels"] == [0, 1]


def test_without_a_segmentation_the_box_is_unknown_in_the_mask(options: dict[str, Any]) -> None:
    values = np.asarray(
        mask(
            make_shards(
                options, instances(annotation(1, 3, [0, 0, 2, 2]), annotation(2, 3, [4, 1, 2, 3], segmentation=[]))
            )
        )
    )
    assert (values[1:4, 4:6] == 255).all() and (values == 255).sum() == 6 and (values == 1).sum() == 4


def test_without_segmentations_there_are_no_masks(options: dict[str, Any]) -> None:
    found = make_shards(options, instances(annotation(1, 3, [0, 0, 2, 2], segmentation=[])))
    assert sorted(found) == ["train/a.jpg", "train/a.json"]


def test_masks_can_be_left_out(options: dict[str, Any]) -> None:
    assert "train/a.mask.png" not in make_shards(options | {"masks": False}, instances(annotation(1, 3, [0, 0, 2, 2])))


def test_boxes_are_clipped_to_the_image_and_dropped_if_empty(options: dict[str, Any]) -> None:
    found = make_shards(options, instances(annotation(1, 3, [-1, 4, 3, 2.5]), annotation(2, 18, [2, 2, 0, 3])))
    assert annotations_of(found)["boxes"] == [[0, 4, 2, 6, 0]] and annotations_of(found)["labels"] == [0, 1]


def test_an_image_without_annotations_has_no_objects(options: dict[str, Any]) -> None:
    contents = instances(annotation(1, 3, [0, 0, 2, 2]))
    contents["images"].append({"id": 8, "file_name": "b.png", "width": 3, "height": 2})
    Image.new("L", (3, 2)).save(Path(options["images"]) / "b.png")
    found = make_shards(options, contents)
    assert json.loads(found["train/b.json"]) == {"width": 3, "height": 2, "boxes": [], "labels": []}
    assert not np.asarray(Image.open(io.BytesIO(found["train/b.mask.png"]))).any()


def test_the_first_caption_of_an_image_is_stored(options: dict[str, Any], tmp_path: Path) -> None:
    entries = [
        {"image_id": 9, "caption": "of another image"},
        {"image_id": 7, "caption": "a café \n"},
        {"image_id": 7, "caption": "second"},
    ]
    images = [{"id": 9, "file_name": "z.jpg", "width": 1, "height": 1}]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": entries}))
    found = make_shards(options | {"captions": str(tmp_path / "captions.json")}, instances())
    assert found["train/a.txt"].decode() == "a café"


def test_without_a_split_the_test_split_is_chosen_by_the_seed(options: dict[str, Any]) -> None:
    contents = instances()
    contents["images"] = [{"id": i, "file_name": f"sub/{i}.png", "width": 2, "height": 2} for i in range(20)]
    (Path(options["images"]) / "sub").mkdir()
    for i in range(20):
        Image.new("L", (2, 2), i).save(Path(options["images"]) / f"sub/{i}.png")
    del options["split"]
    found = make_shards(options | {"test": 0.4}, contents)
    images = {name.split("/sub_")[1].split("-")[0]: name.split("/")[0] for name in found if name.endswith(".png")}
    chosen = held_out(0, [f"sub/{i}.png" for i in range(20)], 0.4)
    assert images == {str(i): "test" if f"sub/{i}.png" in chosen else "train" for i in range(20)} and len(chosen) == 8


def test_split_and_test_exclude_each_other(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split=train puts all samples into one split, which excludes test=0.3"):
        make("coco", tmp_path / "out", **options, test=0.3)


def altered(**changes: Any) -> dict[str, Any]:
    return instances() | changes


RUNS = {"size": [HEIGHT, WIDTH], "counts": [48]}
INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "image file missing": (
        altered(images=[{"id": 4, "file_name": "none.jpg", "width": 8, "height": 6}]),
        r"instances.json: image 4: the file .*/images/none.jpg does not exist",
    ),
    "image file outside": (
        altered(images=[{"id": 4, "file_name": "../instances.json", "width": 8, "height": 6}]),
        r"image 4: '../instances.json' is outside",
    ),
    "image of another size": (
        altered(images=[{"id": 4, "file_name": "a.jpg", "width": 6, "height": 8}]),
        r"a.jpg: 8x6 pixels, but 6x8 in instances.json \(image 4\)",
    ),
    "image id twice": (altered(images=instances()["images"] * 2), "images: the id 7 occurs twice"),
    "no images": (altered(images=[]), "instances.json: its list of images is empty"),
    "category id twice": (
        altered(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]),
        "categories: the id 1 occurs twice",
    ),
    "more categories than a mask can have": (
        instances(annotation(1, 3, [0, 0, 2, 2])) | {"categories": [{"id": i, "name": str(i)} for i in range(255)]},
        "255 categories, but a mask can only have 254; masks=false",
    ),
    "category unknown": (
        instances(annotation(5, 4, [0, 0, 2, 2])),
        r"annotations.0 \(id 5\): category_id 4 is not in 'categories'",
    ),
    "annotation without image": (
        instances(annotation(5, 3, [0, 0, 2, 2], image=8)),
        r"annotations.0 \(id 5\): image_id 8 is not in 'images'",
    ),
    "box reversed": (instances(annotation(5, 3, [4, 4, -2, 2])), "annotation 5 of image 7: a reversed box"),
    "box outside": (
        instances(annotation(5, 3, [9, 1, 2, 2])),
        "annotation 5 of image 7: a box from .* outside its image of 8x6",
    ),
    "box NaN": (
        instances(annotation(5, 3, [0, 0, 2, 2], bbox=[0, 0, float("nan"), 2])),
        "instances.json: annotations.0.bbox: ",
    ),
    "annotation that is not an object": (altered(annotations=[3]), "instances.json: annotations.0: not an object$"),
    "box of three": (
        instances(annotation(5, 3, [0, 0, 2, 2], bbox=[0, 0, 2])),
        "instances.json: annotations.0.bbox: field required",
    ),
    "box missing": (
        instances({"id": 5, "image_id": 7, "category_id": 3}),
        "instances.json: annotations.0.bbox: field required",
    ),
    "polygon of text": (
        instances(annotation(5, 3, [0, 0, 2, 2], segmentation=[["x"]])),
        "instances.json: annotations.0.segmentation: ",
    ),
    "polygon with half a point": (
        instances(annotation(5, 3, [0, 0, 2, 2], segmentation=[[1, 2, 3]])),
        "annotation 5 of image 7: a polygon with 3",
    ),
    "runs of another size": (
        instances(annotation(5, 3, [0, 0, 2, 2], segmentation=RUNS | {"size": [8, 6]})),
        "annotation 5 of image 7: a segmentation of 6x8, its image has 8x6",
    ),
    "runs too short": (
        instances(annotation(5, 3, [0, 0, 2, 2], segmentation=RUNS | {"counts": [40]})),
        "annotation 5 of image 7: run lengths that add up to 40",
    ),
    "runs damaged": (
        instances(annotation(5, 3, [0, 0, 2, 2], segmentation=RUNS | {"counts": "52 "})),
        "annotation 5 of image 7: not a compressed run length",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_inconsistent_files_are_named_in_one_line_and_nothing_is_left_behind(
    options: dict[str, Any], tmp_path: Path, name: str
) -> None:
    contents, message = INVALID[name]
    with pytest.raises(DataError, match=message) as error:
        make_shards(options, contents)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "instances.json"]


INVALID_JSON = {
    b"": "not valid JSON",
    b"{": "not valid JSON",
    b"\xff\xfe{}": "not valid JSON",
    b"[" * 100_000: "not valid JSON",
    b"[1]": "not an object; the file has to be an object with the lists images and categories and annotations",
    b'{"images": 3}': "images: input should be a valid list; the file has to be",
    b'{"images": [], "annotations": []}': "categories: field required; the file has to be",
}


@pytest.mark.parametrize("text", INVALID_JSON, ids=lambda text: repr(text[:20]))
def test_invalid_json_is_named_in_one_line(options: dict[str, Any], tmp_path: Path, text: bytes) -> None:
    Path(options["instances"]).write_bytes(text)
    with pytest.raises(DataError, match="^" + re.escape(f"{options['instances']}: {INVALID_JSON[text]}")) as error:
        make("coco", tmp_path / "out", **options)
    assert "\n" not in str(error.value)


def test_unused_fields_may_have_any_value(options: dict[str, Any]) -> None:
    found = make_shards(
        options,
        instances(annotation(1, 3, [0, 0, 2, 2], score=float("nan"), attributes={"worn": None}, keypoints=[1e400])),
    )
    assert annotations_of(found)["boxes"] == [[0, 0, 2, 2, 0]]


def test_missing_files_are_named(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"instances.json: cannot be read \(No such file"):
        make("coco", tmp_path / "out", **options)
    with pytest.raises(DataError, match="images=nowhere: the folder does not exist"):
        make("coco", tmp_path / "out", **options | {"images": "nowhere"})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"image_id": 8, "caption": "x"}], r"annotations.0: image_id 8 is neither in 'images'"),
        ([], "no caption belongs to an image of the instances file"),
        ([{"image_id": 7}], "captions.json: annotations.0.caption: field required"),
        ([{"image_id": 7, "caption": "half of a pair: \ud800"}], "captions.json: annotations.0.caption: .*unicode"),
    ],
)
def test_captions_of_other_images_are_refused(
    options: dict[str, Any], tmp_path: Path, entries: list[Any], message: str
) -> None:
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": entries}))
    with pytest.raises(DataError, match=message):
        make_shards(options | {"captions": str(tmp_path / "captions.json")}, instances())


def test_two_images_with_the_same_name_are_named(options: dict[str, Any]) -> None:
    twice = [{"id": i, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT} for i in (1, 2)]
    with pytest.raises(DataError, match="its key would be 'a', which .*a.jpg has"):
        make_shards(options, altered(images=twice))


def test_two_processes_make_the_same_bytes_as_one(options: dict[str, Any], tmp_path: Path) -> None:
    contents = instances(annotation(1, 3, [0, 0, 2, 2]))
    contents["images"].append({"id": 8, "file_name": "b.png", "width": 3, "height": 2})
    Image.new("L", (3, 2)).save(Path(options["images"]) / "b.png")
    Path(options["instances"]).write_text(json.dumps(contents))
    for processes in (1, 2):
        make("coco", tmp_path / str(processes), processes=processes, samples_per_shard=1, **options)
    shards = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "12"]
    assert shards[0] == shards[1] and len(shards[0]) == 3


EMPTY: list[Any] = [[], [[]], None, [[1, 1, 3, 3]], [[1.0, 1.0]], [[1, 1, 3, 1, 2, 1]], [[], [2, 2]]]


@pytest.mark.parametrize("segmentation", EMPTY, ids=str)
def test_a_region_that_encloses_nothing_is_unknown_in_its_box(options: dict[str, Any], segmentation: Any) -> None:
    empty = annotation(1, 3, [1, 1, 3, 2], segmentation=segmentation)
    values = np.asarray(mask(make_shards(options, instances(empty, annotation(2, 18, [6, 0, 1, 1])))))
    assert (values[1:3, 1:4] == 255).all() and (values == 255).sum() == 6 and (values == 2).sum() == 1


@pytest.mark.parametrize("segmentation", [[[]], [[1, 1, 3, 3]], []], ids=str)
def test_where_no_object_has_a_region_there_are_no_masks(options: dict[str, Any], segmentation: Any) -> None:
    found = make_shards(options, instances(annotation(1, 3, [1, 1, 3, 2], segmentation=segmentation)))
    assert "train/a.mask.png" not in found


@pytest.mark.parametrize("area", [0, 1.0, 1e6, float("nan")], ids=str)
def test_the_order_in_the_mask_is_that_of_the_pixels_whatever_area_says(options: dict[str, Any], area: float) -> None:
    large, small = annotation(1, 3, [0, 0, 8, 6], area=area), annotation(2, 18, [2, 2, 2, 2], area=area)
    for order in ([large, small], [small, large]):
        assert (np.asarray(mask(make_shards(options, instances(*order)))) == 2).sum() == 4
        shutil.rmtree(Path(options["instances"]).with_name("out"))


FORMS: list[tuple[Any, int]] = [
    ([1, 1, 3, 1, 3, 3, 1, 3], 4),
    ([{"size": [HEIGHT, WIDTH], "counts": [0, 5, 43]}], 5),
    ([[1, 1, 3, 1, 3, 3, 1, 3], [5, 5]], 4),
]


@pytest.mark.parametrize(("segmentation", "pixels"), FORMS, ids=str)
def test_other_forms_of_regions_are_read(options: dict[str, Any], segmentation: Any, pixels: int) -> None:
    found = make_shards(options, instances(annotation(1, 3, [0, 0, 4, 4], segmentation=segmentation)))
    assert (np.asarray(mask(found)) == 1).sum() == pixels


@pytest.mark.parametrize("size", [{}, {"width": 0, "height": 0}, {"width": None}], ids=str)
def test_a_size_that_is_not_given_is_that_of_the_image(options: dict[str, Any], size: dict[str, Any]) -> None:
    contents = instances(annotation(1, 3, [0, 0, 2, 2]))
    contents["images"] = [{"id": 7, "file_name": "a.jpg"} | size]
    assert annotations_of(make_shards(options, contents))["boxes"] == [[0, 0, 2, 2, 0]]


def test_categories_of_one_name_are_one_class_unless_both_are_used(options: dict[str, Any], tmp_path: Path) -> None:
    contents = instances(annotation(1, 18, [0, 0, 2, 2]))
    contents["categories"].append({"id": 0, "name": "dog", "supercategory": "none"})
    found = make_shards(options, contents)
    card = json.loads((tmp_path / "out/dataset.json").read_text())
    assert card["classes"] == ["dog", "car"] and card["unused_classes"] == ["car"]
    assert annotations_of(found)["labels"] == [0]
    contents["annotations"].append(annotation(2, 0, [0, 0, 2, 2]))
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(DataError, match="categories: 0 and 18 are both named 'dog', and both have annotations; rename"):
        make_shards(options, contents)


def test_every_fault_is_named_at_once_and_can_be_left_out(options: dict[str, Any], tmp_path: Path) -> None:
    contents = instances(annotation(1, 3, [0, 0, 2, 2]))
    for number in (8, 9, 10):
        contents["images"].append({"id": number, "file_name": f"{number}.png", "width": 3, "height": 2})
        Image.new("L", (3, 2), number).save(Path(options["images"]) / f"{number}.png")
    (Path(options["images"]) / "8.png").unlink()
    contents["annotations"] += [
        annotation(2, 3, [9, 9, 1, 1], image=9),
        annotation(3, 77, [0, 0, 1, 1], image=10),
        annotation(4, 3, [0, 0, 1, 1], image=99),
    ]
    with pytest.raises(BadSamples) as error:
        make_shards(options, contents)
    assert len(str(error.value).splitlines()) == 4
    found = make_shards(options | {"skip_bad": True}, contents)
    assert sorted(found) == ["train/a.jpg", "train/a.json", "train/a.mask.png"]
    assert (tmp_path / "out/left_out.txt").read_text().splitlines() == str(error.value).splitlines()
