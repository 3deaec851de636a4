"""How a picture of another tool was drawn: A1111, Forge, ComfyUI, InvokeAI, NovelAI and SwarmUI, read from its file.

Each tool writes text of its own into a PNG (or, in JPEG and WebP, into the EXIF comment). What it says is returned as
one record in plain values; nothing here looks at what the library has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.ExifTags import Base

from atelier.adapters.core.parse import parse_json, without_halves
from atelier.app.store.comfyui_graph import Graph
from atelier.training.data.picture_parts import has_too_many_parts

MAX_FILE = 256 << 20      # bytes of a picture's file
MAX_TEXT = 200_000        # characters; a prompt is short
MAX_GRAPH = 4 << 20       # likewise of a graph of ComfyUI
MAX_PARAMETERS = 10_000   # likewise of A1111's last line
_USER_COMMENT, _EXIF_IFD = 0x9286, 0x8769


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter as a picture names it: a name or file name, a hash or its beginning if there is one, a strength."""

    name: str
    strength: float = 1.0
    hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureMetadata:
    """What a file says about its drawing. None and "" stand for what it does not say."""

    tool: str
    prompt: str = ""
    negative: str = ""
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str = ""    # in the tool's own words
    schedule: str = ""   # likewise, where the tool keeps it apart: "Karras", "exponential"
    width: int | None = None
    height: int | None = None
    clip_skip: int | None = None   # as A1111 counts: 1 is the last layer
    base: str = ""
    base_hash: str = ""
    adapters: tuple[NamedAdapter, ...] = ()
    extras: tuple[str, ...] = ()   # what else went into it, in words, such as ControlNet


def read_metadata(path: Path) -> PictureMetadata | None:
    """Read how a picture was drawn; None when its file does not say, or in a way that no tool here writes."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size > MAX_FILE or has_too_many_parts(file):
                return None
            with Image.open(file, formats=["PNG", "JPEG", "WEBP"]) as image:
                texts = {key: value for key, value in image.info.items()
                         if isinstance(key, str) and isinstance(value, str)}   # fmt: skip
                texts = _exif_texts(image) | texts
                if image.format == "JPEG":   # a plain comment, before EXIF
                    texts.setdefault("parameters", _decoded(image.info.get("comment", b"")))
    except Exception:   # a parser of hostile headers may raise anything
        return None
    return read_texts(texts)


def read_texts(texts: Mapping[str, str]) -> PictureMetadata | None:
    """The same from the text chunks of a file, by keyword."""
    for keyword, read in _READERS:
        if keyword in texts and len(texts[keyword]) <= (MAX_GRAPH if keyword == "prompt" else MAX_TEXT):
            try:
                found = read(texts)
            except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
                continue   # somebody else's use of this keyword, or a damaged one
            if found is not None:
                return found
    return None


def _exif_texts(image: Image.Image) -> dict[str, str]:
    """What JPEG and WebP hold: A1111's text in the comment, ComfyUI's graph as the maker or the model of a camera."""
    exif = image.getexif()
    texts = {"parameters": _comment(exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT, b""))}
    for tag in (Base.Make, Base.Model, Base.ImageDescription):
        keyword, colon, text = str(exif.get(tag, "")).partition(":")
        if colon and text.lstrip().startswith("{"):
            texts[keyword.lower()] = text
    return {keyword: text for keyword, text in texts.items() if text}


def _comment(raw: Any) -> str:
    if isinstance(raw, str):
        return raw
    if not isinstance(raw, bytes) or len(raw) > 4 * MAX_TEXT:
        return ""
    code, text = raw[:8], raw[8:]
    if code in (b"UNICODE\0", b"ASCII\0\0\0", b"\0" * 8):
        return _decoded(text)
    return _decoded(raw)


def _decoded(raw: Any) -> str:
    """A text in UTF-16 or UTF-8, whatever is said: tools mix them up, and the standard leaves the byte order open.

    Prompts are mostly ASCII, so the zero of each pair tells.
    """
    if not isinstance(raw, bytes):
        return ""
    if raw.count(0) > len(raw) / 4 or raw[:2] in (b"\xfe\xff", b"\xff\xfe"):
        order = "utf-16-be" if raw[:1] == b"\0" or raw[:2] == b"\xfe\xff" else "utf-16-le"
        return raw.decode(order, "replace").lstrip("\ufeff")
    return raw.decode("utf-8", "replace")


# --- A1111 and Forge: one text, the last line of it "Key: value, key: value" -----------------------------------------

# As A1111's own, but for the length of a key, without which the time grows with the square of the text's.
_PARAMETER = re.compile(r'\s*(\w[\w \-/]{1,100}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_LORA = re.compile(r"<(?:lora|lyco):([^:<>]+)(?::([^:<>]*))?(?::[^<>]*)?>")
_A1111_EXTRAS = (   # beginning of a key → what it says was there
    ("Hires ", "hires fix"), ("ADetailer ", "ADetailer"), ("ControlNet", "ControlNet"),
    ("Variation seed", "a variation seed"), ("Seed resize", "a seed of another size"), ("Refiner", "a refiner"),
    ("TI hashes", "textual inversions"), ("Mask blur", "a mask"), ("Hypernet", "a hypernetwork"),
)   # fmt: skip
_CIVITAI = re.compile(r"Civitai resources:\s*(?=\[)")


def _a1111(texts: Mapping[str, str]) -> PictureMetadata | None:
    if (found := _json_parameters(texts["parameters"])) is not None:
        return found
    lines = texts["parameters"].strip().split("\n")
    while len(lines) > 1 and lines[-1].startswith(("Template:", "Negative Template:")):   # of dynamic prompts
        lines.pop()
    lines[-1], named = _civitai_resources(lines[-1])
    if len(lines[-1]) > MAX_PARAMETERS:
        return None
    values = dict(_PARAMETER.findall(lines[-1]))
    if len(values) < 3 or "Steps" not in values:
        return None
    values = {key: _unquoted(value) for key, value in values.items()}
    marked = (i for i, line in enumerate(lines[:-1]) if line.strip().startswith("Negative prompt:"))
    start = next(marked, len(lines) - 1)
    prompt = "\n".join(line.strip() for line in lines[:start])
    negative = "\n".join(line.strip() for line in lines[start:-1]).removeprefix("Negative prompt:").strip()
    hashes = dict(re.findall(r"([^,:]+):\s*([0-9a-fA-F]+)", values.get("Lora hashes", "")))
    hashes = {name.strip(): found for name, found in hashes.items()}
    size = re.fullmatch(r"(\d+)x(\d+)", values.get("Size", ""))
    forge = values.get("Version", "").startswith("f")
    return PictureMetadata(
        tool="Forge" if forge else "A1111", prompt=_without_loras(prompt), negative=negative,
        seed=_int(values.get("Seed")), steps=_int(values.get("Steps")), guidance=_float(values.get("CFG scale")),
        sampler=values.get("Sampler", ""), schedule=values.get("Schedule type", ""),
        width=_int(size[1]) if size else None, height=_int(size[2]) if size else None,
        clip_skip=_int(values.get("Clip skip")), base_hash=values.get("Model hash", ""),
        base=values.get("Model", "") or next((part.name for kind, part in named if kind == "checkpoint"), ""),
        adapters=(*(NamedAdapter(name, _strength(strength), hashes.get(name, ""))
                    for name, strength in _LORA.findall(prompt)),
                  *(part for kind, part in named if kind in ("lora", "lycoris", "locon", "dora"))),
        extras=_a1111_extras(values),
    )   # fmt: skip


def _a1111_extras(values: Mapping[str, str]) -> tuple[str, ...]:
    found = [what for start, what in _A1111_EXTRAS if any(key.startswith(start) for key in values)]
    if "Denoising strength" in values and "hires fix" not in found:
        found.append("a start picture")
    return tuple(found)


def _civitai_resources(line: str) -> tuple[str, list[tuple[str, NamedAdapter]]]:
    """A line without the list of models that Civitai's generator adds, and what the list names: kind and model."""
    mark = _CIVITAI.search(line)
    if mark is None:
        return line, []
    try:
        said, end = json.JSONDecoder().raw_decode(line, mark.end())
    except (ValueError, RecursionError):
        return line, []
    parts = [part for part in _list(without_halves(said)) if isinstance(part, dict)]
    named = [(str(part.get("type")).lower(), _text(part.get("modelName")), _strength(str(part.get("weight"))))
             for part in parts]   # fmt: skip
    return line[: mark.start()] + line[end:].lstrip(", "), [(kind, NamedAdapter(name, strength))
                                                            for kind, name, strength in named]   # fmt: skip


def _json_parameters(text: str) -> PictureMetadata | None:
    """What tools write that have JSON under A1111's keyword; None for a prompt that only begins like it."""
    try:
        said = parse_json(text) if text.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return None
    return (_swarm(said) or _fooocus(said)) if isinstance(said, dict) else None


def _strength(text: str) -> float:
    found = _float(text)
    return 1.0 if found is None else found


def _without_loras(prompt: str) -> str:
    return "\n".join(re.sub(r"\s{2,}", " ", _LORA.sub("", line)).strip() for line in prompt.split("\n")).strip()


def _unquoted(value: str) -> str:
    """A value as A1111 reads it back: quoted ones are JSON."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return str(parse_json(value))
        except ValueError:
            return value
    return value.strip()


# --- SwarmUI: JSON under A1111's keyword -----------------------------------------------------------------------------

def _swarm(parameters: Mapping[str, Any]) -> PictureMetadata | None:
    said = parameters.get("sui_image_params")
    if not isinstance(said, dict):
        return None
    names, weights = _listed(said.get("loras")), _listed(said.get("loraweights"))
    hashes = {_text(part.get("name")).rpartition(".")[0]: _text(part.get("hash"))
              for part in _list(parameters.get("sui_models")) if isinstance(part, dict)}   # fmt: skip
    prompt = _text(said.get("prompt"))
    named = [(str(name), str(weights[i]) if i < len(weights) else "1") for i, name in enumerate(names)]
    named += [pair for pair in _LORA.findall(prompt) if pair[0] not in dict(named)]
    return PictureMetadata(
        tool="SwarmUI", prompt=_without_loras(prompt), negative=_text(said.get("negativeprompt")),
        seed=_int(said.get("seed")), steps=_int(said.get("steps")), guidance=_float(said.get("cfgscale")),
        sampler=_text(said.get("sampler")), schedule=_text(said.get("scheduler")), width=_int(said.get("width")),
        height=_int(said.get("height")), base=_text(said.get("model")),
        base_hash=hashes.get(_text(said.get("model")).rpartition("/")[2].rpartition(".")[0], ""),
        adapters=tuple(NamedAdapter(name, _strength(weight), hashes.get(name.rpartition("/")[2], ""))
                       for name, weight in named),
    )   # fmt: skip


# --- Fooocus: JSON under A1111's keyword as well ---------------------------------------------------------------------

def _fooocus(said: Mapping[str, Any]) -> PictureMetadata | None:
    if "base_model" not in said:
        return None
    size = re.findall(r"\d{1,6}", _text(said.get("resolution")))
    loras = [part for part in _list(said.get("loras")) if isinstance(part, list) and len(part) >= 2]
    return PictureMetadata(
        tool="Fooocus", prompt=_text(said.get("prompt")), negative=_text(said.get("negative_prompt")),
        seed=_int(said.get("seed")), steps=_int(said.get("steps")), guidance=_float(said.get("guidance_scale")),
        sampler=_text(said.get("sampler")), schedule=_text(said.get("scheduler")),
        width=_int(size[0]) if len(size) == 2 else None, height=_int(size[1]) if len(size) == 2 else None,
        clip_skip=_int(said.get("clip_skip")), base=_text(said.get("base_model")),
        base_hash=_text(said.get("base_model_hash")),
        adapters=tuple(NamedAdapter(str(part[0]), _strength(str(part[1])), _text(part[2]) if len(part) > 2 else "")
                       for part in loras),
    )   # fmt: skip


# --- InvokeAI: a flat JSON record, and before 3.0 a nested one -------------------------------------------------------

_INVOKE_EXTRAS = {"controlnets": "ControlNet", "ipAdapters": "IP-Adapter", "t2iAdapters": "T2I-Adapter",
                  "positive_style_prompt": "a style prompt", "init_image": "a start picture",
                  "refiner_model": "a refiner"}   # fmt: skip


def _invoke(texts: Mapping[str, str]) -> PictureMetadata:
    said = parse_json(texts["invokeai_metadata"])
    loras = [part for part in _list(said.get("loras")) if isinstance(part, dict)]
    skipped = _int(said.get("clip_skip"))   # counted from 0
    model = said.get("model") if isinstance(said.get("model"), dict) else {}
    return PictureMetadata(
        tool="InvokeAI", prompt=_text(said.get("positive_prompt")), negative=_text(said.get("negative_prompt")),
        seed=_int(said.get("seed")), steps=_int(said.get("steps")), guidance=_float(said.get("cfg_scale")),
        sampler=_text(said.get("scheduler")), width=_int(said.get("width")), height=_int(said.get("height")),
        clip_skip=None if skipped is None else skipped + 1, base=_model_name(model), base_hash=_text(model.get("hash")),
        adapters=tuple(_invoke_lora(part) for part in loras),
        extras=tuple(what for key, what in _INVOKE_EXTRAS.items() if said.get(key)),
    )   # fmt: skip


def _invoke_lora(part: Mapping[str, Any]) -> NamedAdapter:
    # "lora" with "model_name" until version 4, "model" with "name" since.
    model = part.get("model") or part.get("lora")
    model = model if isinstance(model, dict) else {}
    return NamedAdapter(_model_name(model), _strength(str(part.get("weight", 1.0))), _text(model.get("hash")))


def _model_name(model: Mapping[str, Any]) -> str:
    return _text(model.get("name") or model.get("model_name"))


def _old_invoke(texts: Mapping[str, str]) -> PictureMetadata:
    said = parse_json(texts["sd-metadata"])
    image, prompt = said["image"], said["image"]["prompt"]
    text = prompt if isinstance(prompt, str) else " ".join(str(part["prompt"]) for part in prompt)
    unwanted = re.findall(r"\[([^\[\]]*)\]", text)   # it had no field for what must not be there
    return PictureMetadata(
        tool="InvokeAI", prompt=" ".join(re.sub(r"\[[^\[\]]*\]", "", text).split()), negative=", ".join(unwanted),
        seed=_int(image.get("seed")), steps=_int(image.get("steps")), guidance=_float(image.get("cfg_scale")),
        sampler=_text(image.get("sampler")), width=_int(image.get("width")), height=_int(image.get("height")),
        base=_text(said.get("model_weights")), base_hash=_text(said.get("model_hash")),
    )   # fmt: skip


# --- NovelAI ---------------------------------------------------------------------------------------------------------

def _novelai(texts: Mapping[str, str]) -> PictureMetadata | None:
    if "novelai" not in texts["Software"].lower():
        return None
    said = parse_json(texts["Comment"])
    return PictureMetadata(
        tool="NovelAI",
        prompt=", ".join([texts.get("Description", "") or _text(said.get("prompt")), *_characters(said, "v4_prompt")]),
        negative=", ".join([_text(said.get("uc")), *_characters(said, "v4_negative_prompt")]),
        seed=_int(said.get("seed")), steps=_int(said.get("steps")),
        guidance=_float(said.get("scale")), sampler=_text(said.get("sampler")),
        schedule=_text(said.get("noise_schedule")), width=_int(said.get("width")), height=_int(said.get("height")),
        base=texts.get("Source", ""),
    )   # fmt: skip


def _characters(said: Mapping[str, Any], key: str) -> list[str]:
    """The prompts of single characters, since version 4."""
    caption = (said.get(key) or {}).get("caption") or {}
    return [text for part in _list(caption.get("char_captions")) if (text := _text(part.get("char_caption")).strip())]


# --- ComfyUI: the graph that was run ---------------------------------------------------------------------------------

def _comfy(texts: Mapping[str, str]) -> PictureMetadata | None:
    graph = Graph(parse_json(texts["prompt"]))
    sampler = graph.sampler()
    if sampler is None:
        return None
    size = graph.size(sampler)
    start = "model" if "model" in sampler else "guider"
    settings = [sampler, *graph.above(sampler)]
    return PictureMetadata(
        tool="ComfyUI", prompt=graph.text(sampler, "positive"), negative=graph.text(sampler, "negative"),
        seed=_int(graph.value(settings, "seed", "noise_seed")), steps=_int(graph.value(settings, "steps")),
        guidance=_float(graph.value(settings, "cfg", "guidance")),
        sampler=_text(graph.value(settings, "sampler_name")), schedule=_text(graph.value(settings, "scheduler")),
        width=_int(size[0]), height=_int(size[1]), clip_skip=graph.clip_skip(), extras=graph.extras(sampler),
        base=_text(graph.value(graph.above(sampler, start), "ckpt_name", "unet_name")),
        adapters=tuple(NamedAdapter(name, _strength(str(strength)))
                       for name, strength in graph.adapters(sampler, start)),
    )   # fmt: skip


# --- values ----------------------------------------------------------------------------------------------------------

def _int(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > 40:
        return None
    try:
        return int(value)
    except (ValueError, OverflowError):
        return None


def _float(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if abs(found) < 1e6 else None   # neither infinite nor no number


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _listed(value: Any) -> list[Any]:
    """A list, or one that is written with commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else _list(value)


_READERS: tuple[tuple[str, Callable[[Mapping[str, str]], PictureMetadata | None]], ...] = (
    ("invokeai_metadata", _invoke), ("sd-metadata", _old_invoke), ("parameters", _a1111), ("prompt", _comfy),
    ("Software", _novelai),
)   # fmt: skip
