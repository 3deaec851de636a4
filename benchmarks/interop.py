"""Files between Atelier and other tools, layer by layer, on the topology of every family with its text encoders.

    python -m benchmarks.interop [--part read] [--kinds lora dora …]      writes docs/interop.md

The bases are small twins of Stable Diffusion 1, 2 and XL: all layers under their true names, few channels, random
weights. Errors are ‖ΔW − expected‖ / ‖expected‖ of the worst layer, in float64.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.utils.logging import disable_progress_bar
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import families
import foreign_files
from tool_rules import TOOLS

from atelier.adapters.core.base import BaseStatistics
from atelier.adapters.core.targets import find_targets
from atelier.adapters.formats.export import export_mix
from atelier.adapters.formats.module_names import canonical_name
from atelier.adapters.formats.native import load_adapter, save_adapter
from atelier.adapters.formats.read_foreign import read_foreign
from atelier.adapters.kinds.catalog import create_adapters
from atelier.training.base_models import single_file
from benchmarks.support.machine import describe_machine, in_words

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "interop.json"
FAMILIES = families.FAMILIES
EXPORTED = ("sd1", "sdxl")   # the names of Stable Diffusion 2 are those of 1

KINDS = ("lora", "dora", "lokr", "loha", "oft")
FORMS = ("kohya", "diffusers", "lycoris", "comfyui", "diff")
Deltas = dict[str, Tensor]
HEADER = """# Files and the tools that read them

Written by `python -m benchmarks.interop`.
{docstring}

## Files of other libraries, read by Atelier

Each file is written by the library itself with random values, over every layer that the kind takes. `layers` is how
many of them Atelier uses, of all that the library changes by merging the file into the model; the error is against
that merge. LyCORIS's files hold the UNet and the text encoders, PEFT's hold one model; those of text encoders are at
the end. PEFT computes FourierFT and the limit of OFT in float32 whatever the precision of the model is, and LyCORIS a
scalar, which explains their errors.

{machine}

"""
READ = f"| kind | library | {' | '.join(FAMILIES)} |\n|---|---{'|---' * len(FAMILIES)}|\n"
EXPORTS = """
## Atelier's files, read by other tools

One adapter of each kind over every layer of the UNet and the text encoders, with random values, in every form of
`atelier export`. diffusers loads the file itself and fuses it. ComfyUI, A1111, Forge and InvokeAI are represented by
their rules on names, types and ΔW, written down in tests/tool_rules.py from their loaders. A cell is the layers that
come out right to 1e-5, of all; where others come out wrong, the largest error. “no” means that the tool does not load
the file, by its own message or rule. `kohya` and `diffusers` are low-rank, so what has no exact pair is cut at 99.99 %
of its energy or rank 128, whichever comes first; DoRA has its own form in `diffusers`. ComfyUI and Forge divide DoRA's
lengths of rows by those of the base's rows, which only the form `comfyui` allows for; A1111 and InvokeAI know lengths
of columns alone, so a DoRA of rows reaches them exactly as `diff`. Of OFT's own form ComfyUI and A1111 read all.

On 2026-11-30 these rules were compared with the loaders' own code (ComfyUI a125cd84, A1111's extension as of
lshqqytiger e61adddd, InvokeAI 8e71a8a5) on exports as `lycoris` and `comfyui` of 18 kinds of LyCORIS and PEFT on SD 1
and of 9 on SDXL: every verdict held, and where it was yes, every weight and bias came out right to 5e-6.

{machine}

"""


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", nargs="+", default=["read", "written"], choices=["read", "written", "page"])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    with ProcessPoolExecutor(options.processes, get_context("spawn"), initializer=_quiet) as pool:
        if "read" in options.part:
            results["read"] = {"machine": _machine(), "rows": list(pool.map(import_row, *zip(*_rows(), strict=True)))}
        if "written" in options.part:
            parts = {family: [pool.submit(export_rows, family, kind) for kind in options.kinds] for family in EXPORTED}
            results["written"] = {"machine": _machine(), "rows": {
                family: [line for part in each for line in part.result()] for family, each in parts.items()}}
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (ROOT / "docs" / "interop.md").write_text(page(results), encoding="utf-8")


def page(results: dict[str, Any]) -> str:
    """The document, from what was measured."""
    read, written = results["read"], results["written"]
    readers = ["diffusers", *TOOLS]
    head = f"| kind | form | rank | {' | '.join(readers)} |\n" + "|---" * (3 + len(readers)) + "|\n"
    tables = [f"### {family}\n\n{head}" + "\n".join(rows) for family, rows in written["rows"].items()]
    docstring = textwrap.fill(" ".join((__doc__ or "").split("docs/interop.md", 1)[1].split()), 120)
    return "".join([HEADER.format(docstring=docstring, machine=read["machine"]), READ, "\n".join(read["rows"]), "\n",
                    EXPORTS.format(machine=written["machine"]), "\n\n".join(tables), "\n"])   # fmt: skip


def _rows() -> list[tuple[str, str, str]]:
    """Library, kind and component of every file that is read."""
    rows = [("PEFT", kind, "unet") for kind in foreign_files.PEFT]
    rows += [("LyCORIS", kind, "all") for kind in foreign_files.LYCORIS]
    return [*rows, *(("PEFT", kind, "text_encoder") for kind in ("LoRA", "DoRA", "LoKr"))]


def _machine() -> str:
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return in_words(describe_machine() | {"lycoris-lora": version("lycoris-lora"), "commit": commit.stdout.strip()})


def _quiet() -> None:
    warnings.simplefilter("ignore")   # the libraries warn of what the table is there to show
    logging.disable(logging.WARNING)
    os.environ["LYCORIS_KERNEL_BACKEND"] = "torch"   # else it compiles
    disable_progress_bar()


# Other libraries' files in Atelier

def import_row(library: str, kind: str, component: str) -> str:
    """What Atelier makes of one library's files of one kind."""
    with tempfile.TemporaryDirectory() as place:
        cells = [_import_cell(Path(place) / family, library, kind, family, component) for family in FAMILIES]
    where = "" if component != "text_encoder" else ", text encoder"
    line = f"| {kind}{where} | {library} | {' | '.join(cells)} |"
    print(line, flush=True)
    return line


def _import_cell(folder: Path, library: str, kind: str, family: str, component: str) -> str:
    folder.mkdir()
    if library == "PEFT":
        path, expected = foreign_files.write_peft(folder, kind, family, foreign_files.ALL, component)
    else:
        path, expected = foreign_files.write_lycoris(folder / "a.safetensors", kind, family, foreign_files.ALL)
    base = foreign_files.weights(family)
    adapters = read_foreign(path)[0].double()
    found = {a.spec.name: (a.delta(base[a.spec.name]).double(), a.bias_delta(base.get(f"{a.spec.name}.bias")))
             for a in adapters}   # fmt: skip
    path.unlink()
    error = foreign_files.largest_error({name: found[name] for name in expected if name in found},
                                        {name: expected[name] for name in expected if name in found})   # fmt: skip
    return f"{len(found.keys() & expected.keys())} / {len(expected)}, {error:.1e}"


# Atelier's files in other tools

def export_rows(family: str, kind: str) -> list[str]:
    """What other tools make of one of Atelier's kinds, in every form."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pipe = _pipeline(folder, family)
        parts = _components(pipe)
        readers: dict[str, Callable[[Path], Deltas | None]] = {"diffusers": lambda path: _by_diffusers(pipe, path)}
        readers |= {tool: _by_rules(tool, parts, family) for tool in TOOLS}
        native = folder / "native.safetensors"
        _train(kind, find_targets(parts, "all"), parts, native, family)
        expected = {canonical_name(a.spec.name): a.delta(_weight(parts, a.spec.name)).detach()
                    for a in load_adapter(native).double()}   # fmt: skip
        lines = []
        for form in FORMS:
            out = folder / f"{form}.safetensors"
            report = export_mix([(native, 1.0)], out, form, weight_of=lambda name: _weight(parts, name).float())
            cells = [_export_cell(read(out), expected) for read in readers.values()]
            lines.append(f"| `{kind}` | {form} | {report.rank or '–'} | {' | '.join(cells)} |")
            print(family, lines[-1], flush=True)
        return lines


def _pipeline(folder: Path, family: str) -> Any:
    """A twin of a family as diffusers opens it, in float64."""
    single_file.MODELS = families.write_configurations(folder / "models", family)
    made, _ = families.write_models(folder, family, configurations=single_file.MODELS)
    pipe: Any = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipe = pipe.from_pretrained(made)
    for part in _components(pipe).values():
        part.double().requires_grad_(False)
    return pipe


def _components(pipe: Any) -> dict[str, nn.Module]:
    names = ("unet", "text_encoder", "text_encoder_2")
    return {name: part for name in names if (part := getattr(pipe, name, None)) is not None}


def _weight(parts: dict[str, nn.Module], name: str) -> Tensor:
    component, _, path = name.partition(".")
    found = parts[component]
    own = path if f"{path}.weight" in found.state_dict() else path.removeprefix("text_model.")
    return found.get_parameter(f"{own}.weight").detach()


def _train(kind: str, specs: list[Any], parts: dict[str, nn.Module], path: Path, family: str) -> None:
    """An adapter with random values, as if it had been trained."""
    torch.manual_seed(0)
    adapters = create_adapters(kind, {}, specs)
    for adapter in adapters:
        adapter.initialize(BaseStatistics(_weight(parts, adapter.spec.name).float()))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_adapter(path, adapters, {"atelier.family": family, "atelier.name": kind})


def _export_cell(found: Deltas | None, expected: Deltas) -> str:
    if not found:
        return "no"
    errors = {name: ((found[name] - change).norm() / change.norm()).item()
              for name, change in expected.items() if name in found}   # fmt: skip
    right = sum(error <= 1e-5 for error in errors.values())
    wrong = "" if right == len(errors) else f", error {max(errors.values()):.0e}"
    return f"{right} / {len(expected)}{wrong}"


def _by_diffusers(pipe: Any, path: Path) -> Deltas | None:
    parts = _components(pipe)
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    try:
        pipe.load_lora_weights(path)
    except (ValueError, KeyError):
        pipe.unload_lora_weights()
        return None
    for part in parts.values():
        part.double()
    pipe.fuse_lora(components=list(parts))
    pipe.unload_lora_weights()
    found: Deltas = {}
    for component, part in parts.items():
        for key, value in part.state_dict().items():
            if key.endswith(".weight") and not torch.equal(value, before[component][key]):
                found[canonical_name(f"{component}.{key.removesuffix('.weight')}")] = value - before[component][key]
        part.load_state_dict(before[component])
    return found


def _by_rules(tool: str, parts: dict[str, nn.Module], family: str) -> Callable[[Path], Deltas | None]:
    weights = {canonical_name(f"{component}.{name}"): module.weight.detach() for component, part in parts.items()
               for name, module in part.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}   # fmt: skip
    return lambda path: TOOLS[tool](load_file(path), weights, family)


if __name__ == "__main__":
    main()
