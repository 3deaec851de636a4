"""The DreamBooth recipe: what is compared with what, and what is left alone."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from pretend_device import pretend_device
from torch import Tensor

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.base import AdapterSet
from atelier.adapters.core.mix import Mix
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.events import Previewed
from atelier.training.config.train_config import TrainConfig
from atelier.training.data.latent_cache import Example, encode_text, tokenize
from atelier.training.loop import batch
from atelier.training.loop.noise import sample_timesteps
from atelier.training.recipes import dreambooth
from atelier.training.recipes import prior_preservation as prior
from atelier.training.recipes.dreambooth import TrainingData, recipe, sample_subject_and_prior, split_examples
from atelier.training.sampling.draw_savings import DrawSavings
from atelier.training.sampling.sample import DrawRequest, draw

CONFIG = TrainConfig(name="rex", subject="fox", batch=3, prior_count=3, prior_weight=0.5)


def but(**changes: Any) -> TrainConfig:
    return replace(CONFIG, **changes)


def examples(
    model: BaseModel, count: int, height: int = 8, width: int = 8, caption: str = "a rex fox"
) -> list[Example]:
    shape = (4, height, width)
    return [Example(torch.randn(shape), torch.full(shape, 0.1), row) for row in tokenize(model, [caption] * count)]


@pytest.fixture
def data(model) -> TrainingData:
    return TrainingData(examples(model, 4), examples(model, 2, caption="a house"), examples(model, 1))


@pytest.fixture(autouse=True)
def short_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two denoising steps show as well as twenty that a picture is the one it should be."""
    def short(**values: Any) -> DrawRequest:
        return DrawRequest(**{**values, "steps": 2})

    monkeypatch.setattr(dreambooth, "DrawRequest", short)
    monkeypatch.setattr(prior, "PRIOR_STEPS", 2)


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference_losses(
    model: BaseModel, adapters: AdapterSet, picked: list[Example], timesteps: Tensor, dice: torch.Generator
) -> Tensor:
    """The loss of each example by itself, with another scheduler's arithmetic."""
    scheduler = DDPMScheduler.from_config(model.scheduler.config)
    clean = [example.mean + example.std * torch.randn(example.mean.shape, generator=dice) for example in picked]
    noise = [torch.randn(latent.shape, generator=dice) for latent in clean]
    losses = []
    for example, x, e, t in zip(picked, clean, noise, timesteps, strict=True):
        target = {"epsilon": e, "v_prediction": scheduler.get_velocity(x[None], e[None], t[None])[0]}
        with torch.no_grad(), mount(model.models(), Mix(((adapters, 1.0),))):
            features = model.text_encoder(example.tokens[None])[0]
            answer = model.unet(scheduler.add_noise(x[None], e[None], t[None]), t, features).sample[0]
        losses.append(((answer - target[model.info.prediction_type]).double() ** 2).mean())
    return torch.stack(losses).float()


def pick_by_hand(pool: list[Example], count: int, dice: torch.Generator) -> list[Example]:
    first = pool[int(torch.randint(len(pool), (1,), generator=dice))]
    return [first, *(pool[i] for i in torch.randint(len(pool), (count - 1,), generator=dice))]


def microstep_by_hand(
    model: BaseModel, adapters: AdapterSet, data: TrainingData, dice: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Losses and timesteps of a microstep with three subject pictures and one prior picture."""
    picked = pick_by_hand(data.subject, 3, dice) + pick_by_hand(data.prior, 1, dice)
    timesteps = torch.cat([sample_timesteps(count, 1000, dice) for count in (3, 1)])
    return reference_losses(model, adapters, picked, timesteps, dice), timesteps


@pytest.mark.parametrize("kind", ["model", "epsilon_model"])
def test_a_microstep_is_the_loss_of_each_picture_by_hand(kind, request, trained, data, tmp_path):
    model: BaseModel = request.getfixturevalue(kind)
    adapters = trained(model)
    method = recipe(model, adapters, data, CONFIG, tmp_path)
    with method.mount():
        losses = method.microstep(generator())
    expected, _ = microstep_by_hand(model, adapters, data, generator())
    torch.testing.assert_close(losses.subject.detach(), expected[:3].mean())
    torch.testing.assert_close(losses.prior.detach(), expected[3:].mean() * 0.5)


@pytest.mark.parametrize("kind", ["model", "epsilon_model"])
def test_min_snr_weighs_every_picture_by_its_timestep(kind, request, trained, data, tmp_path):
    model: BaseModel = request.getfixturevalue(kind)
    adapters = trained(model)
    method = recipe(model, adapters, data, but(min_snr_gamma=0.2), tmp_path)
    with method.mount():
        losses = method.microstep(generator())
    expected, timesteps = microstep_by_hand(model, adapters, data, generator())
    kept = DDPMScheduler.from_config(model.scheduler.config).alphas_cumprod[timesteps]
    snr = kept / (1 - kept)
    weights = snr.clamp(max=0.2) / (snr if model.info.prediction_type == "epsilon" else snr + 1)
    assert weights.min() < 0.9 * weights.max()
    torch.testing.assert_close(losses.subject.detach(), (expected * weights)[:3].mean())
    torch.testing.assert_close(losses.prior.detach(), (expected * weights)[3:].mean() * 0.5)


def test_the_offset_of_the_recipe_moves_whole_channels_of_its_noise(model, data):
    plain, moved = (sample_subject_and_prior(model, data, but(noise_offset=offset), generator()) for offset in (0, 0.3))
    shift = (moved.noise[0] - plain.noise[0]).flatten(1)   # of later ones all differs, as more was drawn before them
    assert shift.std(1).max() < 1e-6 < shift.mean(1).std()


def test_the_gradient_reaches_every_adapter_and_nothing_else(model, trained, data, tmp_path):
    adapters = trained(model)
    method = recipe(model, adapters, data, CONFIG, tmp_path)
    with method.mount():
        losses = method.microstep(generator())
        (losses.subject + losses.prior).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapters.parameters())
    for part in (model.unet, model.vae, model.text_encoder):
        assert all(parameter.grad is None for parameter in part.parameters())


def gradients(model: BaseModel, adapters: AdapterSet, data: TrainingData, folder: Path) -> list[Tensor]:
    adapters.zero_grad()
    method = recipe(model, adapters, data, CONFIG, folder)
    with method.mount():
        losses = method.microstep(generator())
        (losses.subject + losses.prior).backward()
    return [parameter.grad.clone() for parameter in adapters.parameters() if parameter.grad is not None]


def test_gradient_checkpointing_changes_no_gradient(base, model, trained, data, tmp_path):
    frugal = load(str(base), "cpu")
    frugal.unet.enable_gradient_checkpointing()
    frugal.unet.train()
    adapters = trained(model, ("unet", "text_encoder"))
    plain, again = (gradients(which, adapters, data, tmp_path) for which in (model, frugal))
    assert len(plain) == len(again) == len(list(adapters.parameters()))
    torch.testing.assert_close(plain, again)


def test_the_text_encoder_learns_where_it_has_adapters(model, trained, data, tmp_path):
    adapters = trained(model, ("unet", "text_encoder"))
    method = recipe(model, adapters, data, CONFIG, tmp_path)

    def loss() -> Tensor:
        with method.mount():
            losses = method.microstep(generator())
        return losses.subject + losses.prior

    before = loss()
    before.backward()
    of_text = [adapter for adapter in adapters if adapter.spec.name.startswith("text_encoder.")]
    assert len(of_text) == 6
    assert all(p.grad is not None and p.grad.any() for adapter in of_text for p in adapter.parameters())
    with torch.no_grad():
        for adapter in of_text:
            for parameter in adapter.parameters():
                parameter.add_(0.2)
    assert loss().item() != before.item()   # its features are computed anew, not remembered


def test_a_frozen_text_encoder_is_asked_once_a_caption(model, trained, data, tmp_path, monkeypatch):
    asked: list[Tensor] = []

    def counted(model: BaseModel, tokens: Tensor, clip_skip: int) -> Tensor:
        asked.append(tokens)
        return encode_text(model, tokens, clip_skip)

    monkeypatch.setattr(batch, "encode_text", counted)
    method = recipe(model, trained(model), data, CONFIG, tmp_path)
    for seed in range(4):
        with method.mount():
            method.microstep(generator(seed))
    captions = torch.cat(asked)
    assert captions.tolist() == tokenize(model, ["a rex fox", "a house"]).tolist()


def test_pictures_of_several_sizes_are_learned_in_passes_of_one_size(model, trained, tmp_path):
    adapters = trained(model)
    wide = examples(model, 3, 6, 12)
    data = TrainingData(wide, examples(model, 2, caption="a house"), wide)   # prior pictures have the base's own size
    sizes: list[torch.Size] = []
    hook = model.unet.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape))
    method = recipe(model, adapters, data, CONFIG, tmp_path)
    with hook, method.mount():
        losses = method.microstep(generator())
    assert sizes == [(3, 4, 6, 12), (1, 4, 8, 8)]
    expected, _ = microstep_by_hand(model, adapters, data, generator())
    torch.testing.assert_close(losses.subject.detach(), expected[:3].mean())
    torch.testing.assert_close(losses.prior.detach(), expected[3:].mean() * 0.5)


def test_a_batch_is_of_one_bucket_and_every_picture_comes_up(model, trained, tmp_path, monkeypatch):
    square, wide = examples(model, 2), examples(model, 1, 6, 12)
    seen: list[list[Example]] = []

    def note(model, batch, *_: Any) -> list[Any]:
        seen.append(batch.examples)
        return []

    monkeypatch.setattr(dreambooth, "unet_inputs", note)
    monkeypatch.setattr(dreambooth, "example_losses", lambda model, shown, mine: torch.zeros(len(mine)))
    method = recipe(model, trained(model), TrainingData([*square, *wide], [], []), CONFIG, tmp_path)
    dice = generator()
    for _ in range(200):
        method.microstep(dice)
    assert {len(picked) for picked in seen} == {3}
    assert all(len({example.mean.shape for example in picked}) == 1 for picked in seen)
    share = [sum(e is which for picked in seen for e in picked) / 600 for which in (*square, *wide)]
    assert all(0.25 < part < 0.42 for part in share)   # a third each, whatever the size of its bucket


def test_the_validation_loss_is_the_same_every_time_and_tells_weights_apart(model, trained, data, tmp_path):
    adapters = trained(model)
    method = recipe(model, adapters, data, CONFIG, tmp_path)
    first = method.validate(adapters)
    with method.mount():
        method.microstep(generator())
    torch.manual_seed(123)
    assert method.validate(adapters) == first
    assert recipe(model, adapters, data, but(seed=3), tmp_path).validate(adapters) == first
    assert method.validate(trained(model, seed=1)) != first   # the weights it is given, not those being trained


def test_the_validation_loss_by_hand(model, trained, data, tmp_path):
    adapters = trained(model)
    held_out = [*data.held_out, *examples(model, 1, 6, 12)]
    found = recipe(model, adapters, replace(data, held_out=held_out), CONFIG, tmp_path).validate(adapters)
    dice, losses = torch.Generator().manual_seed(dreambooth.VALIDATION_SEED), []
    for example in held_out:
        timesteps = sample_timesteps(8, 1000, dice)
        assert (timesteps.sort().values // 125).tolist() == list(range(8))   # early and late ones
        losses.append(reference_losses(model, adapters, [example] * 8, timesteps, dice).mean())
    assert found == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


@pytest.mark.parametrize(("count", "spare"), [(1, 0), (7, 0), (8, 1), (15, 1), (16, 2)])
def test_one_picture_in_eight_is_held_back(model, count, spare):
    pictures = examples(model, count)
    data = split_examples(model, but(prior_weight=0), pictures)
    assert [*data.subject, *(data.held_out if spare else [])] == pictures
    assert len(data.held_out) == (spare or count)
    assert data.prior == []


@pytest.mark.parametrize("off", [{"prior_weight": 0.0}, {"prior_count": 0}])
def test_without_prior_preservation_nothing_is_drawn(model, trained, tmp_path, monkeypatch, off):
    def no_drawing(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("drawn in vain")

    monkeypatch.setattr(prior, "draw_latents", no_drawing)
    data = split_examples(model, but(**off), examples(model, 3))
    assert data.prior == []
    method = recipe(model, trained(model), data, but(**off), tmp_path)
    with method.mount():
        losses = method.microstep(generator())
    assert losses.prior.item() == 0
    assert losses.subject.item() > 0


def test_preview_prompts_are_the_person_s_lines_or_the_caption(model):
    lines = but(trigger="zxq", preview_prompts=" a {trigger} at sea \n\n\ta {subject}\n")
    assert dreambooth.preview_prompts(model, lines) == ["a zxq at sea", "a fox"]
    assert dreambooth.preview_prompts(model, CONFIG) == ["a photo of rex fox"]
    assert dreambooth.preview_prompts(model, but(caption="{trigger}!")) == ["rex!"]


def test_previews_have_the_size_that_is_trained(model, trained):
    sizes = [
        dreambooth.draw_preview(model, but(resolution=resolution), trained(model), "a rex").size
        for resolution in (0, 40, 47)
    ]
    assert sizes == [(32, 32), (40, 40), (40, 40)]


def test_previews_show_the_weights_they_are_given(model, trained, data, tmp_path):
    (tmp_path / "previews").mkdir()
    adapters, other = trained(model), trained(model, seed=1)
    method = recipe(model, adapters, data, but(preview_prompts="a rex\na fox"), tmp_path)
    shown = method.preview(other, 7, "")
    assert shown == [Previewed(7, "a rex", "previews/000007-0.png", dreambooth.PREVIEW_SEED),
                     Previewed(7, "a fox", "previews/000007-1.png", dreambooth.PREVIEW_SEED)]   # fmt: skip
    request = DrawRequest(prompt="a fox", seed=dreambooth.PREVIEW_SEED, steps=2)
    expected = draw(model, request, Mix(((other, 1.0),)))[0]
    assert Image.open(tmp_path / shown[1].path).tobytes() == expected.tobytes()
    assert method.preview(other, 7, "") == shown


def test_each_prompt_is_drawn_from_each_seed_with_the_other_adapters(model, trained, data, tmp_path):
    (tmp_path / "previews").mkdir()
    adapters, other = trained(model), trained(model, seed=1)
    config = but(preview_prompts="a rex\na fox", preview_seeds=2)
    shown = recipe(model, adapters, data, config, tmp_path, others=[(other, 0.5)]).preview(adapters, 7, "")
    first = dreambooth.PREVIEW_SEED
    assert [(one.prompt, one.seed) for one in shown] == [
        ("a rex", first), ("a rex", first + 1), ("a fox", first), ("a fox", first + 1)]   # fmt: skip
    assert len({one.path for one in shown}) == 4
    request = DrawRequest(prompt="a fox", seed=first + 1, steps=2)
    expected = draw(model, request, Mix(((adapters, 1.0), (other, 0.5))))[0]
    assert Image.open(tmp_path / shown[3].path).tobytes() == expected.tobytes()


def test_a_preview_that_was_asked_for_replaces_no_other(model, trained, data, tmp_path):
    (tmp_path / "previews").mkdir()
    method = recipe(model, trained(model), data, CONFIG, tmp_path)
    (regular,) = method.preview(trained(model), 7, "")
    before = (tmp_path / regular.path).read_bytes()
    (asked,) = method.preview(trained(model), 7, "a house at night")
    assert asked.prompt == "a house at night"
    assert asked.path != regular.path
    (another,) = method.preview(trained(model), 7, "a house at noon")
    assert len({(tmp_path / one.path).read_bytes() for one in (regular, asked, another)}) == 3
    assert (tmp_path / regular.path).read_bytes() == before


def test_nothing_of_the_base_changes(base, trained, data, tmp_path):
    model = load(str(base), "cpu")
    parts = (model.unet, model.vae, model.text_encoder)
    before = [tensor.clone() for part in parts for tensor in part.state_dict().values()]
    (tmp_path / "previews").mkdir()
    adapters = trained(model, ("unet", "text_encoder"))
    method = recipe(model, adapters, split_examples(model, CONFIG, examples(model, 8)), CONFIG, tmp_path)
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=0.1)
    with method.mount():
        losses = method.microstep(generator())
        (losses.subject + losses.prior).backward()
        optimizer.step()
    method.validate(adapters)
    method.preview(adapters, 1, "")
    assert all(map(torch.equal, before, [t for part in parts for t in part.state_dict().values()]))
    assert not any(module._forward_hooks for part in parts for module in part.modules())


def test_previews_beside_a_step_on_a_card_use_little_memory(model: BaseModel):
    assert dreambooth.preview_cache(model) is None   # merged weights would get old
    with pretend_device():
        on_card = dreambooth.preview_cache(load(model.info.source, "npu", torch.float32))
    assert on_card is not None and on_card.savings == DrawSavings(tiles=True, mount=True)
