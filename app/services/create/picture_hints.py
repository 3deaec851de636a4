"""What the Create page says about the pictures of the draft: a few words on each, and sentences on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from atelier.adapters.core.family import EMBEDDED_FAMILY
from atelier.app.store.drafts.create_draft import Draft, DraftPicture
from atelier.app.store.drafts.draft_captions import split_trigger
from atelier.app.text import create as words
from atelier.training.base_models.base_info import BaseError, BaseInfo
from atelier.training.base_models.identify import identify
from atelier.training.base_models.tokenizers import load_tokenizers
from atelier.training.config.train_config import EMBEDDED, MAX_CHUNKS
from atelier.training.data.caption_tokens import CaptionTokens, measure_caption, with_trigger_first
from atelier.training.data.captions import Captioner
from atelier.training.data.picture_check import photograph_warning, verdicts


@dataclass(frozen=True, slots=True)
class PictureHints:
    """Verdicts on the pictures and their captions."""

    chips: dict[str, list[str]] = field(default_factory=dict)    # by the picture's id, a few words each
    details: dict[str, list[str]] = field(default_factory=dict)  # likewise, whole sentences
    captions: dict[str, str] = field(default_factory=dict)       # likewise, the caption that is trained with
    tokens: dict[str, str] = field(default_factory=dict)         # likewise, its length
    sentences: list[str] = field(default_factory=list)           # on all of them
    chunks: int = 0                # that captions need, where more can be read; 0: nothing to offer
    trigger_first: bool = False    # whether to offer that captions begin with the trigger word


def picture_hints(draft: Draft) -> PictureHints:
    """Judge the usable pictures for the base model, words and settings of the draft; nothing is decoded."""
    try:
        info = identify(draft.changes.get("base") or EMBEDDED)
    except BaseError:
        return PictureHints()   # a base model that can't be used, which the page shows elsewhere
    hints = PictureHints()
    _judge_pixels(hints, draft, info)
    tokenizers = load_tokenizers(info)
    if not tokenizers:
        return hints
    captioner = _captioner(draft, info)
    trigger, measured = captioner.trigger, {}
    for picture in draft.usable:
        caption, tokens = _measure(tokenizers, captioner.caption(picture.caption), captioner, draft)
        measured[picture.id] = tokens
        hints.captions[picture.id], hints.tokens[picture.id] = caption, words.token_count(tokens.count, tokens.limit)
        if chip := words.caption_chip(unread=tokens.trigger_is_cut, cut=tokens.is_cut,
                                      missing=bool(trigger) and not tokens.trigger_end):   # fmt: skip
            hints.chips[picture.id].append(chip)
    return _with_cures(hints, measured, trigger, int(draft.changes.get("caption_chunks") or 1))


def draft_captioner(draft: Draft) -> Captioner:
    """What fills the captions of the draft; its template is that of the base model, or of the settings."""
    try:
        info = identify(draft.changes.get("base") or EMBEDDED)
    except BaseError:
        info = identify(EMBEDDED)
    return _captioner(draft, info)


def _captioner(draft: Draft, info: BaseInfo) -> Captioner:
    return Captioner(trigger=str(draft.changes.get("trigger") or draft.name).strip(),
                     subject=draft.subject.strip() or words.WHAT_CHOICES[draft.what].lower(),
                     template=draft.changes.get("caption") or info.caption)   # fmt: skip


def _judge_pixels(hints: PictureHints, draft: Draft, info: BaseInfo) -> None:
    names = {picture.id: picture.name for picture in draft.usable}
    resolution = max(int(draft.changes.get("resolution") or info.resolution), info.size_multiple)
    for picture in draft.usable:
        hints.chips[picture.id], hints.details[picture.id] = [], []
        if picture.facts is not None:
            found = verdicts(picture.name, picture.facts, names.get(picture.twin, ""), resolution, info.size_multiple)
            hints.chips[picture.id] = [words.VERDICTS[verdict.kind] for verdict in found]
            hints.details[picture.id] = [verdict.sentence for verdict in found]
    facts = [picture.facts for picture in draft.usable if picture.facts is not None]
    hints.sentences.extend(filter(None, [photograph_warning(facts, info.family == EMBEDDED_FAMILY.name)]))


def _measure(
    tokenizers: Sequence[Any], caption: str, captioner: Captioner, draft: Draft
) -> tuple[str, CaptionTokens]:
    chunks = int(draft.changes.get("caption_chunks") or 1)
    tokens = measure_caption(tokenizers, caption, captioner, chunks)
    if draft.changes.get("trigger_first"):
        caption = with_trigger_first(caption, captioner, tokens)
        tokens = measure_caption(tokenizers, caption, captioner, chunks)
    return caption, tokens


def _with_cures(hints: PictureHints, measured: dict[str, CaptionTokens], trigger: str, chunks: int) -> PictureHints:
    unread = [tokens for tokens in measured.values() if tokens.trigger_is_cut]
    missing = [tokens for tokens in measured.values() if trigger and not tokens.trigger_end]
    cut = [tokens for tokens in measured.values() if tokens.is_cut]
    if unread:
        hints.sentences.append(words.trigger_unread(trigger, len(unread), unread[0].limit))
    if missing:
        hints.sentences.append(words.trigger_missing(trigger, len(missing)))
    if cut:
        hints.sentences.append(words.captions_cut(len(cut), cut[0].limit))
    needed = max((tokens.chunks for tokens in cut), default=0)
    offered = needed if chunks < needed <= MAX_CHUNKS else 0
    return replace(hints, chunks=offered, trigger_first=bool(unread or missing))


def picture_tiles(draft: Draft, hints: PictureHints) -> list[dict[str, object]]:
    """The usable pictures as the page shows them."""
    return [_tile(picture, hints) for picture in draft.usable]


def _tile(picture: DraftPicture, hints: PictureHints) -> dict[str, object]:
    sentences = [*hints.details.get(picture.id, []), *filter(None, [picture.note])]
    starts, text = split_trigger(picture.caption)
    return {
        "id": picture.id, "name": picture.name, "thumb": picture.thumb, "weight": f"{picture.weight:g}",
        "caption": hints.captions.get(picture.id) or picture.caption or picture.name, "text": text,
        "starts": starts, "tokens": hints.tokens.get(picture.id, ""), "chips": hints.chips.get(picture.id, []),
        "masked": bool(picture.mask),
        "details": " ".join(sentences), "heavier": f"{picture.id} {min(picture.weight * 2, 64):g}",
        "lighter": f"{picture.id} {max(picture.weight / 2, 1 / 64):g}",
    }   # fmt: skip
