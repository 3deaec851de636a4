"""One adapter of several people's, who each trained on pictures of their own: a round of a team.

The next round is a training that continues from the result (``continue_from``); only adapter files travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from atelier.adapters.formats.native import load_adapter
from atelier.adapters.fusion.team import combine_members, within_budget
from atelier.app.services.import_export import merged_info, require_one_family, save_to_library, weights_of
from atelier.app.store.home import Home, HomeError, new_name
from atelier.app.store.library import AdapterCard

MemberCard = tuple[AdapterCard, float | None]   # an adapter and its weight; None: as many as it has pictures


def combine_team(
    home: Home, members: Sequence[MemberCard], name: str, method: str = "stack", *, rank: int | None = None,
    values: int | None = None,
) -> AdapterCard:   # fmt: skip
    """Put one adapter of several members' into the library.

    Args:
        home: its library has the members' adapters and gets the new one.
        members: adapters with their weights.
        name: the new adapter's name.
        method: one of ``fusion.team.TEAM_METHODS``.
        rank: largest rank of ``svd``.
        values: the most values that the new adapter may hold; those that contribute most stay.

    Raises:
        HomeError: the name can't be used, or the adapters belong to different families of base models.
        SettingError, FileError, BaseError: the adapters can't be combined so, or can't be read.
    """
    wanted = new_name(home, name)
    if rank is not None and method != "svd":
        raise HomeError(f"--rank is the rank of the method svd, and {method} has its own. Use --method svd.")
    parts = [(card, _weight(members, card) if weight is None else weight) for card, weight in members]
    require_one_family(parts)
    loaded = [(load_adapter(card.path), weight) for card, weight in parts]
    combined = combine_members(loaded, weights_of(parts), method, rank)
    if values is not None:
        combined = within_budget(combined, values)
    whole = sum(weight for _, weight in parts)
    info = merged_info([(card, weight / whole) for card, weight in parts])
    pictures = sum(card.pictures for card, _ in parts) or None
    return save_to_library(home, wanted, combined, replace(info, method=f"team: {method}", pictures=pictures))


def _weight(members: Sequence[MemberCard], card: AdapterCard) -> float:
    """The number of an adapter's pictures; 1 for all where that of one is not known."""
    return float(card.pictures) if all(other.pictures for other, _ in members) else 1.0
