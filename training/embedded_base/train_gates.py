"""Train the gates that come with the embedded base, on mixes whose true picture is known (``gate_dataset.py``).

    python -m atelier.training.embedded_base.train_gates --dataset build/gates --work build/base
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from atelier.adapters.fusion.gates import GateSettings
from atelier.training.base_models.base_model import load
from atelier.training.embedded_base.gate_dataset import scenes
from atelier.training.embedded_base.pictures import BASE_SIDE
from atelier.training.embedded_base.pictures import load as load_pictures
from atelier.training.recipes.gates import scene_recipe
from atelier.training.runs.train_gates import gate_parser, gate_training_config, gates_on, run_training, settings_of

SCENES = 200


def main(arguments: Sequence[str] | None = None) -> None:
    """Train gates on scenes and write the file."""
    parser = gate_parser(__doc__ or "")
    parser.add_argument("--dataset", type=Path, default=Path("build/gates"), help="home with the dataset's adapters")
    parser.add_argument("--work", type=Path, default=Path("build/base"), help="folder with the pictures")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    model = load(options.base)
    config = gate_training_config(options.steps, options.batch, options.lr, options.seed)
    pictures = load_pictures(options.work, BASE_SIDE)
    examples = scenes(model, pictures, options.dataset, SCENES, random.Random(config.seed))
    adapters = (adapter_set for scene in examples for adapter_set in scene.adapters)
    gates = gates_on(adapters, GateSettings.from_dict(settings_of(options.gates)), model)
    for line in run_training(model, gates, scene_recipe(model, gates, examples, config), config, options):
        print(line, flush=True)   # noqa: T201 (a program of its own)


if __name__ == "__main__":
    main()
