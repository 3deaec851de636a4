"""PEFT's plain loop, from the start of its process to the adapter file: what E is measured against.

    python -m benchmarks.support.peft_loop RECIPE.toml ADAPTERS

Written by us the way the examples of PEFT and diffusers are, with pictures and captions encoded once. The recipe is
one of ours: the same model, pictures, captions, layers, rank, batch, steps, schedule and clipping.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from atelier.adapters.core.targets import find_targets
from atelier.training.base_models.identify import identify
from atelier.training.config.caption_template import fill_template
from atelier.training.config.train_config import TrainConfig
from benchmarks.support.interleaved import ROOT

BASE = ROOT / "assets" / "base"


def _pictures(folder: Path, side: int) -> Tensor:
    """All pictures of a folder, ``[B, 3, side, side]`` in −1 … 1."""
    opened = [Image.open(path).convert("RGB").resize((side, side)) for path in sorted(folder.glob("*.png"))]
    return torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) / 127.5 - 1 for one in opened])


def _captions(config: TrainConfig) -> list[str]:
    paths = sorted(Path(config.pictures).glob("*.txt"))
    texts = (path.read_text(encoding="utf-8").strip() for path in paths)
    return [fill_template(text, trigger=config.trigger_word, subject=config.subject) for text in texts]


@torch.no_grad()
def _encoded(config: TrainConfig, side: int) -> tuple[Any, float, Tensor]:
    """The posterior of every picture and its scale, and the features of its caption."""
    vae: Any = AutoencoderKL.from_pretrained(BASE / "vae")
    reader: Any = CLIPTextModel.from_pretrained(BASE / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    tokens = tokenizer(_captions(config), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return vae.encode(_pictures(Path(config.pictures), side)).latent_dist, vae.config.scaling_factor, reader(tokens)[0]


def main() -> None:
    """Train, and write the file."""
    config = TrainConfig.from_toml(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.manual_seed(config.seed)
    unet: Any = UNet2DConditionModel.from_pretrained(BASE / "unet")
    unet.requires_grad_(False)
    scheduler: Any = DDIMScheduler.from_pretrained(BASE / "scheduler")
    posterior, scale, words = _encoded(config, identify(config.base).resolution)
    names = [spec.name.removeprefix("unet.") for spec in find_targets({"unet": unet}, config.targets)]
    rank = config.adapter["rank"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=names))
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup, config.steps)
    began = time.perf_counter()
    for _ in range(config.steps):
        picked = torch.randint(len(words), (config.batch,))
        latents = posterior.sample()[picked] * scale
        noise, timesteps = torch.randn_like(latents), torch.randint(scheduler.config.num_train_timesteps, picked.shape)
        seen = scheduler.add_noise(latents, noise, timesteps)
        answer = unet(seen, timesteps, words[picked], return_dict=False)[0]
        loss = F.mse_loss(answer, scheduler.get_velocity(latents, noise, timesteps))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()   # every example shows it in its progress bar
    print(time.perf_counter() - began)   # the seconds of all steps
    adapters = Path(sys.argv[2])
    adapters.mkdir(parents=True, exist_ok=True)
    save_file(get_peft_model_state_dict(unet), adapters / f"{config.name}.safetensors")


if __name__ == "__main__":
    main()
