"""DreamBooth with a LoRA, whole: the embedded base model learns a fox from eleven pictures and draws it.

    .venv/bin/python docs/examples/dreambooth_in_60_lines.py --steps 300 --out fox.png
"""

import argparse

import torch

from atelier.adapters.attach.mount import mount
from atelier.adapters.core.mix import Mix
from atelier.adapters.core.targets import find_targets
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models.base_model import load
from atelier.training.config.assets import ASSETS
from atelier.training.data.buckets import crop_and_resize
from atelier.training.data.images import open_picture, to_tensor
from atelier.training.data.latent_cache import encode_text, tokenize
from atelier.training.loop.losses import mse_per_sample
from atelier.training.loop.noise import add_noise, sample_timesteps
from atelier.training.sampling.sample import DrawRequest, draw, draw_latents

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--out", default="fox.png")
options = parser.parse_args()
generator = torch.manual_seed(0)
model = load("embedded", "cpu")   # UNet, VAE and text encoder, all frozen

# The subject: pictures as latents, and captions that hold a trigger word and the class word, "rex fox".
files = sorted((ASSETS / "examples" / "fox").glob("*.png"))
captions = [file.with_suffix(".txt").read_text().strip().replace("{trigger}", "rex") for file in files]
pictures = torch.stack([to_tensor(crop_and_resize(open_picture(file), (128, 128))) for file in files])   # −1 … 1
with torch.no_grad():
    subject = model.vae.encode(pictures).latent_dist.mean * model.vae.config.scaling_factor

# Prior preservation: what is to stay as it is. The base model draws it before anything is learned.
prompts = list(model.info.prior_prompts[:12])
latents = torch.cat([subject, draw_latents(model, prompts, steps=12, seed=0)])
with torch.no_grad():
    text = encode_text(model, tokenize(model, captions + prompts)).features

# The LoRA: a pair of matrices for each layer of the UNet, down [rank, in] and up [out, rank]. Only these are trained.
adapters = create_adapters("lora", {"rank": 8}, find_targets({"unet": model.unet}, "all"))
optimizer = torch.optim.AdamW(adapters.parameters(), lr=2.5e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
for step in range(1, options.steps + 1):
    rows = torch.cat([torch.randint(len(subject), (4,)), torch.randint(len(subject), len(latents), (4,))])
    timesteps = torch.cat([sample_timesteps(4, 1000, generator) for _ in range(2)])
    noisy = add_noise(model.scheduler, latents[rows], torch.randn_like(latents[rows]), timesteps)
    with mount(model.models(), Mix(((adapters, 1.0),))):
        loss = mse_per_sample(model.unet(noisy.latents, timesteps, text[rows]).sample, noisy.target).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    print(f"step {step} of {options.steps}: loss {loss.item():.3f}", end="\r", flush=True)

request = DrawRequest(prompt="an emoji of a rex fox on a blue background", seed=1)
draw(model, request, Mix(((adapters, 1.0),)))[0].save(options.out)
