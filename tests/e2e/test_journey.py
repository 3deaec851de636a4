"""One person's way through the whole product, in a real browser: pictures in, an adapter out.

The tests of this file share one home and run in order: each goes on where the one before it stopped.
"""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e.browsing import PATIENT, PICTURES, ROOT, Server, Watch, fill, paint, value, visit
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from safetensors import safe_open
from safetensors.torch import save_file

from atelier.app.jobs.jobs import new_run
from atelier.app.store.home import open_home
from atelier.training.config.compress_config import CompressConfig
from atelier.training.config.events import Finished
from atelier.training.config.run_folder import RunFolder
from atelier.training.runs.run import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]
SHOTS = ROOT / "build" / "screenshots"
PAGES = ("/", "/studio", "/mix", "/compress", "/library", "/gallery", "/jobs", "/settings")
STEP = "+(document.querySelector('#run .job-page') || {dataset: {}}).dataset.step"
# Angle brackets are escaped everywhere; the dollar is what Gradio itself would run as a script.
PROBE = "fox ${window.probe=1} `${alert(1)}` <img src=x onerror=window.probe=2> \\"
expect.set_options(timeout=60_000)   # a busy machine takes its time


@pytest.fixture(scope="module")
def home(home_path: Path) -> Path:
    return home_path


@pytest.fixture
def page(page: Page) -> Iterator[Page]:
    yield page
    assert page.evaluate("window.probe") is None


def kept(page: Page, home: Path, **values: object) -> None:
    """Wait until the draft on disk says what was typed."""
    said: dict[str, object] = {}
    for _ in range(600):
        said = json.loads((home / "state" / "draft" / "draft.json").read_text())
        if values.items() <= said.items():
            return
        page.wait_for_timeout(200)   # not time.sleep: requests pass through this very thread
    raise AssertionError(f"the draft says {said}, not {values}")


def first_picture(page: Page) -> str:
    return page.locator("#drawn-pictures img").first.get_attribute("src") or ""


def pixels(page: Page) -> str:
    """The first picture as the browser decodes it."""
    return page.evaluate("""async () => { const picture = document.querySelector('#drawn-pictures img');
        await picture.decode(); const canvas = Object.assign(document.createElement('canvas'), {width: 64, height: 64});
        canvas.getContext('2d').drawImage(picture, 0, 0, 64, 64); return canvas.toDataURL(); }""")


def test_pictures_become_a_draft_that_survives_a_reload(page: Page, home: Path, tmp_path: Path) -> None:
    visit(page, "/")
    expect(page.locator("#memory-hint")).to_contain_text("is free.")
    page.click("#start-training")
    expect(page.get_by_text("There are no pictures to train on yet.")).to_be_visible()
    fake = tmp_path / "${window.probe=3} notes.png"
    fake.write_text("text, whatever its name says")
    page.set_input_files("#add-pictures input[type=file]", [*PICTURES, fake, PICTURES[0]])
    expect(page.locator("#training-pictures .picture-count")).to_have_text("5 pictures to train on, 2 not used")
    expect(page.locator("#training-pictures .warnings li")).to_have_text([
        re.compile("is text, but a PNG, JPEG, WebP, AVIF or HEIC is needed"),
        re.compile("is the same picture as fox_01.png")])
    page.get_by_label("Animal").check(force=True)
    page.get_by_label("Quick").check(force=True)
    fill(page, "subject", PROBE)
    fill(page, "name", "../fox")
    kept(page, home, what="animal", preset="quick", subject=PROBE, name="../fox")
    visit(page, "/")
    expect(page.locator("#training-pictures .picture-count")).to_have_attribute("data-usable", "5")
    expect(page.get_by_label("Animal")).to_be_checked()
    assert (value(page, "subject"), value(page, "name")) == (PROBE, "../fox")
    page.click("#start-training")
    expect(page.get_by_text("The name '../fox' can't be used")).to_be_visible()
    expect(page.locator("#training-pictures .picture-count")).to_have_attribute("data-usable", "5")


def test_teach_it_and_reload_in_the_middle(page: Page, home: Path) -> None:
    visit(page, "/")
    expect(page.locator("#training-pictures .picture-count")).to_have_attribute("data-usable", "5", timeout=60_000)
    fill(page, "name", "foxy")
    kept(page, home, name="foxy")
    expect(page.locator("#trigger-hint")).to_contain_text("“foxy” already means something", timeout=60_000)
    page.locator("#trigger-hint button").click()
    expect(page.locator("#trigger-hint")).to_contain_text("Trigger word: “cf”", timeout=60_000)
    kept(page, home, changes={"trigger": "cf"})
    page.locator("#trigger-hint").get_by_role("button", name="Use the name instead").click()
    expect(page.locator("#trigger-hint")).to_contain_text("“foxy” already means something", timeout=60_000)
    kept(page, home, changes={})
    page.locator("#trigger-hint button").click()
    expect(page.locator("#trigger-hint")).to_contain_text("Trigger word: “cf”", timeout=60_000)
    page.screenshot(path=SHOTS / "create-word.png", full_page=True)
    page.click("#start-training")
    page.wait_for_url("**/jobs?run=*")
    assert RunFolder(next((home / "runs").iterdir())).config().trigger == "cf"
    # What was typed is shown as it is, and does nothing.
    expect(page.locator("#run header .hint")).to_contain_text(PROBE, timeout=PATIENT)
    page.wait_for_function(f"{STEP} > 3", timeout=PATIENT)
    before = page.evaluate(STEP)
    expect(page.locator("#job-bar .job b")).to_have_text("foxy")
    page.screenshot(path=SHOTS / "job-learning.png", full_page=True)
    page.reload(wait_until="domcontentloaded")
    page.wait_for_function(f"{STEP} >= {before}", timeout=PATIENT)
    page.wait_for_function("(document.querySelector('#run .job-page') || {dataset: {}}).dataset.state === 'done'",
                           timeout=PATIENT)   # fmt: skip
    expect(page.locator("#run .preview-strip img").first).to_be_visible()
    page.get_by_role("link", name="Open in Studio").click()
    page.wait_for_url("**/studio?adapter=foxy")


def test_the_slider_moves_by_keyboard_and_the_picture_changes(page: Page) -> None:
    visit(page, "/studio?adapter=foxy")
    # The first pictures come by themselves; while they emerge there is nothing to download.
    expect(page.locator("#drawn-pictures a[download]")).to_have_count(4, timeout=PATIENT)
    before, strong = first_picture(page), pixels(page)
    slider = page.locator("#strength-0 input[type=range]")
    expect(page.locator("#strength-0 label")).to_have_text("foxy")
    slider.focus()
    for _ in range(20):
        slider.press("ArrowLeft")
    assert float(slider.input_value()) == 0
    page.wait_for_function("before => document.querySelector('#drawn-pictures img').getAttribute('src') !== before",
                           arg=before, timeout=PATIENT)   # fmt: skip
    page.wait_for_function("document.querySelector('.draw-progress').dataset.busy === 'false'", timeout=PATIENT)
    page.wait_for_timeout(1500)
    assert pixels(page) != strong
    page.locator("#keep-seed input").check()
    page.get_by_text("Size, steps and more").click()
    page.locator("#set-sampler input").click()
    page.get_by_role("option", name="unipc").click()
    page.evaluate("""() => { window.looks = []; const wall = document.querySelector('#drawn-pictures');
        new MutationObserver(() => { const look = wall.querySelector('img[alt="Unfinished picture"]');
            if (look) window.looks.push(look.src.slice(0, 15)); }).observe(wall, {subtree: true, childList: true,
            attributes: true}); }""")
    fill(page, "prompt", "an emoji of a fox ${window.probe=4}")
    page.keyboard.press("Control+Enter")
    # Not just any new picture: a drawing that the slider asked for may still have been under way.
    page.locator("#drawn-pictures img[alt*='window.probe=4']").first.wait_for(timeout=PATIENT)
    assert set(page.evaluate("window.looks")) == {"data:image/jpeg"}   # it was seen to emerge


def test_the_gallery_shows_it_and_gives_the_settings_back(page: Page) -> None:
    visit(page, "/gallery")
    expect(page.locator("#gallery-pictures .gallery-count")).to_contain_text("pictures")
    page.locator("#gallery-pictures [data-action=open]").first.click()
    expect(page.locator("#picture-details .prompt")).to_have_text("an emoji of a fox ${window.probe=4}")
    expect(page.locator("#picture-details .facts")).to_contain_text("foxy 0")
    expect(page.locator("#picture-details .facts")).to_contain_text("unipc")
    id = page.locator("#gallery-pictures [data-action=open]").first.get_attribute("data-id")
    page.locator("#picture-details").get_by_role("button", name="Delete").click()
    expect(page.locator(f"#gallery-pictures [data-action=open][data-id='{id}']")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(f"#gallery-pictures [data-action=open][data-id='{id}']")).to_have_count(1)
    page.locator("#gallery-pictures [data-action=open]").first.click()
    page.get_by_role("link", name="Use these settings").click()
    page.wait_for_url("**/studio?picture=*")
    expect(page.locator("#prompt :is(textarea, input)")).to_have_value("an emoji of a fox ${window.probe=4}")
    expect(page.locator("#keep-seed input")).to_be_checked()
    expect(page.locator("#strength-0 input[type=range]")).to_have_value("0")
    assert value(page, "seed") != ""


def test_the_export_comes_as_a_file_another_tool_reads(page: Page, tmp_path: Path) -> None:
    visit(page, "/library")
    fill(page, "search", "no such thing")
    expect(page.locator("#adapter-cards .card")).to_have_count(0)
    fill(page, "search", "FOX")
    page.locator("#adapter-cards .card").click()
    expect(page.locator("#adapter-details code")).to_have_text("cf")   # the word it was given
    page.locator("#export > button").click()
    with page.expect_download() as download:
        page.click("#export-now")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.name == "foxy.safetensors"
    with safe_open(path, "pt") as file:
        keys, metadata = list(file.keys()), file.metadata()
    assert keys and all(key.startswith("lora_unet_") for key in keys)
    assert metadata["ss_network_module"] == "networks.lora"
    expect(page.locator("#export-report")).to_contain_text("exact, except for rounding")


def test_an_adapter_is_deleted_and_put_back(page: Page) -> None:
    visit(page, "/library?adapter=foxy")
    page.locator("#adapter-details").get_by_role("button", name="Delete").click()
    expect(page.locator("#adapter-cards .card")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#adapter-cards .card b")).to_have_text("foxy")


def test_the_trash_outlives_a_reload_and_details_close(page: Page) -> None:
    visit(page, "/library?adapter=foxy")
    page.get_by_role("button", name="Star", exact=True).click()
    expect(page.locator("#adapter-cards .star")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator("#adapter-details .detail")).to_have_count(0)
    page.locator("#adapter-cards .card").click()
    page.locator("#adapter-details").get_by_role("button", name="Delete").click()
    expect(page.locator("#adapter-cards .card")).to_have_count(0)
    visit(page, "/library")
    page.locator("#trash > button").click()
    page.get_by_role("button", name="Restore foxy").click()
    expect(page.locator("#adapter-cards .star")).to_have_count(1)


def test_files_of_other_tools_come_in_and_say_what_is_wrong(page: Page, tmp_path: Path) -> None:
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{layer}.lora_up.weight": torch.ones(64, 2), f"{layer}.lora_down.weight": torch.ones(2, 192)}
    save_file(tensors, tmp_path / "ink.safetensors")
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><title>Sign in</title>")
    visit(page, "/library")
    page.locator("#import > button").click()
    page.set_input_files("#import-files input[type=file]", sorted(tmp_path.iterdir()))
    expect(page.locator("#import-results li")).to_have_count(2)
    expect(page.locator("#import-results li.ok")).to_contain_text("ink was added to your library")
    expect(page.locator("#import-results li:not(.ok)")).to_contain_text("page.safetensors is a web page")
    expect(page.locator("#adapter-details h2")).to_have_text("ink")
    expect(page.locator("#adapter-cards .card")).to_have_count(2)
    page.locator("#adapter-details").get_by_role("button", name="Delete").click()
    expect(page.locator("#adapter-cards .card")).to_have_count(1)
    expect(page.locator("#adapter-cards .card b")).to_contain_text("foxy")


def teach(page: Page, name: str) -> None:
    """Upload the pictures, teach them with the shortest preset, and wait for the first steps."""
    visit(page, "/")
    page.set_input_files("#add-pictures input[type=file]", PICTURES)
    expect(page.locator("#training-pictures .picture-count")).to_have_attribute("data-usable", "5")
    page.get_by_label("Quick").check(force=True)
    fill(page, "subject", "fox")
    fill(page, "name", name)
    page.click("#start-training")
    page.wait_for_url("**/jobs?run=*")
    page.wait_for_function(f"{STEP} > 2", timeout=PATIENT)
    expect(page.locator("#run .job-figures")).to_contain_text("/ 60")   # the preset chosen a moment before


def wait_for_state(page: Page, state: str) -> None:
    expect(page.locator("#run .job-page")).to_have_attribute("data-state", state, timeout=PATIENT)


def test_a_run_is_paused_tried_and_outlives_its_web_server(page: Page, watch: Watch, server: Server) -> None:
    teach(page, "second")
    page.locator("#run").get_by_role("button", name="Pause").click()
    wait_for_state(page, "paused")
    step = page.evaluate(STEP)
    fill(page, "preview-prompt", "a second fox at night")
    page.click("#draw-preview")
    expect(page.locator("#run .preview-strip button[aria-label*='at night']")).to_have_count(1, timeout=PATIENT)
    page.screenshot(path=SHOTS / "job-paused.png", full_page=True)
    server.kill()
    server.start()
    page.reload(wait_until="domcontentloaded")
    wait_for_state(page, "paused")
    # The browser noticed, and that the server was still starting; the page must not stumble.
    assert all("net::ERR_" in error or "503 (Service Unavailable)" in error for error in watch.errors)
    watch.errors.clear()
    assert page.evaluate(STEP) == step
    page.locator("#run").get_by_role("button", name="Resume").click()
    page.wait_for_function(f"{STEP} > {step}", timeout=PATIENT)
    page.locator("#run").get_by_role("button", name="Stop").click()
    wait_for_state(page, "done")
    assert page.evaluate(STEP) < 60
    visit(page, "/library")
    fill(page, "search", "second")
    expect(page.locator("#adapter-cards .card")).to_have_count(1, timeout=60_000)
    expect(page.locator("#adapter-cards .card b")).to_have_text("second")


def test_a_cancelled_run_leaves_nothing_in_the_library(page: Page) -> None:
    teach(page, "third")
    page.locator("#run").get_by_role("button", name="Cancel").click()
    wait_for_state(page, "stopped")
    visit(page, "/library")
    fill(page, "search", "third")
    expect(page.locator("#adapter-cards .card")).to_have_count(0, timeout=60_000)


def wait_for_draft(page: Page, home: Path, enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until the draft on disk is as it should be; returns it."""
    draft: dict[str, Any] = {}
    for _ in range(600):
        with suppress(OSError):
            draft = json.loads((home / "state" / "draft" / "draft.json").read_text())
            if enough(draft):
                return draft
        page.wait_for_timeout(200)
    pictures = [picture["name"] for picture in draft.get("pictures", [])]   # without their thumbnails
    raise AssertionError(f"the draft says {pictures}, {({**draft, 'pictures': None})}")


# Drops files one by one on the field, 30 ms apart, as fast as nobody can.
DROPS = """files => { window.dropped = (async () => {
    for (const [name, content] of files) {
        const data = new DataTransfer(), bytes = Uint8Array.from(atob(content), one => one.charCodeAt(0));
        data.items.add(new File([bytes], name, {type: 'image/png'}));
        const field = document.querySelector('#add-pictures button');
        for (const type of ['dragenter', 'dragover', 'drop'])
            field.dispatchEvent(new DragEvent(type, {bubbles: true, cancelable: true, dataTransfer: data}));
        await new Promise(done => setTimeout(done, 30));
    } })(); }"""


def start_dropping(page: Page, pictures: Sequence[Path]) -> None:
    page.evaluate(DROPS, [(path.name, b64encode(path.read_bytes()).decode()) for path in pictures])


def slow_down(page: Page, milliseconds: int) -> None:
    """Let each of a page's requests take longer, as on a slow network."""
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", {
        "offline": False, "latency": milliseconds, "downloadThroughput": -1, "uploadThroughput": -1})


def test_two_tabs_drop_pictures_at_once_and_none_is_lost(page: Page, watch: Watch, home: Path) -> None:
    shutil.rmtree(home / "state" / "draft", ignore_errors=True)   # whatever the tests before have left
    pictures, other = sorted(PICTURES[0].parent.glob("*.png"))[:10], watch.context.new_page()
    for tab in (page, other):
        visit(tab, "/")
        slow_down(tab, 400)
    start_dropping(page, pictures[:5])
    start_dropping(other, pictures[5:])
    draft = wait_for_draft(page, home, lambda draft: len(draft["pictures"]) == 10)
    assert sorted(picture["name"] for picture in draft["pictures"]) == [path.name for path in pictures]
    for tab in (page, other):
        expect(tab.locator(".upload-queue")).to_be_empty()
        tab.evaluate("document.dispatchEvent(new Event('visibilitychange'))")   # as whoever comes back to it
        expect(tab.locator(".picture-count")).to_have_attribute("data-usable", "10")
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator(".picture-count")).to_have_attribute("data-usable", "0")
    page.locator("#training-pictures").get_by_role("button", name="Undo").click()
    expect(page.locator(".picture-count")).to_have_attribute("data-usable", "10")
    page.get_by_role("button", name="Remove all").click()
    wait_for_draft(page, home, lambda draft: draft["pictures"] == [])


def test_pictures_are_dropped_beside_the_field_and_chosen_twice(page: Page, home: Path) -> None:
    shutil.rmtree(home / "state" / "draft", ignore_errors=True)
    visit(page, "/")
    at, drag = {"x": 700, "y": 120}, {"items": [], "files": [str(PICTURES[0])], "dragOperationsMask": 1}
    mouse = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):   # what the browser itself does with a file from outside
        mouse.send("Input.dispatchDragEvent", {"type": kind, **at, "data": drag})
    for _ in range(2):
        page.set_input_files("#add-pictures input[type=file]", PICTURES[1])
    draft = wait_for_draft(page, home, lambda draft: len(draft["pictures"]) == 3)
    assert [picture["name"] for picture in draft["pictures"]] == ["fox_01.png", "fox_02.png", "fox_02.png"]
    expect(page.locator(".picture-count")).to_have_text("2 pictures to train on, 1 not used")
    assert page.url.endswith("/"), "the browser did not open the picture"
    page.get_by_role("button", name="Remove all").click()
    wait_for_draft(page, home, lambda draft: draft["pictures"] == [])


def test_captions_are_edited_and_a_part_is_masked(page: Page, home: Path) -> None:
    visit(page, "/")
    page.set_input_files("#add-pictures input[type=file]", PICTURES[:2])
    fill(page, "name", "rex")
    wait_for_draft(page, home, lambda draft: len(draft["pictures"]) == 2 and draft["name"] == "rex")
    page.locator("#captions > button").click()
    fields = page.locator("#picture-captions textarea")
    fields.first.fill("on a table")
    fields.first.blur()
    expect(page.locator("#picture-captions .word")).to_have_text("rex")
    fill(page, "caption-find", "table")
    fill(page, "caption-text", PROBE)
    page.click("#caption-apply")
    draft = wait_for_draft(page, home, lambda draft: PROBE in draft["pictures"][0]["caption"])
    assert draft["pictures"][0]["caption"] == f"{{trigger}} on a {PROBE}"
    expect(fields.first).to_have_value(f"on a {PROBE}")
    page.locator("#picture-captions [data-action=edit]").first.click()
    canvas = page.locator("#picture-canvas canvas").first
    canvas.wait_for()
    paint(page, canvas, (0.5, 0.55))
    page.screenshot(path=SHOTS / "create-mask.png", full_page=True)
    page.click("#save-picture")
    draft = wait_for_draft(page, home, lambda draft: bool(draft["pictures"][0]["mask"]))
    with Image.open(home / "state" / "draft" / draft["pictures"][0]["mask"]) as mask:
        low, high = mask.convert("L").getextrema()
    assert (low, high) == (0, 255), "a part of it"
    expect(page.locator("#picture-captions .chip-note")).to_have_text("Only a part is learned")
    page.get_by_role("button", name="Remove all").click()
    wait_for_draft(page, home, lambda draft: draft["pictures"] == [])


def test_settings_are_found_marked_and_taken_along_as_a_file(page: Page, home: Path, tmp_path: Path) -> None:
    visit(page, "/")
    expect(page.locator("#memory-hint")).to_contain_text("is free.", timeout=PATIENT)   # everything is loaded
    page.locator("#expert > button").click()
    page.locator("#expert .filter").fill("random seed")
    expect(page.locator("#set-seed")).to_be_visible()
    expect(page.locator("#set-lr")).to_be_hidden()
    fill(page, "set-seed", "7")
    page.keyboard.press("Tab")
    expect(page.locator("#set-seed[data-changed]")).to_be_visible()
    wait_for_draft(page, home, lambda draft: draft["changes"] == {"seed": 7})
    with page.expect_download() as download:
        page.click("#export-recipe")
    download.value.save_as(tmp_path / "recipe.toml")
    page.get_by_role("button", name="Reset to the preset").click()
    wait_for_draft(page, home, lambda draft: draft["changes"] == {})
    page.set_input_files("input[type=file][accept*='.toml']", tmp_path / "recipe.toml")
    wait_for_draft(page, home, lambda draft: draft["changes"] == {"seed": 7})


@pytest.mark.slow
def test_an_example_is_trained_in_two_clicks(page: Page, home: Path) -> None:
    shutil.rmtree(home / "state" / "draft", ignore_errors=True)
    visit(page, "/")
    expect(page.locator("#memory-hint")).to_contain_text("is free.", timeout=PATIENT)
    page.get_by_role("button", name="Rocket").click()
    expect(page.locator(".picture-count")).to_have_attribute("data-usable", "11", timeout=PATIENT)
    expect(page.locator("#preset-note")).to_contain_text("training", timeout=PATIENT)
    is_estimated = "earlier" in page.locator("#preset-note").inner_text()   # from those of the tests before
    page.screenshot(path=SHOTS / "create-example.png", full_page=True)
    page.click("#start-training")
    page.wait_for_url("**/jobs?run=*")
    run = RunFolder(sorted((home / "runs").iterdir())[-1])
    assert (run.config().name, run.config().subject) == ("orbi", "rocket")
    assert (run.path / "estimate.json").exists() == is_estimated
    page.locator("#run").get_by_role("button", name="Cancel").click()
    wait_for_state(page, "stopped")


def test_base_models_of_a_folder_can_be_chosen(page: Page, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(ROOT / "assets" / "base")
    visit(page, "/settings")
    fill(page, "model-folders", str(tmp_path / "nowhere"))
    page.click("#scan-models")
    expect(page.get_by_text("is not a folder on the machine")).to_be_visible()
    fill(page, "model-folders", str(tmp_path))
    page.click("#scan-models")
    expect(page.locator("#models dt")).to_have_text(["mine"])
    expect(page.locator("#models dd")).to_contain_text("fp16")
    visit(page, "/studio")
    page.get_by_text("Size, steps and more").click()
    page.locator("#base input").click()
    page.get_by_role("option", name="mine").click()
    assert value(page, "base").startswith("mine")


@pytest.fixture(scope="module")
def compressed(home: Path, server: Server) -> list[RunFolder]:
    """Two compressions that wait for a decision: one measured here in seconds, and a copy of it."""
    config = CompressConfig(name="little", preset="w4a8", steps=0, timesteps=3, search=False)
    first = new_run(open_home(home), config, started=True)
    assert isinstance(list(run(first, home / "adapters"))[-1], Finished)
    second = RunFolder(first.path.with_name(first.id.replace("little", "other")))
    shutil.copytree(first.path, second.path)
    recipe = second.path / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("little", "other"))
    return [first, second]


def seam(page: Page) -> float:
    """Where the picture on top is cut, as a share of the width."""
    return page.evaluate("""() => { const wall = document.querySelector('.comparison-view').getBoundingClientRect();
        const seam = document.querySelector('.divider').getBoundingClientRect();
        return (seam.left + seam.width / 2 - wall.left) / wall.width; }""")


def test_a_compressed_model_is_compared_kept_and_used(page: Page, home: Path, compressed: list[RunFolder]) -> None:
    visit(page, f"/compress?run={compressed[0].id}")
    expect(page.locator("#compression .comparison")).to_have_count(4, timeout=60_000)
    slider = page.locator("#compression .comparison input").first
    covered = page.locator("#compression .before-picture").first
    assert seam(page) == pytest.approx(0.5, abs=0.02)
    before = covered.evaluate("picture => getComputedStyle(picture).clipPath")
    slider.focus()
    for _ in range(20):
        slider.press("ArrowRight")
    assert seam(page) == pytest.approx(0.7, abs=0.02)
    assert covered.evaluate("picture => getComputedStyle(picture).clipPath") != before
    box = slider.bounding_box()
    assert box
    page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + box["height"] / 2)
    assert seam(page) == pytest.approx(0.25, abs=0.05)
    page.locator("#compression").get_by_role("button", name="Keep").click()
    expect(page.locator("#compression .job-state")).to_contain_text("Kept.")
    assert (home / "bases" / "little" / "unet" / "packed.safetensors").is_file()
    visit(page, "/studio")
    page.get_by_text("Size, steps and more").click()
    page.locator("#base input").click()
    page.get_by_role("option", name="little").click()
    fill(page, "prompt", "a small hat")
    page.keyboard.press("Control+Enter")
    page.locator("#drawn-pictures img[alt*='a small hat']").first.wait_for(timeout=PATIENT)


def test_a_discarded_one_is_gone_and_nothing_else(page: Page, home: Path, compressed: list[RunFolder]) -> None:
    other = compressed[1]
    before = {path for path in home.rglob("*") if path.is_file() and other.path not in path.parents}
    visit(page, f"/compress?run={other.id}")
    page.locator("#compression").get_by_role("button", name="Discard").click()
    expect(page.locator("#compression .job-state")).to_contain_text("Discarded.")
    assert not (other.path / "compressed").exists()
    assert (other.path / "report.json").is_file()
    assert before <= {path for path in home.rglob("*") if path.is_file()}
    visit(page, "/studio")
    page.get_by_text("Size, steps and more").click()
    page.locator("#base input").click()
    expect(page.get_by_role("option", name="little")).to_have_count(1)
    expect(page.get_by_role("option", name="other")).to_have_count(0)


@pytest.mark.parametrize(("width", "theme"), [
    (1440, "light"), (390, "dark"),
    pytest.param(1440, "dark", marks=pytest.mark.slow), pytest.param(390, "light", marks=pytest.mark.slow),
])   # fmt: skip
def test_every_page_fits_and_is_reached_by_keyboard(
    browser: Browser, url: str, width: int, theme: str, compressed: list[RunFolder]
) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    phone = {"is_mobile": True, "has_touch": True} if width == 390 else {}
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, base_url=url, **phone)
    watch = Watch(context, url)
    page = context.new_page()
    page.set_default_timeout(120_000)
    report = f"/compress?run={compressed[0].id}"
    for path in (*PAGES, report):
        visit(page, path)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        assert page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement !== document.body"), f"Tab reaches nothing on {path}"
        page.wait_for_timeout(700)
        # As tall as the page itself, so that what is fixed to the bottom is not in its middle.
        page.set_viewport_size({"width": width, "height": max(900, page.evaluate("document.body.scrollHeight"))})
        name = "compress-report" if path == report else path.strip("/") or "create"
        page.screenshot(path=SHOTS / f"{name}-{width}-{theme}.png")
        page.set_viewport_size({"width": width, "height": 900})
    context.close()
    watch.check()
