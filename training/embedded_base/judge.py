"""A small classifier of object and style, so that likeness is a number and not an impression.

It knows the objects the base was trained on and those held out from it, in every style, and was trained on those
pictures alone (`train_judge.py`): never on anything a base model or an adapter drew. Benchmarks and tests ask
it; training an adapter must not, or the number would measure how well the judge was pleased.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from atelier.training.config.assets import ASSETS
from atelier.training.embedded_base.views import COLOURS

SIDE = 64
FEATURES = 128
SHARPNESS = 16.0
"""Features have unit length, so their products with the object directions need scaling up to become logits."""
WEIGHTS = ASSETS / "judge" / "judge.safetensors"


class Network(nn.Module):
    """Four halvings of 64×64 pixels, then features, object logits and style logits.

    The object is read from where things are at the end (a 2×2 grid of the last stage). The style is read from
    texture as well: mean and spread of each channel after the first two stages, wherever in the picture.
    """

    def __init__(self, objects: int, styles: int, widths: Sequence[int] = (24, 48, 96, 192)) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_stage(*pair) for pair in zip((3, *widths[:-1]), widths, strict=True))
        seen = 4 * widths[-1]
        self.embed = nn.Linear(seen, FEATURES)
        self.objects = nn.Linear(FEATURES, objects)
        self.styles = nn.Sequential(
            nn.Linear(seen + 2 * (widths[0] + widths[1]), FEATURES), nn.ReLU(), nn.Linear(FEATURES, styles)
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [B, 3, 64, 64] in −1 … 1 → features [B, 128] of unit length, object and style logits."""
        maps = []
        for layer in self.stages:
            pixels = layer(pixels)
            maps.append(pixels)
        seen = F.adaptive_avg_pool2d(maps[-1], 2).flatten(1)
        features = F.normalize(self.embed(seen), dim=1)
        texture = [statistic for early in maps[:2] for statistic in (early.mean((2, 3)), early.std((2, 3)))]
        return features, self.objects(SHARPNESS * features), self.styles(torch.cat([seen, *texture], dim=1))


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions; the first halves the side."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


@dataclass(frozen=True, slots=True)
class Prediction:
    """Probabilities and features of B pictures."""

    objects: Tensor  # [B, objects] probabilities
    styles: Tensor  # [B, styles] probabilities
    features: Tensor  # [B, 128] of unit length: their products are cosines


class Judge:
    """The trained classifier with the names of its classes."""

    def __init__(self, network: nn.Module, object_names: Sequence[str], style_names: Sequence[str]) -> None:
        self.network = network.eval()
        self.object_names = tuple(object_names)
        self.style_names = tuple(style_names)

    @classmethod
    def load(cls, path: Path = WEIGHTS, network_class: Callable[[int, int], nn.Module] = Network) -> Judge:
        """Read the shipped weights; a missing file is a FileNotFoundError that says how to make it."""
        if not path.exists():
            raise FileNotFoundError(
                f"no judge at {path}; train it with: python -m atelier.training.embedded_base.train_judge"
            )
        with safe_open(path, framework="pt") as file:
            names = {key: json.loads(value) for key, value in file.metadata().items()}
            weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a dict)
        network = network_class(len(names["objects"]), len(names["styles"]))
        network.load_state_dict(weights, strict=False)  # BatchNorm's step counters are not kept
        return cls(network, names["objects"], names["styles"])

    def save(self, path: Path) -> None:
        """Write weights in half precision with the names in the header."""
        weights = {
            key: value.half().contiguous()
            for key, value in self.network.state_dict().items()
            if value.is_floating_point()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, path, {"objects": json.dumps(self.object_names), "styles": json.dumps(self.style_names)})

    @torch.no_grad()
    def classify(self, pictures: Sequence[Image.Image]) -> Prediction:
        """Classify pictures of any size; each is cut to its central square and reduced to 64×64."""
        return self.classify_pixels(torch.stack([pixels_of(picture) for picture in pictures]))

    @torch.no_grad()
    def classify_pixels(self, pixels: Tensor) -> Prediction:
        """Classify [B, 3, 64, 64] in 0 … 1."""
        features, objects, styles = self.network(pixels * 2 - 1)
        return Prediction(objects.softmax(1), styles.softmax(1), features)

    def object_index(self, name: str) -> int:
        """Column of `Prediction.objects` for a name; an unknown name is a ValueError."""
        if name not in self.object_names:
            raise ValueError(f"the judge does not know {name!r}; it knows {len(self.object_names)} of them")
        return self.object_names.index(name)

    def style_index(self, name: str) -> int:
        """Column of `Prediction.styles` for a style word; an unknown one is a ValueError."""
        if name not in self.style_names:
            raise ValueError(f"the judge does not know the style {name!r}; it knows {', '.join(self.style_names)}")
        return self.style_names.index(name)


def pixels_of(picture: Image.Image) -> Tensor:
    """The central square of a picture, area-filtered to [3, 64, 64] in 0 … 1; transparency becomes white."""
    if picture.mode != "RGB":
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    small = ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def background_colour(picture: Image.Image) -> str:
    """The named colour (`views.COLOURS`) nearest to most pixels of the picture's border.

    The border is a frame of a 32nd of the side. A vote, not a mean: an object that touches the edge cannot
    turn a red background orange.
    """
    pixels = (pixels_of(picture) * 255).permute(1, 2, 0)
    frame = torch.ones(SIDE, SIDE, dtype=torch.bool)
    frame[SIDE // 32 : -SIDE // 32, SIDE // 32 : -SIDE // 32] = False
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    nearest = torch.cdist(pixels[frame], palette).argmin(1)
    return list(COLOURS)[int(nearest.mode().values)]
