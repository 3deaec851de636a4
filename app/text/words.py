"""Every word the web app says, in one place so that it all sounds alike; sentences with a value in them: phrases.py."""

from __future__ import annotations

# --- the frame
SKIP = "Skip to content"
TO_START = "Atelier, start page"
PAGES = "Pages"
THEME = "Light or dark"
READY = "is ready"
TITLES = {
    "create": "Create", "jobs": "Jobs", "library": "Library", "studio": "Studio", "mix": "Mix Lab",
    "fusion": "Fusion", "compress": "Compress", "gallery": "Gallery", "settings": "Settings",
}
STATES = {
    "queued": "waiting", "preparing": "preparing", "training": "learning", "paused": "paused",
    "interrupted": "interrupted", "stopped": "stopped", "failed": "failed", "done": "done",
}

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
CALL_BY_NAME = "Call it by its name"
TIPS = ("One thing in each picture, large enough to see.", "Different sides, places and light help.",
        "Five good pictures beat fifty alike.", "A text file with a picture's name is its caption.")
PERSON_NOTE = "Teach only people who said yes to it."
COUNTING = "Counting how much memory it needs …"
TEACH = "Teach it"
EXPERT = "Expert"
EXPERT_SAME = "Everything as the preset has it."
PRESETS = {"quick": "Quick", "normal": "Normal", "thorough": "Thorough"}
SMALL = "very small: little detail to learn from"
BLURRED = "looks blurred"
REMOVE = "Remove"
NOT_UPLOADED = "This file was not uploaded here. Drop it on the page once more."
NO_PICTURES = "There is no picture to learn from yet. Drop at least one, better four or more."
NO_NAME = "It has no name yet. Give it one, such as 'fox'."

# --- the server
SIGN_IN_TITLE = "Sign in to Atelier"
SIGN_IN = "The password is what ATELIER_PASSWORD was set to when the server was started."
SIGN_IN_NOW = "Sign in"
SIGN_IN_FIRST = "Sign in first, or send a key: Authorization: Bearer KEY."
USER = "User"
PASSWORD = "Password"
WRONG_PASSWORD = "This is not the password."
PROXY_NEEDS_PASSWORD = ("Other machines reach Atelier through a proxy, so it needs a password. "
                        "Set one in the environment variable ATELIER_PASSWORD, or omit --proxy.")
KEY_NAME = "A key for a program"
KEYS_HINT = "With a key a program signs in without the password. Name it after the program."
MAKE_KEY = "Make a key"
KEEP_KEY = "Copy it now, only its hash is kept. The program sends it as “Authorization: Bearer KEY”:"
DELETE_KEY = "Delete this key"
SIGN_OUT = "Sign out"
FROM_ANOTHER_SITE = "This request came from another web site, so it was not carried out."
NOT_JSON = "Only application/json is taken here."
NO_FOREIGN_ADDRESSES = "Atelier fetches no foreign addresses."
NOT_OFFERED = "Atelier does not offer this."
TOO_MANY_REQUESTS = "Too many requests came from this address. Wait a second."
LENGTH_NEEDED = "Say with Content-Length how many bytes the request has."
BODY_TOO_LARGE = "The request is too large. Upload files instead."
NO_ROOM_FOR_UPLOAD = "The server's disk has no room for this upload. Make room there and try again."

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
BATCH, RATE = "Pictures at once", "Learning rate"
TRY = "Try it now"
TRY_PROMPT = "Draw something with what it knows by now"
TRY_HINT = "what the picture shows"
TRYING = "It draws at the next step; the picture appears among the previews."
NO_PROMPT = "There is no prompt yet. Say what the picture shows."
GONE = "No such job"
SEE_COMPRESS = "This is a compression: the page Compress shows it."

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
    "kohya": "Any tool (ComfyUI, A1111, Forge, diffusers …)", "diffusers": "diffusers only",
    "diff": "All but diffusers, exact for every kind", "native": "Atelier",
}
MOST_RANK = "Largest rank"
MOST_RANK_HINT = "Smaller makes a smaller file; 0 keeps all that an exact file needs."
LAYERS, RANK, TRUTH, KEPT, HASH = "Layers", "Rank", "Truth", "Energy kept", "Hash"
IN_DRAWING = "Off in drawing"
LEFT_OUT = "Left out"
EXACT_FILE = "exact, but for rounding"
LOADS = {"yes": "loads it", "partly": "partly", "no": "does not load it"}
INCLUDE_RECIPE = "Say in the file how it was trained"
INCLUDE_RECIPE_HINT = "That can hold prompts and names of folders."
TAGS = "Words in its captions"
NOTES = "Worth knowing"
WITH_ADAPTER, WITH_FILE = "With the adapter", "With the file"
BRING_IN = "Bring in adapters of other tools"
BRING_IN_DROP = "Drop .safetensors files here"

PRECISION = "Precision"
PRECISIONS = {"fp16": "fp16: half the size", "bf16": "bf16: half the size, coarser", "fp32": "fp32: every digit"}
KIND, WHAT_IT_IS, BASE, LEARNED_FROM, SIZE, MADE = "Kind", "What it is", "Base model", "Learned from", "Size", "Made"

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
SHELF = "Adapters"
EASEL_EMPTY = "Your pictures appear here."
EMERGING = "What it is becoming"

# --- Mix Lab
MIX_TITLE = "Mix Lab"
MIX_LEAD = "This thing, drawn that way: pick both, and move their strengths."
CONTENT, STYLE, METHOD = "What is drawn", "How it is drawn", "How they are mixed"
METHODS = {
    "break-for-make": "Break-for-Make: two halves that were taught apart, in the kind split",
    "sum": "Sum: both added, whatever they are", "np": "NP-LoRA: the thing gives way where the style looks",
    "k": "K-LoRA: layer by layer the thing first, the style later; a saved file keeps the average",
}
BEST_METHOD = "The sum, with the style at ¾, kept both best in our comparison of twelve pairs (docs/content_style.md)."
PAD = "Strengths: to the right what is drawn, upwards how"
NAME_OF_MIX = "Name of the new adapter"
SAVE_MIX = "Save as a new adapter"
MIX_NEEDS_TWO = "Pick both, what is drawn and how it is drawn."
MIX_SAVED = "is in the library"
MIX_EMPTY = "Pick a thing and a style: nine pictures appear here, from none of either to all of both."
CORNERS = "Left: without the thing. Above: without the style."

# --- Fusion
MIX_TABS = {"mix": "Thing and style", "fusion": "Fusion"}
FUSION_TITLE = "Fusion"
FUSION_LEAD = "Several adapters in one picture: say what you want, take what fits, choose how they act together."
FUSION_METHOD = "How they act together"
FUSIONS = {
    "sum": "Sum: all added", "normalised": "Normalised: strengths add up to 1",
    "gated": "Gated: each layer decides, for every place and step",
    "switch": "Switch: in turn, a tenth of the steps each",
    "composite": "Composite: the mean of what each would draw",
    "dare": "DARE: a random fifth of each, five times as strong",
    "ties": "TIES: the largest values, where they agree", "svd": "SVD: the sum, cut to one adapter's rank",
    "concat": "Side by side: the sum, as one file",
}
FIND, PROPOSED = "Find what fits", "Adapters that fit"
WHEN = "When each acts"
WHEN_HINT = "From the first step, on the left, to the last. Higher is stronger."
WHERE = "Where each acts"
WHERE_HINT = "Paint over the picture. What nobody painted is everywhere."
EVERYWHERE, ALWAYS = "Everywhere", "Always"
COMPARE = "Compare all methods"
KEEP_PICTURE = "Draw and keep"
NAME_OF_FUSION = "Name"
SAVE_FUSION = "Save the mix"
ONE_FILE = "Make one file of it"
ONE_FILE_NOT = "This mix changes with the step, the place or the picture, so no single file can hold it."
OPEN_FUSION = "Open a mix"
FUSION_EMPTY = "Take up two adapters or more: they are drawn together here."
FUSION_NO_PROMPT = "Say what to draw: the words that call your adapters belong in it."
GATES_BY_LAYER = "How far each layer lets each adapter through"
GATES_BY_STEP = "The same from the first step to the last"
MEETINGS = "Where they get in one another's way"
MEETINGS_HINT = "By layer: how much two look at and write the same. Hatched: there they push against each other."
IN_GALLERY = "It hangs in the gallery."

# --- Gallery
GALLERY_TITLE = "Gallery"
GALLERY_LEAD = "Every picture you drew, with the recipe inside the file."
NO_PICTURES_YET = "No picture has been drawn yet."
GO_STUDIO = "Draw the first one"
SHOW_MORE = "Show more"
AGAIN = "Use these settings again"
COPY_RECIPE = "Copy recipe"
ADAPTERS, NEGATIVE, STEPS, GUIDANCE, SAMPLER = "Adapters", "Must not show", "Steps", "Guidance", "Sampler"
THE_PICTURE = "The picture"

# --- Settings
SETTINGS_TITLE = "Settings"
SETTINGS_LEAD = "This installation, and what it stands on."
HOME = "Home folder"
HOME_HINT = "Everything you make is in this one folder. Back it up, move it, or start Atelier with another one."
FOLDER, FREE = "Folder", "Free on this disk"
FOLDERS = {"datasets": "Pictures to learn from", "runs": "Jobs", "adapters": "Adapters", "gallery": "Gallery",
           "bases": "Compressed models", "trash": "Trash"}
MACHINE, DEVICE, MEMORY, WORKER, SYSTEM = "This machine", "Device", "Memory", "Worker at work", "System"
YES, NOT_YET = "yes", "not yet"
NO_WORKER = "no: jobs wait until one is started with 'atelier worker'"
NAME, FAMILY, PREDICTION, IN_MEMORY = "Name", "Family", "Predicts", "In memory"
MODEL_FOLDERS = "Folders with base models"
MODEL_FOLDERS_HINT = "One a line. What is found there can be chosen under Create and Studio."
LOOK = "Look through them"
NO_MODELS = "There is no base model in these folders."
VERSIONS = "Versions"
FROM_SOURCE = "run from source"
ABOUT = "About"
ABOUT_HINT = "Atelier sends nothing anywhere: no statistics, no pictures, no prompts."
LICENCES = {
    "Atelier": "Apache License 2.0",
    "Embedded base model": "assets/base/README.md names the pictures it learned from and their licences",
    "Typeface": "Bricolage Grotesque, SIL Open Font License 1.1",
}

# --- finding adapters
NO_LAYERS = "it changes none of the layers that read words"
NOTHING_FOUND = "Nothing fits these words. Say it in other words, or teach it: atelier train PICTURES --name NAME"
