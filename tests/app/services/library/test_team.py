"""`atelier team`: members' adapters of the library become one, by the numbers of their pictures."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.low_rank import lora_from_factors
from atelier.adapters.formats.native import load_adapter, read_header, save_adapter
from atelier.app.cli.main import main
from atelier.app.store.home import Home
from atelier.app.store.library import find_adapter

SPEC = Spec("unet.down_blocks.0.attentions.0.to_q", (6, 4))


@pytest.fixture
def members(home: Home) -> dict[str, torch.Tensor]:
    """Two adapters, of 6 and 2 pictures."""
    home.adapters.mkdir(parents=True, exist_ok=True)
    dense = {}
    for name, pictures in (("anna", 6), ("ben", 2)):
        up, down = torch.randn(6, 2), torch.randn(2, 4)
        dense[name] = up @ down
        save_adapter(home.adapters / f"{name}.safetensors", lora_from_factors({SPEC: (up, down)}), {
            "atelier.family": "sd1", "atelier.pictures": str(pictures), "atelier.trigger": "rex"})   # fmt: skip
    return dense


def update(home: Home, name: str) -> torch.Tensor:
    [adapter] = load_adapter(find_adapter(home, name).path)
    return adapter.delta(torch.zeros(SPEC.shape)).detach()


def test_members_count_as_their_pictures_unless_a_weight_is_given(home, members, capsys):
    assert main(["team", "anna", "ben", "--name", "ours", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "ours"
    assert_close(update(home, "ours"), 0.75 * members["anna"] + 0.25 * members["ben"])
    info = read_header(find_adapter(home, "ours").path).info
    assert (info.merged_from, info.pictures, info.trigger, info.method) == (
        "anna (0.75), ben (0.25)", 8, "rex", "team: stack")   # fmt: skip
    assert main(["team", "anna=1", "ben=1", "--name", "equal"]) == 0
    assert_close(update(home, "equal"), 0.5 * members["anna"] + 0.5 * members["ben"])


def test_a_budget_and_a_rank_are_kept(home, members, capsys):
    assert main(["team", "anna", "ben", "--name", "small", "--values", "10"]) == 0
    assert torch.linalg.matrix_rank(update(home, "small")) == 1
    assert main(["team", "anna", "ben", "--name", "three", "--method", "svd", "--rank", "3"]) == 0
    assert torch.linalg.matrix_rank(update(home, "three")) == 3
    capsys.readouterr()
    assert main(["team", "anna", "ben", "--name", "none", "--rank", "3"]) == 1
    assert "Use --method svd" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["team", "anna=0", "--name", "none"])
    assert "rex-anna=12" in capsys.readouterr().err
