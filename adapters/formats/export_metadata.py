"""What an exported file says about itself: words and figures that other tools show, and nothing private.

Only what is known to be true is written. Prompts, captions, folder names and the recipe stay at home, for the
file is made to be handed on. Keys: kohya's trainer (``ss_``), Stability's ModelSpec 1.0.1 (``modelspec.``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime

from safetensors.torch import save
from torch import Tensor

from atelier.adapters.formats.native import AdapterHeader

# ComfyUI shows no metadata from a larger header.
HEADER_LIMIT = 1 << 20

# Family → (ss_base_model_version, architecture). The embedded base model has names of its own, although its
# layers are called as in Stable Diffusion 1: its widths differ, so no tool should offer the file for that.
_BASES = {
    "embedded": ("atelier_embedded", "atelier-embedded-v1"),
    "sd1": ("sd_v1", "stable-diffusion-v1"),
    "sd2": ("sd_v2", "stable-diffusion-v2"),
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
}
_MODELSPEC = {
    "modelspec.date": "atelier.created",
    "modelspec.tags": "atelier.subject",
    "modelspec.trigger_phrase": "atelier.trigger",
    "modelspec.thumbnail": "modelspec.thumbnail",
    "modelspec.merged_from": "modelspec.merged_from",
}
_KOHYA = {
    "ss_output_name": "atelier.name",
    "ss_num_train_images": "atelier.pictures",
    "ss_steps": "atelier.best_step",
}
_KOHYA_TIMES = {"ss_training_started_at": "atelier.started", "ss_training_finished_at": "atelier.created"}
# What a native file keeps. The base model's name and the recipe stay: they can hold folder names and prompts.
_NATIVE = (
    "schema", "kind", "settings", "modules", "ranks",
    "name", "trigger", "subject", "family", "started", "created", "pictures", "best_step", "algorithms", "basis",
)
_PRIVATE = ("recipe", "base", "title")


def export_metadata(
    header: AdapterHeader, tensors: Mapping[str, Tensor], form: str, *, recipe: bool = False
) -> dict[str, str]:
    """Text entries for the exported ``tensors`` of the adapter that ``header`` describes.

    Args:
        header: of the native file.
        tensors: as they will be written; names and values both count.
        form: ``kohya`` and ``diff`` get the ``ss_`` entries too, ``native`` what Atelier needs to open it again.
        recipe: also how it was trained; that can hold folder names and prompts.

    Returns:
        Entries that keep the file's header under 1 MiB; the thumbnail is left out where it does not fit.
    """
    digest = _data_hash(tensors)
    entries = {"format": "pt", "sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    if form == "native":
        entries |= _native(header.metadata)
    else:
        entries |= _modelspec(header.metadata)
    if form == "kohya":
        entries |= _kohya(header.metadata, tensors)
    elif form == "diff":
        whole = {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": "full"})}
        entries |= _kohya(header.metadata, tensors) | whole
    if recipe:
        private = {f"atelier.{name}": header.metadata.get(f"atelier.{name}", "") for name in _PRIVATE}
        entries |= {name: value for name, value in private.items() if value}
    if _header_bytes(tensors, entries) > HEADER_LIMIT:
        entries.pop("modelspec.thumbnail", None)
    return entries


def _native(own: Mapping[str, str]) -> dict[str, str]:
    wanted = [f"atelier.{name}" for name in _NATIVE] + ["modelspec.thumbnail"]
    if own.get("atelier.family") == "embedded":
        wanted += ["atelier.base", "atelier.title"]
    return {name: own[name] for name in wanted if name in own}


def _modelspec(own: Mapping[str, str]) -> dict[str, str]:
    """ModelSpec 1.0.1: all it demands, and the rest where it is known."""
    family, title = own["atelier.family"], own.get("atelier.name", "LoRA")
    entries = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{_BASES[family][1]}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"{title} (for Atelier's embedded base model)" if family == "embedded" else title,
        "modelspec.description": "A LoRA trained with Atelier.",
    }
    if trigger := own.get("atelier.trigger"):
        entries["modelspec.usage_hint"] = f"Trigger word: {trigger}"
    return entries | _copied(_MODELSPEC, own)


def _kohya(own: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The entries that kohya's trainer always keeps, and those that tools show to a person."""
    downs = [tensor for key, tensor in tensors.items() if key.endswith(".lora_down.weight")]
    rank = _one_or_dynamic(str(down.shape[0]) for down in downs)
    alpha = _one_or_dynamic(str(tensor.item()) for key, tensor in tensors.items() if key.endswith(".alpha"))
    wide_kernels = any(max(down.shape[2:], default=1) > 1 for down in downs)
    entries = {
        "ss_v2": str(own["atelier.family"] == "sd2"),
        "ss_base_model_version": _BASES[own["atelier.family"]][0],
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps({"conv_dim": rank, "conv_alpha": alpha} if wide_kernels else {}),
    }
    if trigger := own.get("atelier.trigger"):
        count = int(own.get("atelier.pictures", "1"))
        entries["ss_tag_frequency"] = json.dumps({own.get("atelier.name", trigger): {trigger: count}})
    times = {name: _unix_seconds(text) for name, text in _copied(_KOHYA_TIMES, own).items()}
    return entries | _copied(_KOHYA, own) | times


def _copied(names: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    return {theirs: own[ours] for theirs, ours in names.items() if own.get(ours)}


def _one_or_dynamic(values: Iterable[str]) -> str:
    """The value that all layers share; ``Dynamic``, as kohya's own tools say, where they differ."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else "Dynamic"


def _unix_seconds(text: str) -> str:
    return str(datetime.fromisoformat(text).timestamp())


def _data_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the bytes after the header, in hexadecimal; metadata does not change them."""
    blob = memoryview(save(dict(tensors)))
    return hashlib.sha256(blob[8 + int.from_bytes(blob[:8], "little"):]).hexdigest()


def _header_bytes(tensors: Mapping[str, Tensor], entries: Mapping[str, str]) -> int:
    """An upper bound: JSON with blanks and escapes, and offsets as long as they could ever be."""
    longest = [10**12, 10**12]
    layout = {key: {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": longest}
              for key, tensor in tensors.items()}
    return len(json.dumps({"__metadata__": dict(entries), **layout}))
