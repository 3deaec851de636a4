"""Drawing in a real browser: mixed by keyboard, stopped, painted over, opened from a foreign file, varied, found again.

The tests of this file share one home, with two adapters that nobody trained, and run in order.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from e2e.browsing import PATIENT, Server, fill, needs_axe, paint, serious_violations, value, visit
from PIL import Image, PngImagePlugin
from playwright.sync_api import Browser, Page, expect

from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.adapter_info import AdapterInfo
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.store.gallery import gallery_page, read_recipe
from atelier.app.store.home import Home, open_home
from atelier.training.base_models.base_model import load

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]
expect.set_options(timeout=60_000)   # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def home(home_path: Path) -> Home:
    home = open_home(home_path)
    model = load("embedded")
    for name in ("one", "two"):
        adapters = create_adapters("lora", {"rank": 2}, find_targets(model.models(), "attention"))
        with torch.no_grad():
            for each in adapters:
                for parameter in each.parameters():
                    parameter.normal_(std=0.03)
        info = AdapterInfo(name=name, trigger=f"zq{name}", subject="fox", base="embedded", family=model.info.family)
        save_adapter(home.adapters / f"{name}.safetensors", adapters, info.to_metadata())
    return home


def newest(home: Home) -> tuple[str, dict]:
    """The id and the recipe of the picture that was drawn last."""
    picture = gallery_page(home, limit=1)[0]
    return picture.id, read_recipe(picture.path) or {}


def open_studio(page: Page, query: str = "") -> None:
    """Open the Studio and wait until it is filled from its address, which sets a seed."""
    visit(page, f"/studio{query}")
    expect(page.locator("#seed input")).not_to_have_value("0")


def idle(page: Page) -> None:
    expect(page.locator(".draw-progress")).to_have_attribute("data-busy", "false", timeout=PATIENT)


def test_two_adapters_are_mixed_by_keyboard_alone(page: Page, home: Home) -> None:
    open_studio(page)
    page.locator("#count input[type=number]").fill("1")
    page.keyboard.press("Tab")
    for name in ("one", "two"):
        button = page.locator("#adapter-picker").get_by_role("button", name=name, exact=True)
        button.focus()
        button.press("Enter")
        expect(button).to_have_attribute("aria-pressed", "true")
    slider = page.locator("#strength-1 input[type=range]")
    slider.focus()
    for _ in range(6):
        slider.press("ArrowLeft")
    expect(page.locator("#drawn-pictures a[download]")).to_have_count(1, timeout=PATIENT)
    page.wait_for_function("""() => document.querySelector('.draw-progress').dataset.busy === 'false'
        && !document.querySelector('#drawn-pictures img[data-id=""]')""", timeout=PATIENT)   # fmt: skip
    _, recipe = newest(home)
    assert [(part["name"], part["strength"]) for part in recipe["adapters"]] == [("one", 1.0), ("two", 0.7)]
    assert len(gallery_page(home)) == 1, "what the moving slider drew before is gone, and previews were never kept"


def test_a_prompt_chooses_counts_and_takes_typed_adapters(page: Page, home: Home) -> None:
    (home.wildcards / "colour.txt").write_text("red\n")
    open_studio(page)
    fill(page, "prompt", "a __colour__ {fox|fox} <lora:two:0.6>")
    page.keyboard.press("Tab")
    expect(page.locator("#strength-0 input[type=range]")).to_have_value("0.6")
    expect(page.locator("#prompt :is(textarea, input)")).to_have_value("a __colour__ {fox|fox}")
    expect(page.locator("#prompt-status")).to_contain_text("With this seed: a red fox")
    expect(page.locator("#prompt-status")).to_contain_text("of 22 tokens")
    page.get_by_role("button", name="Leave each out").click()
    expect(page.locator(".block-tiles img")).to_have_count(9, timeout=PATIENT)
    idle(page)


def test_a_drawing_is_stopped_between_two_steps(page: Page, home: Home) -> None:
    before = {picture.id for picture in gallery_page(home)}
    open_studio(page)
    fill(page, "prompt", "an emoji of a fox")
    page.get_by_text("Size, steps and more").click()
    fill(page, "set-steps", "1000")
    page.click("#draw")
    expect(page.locator(".draw-progress [role=status]")).to_contain_text("of 1000", timeout=PATIENT)
    page.keyboard.press("Escape")
    expect(page.locator(".draw-progress [role=status]")).to_have_text("Stopped.")
    idle(page)
    assert {picture.id for picture in gallery_page(home)} == before
    fill(page, "set-steps", "2")
    page.locator("#count input[type=number]").fill("2")
    page.click("#draw")
    expect(page.locator("#drawn-pictures a[download]")).to_have_count(2, timeout=PATIENT)


def test_what_is_painted_over_is_drawn_anew_and_nothing_else(page: Page, home: Home) -> None:
    id, recipe = newest(home)
    open_studio(page, f"?picture={id}")
    page.locator("#drawn-pictures [data-action=start]").click()
    page.get_by_text("Start from a picture").click()
    canvas = page.locator("#start-picture canvas").first
    canvas.wait_for()
    paint(page, canvas, (0.45, 0.55))
    page.locator("#count input[type=number]").fill("1")
    page.click("#draw")
    page.wait_for_function("id => ![...document.querySelectorAll('#drawn-pictures img')].some(i => i.dataset.id === id)"
                           " && document.querySelector('#drawn-pictures a[download]')", arg=id, timeout=PATIENT)
    idle(page)
    new, drawn = newest(home)
    assert drawn["start"]["masked"] and drawn["prompt"] == recipe["prompt"]
    first, second = (Image.open(home.gallery / f"{name}.png") for name in (id, new))
    corner = (0, 0, 8, 8)
    assert first.crop(corner).tobytes() == second.crop(corner).tobytes() and first.tobytes() != second.tobytes()


def foreign_texts(tool: str) -> dict[str, str]:
    """The texts in a picture of another tool, which names an adapter that is here, one that is not, and no base here.

    Keys and graphs are those that the tools write: A1111's infotext, ComfyUI's graph of an API call, InvokeAI's
    metadata of version 5.
    """
    if tool == "A1111":
        return {"parameters": "a fox <lora:one:0.6> <lora:gone:1>\nNegative prompt: blurry\nSteps: 3, "
                "Sampler: Euler a, CFG scale: 4, Seed: 99, Size: 64x64, Model hash: 6ce0161689, Model: dream-v8, "
                'Lora hashes: "gone: 0a1b2c3d4e5f"'}   # fmt: skip
    if tool == "ComfyUI":
        nodes = {
            "1": ("CheckpointLoaderSimple", {"ckpt_name": "dream-v8.safetensors"}),
            "2": ("LoraLoader", {"lora_name": "one.safetensors", "strength_model": 0.6, "strength_clip": 1.0,
                                 "model": ["1", 0], "clip": ["1", 1]}),
            "3": ("LoraLoader", {"lora_name": "gone.safetensors", "strength_model": 1.0, "strength_clip": 1.0,
                                 "model": ["2", 0], "clip": ["2", 1]}),
            "4": ("CLIPTextEncode", {"text": "a fox", "clip": ["3", 1]}),
            "5": ("CLIPTextEncode", {"text": "blurry", "clip": ["3", 1]}),
            "6": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
            "7": ("KSampler", {"seed": 99, "steps": 3, "cfg": 4.0, "sampler_name": "euler_ancestral",
                               "scheduler": "normal", "denoise": 1.0, "model": ["3", 0], "positive": ["4", 0],
                               "negative": ["5", 0], "latent_image": ["6", 0]}),
            "8": ("VAEDecode", {"samples": ["7", 0], "vae": ["1", 2]}),
            "9": ("SaveImage", {"filename_prefix": "ComfyUI", "images": ["8", 0]}),
        }   # fmt: skip
        graph = {id: {"class_type": kind, "inputs": inputs} for id, (kind, inputs) in nodes.items()}
        return {"prompt": json.dumps(graph), "workflow": json.dumps({"version": 0.4, "nodes": []})}
    loras = [{"model": {"key": name, "hash": f"blake3:{'0' * 64}", "name": name, "base": "sd-1", "type": "lora"},
              "weight": weight} for name, weight in (("one", 0.6), ("gone", 1.0))]   # fmt: skip
    model = {"key": "k", "hash": f"blake3:{'1' * 64}", "name": "dream-v8", "base": "sd-1", "type": "main"}
    return {"invokeai_metadata": json.dumps({
        "app_version": "5.6.0", "generation_mode": "txt2img", "positive_prompt": "a fox", "negative_prompt": "blurry",
        "width": 64, "height": 64, "seed": 99, "rand_device": "cpu", "cfg_scale": 4.0, "cfg_rescale_multiplier": 0.0,
        "steps": 3, "scheduler": "euler_a", "clip_skip": 0, "model": model, "loras": loras})}   # fmt: skip


@pytest.mark.parametrize("tool", ["A1111", "ComfyUI", "InvokeAI"])
def test_pictures_of_other_tools_are_opened_and_what_is_missing_is_named(
    page: Page, home: Home, tmp_path: Path, tool: str
) -> None:
    chunks = PngImagePlugin.PngInfo()
    for key, text in foreign_texts(tool).items():
        chunks.add_text(key, text)
    Image.new("RGB", (64, 64)).save(tmp_path / "foreign.png", pnginfo=chunks)
    open_studio(page)
    page.get_by_text("Size, steps and more").click()
    page.set_input_files("#open-picture input[type=file]", tmp_path / "foreign.png")
    expect(page.locator("#prompt :is(textarea, input)")).to_have_value("a fox")
    said = page.locator(".draw-progress")
    expect(said).to_contain_text(f"Settings from {tool}")
    expect(said).to_contain_text("Missing adapter: gone")
    expect(said).to_contain_text("Missing base model: dream-v8")
    expect(page.locator("#strength-0 input[type=range]")).to_have_value("0.6")
    expect(page.locator("#strength-1 input[type=range]")).to_have_count(0)
    assert [value(page, name) for name in ("seed", "set-negative", "set-steps", "set-guidance")] == [
        "99", "blurry", "3", "4"]   # fmt: skip
    assert value(page, "set-sampler") == "euler a"


def test_pictures_are_dropped_on_the_gallery_and_none_is_lost(page: Page, home: Home, tmp_path: Path) -> None:
    before = {picture.id for picture in gallery_page(home)}
    paths = []
    for number, tool in enumerate(("A1111", "InvokeAI", "A1111")):
        chunks = PngImagePlugin.PngInfo()
        for keyword, text in foreign_texts(tool).items():
            chunks.add_text(keyword, text)
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(paths[-1], pnginfo=chunks)
    visit(page, "/gallery")
    page.locator("#add-elsewhere > button").click()
    for path in paths:   # each a drop of its own, while the one before is uploaded
        page.set_input_files("#add-to-gallery input[type=file]", path)
    expect(page.locator("#added-pictures li.ok")).to_have_count(3, timeout=PATIENT)
    expect(page.locator("#gallery-pictures [data-action=open]")).to_have_count(len(before) + 3, timeout=PATIENT)
    assert len({picture.id for picture in gallery_page(home)} - before) == 3


def test_own_pictures_are_drawn_again_byte_for_byte(page: Page, home: Home) -> None:
    """One at each place of a batch of four with an adapter, and one that was painted over."""
    open_studio(page, "?adapter=one")
    page.get_by_text("Size, steps and more").click()
    fill(page, "set-steps", "6")
    page.locator("#count input[type=number]").fill("4")
    page.click("#draw")
    expect(page.locator("#drawn-pictures a[download]")).to_have_count(4, timeout=PATIENT)
    idle(page)
    batch = [picture.id for picture in gallery_page(home, limit=4)]
    masked = next(each.id for each in gallery_page(home) if (read_recipe(each.path) or {}).get("start"))
    for id in (*batch, masked):
        again = drawn_again(page, home, id)
        first, second = (Image.open(home.gallery / f"{name}.png").tobytes() for name in (id, again))
        assert id != again and first == second


def drawn_again(page: Page, home: Home, id: str) -> str:
    """Drop a picture's file on a fresh page, and draw with its settings; returns the id of the new one."""
    open_studio(page)
    page.set_input_files("#open-picture input[type=file]", home.gallery / f"{id}.png")
    expect(page.locator(".draw-progress")).to_contain_text("settings")
    expect(page.locator("#count input[type=number]")).to_have_value("1")
    page.wait_for_timeout(1500)   # the editor takes over its picture
    before = newest(home)[0]
    page.click("#draw")
    expect(page.locator(".draw-progress")).not_to_contain_text("settings")
    idle(page)
    deadline = time.monotonic() + 60
    while newest(home)[0] == before and time.monotonic() < deadline:
        page.wait_for_timeout(200)
    return newest(home)[0]


def test_a_grid_is_drawn_and_voted_on(page: Page, home: Home) -> None:
    id, _ = newest(home)
    visit(page, f"/grid?picture={id}")
    page.locator("#axis-0 input").click()
    page.get_by_role("option", name="Seed", exact=True).click()
    fill(page, "values-0", "1..3:3")
    page.click("#start-grid")
    page.wait_for_url("**/grid?grid=*")
    expect(page.locator(".drawing-grid")).to_have_attribute("data-complete", "true", timeout=PATIENT)
    expect(page.locator(".drawing-grid td img")).to_have_count(3)
    page.locator(".vote-pair button").first.click()
    expect(page.locator(".ranking").first.locator("li")).to_have_count(2)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download with labels").click()
    assert download.value.suggested_filename.startswith("grid-")
    page.locator(".drawing-grid td a").first.click()
    page.wait_for_url("**/studio?picture=*")
    expect(page.locator("#seed input")).to_have_value("1")


@needs_axe
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_that_draws_has_a_serious_violation(browser: Browser, server: Server, home: Home, theme: str) -> None:
    context = browser.new_context(base_url=server.url, color_scheme=theme, bypass_csp=True)   # type: ignore[arg-type]
    page, picture = context.new_page(), newest(home)[0]
    opened = {"/studio?adapter=one": ".label-wrap", "/mix": ".label-wrap", "/gallery": "#add-elsewhere > button",
              f"/gallery?picture={picture}": "", "/grid": ".label-wrap", "/settings": ".label-wrap",
              "/compress": ".label-wrap"}   # fmt: skip
    for path, folded in opened.items():
        visit(page, path)
        for button in page.locator(folded).all() if folded else []:
            if button.is_visible():
                button.click()
        assert serious_violations(page) == [], path
    context.close()


def test_pictures_are_searched_starred_and_walked_through(page: Page, home: Home) -> None:
    visit(page, "/gallery")
    tiles = page.locator("#gallery-pictures [data-action=open]")
    expect(tiles).to_have_count(len(gallery_page(home)))
    fill(page, "search-pictures", "no such words")
    expect(page.get_by_text("No picture fits this search.")).to_be_visible()
    fill(page, "search-pictures", "FOX")
    expect(page.get_by_text("No picture fits this search.")).to_have_count(0)
    tiles.first.click()
    dialog = page.locator("dialog[open]")
    shown = dialog.get_attribute("data-id")
    page.keyboard.press("ArrowRight")
    expect(page.locator(f"dialog[open]:not([data-id='{shown}'])")).to_be_visible()
    dialog.get_by_role("button", name="Star").click()
    expect(dialog.get_by_role("button", name="Remove the star")).to_be_visible()
    starred = dialog.get_attribute("data-id")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    page.locator("#only-starred input").check()
    expect(tiles).to_have_count(1)
    expect(tiles).to_have_attribute("data-id", starred or "")
    page.locator("#gallery-pictures .pick").check(force=True)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as ZIP").click()
    assert download.value.suggested_filename.endswith(".zip")
