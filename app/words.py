"""Every sentence a person can read in the web app. One place, so that they all sound alike."""

from __future__ import annotations

from datetime import datetime
from html import escape

# --- the frame
SKIP = "Skip to content"
TO_START = "Atelier, start page"
PAGES = "Pages"
THEME = "Light or dark"
SORRY = "That did not work"
READY = "is ready"
TITLES = {
    "create": "Create", "jobs": "Jobs", "library": "Library", "studio": "Studio", "gallery": "Gallery",
    "settings": "Settings",
}
STATES = {
    "queued": "waiting", "preparing": "preparing", "training": "learning", "paused": "paused",
    "interrupted": "interrupted", "stopped": "stopped", "failed": "failed", "done": "done",
}


def left(seconds: float) -> str:
    """Time left, as a person would say it.

    >>> left(42), left(330)
    ('42 s left', '6 min left')
    """
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"


def sorry(error: Exception) -> str:
    """An error's message as Gradio wants it: it would read angle brackets as HTML."""
    return escape(str(error))


# --- Create
CREATE_TITLE = "Teach it something new"
CREATE_LEAD = "A few pictures of one thing are enough. Minutes later you can draw it anywhere you like."
STEP_PICTURES = "Pictures"
STEP_PICTURES_HINT = "4 to 30 of the same thing, from different sides"
STEP_WHAT = "What is it?"
STEP_NAME = "Name"
STEP_LONG = "How long"
DROP = "Drop pictures here, or choose files"
WHAT = {"object": "Object", "animal": "Animal", "person": "Person", "style": "Style"}
SUBJECT = "In a word or two"
SUBJECT_HINTS = {"object": "coffee cup", "animal": "fox", "person": "woman", "style": "watercolour"}
NAME_HINT = "This is also the word that calls it in a prompt."
PERSON_NOTE = "Teach only people who said yes to it."
TEACH = "Teach it"
EXPERT = "Expert"
EXPERT_SAME = "Everything as the preset has it."
PRESETS = {"quick": "Quick", "normal": "Normal", "thorough": "Thorough"}
SMALL = "very small: little detail to learn from"
BLURRED = "looks blurred"
REMOVE = "Remove"
NO_PICTURES = "There is no picture to learn from yet. Drop at least one, better four or more."
NO_NAME = "It has no name yet. Give it one, such as 'fox'."
ADAPTER_SETTINGS = "Adapter"
TRAINING_SETTINGS = "Training"


def too_many_pictures(most: int) -> str:
    """Said on each picture beyond the limit."""
    return f"not taken: {most} pictures are the most"


def duplicate(name: str, other: str) -> str:
    """Said on a picture that was dropped before."""
    return f"{name} shows the same picture as {other}, so it is used once."


def picture_count(usable: int, refused: int) -> str:
    """Under the dropped pictures.

    >>> picture_count(5, 1)
    '5 pictures to learn from, 1 not used'
    """
    if not usable and not refused:
        return ""
    text = f"{usable} picture{'' if usable == 1 else 's'} to learn from"
    return f"{text}, {refused} not used" if refused else text


def expert_changes(count: int) -> str:
    """How far the settings are from the preset."""
    return EXPERT_SAME if not count else f"{count} setting{'' if count == 1 else 's'} changed from the preset."


# --- the server
SIGN_IN = "The user is atelier; the password is what ATELIER_PASSWORD was set to when the server was started."


def needs_password(host: str) -> str:
    """Why a server is not opened to the network."""
    return (f"With --host {host} other machines could reach Atelier, so it needs a password. "
            f"Set one in the environment variable ATELIER_PASSWORD, or leave --host away to serve this machine alone.")


def cannot_listen(host: str, port: int, reason: str) -> str:
    """Why a port could not be taken."""
    return (f"Atelier can't listen on {host}, port {port}: {reason}. Choose another port with --port, "
            f"or leave --port away to take the first free one.")


def served_at(host: str, port: int) -> str:
    """The line that tells where the Studio is."""
    shown = "127.0.0.1" if host == "0.0.0.0" else host
    return f"Atelier is open at http://{shown}:{port}  (stop it with Ctrl+C)"


# --- Jobs
JOBS_TITLE = "Jobs"
JOBS_LEAD = "What is being learned, and what was. Close the page whenever you like: the work goes on."
NO_JOBS = "Nothing has been taught yet."
GO_CREATE = "Teach your first one"
NO_LOSS = "The curve begins with the first step."
NO_PREVIEWS = "The first preview comes soon."
ALL_JOBS = "All jobs"
PAUSE = "Pause"
RESUME = "Resume"
STOP = "Stop & keep best"
CANCEL = "Cancel"
OPEN_STUDIO = "Open in Studio"
STEP = "Step"
PROGRESS = "Progress"
PREVIEWS = "Previews"
LEARNING = "Learning"
LOSS = "Loss, smoothed"
VALIDATION = "Validation"
BEST = "Best: step"
TRY = "Try it now"
TRY_PROMPT = "Draw something with what it knows by now"
TRY_HINT = "what the picture shows"
TRYING = "It draws at the next step; the picture appears among the previews."
NO_PROMPT = "There is no prompt yet. Say what the picture shows."
GONE = "No such job"


def moment(time: datetime) -> str:
    """A time of this machine, short."""
    return f"{time.day} {time:%b, %H:%M}"


def run_about(step: int, of: int, started: datetime | None) -> str:
    """Under a run's name in the list."""
    steps = f"{step} of {of} steps"
    return f"{steps} · {moment(started)}" if started else steps


def recipe(kind: str, subject: str, started: datetime | None) -> str:
    """Under a run's name on its own page."""
    return f"{kind} · {subject} · {moment(started)}" if started else f"{kind} · {subject}"


def preview(step: int, prompt: str) -> str:
    """Under a preview."""
    return f"Step {step}: {prompt}"


def chart(loss: float, step: int) -> str:
    """The loss chart for those who can't see it."""
    return f"Loss at step {step}: {loss:.4g}"


# --- Library
LIBRARY_TITLE = "Library"
LIBRARY_LEAD = "Everything you have taught."
SEARCH = "Search"
NO_ADAPTERS = "Nothing here yet. What you teach will hang on this wall."
NOT_FOUND = "Nothing matches."
TRIGGER = "Trigger word"
COPY, COPIED = "Copy", "Copied"
RECIPE = "How it was trained"
USE_IN_STUDIO = "Use in Studio"
DELETE = "Delete"
UNDO = "Undo"
WAS_DELETED = "is in the trash."
EXPORT = "Export for another tool"
EXPORT_NOW = "Export"
DOWNLOAD = "Download"
FORM = "For"
FORMS = {
    "kohya": "Any tool (ComfyUI, A1111, Forge, diffusers …)", "diffusers": "diffusers only", "native": "Atelier",
}
PRECISION = "Precision"
PRECISIONS = {"fp16": "fp16: half the size", "bf16": "bf16: half the size, coarser", "fp32": "fp32: every digit"}
KIND, WHAT_IT_IS, BASE, LEARNED_FROM, SIZE, MADE = "Kind", "What it is", "Base model", "Learned from", "Size", "Made"


def unreadable(name: str, reason: str) -> str:
    """Said of a file among the adapters that can't be opened."""
    return f"{name} is passed over: {reason}"


def size(count: int) -> str:
    """Bytes for people.

    >>> size(312_400), size(18_900_000)
    ('312 KB', '18.9 MB')
    """
    if count < 1e6:
        return f"{count / 1e3:.0f} KB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def pictures(count: int) -> str:
    """A number of pictures; nothing when it is unknown."""
    return f"{count} picture{'' if count == 1 else 's'}" if count else ""


def exported(count: int, layers: int, rank: int, exact: bool, error: float) -> str:
    """What an export holds, and how true it is."""
    truth = "exact" if exact else f"approximate: at most {error:.1%} off in any layer"
    inner = f", rank {rank}" if rank else ""
    return f"{size(count)}, {layers} layers{inner}, {truth}; the file was read back and compared."


# --- Studio
STUDIO_TITLE = "Studio"
STUDIO_LEAD = "Say what to draw, and how strongly each thing you taught takes part."
PROMPT = "Prompt"
PROMPT_HINT = "What the picture shows"
TRIGGERS = "Words that call them:"
NO_ADAPTERS_YET = "Nothing taught yet: these pictures come from the base model alone."
SEED = "Seed"
DICE = "New"
KEEP_SEED = "Keep seed"
COUNT = "Pictures"
DRAW = "Draw"
LIVE = "Draw again while a slider moves"
MORE = "Size, steps and more"
EASEL_EMPTY = "Your pictures appear here."


def too_many_adapters(most: int) -> str:
    """Said when one more is taken up."""
    return f"{most} adapters at once are the most. Put one back first."


def missing(names: list[str]) -> str:
    """Said when a picture was drawn with adapters that are gone."""
    return f"Not in your library any more: {', '.join(names)}. The picture would come out different."


def drawing(done: int, of: int) -> str:
    """While it draws."""
    return f"Step {done} of {of}" if done else "Getting ready"


# --- Gallery
GALLERY_TITLE = "Gallery"
GALLERY_LEAD = "Every picture you drew, with the recipe inside the file."
NO_PICTURES_YET = "No picture has been drawn yet."
GO_STUDIO = "Draw the first one"
SHOW_MORE = "Show more"
AGAIN = "Use these settings again"
COPY_RECIPE = "Copy recipe"
ADAPTERS, NEGATIVE, STEPS, GUIDANCE = "Adapters", "Must not show", "Steps", "Guidance"
THE_PICTURE = "The picture"

# --- Settings
SETTINGS_TITLE = "Settings"
SETTINGS_LEAD = "This installation, and what it stands on."
HOME = "Home folder"
HOME_HINT = "Everything you make is in this one folder. Back it up, move it, choose another with --home."
FOLDER, FREE = "Folder", "Free on this disk"
FOLDERS = {"datasets": "Pictures to learn from", "runs": "Jobs", "adapters": "Adapters", "gallery": "Gallery",
           "trash": "Trash"}
MACHINE, DEVICE, MEMORY, WORKER, SYSTEM = "This machine", "Device", "Memory", "Worker at work", "System"
YES, NOT_YET = "yes", "not yet"
NO_WORKER = "no: jobs wait until one is started with 'atelier worker'"
NAME, FAMILY, PREDICTION, IN_MEMORY = "Name", "Family", "Predicts", "In memory"
VERSIONS = "Versions"
FROM_SOURCE = "run from source"
ABOUT = "About"
ABOUT_HINT = "Atelier sends nothing anywhere: no statistics, no pictures, no prompts."
LICENCES = {
    "Atelier": "Apache License 2.0",
    "Pictures the embedded base model learned from": "see assets/base/README.md",
    "Lora, IBM Plex (fonts)": "SIL Open Font License 1.1",
}


def processor(count: int) -> str:
    """A machine without a graphics card."""
    return f"processor, {count} cores"
