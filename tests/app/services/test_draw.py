"""Drawing as pages and the command line do: events on the way, cancelling, recipes, and who decides the sampler."""

from __future__ import annotations

import argparse
import io
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from atelier.adapters.attach.mount import MountError
from atelier.adapters.formats.foreign_metadata import find_sampler
from atelier.adapters.textual_inversion import TextualInversion
from atelier.app.cli.arguments import build_parser
from atelier.app.cli.main import main
from atelier.app.services import draw_again
from atelier.app.services.draw import (
    ALONE,
    BatchPlace,
    DrawJob,
    DrawPreview,
    Progress,
    check_job,
    draw,
    draw_preview,
    draw_to_gallery,
    with_sampler,
)
from atelier.app.services.draw_again import job_from_picture, with_hidden_settings
from atelier.app.services.engine import DrawCallbacks, Engine
from atelier.app.services.fuse import LIVE_STEPS, draw_mix
from atelier.app.services.import_export import import_file
from atelier.app.services.like_picture import job_like
from atelier.app.store.gallery import GalleryPicture, encode_picture, gallery_page, make_recipe, picture_id, read_recipe
from atelier.app.store.home import Home, HomeError, open_home
from atelier.app.store.library import find_adapter
from atelier.app.store.mixes import MixEntry, RegionEntry, SavedMix, entry_details, read_entry, rectangle_rows
from atelier.app.store.models import ModelEntry
from atelier.app.store.textual_inversions import (
    delete_textual_inversion,
    find_textual_inversion,
    keep_textual_inversion,
)
from atelier.training.base_models.identify import EMBEDDED_FOLDER, identify
from atelier.training.config.train_config import EMBEDDED
from atelier.training.sampling.sample import DrawRequest
from atelier.training.sampling.samplers import AUTO, SAMPLERS
from atelier.training.sampling.start_picture import StartPicture

KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
# As it lay in the gallery before there was a choice of samplers.
OLD = {"schema": 1, "prompt": "a fox", "negative": "", "seed": 3, "steps": 2, "guidance": 3.0, "base": "embedded",
       "family": "embedded", "adapters": [], "width": 64, "height": 64}   # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(tmp_path / "home")


def foreign(folder: Path, name: str, up: float = 0.0, **metadata: str) -> Path:
    """A LoRA as other tools write it; with ``up`` 0 it changes nothing."""
    folder.mkdir(exist_ok=True)
    tensors = {f"{KOHYA}.lora_up.weight": torch.full((128, 2), up), f"{KOHYA}.lora_down.weight": torch.ones(2, 192)}
    save_file(tensors, folder / name, {"format": "pt", **metadata})
    return folder / name


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


def drawn(home: Home, engine: Engine, job: DrawJob) -> tuple[list[Any], list[GalleryPicture]]:
    """The events on the way, and the pictures."""
    *way, pictures = draw_to_gallery(home, engine, job)
    assert isinstance(pictures, list)
    return way, pictures


def add_picture(home: Home, recipe: dict[str, Any]) -> str:
    """Put a picture with this recipe into the gallery, as an older Atelier did."""
    chunks, id = PngImagePlugin.PngInfo(), picture_id()
    chunks.add_itxt("atelier", json.dumps(recipe))
    Image.new("RGB", (64, 64)).save(home.gallery / f"{id}.png", pnginfo=chunks)
    return id


class FakeEngine:
    """Draws black pictures, a pixel each, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []   # seed, count
        self.at_work = threading.Lock()
        self.before_step: Callable[[int], None] = lambda _step: None

    def draw(
        self, base: str, adapters: Any, request: DrawRequest, method: str, *,
        callbacks: DrawCallbacks, **_: Any,
    ) -> list[Image.Image]:   # fmt: skip
        with self.at_work:
            self.asked.append((request.seed, request.count))
            for step in range(1, request.steps + 1):
                self.before_step(step)
                if callbacks.on_step:
                    callbacks.on_step(step, request.steps)
            return [Image.new("RGB", (1, 1)) for _ in range(request.count)]


def fake_job(**values: Any) -> DrawJob:
    return DrawJob(request=DrawRequest(prompt="a fox", **values))


def test_each_step_is_told_and_the_pictures_come_last(home):
    *steps, pictures = draw_to_gallery(home, cast(Engine, FakeEngine()), fake_job(steps=3, count=2))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert isinstance(pictures, list)
    assert [(read_recipe(picture.path) or {})["seed"] for picture in pictures] == [0, 1]
    assert gallery_page(home) == pictures[::-1]


def test_an_error_reaches_who_waits_for_the_drawing(home):
    engine = FakeEngine()

    def fail(step: int) -> None:
        raise MountError("It does not fit.")

    engine.before_step = fail
    with pytest.raises(MountError, match="does not fit"):
        list(draw_to_gallery(home, cast(Engine, engine), fake_job()))


def test_a_drawing_nobody_waits_for_ends_at_its_next_step_and_keeps_nothing(home):
    engine, seen, more = FakeEngine(), list[int](), threading.Event()

    def before_step(step: int) -> None:
        seen.append(step)
        if step == 2:
            assert more.wait(10)

    engine.before_step = before_step
    drawing = draw_to_gallery(home, cast(Engine, engine), fake_job(steps=50))
    assert next(drawing) == (1, 50)
    drawing.close()
    more.set()
    with engine.at_work:   # when it is free again
        assert seen == [1, 2]
    assert gallery_page(home) == []


@pytest.mark.parametrize(("batch_size", "asked"), [(0, [(5, 6)]), (4, [(5, 4), (9, 2)]), (6, [(5, 6)]), (9, [(5, 6)])])
def test_batches_go_on_where_the_last_one_ended(home, batch_size, asked):
    engine = FakeEngine()
    pictures = list(draw(cast(Engine, engine), check_job(home, fake_job(seed=5, count=6)), batch_size=batch_size))
    assert engine.asked == asked
    assert [recipe["seed"] for _, recipe in pictures] == [5, 6, 7, 8, 9, 10]


def test_one_of_a_batch_is_drawn_again_in_a_batch_of_that_size(home):
    _, pictures = drawn(home, cast(Engine, FakeEngine()), fake_job(seed=7, count=3))
    for index, picture in enumerate(pictures):
        job, _ = job_from_picture(home, picture.id)
        engine = FakeEngine()
        _, [again] = drawn(home, cast(Engine, engine), job)
        assert engine.asked == [(7, 3)] and again.id != picture.id
        recipes = [read_recipe(each.path) or {} for each in (picture, again)]
        assert recipes[0] == recipes[1] | {"created": recipes[0]["created"]} and recipes[0]["seed"] == 7 + index
        draw_preview(home, cast(Engine, engine), job)   # needs no exact sums
        assert engine.asked[1:] == [(7 + index, 1)]


@pytest.mark.parametrize("change", ["nothing", "seed", "strength", "start"])
def test_what_was_changed_is_drawn_alone(change):
    like = replace(fake_job(seed=9, count=1), adapters=(MixEntry("rex"),), method="ties", place=BatchPlace(1, 4))
    page = replace(like, method="", place=ALONE)   # as a page's controls describe it
    changed = {
        "nothing": page, "seed": replace(page, request=replace(page.request, seed=10)),
        "strength": replace(page, adapters=(MixEntry("rex", 0.5),)),
        "start": replace(page, start=StartPicture(Image.new("RGB", (8, 8)))),
    }[change]   # fmt: skip
    expected = like.place if change == "nothing" else ALONE
    assert with_hidden_settings(changed, like) == replace(changed, method="ties", place=expected)
    assert with_hidden_settings(replace(page, adapters=()), like).method == "", "it was made for other adapters"


@pytest.mark.parametrize("batch", [[4, 4], [-1, 2], [0, 65], ["0", 2], 3, [0]])
def test_a_place_that_can_not_be_is_a_damaged_recipe(home, batch):
    with pytest.raises(HomeError, match="can't be read"):
        job_from_picture(home, add_picture(home, {**OLD, "batch": batch}))


def test_a_base_model_that_is_gone_is_named_and_one_that_was_moved_is_found(home, tmp_path, monkeypatch):
    id = add_picture(home, {**OLD, "base": "/elsewhere/dream.safetensors"})
    job, missing = job_from_picture(home, id)
    assert (job.base, missing) == ("/elsewhere/dream.safetensors", ["the base model dream.safetensors"])
    here = ModelEntry(tmp_path / "dream.safetensors", identify(EMBEDDED))
    monkeypatch.setattr(draw_again, "find_models", lambda _: [here])
    job, missing = job_from_picture(home, id)
    assert (job.base, missing) == (str(here.path), [])


def test_the_method_of_a_mix_is_restored(home, engine, tmp_path):
    for name, up in (("a", 0.01), ("b", 0.02)):
        import_file(home, foreign(tmp_path / "files", f"{name}.safetensors", up=up))
    mix = DrawJob(request=DrawRequest(prompt="a fox", steps=1), adapters=(MixEntry("a"), MixEntry("b")), method="ties")
    _, [picture] = drawn(home, engine, mix)
    assert job_from_picture(home, picture.id)[0].method == "ties"
    find_adapter(home, "b").path.unlink()
    assert job_from_picture(home, picture.id)[0].method == "", "the method was for both"


@pytest.mark.slow
def test_pictures_of_a_batch_are_drawn_again_byte_for_byte_wherever_they_stand(home, engine):
    request = DrawRequest(prompt="an emoji of a fox on the moon", seed=800, count=8, steps=6)
    _, pictures = drawn(home, engine, DrawJob(request=request))
    for picture in pictures:   # half of them differ when drawn alone
        job, _ = job_like(home, picture.path)
        _, [again] = drawn(home, engine, job)
        first, second = (Image.open(each.path).tobytes() for each in (picture, again))
        assert first == second


def test_page_command_line_and_fusion_draw_the_same_picture(home, engine, tmp_path):
    import_file(home, foreign(tmp_path, "wild.safetensors", up=1.0))
    job = DrawJob(request=DrawRequest(prompt="a fox", steps=LIVE_STEPS, seed=4), adapters=(MixEntry("wild", 0.5),))
    _, [page] = drawn(home, engine, job)
    mixed = draw_mix(home, engine, SavedMix(entries=job.adapters, prompt="a fox", seed=4))
    command = ["draw", "a fox", "--adapter", "wild=0.5", "--steps", str(LIVE_STEPS), "--seed", "4"]
    assert main([*command, "--home", str(home.path), "--out", str(tmp_path / "out")]) == 0
    [path] = (tmp_path / "out").iterdir()
    with Image.open(page.path) as one, Image.open(path) as other:
        assert one.tobytes() == other.tobytes() == mixed.tobytes()
    recipes = [read_recipe(path) or {} for path in (page.path, path)]
    assert {**recipes[0], "created": ""} == {**recipes[1], "created": ""}
    _, [bare] = drawn(home, engine, DrawJob(request=job.request))
    with Image.open(bare.path) as image:
        assert image.tobytes() != mixed.tobytes()


@pytest.mark.parametrize(
    ("folder", "name", "metadata"),
    [
        ("x", "lcm-lora-sdv1-5.safetensors", {}),
        ("x", "LCM_LoRA_Weights_SD15.safetensors", {}),
        ("lcm-lora-sdxl", "pytorch_lora_weights.safetensors", {}),
        ("x", "fast.safetensors", {"modelspec.title": "My LCM LoRA"}),
        ("x", "fast.safetensors", {"ss_output_name": "sd15_lcm"}),
    ],
)
def test_a_file_says_that_it_was_made_for_few_steps(folder, name, metadata, tmp_path):
    assert find_sampler(tmp_path / folder / name, metadata) == "lcm"


@pytest.mark.parametrize(
    ("name", "metadata"),
    [("fox.safetensors", {}), ("calcmap.safetensors", {}), ("lcms2.safetensors", {"modelspec.title": "Welcome"}),
     ("pytorch_lora_weights.safetensors", {})],
)   # fmt: skip
def test_other_files_do_not(name, metadata, tmp_path):
    assert find_sampler(tmp_path / name, metadata) == ""


def test_such_an_adapter_decides_and_says_so(home, engine, tmp_path, capsys):
    import_file(home, foreign(tmp_path / "lcm-lora-tiny", "pytorch_lora_weights.safetensors"))
    card = find_adapter(home, "lcm-lora-tiny")
    assert card.sampler == "lcm"
    job = DrawJob(request=DrawRequest(prompt="a fox"), adapters=(MixEntry("lcm-lora-tiny"),))
    (notice, *way), [picture] = drawn(home, engine, job)
    assert notice.startswith("lcm-lora-tiny needs few steps: drawn with the LCM sampler, 8 steps, guidance 1.5.")
    assert [event for event in way if isinstance(event, Progress)] == [(i, 8) for i in range(1, 9)]
    recipe = read_recipe(picture.path) or {}
    assert (recipe["sampler"], recipe["steps"], recipe["guidance"]) == ("lcm", 8, 1.5)
    assert main(["draw", "a fox", "--adapter", "lcm-lora-tiny", "--home", str(home.path), "--steps", "4"]) == 0
    assert "lcm-lora-tiny needs few steps: drawn with the LCM sampler, 4 steps" in capsys.readouterr().err


def test_it_decides_nothing_that_a_person_decided_and_nothing_at_zero(home, tmp_path):
    import_file(home, foreign(tmp_path, "lcm.safetensors"))
    card, plain = find_adapter(home, "lcm"), DrawRequest(prompt="a fox")
    chosen = DrawRequest(prompt="a fox", sampler="ddim")
    assert with_sampler(chosen, [(card, 1.0)]) == (chosen, "")
    assert with_sampler(plain, [(card, 0.0)]) == (plain.with_sampler(), "") == with_sampler(plain, [])
    lcm = DrawRequest(prompt="a fox", sampler="lcm")
    assert with_sampler(lcm, [(card, 1.0)]) == (lcm, "")   # steps and guidance are then the person's as well


def test_a_picture_names_the_sampler_it_was_drawn_with_and_gives_it_back(home, engine):
    for asked, used in ((AUTO, DrawRequest().with_sampler().sampler), ("euler", "euler")):
        request = DrawRequest(prompt="a fox", steps=2, seed=5, sampler=asked)
        way, [picture] = drawn(home, engine, DrawJob(request=request))
        assert (read_recipe(picture.path) or {})["sampler"] == used
        with Image.open(picture.path) as image:
            assert f"Sampler: {'Euler' if used == 'euler' else 'DPM++ 2M'}," in image.info["parameters"]
        job, missing = job_from_picture(home, picture.id)
        assert (job.request.sampler, missing) == (used, [])
        _, [again] = drawn(home, engine, job)
        assert Image.open(again.path).tobytes() == Image.open(picture.path).tobytes()
        assert any(isinstance(event, DrawPreview) for event in way)


def test_an_old_picture_was_drawn_with_ddim(home):
    job, _ = job_from_picture(home, add_picture(home, OLD))
    assert job.request == DrawRequest(prompt="a fox", seed=3, steps=2, sampler="ddim", width=64, height=64,
                                      prompt_syntax="plain")


def test_every_sampler_has_a_name_in_other_tools_and_on_the_command_line():
    commands = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    [option] = [action for action in commands.choices["draw"]._actions if action.dest == "sampler"]
    assert option.choices == (AUTO, *SAMPLERS)
    words = set()
    for name in SAMPLERS:
        recipe = make_recipe(DrawRequest(prompt="a", sampler=name), 0, "embedded", "embedded", [])
        with Image.open(io.BytesIO(encode_picture(Image.new("RGB", (8, 8)), recipe))) as image:
            words.add(image.info["parameters"].partition("Sampler: ")[2].partition(",")[0])
    assert words == {"DDIM", "DPM++ 2M", "DPM++ 2M SDE", "UniPC", "Euler", "Euler a", "Heun", "LCM"}


def test_what_came_later_is_kept_in_the_recipe_and_restored(home, engine):
    request = DrawRequest(prompt="a (red:1.2) fox", steps=3, sampler="euler", schedule="karras", clip_skip=1, upscale=2,
                          upscaler="lanczos", upscale_strength=0.7, width=64, height=64, seed=4)
    _, [picture] = drawn(home, engine, DrawJob(request=request))
    job, missing = job_from_picture(home, picture.id)
    assert job.request == request and missing == []
    with Image.open(picture.path) as image:
        assert image.size == (128, 128)
        assert "Schedule type: Karras" in image.info["parameters"] and "Clip skip: 2" in image.info["parameters"]


def test_adapters_named_in_a_prompt_are_drawn_with(home, tmp_path):
    import_file(home, foreign(tmp_path / "foreign", "rex.safetensors"))
    job = DrawJob(request=DrawRequest(prompt="a fox <lora:rex:0.8>"), adapters=(MixEntry("rex", 0.2),))
    checked = check_job(home, job)
    assert checked.job.adapters == (MixEntry("rex", 0.8),) and checked.job.request.prompt == "a fox"
    with pytest.raises(HomeError, match="nobody"):
        check_job(home, DrawJob(request=DrawRequest(prompt="<lora:nobody:1>")))
    plain = DrawRequest(prompt="a <lora:nobody:1>", prompt_syntax="plain")
    assert check_job(home, DrawJob(request=plain)).job.request.prompt == plain.prompt


def keep_word(home: Home, token: str, width: int, name: str, seed: int = 0) -> None:
    family = {192: "embedded", 768: "sd1"}[width]
    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(seed))
    keep_textual_inversion(home, TextualInversion(token, family, {"text_encoder": vectors}), name)


def test_words_of_textual_inversions_are_drawn_and_restored(home, engine):
    width = json.loads((EMBEDDED_FOLDER / "text_encoder" / "config.json").read_text())["hidden_size"]
    keep_word(home, "<zwx>", width, "my-word")
    keep_word(home, "<zwx>", width, "a-newer-one", 1)   # the first by name, unless a recipe says otherwise
    keep_word(home, "foreign", 768, "foreign")
    request = DrawRequest(prompt="a <ZWX> fox", negative="foreign", steps=2, seed=5)
    job = DrawJob(request=request, inversions=("my-word",))
    way, [picture] = drawn(home, engine, job)
    assert way[0] == "The textual inversion foreign is for Stable Diffusion 1.x, so foreign is read as plain text."
    [entry] = (read_recipe(picture.path) or {})["textual_inversions"]
    assert (entry["name"], entry["token"]) == ("my-word", "<zwx>")
    again, missing = job_from_picture(home, picture.id)
    assert (again.inversions, missing) == (("my-word",), [])
    _, [same] = drawn(home, engine, again)
    _, [newer] = drawn(home, engine, DrawJob(request=request))
    one, two, three = (Image.open(each.path).tobytes() for each in (picture, same, newer))
    assert one == two != three
    card = find_textual_inversion(home, "my-word")
    assert card is not None
    delete_textual_inversion(home, card)
    assert job_from_picture(home, picture.id)[1] == ["<zwx>"]


def test_the_command_line_starts_from_a_picture(home, tmp_path, capsys):
    picture, mask = Image.new("RGB", (64, 64), (200, 40, 40)), Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    picture.save(tmp_path / "a.png")
    mask.save(tmp_path / "mask.png")
    given = ["draw", "a fox", "--steps", "4", "--out", str(tmp_path / "out"), "--home", str(home.path)]
    assert main([*given, "--image", str(tmp_path / "a.png"), "--mask", str(tmp_path / "mask.png"),
                 "--image-strength", "0.5"]) == 0
    [path] = (tmp_path / "out").glob("*.png")
    with Image.open(path) as drawn_picture:
        assert drawn_picture.getpixel((10, 60)) == (200, 40, 40) and drawn_picture.getpixel((110, 60)) != (200, 40, 40)
    assert (read_recipe(path) or {})["start"]["strength"] == 0.5
    again, _ = job_like(home, path)   # what it started from is in the home
    assert again.start is not None and again.start.mask is not None and again.start.strength == 0.5
    assert again.start.picture.tobytes() == picture.tobytes() and again.start.mask.tobytes() == mask.tobytes()
    assert main([*given[:4], "--like", str(path), "--out", str(tmp_path / "again"), *given[-2:]]) == 0
    [same] = (tmp_path / "again").glob("*.png")
    assert Image.open(same).tobytes() == Image.open(path).tobytes()
    for kept in (home.gallery / ".starts").glob("*.png"):
        kept.unlink()
    lost, notes = job_like(home, path)
    assert lost.start is None and "the picture that it started from" in notes[0]
    assert main([*given, "--mask", str(tmp_path / "mask.png")]) == 1
    assert "add --image" in capsys.readouterr().err


def test_regions_with_prompts_are_drawn_recorded_and_restored(home, engine, tmp_path):
    left = rectangle_rows((0, 0, 0.5, 1))
    request = DrawRequest(prompt="an owl", steps=2, seed=5)
    job = DrawJob(request=request, regions=(RegionEntry("a red fox", left),))
    _, [picture] = drawn(home, engine, job)
    recipe = read_recipe(picture.path) or {}
    assert recipe["regions"] == [{"prompt": "a red fox", "region": list(left)}]
    again, missing = job_from_picture(home, picture.id)
    assert (again.regions, missing) == (job.regions, [])
    _, [same] = drawn(home, engine, again)
    _, [plain] = drawn(home, engine, DrawJob(request=request))
    one, two, three = (Image.open(each.path).tobytes() for each in (picture, same, plain))
    assert one == two != three
    typed = ["draw", "an owl", "--steps", "2", "--seed", "5", "--home", str(home.path), "--out", str(tmp_path / "out")]
    assert main([*typed, "--region", "a red fox", "0", "0", "0.5", "1"]) == 0
    [file] = (tmp_path / "out").glob("*.png")
    assert Image.open(file).tobytes() == one
    with pytest.raises(HomeError, match="can't have choices"):
        check_job(home, DrawJob(request=request, regions=(RegionEntry("a {red|blue} fox", left),)))


def test_regions_that_cannot_be_used_are_refused(home, capsys):
    typed = ["draw", "an owl", "--home", str(home.path)]
    for wrong in (["a fox", "0", "0", "2", "1"], ["a fox", "0.5", "0", "0.5", "1"], ["a fox", "x", "0", "1", "1"],
                  ["", "0", "0", "1", "1"]):   # fmt: skip
        assert main([*typed, "--region", *wrong]) != 0
        assert "0 0 0.5 1" in (said := capsys.readouterr().err) or "needs a prompt" in said
    for entry in ({"prompt": "x"}, {"prompt": "x" * 1001, "region": ["1"]}):
        with pytest.raises(ValueError, match="region"):
            read_entry({"name": "rex", "strength": 1, **entry})
    kept = read_entry({"name": "rex", "strength": 1, "region": [0, 0, 0.5, 1], "prompt": "a fox"})
    assert entry_details(kept)["prompt"] == "a fox" and len(kept.region) == 32
