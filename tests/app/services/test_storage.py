"""What a clean-up frees, and that it takes nothing that a person made."""

from __future__ import annotations

from pathlib import Path

import pytest

from atelier.app.jobs.jobs import new_run
from atelier.app.services.settings.storage import clean_up, list_storage
from atelier.app.store.home import Home, HomeError, open_home
from atelier.training.config.events import Failed, Finished
from atelier.training.config.train_config import TrainConfig


@pytest.fixture
def home(own_home: Path) -> Home:
    home = open_home(own_home)
    put(home.adapters / "rex.safetensors", 1000)
    put(home.gallery / "a.png", 300)
    put(home.gallery / ".thumbs" / "a.webp", 20)
    put(home.trash / "gallery" / "old.png", 500)
    put(home.state / "exports" / "zip" / "some.zip", 70)
    return home


def put(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def sizes(home: Home) -> dict[str, tuple[int, int]]:
    return {entry.kind: (entry.bytes, entry.removable) for entry in list_storage(home)}


def test_each_kind_has_its_size_and_what_can_go(home: Home) -> None:
    found = sizes(home)
    assert {kind: found[kind] for kind in ("adapters", "gallery", "trash", "thumbnails", "exports")} == {
        "adapters": (1000, 0), "gallery": (320, 0), "trash": (500, 500), "thumbnails": (20, 20), "exports": (70, 70)}


@pytest.mark.parametrize(("kind", "freed"), [("trash", 500), ("thumbnails", 20), ("exports", 70)])
def test_a_clean_up_frees_its_own_kind_and_leaves_the_rest(home: Home, kind: str, freed: int) -> None:
    before = sizes(home)
    assert clean_up(home, kind) == freed
    after = sizes(home)
    assert after[kind] == (0, 0)
    assert {name for name in before if before[name] != after[name]} <= {kind, "gallery"}   # thumbnails lie there
    assert (home.gallery / "a.png").exists() and (home.adapters / "rex.safetensors").exists()
    assert clean_up(home, kind) == 0


def test_saved_steps_go_only_where_a_job_ended_well(home: Home) -> None:
    done, failed = (new_run(home, TrainConfig(name=name, pictures=str(home.path))) for name in ("one", "two"))
    done.append(Finished(1, "one.safetensors", 0.1))
    failed.append(Failed("no memory"))
    kept = [put(run.path / "checkpoints" / "step-10" / "state", 400) for run in (done, failed)]
    assert sizes(home)["runs"][1] == 400
    assert clean_up(home, "runs") == 400
    assert [path.exists() for path in kept] == [False, True]
    assert (done.path / "recipe.toml").exists()


@pytest.mark.parametrize("kind", ["adapters", "gallery", "datasets", "../x", ""])
def test_nothing_else_can_be_cleaned_up(home: Home, kind: str) -> None:
    with pytest.raises(HomeError, match="Nothing can be cleaned up"):
        clean_up(home, kind)
    assert (home.gallery / "a.png").exists()


def test_links_are_not_followed(home: Home, tmp_path: Path) -> None:
    outside = put(tmp_path / "outside" / "mine.txt", 9000)
    (home.trash / "link").symlink_to(outside.parent)
    assert sizes(home)["trash"] == (500, 500)
    assert clean_up(home, "trash") == 500
    assert outside.exists() and not (home.trash / "link").is_symlink()
