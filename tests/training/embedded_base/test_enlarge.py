"""The autoencoder of 128 pixels: what it starts as, what it learns, and what the shipped one gives back."""

# diffusers says nothing of the modules inside a model.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close

from atelier.training.embedded_base.ema_trainer import EmaTrainer, Schedule
from atelier.training.embedded_base.enlarge import enlarged, train_enlarged
from atelier.training.embedded_base.pictures import Concept, EmojiPictures
from atelier.training.embedded_base.vae import encode, varied_pixels

ROOT = Path(__file__).resolve().parents[3]


def small_autoencoder() -> AutoencoderKL:
    torch.manual_seed(5)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8), layers_per_block=1, latent_channels=8, norm_num_groups=4, sample_size=64,
        mid_block_add_attention=False, scaling_factor=0.5,
    ).eval().requires_grad_(False)  # fmt: skip


def squares() -> EmojiPictures:
    rgba = np.zeros((1, 2, 128, 128, 4), np.uint8)
    rgba[0, 0, 30:90, 40:100] = (200, 40, 40, 255)
    rgba[0, 1, 20:70, 30:90] = (40, 40, 200, 255)
    return EmojiPictures(("3d",), (Concept("cup", "1", ()), Concept("owl", "2", ())), rgba)


def test_the_decoder_starts_as_the_small_one_with_its_last_features_smoothly_enlarged():
    small = small_autoencoder()
    large, seen = enlarged(small), []
    small.decoder.conv_norm_out.register_forward_pre_hook(lambda _, features: seen.append(features[0]))
    z = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    small.decode(z)
    doubled = F.pad(seen[0].repeat_interleave(2, 2).repeat_interleave(2, 3), (1, 1, 1, 1))
    across = (doubled[..., :-2] + 2 * doubled[..., 1:-1] + doubled[..., 2:]) / 4
    smooth = (across[:, :, :-2] + 2 * across[:, :, 1:-1] + across[:, :, 2:]) / 4
    expected = small.decoder.conv_out(F.silu(small.decoder.conv_norm_out(smooth)))
    assert_close(large.decode(z).sample, expected, rtol=1e-4, atol=1e-5)


def test_the_encoder_starts_as_the_small_one_behind_halved_features():
    small = small_autoencoder()
    large, flat = enlarged(small), torch.full((1, 3, 128, 128), 0.3)
    assert large.encode(flat).latent_dist.mean.shape == (1, 8, 16, 16)
    seen, expected = [], []
    large.encoder.down_blocks[0].register_forward_hook(lambda _, __, features: seen.append(features))
    small.encoder.conv_in.register_forward_hook(lambda _, __, features: expected.append(features))
    large.encode(flat)
    small.encode(flat[..., :64, :64])
    assert_close(seen[0][..., 1:-1, 1:-1], expected[0][..., 1:-1, 1:-1])


def test_training_brings_the_latents_to_the_small_encoders_and_sharpens_pictures():
    small, batch = small_autoencoder(), partial(varied_pixels, squares(), 1, np.arange(2), 4)
    large = enlarged(small)
    large.quant_conv.bias.data += 1  # latents that are plainly wrong
    trainer = EmaTrainer({"vae": large}, decay=0.9, weight_decay=0.0)
    pixels = torch.ones(1, 3, 128, 128)
    pixels[..., 30:90, 40:100] = torch.tensor([0.57, -0.69, -0.69])[:, None, None]

    def far(large: AutoencoderKL) -> tuple[float, float]:
        """Of its latents from the small one's, and of a picture from what comes back."""
        z = small.encode(F.avg_pool2d(pixels, 2)).latent_dist.mean
        with torch.no_grad():
            return (
                float((large.encode(pixels).latent_dist.mean - z).square().mean()),
                float((large.decode(z).sample - pixels).abs().mean()),
            )

    before = far(large)
    schedule = Schedule(lr=1e-2, steps=30, warmup=2)
    steps = list(train_enlarged(trainer, small, batch, schedule, seed=1))
    after = far(trainer.averaged()["vae"])
    assert len(steps) == 30
    assert after[0] < 0.5 * before[0] and after[1] < 0.75 * before[1]


def test_the_shipped_autoencoder_gives_unseen_pictures_back_sharper_than_64_pixels_can():
    shipped = AutoencoderKL.from_pretrained(ROOT / "assets" / "base" / "vae").float().eval()
    files = sorted((ROOT / "assets" / "examples").glob("*/*_03.png"))   # the ones of 128 pixels, on white
    drawn = [name for name in files if name.parent.name in {"fox", "owl", "guitar", "rocket", "penguin", "strawberry"}]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(name).convert("RGB"))) for name in drawn])
    pixels = pixels.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        z = encode(shipped, pixels) / shipped.config["scaling_factor"]
        back = (shipped.decode(z).sample / 2 + 0.5).clamp(0, 1)
    halved = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bicubic", align_corners=False)

    def sharpness(pictures: torch.Tensor) -> float:
        second = pictures[..., 2:, 1:-1] + pictures[..., :-2, 1:-1] + pictures[..., 1:-1, 2:] + pictures[..., 1:-1, :-2]
        return float((second - 4 * pictures[..., 1:-1, 1:-1]).square().mean())

    error = (back - pixels).square().mean((1, 2, 3))
    assert len(drawn) == 6 and z.shape == (6, 8, 16, 16)
    assert float((-10 * error.log10()).mean()) > 26
    assert sharpness(back) > 1.5 * sharpness(halved)
