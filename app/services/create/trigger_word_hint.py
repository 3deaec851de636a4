"""A hint next to the trigger word: whether it means something to the base model already, and which word does not."""

from __future__ import annotations

import time

from atelier.app.services.engine import Engine
from atelier.app.store.drafts.create_draft import load_draft
from atelier.app.store.home import Home
from atelier.app.store.library import list_adapters
from atelier.app.text import create as words
from atelier.training.base_models.hub import needs_download
from atelier.training.base_models.identify import identify
from atelier.training.config.train_config import EMBEDDED
from atelier.training.measures.trigger_word import MAX_EFFECT, neutral_word

TYPING_PAUSE_SECONDS = 0.6   # a word that is still being typed is not measured


def trigger_word_hint(home: Home, engine: Engine, name: str, trigger: str, base: str) -> dict[str, str]:
    """The hint for a trigger word: ``text``, the ``word`` it offers and the label of that offer; empty without a hint.

    There is none either where a base model would have to be loaded, or where no limit is known: then the run warns.
    """
    word = (trigger or name or "").strip()
    if not word or needs_download(base or EMBEDDED):   # it would ask the network
        return {}
    time.sleep(TYPING_PAUSE_SECONDS)
    draft = load_draft(home)
    if (name, trigger) != (draft.name, draft.changes.get("trigger", "")):
        return {}   # more has been typed, and the next call measures that
    try:
        effect = engine.word_effect(base or EMBEDDED, word)
    except ValueError:
        return {}   # a base model that can't be used, which the page shows elsewhere
    if effect is not None and effect >= MAX_EFFECT:
        taken = {card.trigger.lower() for card in list_adapters(home)}
        neutral = neutral_word(identify(base or EMBEDDED), name or word, taken)
        offer = words.use_word(neutral) if neutral else ""
        return {"text": words.word_with_meaning(word), "word": neutral, "offer": offer}
    return {"text": words.trigger_word(word), "word": "", "offer": words.USE_NAME} if trigger else {}
