"""The library: cards that tell the truth about files, and a trash that gives back what it took."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier.adapters.core.base import Spec
from atelier.adapters.formats.native import save_adapter
from atelier.adapters.kinds.catalog import create_adapters
from atelier.app.services.import_export import export_adapters
from atelier.app.store import library
from atelier.app.store.home import Home, HomeError, adapter_names, open_home
from atelier.app.store.library import (
    adapter_hash,
    delete_adapter,
    find_adapter,
    list_adapters,
    list_unreadable,
    read_thumbnail,
    restore_adapter,
)
from atelier.app.store.models import resolve_base
from atelier.training.runs.save_adapter import free_path

SPECS = [Spec("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", (8, 6))]
THUMBNAIL = "data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8 a picture").decode()


@pytest.fixture
def home(own_home) -> Home:
    return open_home(own_home)


def add(home: Home, name: str, **metadata: str):
    """Put a small LoRA into the library."""
    adapters = create_adapters("lora", {"rank": 2}, SPECS)
    for adapter in adapters:
        torch.nn.init.normal_(adapter.get_parameter("up"))
    path = home.adapters / f"{name}.safetensors"
    entries = {f"atelier.{key}": value for key, value in metadata.items()}
    save_adapter(path, adapters, {"modelspec.thumbnail": THUMBNAIL, **entries})
    return path


def test_a_card_says_what_the_header_says(home):
    path = add(home, "fox", trigger="zfx", subject="fox", base="/models/sd", title="SD", family="sd1",
               created="2025-11-22T07:56:12+00:00", pictures="5")  # fmt: skip
    (card,) = list_adapters(home)
    assert card == find_adapter(home, "fox")
    assert (card.name, card.path, card.kind, card.bytes) == ("fox", path, "lora", path.stat().st_size)
    assert (card.trigger, card.subject, card.base, card.title, card.family) == ("zfx", "fox", "/models/sd", "SD", "sd1")
    assert (card.created, card.pictures) == (datetime(2025, 11, 22, 7, 56, 12, tzinfo=UTC), 5)
    assert read_thumbnail(card) == THUMBNAIL and len(card.thumbnail) == 32


def test_what_a_header_does_not_say_is_filled_in_soberly(home):
    path = add(home, "bare", pictures="many", created="yesterday")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    (card,) = list_adapters(home)
    assert (card.trigger, card.subject, card.title, card.pictures) == ("bare", "", "", 0)
    assert card.created == datetime.fromtimestamp(1_700_000_000, UTC)


def test_newest_first_whatever_the_time_zone(home):
    add(home, "b", created="2025-01-01T12:00:00+00:00")
    add(home, "c", created="2025-01-01T13:30:00+02:00")   # 11:30 UTC
    add(home, "a", created="2025-01-01T12:30:00")
    assert [card.name for card in list_adapters(home)] == ["a", "b", "c"]


@pytest.mark.parametrize("picture", ["javascript:alert(1)", "https://evil.example/x.jpg", THUMBNAIL + '" onerror="x',
                                     "data:image/svg+xml;base64,AAAA", "data:text/html;base64,AAAA"])
def test_only_a_plain_picture_becomes_a_thumbnail(home, picture):
    path = add(home, "fox")
    entries = {"modelspec.thumbnail": picture}
    save_adapter(path, create_adapters("lora", {"rank": 2}, SPECS), entries)
    card = find_adapter(home, "fox")
    assert card.thumbnail == "" and read_thumbnail(card) == ""
    assert read_thumbnail(replace(card, thumbnail="0" * 32)) == "", "nor where the file has changed since"


def test_unreadable_files_are_told_apart_and_the_rest_goes_on(home):
    good = add(home, "good")
    (home.adapters / "text.safetensors").write_text("hello")
    (home.adapters / "cut.safetensors").write_bytes(good.read_bytes()[:-4])
    save_file({"x": torch.zeros(1)}, home.adapters / "foreign.safetensors")
    save_file({"x": torch.zeros(1)}, home.adapters / "damaged.safetensors", {"atelier.kind": "lora"})
    save_file({"x": torch.zeros(1)}, home.adapters / "future.safetensors",
              {"atelier.kind": "lora", "atelier.schema": "99"})  # fmt: skip
    (home.adapters / ".half.safetensors").write_text("being written")
    (home.adapters / "notes.txt").write_text("not ours")
    assert [card.name for card in list_adapters(home)] == ["good"]
    reasons = {file.path.stem: file.reason for file in list_unreadable(home)}
    assert set(reasons) == {"text", "cut", "foreign", "damaged", "future"}
    assert all(reason.startswith(f"{stem}.safetensors ") for stem, reason in reasons.items())
    assert "newer version of Atelier" in reasons["future"]
    with pytest.raises(HomeError, match="'cut' can't be opened"):
        find_adapter(home, "cut")


def test_a_file_is_read_once_and_again_when_it_changes(home, monkeypatch):
    path = add(home, "fox", subject="fox")
    reads, real = [], library.read_native_metadata
    monkeypatch.setattr(library, "read_native_metadata", lambda path: reads.append(path) or real(path))
    assert [find_adapter(home, "fox").subject for _ in range(3)] == ["fox"] * 3
    assert reads == [path]
    add(home, "fox", subject="wolf, once a fox")
    assert find_adapter(home, "fox").subject == "wolf, once a fox"
    path.unlink()
    assert list_adapters(home) == []


@pytest.mark.parametrize("name", ["x" * 5000, "\N{FOX FACE}" * 100], ids=["letters", "bytes"])
def test_a_name_that_no_file_can_have_is_a_sentence_without_the_homes_path(home, name: str):
    for call in (find_adapter, delete_adapter):
        with pytest.raises(HomeError) as raised:
            call(home, name)
        assert str(home.path) not in str(raised.value) and len(str(raised.value)) < 500
    assert resolve_base(home, name) == name


def test_an_unknown_name_names_the_nearest(home):
    add(home, "fox")
    with pytest.raises(HomeError, match=r"no adapter named 'fix'\. Did you mean 'fox'"):
        find_adapter(home, "fix")
    with pytest.raises(HomeError, match="Your adapters: fox"):
        find_adapter(home, "elephant")
    with pytest.raises(HomeError, match="letters, digits"):
        find_adapter(home, "../adapters/fox")


@pytest.mark.parametrize("file", ["UPPER.SAFETENSORS", "fox.SafeTensors", "dots.v1.2.safetensors",
                                  "my (nice) fox.safetensors", "é狐.SAFETENSORS"])   # fmt: skip
def test_a_file_of_any_name_that_was_put_there_by_hand_is_an_adapter_like_the_others(home, file: str):
    add(home, "other").rename(home.adapters / file)
    name = file.rpartition(".")[0]
    assert [card.name for card in list_adapters(home)] == [name]
    assert find_adapter(home, name).path.name == file
    assert name in adapter_names(home) and free_path(home.adapters, name).name == f"{name}-2.safetensors"
    trashed = delete_adapter(home, name)
    assert not list_adapters(home)
    assert restore_adapter(home, trashed).name == file and find_adapter(home, name).name == name


def test_deleting_and_restoring_is_exact(home):
    path = add(home, "fox")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    content, facts = path.read_bytes(), path.stat()
    trashed = delete_adapter(home, "fox")
    assert not path.exists() and trashed.is_relative_to(home.trash) and list_adapters(home) == []
    assert restore_adapter(home, trashed) == path
    assert path.read_bytes() == content and path.stat().st_mtime_ns == facts.st_mtime_ns
    assert not any(p.is_file() for p in home.trash.rglob("*"))


def test_the_trash_keeps_every_version_and_gives_none_over_another(home):
    first = add(home, "fox").read_bytes()
    delete_adapter(home, "fox")
    second = add(home, "fox").read_bytes()
    trashed = delete_adapter(home, "fox")
    assert first != second and len(list(home.trash.rglob("*.safetensors"))) == 2
    third = add(home, "fox").read_bytes()
    with pytest.raises(HomeError, match="'fox' is already used"):
        restore_adapter(home, trashed)
    assert (home.adapters / "fox.safetensors").read_bytes() == third
    delete_adapter(home, "fox")
    assert restore_adapter(home, trashed).read_bytes() == second


def test_a_damaged_file_can_be_deleted_too(home):
    (home.adapters / "bad.safetensors").write_text("hello")
    delete_adapter(home, "bad")
    assert list_unreadable(home) == []


def test_only_what_is_in_the_trash_is_restored(home, tmp_path):
    path = add(home, "fox")
    for stranger in (path, tmp_path / "20251122-075612-123456-x.safetensors", home.trash / "nothing"):
        with pytest.raises(HomeError, match="no longer in the trash"):
            restore_adapter(home, stranger)
    with pytest.raises(HomeError, match="no adapter named 'wolf'"):
        delete_adapter(home, "wolf")


def test_the_hash_is_of_the_tensors_alone(home):
    path = add(home, "fox", subject="fox")
    before = adapter_hash(find_adapter(home, "fox"))
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header["__metadata__"]["atelier.subject"] = "wolf!"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[start:])
    assert adapter_hash(find_adapter(home, "fox")) == before
    add(home, "fox")   # other weights
    assert adapter_hash(find_adapter(home, "fox")) != before


def test_an_export_is_written_where_it_was_asked_for(home, tmp_path):
    add(home, "fox", family="sd1")
    card = find_adapter(home, "fox")
    own = card.path.read_bytes()
    report = export_adapters([(card, 1.0)], "kohya", tmp_path / "new" / "out.safetensors", "fp16")[1]
    tensors = load_file(tmp_path / "new" / "out.safetensors")
    assert report.form == "kohya" and report.bytes == (tmp_path / "new" / "out.safetensors").stat().st_size
    assert any(key.endswith("lora_down.weight") and tensor.dtype == torch.float16 for key, tensor in tensors.items())
    export_adapters([(card, 1.0)], "diffusers", tmp_path)
    assert load_file(tmp_path / "fox.safetensors")
    assert card.path.read_bytes() == own


def test_an_export_never_replaces_the_adapter_itself(home):
    add(home, "fox", family="sd1")
    card = find_adapter(home, "fox")
    own = card.path.read_bytes()
    for out in (card.path, home.adapters, home.gallery / ".." / "adapters" / "fox.safetensors"):
        with pytest.raises(HomeError, match="is the adapter itself"):
            export_adapters([(card, 1.0)], "kohya", out)
    assert card.path.read_bytes() == own


def test_an_export_into_a_file_says_so(home, tmp_path):
    add(home, "fox", family="sd1")
    (tmp_path / "file").write_text("x")
    with pytest.raises(HomeError, match="should be a folder"):
        export_adapters([(find_adapter(home, "fox"), 1.0)], "kohya", tmp_path / "file" / "out.safetensors")
