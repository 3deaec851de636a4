"""The school of gates: looks, painted mixes, and what the recipe of scenes shows whom."""

from __future__ import annotations

import random
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.fusion.gates import GateSet, GateSettings
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.train_config import load_preset
from atelier.training.embedded_base import gate_dataset
from atelier.training.embedded_base.gate_dataset import GateAdapter, plan, render, scenes, train_or_load
from atelier.training.embedded_base.pictures import Concept, EmojiPictures, read_prompts
from atelier.training.embedded_base.synthetic_styles import LOOKS
from atelier.training.embedded_base.views import COLOURS
from atelier.training.loop.batch import PromptEmbeddingCache
from atelier.training.recipes.gates import Scene, prediction_errors, random_batch, scene_recipe
from atelier.training.runs.train_gates import gate_training_config

FOX, SEPIA, BLUE = (GateAdapter("object", "fox", "flat", "rexo"), GateAdapter("style", "sepia", "3d", "inkz"),
                    GateAdapter("background", "blue", "", "vexo"))   # fmt: skip


@pytest.fixture(scope="module")
def model() -> BaseModel:
    return load("embedded", "cpu")


@pytest.fixture(scope="module")
def pictures() -> EmojiPictures:
    """Plain squares: each style and thing in a shade of its own, transparent around."""
    names = [*sorted(read_prompts()["concepts"]), "fox", *(f"thing {i}" for i in range(20))]
    styles = ("3d", "flat", "glossy")
    rgba = np.zeros((len(styles), len(names), 64, 64, 4), np.uint8)
    for style in range(len(styles)):
        for name in range(len(names)):
            rgba[style, name, 20:44, 20:44] = (80 * style, name, 100, 255)
    return EmojiPictures(styles=styles, concepts=tuple(Concept(name, "", ()) for name in names), rgba=rgba)


def some_pixels() -> torch.Tensor:
    alpha = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * alpha, alpha], 1)


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_is_another_picture_with_premultiplied_colours(name: str):
    pixels = some_pixels()
    drawn = LOOKS[name](pixels)
    assert drawn.shape == pixels.shape
    assert (drawn >= 0).all()
    assert (drawn[:, :3] <= drawn[:, 3:] + 1e-6).all()
    assert (drawn[:, :3] - pixels[:, :3]).abs().mean() > 0.05
    if name != "outline":
        assert_close(drawn[:, 3:], pixels[:, 3:])


def test_looks_are_what_they_are_called():
    pixels = some_pixels()
    assert_close(LOOKS["negative"](LOOKS["negative"](pixels)), pixels)
    assert_close(LOOKS["turned"](LOOKS["turned"](LOOKS["turned"](pixels))), pixels)
    red, green, blue = LOOKS["gray"](pixels)[:, :3].unbind(1)
    assert_close(red, green)
    assert_close(red, blue)
    even = torch.cat([torch.full((1, 3, 8, 8), 0.5), torch.ones(1, 1, 8, 8)], 1)
    assert not LOOKS["outline"](even).any()   # nothing changes, so nothing is drawn
    dark = LOOKS["sepia"](torch.cat([torch.zeros(1, 3, 1, 1), torch.ones(1, 1, 1, 1)], 1))
    assert_close(dark[0, :3, 0, 0] * 255, torch.tensor([60.0, 30.0, 10.0]))


def test_a_mix_shows_and_says_all_that_was_taught(pictures: EmojiPictures):
    pixels, captions = render(pictures, [BLUE, FOX, SEPIA], 3, random.Random(0))
    assert captions == ["a inkz emoji of a rexo fox on a vexo background"] * 3
    assert_close(pixels[:, :, 0, 0] * 255, torch.tensor([COLOURS["blue"]] * 3).float())
    # Sepia is drawn from the look's own style, 3d: (0, name, 100) of the fox, between the two browns.
    name = pictures.names.index("fox")
    light = (0.587 * name + 0.114 * 100) / 255
    low, high = torch.tensor([60.0, 30, 10]), torch.tensor([250.0, 220, 160])
    assert_close(pixels[:, :, 32, 32] * 255, (low + (high - low) * light).expand(3, 3), rtol=0, atol=0.1)


def test_alone_a_lesson_leaves_the_rest_to_chance(pictures: EmojiPictures):
    pixels, captions = render(pictures, [FOX], 40, random.Random(1))
    assert all(caption.startswith("an emoji of a rexo fox") for caption in captions)
    named = [caption.partition(" on a")[2] for caption in captions]
    assert 8 <= sum(map(bool, named)) <= 25
    for words, pixel in zip(named, pixels[:, :, 0, 0] * 255, strict=True):
        ground = words.removeprefix("n").strip().partition(" ")[0] or "white"
        assert_close(pixel, torch.tensor(COLOURS[ground]).float())
    _, others = render(pictures, [BLUE], 40, random.Random(2))
    assert len({caption.partition(" on ")[0] for caption in others}) > 10
    assert all(caption.endswith(" on a vexo background") for caption in others)


def test_the_plan_keeps_to_what_the_base_does_not_know(pictures: EmojiPictures):
    planned = plan(pictures)
    assert len({adapter.trigger for adapter in planned}) == len(planned) == 12 + 7 + 4
    known = {*read_prompts()["concepts"], "fox"}   # fox is an example, and examples are for judging
    assert not known & {adapter.what for adapter in planned if adapter.role == "object"}
    assert {adapter.what for adapter in planned if adapter.role == "style"} == set(LOOKS)
    assert {adapter.role for adapter in planned[:4]} == {"object", "style", "background"}


def adapters(model: BaseModel, seed: int) -> AdapterSet:
    torch.manual_seed(seed)
    made = create_adapters("lora", {"rank": 2}, find_targets({"unet": model.unet}, "attention")[:8])
    for parameter in made.parameters():
        parameter.data.normal_(std=0.3)
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def found(model: BaseModel, pictures: EmojiPictures, tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    """Scenes of a school where one more adapter stands in the plan than was taught."""
    home = tmp_path_factory.mktemp("school")
    (home / "adapters").mkdir()
    for seed, adapter in enumerate((FOX, SEPIA, BLUE)):
        save_adapter(home / "adapters" / f"{adapter.name}.safetensors", adapters(model, seed), {})
    absent = GateAdapter("style", "gray", "flat", "never")
    return scenes(model, pictures, home, 12, random.Random(0), [FOX, SEPIA, BLUE, absent])


def test_scenes_pair_captions_with_their_adapters(model: BaseModel, found: list[Scene]):
    triggers = {adapter.trigger: adapters(model, seed).tensors()
                for seed, adapter in enumerate((FOX, SEPIA, BLUE))}   # fmt: skip
    tokenizer = model.tokenizers_and_encoders[0][0]
    kinds = set()
    for scene in found:
        by_role = tokenizer.decode(scene.examples[0].tokens, skip_special_tokens=True)
        called = [word for word in triggers if word in by_role]
        kinds.add(tuple(called))
        assert len(called) == len(scene.adapters)
        for word in called:
            assert any(all(torch.equal(value, triggers[word][name]) for name, value in one.tensors().items())
                       for one in scene.adapters)   # fmt: skip
    assert kinds == {("rexo", "inkz"), ("rexo", "vexo"), ("rexo", "inkz", "vexo")}


def test_the_loss_is_that_of_all_adapters_at_once_and_only_gates_learn(model: BaseModel, found: list[Scene]):
    gates = GateSet(find_targets({"unet": model.unet}, "attention")[:8], GateSettings(), "embedded").requires_grad_()
    config = gate_training_config(1, 2, 1e-2, 0)
    losses = scene_recipe(model, gates, found[:1], config).microstep(torch.Generator().manual_seed(4))
    losses.subject.backward()
    # Fresh gates are the plain sum, which another part of the code adds up.
    generator = torch.Generator().manual_seed(4)
    torch.randint(1, (1,), generator=generator)
    batch = random_batch(found[0].examples, 2, 1000, generator)
    text = PromptEmbeddingCache(model, found[0].adapters[0])
    with torch.no_grad():
        mix = Mix(tuple((one, 1.0) for one in found[0].adapters))
        mixed = prediction_errors(model, batch, text, mount(model.models(), mix))
        expected = mixed / prediction_errors(model, batch, text, nullcontext())
    assert_close(losses.subject.detach(), expected.mean(), rtol=1e-4, atol=1e-6)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in gates.parameters())
    assert all(p.grad is None for one in found[0].adapters for p in one.parameters())
    assert all(p.grad is None for p in model.unet.parameters())


def test_a_lesson_is_taught_once_from_captioned_pictures(
    pictures: EmojiPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    quick = {**load_preset("normal", "embedded"), "steps": 1, "prior_count": 2, "warmup": 1, "validate_every": 0}
    monkeypatch.setattr(gate_dataset, "load_preset", lambda *_: quick)
    path = train_or_load(pictures, SEPIA, tmp_path)
    assert path == tmp_path / "adapters" / "style-sepia.safetensors"
    captions = sorted((tmp_path / "pictures" / SEPIA.name).glob("*.txt"))
    assert len(captions) == 12
    assert all(caption.read_text().startswith("a inkz emoji of a") for caption in captions)
    monkeypatch.setattr(gate_dataset, "run", lambda *_: SimpleNamespace())   # a second adapter would fall over
    assert train_or_load(pictures, SEPIA, tmp_path) == path
