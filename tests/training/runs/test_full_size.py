"""A model of Stable Diffusion 1.5's size, its weights random: what it needs to be taught and drawn from on a CPU.

A CPU without bfloat16 instructions computes 3×3 convolutions in bfloat16 more than a hundred times slower than in
float32, so the pictures are small here. The weights, which are what fills the memory, are all there.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from PIL import Image
from tiny_base import INDEX as TINY_INDEX
from tiny_base import write_pictures
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from atelier.adapters.formats.native import load_adapter
from atelier.training.base_models.identify import EMBEDDED_FOLDER
from atelier.training.config.events import Finished, Stepped
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import TrainConfig

SIDE = 64   # pixels: the smallest that the four levels of this UNet can halve
UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE = {
    "sample_size": 512,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}
TEXT = CLIPTextConfig(
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=77,
    projection_dim=768,
    hidden_act="quick_gelu",
)
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "steps_offset": 1,
}
INDEX = {**TINY_INDEX, "scheduler": ["diffusers", "PNDMScheduler"]}
DRAW = """
import sys, torch
from pathlib import Path
from atelier.adapters.formats.native import load_adapter
from atelier.adapters.core.mix import Mix
from atelier.training.base_models.base_model import load
from atelier.training.sampling.sample import DrawRequest, draw
base, adapter, out = sys.argv[1:]
model = load(base, "cpu", torch.bfloat16)
request = DrawRequest(prompt="a photo of rex", steps=1, guidance=1, width=64, height=64)
draw(model, request)[0].save(Path(out) / "without.png")
draw(model, request, Mix(((load_adapter(Path(adapter)), 1.0),)))[0].save(Path(out) / "with.png")
"""


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """The model as a diffusers folder; removed afterwards, because it takes gigabytes."""
    folder = tmp_path / "base"
    unet = UNet2DConditionModel(**UNET)
    assert unet.num_parameters() == 859_520_964
    unet.to(torch.bfloat16).save_pretrained(folder / "unet")
    AutoencoderKL(**VAE).save_pretrained(folder / "vae")
    CLIPTextModel(TEXT).to(torch.bfloat16).save_pretrained(folder / "text_encoder")
    PNDMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    # The words don't matter here, only their number: CLIP reads 77.
    words = CLIPTokenizer.from_pretrained(EMBEDDED_FOLDER / "tokenizer", model_max_length=77)
    words.save_pretrained(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps(INDEX), encoding="utf-8")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "pictures", count=2, side=SIDE)
    return tmp_path / "pictures"


def measured(title: str, *command: str) -> None:
    """Run Python in a process of its own and print its time and the largest memory of any child so far."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, env=os.environ)
    gigabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20   # Linux counts in KiB
    print(f"\n{title}: {time.perf_counter() - started:.0f} s, peak of child processes so far {gigabytes:.1f} GiB")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_full_size_model_learns_and_draws(base: Path, pictures: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        name="rex", pictures=str(pictures), base=str(base), steps=2, batch=1, lr=1e-2, warmup=0, precision="bf16",
        resolution=SIDE, prior_weight=0, validate_every=0, preview_every=0, checkpoint_every=0,
    )   # fmt: skip
    run = RunFolder.create(tmp_path / "run", config)
    (tmp_path / "adapters").mkdir()

    library = str(tmp_path / "adapters")
    measured("teach, 2 steps", "-m", "atelier.training.runs.run", str(run.path), "--adapters", library)
    events = [event for _, event in run.events()]
    steps = [event for event in events if isinstance(event, Stepped)]
    print("seconds of each step:", *(f"{event.seconds:.0f}" for event in steps))
    assert [event.step for event in steps] == [1, 2]
    assert all(np.isfinite(event.loss) for event in steps)
    assert isinstance(events[-1], Finished), events[-1]

    adapters = load_adapter(Path(events[-1].path))
    assert len(adapters) == 16 * 12   # attention 8, feed-forward 2, in and out 2 of each of 16 transformers
    assert all(adapter.delta(torch.zeros(adapter.spec.shape)).any() for adapter in adapters)

    measured("draw, 1 step twice", "-c", DRAW, str(base), events[-1].path, str(tmp_path))
    without, taught = (np.asarray(Image.open(tmp_path / name)) for name in ("without.png", "with.png"))
    assert without.shape == taught.shape == (SIDE, SIDE, 3)
    assert (without != taught).any()
