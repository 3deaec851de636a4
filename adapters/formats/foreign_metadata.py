"""What other tools write beside the tensors: family, trigger word, tags, sampler. Any may be missing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from atelier.adapters.core.family import FAMILIES, SD2
from atelier.adapters.core.parse import parse_json

_NAMED_BASE = re.compile(r"(?P<sdxl>stable-diffusion-xl|sdxl|sd-xl)|(?P<sd2>stable-diffusion-2|sd-?v?2[-._])"
                         r"|(?P<sd1>stable-diffusion-v?1|sd-?v?1[-._])")   # fmt: skip
NO_NAMES = ("adapter_model", "pytorch_lora_weights")   # files that PEFT and diffusers call all alike
_LCM = re.compile(r"(?<![a-z])lcm(?![a-z])")


def find_family(metadata: Mapping[str, str]) -> str:
    """The base family that is named; empty when none is."""
    said = f"{metadata.get('ss_base_model_version', '')} {metadata.get('modelspec.architecture', '')}".lower()
    named = next((family.name for family in FAMILIES.values() if any(mark in said for mark in family.marks)), "")
    return named or (SD2.name if metadata.get("ss_v2") == "True" else "")


def named_family(base: str) -> str:
    """The family of a base model by its name, as ``stabilityai/stable-diffusion-2-1``; empty when that does not say."""
    found = _NAMED_BASE.search(base.lower())
    return "" if found is None else next(name for name, text in found.groupdict().items() if text)


def find_trigger(metadata: Mapping[str, str]) -> str:
    """The word that calls the adapter; empty when the file does not say."""
    return metadata.get("modelspec.trigger_phrase", "").strip()


def find_tags(metadata: Mapping[str, str], most: int = 30) -> tuple[tuple[str, int], ...]:
    """Words of the captions it was trained with and how often, over all its folders (kohya's ss_tag_frequency)."""
    counts: Counter[str] = Counter()
    with suppress(ValueError, AttributeError, TypeError, OverflowError):
        for folder in parse_json(metadata.get("ss_tag_frequency", "{}")).values():
            counts.update({str(tag).strip(): int(count) for tag, count in folder.items()})
    return tuple(counts.most_common(most))


def find_sampler(path: Path, metadata: Mapping[str, str]) -> str:
    """The sampler an adapter was made for: ``lcm`` where its name or title says so, else empty.

    LCM-LoRAs (arXiv 2311.05556) have no mark of their own, but hardly one hides it: ``lcm-lora-sdv1-5``,
    ``LCM_LoRA_Weights_SD15``.
    """
    name = path.absolute().parent.name if path.stem in NO_NAMES else path.stem
    titles = (metadata.get(key, "") for key in ("ss_output_name", "modelspec.title", "modelspec.tags"))
    return "lcm" if any(_LCM.search(text.lower()) for text in (name, *titles)) else ""
