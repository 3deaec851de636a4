"""The only list of adapter kinds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from atelier.adapters.core.base import Adapter, AdapterSet, Spec
from atelier.adapters.core.settings import SettingError
from atelier.adapters.kinds.break_for_make import BreakForMake
from atelier.adapters.kinds.comp_lora import CompLora
from atelier.adapters.kinds.dora import Dora
from atelier.adapters.kinds.dylora import Dylora
from atelier.adapters.kinds.full import Full
from atelier.adapters.kinds.loha import Loha
from atelier.adapters.kinds.lokr import Lokr
from atelier.adapters.kinds.lora import Lora, RankSettings
from atelier.adapters.kinds.loretta import Loretta
from atelier.adapters.kinds.lorta import Lorta
from atelier.adapters.kinds.low_rank.adalora import Adalora
from atelier.adapters.kinds.low_rank.deep_lora import DeepLora
from atelier.adapters.kinds.low_rank.flylora import Flylora
from atelier.adapters.kinds.low_rank.hydra import Hydra
from atelier.adapters.kinds.low_rank.loldu import Loldu
from atelier.adapters.kinds.low_rank.lora_xs import LoraXs
from atelier.adapters.kinds.low_rank.mosa import Mosa
from atelier.adapters.kinds.low_rank.t_lora import TLora
from atelier.adapters.kinds.melora import Melora
from atelier.adapters.kinds.miss import Miss
from atelier.adapters.kinds.oft import Oft
from atelier.adapters.kinds.paca import Paca, S2ft
from atelier.adapters.kinds.randlora import Randlora
from atelier.adapters.kinds.salt import Salt
from atelier.adapters.kinds.sparse.dynamic_sparse import DynamicSparse
from atelier.adapters.kinds.sparse.mask_tuning import MaskTuning
from atelier.adapters.kinds.sparse.sara import Sara
from atelier.adapters.kinds.sparse.shira import Shira
from atelier.adapters.kinds.sparse.snell import Snell
from atelier.adapters.kinds.sparse.spiel import Spiel
from atelier.adapters.kinds.sparse.waveft import Waveft, Wht
from atelier.adapters.kinds.structured import Structured
from atelier.adapters.kinds.svdiff import Soda, Svdiff
from atelier.adapters.kinds.tlora import Tlora
from atelier.adapters.kinds.wara import Wara

KINDS: dict[str, type[Adapter]] = {
    cls.kind: cls
    for cls in (
        Lora, Dora, Lokr, Loha, Lorta, Loretta, Tlora, Wara, Waveft, Wht, Shira, Sara, Svdiff, Soda, Loldu, LoraXs,
        Miss, Paca, S2ft, Hydra, Dylora, Randlora, Oft, TLora, DeepLora, CompLora, Melora, Flylora, Salt, Structured,
        Adalora, Mosa, Spiel, DynamicSparse, MaskTuning, Snell, Full, BreakForMake,
    )
}


def get_kind(name: str) -> type[Adapter]:
    """Look a kind up by its name.

    Raises:
        SettingError: there is no such kind; the message lists those that exist.
    """
    if name not in KINDS:
        raise SettingError(f"There is no adapter kind {name!r}. The kinds are: {', '.join(sorted(KINDS))}.")
    return KINDS[name]


def create_adapters(
    kind: str, settings: Mapping[str, Any], specs: Iterable[Spec], ranks: Mapping[str, int] | None = None
) -> AdapterSet:
    """Make a fresh adapter set: one new adapter of ``kind`` for each target module.

    Kinds that start from the base model's weights, inputs or gradients must be initialized before they are trained
    (:func:`~atelier.adapters.initialization.initialize.initialize`), unless a file fills them.

    Args:
        kind: the kind's name.
        settings: its settings, as plain values.
        specs: the target modules.
        ranks: by module name, where the rank is not that of the settings; modules with rank 0 get no adapter.

    Raises:
        SettingError: an unknown kind, settings the kind does not have, or ranks for a kind that shares its rank.
    """
    cls, specs = get_kind(kind), list(specs)
    checked = cls.settings.from_dict(settings)
    if not ranks:
        adapters, shared = cls.create_all(specs, checked)
        return AdapterSet(cls, checked, adapters, shared=shared)
    if not isinstance(checked, RankSettings) or cls.create_all(specs[:1], checked)[1]:
        raise SettingError(f"{cls.title} can't have a different rank for each layer. Choose another kind, or one rank.")
    chosen = [(spec, ranks.get(spec.name, checked.rank)) for spec in specs]
    own = [cls(spec, checked.with_rank(rank)) for spec, rank in chosen if rank]
    return AdapterSet(cls, checked, own, ranks=ranks)
