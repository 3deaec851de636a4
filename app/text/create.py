"""What the Create page says."""

from __future__ import annotations

from collections.abc import Mapping

from atelier.adapters.core.byte_size import format_bytes
from atelier.app.text.shared import duration

TITLE = "Train an adapter"
LEAD = "Add a few pictures of one subject or style. After training, you can draw it in any scene."
PICTURES = "Pictures"
PICTURES_HINT = "4 to 30 pictures of the same subject, from different angles"
DROP = "Drop pictures here, or click to choose files"
TIPS = ("One subject per picture, large enough to see.", "Different angles, places and lighting help.",
        "Five good pictures are better than fifty similar ones.",
        "To add a caption, drop a text file with the same name as the picture (.txt, .caption or metadata.jsonl).")
REMOVE = "Remove"
VERDICTS = {"small": "Small", "odd aspect": "Only the middle is used", "blurred": "Looks blurred",
            "near-twin": "Nearly the same as another", "turned": "Turned upright", "converted": "Converted to RGB"}
WEIGHT = "How often it is trained on, compared with the others"
HEAVIER = "Train on it twice as often"
LIGHTER = "Train on it half as often"
TRIGGER_FIRST = "Put the trigger word first"
CLEAR = "Remove all"
TRY_EXAMPLE = "No pictures at hand? Try an example:"
CAPTIONS = "Captions, weights and masks"
TRIGGER_WORD = "trigger word"
CAPTION_OF = "Caption of"
EDIT_PICTURE = "Crop or mask"
MASKED = "Only a part is learned"
CHANGE_ALL = "Change all captions"
CAPTION_EDITS = {"replace": "Replace", "front": "Add in front", "end": "Add at the end"}
FIND = "Text to replace"
NEW_TEXT = "New text"
APPLY = "Change all"
NOTHING_TO_FIND = "Enter the text to replace."
NO_TEXT_TO_ADD = "Enter the text to add."
PROPOSE_CAPTIONS = "Caption these pictures"
ALL_CAPTIONED = "Every picture has a caption already. Empty those that you want to have proposed anew."
NO_CAPTION_CHANGED = "No caption would change: none of them contains this text."
EDITOR = "Crop the picture, or paint on it"
MASK = "What you paint white is"
MASK_HINT = "Without paint, what is learned stays as it was: at first the whole picture."
MASK_MEANINGS = {"learn": "learned, the rest is ignored", "ignore": "ignored, the rest is learned",
                 "whole": "of no effect: the whole picture is learned"}
SAVE_PICTURE = "Save picture"
CLOSE_EDITOR = "Close"
PICTURE_GONE = "This picture is no longer here. Reload the page."
NOTHING_LEFT = "Everything is painted as ignored, so nothing would be learned. Leave a part of the picture free."
WHAT = "What is it?"
WHAT_CHOICES = {"object": "Object", "animal": "Animal", "person": "Person", "style": "Style"}
CLASS_WORD = "Class word: what it is, in one or two common words"
CLASS_WORD_EXAMPLES = {"object": "coffee cup", "animal": "fox", "person": "woman", "style": "watercolour"}
PERSON_NOTE = "Only train on people who have agreed to it."
NAME = "Name"
NAME_HINT = "Also the trigger word: use it in prompts to draw the subject."
USE_NAME = "Use the name instead"
LENGTH = "How long to train"
NO_TIME = "The first training on this machine shows how long it takes."
ESTIMATING = "Estimating how much memory this needs …"
TRAIN = "Start training"
START_ANEW = "Start from nothing instead"
EXPERT = "Expert settings"
FILTER = "Find a setting"
RESET = "Reset to the preset"
EXPORT_RECIPE = "Export settings"
IMPORT_RECIPE = "Import settings"
RECIPE_TOO_LARGE = "This file is larger than any settings file. Choose one that was exported here."
NO_RECIPE = "This file is not text. Choose a settings file (.toml) that was exported here."
EXPERT_GROUPS = {
    "captions": "Captions", "base": "Base model", "adapter": "Adapter", "training": "Training",
    "optimizer": "Optimizer", "loss": "Loss and prior preservation", "checks": "Checks and previews",
    "memory": "Memory and speed",
}
AS_PRESET = "All settings are as in the preset."
NO_PICTURES = "There are no pictures to train on yet. Add at least one; four or more work better."
NO_NAME = "The name is empty. Enter one, such as 'fox'."


def continues_from(name: str) -> str:
    """Shown above the pictures when a training begins with the weights of an adapter.

    >>> continues_from("rex")
    'This training continues “rex”: it begins with its weights.'
    """
    return f"This training continues “{name}”: it begins with its weights."


def too_many_pictures(name: str, most: int) -> str:
    """Shown for each picture beyond the limit."""
    return f"{name} was not added: {most} pictures is the limit."


def caption_too_long(given: int, most: int) -> str:
    """Shown for a caption that nothing could read."""
    return f"This caption has {given} characters, but at most {most} can be used. Shorten it."


def pictures_removed(count: int) -> str:
    """Shown beside the button that brings them back.

    >>> pictures_removed(1), pictures_removed(3)
    ('1 picture removed.', '3 pictures removed.')
    """
    return f"{count} picture{'' if count == 1 else 's'} removed."


def captions_changed(count: int) -> str:
    """Shown beside the button that undoes it.

    >>> captions_changed(1)
    '1 caption changed.'
    """
    return f"{_captions(count)} changed."


def no_caption_model(folder: str) -> str:
    """Shown where no model can propose captions."""
    return f"To have captions proposed, put a BLIP or ViT-GPT2 model with .safetensors weights into {folder}."


def captions_proposed(done: int, count: int) -> str:
    """Shown while a model looks at the pictures.

    >>> captions_proposed(2, 5)
    'Captioning: 2 of 5 pictures are done.'
    """
    return f"Captioning: {done} of {count} pictures are done."


def caption_hint(word: str) -> str:
    """Shown above the captions.

    >>> caption_hint("rex")
    'In captions, {trigger} stands for “rex”, which is added in front where it is missing.'
    """
    return f"In captions, {{trigger}} stands for “{word}”, which is added in front where it is missing."


def picture_edited(name: str) -> str:
    """Shown beside the button that undoes it."""
    return f"{name} was edited."


def reading(left: int) -> str:
    """Shown while dropped files are read.

    >>> reading(1), reading(3)
    ('Reading the pictures: 1 file left.', 'Reading the pictures: 3 files left.')
    """
    return f"Reading the pictures: {left} file{'' if left == 1 else 's'} left."


def no_picture_for(name: str) -> str:
    """Shown for a caption file that was added without its picture."""
    return f"{name} has no picture with the same name here. Add the picture first, then the caption file again."


def token_count(count: int, limit: int) -> str:
    """How long a caption is.

    >>> token_count(12, 75)
    '12 of 75 tokens'
    """
    return f"{count} of {limit} tokens"


def caption_chip(*, unread: bool, cut: bool, missing: bool) -> str:
    """A few words on a caption with a problem; empty for one without.

    >>> caption_chip(unread=True, cut=True, missing=False)
    'Trigger word is cut off'
    """
    if unread:
        return "Trigger word is cut off"
    if missing:
        return "No trigger word in the caption"
    return "Caption is cut off" if cut else ""


def trigger_unread(trigger: str, count: int, limit: int) -> str:
    """Shown when captions have the trigger word where the base model no longer reads."""
    return (f"In {_captions(count)}, “{trigger}” comes after the {limit} tokens that the base model reads, so it "
            "would not be learned there.")


def trigger_missing(trigger: str, count: int) -> str:
    """Shown when captions lack the trigger word."""
    return f"“{trigger}” is missing from {_captions(count)}, so it will not be linked to what they show."


def captions_cut(count: int, limit: int) -> str:
    """Shown when captions are longer than what the base model reads."""
    return (f"The base model reads {limit} tokens; the rest of {_captions(count)} is cut off. Shorten the text if you "
            "can.")


def read_longer(chunks: int) -> str:
    """A button that lets captions be read whole.

    >>> read_longer(2)
    'Read whole captions (2 chunks)'
    """
    return f"Read whole captions ({chunks} chunks)"


def _captions(count: int) -> str:
    return "1 caption" if count == 1 else f"{count} captions"


def picture_count(usable: int, refused: int) -> str:
    """Under the added pictures.

    >>> picture_count(5, 1), picture_count(0, 0)
    ('5 pictures to train on, 1 not used', '')
    """
    if not usable and not refused:
        return ""
    text = f"{usable} picture{'' if usable == 1 else 's'} to train on"
    return f"{text}, {refused} not used" if refused else text


def changed_settings(changes: Mapping[str, object]) -> dict[str, object]:
    """Which Expert settings differ from the preset, in words and by the ids that they have on the page.

    >>> changed_settings({"lora.rank": 4})
    {'text': '1 setting differs from the preset.', 'changed': ['set-lora-rank']}
    """
    count = len(changes)
    text = f"{count} setting{' differs' if count == 1 else 's differ'} from the preset." if count else AS_PRESET
    return {"text": text, "changed": [f"set-{key.replace('.', '-')}" for key in changes]}


def preset_tile(title: str, seconds: float) -> str:
    """A preset with the time it takes, on two lines.

    >>> preset_tile("Quick", 65)
    'Quick\\nabout 65 s'
    """
    return f"{title}\nabout {duration(seconds)}" if seconds else title


def time_needed(seconds: float, runs: int) -> str:
    """How long a training will take.

    >>> time_needed(130, 1), time_needed(130, 3)
    ('About 2 min here, by 1 earlier training.', 'About 2 min here, by 3 earlier trainings.')
    >>> time_needed(130, 0)
    'About 2 min here, by a measured step.'
    """
    if not runs:
        return f"About {duration(seconds)} here, by a measured step."
    return f"About {duration(seconds)} here, by {runs} earlier training{'' if runs == 1 else 's'}."


def memory_needed(needed: int, free: int, *, exactly: bool) -> str:
    """How much memory a run needs, before it starts.

    >>> memory_needed(1_340_000_000, 16_040_000_000, exactly=True)
    'Needs about 1.3 GB of memory; 16 GB is free.'
    """
    about = "about" if exactly else "less than"
    return f"Needs {about} {format_bytes(needed)} of memory; {format_bytes(free)} is free."


def memory_saved(needed: int, free: int, savings: str) -> str:
    """The same where the run fits only with savings.

    >>> memory_saved(9_000_000_000, 4_000_000_000, "the batch size is 1 instead of 4")
    'Needs about 9 GB of memory, but only 4 GB is free. To fit, the batch size is 1 instead of 4.'
    """
    return f"Needs about {format_bytes(needed)} of memory, but only {format_bytes(free)} is free. To fit, {savings}."


def word_with_meaning(word: str) -> str:
    """Why a word is not the best trigger word.

    >>> word_with_meaning("fox")
    '“fox” already means something to the base model. That is fine alone, but in a mix it can disturb other adapters.'
    """
    return (f"“{word}” already means something to the base model. That is fine alone, but in a mix it can disturb "
            "other adapters.")


def use_word(word: str) -> str:
    """A button that offers a better trigger word."""
    return f"Use “{word}” instead: it has no meaning yet"


def trigger_word(word: str) -> str:
    """Shown when the trigger word is not the name."""
    return f"Trigger word: “{word}”"
