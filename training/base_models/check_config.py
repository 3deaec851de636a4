"""Whether the configuration files of a foreign base model ask for nothing but numbers that fit the known classes.

The libraries that load a model act on what its configurations say: they import classes by name, fetch attention kernels
and quantization packages, or turn to another folder. Atelier loads fixed classes from safetensors, and refuses here
whatever would lead elsewhere, before a library reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from atelier.training.base_models.base_info import BaseError, read_json

_SAMPLERS = (
    "DDIM DDIMInverse DDIMParallel DDPM DDPMParallel PNDM LMSDiscrete EulerDiscrete EulerAncestralDiscrete "
    "HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete DPMSolverMultistep DPMSolverMultistepInverse "
    "DPMSolverSinglestep DPMSolverSDE DEISMultistep UniPCMultistep SASolver EDMEuler EDMDPMSolverMultistep "
    "CMStochasticIterative IPNDM LCM TCD"
).split()
_CLASSES = {
    "unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",), "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"), "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": tuple(f"{name}Scheduler" for name in _SAMPLERS),
}   # fmt: skip
_FILES = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json",
          "tokenizer_2": "tokenizer_config.json"}   # fmt: skip
_LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")
# What makes a library run code that came with the model, fetch some, or import a package because the model says so.
_CODE = {"auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code", "quantization_config",
         "compression_config", "_attn_implementation_internal", "_experts_implementation_internal"}   # fmt: skip
_ATTENTION = {"_attn_implementation", "attn_implementation"}
_KNOWN_ATTENTION = (None, "eager", "sdpa")
_MAX_NUMBER, _MAX_CHANNELS, _MAX_LAYERS, _MAX_ITEMS = 10**6, 10_000, 100, 10_000
_COUNT = re.compile(r"layers|blocks|depth")   # in the name of a number by which a library builds so many parts


def check_configurations(base: str, folder: Path) -> None:
    """Read every configuration of a diffusers folder that the libraries would read.

    Raises:
        BaseError: one asks for code, a foreign class, or sizes that no such model has; says which and where.
    """
    index = read_json(folder / "model_index.json", base)
    _check_values(base, "model_index.json", index)
    for name, part in index.items():
        if isinstance(part, list) and not _is_known(name, part):
            raise _refused(base, "model_index.json", f"names {_short(part)} for its {name}")
    for name in _CLASSES:
        if (folder / name).is_dir():
            _check_part(base, folder, name)


def _is_known(name: str, part: list[Any]) -> bool:
    """Whether an entry of model_index.json, (library, class), is one of those that such pipelines have."""
    if len(part) != 2 or part[0] not in _LIBRARIES or not isinstance(part[1], str | None):
        return False
    return part[1] is None or name not in _CLASSES or part[1] in _CLASSES[name]


def _check_part(base: str, folder: Path, name: str) -> None:
    path = folder / name / _FILES.get(name, "config.json")
    if (folder / name / "adapter_config.json").exists():
        raise _refused(base, f"{name}/adapter_config.json", "would load a different model instead")
    for index in (folder / name).glob("*.index.json"):
        files = read_json(index, base, "weight_map")["weight_map"]
        if not isinstance(files, dict) or any(Path(str(file)).name != file or file == ".." for file in files.values()):
            raise _refused(base, f"{name}/{index.name}", "points to weights outside its folder")
    if not path.exists():   # whoever needs it says that it is missing
        return
    where, values = f"{name}/{path.name}", read_json(path, base)
    for given in _named_classes(values):
        if given not in _CLASSES[name]:
            raise _refused(base, where, f"names the class {_short(given)}")
    # A tokenizer's largest length is a number without meaning, 10^30.
    _check_values(base, where, {key: value for key, value in values.items() if key != "model_max_length"})


def _named_classes(values: Mapping[str, Any]) -> list[Any]:
    architectures = values.get("architectures") or []
    one = [values[key] for key in ("_class_name", "tokenizer_class") if values.get(key) is not None]
    return [*one, *(architectures if isinstance(architectures, list) else [architectures])]


def _check_values(base: str, where: str, values: Mapping[str, Any]) -> None:
    for key, value in _items(values):
        if key in _CODE and value is not None:
            raise _refused(base, where, f"contains {key!r}, which can make a library run foreign code")
        if key in _ATTENTION and value not in _KNOWN_ATTENTION:
            raise _refused(base, where, f"asks for the attention {_short(value)}")
        if isinstance(value, list) and len(value) > _MAX_ITEMS:
            raise _refused(base, where, f"has {len(value):,} entries in {key!r}")
        for number in value if isinstance(value, list) else [value]:
            if type(number) is int and abs(number) > _most(key):
                raise _refused(base, where, f"has {_short(number)} for {key!r}")


def _most(key: str) -> int:
    if key == "block_out_channels":
        return _MAX_CHANNELS
    return _MAX_LAYERS if _COUNT.search(key) else _MAX_NUMBER


def _items(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every name and value of nested tables, however deep."""
    left: list[Any] = [values]
    while left:
        table = left.pop()
        for key, value in table.items():
            yield str(key), value
            inner = value if isinstance(value, list) else [value]
            left.extend(item for item in inner if isinstance(item, dict))


def _refused(base: str, where: str, what: str) -> BaseError:
    return BaseError(f"{base} was not loaded, because its {where} {what}. Stable Diffusion models need nothing like "
                     "that. Download the model again from its publisher.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
