"""What the command line prints about adapters and base models: tables for people, plain values for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from atelier.adapters.core.byte_size import format_bytes
from atelier.adapters.core.family import family_title
from atelier.adapters.core.parse import parse_toml
from atelier.adapters.formats.native import read_header
from atelier.app.cli.tables import columns
from atelier.app.store.library import AdapterCard
from atelier.app.store.models import ModelEntry
from atelier.app.store.textual_inversions import TextualInversionCard
from atelier.app.text.mix import NOTHING_FOUND

if TYPE_CHECKING:   # importing it loads torch, which a list of adapters does not need
    from atelier.app.services.known_models import KnownModel, MemoryNeeds
    from atelier.app.store.search import Proposal

_HEADINGS = ("NAME", "KIND", "TRIGGER", "BASE", "SIZE", "MADE")


def adapter_table(cards: Sequence[AdapterCard]) -> str:
    """The library as a table, one adapter a line."""
    if not cards:
        return "No adapters yet. Train your first one: atelier train PICTURES --name NAME"
    rows = [
        (card.name, card.kind, card.trigger, card.title, format_bytes(card.bytes),
         f"{card.created.astimezone():%Y-%m-%d %H:%M}")
        for card in cards
    ]   # fmt: skip
    return columns([_HEADINGS, *rows])


def inversion_table(cards: Sequence[TextualInversionCard]) -> str:
    """The textual inversions as a table, one word a line."""
    rows = [(card.name, card.token, family_title(card.family), str(card.vectors), format_bytes(card.bytes))
            for card in cards]   # fmt: skip
    return columns([("TEXTUAL INVERSION", "WORD", "FOR", "VECTORS", "SIZE"), *rows])


def inversion_values(card: TextualInversionCard) -> dict[str, Any]:
    """A textual inversion in plain values, for ``--json``."""
    names = ("name", "token", "family", "vectors", "bytes")
    return {"kind": "textual inversion", **{name: getattr(card, name) for name in names}, "path": str(card.path)}


def adapter_values(card: AdapterCard) -> dict[str, Any]:
    """An adapter in plain values, for ``--json``."""
    names = ("name", "kind", "trigger", "subject", "base", "title", "family", "bytes", "pictures")
    values = {name: getattr(card, name) for name in names}
    return {**values, "path": str(card.path), "created": card.created.isoformat()}


def adapter_details(card: AdapterCard) -> dict[str, Any]:
    """An adapter in plain values, with its settings and the configuration it was trained with."""
    header = read_header(card.path)
    try:
        recipe = parse_toml(header.info.recipe)
    except ValueError:
        recipe = {}
    return {
        **adapter_values(card), "layers": len(header.specs), "best_step": header.info.best_step,
        "settings": header.settings, "recipe": recipe, "notes": " ".join(card.notes),
    }   # fmt: skip


def model_table(models: Sequence[ModelEntry]) -> str:
    """Base models as a table; below it those that can't be used, with the reason."""
    good = [(str(m.path), m.info.kind, f"{m.info.resolution} px", m.info.precision, format_bytes(m.info.bytes))
            for m in models if m.info]   # fmt: skip
    refused = [f"! {model.reason}" for model in models if not model.info]
    table = [columns([("PATH", "MODEL", "MADE FOR", "PRECISION", "SIZE"), *good])] if good else []
    return "\n".join([*table, *refused]) or "No base models found in this folder."


def model_values(model: ModelEntry, cards: Sequence[AdapterCard]) -> dict[str, Any]:
    """A base model in plain values, with the names of the adapters that fit it."""
    info = model.info
    if info is None:
        return {"path": str(model.path), "usable": False, "reason": model.reason}
    names = ("family", "kind", "prediction_type", "resolution", "precision", "bytes")
    facts = {name: getattr(info, name) for name in names}
    if info.few_steps:
        facts["distilled"] = f"{info.few_steps.method}: drawn with {info.few_steps.settings}"
    if info.assumed:
        facts["assumed"] = info.assumed
    return {"path": str(model.path), "usable": True, **facts, "adapters": model.fitting_adapters(cards)}


def known_table(known: Sequence[tuple[KnownModel, MemoryNeeds]]) -> str:
    """Base models that can be downloaded, and what they need of the memory here."""
    rows = [(model.id, family_title(model.family), format_bytes(model.bytes), _need(needs.draw, needs.draw_saves),
             _need(needs.train, needs.train_saves), model.licence) for model, needs in known]   # fmt: skip
    table = columns([("ID", "MODEL", "DOWNLOAD", "MEMORY TO DRAW", "TO TRAIN", "LICENCE"), *rows])
    saves = any(needs.draw_saves or needs.train_saves for _, needs in known)
    return table + ("\n* fits here with memory savings" if saves else "")


def _need(count: int, saves: bool) -> str:
    return f"{format_bytes(count)}{' *' if saves else ''}" if count else "too much"


def known_values(known: Sequence[tuple[KnownModel, MemoryNeeds]]) -> list[dict[str, Any]]:
    """The same in plain values, for ``--json``."""
    return [{**asdict(model), "memory": asdict(needs)} for model, needs in known]


def proposal_table(found: Sequence[Proposal]) -> str:
    """Adapters that fit a prompt, the best first."""
    rows = [(proposal.name, f"{proposal.score:.2f}", proposal.reason) for proposal in found]
    return columns([("NAME", "FIT", "WHY"), *rows]) if rows else NOTHING_FOUND


def proposal_values(proposal: Proposal) -> dict[str, Any]:
    """A proposal in plain values, for ``--json``."""
    return {"name": proposal.name, "score": round(proposal.score, 4), "reason": proposal.reason,
            "drew": [str(path) for path in proposal.pictures]}   # fmt: skip
