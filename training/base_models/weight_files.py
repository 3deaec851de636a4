"""The weight files of one part of a diffusers folder: their variants, and the one that is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from atelier.adapters.formats.safetensors_header import HeaderError, cached_safetensors_header
from atelier.training.base_models.base_info import PACKED_UNET, BaseError

PREFERRED = ("", "fp16", "bf16")   # variants in the order in which they are taken; the plain one is the most exact
_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
          "text_encoder_2": "model"}   # fmt: skip
_NAME = r"{stem}(?:\.(?P<variant>[\w-]+?))?(?:-(?P<shard>\d{{5}})-of-(?P<shards>\d{{5}}))?\.safetensors"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """One variant of a part's weights."""

    variant: str              # as diffusers names it: fp16, non_ema …; empty for the plain one
    names: tuple[str, ...]    # one file, or all shards
    index: str = ""           # of the shards

    def is_complete(self) -> bool:
        """Whether no shard is missing."""
        count = re.search(r"-of-(\d{5})\.safetensors$", self.names[0])
        return count is None or len(self.names) == int(count[1])


def find_variants(part: str, names: Iterable[str]) -> list[WeightFiles]:
    """The variants among the file names of a part's folder, the preferred one first."""
    pattern, files = re.compile(_NAME.format(stem=_STEMS[part])), sorted(names)
    found: dict[str, list[str]] = {}
    for name in files:
        if match := pattern.fullmatch(name):
            found.setdefault(match["variant"] or "", []).append(name)
    variants = [WeightFiles(variant, *_one_form(part, variant, several, files)) for variant, several in found.items()]
    rank = {variant: place for place, variant in enumerate(PREFERRED)}
    return sorted(variants, key=lambda one: (not one.is_complete(), rank.get(one.variant, len(rank)), one.variant))


def _one_form(part: str, variant: str, names: list[str], files: list[str]) -> tuple[tuple[str, ...], str]:
    """One file where there is one, else its shards and their index."""
    whole = [name for name in names if "-of-" not in name]
    if whole:
        return (whole[0],), ""
    index = f"{_STEMS[part]}.safetensors.index{f'.{variant}' if variant else ''}.json"
    return tuple(names), index if index in files else ""


def check_weights(base: str, folder: Path, part: str) -> WeightFiles:
    """The weights of a part that are loaded; their headers are read.

    Raises:
        BaseError: there are none, or they are not whole.
    """
    names = [path.name for path in (folder / part).glob("*")]
    if part == "unet" and PACKED_UNET in names:
        return _checked(base, folder / part, WeightFiles("", (PACKED_UNET,)))
    variants = find_variants(part, names)
    if not variants:
        raise BaseError(_no_weights(base, part, names))
    chosen = variants[0]
    if not chosen.is_complete() or ("-of-" in chosen.names[0] and not chosen.index):
        raise BaseError(f"{base} has only {len(chosen.names)} file(s) of its {part}'s weights, and others or their "
                        "index are missing. Download it again.")
    return _checked(base, folder / part, chosen)


def _no_weights(base: str, part: str, names: list[str]) -> str:
    if any(name.endswith(_PICKLES) for name in names):
        return (f"{base} has the weights of its {part} only as a pickle file (.bin, .ckpt), and opening one can run "
                "code. Download the .safetensors version, or convert it with a tool you trust.")
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return (f"{base} has no {part}/{_STEMS[part]}.safetensors, but {others[0][:80]}. Rename it if it holds the "
                f"weights of the {part}; else download the model again.")
    return f"{base} has no weights of its {part}: {_STEMS[part]}.safetensors is missing there. Download it again."


def _checked(base: str, folder: Path, files: WeightFiles) -> WeightFiles:
    for name in files.names:
        try:
            cached_safetensors_header(folder / name)
        except HeaderError as error:
            raise BaseError(f"{base} can't be used: its {folder.name}/{name} {error}") from None
        except OSError:
            raise BaseError(f"{base} can't be used: its {folder.name}/{name} is a link to a file that is gone, or "
                            "may not be read. Download it again.") from None
    return files
