"""Take the pictures of docs/explore.md in Chromium, while `mtgen explore RUN` serves ADDRESS.

python docs/pictures/explore.py ADDRESS IMAGE
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
SIZE = {"width": 1180, "height": 940}


def take(page: Page, name: str) -> None:
    """Save a screenshot as a small PNG, once everything is drawn."""
    page.wait_for_timeout(1500)
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(HERE / name, optimize=True)


def main(address: str, image: str) -> None:
    """Take both pictures: one in light, one in dark."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_context(viewport=SIZE, color_scheme="light").new_page()  # type: ignore[arg-type]
        page.goto(address)
        page.locator("#generated canvas").first.wait_for()
        take(page, "explore-generate.png")
        page = browser.new_context(viewport=SIZE, color_scheme="dark").new_page()  # type: ignore[arg-type]
        page.goto(f"{address}/#predict")
        page.locator("#predict-file").set_input_files(image)
        page.locator(".translated canvas").first.wait_for()
        take(page, "explore-predict.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
