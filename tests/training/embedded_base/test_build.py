"""The recipe of the embedded base: resuming, captions, latents, views, the pictures' names, the export."""

# diffusers and transformers annotate their own calls too narrowly, and say nothing of the modules inside a model.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOptionalSubscript=false, reportOptionalMemberAccess=false

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from atelier.training.base_models.identify import EMBEDDED_FOLDER
from atelier.training.embedded_base import build as base_recipe
from atelier.training.embedded_base import pictures as picture_sets
from atelier.training.embedded_base.ema_trainer import EmaTrainer, Schedule, StepResult, step_generator
from atelier.training.embedded_base.pictures import (
    Concept,
    EmojiPictures,
    hexcode_key,
    icon_sources,
    plain_words,
    read_prompts,
)
from atelier.training.embedded_base.text import caption, pair_caption, token_ids, train_tokenizer, varied_caption
from atelier.training.embedded_base.unet import (
    Parts,
    batch_of,
    caption_writer,
    new_scheduler,
    new_unet,
    train_unet,
    velocity_loss,
    with_attention_everywhere,
)  # fmt: skip
from atelier.training.embedded_base.vae import (
    COLOURED,
    PLACEMENT,
    Latents,
    cache_latents,
    encode,
    fix_deviation,
    normalise_latents,
    train_autoencoder,
)  # fmt: skip
from atelier.training.embedded_base.views import (
    COLOURS,
    Placement,
    colour,
    on_background,
    place,
    place_pair,
    premultiplied,
    random_colours,
)

BASE = Path(__file__).resolve().parents[3] / "assets" / "base"


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(BASE / "tokenizer")


@pytest.fixture(scope="module")
def words() -> dict:
    return read_prompts()


def tiny_pictures() -> EmojiPictures:
    """Two styles of three objects: rectangles of their own colour and size."""
    rgba = np.zeros((2, 3, 64, 64, 4), np.uint8)
    for style in range(2):
        for concept in range(3):
            rgba[style, concept, 16 : 40 + 4 * concept, 20:50] = (60 * concept, 200 * style, 90, 255)
    concepts = tuple(
        Concept(name, f"{index:x}", (f"tag{index}",)) for index, name in enumerate(("cup", "owl", "red hat"))
    )
    return EmojiPictures(("3d", "flat"), concepts, rgba)


def tiny_parts(tokenizer: CLIPTokenizer) -> Parts:
    torch.manual_seed(3)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=24, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=8, out_channels=8, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2,
    )  # fmt: skip
    return Parts(tokenizer, text, tiny_vae(), unet)


def tiny_vae() -> AutoencoderKL:
    torch.manual_seed(5)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8), layers_per_block=1, latent_channels=8, norm_num_groups=4, sample_size=64,
        mid_block_add_attention=False, scaling_factor=1.0,
    ).eval()  # fmt: skip


def tiny_latents() -> Latents:
    random_ = torch.Generator().manual_seed(0)
    index = torch.arange(12)
    return Latents(torch.randn(12, 8, 16, 16, generator=random_).half(), index % 2, index % 3, index % 10,
                   torch.full_like(index, -1))


def tiny_run(tokenizer: CLIPTokenizer, words: dict) -> tuple[EmaTrainer, Iterator[StepResult]]:
    """A trainer with fresh modules, and the steps it is going to make."""
    parts, latents = tiny_parts(tokenizer), tiny_latents()
    trainer = EmaTrainer({"unet": parts.unet, "text_encoder": parts.text_encoder}, decay=0.9, weight_decay=0.01)
    write = caption_writer(tokenizer, latents, tiny_pictures(), words | {"also": {"mug": "cup"}})
    schedule = Schedule(lr=1e-2, steps=8, warmup=2)
    return trainer, train_unet(trainer, parts, latents, write, schedule, batch=4, seed=7)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tokenizer, words, tmp_path):
    whole, steps = tiny_run(tokenizer, words)
    losses = [event.loss for event in steps]
    first, steps = tiny_run(tokenizer, words)
    before = [event.loss for event in islice(steps, 3)]
    first.save(tmp_path / "checkpoint.pt")
    list(islice(steps, 1))  # work that is lost in the kill must not leak into the checkpoint
    second, steps = tiny_run(tokenizer, words)
    with torch.no_grad():
        for parameter in second.parameters:
            parameter.normal_()
    second.restore(tmp_path / "checkpoint.pt")
    assert before + [event.loss for event in steps] == losses
    assert len(losses) == 8
    for mine, theirs in zip(
        second.parameters + second.average, whole.parameters + whole.average, strict=True
    ):
        assert torch.equal(mine, theirs)


def test_training_lowers_the_loss_and_moves_every_part(tokenizer, words):
    trainer, steps = tiny_run(tokenizer, words)
    start = {
        name: [p.detach().clone() for p in module.parameters()] for name, module in trainer.modules.items()
    }
    list(steps)
    for name, module in trainer.modules.items():
        moved = sum(
            not torch.equal(old, new) for old, new in zip(start[name], module.parameters(), strict=True)
        )
        assert moved / len(start[name]) > 0.9, name


def test_the_average_follows_the_weights_by_the_stated_rule():
    module = torch.nn.Linear(2, 1, bias=False)
    trainer = EmaTrainer({"only": module}, decay=0.5, weight_decay=0.0)
    expected = module.weight.detach().clone()
    for step in range(1, 6):
        trainer.update((module.weight**2).sum(), 0.1)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    assert_close(trainer.average[0], expected)
    assert_close(trainer.averaged()["only"].weight.detach(), expected)


def test_a_checkpoint_is_replaced_whole(tmp_path):
    trainer = EmaTrainer({"only": torch.nn.Linear(2, 2)}, decay=0.5, weight_decay=0.0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_text("an older one")
    trainer.save(tmp_path / "run" / "checkpoint.pt")
    trainer.restore(tmp_path / "run" / "checkpoint.pt")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint.pt"]


def test_the_schedule_warms_up_holds_and_ends_at_its_floor():
    by_steps = Schedule(lr=1.0, steps=1000, warmup=10, hold=0.3, floor=0.02)
    assert by_steps.rate(0, 0.0) == pytest.approx(0.1)
    assert by_steps.rate(300, 0.0) == pytest.approx(1.0)
    assert by_steps.rate(650, 0.0) == pytest.approx(0.51, abs=1e-6)  # half-way down the cosine
    assert by_steps.rate(1000, 0.0) == pytest.approx(0.02)
    by_clock = Schedule(lr=1.0, seconds=60, warmup=1)
    assert by_clock.rate(5, 30.0) == pytest.approx(0.51)
    assert by_clock.progress(5, 61.0) > 1
    with pytest.raises(ValueError, match="either steps or seconds"):
        Schedule(lr=1.0)
    with pytest.raises(ValueError, match="either steps or seconds"):
        Schedule(lr=1.0, steps=1, seconds=1.0)


def test_every_epoch_shows_every_view_once_in_an_order_of_its_own():
    epochs = [
        torch.cat([batch_of(3 * epoch + step, 4, 12, seed=1) for step in range(3)]) for epoch in range(2)
    ]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(12))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_the_loss_is_the_mean_square_of_the_velocity_error(tokenizer):
    parts, scheduler = tiny_parts(tokenizer), new_scheduler()
    z, ids = torch.randn(4, 8, 16, 16), torch.tensor(token_ids(tokenizer, ["a cup"] * 4))

    class Silent(torch.nn.Module):
        def forward(self, noisy, timesteps, words):
            self.seen = noisy
            return type("Output", (), {"sample": torch.zeros_like(noisy)})

    parts.unet = Silent()
    loss = velocity_loss(parts, scheduler, z, ids, step_generator(0, 5))
    rng = step_generator(0, 5)
    timesteps = ((torch.arange(4) + torch.rand(4, generator=rng)) * 250).long()   # one in each quarter
    noise = torch.randn(z.shape, generator=rng)
    betas = torch.linspace(0.00085**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
    signal = torch.cumprod(1 - betas, 0)[timesteps].view(4, 1, 1, 1)
    assert_close(
        loss.double(), ((signal.sqrt() * noise - (1 - signal).sqrt() * z) ** 2).mean(), rtol=1e-4, atol=1e-5
    )
    assert_close(
        parts.unet.seen.double(), signal.sqrt() * z + (1 - signal).sqrt() * noise, rtol=1e-4, atol=1e-5
    )


def test_too_few_views_are_named(tokenizer, words):
    parts, latents = tiny_parts(tokenizer), tiny_latents()
    trainer = EmaTrainer({"unet": parts.unet}, decay=0.9, weight_decay=0.0)
    with pytest.raises(ValueError, match=r"batch of 13.*12 are cached"):
        next(
            train_unet(
                trainer, parts, latents, lambda views, step: [], Schedule(lr=1.0, steps=1), batch=13, seed=0
            )
        )


def test_captions_name_object_style_and_background():
    assert caption("anchor", "flat", "orange") == "a flat emoji of an anchor on an orange background"
    assert caption("unicorn", "3d") == "a 3d emoji of a unicorn"
    rng = random.Random(0)
    said = [varied_caption(["dog face", "dog"], "glossy", "purple", 0.1, rng) for _ in range(4000)]
    empty = sum(not text for text in said) / len(said)
    assert 0.08 < empty < 0.12
    spoken = [text for text in said if text]
    assert all(text.endswith(" on a purple background") for text in spoken)
    assert 0.60 < sum("glossy" in text for text in spoken) / len(spoken) < 0.80
    named = [text for text in spoken if "dog" in text]
    assert len(named) / len(spoken) > 0.95
    assert 0.45 < sum("dog face" in text for text in named) / len(named) < 0.55


def test_white_backgrounds_are_mostly_unsaid():
    rng = random.Random(1)
    said = [varied_caption(["dog"], "3d", "white", 0.0, rng) for _ in range(2000)]
    assert 0.07 < sum("white background" in text for text in said) / len(said) < 0.13
    assert not any("background" in text and "white" not in text for text in said)


def test_the_same_step_gets_the_same_captions_and_other_steps_others(tokenizer, words):
    write = caption_writer(tokenizer, tiny_latents(), tiny_pictures(), words | {"also": {}})
    assert write(range(12), 4) == write(range(12), 4)
    assert write(range(12), 4) != write(range(12), 5)


def test_no_full_caption_is_cut_off(tokenizer, words):
    captions = [
        caption(name, style, background)
        for name in words["concepts"] + words["weak"] + words["held_out"] + list(words["also"])
        for style in words["styles"]
        for background in ("white", "orange", "purple")
    ]
    longest = max(captions, key=lambda text: len(tokenizer(text).input_ids))
    assert len(tokenizer(longest).input_ids) <= 24, longest


def test_a_tokenizer_trained_here_spells_anything(tmp_path):
    trained = train_tokenizer(tiny_pictures(), ["flat", "glossy"])
    trained.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    for text in ("a flat emoji of a cup", "naïve zxqw@# 日本"):
        ids = token_ids(again, [text])[0]
        assert len(ids) == 24
        assert ids[0] == again.bos_token_id
        assert again.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
    assert again.tokenize("flat glossy") == ["flat</w>", "glossy</w>"]


def test_the_words_of_the_base_agree_with_each_other(words):
    learned = words["concepts"] + words["weak"]
    assert len(set(learned)) == len(learned)
    assert not set(learned) & set(words["held_out"])
    assert not set(words["also"]) & set(learned)
    assert set(words["also"].values()) <= set(learned)
    assert set(words["things"]) <= set(learned)
    assert words["backgrounds"] == list(COLOURS)
    assert not set(words["styles"]) & set(words["held_out_styles"])
    for prompt in words["prior_prompts"]:
        assert any(
            prompt.startswith((caption(name, style), f"an emoji of {caption(name, style).split(' of ')[1]}"))
            for name in learned
            for style in words["styles"]
        ), prompt
        assert not any(f" {name} " in f"{prompt} " for name in words["held_out"]), prompt


def test_normalised_latents_are_standard_and_reconstruct_the_same():
    vae, pixels = tiny_vae(), torch.rand(6, 3, 64, 64)
    with torch.no_grad():
        vae.quant_conv.bias[:8] += torch.linspace(
            -3, 3, 8
        )  # channels far from standard, as training leaves them
        vae.quant_conv.weight[:4] *= 5
        before = vae.decode(vae.encode(pixels * 2 - 1).latent_dist.mean).sample
        deviation_before = vae.encode(pixels * 2 - 1).latent_dist.std
        z = encode(vae, pixels)
        deviation = z.std((0, 2, 3))
        normalise_latents(vae, z.mean((0, 2, 3)), deviation)
        posterior = vae.encode(pixels * 2 - 1).latent_dist
        after = vae.decode(posterior.mean).sample
    normal = encode(vae, pixels)
    assert_close(normal.mean((0, 2, 3)), torch.zeros(8), rtol=0, atol=1e-4)
    assert_close(normal.std((0, 2, 3)), torch.ones(8), rtol=0, atol=1e-4)
    assert_close(after, before, rtol=1e-3, atol=1e-4)
    assert_close(posterior.std * deviation[None, :, None, None], deviation_before, rtol=1e-3, atol=1e-6)
    assert vae.config.scaling_factor == 1.0


def test_a_fixed_deviation_is_next_to_nothing_and_leaves_the_means_alone():
    vae, pixels = tiny_vae(), torch.rand(3, 3, 64, 64)
    before = encode(vae, pixels)
    fix_deviation(vae)
    with torch.no_grad():
        posterior = vae.encode(pixels * 2 - 1).latent_dist
    assert_close(posterior.std, torch.full_like(posterior.std, 0.00248), rtol=1e-2, atol=0)
    assert_close(encode(vae, pixels), before, rtol=0, atol=0)


def test_the_shipped_autoencoder_is_exact():
    vae = AutoencoderKL.from_pretrained(EMBEDDED_FOLDER / "vae")
    with torch.no_grad():
        assert vae.encode(torch.rand(1, 3, 64, 64)).latent_dist.std.max() < 0.003


def test_the_autoencoder_learns():
    vae = tiny_vae().train()
    trainer = EmaTrainer({"vae": vae}, decay=0.9, weight_decay=0.0)
    events = train_autoencoder(
        trainer, tiny_pictures(), np.arange(3), 2, Schedule(lr=3e-3, steps=16, warmup=3), 0
    )
    losses = [event.loss for event in events]
    assert len(losses) == 16
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])


def test_a_pair_stands_left_and_right_and_is_named_so(tokenizer):
    red, blue = (torch.zeros(8, 4, 64, 64) for _ in range(2))
    red[:, [0, 3]], blue[:, [2, 3]] = 1, 1
    pixels = place_pair(red, blue, step_generator(0, 0))
    assert pixels.shape == red.shape and pixels.max() <= 1
    left, right = pixels[..., :32], pixels[..., 32:]
    assert left[:, 0].sum() > 20 * right[:, 0].sum() and right[:, 2].sum() > 20 * left[:, 2].sum()
    width = pixels[:, 0].amax(1).gt(0.5).sum(1)   # of the red thing, columns
    assert ((width >= 26) & (width <= 36)).all()
    rng = random.Random(0)
    captions = {pair_caption("cup", "owl", "flat", "blue", 0.0, rng) for _ in range(200)}
    assert captions == {
        "a flat emoji of a cup and an owl on a blue background", "an emoji of a cup and an owl on a blue background",
        "a cup and an owl, flat emoji on a blue background",
        "a flat emoji of a cup left of an owl on a blue background",
        "a flat emoji of an owl right of a cup on a blue background",
    }   # fmt: skip
    assert pair_caption("cup", "owl", "flat", "blue", 1.0, rng) == ""


def test_every_fourth_cached_view_shows_two_different_things():
    latents = cache_latents(tiny_vae(), tiny_pictures(), np.arange(3), styles=2, views=4, seed=0)
    assert latents.z.shape == (24, 8, 16, 16)
    right = latents.right.view(2, 4, 3)
    assert (right[:, :3] == -1).all() and (right[:, 3] >= 0).all()
    assert (right != latents.concept.view(2, 4, 3)).all()


def test_attention_at_every_size_changes_no_answer_of_the_base_it_is_added_to():
    old = UNet2DConditionModel.from_config(new_unet().config | {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}).eval()
    new = with_attention_everywhere(old).eval()
    noisy, words, steps = torch.randn(2, 8, 16, 16), torch.randn(2, 24, 192), torch.tensor([3, 900])
    with torch.no_grad():
        assert torch.equal(old(noisy, steps, words).sample, new(noisy, steps, words).sample)
        new.up_blocks[-1].attentions[0].proj_out.weight.normal_()
        assert not torch.equal(old(noisy, steps, words).sample, new(noisy, steps, words).sample)
    again = with_attention_everywhere(new)
    assert all(torch.equal(a, b) for a, b in zip(new.state_dict().values(), again.state_dict().values(), strict=True))


def test_cached_latents_are_of_the_views_their_labels_name():
    vae, pictures = tiny_vae(), tiny_pictures()
    latents = cache_latents(vae, pictures, np.array([0, 2]), styles=2, views=3, seed=0)
    assert latents.z.shape == (12, 8, 16, 16)
    assert sorted(zip(latents.style.tolist(), latents.concept.tolist(), strict=True)) == sorted(
        (style, concept) for style in range(2) for concept in (0, 2) for _ in range(3)
    )
    assert set(latents.background.tolist()) > {0}  # some on white, some not
    # The labels are right if encoding the labelled views again, with the same rng, gives the same latents.
    names = list(COLOURS)
    for style in range(2):
        for view in range(3):
            first = 2 * (3 * style + view)
            rng = step_generator(0, 3 * style + view)
            random_colours(2, COLOURED, names, rng)
            pixels = place(premultiplied(pictures.rgba[style, [0, 2]]), PLACEMENT, rng)
            behind = torch.stack([colour(names[index]) for index in latents.background[first : first + 2]])
            assert_close(
                latents.z[first : first + 2].float(),
                encode(vae, on_background(pixels, behind)),
                rtol=2e-3,
                atol=2e-3,
            )


def test_a_still_placement_changes_nothing_and_a_small_one_shrinks():
    pixels = premultiplied(tiny_pictures().rgba[0])
    still = place(pixels, Placement(smallest=1.0, shift=0.0), torch.Generator().manual_seed(0))
    assert_close(still, pixels, rtol=0, atol=1e-5)
    shrunk = place(pixels, Placement(smallest=0.5, shift=0.0), torch.Generator().manual_seed(1))
    share = shrunk[:, 3].sum((1, 2)) / pixels[:, 3].sum((1, 2))
    assert bool((share < 1.01).all()) and bool((share > 0.24).all())
    assert float(share.min()) < 0.8


def test_a_background_shows_where_the_object_is_not():
    pixels = premultiplied(tiny_pictures().rgba[1])
    view = on_background(pixels, colour("red")[None].expand(3, 3))
    assert_close(view[:, :, 0, 0], colour("red")[None].expand(3, 3))
    assert_close(view[2, :, 20, 30], torch.tensor([120, 200, 90]) / 255)


def test_names_are_spelled_one_way():
    assert plain_words("Jack-O-Lantern") == "jack o lantern"
    assert plain_words("“on!” arrow: left") == "on arrow left"
    assert hexcode_key("2764-FE0F") == hexcode_key("2764") == "2764"


def test_icons_are_found_by_code_point_and_through_aliases(tmp_path):
    icons = {
        "icons": {"fox": {"body": "<path/>", "width": 20}},
        "aliases": {"reynard": {"parent": "fox"}},
        "height": 32,
    }
    (tmp_path / "icons.json").write_text(json.dumps(icons))
    (tmp_path / "chars.json").write_text(json.dumps({"1F98A-fe0f": "reynard", "1f600": "missing"}))
    found = icon_sources(tmp_path)
    assert list(found) == ["1f98a"]
    assert b'viewBox="0 0 20 32"' in found["1f98a"] and found["1f98a"].endswith(b"<path/></svg>")


def test_pictures_survive_the_disk_and_unknown_names_are_named(tmp_path):
    pictures = tiny_pictures()
    picture_sets.save(pictures, tmp_path)
    again = picture_sets.load(tmp_path)
    assert again.styles == pictures.styles and again.concepts == pictures.concepts
    assert np.array_equal(again.rgba, pictures.rgba)
    assert again.indices(["red hat", "cup"]).tolist() == [2, 0]
    with pytest.raises(ValueError, match="yeti"):
        again.indices(["cup", "yeti"])
    with pytest.raises(FileNotFoundError, match=r"embedded_base\.pictures --out"):
        picture_sets.load(tmp_path / "nothing")


def test_a_missing_npm_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"emojibase-data 17\.0\.0 with npm.*Node\.js"):
        picture_sets.fetch("emojibase-data", "17.0.0", tmp_path / "store")


def test_the_export_is_an_ordinary_pipeline_with_the_averaged_weights(tokenizer, tmp_path):
    parts = tiny_parts(tokenizer)
    trainer = EmaTrainer({"unet": parts.unet, "text_encoder": parts.text_encoder}, decay=0.5, weight_decay=0.0)
    for average in trainer.average:
        average.add_(0.25)
    base_recipe.export(parts, trainer, tmp_path / "pipeline")
    loaded = StableDiffusionPipeline.from_pretrained(
        tmp_path / "pipeline", safety_checker=None, requires_safety_checker=False
    )
    for name in ("unet", "text_encoder"):
        expected = trainer.averaged()[name].state_dict()
        for key, value in getattr(loaded, name).state_dict().items():
            assert_close(value.float(), expected[key].float(), rtol=1e-3, atol=1e-4)
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    picture = loaded("a cup", num_inference_steps=1, output_type="np").images   # all parts in one precision
    assert picture.shape == (1, 64, 64, 3)
    assert str(tmp_path) not in "".join(
        path.read_text() for path in (tmp_path / "pipeline").glob("**/config.json")
    )


def test_the_shipped_base_is_small_and_says_nothing_of_where_it_was_made():
    files = [path for path in BASE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 35e6
    assert not any("_name_or_path" in path.read_text() for path in BASE.glob("**/*.json"))
