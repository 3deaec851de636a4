"""Drawing: the same request gives the same picture, and adapters act by their strength and leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import FAMILIES, write_configurations, write_models
from PIL import Image

from atelier.adapters.attach.mount import MountError
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.settings import SettingError
from atelier.adapters.prompt_projection import remove_directions
from atelier.training.base_models import single_file
from atelier.training.base_models.base_model import load
from atelier.training.sampling.sample import DrawRequest, draw, draw_latents

ASK = DrawRequest(prompt="a red fox", negative="blue", steps=3, seed=11)


def but(**changes) -> DrawRequest:
    return DrawRequest.from_dict({**ASK.to_dict(), **changes})


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def weights(model) -> list[torch.Tensor]:
    parts = (model.unet, model.vae, model.text_encoder)
    return [tensor.clone() for part in parts for tensor in part.state_dict().values()]


def hooks(model) -> int:
    return sum(len(module._forward_hooks) for part in model.models().values() for module in part.modules())


def test_the_same_request_gives_the_same_bytes(model):
    first, again = draw(model, ASK)[0], draw(model, ASK)[0]
    assert first.size == (32, 32)
    assert first.mode == "RGB"
    assert first.tobytes() == again.tobytes()
    assert len(np.unique(pixels([first]))) > 20   # it shows something


@pytest.mark.parametrize(
    "change", [{"seed": 12}, {"prompt": "a house"}, {"negative": ""}, {"steps": 4}, {"guidance": 5.0}]
)
def test_every_part_of_the_request_counts(model, change):
    assert draw(model, ASK)[0].tobytes() != draw(model, but(**change))[0].tobytes()


def test_nothing_unwanted_leaves_the_picture_as_it_was_byte_for_byte(model):
    plain = draw(model, ASK)[0].tobytes()
    for change in ({"unwanted": " "}, {"unwanted": "a house", "unwanted_strength": 0.0}):
        assert draw(model, but(**change))[0].tobytes() == plain
    assert draw(model, but(unwanted="a house"))[0].tobytes() != plain


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[pytest.mark.slow] * (family != "sd1")) for family in FAMILIES]
)
def test_what_is_unwanted_goes_out_of_the_prompt_alone(family, tmp_path, monkeypatch):
    """The pipeline's own features of prompt and negative are the reference."""
    configurations = write_configurations(tmp_path / "models", family)
    monkeypatch.setattr(single_file, "MODELS", configurations)
    folder, _ = write_models(tmp_path, family, configurations=configurations)
    model, seen = load(str(folder), "cpu"), []

    def note(_module, _inputs, keywords, _output) -> None:
        seen.append(keywords["encoder_hidden_states"].clone())

    hook = model.unet.register_forward_hook(note, with_kwargs=True)
    words = model.tokenizer("a house", add_special_tokens=False).input_ids
    request = but(steps=1, count=2, width=64, height=64, guidance=5.0)
    for change in ({}, {"unwanted_strength": 1e-9, "unwanted": "a house"}, {"unwanted": "a house"},
                   {"prompt": "a house"}):   # fmt: skip
        draw(model, DrawRequest.from_dict({**request.to_dict(), **change}))
    hook.remove()
    plain, hardly, taken, house = seen
    torch.testing.assert_close(hardly, plain, rtol=0, atol=1e-5)
    assert torch.equal(taken[:2], plain[:2])   # the negative prompt
    expected = remove_directions(plain[2:], house[2, 1 : 1 + len(words)])
    torch.testing.assert_close(taken[2:], expected, rtol=0, atol=1e-4)
    assert (expected - plain[2:]).abs().max() > 0.01


def test_the_picture_is_the_plain_pipeline_s(base, model):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(ASK.prompt, negative_prompt=ASK.negative, num_inference_steps=3, guidance_scale=ASK.guidance,
                        generator=torch.Generator().manual_seed(11)).images   # fmt: skip
    np.testing.assert_array_equal(pixels(draw(model, but(sampler="ddim"))), pixels(expected))


def test_strength_zero_gives_the_base_s_picture_byte_for_byte(model, trained):
    adapters = trained(model, ("unet", "text_encoder"))
    base = draw(model, ASK)[0].tobytes()
    assert draw(model, ASK, Mix(((adapters, 0.0),)))[0].tobytes() == base
    assert draw(model, ASK, Mix(((adapters, 1.0),)))[0].tobytes() != base
    assert draw(model, ASK)[0].tobytes() == base


def test_a_strength_scales_and_may_be_negative(model, trained):
    adapters = trained(model, size=0.1)
    base, *drawn = (
        pixels(draw(model, ASK, Mix(((adapters, strength),)))).astype(float) for strength in (0.0, 0.25, 1.0, -1.0)
    )
    quarter, one, minus = (np.abs(picture - base).mean() for picture in drawn)
    assert 0 < quarter < one
    assert minus > 0
    assert (drawn[1] != drawn[2]).any()
    opposite = trained(model, size=0.1)
    for adapter in opposite:
        adapter.up.data.neg_()
    np.testing.assert_array_equal(drawn[2], pixels(draw(model, ASK, Mix(((opposite, 1.0),)))))


def test_two_adapters_act_together_in_any_order(model, trained):
    one, two = ((trained(model, seed=seed, size=0.1), 0.7) for seed in (1, 2))
    together, swapped, alone = (pixels(draw(model, ASK, Mix(parts))) for parts in ((one, two), (two, one), (one,)))
    assert np.abs(together.astype(int) - swapped).max() <= 1
    assert (together != alone).any()


def test_drawing_changes_nothing_in_the_model(model, trained):
    before, own = weights(model), hooks(model)   # transformers keeps hooks of its own where layers were asked for
    draw(model, ASK, Mix(((trained(model, ("unet", "text_encoder")), -0.6),)))
    assert all(map(torch.equal, before, weights(model)))
    assert hooks(model) == own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_error_on_the_way_leaves_no_adapter_behind(base, trained, dtype):
    model = load(str(base), "cpu", dtype)
    before = weights(model)

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(model, ASK, Mix(((trained(model), 1.0),)), on_step=stop)
    assert all(map(torch.equal, before, weights(model)))
    assert hooks(model) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_nearly_the_same_picture(base, model, trained, dtype):
    half = load(str(base), "cpu", dtype)
    for mix in (Mix(), Mix(((trained(model, size=0.1), 1.0),))):
        exact, rounded = (pixels(draw(which, ASK, mix)).astype(float) for which in (model, half))
        assert np.abs(exact - rounded).mean() < 4


def test_an_adapter_of_another_base_is_refused(model, trained):
    adapters = trained(model)
    for adapter in adapters:
        object.__setattr__(adapter.spec, "shape", (5, *adapter.spec.shape[1:]))
    with pytest.raises(MountError, match="another base model"):
        draw(model, ASK, Mix(((adapters, 1.0),)))


def test_picture_i_is_the_picture_of_seed_plus_i(model):
    batch = pixels(draw(model, but(count=3))).astype(int)
    alone = np.concatenate([pixels(draw(model, but(seed=11 + i))) for i in range(3)])
    assert np.abs(batch - alone).max() <= 1   # sums are formed in another order in a batch
    assert np.abs(batch[0] - batch[1]).mean() > 5


def test_every_step_is_reported_once(model):
    steps: list[tuple[int, int]] = []
    draw(model, but(steps=4, count=2), on_step=lambda done, of: steps.append((done, of)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_size_is_drawn_as_asked_for(model):
    assert draw(model, but(width=40, height=24))[0].size == (40, 24)
    assert draw(model, but(width=40))[0].size == (40, 32)


@pytest.mark.parametrize("size", [{"width": 36}, {"height": 36}, {"width": 1, "height": 32}])
def test_a_size_that_the_model_can_not_draw_is_refused(model, size):
    steps: list[int] = []
    with pytest.raises(SettingError, match="multiples of 8"):
        draw(model, but(**size), on_step=lambda done, _: steps.append(done))
    assert steps == []


@pytest.mark.parametrize("change", [{"count": 0}, {"steps": 0}, {"guidance": 0.5}, {"seed": -1}, {"width": 5000}])
def test_a_request_is_checked_at_birth(change):
    with pytest.raises(SettingError, match=next(iter(change))):
        but(**change)


def test_latents_are_those_of_the_picture(model):
    prompts = ["a red fox", "a house"]
    latents = draw_latents(model, prompts, steps=3, seed=11)
    assert latents.shape == (2, 4, 8, 8)
    with torch.no_grad():
        decoded = model.vae.decode(latents / 0.7).sample
    expected = ((decoded / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).round().numpy()
    requests = [DrawRequest(prompt=p, steps=3, seed=11 + i, sampler="ddim") for i, p in enumerate(prompts)]
    drawn = [draw(model, request)[0] for request in requests]
    assert np.abs(expected - pixels(drawn)).max() <= 1
    (latents.requires_grad_() * 2).sum().backward()   # autograd takes them, although they were drawn in inference mode
