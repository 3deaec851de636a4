"""Every word of the Compress page; sentences with a value in them: compress_phrases.py."""

from __future__ import annotations

COMPRESS_TITLE = "Make it smaller"
COMPRESS_LEAD = "Nearly the same pictures, from a fraction of the size. It learns from its own drawings alone."
COMPRESS_ADAPTERS = "Adapters that go into it"
COMPRESS_ADAPTERS_HINT = "Merged for good. Others can still be added to the result, with sliders as usual."
COMPRESS_STRENGTH = "Their strength"
COMPRESS_SIZE = "How small"
COMPRESS_PRESETS = {
    "w8a8": "8 bits: hard to tell apart", "w4a8": "4 bits: small and near", "w2a8": "2 bits: smallest, rough",
    "w4a4": "4 bits throughout", "w8": "8 bits, weights only", "w4": "4 bits, weights only",
}
COMPRESS_NOTES = {
    "w8a8": "Weights and what flows between layers in 8 bits.",
    "w4a8": "Weights in 4 bits, what flows between layers in 8.",
    "w2a8": "Weights in 2 bits, what flows between layers in 8. Look at the pairs before you keep it.",
    "w4a4": "For small files, not for speed: data-centre cards of today don't multiply 4-bit numbers.",
    "w8": "What flows between layers stays as it is: nothing to calibrate, and no whole-number arithmetic.",
    "w4": "What flows between layers stays as it is: nothing to calibrate, and no whole-number arithmetic.",
}
COMPRESS_HOW = "How"
COMPRESS_HOWS = {"learn": "Learn to be small", "quick": "Measure only, in a minute"}
COMPRESS_PROMPTS = "What you like to draw"
COMPRESS_PROMPTS_HINT = "one prompt a line; it learns on these besides its own list"
COMPRESS_NAME = "Name of the new base model"
COMPRESS_NOW = "Compress"
COMPRESS_NOTHING = "No base model has been compressed yet."
NOW_SIZE, THEN_SIZE, TAKES, NEEDS = "Now", "Then", "Takes", "Memory"
AFTER_FIRST = "known after the first steps"
AT_ONCE_QUICK = "about a minute"
ERROR_BY_TIMESTEP, ERROR_BY_LAYER = "Error by timestep", "Where it hurts most"
ERROR_NOTE = "Squared difference to the base model's answer, relative to it, on a drawing it did not learn from."
LAYER_NOTE = "Each layer's own output, relative."
BEFORE_LEARNING, AFTER_LEARNING = "measured only", "after learning"
SAME_SEED = "Same prompt, same seed"
DRAG = "Drag: left the base model, right the compressed one"
KEEP_BASE, DISCARD_BASE = "Keep it", "Discard"
BASE_KEPT = "Kept. Choose it as the base model in Studio or Create."
BASE_DISCARDED = "Discarded."
TIME_PER_PICTURE = "A picture"
EXECUTION = "Computes in"
ALL_COMPRESSIONS = "All compressions"
NOISE_END, PICTURE_END = "noise", "picture"
