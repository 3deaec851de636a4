"""What the Studio page says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from atelier.adapters.core.byte_size import format_bytes

TITLE = "Studio"
LEAD = "Describe a picture, and set how strongly each adapter acts."
TRIGGER_WORDS = "Trigger words:"
ADAPTERS = "Adapters"
FIND_ADAPTER = "Search names, trigger words and tags"
STARRED = "Starred"
NO_ADAPTER_FITS = "No adapter fits this search."
NEW_SEED = "New"
KEEP_SEED = "Keep seed"
COUNT = "Pictures"
DRAW = "Draw"
LIVE = "Redraw while a slider moves"
MORE = "Size, steps and more"
OPEN = "Drop a picture here to use its settings"
OPENED = "The picture's settings are filled in."
EMPTY = "Your pictures appear here."
UNFINISHED = "Unfinished picture"
STOP_DRAWING = "Stop"
STOPPED = "Stopped."
WITHOUT = "Hold to see without adapters"
PIN_HINT = "Pin this picture to compare the next ones with it"
COMPARED = "Pinned picture (left) against the newest one (right)"
UNPIN = "Stop comparing"
GRID = "Draw a grid around this picture"
START_HERE = "Start from this picture"
START = "Start from a picture"
START_HINT = ("Drop a picture, or use one that was drawn. Paint over what should be drawn anew; unpainted, all of it "
              "changes.")
CHANGE = "How much may change"
CHANGE_HINT = "Low keeps the picture, 1 keeps only what is not painted over."

DETAILS = "Blocks, steps and regions of the adapters"
BLOCKS_HINT = "How strongly each adapter acts in each block of the UNet. 1 is as trained."
RESET_BLOCKS = "All at 1"
BLOCK_VIEW_HINT = "What each block does to this prompt: the same picture and seed, block by block."
VIEW_WITHOUT = "Leave each out"
VIEW_ALONE = "Each alone"
ALL_BLOCKS = "All blocks"
WITHOUT_BLOCKS = "Without the adapter"
RECENT_PROMPTS = "Recent prompts and choices"
NO_RECENT_PROMPTS = "Prompts that you draw are offered here. They stay in your home folder."
FORGET_PROMPTS = "Forget these prompts"
CHOSEN = "With this seed:"
PROMPT_HELP = ("`{red|blue}` chooses one for each picture, `__colour__` a line of the file wildcards/colour.txt in the "
               "home folder. `<lora:name:0.8>` adds an adapter, and `(word:1.2)` counts more.")


def token_count(tokens: int, room: int, ends: Sequence[str], is_cut: bool) -> str:
    """How long a prompt is.

    >>> token_count(18, 75, [], False)
    '18 of 75 tokens'
    >>> token_count(92, 75, ["lake in the snow"], False)
    '92 tokens, read in chunks of 75. The first ends after “… lake in the snow”.'
    >>> token_count(92, 75, ["lake in the snow"], True)
    'Only the first 75 of 92 tokens are read, up to “… lake in the snow”.'
    """
    if not ends:
        return f"{tokens} of {room} tokens"
    if is_cut:
        return f"Only the first {room} of {tokens} tokens are read, up to “… {ends[0]}”."
    others = "".join(f", the next after “… {end}”" for end in ends[1:4])
    return f"{tokens} tokens, read in chunks of {room}. The first ends after “… {ends[0]}”{others}."


def progress(done: int, of: int) -> str:
    """Shown while drawing.

    >>> progress(0, 20), progress(3, 20)
    ('Getting ready', 'Step 3 of 20')
    """
    return f"Step {done} of {of}" if done else "Getting ready"


def few_steps(name: str, sampler: str, steps: int, guidance: float) -> str:
    """Shown when an adapter or the base model decides the sampler, and with it steps and guidance.

    >>> few_steps("lcm-lora", "LCM", 8, 1.5)
    'lcm-lora needs few steps: drawn with the LCM sampler, 8 steps, guidance 1.5. Choose a sampler to change this.'
    """
    return (f"{name} needs few steps: drawn with the {sampler} sampler, {steps} steps, guidance {guidance:g}. Choose "
            "a sampler to change this.")


def proposed_strength(low: float, high: float) -> str:
    """Below the slider of an adapter that was measured.

    >>> proposed_strength(0.5, 1.75)
    'Works at 0.5 to 1.75.'
    """
    return f"Works at {low:g} to {high:g}."


def more_adapters(count: int) -> str:
    """Shown below the adapters when there are more.

    >>> more_adapters(9976)
    '9,976 more: search for one.'
    """
    return f"{count:,} more: search for one."


def too_many(name: str) -> str:
    """Shown when a picture was drawn with more adapters than the page has sliders."""
    return f"{name} was left out: the page has no more sliders."


def other_family_word(token: str, family: str) -> str:
    """Shown when a prompt has the word of a textual inversion for other base models.

    >>> other_family_word("<fox>", "Stable Diffusion XL")
    'The textual inversion <fox> is for Stable Diffusion XL, so <fox> is read as plain text.'
    """
    return f"The textual inversion {token} is for {family}, so {token} is read as plain text."


def no_wildcard(name: str, folder: str, known: Sequence[str]) -> str:
    """A prompt names a file of choices that is not there.

    >>> no_wildcard("color", "wildcards", ["colour"])
    'There is no wildcard __color__. Add the file color.txt to wildcards, one choice a line. There are: colour.'
    """
    return (f"There is no wildcard __{name}__. Add the file {name}.txt to {folder}, one choice a line. There are: "
            f"{', '.join(known[:10]) or 'none yet'}.")


def wildcard_name(name: str) -> str:
    """A prompt names a file of choices in a way that no file is named."""
    return (f"{name[:80]!r} can't be the name of a wildcard. Use letters, digits, - and _, and / between a folder and "
            "a file. To type two underscores, write \\__ for them.")


def wildcard_unusable(name: str, why: str) -> str:
    """A file of choices that can't be used."""
    return f"The wildcard {name[:80]}.txt {why}. Write one choice on each line."


def wildcards_too_deep(most: int) -> str:
    """Choices that never come to an end."""
    return (f"The choices of this prompt contain each other more than {most} times. A wildcard may contain itself: "
            "remove its name from its own file.")


def wildcards_too_long(most: int) -> str:
    """Choices that come to far too long a text."""
    return f"The choices of this prompt come to more than {most:,} characters. Use shorter or fewer ones."


def no_block(name: str, block: str, known: Sequence[str]) -> str:
    """A strength for a block that an adapter does not change.

    >>> no_block("rex", "midd", ["mid", "up.0.0"])
    "rex does not change a block 'midd'. It changes: mid, up.0.0."
    """
    return f"{name} does not change a block {block!r:.60}. It changes: {', '.join(known)}."


def no_blocks_to_show(name: str) -> str:
    """Asked to show the blocks of an adapter that does nothing."""
    return f"{name or 'No adapter'} is not in this drawing, or its strength is 0. Add an adapter with another strength."


def block_title(block: str) -> str:
    """A block, for people.

    >>> block_title("down.1.0"), block_title("up.0.sampler"), block_title("mid"), block_title("text")
    ('Down 1.0', 'Up 0 sampler', 'Middle', 'Text encoder')
    """
    names = {"mid": "Middle", "text": "Text encoder", "outer": "Outside the blocks"}
    return names.get(block) or block.replace(".", " ", 1).replace(".sampler", " sampler").capitalize()


def block_difference(share: float) -> str:
    """How much a tile differs from the first one.

    >>> block_difference(0.1234)
    'changes 12.3 %'
    """
    return f"changes {100 * share:.1f} %"


def memory_line(needed: int, available: int, notice: str) -> str:
    """What a drawing needs of the memory, in bytes; 0 where it is so little that nobody has counted.

    >>> memory_line(0, 8_000_000_000, "")
    'Fits into the memory: 8 GB are free.'
    >>> memory_line(3_000_000_000, 8_000_000_000, "")
    'Needs about 3 GB of memory, and 8 GB are free.'
    """
    if notice:
        return notice
    free = f"{format_bytes(available)} are free"
    return f"Needs about {format_bytes(needed)} of memory, and {free}." if needed else f"Fits into the memory: {free}."


START_PICTURE = "the picture that it started from"


def base_model(base: str) -> str:
    """A base model that is gone, in the list of what is missing.

    >>> base_model("/models/dream-v8.safetensors")
    'the base model dream-v8.safetensors'
    """
    return f"the base model {PurePath(base).name}"


def missing(names: Sequence[str]) -> str:
    """Shown when a picture was drawn with something that is gone."""
    return f"No longer in your library: {', '.join(names)}. Drawn again, the picture will look different."


def plain_region_prompt(prompt: str) -> str:
    """A region's prompt has choices or names an adapter."""
    return (f"The prompt of a region, {prompt!r}, can't have choices or name adapters. Write choices into the prompt "
            "of the whole picture, and paint a region for the adapter.")   # fmt: skip


def too_many_regions(most: int) -> str:
    """One more part of the picture is to have a prompt."""
    return f"At most {most} parts of a picture can have prompts of their own."
