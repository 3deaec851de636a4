"""Train gates for a base model from adapters and the pictures they learned from; one small file comes out.

    python -m atelier.training.gate_training --home DIR [--base BASE] [--out FILE]
    python -m atelier.training.gate_training --zoo build/zoo --work build/base --styles 3d flat glossy

Of a home, every adapter that was taught there and whose pictures are still there is a lesson; at least two are needed.
The gates that come with the embedded base learned from a zoo (``zoo.py``) without the styles that are judged.
A training that was interrupted goes on from the last checkpoint in ``--folder``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from atelier.adapters.files import load_adapter, read_header
from atelier.adapters.gate import GateSet, GateSettings
from atelier.adapters.settings import SettingError

from .base_model import BaseModel, load
from .config import EMBEDDED, TrainConfig
from .events import Event
from .foundation_data import load as load_pictures
from .gate_recipe import GateConfig, Lesson, gate_recipe
from .latents import encode_pictures
from .loop import Controls, Training, accelerator_for
from .runs import RunFolder
from .study import encode, look_through
from .zoo import lesson, read_index

SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "gates"
STEPS, BATCH, LR = 100, 4, 1e-2


def shipped_gates(family: str) -> Path | None:
    """The file of gates that comes with Atelier for a base family; None where there is none."""
    path = SHIPPED / f"{family}.safetensors"
    return path if path.exists() else None


def gates_for(model: BaseModel) -> GateSet | None:
    """The gates that come with Atelier for this base model, on its device; None where there are none."""
    path = shipped_gates(model.info.family)
    return GateSet.load(path).to(model.device) if path else None


def home_lessons(model: BaseModel, home: Path, names: Sequence[str] = ()) -> list[Lesson]:
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
                found.append(Lesson(load_adapter(path).to(model.device), encode(model, look_through(config))))
    return found


def zoo_lessons(model: BaseModel, zoo: Path, work: Path, count: int, styles: Sequence[str]) -> list[Lesson]:
    """The first adapters of a zoo whose pictures are in one of these styles, with what they learned from."""
    pictures = load_pictures(work)
    chosen = [exhibit for exhibit in read_index(zoo) if exhibit.style in styles][:count]
    found = []
    for exhibit in chosen:
        examples = encode_pictures(model, *lesson(pictures, exhibit, torch.Generator().manual_seed(exhibit.number)))
        found.append(Lesson(load_adapter(zoo / f"{exhibit.file}.safetensors").to(model.device), examples))
    return found


def training_config(steps: int, batch: int, lr: float, seed: int) -> TrainConfig:
    """What the loop is told: gates are few, so nothing is validated or drawn on the way."""
    return TrainConfig(
        name="gates", steps=steps, batch=batch, lr=lr, seed=seed, warmup=min(20, steps), weight_decay=0.0,
        validate_every=0, preview_every=0, checkpoint_every=50, keep_best=False,
    )   # fmt: skip


def train_gates(
    model: BaseModel, gates: GateSet, lessons: Sequence[Lesson], config: TrainConfig, folder: Path,
    own: GateConfig,
) -> Iterator[Event]:   # fmt: skip
    """Teach the gates in place and say what happens; checkpoints are in ``folder``, and the newest is gone on from.

    Raises:
        SettingError: fewer than two lessons.
    """
    if len(lessons) < 2:
        raise SettingError(f"Gates learn from at least two adapters with their pictures; {len(lessons)} found here. "
                           "Teach more, or name a home that has them.")
    gates.requires_grad_(True)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    training = Training(gate_recipe(model, gates, lessons, config, own), config, folder, accelerator_for(model))
    training.resume()
    yield from training.events(Controls(_silent, lambda: False))
    gates.requires_grad_(False)


def _silent(command: str) -> None:
    """Nobody gives commands to a training of minutes."""


def main() -> None:
    """Train and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--home", type=Path, help="with adapters and runs")
    parser.add_argument("--adapters", nargs="+", default=[], metavar="NAME", help="those of the home (default: all)")
    parser.add_argument("--zoo", type=Path, help="a zoo instead of a home")
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="folder with the zoo's pictures")
    parser.add_argument("--styles", nargs="+", default=["3d", "flat", "glossy"], help="of the zoo's pictures")
    parser.add_argument("--count", type=int, default=16, help="adapters of the zoo")
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
    if options.zoo:
        lessons = zoo_lessons(model, options.zoo, options.work, options.count, options.styles)
    else:
        lessons = home_lessons(model, options.home, options.adapters)
    specs = {spec.name: spec for one in lessons for spec in one.adapters.specs if spec.name.startswith("unet.")}
    gates = GateSet(specs.values(), settings, model.info.family).to(model.device)
    config = training_config(options.steps, options.batch, options.lr, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        for event in train_gates(model, gates, lessons, config, options.folder or Path(folder), own):
            print(event, flush=True)   # noqa: T201 (a program of its own)
    out = options.out or SHIPPED / f"{model.info.family}.safetensors"
    gates.save(out, {"atelier.lessons": str(len(lessons)), "atelier.steps": str(options.steps)})
    print(f"{out}: {out.stat().st_size / 1000:.0f} KB")   # noqa: T201


if __name__ == "__main__":
    main()
