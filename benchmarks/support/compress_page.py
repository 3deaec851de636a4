"""docs/compress.md and its sheet of pictures, from what the compress benchmarks measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.support.machine import in_words

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "compress.json"
SIZES = RESULTS.with_name("compress_sizes.json")
SPEED = RESULTS.with_name("compress_speed.json")
PICTURES = ROOT / "build" / "compress"
PAGE, SHEET = ROOT / "docs" / "compress.md", ROOT / "docs" / "compress.png"
METHODS = {
    "minmax": "ranges taken whole", "searched": "ranges searched", "qalora": "+ QALoRA", "scale": "+ scale-aware",
    "talsq": "+ TALSQ", "long": "the same for longer", "dynamic": "each input's own range",
    "dynamic-qalora": "each input's own range, + QALoRA", "dynamic-long": "the same for longer",
}   # fmt: skip
PRESETS = ("w8a8", "w6a8", "w5a8", "w4a8", "w4a4", "w2a8")
SIDE, GAP, LABEL, ACROSS = 64, 4, 150, 8
EACH = 4   # drawings of a prompt; the sheet shows the first
TEXT = """# Compressed base models compared

Written by `python -m benchmarks.compression.methods --render` from what is in `benchmarks/results/`.

## Error, pictures and the judge

The embedded base by every method, each on top of the one before it; the first two only measure ranges, the others
train for {steps} updates ({trajectories} drawings of {timesteps} timesteps, two pictures side by side), 1/{less}
of the paper's 16,000: chosen for a small machine. The last trains for {long}, the app's default.
*Error* is the squared difference to the base's own answer over its square, mean over two trajectories with
prompts and seeds that no method has seen; *PSNR* is that of {pictures} pictures in {draw_steps} denoising steps from
the same noise; *judge* is the mean probability, in percent, of the object and the style in the prompt
(the base itself: {judge:.1f}). Measured on: {measured}.

| preset | method | error | PSNR, dB | judge | to the base | seconds |
|---|---|---|---|---|---|---|
{cells}

{missing}![The base in the top row, then each cell of the table](compress.png)
{sizes}{speed}"""
SIZE_TEXT = """
## Files

The UNet of Stable Diffusion 1.5's shape with random weights, written and measured, header, step sizes, zero points and
input levels included; what is not quantized is in float16 (`python -m benchmarks.compression.sizes`).

| file | MiB | of fp16 | estimated, MiB |
|---|---|---|---|
{rows}
"""
SPEED_TEXT = """
## Linear layers in integer arithmetic

All {layers} calls of linear layers in one UNet call of Stable Diffusion 1.5 at 64 × 64, one thread, CPU seconds,
contenders taking turns in processes of their own (`python -m benchmarks.compression.speed`); torchao's dynamic int8
without torch.compile. Measured on: {measured}.

| contender | seconds | faster than fp32 | lowest and highest of the turns |
|---|---|---|---|
{rows}

Left out: {left_out}.
{whole}"""
WHOLE_TEXT = """
## Whole UNets in integer arithmetic

One call of a UNet with both branches of guidance, one thread, CPU seconds, contenders taking turns call by call
(`python -m benchmarks.compression.speed --whole`); rounding of inputs, norms, attention and all that stays in floating
point included. *In whole numbers* is how many of the packed layers were: small ones are faster in floating point.
Measured on: {measured}.

| UNet | contender | seconds | faster than fp32 | lowest and highest of the turns | in whole numbers |
|---|---|---|---|---|---|
{rows}
"""


def render() -> None:
    """Write the page and the sheet."""
    found = json.loads(RESULTS.read_text())
    cells = {(cell["preset"], cell["method"]): cell for cell in found["cells"]}
    order = [(preset, method) for preset in PRESETS for method in METHODS]
    lines = [_line(cells[key]) for key in order if key in cells]
    absent = [f"{preset.upper()} {METHODS[method]}" for preset, method in order if (preset, method) not in cells]
    missing = f"Not measured yet: {', '.join(absent)}.\n\n" if absent else ""
    about = found["protocol"]
    sizes = _sizes(json.loads(SIZES.read_text())) if SIZES.exists() else ""
    speed = _speed(json.loads(SPEED.read_text())) if SPEED.exists() else ""
    PAGE.write_text(TEXT.format(
        **about, trajectories=about["steps"] // about["timesteps"], less=16_000 // about["steps"], missing=missing,
        judge=100 * found["cells"][0]["judge_base"], cells="\n".join(lines), sizes=sizes, speed=speed,
        measured=in_words(found["machine"]),
    ), encoding="utf-8")   # fmt: skip
    _sheet([key for key in order if key in cells])


def _line(cell: Mapping[str, Any]) -> str:
    away = 100 * (cell["judge"] - cell["judge_base"])
    return (f"| {cell['preset'].upper()} | {METHODS[cell['method']]} | {cell['error']:.5f} | {cell['psnr']:.1f} | "
            f"{100 * cell['judge']:.1f} | {away:+.1f} | {cell['seconds']} |")


def _sizes(found: Mapping[str, Any]) -> str:
    rows = [f"| {name if name == 'fp16' else name.upper()} | {row['bytes'] / 2**20:.0f} | {row['share']:.3f} | "
            f"{row['estimated_mib']} |" for name, row in found["rows"].items()]   # fmt: skip
    return SIZE_TEXT.format(rows="\n".join(rows))


def _speed(found: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {_turns(row)} |" for name, row in found["rows"].items()]
    left_out = "; ".join(f"{name}: {why}" for name, why in found["left_out"].items()) or "nothing"
    whole = _whole(found["whole"]) if "whole" in found else ""
    return SPEED_TEXT.format(rows="\n".join(rows), layers=found["layers"], left_out=left_out, whole=whole,
                             measured=in_words(found["machine"]))   # fmt: skip


def _whole(found: Mapping[str, Any]) -> str:
    rows = []
    for unet, one in found["unets"].items():
        counted = "{} of {}".format(*one["in_whole_numbers"])
        rows += [f"| {unet} | {name} | {_turns(row)} | {counted if name == 'w4a8' else ''} |"
                 for name, row in one["rows"].items()]   # fmt: skip
    return WHOLE_TEXT.format(rows="\n".join(rows), measured=in_words(found["machine"]))


def _turns(row: Mapping[str, float]) -> str:
    return f"{row['seconds']:.3g} | {row['over_fp32']:.2f} | {row['lowest']:.2f} – {row['highest']:.2f}"


def _sheet(keys: list[tuple[str, str]]) -> None:
    """A row for the base and one a cell; the same prompts and seeds above each other."""
    rows = [("base", "the base itself"), *((f"{p}-{m}", f"{p.upper()}  {METHODS[m]}") for p, m in keys)]
    sheet = Image.new("RGB", (LABEL + ACROSS * (SIDE + GAP), len(rows) * (SIDE + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for down, (folder, label) in enumerate(rows):
        pen.text((6, down * (SIDE + GAP) + SIDE // 2 - 6), label, fill="#17201B")
        for across, path in enumerate(sorted((PICTURES / folder).glob("*.png"))[::EACH][:ACROSS]):
            with Image.open(path) as picture:
                sheet.paste(picture, (LABEL + across * (SIDE + GAP), down * (SIDE + GAP)))
    sheet.save(SHEET, optimize=True)
