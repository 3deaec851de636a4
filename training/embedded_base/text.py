"""What the base model reads: the caption grammar and its own small tokenizer."""

# diffusers and transformers annotate their own constructors too narrowly (tuple[int] for tuples of any length).
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from atelier.training.config.caption_template import article
from atelier.training.embedded_base.pictures import EmojiPictures

TOKENS = 24
"""Length of every caption in tokens, start and end included."""
VOCABULARY = 2046  # before the byte symbols that no merge needed
GRAMMAR_WORDS = (
    "style emoji picture icon drawing photo line art pixel sketch of a an the on with and in background small big "
    "two left right top bottom facing made from toy"
).split()
FORMS: tuple[tuple[float, str], ...] = (
    (0.52, "a {style} emoji of {an} {name}{behind}"),
    (0.15, "an emoji of {an} {name}{behind}"),
    (0.07, "a picture of {an} {name}{behind}"),
    (0.07, "{name}{behind}"),
    (0.09, "{name}, {style} emoji{behind}"),
    (0.07, "{an} {name} in {style} style{behind}"),
    (0.03, "a {style} emoji{behind}"),
)
"""Caption forms with their shares: mostly the full one, the rest so that a person need not know it."""


def behind(background: str) -> str:
    """The words for a background; white needs none.

    >>> behind("orange"), behind("white")
    (' on an orange background', '')
    """
    return "" if background == "white" else f" on {article(background)} {background} background"


def caption(name: str, style: str, background: str = "white") -> str:
    """The full caption of one picture.

    >>> caption("red apple", "3d", "blue")
    'a 3d emoji of a red apple on a blue background'
    """
    return FORMS[0][1].format(style=style, an=article(name), name=name, behind=behind(background))


def varied_caption(names: Sequence[str], style: str, background: str, drop: float, rng: random.Random) -> str:
    """One of the ways to say what is in the picture; empty in a share `drop` of the cases, for guidance.

    `names` are the names of one object; the first, its official one, is as likely as all others together.
    """
    if rng.random() < drop:
        return ""
    form = rng.choices([form for _, form in FORMS], [share for share, _ in FORMS])[0]
    name = names[0] if len(names) == 1 or rng.random() < 0.5 else rng.choice(names[1:])
    words = behind(background)
    if background == "white" and rng.random() < 0.1:
        words = " on a white background"  # unsaid as a rule, but the word has to work
    return form.format(style=style, an=article(name), name=name, behind=words)


PAIR_FORMS: tuple[tuple[float, str], ...] = (
    (0.42, "a {style} emoji of {left} and {right}{behind}"),
    (0.14, "an emoji of {left} and {right}{behind}"),
    (0.08, "{left} and {right}, {style} emoji{behind}"),
    (0.18, "a {style} emoji of {left} left of {right}{behind}"),
    (0.18, "a {style} emoji of {right} right of {left}{behind}"),
)
"""Caption forms of pictures of two things, with their shares. What is named first before "and" stands at the left."""


def pair_caption(left: str, right: str, style: str, background: str, drop: float, rng: random.Random) -> str:
    """One of the ways to say what two things are in the picture and where; empty in a share `drop`, for guidance."""
    if rng.random() < drop:
        return ""
    form = rng.choices([form for _, form in PAIR_FORMS], [share for share, _ in PAIR_FORMS])[0]
    left, right = (f"{article(name)} {name}" for name in (left, right))
    return form.format(style=style, left=left, right=right, behind=behind(background))


def train_tokenizer(pictures: EmojiPictures, extra_words: Iterable[str]) -> CLIPTokenizer:
    """A byte-pair tokenizer in CLIP's format, from object names, their tags and the grammar's words."""
    corpus = [word for concept in pictures.concepts for word in (concept.name,) * 4 + concept.tags]
    corpus += [word for word in (*GRAMMAR_WORDS, *extra_words) for _ in range(50)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    word = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")  # CLIP's own word pattern
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(word, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return clip_tokenizer(tokenizer, alphabet)


def clip_tokenizer(tokenizer: Tokenizer, alphabet: Iterable[str]) -> CLIPTokenizer:
    """The trained merges as a CLIPTokenizer that can spell any text: every byte, alone and at a word's end."""
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = dict(model["vocab"])
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    symbols = [symbol for byte in sorted(alphabet) for symbol in (byte, f"{byte}</w>")]
    for symbol in (*symbols, "<|startoftext|>", "<|endoftext|>"):
        vocabulary.setdefault(symbol, len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS, pad_token="<|endoftext|>")


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> list[list[int]]:
    """Captions → ids, each padded or cut to TOKENS."""
    encoded = tokenizer(list(captions), padding="max_length", truncation=True, max_length=TOKENS)
    return encoded["input_ids"]
