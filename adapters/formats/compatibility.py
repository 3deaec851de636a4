"""Which tool loads a file: rules from the tools' own loaders, told from names and shapes alone.

Sources and what was tried with each loader: docs/interop.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from atelier.adapters.formats.group_layers import split_key
from atelier.adapters.formats.layer_parts import algorithm_of

TOOLS = ("ComfyUI", "A1111", "Forge", "InvokeAI", "diffusers")
YES, PARTLY, NO = "yes", "partly", "no"
_FORGE_PATIENCE = 12   # unmatched tensors, beyond which Forge drops the whole file


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a tool loads a file, and why not."""

    answer: str        # yes, partly, no
    reason: str = ""


def verdicts(shapes: Mapping[str, tuple[int, ...]], family: str) -> dict[str, Verdict]:
    """What each tool makes of a file with tensors of these names and shapes, made for a base of ``family``."""
    layers: dict[str, dict[str, str]] = {}
    for key in shapes:
        if found := split_key(key):
            layers.setdefault(found[0], {})[found[1]] = key
    facts = _Facts(shapes, layers, {found.name for parts in layers.values() if (found := algorithm_of(parts))}, family)
    rules = {"ComfyUI": _comfy, "A1111": _a1111, "Forge": _forge, "InvokeAI": _invoke, "diffusers": _diffusers}
    return {tool: rule(facts) for tool, rule in rules.items()}


@dataclass(frozen=True, slots=True)
class _Facts:
    shapes: Mapping[str, tuple[int, ...]]
    layers: Mapping[str, Mapping[str, str]]
    algorithms: set[str]
    family: str

    def has(self, part: str) -> bool:
        return any(part in parts for parts in self.layers.values())


_COMFY_UNDERSCORED = re.compile(r"(lora_unet_(?!unet_)|lycoris_|lora_te[12]?_)\w+\.")
# Dotted attention layers only in the spelling of 2023.
_COMFY_DOTTED = re.compile(r"diffusion_model\.(input|middle|output)_block|text_encoder\.|text_encoders\.clip_[lg]\."
                           r"|(unet\.)?(down|up|mid)_block(?!.*\.attn\d\.to_)|(unet\.)?(down|up|mid)_block.*\.processor\.")
_CUT_AT_FIRST_DOT = re.compile(r"(lora_unet_(?!unet_)|lycoris_|lora_te[12]?_)\w+\.")


def _comfy(facts: _Facts) -> Verdict:
    known = [key for key in facts.shapes if _COMFY_UNDERSCORED.match(key) or _COMFY_DOTTED.match(key)]
    if not known:
        return Verdict(NO, "it knows none of the names, and says nothing")
    if "IA3" in facts.algorithms:
        return Verdict(PARTLY if facts.algorithms - {"IA3"} else NO, "it has no (IA)³")
    return Verdict(YES) if len(known) == len(facts.shapes) else Verdict(PARTLY, "it passes over some names")


def _forge(facts: _Facts) -> Verdict:
    verdict = _comfy(facts)
    unmatched = sum(not (_COMFY_UNDERSCORED.match(key) or _COMFY_DOTTED.match(key)) for key in facts.shapes)
    if verdict.answer == PARTLY and unmatched > _FORGE_PATIENCE:
        return Verdict(NO, f"it drops files with more than {_FORGE_PATIENCE} names it does not know")
    return verdict


def _a1111(facts: _Facts) -> Verdict:
    if not any(_CUT_AT_FIRST_DOT.match(key) for key in facts.shapes):
        return Verdict(NO, "it cuts names at the first dot and finds no layer, without a word")
    if "GLoRA" in facts.algorithms:
        return Verdict(NO, "it stops at GLoRA's present form")
    rows = [key for key in facts.shapes if key.endswith(".dora_scale") and facts.shapes[key][0] > 1]
    return Verdict(PARTLY, "it takes DoRA's lengths for those of columns") if rows else Verdict(YES)


def _invoke(facts: _Facts) -> Verdict:
    if not all(_CUT_AT_FIRST_DOT.match(key) for key in facts.shapes):
        return Verdict(NO, "it refuses a file with names it does not know")
    if "GLoRA" in facts.algorithms:
        return Verdict(NO, "it has no GLoRA")
    if facts.has("w_norm") and any("w_norm" in parts and "b_norm" not in parts for parts in facts.layers.values()):
        return Verdict(NO, "it needs a bias for every normalization")
    if not any(re.search(r"attn2\.to_[kv]$|^text_encoder.*self_attn", name) for name in facts.layers):
        return Verdict(NO, "it can't tell the base model without cross-attention or text encoder layers")
    numbered = any(key.startswith("lora_te1_") for key in facts.shapes)
    if numbered and facts.family in ("sd1", "sd2"):
        return Verdict(PARTLY, "it passes over a numbered text encoder in this family")
    return Verdict(YES)


def _diffusers(facts: _Facts) -> Verdict:
    kohya = any(key.startswith(("lora_unet_", "lora_te")) for key in facts.shapes)
    own = all(key.startswith(("unet.", "text_encoder")) for key in facts.shapes)
    if any(key.startswith("lora_unet_unet_") for key in facts.shapes) or not (kohya or own):
        return Verdict(NO, "it finds no layer of its own and applies nothing")
    if rest := sorted(facts.algorithms - {"LoRA"}):
        return Verdict(NO, f"it refuses files with {' and '.join(rest)}")
    if facts.has("mid"):
        return Verdict(NO, "it refuses LoCon's Tucker form")
    if facts.has("diff_b"):
        return Verdict(NO, "it refuses changes of biases")
    if facts.has("dora_scale"):
        return Verdict(PARTLY, "it drops DoRA's lengths with a warning")
    return Verdict(YES)
