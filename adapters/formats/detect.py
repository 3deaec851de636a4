"""What an adapter file of any tool holds, told from its header alone: layers, algorithms, base family, what is odd.

No tensor is read and torch is not loaded, so a look at a file takes milliseconds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import MappingProxyType

from atelier.adapters.core.family import EMBEDDED_FAMILY, FAMILIES, SD1, SDXL
from atelier.adapters.formats import foreign_metadata, peft_config
from atelier.adapters.formats.adapter_info import COMFYUI_LENGTHS_ENTRY
from atelier.adapters.formats.group_layers import Layer, build_layers, group_layers, modules_without
from atelier.adapters.formats.layer_shapes import Shape, is_norm
from atelier.adapters.formats.module_names import has_no_bias
from atelier.adapters.formats.not_adapters import is_learned_word, other_model, what_else
from atelier.adapters.formats.peft_config import PeftConfig
from atelier.adapters.formats.safetensors_header import (
    FileError,
    HeaderError,
    SafetensorsHeader,
    read_safetensors_header,
)

_TEXT_WIDTHS = {family.text_width: family.name for family in FAMILIES.values()}   # of the features that attn2 reads
_REFINER_WIDTH = 1280   # of the features that SDXL's refiner reads
_EMBEDDED_MIDDLE = 192   # channels in the middle of the embedded UNet; all others have 1280
_SECOND_WIDTH = SDXL.text_encoders[1].width
# Layers that only Stable Diffusion XL has.
_XL_ALONE = re.compile(r"^text_encoder_2\.|^unet\.(add_embedding|up_blocks\.0\.attentions\.2\.)"
                       r"|\.transformer_blocks\.[1-9]")   # fmt: skip
_ENCODER_FAMILIES = [(encoder.width, family.name) for family in FAMILIES.values() for encoder in family.text_encoders]
# Widths of text encoders that tell the family: 768 is that of Stable Diffusion 1 and of XL's first encoder.
_ENCODER_WIDTHS = {width: name for width, name in _ENCODER_FAMILIES
                   if sum(width == other for other, _ in _ENCODER_FAMILIES) == 1}   # fmt: skip


@dataclass(frozen=True, slots=True)
class AdapterContents:
    """What one adapter file holds."""

    family: str                            # of the base model it was made for
    layers: Mapping[str, Layer]            # by our names of the modules
    shapes: Mapping[str, Shape]            # of all tensors in the file, by their names there
    algorithms: dict[str, int]             # such as LoRA → number of layers
    ranks: tuple[int, ...]                 # all there are, smallest first
    unknown: tuple[str, ...]               # tensors nothing is made of
    copies: tuple[tuple[str, str], ...]    # pairs of tensors that must hold the same
    notes: tuple[str, ...]                 # what a person should know, in sentences
    trigger: str                           # word that calls it; empty when the file does not say
    tags: tuple[tuple[str, int], ...]      # words of its captions, the most frequent first
    metadata: dict[str, str]
    comfyui_lengths: bool                  # whether the lengths of its DoRA are those that ComfyUI needs


def detect(path: Path) -> AdapterContents:
    """Say what an adapter file holds.

    Raises:
        FileError: it is no adapter, or one that Atelier can't use; says what it is and the cure.
    """
    try:
        entries = read_safetensors_header(path)
        configs = peft_config.configs(path, entries.metadata)
        contents = detect_entries(entries, path.name, configs)
        beside = peft_config.passed_over(path) if _might_need(contents) and not configs else ""
        return replace(contents, notes=(*contents.notes, beside)) if beside else contents
    except FileNotFoundError:
        raise FileError(f"{path.name} does not exist.") from None
    except HeaderError as error:
        raise FileError(f"{path.name} {error}") from None
    except OSError as error:
        raise FileError(f"{path.name} can't be read: {error.strerror}.") from None


def _might_need(contents: AdapterContents) -> bool:
    """Whether a configuration could say how strong the layers are: PEFT wrote them, and nothing else says it."""
    return any(key.startswith("base_model.") for layer in contents.layers.values() if not layer.scaled
               for key in layer.keys.values())   # fmt: skip


def detect_entries(
    entries: SafetensorsHeader, name: str, configs: Mapping[str, PeftConfig] = MappingProxyType({})
) -> AdapterContents:
    """Sort the tensors of a header into layers; ``name`` is the file's in messages, ``configs`` what is said elsewhere.

    Raises:
        FileError: see :func:`detect`.
    """
    shapes = {key: entry.shape for key, entry in entries.tensors.items()}
    try:
        grouped = group_layers({key: shape for key, shape in shapes.items() if key != COMFYUI_LENGTHS_ENTRY},
                               entries.metadata)   # fmt: skip
        if other := other_model(grouped.unknown):
            raise HeaderError(other)
        if not grouped.layers:
            raise HeaderError(what_else(shapes))
        bases = [str(config.values.get("base_model_name_or_path")) for config in configs.values()]
        family, sure = _family(build_layers(grouped, shapes, configs), shapes, entries.metadata, bases)
        layers = _in_second_encoder(build_layers(grouped, shapes, configs, family), shapes)
        if for_comfyui := COMFYUI_LENGTHS_ENTRY in (*entries.metadata, *shapes):
            layers = {name: _with_base_lengths(layer) for name, layer in layers.items()}
    except HeaderError as error:
        raise FileError(f"{name} {error}") from None
    ranks = {shapes[layer.keys["down"]][0] for layer in layers.values() if "down" in layer.keys}
    return AdapterContents(
        family=family, layers=layers, shapes=shapes,
        algorithms=dict(Counter(layer.algorithm for layer in layers.values())), ranks=tuple(sorted(ranks)),
        unknown=tuple(grouped.unknown), copies=tuple(grouped.copies),
        notes=tuple(_notes(layers, shapes, grouped.unknown, sure)),
        trigger=foreign_metadata.find_trigger(entries.metadata), tags=foreign_metadata.find_tags(entries.metadata),
        metadata=entries.metadata, comfyui_lengths=for_comfyui,
    )   # fmt: skip


def _in_second_encoder(layers: dict[str, Layer], shapes: Mapping[str, Shape]) -> dict[str, Layer]:
    """The same layers, of the second text encoder where a file holds one encoder alone and its width tells which."""
    first_alone = all(name.startswith("text_encoder.") for name in layers)
    if not first_alone or set(_encoder_widths(layers, shapes)) != {_SECOND_WIDTH}:
        return layers
    return {name.replace("text_encoder.", "text_encoder_2.", 1): layer for name, layer in layers.items()}


def _with_base_lengths(layer: Layer) -> Layer:
    """A layer whose DoRA's lengths, if any, are those that ComfyUI needs."""
    return replace(layer, settings={**layer.settings, "base_lengths": 1.0}) if "dora_scale" in layer.keys else layer


def _encoder_widths(layers: Mapping[str, Layer], shapes: Mapping[str, Shape]) -> Iterator[int]:
    """Widths of the first text encoder, as its attention and normalizations tell: their weights are square, or rows."""
    for name, layer in layers.items():
        if name.startswith("text_encoder.") and (".self_attn." in name or is_norm(name)):
            gains = [prod(shapes[key]) for part, key in layer.keys.items() if part in ("weight", "ia3_l")]
            if width := max(*layer.shape, 0, *gains):
                yield width


def _family(
    layers: Mapping[str, Layer], shapes: Mapping[str, Shape], metadata: Mapping[str, str], bases: Iterable[str]
) -> tuple[str, bool]:
    """The base family, and whether anything tells it: shapes, names, or words about the base model."""
    widths = {name: layer.shape[1] for name, layer in layers.items() if len(layer.shape) > 1}
    text = [width for name, width in widths.items() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    if _REFINER_WIDTH in text:
        raise HeaderError("is an adapter for the refiner of Stable Diffusion XL, which Atelier does not use. Look for "
                          "a version made for the base model.")
    if found := next((_TEXT_WIDTHS[width] for width in text if width in _TEXT_WIDTHS), ""):
        return found, True
    if any(map(_XL_ALONE.search, layers)):
        return SDXL.name, True
    middle = {side for name, layer in layers.items() if name.startswith("unet.mid_block.") for side in layer.shape[:2]}
    if _EMBEDDED_MIDDLE in middle:
        return EMBEDDED_FAMILY.name, True
    encoder = _encoder_widths(layers, shapes)
    if found := next((_ENCODER_WIDTHS[width] for width in encoder if width in _ENCODER_WIDTHS), ""):
        return found, True
    named = next(filter(None, (foreign_metadata.find_family(metadata), *map(foreign_metadata.named_family, bases))), "")
    return named or SD1.name, bool(named)


def _notes(layers: Mapping[str, Layer], shapes: Mapping[str, Shape], unknown: list[str], sure: bool) -> list[str]:
    notes = []
    words = [key for key in unknown if is_learned_word(key, shapes[key])]
    if words:
        notes.append(f"It also contains {len(words)} text embeddings (textual inversions), which are imported on their "
                     f"own: {', '.join(sorted(words)[:5])}.")
    if rest := [key for key in unknown if key not in words]:
        notes.append(f"{len(rest)} of {len(shapes)} tensors are not used, such as {rest[0]}.")
    if any(key.startswith("lora_unet_unet_") for key in shapes):
        notes.append("Its layer names have a doubled prefix (lora_unet_unet_) from a faulty conversion; this was "
                     "corrected.")
    if not sure:
        notes.append("Its shapes don't reveal the base model; Stable Diffusion 1.x is assumed.")
    return [*notes, *_strength_notes(layers)]


def alpha_zero_note(count: int, total: int) -> str:
    """What to say of layers with alpha 0, which only the values tell.

    >>> alpha_zero_note(1, 1)[:21]
    '1 of 1 layers: alpha '
    """
    return (f"{count} of {total} layers: alpha is 0. LyCORIS and kohya's scripts read that as alpha = rank, and so "
            "does Atelier. ComfyUI and A1111 turn such layers off.")


def _strength_notes(layers: Mapping[str, Layer]) -> list[str]:
    """What is odd about how strong the layers are."""
    scaled = [layer for layer in layers.values() if layer.algorithm in ("LoRA", "LoHa", "GLoRA")]
    bare = sum(not layer.scaled for layer in scaled)
    notes = []
    if bare and bare == len(scaled):
        notes.append("It contains no alpha, so a scale of 1 is used.")
    elif bare:
        notes.append(f"{bare} of {len(scaled)} layers contain no alpha, unlike the others, so a scale of 1 is used for "
                     "them.")
    weights = {name: layer.keys for name, layer in layers.items() if layer.algorithm not in ("norm", "bias")}
    biased = {name: keys for name, keys in weights.items() if not has_no_bias(name)}
    if without := [*modules_without("diff_b", biased), *modules_without("up_bias", weights)]:
        notes.append(f"{len(without)} layers change no bias, unlike the others, such as {without[0]}.")
    return notes
