"""Takes the pictures of the page that the docs show: `make screenshots`."""

import os
import re
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, expect

from tests.planner.serve.browser import PHONE, chromium, visit

ROOT = Path(__file__).parents[3]
PICTURES = ROOT / "docs" / "pictures"
QUESTION = "/?model=llama3.1-8b&gpu=RTX+4090&rows=52000"
DESK = {"width": 1200, "height": 1000}

SHOTS: dict[str, dict[str, object]] = {
    "page-light": {"color_scheme": "light", "viewport": DESK},
    "page-dark": {"color_scheme": "dark", "viewport": DESK},
    "page-phone": {"color_scheme": "light", "viewport": PHONE, "is_mobile": True, "device_scale_factor": 2},
}
COLORS = 128


def take(browser: Browser, url: str, folder: Path) -> None:
    """Write each picture of the page at `url` to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, context in SHOTS.items():
        with visit(browser, url + QUESTION, **context) as seen:
            expect(seen.page.locator("#cards tbody tr")).not_to_have_count(0)
            if "phone" in name:
                seen.page.locator("#answer").scroll_into_view_if_needed()
                seen.page.evaluate("window.scrollTo(0, document.querySelector('#answer').offsetTop - 12)")
            picture = Image.open(BytesIO(seen.page.screenshot()))
            # A page has few colors; with a palette the file is a fourth.
            picture.convert("RGB").quantize(COLORS).save(folder / f"{name}.png", optimize=True)


def main() -> None:
    """Start a server and take all pictures."""
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        command = [sys.executable, "-m", "planner.cli", "serve", "--port", "0"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "FITUNE_STORE": ""}
        with subprocess.Popen(command, cwd=name, env=environment, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            address = re.search(r"http://\S+", server.stderr.readline())
            assert address
            take(browser, address[0], PICTURES)
            server.terminate()


if __name__ == "__main__":
    main()
