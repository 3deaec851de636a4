"""Break-for-Make's recipes: which half learns from what, beside whom, and what making both costs and gains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.settings import SettingError
from atelier.adapters.core.targets import find_targets
from atelier.adapters.fusion.break_for_make_halves import combine_halves, scale_halves
from atelier.adapters.kinds.break_for_make import BreakForMake
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import BaseModel
from atelier.training.base_models.identify import identify
from atelier.training.config.events import Stepped
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example, tokenize
from atelier.training.loop.batch import AdapterExamples, Batch
from atelier.training.loop.optimizer_step import make_accelerator
from atelier.training.loop.optimizers import COMPANION_LR_RATIO
from atelier.training.loop.recipe import Recipe
from atelier.training.loop.training_loop import Controls, Training
from atelier.training.recipes import break_for_make, companions
from atelier.training.recipes.break_for_make import LR_RATIO, half_recipe, joint_recipe
from atelier.training.recipes.combine_two import METHOD_STEPS, combine_adapters, training_config
from atelier.training.recipes.companions import (
    TRIGGER_WORDS,
    companion_captions,
    draw_companions,
    role_of,
    with_role_caption,
)
from atelier.training.recipes.dreambooth import TrainingData

CONFIG = TrainConfig(
    name="rex", subject="fox", kind="split", adapter={"rank": 4}, steps=3, batch=4, lr=0.01, warmup=0,
    lr_schedule="constant", weight_decay=0.1, prior_weight=0.0, validate_every=0, preview_every=0, checkpoint_every=0,
    keep_best=False,
)   # fmt: skip


def of(role: str, **changes: Any) -> TrainConfig:
    return replace(CONFIG, adapter={"rank": 4, "role": role}, **changes)


def examples(model: BaseModel, count: int, caption: str, size: int = 8) -> list[Example]:
    shape = (4, size, size)
    return [Example(torch.randn(shape), torch.full(shape, 0.1), row) for row in tokenize(model, [caption] * count)]


def fresh(model: BaseModel, role: str) -> AdapterSet:
    specs = find_targets({"unet": model.unet}, "attention")
    return create_adapters("split", {"rank": 4, "role": role}, specs)


@pytest.fixture(autouse=True)
def always_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(break_for_make, "COMPANION_SHARE", 1.0)


@pytest.fixture
def data(model: BaseModel) -> TrainingData:
    pictures = examples(model, 4, "a rex fox")
    return TrainingData(pictures, [], pictures[:1])


@pytest.fixture
def sets(model: BaseModel) -> list[list[Example]]:
    return [examples(model, 2, f"a {word} house") for word in TRIGGER_WORDS]


def train(model: BaseModel, recipe: Recipe, config: TrainConfig, folder: Path) -> AdapterSet:
    training = Training(recipe, config, folder, make_accelerator(model))
    for _ in training.events(Controls(lambda _: None, lambda: False)):
        pass
    assert training.result is not None
    return training.result


def halves(adapters: AdapterSet, role: str) -> list[Tensor]:
    return [adapter.trainable_half(role).detach().clone() for adapter in adapters if isinstance(adapter, BreakForMake)]


@pytest.mark.parametrize("role", ["content", "style"])
def test_each_loss_moves_its_own_half_alone(model, data, sets, tmp_path, monkeypatch, role):
    other = break_for_make.OTHER_ROLE[role]
    real = break_for_make.batch_losses
    for silenced, still in ((0, role), (1, other)):
        calls = 0

        def half_silent(model: BaseModel, config: TrainConfig, batch: Batch, text: Any, mine: Any = None) -> Tensor:
            nonlocal calls
            calls += 1
            return real(model, config, batch, text, mine) * (0.0 if calls % 2 == 1 - silenced else 1.0)   # noqa: B023

        monkeypatch.setattr(break_for_make, "batch_losses", half_silent)
        adapters = fresh(model, role)
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.normal_(std=0.1)
        before = {name: halves(adapters, name) for name in (role, other)}
        config = of(role, weight_decay=0.0)
        train(model, half_recipe(model, adapters, data, sets, config, tmp_path), config, tmp_path)
        moved = {name: [not torch.equal(a, b) for a, b in zip(halves(adapters, name), before[name], strict=True)]
                 for name in (role, other)}
        assert not any(moved.pop(still)), f"{still} moved without its loss"
        assert all(*moved.values()), "the other half should have learned"


def test_alone_a_half_learns_as_if_there_were_no_other(model, data, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(break_for_make, "COMPANION_SHARE", 0.0)
    adapters = fresh(model, "content")
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(std=0.1)
    before = halves(adapters, "style")
    recipe = half_recipe(model, adapters, data, sets, of("content"), tmp_path)
    by_itself = half_recipe(model, scale_halves(adapters, content=1, style=0), data, sets, of("content"), tmp_path)
    losses = []
    for one in (recipe, by_itself):
        with one.mount():
            losses.append(one.microstep(torch.Generator().manual_seed(3)))
    assert losses[0].companion is None
    assert torch.equal(losses[0].subject, losses[1].subject)
    losses[0].subject.backward()
    kept = train(model, recipe, of("content", weight_decay=0.0), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(halves(adapters, "style"), before, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(halves(kept, "content"), before, strict=True))


def test_a_chance_decides_whether_a_half_is_alone(model, data, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(break_for_make, "COMPANION_SHARE", 0.5)
    recipe = half_recipe(model, fresh(model, "content"), data, sets, of("content", batch=1), tmp_path)
    dice = torch.Generator().manual_seed(0)
    with recipe.mount():
        alone = [recipe.microstep(dice).companion is None for _ in range(12)]
    assert 2 <= sum(alone) <= 10


def test_what_is_kept_hears_both_again(model, data, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(break_for_make, "COMPANION_SHARE", 0.0)
    content = fresh(model, "content")
    kept = train(model, half_recipe(model, content, data, sets, of("content"), tmp_path), of("content"), tmp_path)
    assert {adapter.disabled_role for adapter in content if isinstance(adapter, BreakForMake)} == {"style"}
    assert {adapter.disabled_role for adapter in kept if isinstance(adapter, BreakForMake)} == {""}


def test_companions_learn_a_tenth_as_fast(model, data, sets, tmp_path):
    adapters = fresh(model, "content")
    config = of("content", steps=1, weight_decay=0.0, clip=0.0)
    train(model, half_recipe(model, adapters, data, sets, config, tmp_path), config, tmp_path)
    own, companion = (torch.cat([h.flatten() for h in halves(adapters, role)]) for role in ("content", "style"))
    lr = config.lr * LR_RATIO["content"]   # AdamW's first step is the learning rate
    assert own.abs().max().item() == pytest.approx(lr, rel=1e-3)
    assert companion.abs().max().item() == pytest.approx(COMPANION_LR_RATIO * lr, rel=1e-3)


def test_every_update_shows_all_sets_with_the_targets_noise(model, data, sets, tmp_path, monkeypatch):
    seen: list[Batch] = []
    real = break_for_make.batch_losses

    def note(model: BaseModel, config: TrainConfig, batch: Batch, text: Any, mine: Any = None) -> Tensor:
        seen.append(batch)
        return real(model, config, batch, text, mine)

    monkeypatch.setattr(break_for_make, "batch_losses", note)
    adapters = fresh(model, "content")
    config = of("content", batch=8)
    recipe = half_recipe(model, adapters, data, sets, config, tmp_path)
    with recipe.mount():
        recipe.microstep(torch.Generator().manual_seed(3))
    target, beside = seen
    assert len(target.examples) == 8
    shown = [next(i for i, one in enumerate(sets) if any(e is x for x in one)) for e in beside.examples]
    assert shown == [0, 0, 1, 1, 2, 2]
    for i, k in enumerate((0, 1, 0, 1, 0, 1)):
        assert torch.equal(beside.noise[i], target.noise[k])
        assert beside.timesteps[i] == target.timesteps[k]


def test_a_companion_of_another_size_has_noise_of_its_own(model, sets):
    wide = examples(model, 2, "a rex fox", size=4)
    batch = Batch(wide, [e.mean for e in wide], [torch.randn(4, 4, 4)] * 2, torch.tensor([5, 9]))
    beside = break_for_make.companion_batch(sets, batch, 1, torch.Generator().manual_seed(0))
    assert [noise.shape for noise in beside.noise] == [(4, 8, 8)] * 3
    assert beside.timesteps.tolist() == [5, 5, 5]


@pytest.mark.parametrize("role", ["content", "style"])
def test_the_companion_is_thrown_away(model, data, sets, tmp_path, role):
    adapters = fresh(model, role)
    config = of(role)
    recipe = half_recipe(model, adapters, data, sets, config, tmp_path)
    kept = train(model, recipe, config, tmp_path)
    assert all(half.any() for half in halves(kept, role))
    assert not any(half.any() for half in halves(kept, break_for_make.OTHER_ROLE[role]))
    assert any(half.any() for half in halves(adapters, break_for_make.OTHER_ROLE[role]))
    own = {"content": float(role == "content"), "style": float(role == "style")}
    assert recipe.validate(adapters) == recipe.validate(scale_halves(adapters, **own)), "measured with its companion"


def test_halves_that_were_taught_apart_unite(model, data, sets, tmp_path):
    taught = []
    for seed, role in enumerate(("content", "style")):
        torch.manual_seed(seed)
        config = of(role, seed=seed)
        recipe = half_recipe(model, fresh(model, role), data, sets, config, tmp_path)
        taught.append(train(model, recipe, config, tmp_path))
    united = combine_halves(*taught)
    assert all(a.any() and b.any() for a, b in zip(halves(united, "content"), halves(united, "style"), strict=True))


def test_making_shows_both_with_the_same_noise_and_moves_both(model, data, tmp_path, monkeypatch):
    united = combine_halves(fresh(model, "content"), fresh(model, "style"))
    mine, theirs = examples(model, 3, "a rex fox"), examples(model, 3, "a zs house")
    seen: list[Batch] = []
    real = break_for_make.batch_losses

    def note(model: BaseModel, config: TrainConfig, batch: Batch, text: Any, mine: Any = None) -> Tensor:
        seen.append(batch)
        return real(model, config, batch, text, mine)

    monkeypatch.setattr(break_for_make, "batch_losses", note)
    frozen = {key: value.clone() for key, value in united.named_buffers()}
    train(model, joint_recipe(model, united, mine, theirs, CONFIG), CONFIG, tmp_path)
    assert all(half.any() for role in ("content", "style") for half in halves(united, role))
    assert all(torch.equal(value, frozen[key]) for key, value in united.named_buffers())
    for content, style in zip(seen[::2], seen[1::2], strict=True):
        assert {id(e) for e in content.examples} <= {id(e) for e in mine}
        assert {id(e) for e in style.examples} <= {id(e) for e in theirs}
        assert torch.equal(content.timesteps, style.timesteps)
        assert all(torch.equal(a, b) for a, b in zip(content.noise, style.noise, strict=True))


@pytest.mark.parametrize("method", METHOD_STEPS)
def test_every_method_makes_one_adapter_of_two(model, method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = []
    for seed, role in enumerate(("content", "style")):
        adapters = fresh(model, role)
        torch.manual_seed(seed)
        with torch.no_grad():
            for adapter in adapters:
                assert isinstance(adapter, BreakForMake)
                adapter.trainable_half(role).normal_(std=0.1)
        parts.append(AdapterExamples(adapters, examples(model, 2, f"a {role} fox")))
    config = training_config(method, steps=2, batch=2, lr=0.01, seed=0) if METHOD_STEPS[method] else None
    *events, made = combine_adapters(model, parts[0], parts[1], method, config)
    assert isinstance(made, AdapterSet)
    assert len(events) == (2 if config else 0)
    assert all(isinstance(event, Stepped) for event in events)
    assert made.kind == ("split" if method == "break-for-make" else "lora")
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert {spec.name for spec in made.specs} == {spec.name for spec in parts[0].adapters.specs}
    assert not list(tmp_path.iterdir())   # nothing is left where the program was started


def test_making_without_steps_is_only_uniting(model):
    content, style = fresh(model, "content"), fresh(model, "style")
    [made] = combine_adapters(model, AdapterExamples(content), AdapterExamples(style), "break-for-make")
    assert isinstance(made, AdapterSet)
    combined = combine_halves(content, style).tensors()
    assert all(torch.equal(value, combined[key]) for key, value in made.tensors().items())
    with pytest.raises(SettingError, match="at least 1 step"):
        list(combine_adapters(model, AdapterExamples(content), AdapterExamples(style), "zip"))
    with pytest.raises(SettingError, match=r"no method 'glue'.*break-for-make, zip"):
        list(combine_adapters(model, AdapterExamples(content), AdapterExamples(style), "glue"))


# --- companions -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("embedded", [True, False])
def test_companions_are_other_styles_for_a_content_and_other_things_for_a_style(model, embedded):
    info = identify("embedded") if embedded else model.info
    content, style = (list(companion_captions(info, role)) for role in ("content", "style"))
    for sets in (content, style):
        assert len(sets) == len(TRIGGER_WORDS) >= 2
        for word, pairs in zip(TRIGGER_WORDS, sets, strict=True):
            assert all(word not in drawn and word in taught for drawn, taught in pairs)
    used = [{name for name in info.styles if name in pairs[0][0]} for pairs in content]
    assert [len(one) for one in used] == [1, 1, 1]
    assert len(set.union(*used)) == min(3, len(info.styles)) > 1
    for pairs in content:
        assert len({drawn for drawn, _ in pairs}) == companions.PER_SET   # one style, different things
    for pairs in style:
        assert len({taught for _, taught in pairs}) == 1   # one thing, called by one name


def test_companions_are_drawn_by_the_base_without_adapters(model, monkeypatch):
    monkeypatch.setattr(companions, "PRIOR_STEPS", 2)
    sets = draw_companions(model, "style")
    assert [len(one) for one in sets] == [companions.PER_SET] * 3
    again = draw_companions(model, "style")
    assert all(torch.equal(a.mean, b.mean) for one, two in zip(sets, again, strict=True)
               for a, b in zip(one, two, strict=True))
    assert len({tuple(one[0].tokens.tolist()) for one in sets}) == 3


def test_only_one_half_is_a_role_of_its_own():
    assert role_of(of("style")) == "style"
    assert role_of(CONFIG) == "content"
    assert role_of(of("both")) == ""
    assert role_of(TrainConfig()) == ""


def test_a_styles_pictures_without_captions_are_called_by_its_word():
    config = of("style", base="embedded")
    assert with_role_caption(config).caption == "a {trigger} emoji"
    assert with_role_caption(replace(config, caption="in {trigger}")).caption == "in {trigger}"
    assert with_role_caption(of("content")).caption == ""
