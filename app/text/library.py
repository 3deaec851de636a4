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
TRAIN_LIKE = "Train another like it"
CONTINUE = "Continue training"
PARENT, CHILDREN = "Continues", "Continued by"
CLOSE = "Close"
STAR = "Star"
STARRED = "Starred only"
ALL_KINDS, ALL_BASES, SORT = "All kinds", "All base models", "Order"
SORTS = {"newest": "Newest first", "oldest": "Oldest first", "name": "By name", "largest": "Largest first"}
EARLIER_PAGE, LATER_PAGE = "Previous", "Next"
TAGS, TAGS_HINT = "Tags", "Separated by commas; the search finds them."
LOW, HIGH = "Lowest strength", "Highest strength"
STRIP = "The same picture at four strengths"
DRAW_STRIP = "Draw at four strengths"
MEMORIZATION, DRIFT = "Memorization", "Drift"
MEASURE = "Measure strength and leak"
PROPOSED, LEAK = "Proposed strength", "Leak"
COPY_TOOLS = "Smaller copy, or merge with another"
NEW_NAME = "Name of the new adapter"
NEW_RANK, NEW_RANK_HINT = "Rank", "0 keeps everything: the copy is exact."
OTHER, OTHER_STRENGTH, OWN_STRENGTH = "Merge with", "Strength of the other", "Strength of this one"
MAKE_COPY = "Make the new adapter"
NOBODY = "No other: a copy of another rank"
EXTRACT = "Make an adapter from two base models"
TUNED, PLAIN = "Base model with the change", "Base model without it"
EXTRACT_NOW = "Extract"
TRASH = "Trash"
TRASH_KINDS = {"adapters": "Adapter", "gallery": "Picture", "textual_inversions": "Textual inversion", "mixes": "Mix"}
TRASH_EMPTY = "Nothing was deleted."
RESTORE = "Restore"
KIND, CLASS_WORD, TRAINED_ON, CAPTION_TAGS = "Kind", "Class word", "Trained on", "Caption tags"

# --- import
IMPORT = "Import adapters from other tools"
IMPORT_DROP = "Drop .safetensors files here, or click to choose files"

# --- export
EXPORT = "Export for other tools"
EXPORT_NOW = "Export"
WRITING, COMPARING = "Writing the file …", "Comparing the file with the adapter …"
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


def reading(read: int, count: int) -> str:
    """Shown while the files of a library are read for the first time.

    >>> reading(3000, 10000)
    'Reading 3,000 of 10,000 adapters …'
    """
    return f"Reading {read:,} of {count:,} adapters …"


def shown_range(first: int, last: int, count: int) -> str:
    """Below the adapters, when not all of them are shown.

    >>> shown_range(1, 48, 10000)
    '1–48 of 10,000'
    """
    return f"{first:,}–{last:,} of {count:,}"


def memorization(auc: float) -> str:
    """How much of its pictures an adapter knows by heart; 0.5 is chance.

    >>> memorization(0.5), memorization(1.0)
    ('0.50: none', '1.00: redraws its pictures')
    """
    judged = "none" if auc < 0.6 else "a little" if auc < 0.75 else "much" if auc < 0.9 else "redraws its pictures"
    return f"{auc:.2f}: {judged}"


def strengths(low: float, high: float) -> str:
    """From which strength on an adapter shows, and up to which it is not too strong.

    >>> strengths(0.5, 1.75)
    '0.5 to 1.75'
    """
    return f"{low:g} to {high:g}"


def leak(word: str, share: float, limit: float) -> str:
    """The ordinary word that draws most of an adapter's subject.

    >>> leak("blue", 0.62, 0.5), leak("cat", 0.031, 0.5)
    ('“blue” draws it too (62 %)', 'none (at most 3 %, “cat”)')
    """
    percent = f"{100 * max(0.0, share):.0f} %"
    return f"“{word}” draws it too ({percent})" if share >= limit else f"none (at most {percent}, “{word}”)"


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
