"""What each block of the UNet does to a prompt: the same picture without an adapter's update of one block, or with only
that of one block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from PIL import Image, ImageChops, ImageStat

from atelier.app.services.draw import DrawJob, draw_preview
from atelier.app.services.engine import Engine
from atelier.app.store.home import Home, HomeError
from atelier.app.store.library import adapter_blocks, find_adapter
from atelier.app.store.mixes import MixEntry
from atelier.app.text import studio as words


@dataclass(frozen=True, slots=True)
class BlockTile:
    """One picture of the view, and how much it differs from the one that it is compared with: 0 … 1 of all colours."""

    block: str        # empty: the picture that the others are compared with
    picture: Image.Image
    difference: float = 0.0


def draw_block_view(
    home: Home, engine: Engine, job: DrawJob, adapter: str, *, alone: bool = False,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Iterator[BlockTile]:   # fmt: skip
    """Draw one picture for each block that an adapter changes, all from the job's seed and in few steps.

    The first tile is what the others are compared with: the drawing as it is; with ``alone``, the one without the
    adapter, to which each block is added by itself.

    Raises:
        HomeError: the adapter is not in the drawing.
        DrawCancelledError: ``is_wanted`` said no between two steps.
    """
    entry = next((entry for entry in job.adapters if entry.name == adapter), None)
    if entry is None or not entry.strength:
        raise HomeError(words.no_blocks_to_show(adapter))
    blocks = adapter_blocks(find_adapter(home, adapter))
    usual = dict(entry.blocks)
    none = dict.fromkeys(blocks, 0.0)
    first = draw_preview(home, engine, _with_blocks(job, entry, none if alone else usual), is_wanted)
    yield BlockTile("", first)
    for block in blocks:
        strengths = {**none, block: usual.get(block, 1.0)} if alone else {**usual, block: 0.0}
        picture = draw_preview(home, engine, _with_blocks(job, entry, strengths), is_wanted)
        yield BlockTile(block, picture, _difference(first, picture))


def _with_blocks(job: DrawJob, entry: MixEntry, strengths: dict[str, float]) -> DrawJob:
    changed = replace(entry, blocks=tuple(sorted(strengths.items())))
    return replace(job, adapters=tuple(changed if one is entry else one for one in job.adapters))


def _difference(one: Image.Image, other: Image.Image) -> float:
    means = ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean
    return sum(means) / len(means) / 255
