"""What an exported file says about itself: words and figures that other tools show, and nothing private.

Only what is known to be true is written. Prompts, captions, folder names and the recipe stay at home, for the
file is made to be handed on. Keys: kohya's trainer (``ss_``), Stability's ModelSpec 1.0.1 (``modelspec.``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from safetensors.torch import save
from torch import Tensor

from atelier.adapters.core.family import EMBEDDED_FAMILY, FAMILIES, SD2
from atelier.adapters.formats.adapter_info import COMFYUI_LENGTHS_ENTRY, AdapterInfo
from atelier.adapters.formats.native import AdapterHeader

# ComfyUI shows no metadata from a larger header.
HEADER_LIMIT = 1 << 20

# Entry of another tool → field of AdapterInfo.
_MODELSPEC = {
    "modelspec.date": "created",
    "modelspec.tags": "subject",
    "modelspec.trigger_phrase": "trigger",
    "modelspec.thumbnail": "thumbnail",
    "modelspec.merged_from": "merged_from",
}
_KOHYA = {"ss_output_name": "name", "ss_num_train_images": "pictures", "ss_steps": "best_step"}
_LYCORIS = {"diff": "full", "lycoris": "locon", "comfyui": "locon"}   # form → what LyCORIS calls its algorithm
_KOHYA_TIMES = {"ss_training_started_at": "started", "ss_training_finished_at": "created"}
# The fields that a native file keeps. The others can hold folder names and prompts.
_PUBLIC = ("name", "trigger", "subject", "family", "started", "created", "pictures", "best_step", "algorithms", "basis",
           "thumbnail")   # fmt: skip
_PRIVATE = ("recipe", "base", "title")


def export_metadata(
    header: AdapterHeader, tensors: Mapping[str, Tensor], form: str, *, recipe: bool = False
) -> dict[str, str]:
    """Text entries for the exported ``tensors`` of the adapter that ``header`` describes.

    Args:
        header: of the native file.
        tensors: as they will be written; names and values both count.
        form: ``native`` gets what Atelier needs to open it again, all others but ``diffusers`` the ``ss_`` entries.
        recipe: also how it was trained; that can hold folder names and prompts.

    Returns:
        Entries that keep the file's header under 1 MiB; the thumbnail is left out where it does not fit.
    """
    info = header.info
    entries = {"format": "pt"}
    if form == "native":
        public = (*_PUBLIC, "base", "title") if info.family == "embedded" else _PUBLIC
        entries |= _selected(info, public) | header.layout.to_metadata()
    else:
        entries |= _modelspec(info)
    if form in ("kohya", "diff", "lycoris", "comfyui"):
        entries |= _kohya(info, tensors)
    if form in _LYCORIS:
        entries |= {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": _LYCORIS[form]})}
    if form == "comfyui":
        entries[COMFYUI_LENGTHS_ENTRY] = "1"
    if recipe:
        entries |= _selected(info, _PRIVATE)
    entries |= _hashes(tensors, {name: text for name, text in entries.items() if name.startswith("ss_")})
    if _header_bytes(tensors, entries) > HEADER_LIMIT:
        entries.pop("modelspec.thumbnail", None)
    return entries


def _selected(info: AdapterInfo, names: Collection[str]) -> dict[str, str]:
    """The entries of some fields alone."""
    return AdapterInfo(**{name: getattr(info, name) for name in names}).to_metadata()


def _modelspec(info: AdapterInfo) -> dict[str, str]:
    """ModelSpec 1.0.1: all it demands, and the rest where it is known."""
    family, title = info.family, info.name or "LoRA"
    entries = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{FAMILIES[family].architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"{title} (for Atelier's embedded base model)" if family == EMBEDDED_FAMILY.name else title,
        "modelspec.description": "A LoRA trained with Atelier.",
    }
    if info.trigger:
        entries["modelspec.usage_hint"] = f"Trigger word: {info.trigger}"
    return entries | _copied(_MODELSPEC, info)


def _kohya(info: AdapterInfo, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The entries that kohya's trainer always keeps, and those that tools show to a person."""
    downs = [tensor for key, tensor in tensors.items() if key.endswith(".lora_down.weight")]
    rank = _one_or_dynamic(str(down.shape[0]) for down in downs)
    alpha = _one_or_dynamic(str(tensor.item()) for key, tensor in tensors.items() if key.endswith(".alpha"))
    wide_kernels = any(max(down.shape[2:], default=1) > 1 for down in downs)
    entries = {
        "ss_v2": str(info.family == SD2.name),
        "ss_base_model_version": FAMILIES[info.family].kohya_version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps({"conv_dim": rank, "conv_alpha": alpha} if wide_kernels else {}),
    }
    if info.trigger:
        count = 1 if info.pictures is None else info.pictures
        entries["ss_tag_frequency"] = json.dumps({info.name or info.trigger: {info.trigger: count}})
    times = {name: _unix_seconds(text) for name, text in _copied(_KOHYA_TIMES, info).items()}
    return entries | _copied(_KOHYA, info) | times


def _copied(names: Mapping[str, str], info: AdapterInfo) -> dict[str, str]:
    """The fields that are known, under other tools' names."""
    values = {theirs: getattr(info, ours) for theirs, ours in names.items()}
    return {name: str(value) for name, value in values.items() if value not in ("", None)}


def _one_or_dynamic(values: Iterable[str]) -> str:
    """The value that all layers share; ``Dynamic``, as kohya's own tools say, where they differ."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else "Dynamic"


def _unix_seconds(text: str) -> str:
    return str(datetime.fromisoformat(text).timestamp())


def _hashes(tensors: Mapping[str, Tensor], training: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of the bytes behind the header, and kohya's older hash, of 64 KiB from the first MiB on.

    As kohya's scripts, the older one is taken with the ``training`` entries alone in the header, and so it is not what
    a tool finds in a file with more of them.
    """
    blob = memoryview(save(dict(tensors), dict(training)))
    digest = hashlib.sha256(blob[8 + int.from_bytes(blob[:8], "little"):]).hexdigest()
    return {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}",
            "sshs_legacy_hash": hashlib.sha256(blob[1 << 20 : (1 << 20) + (1 << 16)]).hexdigest()[:8]}   # fmt: skip


def _header_bytes(tensors: Mapping[str, Tensor], entries: Mapping[str, str]) -> int:
    """An upper bound: JSON with blanks and escapes, and offsets as long as they could ever be."""
    longest = [10**12, 10**12]
    layout = {key: {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": longest}
              for key, tensor in tensors.items()}
    return len(json.dumps({"__metadata__": dict(entries), **layout}))
