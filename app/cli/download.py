"""Downloading a base model with a progress bar on the terminal."""

from __future__ import annotations

from tqdm import tqdm

from atelier.training.base_models.base_info import BaseInfo
from atelier.training.base_models.hub import download_model, needs_download
from atelier.training.base_models.identify import identify


def download_base(base: str) -> BaseInfo | None:
    """Download a base model if it is a hub model that is not here; returns what it is, None for others.

    Its configurations are checked before its weights are fetched.

    Raises:
        BaseError: it can't be downloaded, or can't be used.
    """
    if not needs_download(base):
        return None
    identify(base)
    with tqdm(unit="B", unit_scale=True, leave=False, disable=None, desc=base) as bar:

        def show(done: int, of: int) -> None:
            """Move the bar to the bytes that are here."""
            bar.total = of
            bar.update(done - bar.n)

        download_model(base, show)
    return identify(base)
