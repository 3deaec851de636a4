"""``atelier transfer``: draw with an adapter, and make the run that trains another base model on the drawings."""

from __future__ import annotations

import sys
from argparse import Namespace

from tqdm import tqdm

from atelier.app.cli.download import download_base
from atelier.app.services.engine import Engine
from atelier.app.services.library.transfer import TransferJob, prepare_transfer
from atelier.app.store.home import Home, new_name
from atelier.app.store.library import find_adapter
from atelier.training.base_models.identify import identify
from atelier.training.config.run_folder import RunFolder


def run_transfer(home: Home, arguments: Namespace) -> RunFolder:
    """Draw what is needed and prepare the training; says on stderr what it does.

    Raises:
        HomeError, BaseError, FileError, MountError, SettingError, PictureError: what was typed can't be used.
    """
    card, name = find_adapter(home, arguments.adapter), new_name(home, arguments.name)
    download_base(arguments.base)
    if identify(arguments.base).family == card.family:
        _tell(f"{card.name} fits this base model as it is. Compare with drawing: --adapter {card.name} --base "
              f"{arguments.base}.")
    steps = {"steps": arguments.steps} if arguments.steps else {}
    job = TransferJob(card=card, name=name, base=arguments.base, count=arguments.count, prompts=arguments.prompts,
                      preset=arguments.preset, settings={**steps, **dict(arguments.set)})   # fmt: skip
    _tell(f"drawing {job.count} pictures with {card.name}, and as many without it …")
    run, kept = prepare_transfer(home, Engine.of_home(home), job)
    _tell(f"training on the {kept} of them in which it shows best …")
    return run


def _tell(text: str) -> None:
    tqdm.write(f"atelier: {text}", file=sys.stderr)
