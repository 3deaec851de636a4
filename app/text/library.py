"""What the Library page says."""

from __future__ import annotations

TITLE = "Library"
LEAD = "The adapters you trained or imported."
SEARCH = "Search"
EMPTY = "No adapters yet. The ones you train or import appear here."
NOTHING_FOUND = "No adapter matches your search."
TRIGGER = "Trigger word"
COPY = "Copy"
RECIPE = "Training settings"
USE_IN_STUDIO = "Use in Studio"
KIND, CLASS_WORD, TRAINED_ON, CAPTION_TAGS = "Kind", "Class word", "Trained on", "Caption tags"

# --- import
IMPORT = "Import adapters from other tools"
IMPORT_DROP = "Drop .safetensors files here, or click to choose files"

# --- export
EXPORT = "Export for other tools"
EXPORT_NOW = "Export"
FORMAT = "Format"
FORMATS = {
    "kohya": "For any tool (ComfyUI, A1111, Forge, diffusers …)", "diffusers": "For diffusers only",
    "lycoris": "For tools that read LyCORIS, exact for every kind",
    "comfyui": "For ComfyUI and Forge, exact for every kind",
    "diff": "For any tool but diffusers, exact for every kind, large", "native": "For Atelier",
}
PRECISION = "Precision"
PRECISIONS = {
    "fp16": "fp16: half the size", "bf16": "bf16: half the size, less precise", "fp32": "fp32: full precision",
}
MAX_RANK = "Maximum rank"
MAX_RANK_HINT = "A lower rank makes a smaller file. 0 sets no limit."
INCLUDE_RECIPE = "Include the training settings"
INCLUDE_RECIPE_HINT = "They can contain prompts and folder names."
LAYERS, RANK, ACCURACY, ENERGY, HASH = "Layers", "Rank", "Accuracy", "Energy kept", "Hash"
EXACT = "exact, except for rounding"
OUTPUT_ERROR = "Error in the UNet's output"
LEFT_OUT = "Layers left out"
NOTES = "Notes"
LOADS = {"yes": "loads", "partly": "loads in part", "no": "doesn't load"}
WITH_ADAPTER, WITH_FILE = "Adapter", "Exported file"


def picture_count(count: int) -> str:
    """How many pictures an adapter was trained on; empty when it is unknown.

    >>> picture_count(1), picture_count(0)
    ('1 picture', '')
    """
    return f"{count} picture{'' if count == 1 else 's'}" if count else ""


def layer_error(largest: float, mean: float) -> str:
    """How far the layers of an exported file are from the adapter's.

    >>> layer_error(0.0123, 0.004)
    'off by 1.2 % at most, 0.4 % on average'
    """
    return f"off by {largest:.1%} at most, {mean:.1%} on average".replace("%", " %")


def more(count: int) -> str:
    """Below the adapters, when not all of them are shown.

    >>> more(0), more(12)
    ('', '12 more. Use the search to find them.')
    """
    return f"{count:,} more. Use the search to find them." if count > 0 else ""


def imported(name: str, notes: str) -> str:
    """Shown for a file that was added to the library.

    >>> imported("ink", "")
    'ink was added to your library.'
    """
    return f"{name} was added to your library. {notes}".strip()


def textual_inversion(token: str, family: str) -> str:
    """Shown for each textual inversion of the library.

    >>> textual_inversion("<fox>", "Stable Diffusion 1.x")
    'Textual inversion for Stable Diffusion 1.x: <fox>'
    """
    return f"Textual inversion for {family}: {token}"


def unreadable(name: str, reason: str) -> str:
    """Shown for a file among the adapters that can't be opened."""
    return f"{name} was skipped: {reason}"
