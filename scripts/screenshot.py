"""Take a picture of a web page as it opens, for the README: ``screenshot.py PAGE.html PICTURE [WIDTH HEIGHT]``.

Needs Chromium with its driver, and selenium (extra ``dev``).
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from selenium import webdriver


def take(page: Path, picture: Path, width: int, height: int) -> None:
    """Draw the upper part of a page, ``height`` px of it, at a window ``width`` px wide."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with TemporaryDirectory() as profile:
        for flag in ("headless=new", "no-sandbox", "disable-sync", "hide-scrollbars", f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            driver.get(page.resolve().as_uri())
            with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as image:
                image.convert("RGB").save(picture, quality=85, optimize=True)
        finally:
            driver.quit()


if __name__ == "__main__":
    size = [int(word) for word in sys.argv[3:]] or [1280, 1480]
    take(Path(sys.argv[1]), Path(sys.argv[2]), size[0], size[1])
