"""Train gates for a base model from a home: its adapters, each with the pictures it was trained on; one file comes out.

    python -m atelier.training.runs.train_gates --home DIR [--base BASE] [--out FILE]

At least two adapters are needed. A training that was interrupted continues from the last checkpoint in ``--folder``.
The gates that come with the embedded base are trained by ``embedded_base/train_gates.py``, with true pictures of mixes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from atelier.adapters.core.base import AdapterSet
from atelier.adapters.formats.native import load_adapter, read_header
from atelier.adapters.fusion.gates import GateSet, GateSettings
from atelier.training.base_models.base_model import BaseModel, load
from atelier.training.base_models.bundled import gates_path
from atelier.training.config.events import Event
from atelier.training.config.run_folder import RunFolder
from atelier.training.config.train_config import EMBEDDED, TrainConfig
from atelier.training.data.prepare import encode_dataset, scan_pictures
from atelier.training.loop.batch import AdapterExamples
from atelier.training.loop.optimizer_step import make_accelerator
from atelier.training.loop.recipe import Recipe
from atelier.training.loop.training_loop import NO_CONTROLS, Training
from atelier.training.recipes.gates import GateConfig, gate_recipe

STEPS, BATCH, LR = 300, 6, 1e-2


def home_examples(model: BaseModel, home: Path, names: Sequence[str] = ()) -> list[AdapterExamples]:
    """Adapters of a home with the pictures they were trained on: all that still have them, or those that are named."""
    found = []
    for path in sorted((home / "adapters").glob("*.safetensors")):
        if names and path.stem not in names:
            continue
        info = read_header(path).info
        run = RunFolder(home / "runs" / (info.run or "?"))
        if info.family == model.info.family and (run.path / "recipe.toml").exists():
            config = run.config()
            if Path(config.pictures).is_dir():
                examples = encode_dataset(model, scan_pictures(config), config.caption_chunks)
                found.append(AdapterExamples(load_adapter(path, model.device), examples))
    return found


def gates_on(adapters: Iterable[AdapterSet], settings: GateSettings, model: BaseModel) -> GateSet:
    """New gates for the layers of the UNet that any of the adapters changes; no others could learn."""
    specs = {spec.name: spec for adapter_set in adapters for spec in adapter_set.specs if spec.name.startswith("unet.")}
    return GateSet(specs.values(), settings, model.info.family).to(model.device)


def gate_training_config(steps: int, batch: int, lr: float, seed: int) -> TrainConfig:
    """The recipe of a gate training: gates are few, so nothing is validated or drawn on the way."""
    return TrainConfig(
        name="gates", steps=steps, batch=batch, lr=lr, seed=seed, warmup=min(20, steps), weight_decay=0.0,
        validate_every=0, preview_every=0, checkpoint_every=50, keep_best=False, snapshots=0,
    )   # fmt: skip


def train_gates(
    model: BaseModel, gates: GateSet, recipe: Recipe, config: TrainConfig, folder: Path
) -> Iterator[Event]:
    """Train the gates in place and yield the events; continues from the newest checkpoint in ``folder``."""
    gates.requires_grad_(True)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    training = Training(recipe, config, folder, make_accelerator(model))
    training.resume()
    yield from training.events(NO_CONTROLS)
    gates.requires_grad_(False)


def gate_parser(description: str) -> argparse.ArgumentParser:
    """Options that every way of training gates has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=EMBEDDED)
    parser.add_argument("--out", type=Path, help="default: the file that comes with Atelier")
    parser.add_argument("--folder", type=Path, help="for checkpoints, to continue after an interruption")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gates", nargs="*", default=[], metavar="KEY=VALUE", help="start, terms, timed")
    return parser


def settings_of(pairs: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` texts as a table."""
    return dict(pair.split("=", 1) for pair in pairs)


def run_training(
    model: BaseModel, gates: GateSet, recipe: Recipe, config: TrainConfig, options: argparse.Namespace
) -> Iterator[str]:
    """Train and write the file; yields lines to print."""
    with tempfile.TemporaryDirectory() as folder:
        for event in train_gates(model, gates, recipe, config, options.folder or Path(folder)):
            yield str(event)
    out = options.out or gates_path(model.info.family)
    gates.save(out, steps=options.steps)
    yield f"{out}: {out.stat().st_size / 1000:.0f} KB"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train gates from a home and write the file."""
    parser = gate_parser(__doc__ or "")
    parser.add_argument("--home", type=Path, required=True, help="with adapters and runs")
    parser.add_argument("--adapters", nargs="+", default=[], metavar="NAME", help="those of the home (default: all)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="margin, wordless, common_rank …")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    model = load(options.base)
    config = gate_training_config(options.steps, options.batch, options.lr, options.seed)
    examples = home_examples(model, options.home, options.adapters)
    gates = gates_on((one.adapters for one in examples), GateSettings.from_dict(settings_of(options.gates)), model)
    recipe = gate_recipe(model, gates, examples, config, GateConfig.from_dict(settings_of(options.set)))
    for line in run_training(model, gates, recipe, config, options):
        print(line, flush=True)   # noqa: T201 (a program of its own)


if __name__ == "__main__":
    main()
