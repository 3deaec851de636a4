"""Models of the Hugging Face hub: one variant of the weights is downloaded, resumable, into the usual cache.

Obeys HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN as every Hugging Face program does. What the hub says is input:
only files with the names that Stable Diffusion models have are fetched, and pickles and code never are.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.adapters.core.byte_size import format_bytes
from atelier.adapters.core.parse import parse_path
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.hub_file import download_blob
from atelier.training.base_models.weight_files import WeightFiles, find_variants

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
PREFERRED = ("fp16", "", "bf16")   # variants in the order in which they are downloaded: half the bytes first
_CONFIGURATIONS = (
    "model_index.json", "scheduler/scheduler_config.json", *(f"{part}/config.json" for part in PARTS),
    *(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2")
      for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json")),
)   # fmt: skip
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_MAX_ID = 96   # characters, by the hub's rules
_NOT_A_MODEL = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".git", ".ipynb")
_SPARE_BYTES = 200_000_000   # that stay free on the disk
Progress = Callable[[int, int], None]   # (bytes done, bytes in all)


@dataclass(frozen=True, slots=True)
class HubFiles:
    """The files of a hub model that are needed, and their sizes."""

    commit: str
    sizes: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """How much is downloaded where nothing is here yet."""
        return sum(self.sizes.values())


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a model's id on the hub, ``owner/model``.

    >>> is_hub_id("stabilityai/sdxl-turbo"), is_hub_id("../secret"), is_hub_id("a/model.safetensors")
    (True, False, False)
    """
    plain = len(text) <= _MAX_ID and ".." not in text and "--" not in text
    return plain and _ID.fullmatch(text) is not None and not text.endswith((".", "-", *_NOT_A_MODEL))


def cached_folder(base: str) -> Path | None:
    """The folder of a hub model that is downloaded whole; None where it is not. Asks nothing from the network."""
    folder = _cached_snapshot(base)
    return folder if folder is not None and all(_is_here(folder, part) for part in _parts(folder)) else None


def _cached_snapshot(base: str) -> Path | None:
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(base, "model_index.json", cache_dir=constants.HF_HUB_CACHE)
    return Path(found).parent if isinstance(found, str) else None


def _parts(folder: Path) -> list[str]:
    return [part for part in PARTS if (folder / part / "config.json").exists()] or list(PARTS)


def _is_here(folder: Path, part: str) -> bool:
    names = [path.name for path in (folder / part).glob("*") if path.exists()]   # not a link to a file that is gone
    return any(_is_whole(files) for files in find_variants(part, names))


def _is_whole(files: WeightFiles) -> bool:
    return files.is_complete() and bool(files.index or "-of-" not in files.names[0])


def download_configurations(base: str) -> Path:
    """Fetch a hub model's configurations, a few kilobytes, unless they are here; returns their folder.

    Raises:
        BaseError: the model does not exist, may not be read, or the hub can't be reached.
    """
    from huggingface_hub import snapshot_download

    folder = _cached_snapshot(base)
    if folder is not None and (folder / "unet" / "config.json").exists():
        return folder
    with explain_hub_errors(base):
        return Path(snapshot_download(base, allow_patterns=list(_CONFIGURATIONS), endpoint=_endpoint(),
                                      tqdm_class=_quiet_bar()))   # fmt: skip


def list_hub_files(base: str) -> HubFiles:
    """Ask the hub which files of a model are needed: configurations, tokenizers, and one variant of each part.

    Raises:
        BaseError: see :func:`download_configurations`; also where a part has no safetensors.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with explain_hub_errors(base):
        api = HfApi(endpoint=_endpoint())
        commit = api.model_info(base).sha or "main"
        sizes = {file.path: file.size for file in api.list_repo_tree(base, recursive=True, revision=commit)
                 if isinstance(file, RepoFile)}   # fmt: skip
    names = _needed_files(base, sizes)
    return HubFiles(commit, {name: sizes[name] for name in names})


def _needed_files(base: str, names: Mapping[str, int]) -> list[str]:
    if "model_index.json" not in names:
        single = [name for name in names if name.endswith(".safetensors") and "/" not in name]
        cure = f"Download its {single[0][:80]} and use the file" if single else "Choose another model"
        raise BaseError(f"{base} is not a diffusers model: it has no model_index.json. {cure}.")
    needed = [name for name in _CONFIGURATIONS if name in names]
    for part in (part for part in PARTS if f"{part}/config.json" in names):
        files = _choose_variant(base, part, [name for name in names if name.startswith(f"{part}/")])
        needed += [f"{part}/{name}" for name in (*files.names, *filter(None, [files.index]))]
    return needed


def _choose_variant(base: str, part: str, paths: Sequence[str]) -> WeightFiles:
    variants = [files for files in find_variants(part, [path.split("/", 1)[1] for path in paths]) if _is_whole(files)]
    if not variants:
        raise BaseError(f"{base} has no safetensors weights of its {part}, only other formats such as pickles, which "
                        "can run code when they are opened. Choose another model.")
    rank = {variant: place for place, variant in enumerate(PREFERRED)}
    return min(variants, key=lambda files: (rank.get(files.variant, len(rank)), files.variant))


def download_model(base: str, on_progress: Progress | None = None) -> Path:
    """Download a hub model; what an interrupted download left is continued. Returns its folder.

    Args:
        base: the model's id.
        on_progress: told the bytes that are here and those of all files; what it raises stops the download.

    Raises:
        BaseError: see :func:`list_hub_files`; also when the disk is too small.
    """
    from huggingface_hub import constants, hf_hub_download

    files, here = list_hub_files(base), 0
    _check_disk(base, files, Path(constants.HF_HUB_CACHE))
    report = on_progress or (lambda *_: None)
    folder = None
    for name, size in files.sizes.items():
        bar = _reporting_bar(lambda done, before=here: report(before + done, files.bytes))
        with explain_hub_errors(base):
            if name.endswith(".safetensors"):
                download_blob(base, name, files.commit, _endpoint(), bar)
            path = Path(hf_hub_download(base, name, revision=files.commit, endpoint=_endpoint(), tqdm_class=bar))
        folder = path.parent if name == "model_index.json" else folder
        here += size
        report(here, files.bytes)
    assert folder is not None
    _save_reference(folder, files.commit)
    return folder


def _save_reference(snapshot: Path, commit: str) -> None:
    """Note which snapshot is the newest, as a download of the branch ``main`` does."""
    reference = snapshot.parent.parent / "refs" / "main"
    reference.parent.mkdir(exist_ok=True)
    reference.write_text(commit, encoding="utf-8")


def _check_disk(base: str, files: HubFiles, cache: Path) -> None:
    model = cache / f"models--{base.replace('/', '--')}" / "blobs"
    here = sum(path.stat().st_size for path in model.glob("*"))   # unfinished files, too
    place = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    free, needed = shutil.disk_usage(place).free, max(0, files.bytes - here) + _SPARE_BYTES
    if free < needed:
        raise BaseError(f"The disk with {place} has {format_bytes(free)} free, but {base} needs "
                        f"{format_bytes(needed)}. Free some space, or set HF_HOME to a folder on another disk.")


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def explain_hub_errors(base: str) -> Iterator[None]:
    """Turn errors of the hub's library into a sentence with the cure.

    Raises:
        BaseError: the model does not exist, may not be read, the hub can't be reached, or the disk is full.
    """
    from huggingface_hub import errors

    try:
        yield
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:
        raise BaseError(_explanation(base, error)) from None


def _explanation(base: str, error: Exception) -> str:
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", 0)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return (f"{base} is gated: its publisher asks for your agreement. Accept its terms at "
                f"https://huggingface.co/{base}, and set HF_TOKEN to a token of your account.")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return (f"There is no model {base} on the hub, or it is private, so it could not be downloaded. Check the "
                "spelling; for a private model, set HF_TOKEN.")
    if isinstance(error, OSError) and error.errno == 28:
        return (f"{base} could not be downloaded whole, because the disk is full. Free some space, and start the "
                "download again: it continues where it stopped.")
    if constants.HF_HUB_OFFLINE:
        return (f"{base} is not on this machine, and it could not be downloaded because HF_HUB_OFFLINE is set. Unset "
                "it, or use a model that is here.")
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return (f"{base} is not on this machine, and it could not be downloaded from the hub ({reason[:200]}). Check the "
            "network and try again: a download continues where it stopped.")


def _reporting_bar(on_bytes: Callable[[int], None]) -> type:
    """A class in place of tqdm's that shows nothing and reports the bytes of one file."""

    class ReportingBar(_quiet_bar()):
        """Adds up what it is told."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.bytes = int(options.get("initial") or 0)
            on_bytes(self.bytes)

        def update(self, n: float | None = 1) -> None:
            """Add bytes; the library takes some away where a server begins a file anew."""
            self.bytes += int(n or 0)
            on_bytes(self.bytes)

    return ReportingBar


def _quiet_bar() -> type:
    from tqdm import tqdm

    class QuietBar(tqdm):
        """A bar that is not drawn."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "disable": True})

    return QuietBar


def needs_download(base: str) -> bool:
    """Whether a base model is one of the hub's that is not here."""
    return is_hub_id(base) and not parse_path(base).exists() and cached_folder(base) is None


def require_download(base: str) -> None:
    """Refuse a hub model that is not here.

    Raises:
        BaseError: it must be downloaded first; says how.
    """
    if needs_download(base):
        raise BaseError(f"{base} is not downloaded yet. Download it in Settings, or with: atelier models get {base}")
