"""The page in a real browser: every interaction, without console errors and without requests to other servers."""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.made_models import picture, train_on

pytestmark = pytest.mark.timeout(400)
FIRST = "() => document.querySelector('#generated canvas').toDataURL()"


class Opened:
    """A page, with its console messages, errors and requests to other servers in `trouble`."""

    def __init__(self, browser: Any, port: int, view: str, **context: Any) -> None:
        self.page = browser.new_context(viewport={"width": 1200, "height": 900}, **context).new_page()
        self.page.set_default_timeout(120_000)
        self.trouble: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(message.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", self._seen)
        self.own = f"http://127.0.0.1:{port}/"
        self.page.goto(f"{self.own}#{view}")
        self.page.locator("#status", has_text=" in ").wait_for() if view != "predict" else self.page.locator(
            ".drop"
        ).wait_for()

    def _seen(self, request: Any) -> None:
        if not request.url.startswith((self.own, "data:", "blob:")):
            self.trouble.append(request.url)

    def after(self, path: str, act: Any, with_: str = "") -> dict[str, Any]:
        """The message that the page sends after an action, once it has been answered.

        Args:
            with_: key that the prompt must have, if the page may send other messages before.
        """

        def is_it(response: Any) -> bool:
            if response.url != f"{self.own}api/{path}":
                return False
            return not with_ or bool(json.loads(response.request.post_data)["prompt"][with_])

        with self.page.expect_response(is_it) as found:
            act()
        message: dict[str, Any] = json.loads(found.value.request.post_data)
        return message


@pytest.fixture
def opened(browser: Any, port: int) -> Iterator[Any]:
    made: list[Opened] = []

    def open_page(view: str = "generate", at: int = 0, **context: Any) -> Opened:
        made.append(Opened(browser, at or port, view, **context))
        return made[-1]

    yield open_page
    for one in made:
        assert one.trouble == []
        one.page.context.close()


def test_conditions_are_chosen_and_masks_and_boxes_are_switched(opened: Any) -> None:
    one = opened(color_scheme="dark")
    page = one.page
    assert page.locator("#generated li").count() == 8 and page.locator("h1").inner_text() == "test"
    sent = one.after("sample", page.get_by_role("button", name="one", exact=True).first.click)
    assert sent["prompt"]["classes"] == [["one"]]
    page.wait_for_function("() => document.querySelector('#generated canvas').ariaLabel.startsWith('one,')")
    sent = one.after("sample", lambda: page.get_by_label("Caption", exact=True).get_by_role("textbox").fill("it"))
    assert sent["prompt"]["captions"] == ["it"]
    for layer in ("masks", "boxes"):
        before = page.evaluate(FIRST)
        page.locator(f"[data-layer={layer}]").uncheck()
        if layer == "masks":  # a picture may have no box
            page.wait_for_function(f"before => ({FIRST})() !== before", arg=before)
    sent = one.after("sample", page.get_by_role("button", name="Random").click)
    assert sent["seed"] > 0
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


def test_a_layout_is_painted_with_the_pointer_and_sounds_come_from_the_microphone(opened: Any) -> None:
    one = opened()
    page = one.page
    page.get_by_text("Layout", exact=True).click()
    page.get_by_label("Class of the brush").get_by_role("button", name="b", exact=True).click()
    area = page.locator(".paint").bounding_box()

    def drag(first: tuple[float, float], last: tuple[float, float]) -> None:
        page.mouse.move(area["x"] + area["width"] * first[0], area["y"] + area["height"] * first[1])
        page.mouse.down()
        page.mouse.move(area["x"] + area["width"] * last[0], area["y"] + area["height"] * last[1], steps=6)
        page.mouse.up()

    mask = one.after("sample", lambda: drag((0.2, 0.5), (0.8, 0.5)), "mask")["prompt"]["mask"]
    painted = base64.b64decode(mask["data"])
    assert len(painted) == 64 and set(painted) == {0, 2} and painted[4 * 8 + 4] == 2  # the rest is background
    page.get_by_role("button", name="Boxes", exact=True).click()
    (box,) = one.after("sample", lambda: drag((0.25, 0.25), (0.75, 0.75)), "boxes")["prompt"]["boxes"]
    assert (
        box["name"] == "zero"
        and box["x0"] == pytest.approx(0.25, abs=0.02)
        and box["y1"] == pytest.approx(0.75, abs=0.02)
    )

    page.get_by_text("Sound", exact=True).click()
    page.get_by_role("button", name="● Record").click()
    page.wait_for_timeout(1500)
    sound = one.after("sample", page.get_by_role("button", name="■ Stop").click, "sound")["prompt"]["sound"]
    assert sound["name"] == "recording.wav" and sound["data"].startswith("UklGR")  # RIFF
    page.locator("#status", has_text=" images in ").wait_for()
    assert page.locator("#error").is_hidden()


def test_a_slider_interpolates_between_two_images(opened: Any) -> None:
    one = opened("interpolate")
    page = one.page
    assert page.locator(".way .end").all_inner_texts() == ["zero", "one"] and page.locator(".strip canvas").count() == 9
    large = "() => document.querySelector('.stage canvas').toDataURL()"
    before = page.evaluate(large)
    page.get_by_label("Position", exact=True).focus()
    page.keyboard.press("End")
    page.wait_for_function(f"before => ({large})() !== before", arg=before)
    page.get_by_role("button", name="To", exact=True).click()
    sent = one.after("interpolate", page.get_by_role("button", name="7", exact=True).click)
    assert sent["last"]["prompt"]["classes"] == [["one"], ["7"]] and sent["first"]["prompt"]["classes"] == [["zero"]]


def test_an_image_is_predicted_and_a_file_that_is_none_is_a_clear_error(opened: Any, tmp_path: Path) -> None:
    one = opened("predict", color_scheme="dark")
    page = one.page
    picture(20, 10, 1).save(tmp_path / "photo.png")
    (tmp_path / "notes.png").write_text("no image")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="open a file").click()
    one.after("translate", lambda: chooser.value.set_files(tmp_path / "photo.png"))
    page.wait_for_function("() => document.querySelectorAll('.translated canvas').length === 4")
    assert page.locator("figcaption").all_inner_texts() == ["prediction", "reconstruction"]
    assert (
        "the center, 10 × 10 of 20 × 10" in page.locator(".found .note").inner_text()
        and page.locator(".bars dt").count() >= 4
    )

    page.locator("#predict-file").set_input_files(tmp_path / "notes.png")
    page.locator("#error", has_text="notes.png: is not a PNG, JPEG or WebP file").wait_for()
    assert [text for text in one.trouble if "422" not in text] == []  # Chromium says so itself
    one.trouble.clear()


def test_a_generated_image_can_be_predicted_or_used_as_a_condition(opened: Any) -> None:
    one = opened()
    page = one.page
    page.locator("#generated .cell").nth(2).click()
    prompt = one.after("sample", page.get_by_role("button", name="Use mask as layout").click, "mask")["prompt"]
    assert prompt["mask"] is not None
    page.locator("#generated .cell").first.click()
    assert (
        one.after("sample", page.get_by_role("button", name="More like this").click, "image")["prompt"]["image"]["name"]
        == "generated.png"
    )
    page.locator("#generated .cell").first.click()
    one.after("predict", page.get_by_role("button", name="Predict").click)
    page.locator(".figures canvas").first.wait_for()


def test_the_page_fits_a_phone(opened: Any) -> None:
    for view in ("generate", "interpolate", "predict"):
        page = opened(view).page
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_button_loads_the_newest_checkpoint_of_a_run_that_trains(
    opened: Any, run: Path, serving: Callable[[Path], Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    with serving(folder) as (_, port):
        train_on(folder, 128)
        page = opened(at=port).page
        page.wait_for_function("() => document.querySelector('#generated canvas').width > 8")
        before = page.evaluate(FIRST)
        page.get_by_role("button", name="Load the newest checkpoint: 128 images").click()
        page.locator("#facts", has_text="128 of").wait_for()
        page.wait_for_function(f"before => ({FIRST})() !== before", arg=before)
        assert page.locator("#reload").is_hidden()
        page.goto("about:blank")
