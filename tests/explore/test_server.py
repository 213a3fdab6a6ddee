"""The page's server over real HTTP: its answers, and what it rejects."""

import base64
import http.client
import io
import json
import shutil
import signal
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.core_only import ROOT, outside_of_the_core, refusing
from helpers.made_models import made, picture, saved, train_on
from PIL import Image

import mtgen
from mtgen.errors import UserError
from mtgen.explore import serve_page
from mtgen.explore.explorer import Explorer
from mtgen.explore.messages import MAX_BODY_BYTES
from mtgen.inference.prompt import PromptRequest
from mtgen.inference.trained_model import TrainedModel

pytestmark = pytest.mark.timeout(300)
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedModel:
    return mtgen.load(run, device="cpu")


def answer(port: int, path: str, message: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """Status and content, decoded if it is JSON; a message is sent by POST, `None` is a GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = message if message is None or isinstance(message, bytes) else json.dumps(message).encode()
    connection.request(
        "GET" if body is None else "POST", path, body, {**(JSON if body is not None else {}), **(headers or {})}
    )
    response = connection.getresponse()
    content, kind = response.read(), response.headers["content-type"] or ""
    connection.close()
    return response.status, json.loads(content) if kind == "application/json" else content


def file(name: str, data: bytes) -> dict[str, str]:
    return {"name": name, "data": base64.b64encode(data).decode()}


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def wav(seconds: float, rate: int = 8_000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setparams((1, 2, rate, 0, "NONE", ""))
        sound.writeframes((9_000 * np.sin(np.arange(round(seconds * rate)) / 3)).astype("<i2").tobytes())
    return out.getvalue()


def pixels(frame: dict[str, Any], layer: str = "images") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(frame[layer].partition(",")[2]))))


def same(frames: list[dict[str, Any]], images: list[Image.Image]) -> bool:
    return len(frames) == len(images) and all(
        np.array_equal(pixels(f), np.asarray(i)) for f, i in zip(frames, images, strict=True)
    )


def test_the_page_and_all_that_it_is_made_of_are_there_and_come_with_a_strict_policy(port: int) -> None:
    status, page = answer(port, "/")
    assert status == 200 and b"mtgen explore" in page
    for name in (
        "base.css",
        "page.css",
        "base.js",
        "page.js",
        "controls.js",
        "prompt.js",
        "predict.js",
        "server.js",
        "icon.svg",
    ):
        assert answer(port, f"/{name}")[0] == 200
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/")
    policy = connection.getresponse().headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy


def test_what_is_offered_is_what_the_run_was_trained_on(port: int, tmp_path: Path) -> None:
    about = answer(port, "/api/about")[1]
    assert {"class", "caption", "sound", "layout", "domain"} <= set(about["conditions"]) and about[
        "translation_targets"
    ] == about["classes"]
    assert (
        about["classes"] == ["zero", "one", "Two", "7"]
        and about["domains"] == ["horses", "zebras"]
        and about["newer"] is None
    )
    small = Explorer(saved(made(tasks=("generation",), conditions=("class",)), tmp_path / "small"), "cpu").about()
    assert (small["conditions"], small["tasks"], small["translation_targets"], small["domains"]) == (
        ["class"],
        ["generation"],
        [],
        [],
    )


def test_samples_of_classes_captions_and_domains_are_those_of_the_model(port: int, trained: TrainedModel) -> None:
    prompt = {"classes": [["one"], ["zero", "7"]], "captions": ["it"], "domains": ["zebras"]}
    status, found = answer(port, "/api/sample", {"prompt": prompt, "n": 4, "seed": 3, "truncation": 0.5})
    expected = trained.sample(4, ["one", "zero+7"], caption="it", domain="zebras", seed=3, truncation=0.5)
    assert status == 200 and same(found["pictures"], expected.images)
    first, mask = found["pictures"][0], expected.masks[0]
    assert first["caption"] == "one 'it' zebras" and mask is not None
    assert (
        base64.b64decode(first["mask"]) == mask.tobytes()
        and first["mask_classes"] == np.unique(mask).tolist()
        and np.array_equal(pixels(first, "masks")[..., 3] > 0, mask > 0)
    )
    assert [len(f["boxes"][0][0]) for f in found["pictures"]] == [len(boxes or []) for boxes in expected.boxes]


def test_a_sound_is_heard_and_an_image_is_resembled(port: int, trained: TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(0.3))
    picture(9, 7).save(tmp_path / "b.png")
    prompt = {"sound": file("a.wav", wav(0.3)), "image": file("b.png", (tmp_path / "b.png").read_bytes())}
    _, found = answer(port, "/api/sample", {"prompt": prompt, "n": 2})
    assert same(found["pictures"], trained.sample(2, sound=tmp_path / "a.wav", image=tmp_path / "b.png").images)


def test_a_painted_mask_and_drawn_boxes_are_layouts(port: int, trained: TrainedModel, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 3, (8, 8), dtype=np.uint8)
    values[0] = 255
    Image.fromarray(values).save(tmp_path / "a.png")
    mask = {"width": 8, "height": 8, "data": base64.b64encode(values.tobytes()).decode()}
    _, found = answer(port, "/api/sample", {"prompt": {"mask": mask}, "n": 2})
    assert same(found["pictures"], trained.sample(2, layout=tmp_path / "a.png").images)
    (tmp_path / "b.json").write_text(json.dumps({"boxes": [[2, 0, 6, 4, "one"]]}))
    box = {"x0": 0.25, "y0": 0, "x1": 0.75, "y1": 0.5, "name": "one"}
    _, found = answer(port, "/api/sample", {"prompt": {"boxes": [box]}, "n": 2})
    assert same(found["pictures"], trained.sample(2, layout=tmp_path / "b.json").images)
    status, read = answer(port, "/api/layout", {"file": file("a.png", (tmp_path / "a.png").read_bytes())})
    assert status == 200 and read["mask"] == values.flatten().tolist()


def test_an_interpolation_leads_from_one_prompt_to_another(port: int, trained: TrainedModel) -> None:
    first, last = {"prompt": {"classes": [["one"]]}, "seed": 1}, {"prompt": {"captions": ["it"]}, "seed": 2}
    _, found = answer(port, "/api/interpolate", {"first": first, "last": last, "n": 5})
    expected = trained.interpolate(PromptRequest(classes=["one"]), PromptRequest(texts=["it"]), 5, seeds=(1, 2))
    assert same(found["pictures"], expected.images)


def test_an_image_is_predicted_reconstructed_and_translated(port: int, trained: TrainedModel) -> None:
    image = picture(20, 10, 1)
    status, found = answer(port, "/api/predict", {"image": file("a.png", png(image))})
    expected, row = trained.predict(image), trained.predict(image).rows[0]
    assert status == 200 and (found["whole"], found["seen"]) == ([20, 10], [10, 10])
    assert found["classes"][0] == [row["class"], row["probability"]] and len(found["classes"]) == 4
    assert [box["box"] for box in found["boxes"]] == [box["box"] for box in row["boxes"]] and len(found["tags"]) == len(
        row["tags"]
    )
    assert expected.masks[0] is not None and np.array_equal(
        pixels(found["picture"], "masks")[..., 3] > 0, expected.masks[0] > 0
    )
    assert same([found["reconstruction"]], trained.reconstruct(image).images)
    _, translated = answer(port, "/api/translate", {"image": file("a.png", png(image)), "to": ["zero", "7"], "seed": 2})
    assert same(translated["pictures"], [trained.translate(image, to, seed=2).images[0] for to in ("zero", "7")])


@pytest.mark.parametrize(
    ("path", "message", "word"),
    [
        ("predict", {"image": file("notes.png", b"no image")}, "notes.png: is not a PNG, JPEG or WebP file"),
        ("predict", {"image": file("cut.png", png(picture(20, 20))[:200])}, "cut.png: cannot be read as an image"),
        ("translate", {"image": file("notes.png", b"no image"), "to": ["zero"]}, "notes.png: is not a PNG"),
        ("translate", {"image": file("a.png", png(picture(8, 8))), "to": ["zeros"]}, "did you mean 'zero'"),
        ("sample", {"prompt": {"classes": [["zeros"]]}}, "did you mean 'zero'"),
        ("sample", {"prompt": {"captions": ["longer than eight bytes"]}}, "caption 'longer than eight bytes': is"),
        ("sample", {"prompt": {"sound": file("a.wav", b"noise")}}, "sound a.wav: not a readable WAV or FLAC"),
        (
            "sample",
            {"prompt": {"sound": file("long.wav", wav(61))}},
            "sound long.wav: is 61 s long; possible: up to 60 s",
        ),
        ("sample", {"prompt": {"image": file("b.png", b"")}}, "b.png: is not a PNG"),
        (
            "sample",
            {"prompt": {"mask": {"width": 8, "height": 8, "data": "AAAA"}}},
            "layout: has 3 bytes; should have 8x8",
        ),
        ("sample", {"n": 65}, "n: input should be less than or equal to 64"),
        ("sample", {"truncation": 2}, "truncation: input should be less than or equal to 1"),
        ("sample", {"prompt": {"colour": "red"}}, "prompt.colour: extra inputs are not permitted"),
        ("sample", b"{", "message: invalid JSON"),
        (
            "layout",
            {"file": file("colors.png", png(picture(8, 8)))},
            "colors.png: uint8 [8, 8, 3] with colors; save masks as 8-bit gray",
        ),
    ],
)
def test_bad_input_is_one_clear_error(port: int, path: str, message: Any, word: str) -> None:
    status, found = answer(port, f"/api/{path}", message)
    assert status == 422 and word in found["error"] and "\n" not in found["error"]


def test_a_message_that_is_too_large_is_refused(port: int) -> None:
    status, found = answer(port, "/api/predict", b" " * (MAX_BODY_BYTES + 1))
    assert status == 413 and "message: is " in found["error"]


@pytest.mark.parametrize(
    ("path", "message", "headers", "expected"),
    [
        ("/", None, {"Host": "mtgen.example"}, 400),
        ("/api/about", None, {"Host": "mtgen.example:80"}, 400),
        ("/api/sample", {}, {"Host": "192.0.2.7"}, 400),
        ("/api/sample", {}, {"Origin": "https://mtgen.example"}, 403),
        ("/api/sample", {}, {"Origin": "http://127.0.0.1:1"}, 403),
        ("/api/sample", {}, {"Origin": "null"}, 403),
        ("/api/reload", {}, {"Origin": "http://mtgen.example"}, 403),
        ("/api/about", None, {"Sec-Fetch-Site": "cross-site"}, 403),
        ("/api/sample", {}, {"Sec-Fetch-Site": "same-site"}, 403),
        ("/api/sample", {}, {"Content-Type": "text/plain"}, 422),
        ("/api/sample", None, {}, 405),
    ],
)
def test_nobody_else_is_answered(port: int, path: str, message: Any, headers: dict[str, str], expected: int) -> None:
    assert answer(port, path, message, headers)[0] == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_page_itself_is_answered_by_both_of_its_names(port: int, host: str) -> None:
    headers = {"Host": f"{host}:{port}", "Origin": f"http://{host}:{port}", "Sec-Fetch-Site": "same-origin"}
    assert answer(port, "/api/sample", {"n": 1}, headers)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/app.py",
        "/../app.py",
        "/%2e%2e/app.py",
        "/..%2fapp.py",
        "/page/page.js",
        "//etc/passwd",
        "/%2e%2e/%2e%2e/setup.cfg",
    ],
)
def test_no_other_file_is_served(port: int, path: str) -> None:
    assert answer(port, path)[0] == 404


def test_another_host_than_this_machine_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match=r"192\.0\.2\.1: the page has no password.*ssh -L 8760:127\.0\.0\.1:8760"):
        serve_page(run, host="192.0.2.1")


def test_the_page_needs_nothing_but_the_core_and_its_own_extra(run: Path) -> None:
    program = f"""{refusing(outside_of_the_core("explore"))}
from mtgen.explore.app import build_app
from mtgen.explore.explorer import Explorer
from mtgen.explore.messages import SampleMessage
explorer = Explorer({str(run)!r}, "cpu")
print(len(build_app(explorer).routes) > 10, len(explorer.sample(SampleMessage(n=2))["pictures"]))
"""
    assert {"mlflow", "ray", "deepspeed", "nvidia", "psutil"} <= outside_of_the_core("explore")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True 2\n", "")


def test_a_newer_checkpoint_is_told_of_and_loaded_and_a_damaged_one_passed_over(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    explorer = Explorer(folder, "cpu")
    train_on(folder, 128)
    (damaged,) = train_on(folder, 192).glob("*.safetensors")
    damaged.write_bytes(b"")
    before = explorer.trained.sample(1).images[0]
    assert explorer.newer_checkpoint() == 192
    about = explorer.reload()
    assert about["images"] == 128 and about["newer"] is None
    assert not np.array_equal(np.asarray(before), np.asarray(explorer.trained.sample(1).images[0]))


def test_ctrl_c_ends_it_without_a_word_of_trouble(run: Path, serving: Callable[[Path], Any]) -> None:
    with serving(run) as (process, port):
        assert answer(port, "/api/newer")[0] == 200
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out.strip(), errors) == (0, "", "")
        with pytest.raises(ConnectionRefusedError):
            answer(port, "/")
