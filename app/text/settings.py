"""What the Settings page says."""

from __future__ import annotations

from atelier.adapters.core.byte_size import format_bytes

TITLE = "Settings"
LEAD = "Where your files are, what this machine offers, and which versions are installed."
HOME = "Home folder"
HOME_HINT = "Everything you make is in this folder. Back it up, move it, or start Atelier with a different one."
FOLDER, FREE = "Folder", "Free disk space"
MACHINE, DEVICE, MEMORY, SYSTEM = "This machine", "Device", "Memory", "System"
WORKER, WORKER_RUNNING = "Worker", "running"
NO_WORKER = "not running: jobs wait until you start one with 'atelier worker'"
NAME, FAMILY, PREDICTION = "Name", "Family", "Prediction type"
STORAGE = "Storage"
STORAGE_HINT = "What takes up space in your home folder, and what can be deleted without losing your work."
CLEAN_UP, CLEAN_NOW, KEEP = "Clean up", "Delete for good", "Keep"
STORAGE_KINDS = {
    "adapters": "Adapters", "gallery": "Gallery", "datasets": "Training pictures", "runs": "Jobs",
    "bases": "Compressed models", "trash": "Trash", "thumbnails": "Small previews", "exports": "Exported files",
}
CLEAN_UP_NOTES = {   # what a clean-up deletes
    "trash": "Everything in the trash. It can't be restored afterwards.",
    "runs": "Saved steps of finished jobs. They can't be compared or resumed afterwards; the adapters stay.",
    "thumbnails": "Small previews of pictures. They are made again when they are needed.",
    "exports": "Files that were prepared for a download: grids and ZIP files.",
}
KEYBOARD = "Keyboard"
SHORTCUTS = {
    "Ctrl + Enter": "Draw, from anywhere on the Studio",
    "Esc": "Stop a drawing; close an opened picture or adapter",
    "← →": "Previous or next picture in the gallery; values of a slider; choices of a group",
    "Tab, Shift + Tab": "Next or previous control",
    "Space, Enter": "Press the button or tick the box that has the focus",
}
DIAGNOSTICS = "Help with a problem"
DIAGNOSTICS_HINT = ("A file with versions, numbers and kinds of errors, to attach to a report. It holds no pictures, "
                    "prompts, names, paths or keys.")
MAKE_DIAGNOSTICS = "Prepare the file"
LOADED, YES, NOT_YET = "Loaded", "yes", "not yet"
MODEL_FOLDERS = "Folders with base models"
MODEL_FOLDERS_HINT = "One folder per line. You can choose the models found there in Create and Studio."
SCAN = "Scan"
NO_MODELS = "No base models found in these folders."
DRAWING_DEVICE = "Device of drawings"
DRAWING_DEVICE_HINT = ("auto is the fastest one here. The next drawing uses what you choose; trainings take every "
                       "graphics card that is free.")
PRECISION = "Precision of drawings"
PRECISION_HINT = ("auto is fp16 on a graphics card and fp32 on a processor. Choose bf16 or fp32 if drawings fail with "
                  "values that are not finite (NaN). Training has its own precision setting.")
BASE_OPTIONS = "Options of one base model"
BASE_OPTIONS_HINT = ("For files that do not say what they predict, and for another VAE. Drawings and new trainings use "
                     "these options.")
VAE = "VAE"
VAE_HINT = "A .safetensors file or a diffusers folder. Empty means the model's own."
AUTO_HINT = "'auto' reads it from the model's files. Choose another if drawings are noise."
SAVE = "Save"
NO_BASE = "No base model is chosen. Choose one first."
KNOWN_MODELS = "Base models to download"
KNOWN_HINT = "Downloads go to the Hugging Face cache of this machine. An interrupted one continues where it stopped."
HUB_ID = "Another model from the Hugging Face hub"
HUB_ID_HINT = "Its id, such as owner/model."
DOWNLOAD_NOW = "Download this base model"
DOWNLOAD, HERE = "Download", "Downloaded"
KEY_NAME = "Name of the key"
KEYS_HINT = "Programs sign in with a key instead of the password. Name each key after its program."
MAKE_KEY = "Create a key"
KEEP_KEY = "Copy it now: only its hash is stored. The program sends it as “Authorization: Bearer KEY”:"
DELETE_KEY = "Delete this key"
SIGN_OUT = "Sign out"
VERSIONS = "Versions"
FROM_SOURCE = "run from source"
ABOUT = "About"
ABOUT_HINT = "Atelier sends nothing anywhere: no statistics, no pictures, no prompts."
LICENCES = {
    "Atelier": "Apache License 2.0",
    "Embedded base model": "assets/base/README.md lists its training pictures and their licences",
    "Typeface": "Bricolage Grotesque, SIL Open Font License 1.1",
}


def base_facts(kind: str, prediction: str, precision: str, count: int, adapters: int) -> str:
    """A base model in one line.

    >>> base_facts("Stable Diffusion 1.x", "epsilon", "fp16", 2_130_000_000, 1)
    'Stable Diffusion 1.x · predicts epsilon · fp16 · 2.1 GB · fits 1 of your adapters'
    """
    fits = f"fits {adapters} of your adapters" if adapters else ""
    return " · ".join(filter(None, (kind, f"predicts {prediction}", precision, format_bytes(count), fits)))


def known_title(title: str, size: int) -> str:
    """A well-known model in a list to choose from.

    >>> known_title("SDXL-Turbo", 6_940_000_000)
    'SDXL-Turbo · not downloaded yet (6.9 GB)'
    """
    return f"{title} · not downloaded yet ({format_bytes(size)})" if size else title


def memory_line(draw: int, train: int, draw_saves: bool, train_saves: bool) -> str:
    """What a model needs here.

    >>> memory_line(10_300_000_000, 0, True, False)
    'Drawing needs 10.3 GB of memory (fits here with savings), and training needs more than this machine has.'
    """
    def need(count: int, saves: bool) -> str:
        """What one of them needs."""
        fits = " (fits here with savings)" if saves else ""
        return f"needs {format_bytes(count)} of memory{fits}" if count else "needs more than this machine has"

    return f"Drawing {need(draw, draw_saves)}, and training {need(train, train_saves)}."


def known_facts(family: str, licence: str, size: int, memory: str) -> str:
    """A well-known model in one line.

    >>> known_facts("Stable Diffusion XL", "MIT", 6_940_000_000, "Drawing needs 10.3 GB.")
    'Stable Diffusion XL · MIT · 6.9 GB to download · Drawing needs 10.3 GB.'
    """
    return f"{family} · {licence} · {format_bytes(size)} to download · {memory}"


def downloading(done: int, of: int) -> str:
    """The state of a download.

    >>> downloading(500_000_000, 2_000_000_000)
    'Downloading: 500 MB of 2 GB'
    """
    return f"Downloading: {format_bytes(done)} of {format_bytes(of)}" if of else "Downloading …"


def options_saved(title: str, prediction: str) -> str:
    """Shown when the options of a base model are saved.

    >>> options_saved("dream", "v_prediction")
    'Saved. dream is used as a model that predicts v_prediction.'
    """
    return f"Saved. {title} is used as a model that predicts {prediction}."


def not_a_folder(path: object) -> str:
    """Why a folder with base models is refused."""
    return f"{path} is not a folder on the machine that runs Atelier. Check the path, or remove the line."


def device_choice(name: str, title: str) -> str:
    """A device that drawings can use: the name that commands take, and what it is."""
    return f"{name} · {title}"


def missing_device(name: str) -> str:
    """A device that was chosen once and is not in this machine any more."""
    return f"{name} · not in this machine, so auto is used"


def can_free(count: int) -> str:
    """How much a clean-up frees.

    >>> can_free(3_200_000_000)
    '3.2 GB can be freed'
    """
    return f"{format_bytes(count)} can be freed"


def freed(count: int) -> str:
    """Shown after a clean-up.

    >>> freed(1_000_000)
    '1 MB were freed.'
    """
    return f"{format_bytes(count)} were freed."
