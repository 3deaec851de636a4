"""The pictures in docs/guide.md, taken of a real run: two adapters are trained, drawn with and mixed.

    python -m benchmarks.pages.guide [--home FOLDER] [--only gallery mix …]

writes docs/images/*.webp. A home that is there already is used as it is.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "images"
WIDTH, HEIGHT, PORT = 1200, 860, 7964
TRAINED = {"fox": "fox", "owl": "owl"}   # folder in assets/examples → class word
DRAWN = {"an emoji of a zqfox fox": ("fox",), "an emoji of a zqowl owl": ("owl",),
         "an emoji of a zqfox fox on a blue background": ("fox",)}   # prompt → adapters
MIX = "/mix?content=fox&style=owl&prompt=an%20emoji%20of%20a%20zqfox%20fox"
SHOTS = {   # file → address, and what is pressed before
    "create": ("/", ()), "studio": ("/studio?adapter=fox", ("#draw",)),
    "mix": (MIX, ("#compare",)), "gallery": ("/gallery", ()), "library": ("/library", ()),
    "settings": ("/settings", ("#storage h2",)),
}   # fmt: skip
WAIT_SECONDS = 20.0   # for what is drawn on a page


def main() -> None:
    """Train, draw, and take the pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages.guide")
    parser.add_argument("--home", type=Path, help="use this home, and leave it")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--only", nargs="+", choices=tuple(SHOTS), default=tuple(SHOTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="atelier-guide-") as temporary:
        home = options.home or Path(temporary) / "home"
        fill_home(home)
        OUT.mkdir(exist_ok=True)
        with served(home), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light",
                                    base_url=f"http://127.0.0.1:{PORT}", reduced_motion="reduce")   # fmt: skip
            for name in options.only:
                take(page, name)
            browser.close()
    print(f"{sum(path.stat().st_size for path in OUT.glob('*.webp')):,} bytes in {OUT.relative_to(ROOT)}")


def fill_home(home: Path) -> None:
    """Train the adapters that are missing and draw with them."""
    for name, subject in TRAINED.items():
        if not (home / "adapters" / f"{name}.safetensors").exists():
            atelier("train", str(ROOT / "assets" / "examples" / name), "--name", name, "--subject", subject,
                    "--trigger", f"zq{name}", "--preset", "quick", "--home", str(home))   # fmt: skip
    if not any(home.glob("gallery/*.png")):
        for prompt, names in DRAWN.items():
            adapters = [part for name in names for part in ("--adapter", f"{name}=0.8")]
            atelier("draw", prompt, *adapters, "--count", "8", "--home", str(home))


def atelier(*arguments: str) -> None:
    """Run a command as a person does."""
    subprocess.run([sys.executable, "-m", "atelier.app.cli.main", *arguments], check=True)


@contextmanager
def served(home: Path) -> Iterator[None]:
    """The app over a home, in a process of its own."""
    command = [sys.executable, "-m", "atelier.app.cli.main", "serve", "--home", str(home), "--port", str(PORT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "DISPLAY": ""})
    assert process.stdout
    while "is open" not in process.stdout.readline():
        assert process.poll() is None, "the server has ended"
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def take(page: Page, name: str) -> None:
    """One picture, with as many colours as a page has."""
    address, presses = SHOTS[name]
    page.goto(address, wait_until="domcontentloaded")   # an event stream stays open: the network is never idle
    page.wait_for_function("document.title.endsWith('· Atelier')")
    page.wait_for_timeout(6000)
    for selector in presses:
        page.locator(selector).first.scroll_into_view_if_needed()
        page.locator(selector).first.click()
        page.wait_for_timeout(1000 * WAIT_SECONDS)
    if not presses or presses[0].startswith("#draw") or presses[0] == "#compare":
        page.evaluate("scrollTo(0, 0)")
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").save(OUT / f"{name}.webp", quality=82, method=6)


if __name__ == "__main__":
    main()
