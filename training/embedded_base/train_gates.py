"""Train gates for a base model; one small file comes out.

    python -m atelier.training.embedded_base.train_gates --home DIR [--base BASE] [--out FILE]
    python -m atelier.training.embedded_base.train_gates --school build/school --work build/base

Of a home, every adapter that was taught there and whose pictures are still there is a lesson; at least two are needed.
The gates that come with the embedded base learned in a school (``gate_dataset.py``), where the truth of mixes is known.
A training that was interrupted goes on from the last checkpoint in ``--folder``.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.formats.native import load_adapter, read_header
from atelier.adapters.fusion.gates import GateSet, GateSettings
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.config.assets import ASSETS
from atelier.training.config.events import Event
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import EMBEDDED, TrainConfig
from atelier.training.data.prepare import encode_dataset, scan_pictures
from atelier.training.embedded_base.gate_dataset import scenes
from atelier.training.embedded_base.pictures import load as load_pictures
from atelier.training.loop.batch import AdapterExamples
from atelier.training.loop.loop import NO_CONTROLS, Training
from atelier.training.loop.optimizer_step import make_accelerator
from atelier.training.loop.recipe import Recipe
from atelier.training.recipes.gates import GateConfig, gate_recipe, scene_recipe

SHIPPED = ASSETS / "gates"
STEPS, BATCH, LR = 300, 6, 1e-2
SCENES = 200   # of a school


def shipped_gates(family: str) -> Path | None:
    """The file of gates that comes with Atelier for a base family; None where there is none."""
    path = SHIPPED / f"{family}.safetensors"
    return path if path.exists() else None


def gates_for(model: BaseModel) -> GateSet | None:
    """The gates that come with Atelier for this base model, on its device; None where there are none."""
    path = shipped_gates(model.info.family)
    return GateSet.load(path).to(model.device) if path else None


def home_lessons(model: BaseModel, home: Path, names: Sequence[str] = ()) -> list[AdapterExamples]:
    """Adapters of a home with the pictures that they learned from; all that have any, or those that are named."""
    found = []
    for path in sorted((home / "adapters").glob("*.safetensors")):
        if names and path.stem not in names:
            continue
        header = read_header(path)
        run = RunFolder(home / "runs" / header.metadata.get("atelier.run", "?"))
        if header.metadata.get("atelier.family") == model.info.family and (run.path / "recipe.toml").exists():
            config = run.config()
            if Path(config.pictures).is_dir():
                examples = encode_dataset(model, scan_pictures(config))
                found.append(AdapterExamples(load_adapter(path, model.device), examples))
    return found


def gates_on(adapters: Iterable[AdapterSet], settings: GateSettings, model: BaseModel) -> GateSet:
    """Fresh gates for the layers of the UNet that any of the adapters has; no other could learn."""
    specs = {spec.name: spec for one in adapters for spec in one.specs if spec.name.startswith("unet.")}
    return GateSet(specs.values(), settings, model.info.family).to(model.device)


def training_config(steps: int, batch: int, lr: float, seed: int) -> TrainConfig:
    """What the loop is told: gates are few, so nothing is validated or drawn on the way."""
    return TrainConfig(
        name="gates", steps=steps, batch=batch, lr=lr, seed=seed, warmup=min(20, steps), weight_decay=0.0,
        validate_every=0, preview_every=0, checkpoint_every=50, keep_best=False,
    )   # fmt: skip


def train_gates(
    model: BaseModel, gates: GateSet, recipe: Recipe, config: TrainConfig, folder: Path
) -> Iterator[Event]:
    """Teach the gates in place and say what happens; checkpoints are in ``folder``, and the newest is gone on from."""
    gates.requires_grad_(True)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    training = Training(recipe, config, folder, make_accelerator(model))
    training.resume()
    yield from training.events(NO_CONTROLS)
    gates.requires_grad_(False)


def main() -> None:
    """Train and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--home", type=Path, help="with adapters and runs")
    parser.add_argument("--adapters", nargs="+", default=[], metavar="NAME", help="those of the home (default: all)")
    parser.add_argument("--school", type=Path, help="a school instead of a home")
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="folder with the school's pictures")
    parser.add_argument("--base", default=EMBEDDED)
    parser.add_argument("--out", type=Path, help="default: the file that comes with Atelier")
    parser.add_argument("--folder", type=Path, help="for checkpoints, to go on after an interruption")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gates", nargs="*", default=[], metavar="KEY=VALUE", help="start, terms, timed")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="margin, wordless, common_rank …")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model = load(options.base)
    settings = GateSettings.from_dict(dict(pair.split("=", 1) for pair in options.gates))
    own = GateConfig.from_dict(dict(pair.split("=", 1) for pair in options.set))
    config = training_config(options.steps, options.batch, options.lr, options.seed)
    if options.school:
        shown = scenes(model, load_pictures(options.work), options.school, SCENES, random.Random(config.seed))
        gates = gates_on((one for scene in shown for one in scene.adapters), settings, model)
        recipe = scene_recipe(model, gates, shown, config)
    else:
        lessons = home_lessons(model, options.home, options.adapters)
        gates = gates_on((lesson.adapters for lesson in lessons), settings, model)
        recipe = gate_recipe(model, gates, lessons, config, own)
    with tempfile.TemporaryDirectory() as folder:
        for event in train_gates(model, gates, recipe, config, options.folder or Path(folder)):
            print(event, flush=True)   # noqa: T201 (a program of its own)
    out = options.out or SHIPPED / f"{model.info.family}.safetensors"
    gates.save(out, {"atelier.steps": str(options.steps)})
    print(f"{out}: {out.stat().st_size / 1000:.0f} KB")   # noqa: T201


if __name__ == "__main__":
    main()
