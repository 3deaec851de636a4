"""Models of the hub, from a stand-in for it: one variant, resumable, with progress; and a sentence for what fails."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.file_download as hub_library
import pytest
import torch
from filelock import FileLock
from hub import COMMIT, Hub, serving_hub
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from atelier.training.base_models import hub as our_hub
from atelier.training.base_models.base_info import BaseError
from atelier.training.base_models.base_model import load
from atelier.training.base_models.hub import (
    cached_folder,
    download_model,
    is_hub_id,
    list_hub_files,
    needs_download,
    require_download,
)
from atelier.training.base_models.hub_file import PARTIAL
from atelier.training.base_models.identify import identify

CHUNK = 50_000   # bytes that the hub's library reads at once; of an unfinished one nothing is written
PARTS = ("unet", "vae", "text_encoder")
JUNK = {
    "README.md": b"#", "unet/diffusion_pytorch_model.bin": b"PK\x03\x04", "v1-5-pruned.ckpt": b"PK\x03\x04",
    "v1-5-pruned.safetensors": b"x" * 99, "text_encoder/flax_model.msgpack": b"x", "unet/model.onnx": b"x",
    "safety_checker/model.safetensors": b"x", "safety_checker/config.json": b"{}", "unet/code.py": b"import os",
    "unet/diffusion_pytorch_model.non_ema.safetensors": b"x" * 99, "feature_extractor/preprocessor_config.json": b"{}",
}   # fmt: skip


@pytest.fixture
def published(base: Path, tmp_path: Path) -> Path:
    """The tiny base model as publishers lay models out: in full and in half precision."""
    folder = tmp_path / "published"
    shutil.copytree(base, folder)
    for part in PARTS:
        (path,) = (folder / part).glob("*.safetensors")
        half = {name: value.half() for name, value in load_file(path).items()}
        save_file(half, path.with_suffix(".fp16.safetensors"), {"format": "pt"})
    return folder


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(hub_library.time, "sleep", lambda _: None)   # between its attempts
    with serving_hub({"owner/tiny": published}, extra=dict(JUNK)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_one_variant_is_downloaded_and_nothing_else(hub: Hub, published: Path):
    seen: list[tuple[int, int]] = []
    folder = download_model("owner/tiny", lambda done, of: seen.append((done, of)))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    weights = [name for name in names if name.endswith(".safetensors")]
    assert weights == ["text_encoder/model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
                       "vae/diffusion_pytorch_model.fp16.safetensors"]   # fmt: skip
    assert not {Path(name).suffix for name in names} - {".json", ".txt", ".safetensors"}
    assert not any(name.startswith(("safety_checker", "feature_extractor")) for name in names)
    everything = sum((published / name).stat().st_size for name in names)
    assert seen[-1] == (everything, everything)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert sum(hub.sent.values()) == everything


def test_a_downloaded_model_is_used_without_the_network(hub: Hub):
    assert needs_download("owner/tiny")
    assert identify("owner/tiny").bytes == 0   # of its configurations alone
    assert needs_download("owner/tiny")
    with pytest.raises(BaseError, match="atelier models get owner/tiny"):
        require_download("owner/tiny")
    download_model("owner/tiny")
    before = len(hub.asked)
    require_download("owner/tiny")
    info = identify("owner/tiny")
    assert (info.family, info.precision, bool(info.bytes)) == ("embedded", "fp16", True)
    model = load("owner/tiny", "cpu")
    assert len(hub.asked) == before
    assert torch.equal(model.unet.conv_in.weight, model.unet.conv_in.weight.half().float())


def test_loading_downloads_what_is_missing(hub: Hub):
    assert load("owner/tiny", "cpu").info.source == "owner/tiny"
    assert cached_folder("owner/tiny") is not None


def test_a_connection_that_breaks_is_resumed_where_it_stopped(hub: Hub):
    name = "unet/diffusion_pytorch_model.fp16.safetensors"
    size = list_hub_files("owner/tiny").sizes[name]
    hub.breaks = {name: 3 * CHUNK}
    download_model("owner/tiny")
    ranges = [range for method, path, range in hub.asked if method == "GET" and path.endswith(name)]
    assert len(ranges) > size // (3 * CHUNK)
    assert ranges[:3] == ["", f"bytes={3 * CHUNK}-", f"bytes={6 * CHUNK}-"]
    assert hub.sent[name] == size   # no byte twice


def test_a_download_that_was_stopped_continues(hub: Hub):
    name = "unet/diffusion_pytorch_model.fp16.safetensors"
    size = list_hub_files("owner/tiny").sizes[name]
    hub.breaks = {name: 0}
    with pytest.raises(BaseError, match="continues where it stopped"):
        download_model("owner/tiny")
    assert cached_folder("owner/tiny") is None
    hub.breaks = {}
    calls: list[int] = []

    def stop(done: int, _of: int) -> None:
        if any(method == "GET" and path.endswith(name) for method, path, _ in hub.asked):
            calls.append(done)
        if len(calls) == 4:
            raise KeyboardInterrupt

    hub.asked.clear()
    with pytest.raises(KeyboardInterrupt):
        download_model("owner/tiny", stop)
    assert cached_folder("owner/tiny") is None
    hub.asked.clear()
    download_model("owner/tiny")
    ranges = [range for method, path, range in hub.asked if method == "GET" and path.endswith(name)]
    assert len(ranges) == 1
    assert 0 < int(ranges[0].removeprefix("bytes=").removesuffix("-")) < size
    assert load("owner/tiny", "cpu").info.precision == "fp16"


def cut(folder: Path) -> None:
    for part in PARTS:
        for path in (folder / part).glob("*.fp16.safetensors"):
            path.unlink()


def test_without_the_half_precision_the_full_one_is_downloaded(hub: Hub, published: Path):
    cut(published)
    folder = download_model("owner/tiny")
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert not (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").exists()


def test_a_model_of_pickles_or_single_files_is_refused(hub: Hub, published: Path):
    next((published / "vae").glob("*.fp16.safetensors")).unlink()
    next((published / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(BaseError, match="no safetensors weights of its vae"):
        list_hub_files("owner/tiny")
    (published / "model_index.json").unlink()
    with pytest.raises(BaseError, match=r"v1-5-pruned\.safetensors"):
        list_hub_files("owner/tiny")


def test_what_the_hub_says_of_names_is_not_trusted(hub: Hub, tmp_path: Path):
    hub.extra |= {"unet/../../../../evil.safetensors": b"x", "../evil.json": b"{}", "unet/a/config.json": b"{}",
                  "tokenizer/evil.py": b"x"}   # fmt: skip
    assert not any(".." in name or "evil" in name or "/a/" in name for name in list_hub_files("owner/tiny").sizes)
    download_model("owner/tiny")
    assert not list(tmp_path.rglob("*evil*"))


def test_weights_that_arrive_otherwise_are_refused(hub: Hub, tmp_path: Path):
    hub.damaged.add(name := "unet/diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(BaseError, match="arrived damaged"):
        download_model("owner/tiny")
    assert needs_download("owner/tiny") and not list(tmp_path.rglob(f"*{PARTIAL}"))
    hub.damaged.clear()
    download_model("owner/tiny")
    assert hub.sent[name] > (tmp_path / "published" / name).stat().st_size   # once more, from the start
    assert not needs_download("owner/tiny")


def test_configurations_are_checked_before_weights_are_fetched(hub: Hub, published: Path):
    path = published / "unet" / "config.json"
    path.write_text(path.read_text().replace('"in_channels": 4', '"in_channels": 9'))
    with pytest.raises(BaseError, match="inpainting"):
        load("owner/tiny", "cpu")
    assert not any(name.endswith(".safetensors") for name in hub.sent)


@pytest.mark.parametrize("ask", [identify, download_model, list_hub_files])
def test_a_missing_model_is_said(hub: Hub, ask: Callable[[str], Any]):
    with pytest.raises(BaseError, match="no model owner/nothing on the hub"):
        ask("owner/nothing")


@pytest.mark.parametrize("ask", [identify, download_model])
def test_a_gated_model_is_said_with_its_page(hub: Hub, ask: Callable[[str], Any]):
    hub.gated.add("owner/tiny")
    with pytest.raises(BaseError, match=r"https://huggingface\.co/owner/tiny, and set HF_TOKEN"):
        ask("owner/tiny")


@pytest.mark.parametrize("ask", [identify, download_model])
def test_no_network_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Any]):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BaseError, match="Check the network"):
        ask("owner/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BaseError, match="HF_HUB_OFFLINE is set"):
        ask("owner/tiny")


def test_a_disk_that_is_too_small_is_said_before(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(our_hub.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))   # type: ignore[attr-defined]
    with pytest.raises(BaseError, match="HF_HOME"):
        download_model("owner/tiny")
    assert not any(name.endswith(".safetensors") for name in hub.sent)


def test_a_disk_that_fills_up_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_library, "http_get", full)   # writes what comes
    with pytest.raises(BaseError, match="the disk is full"):
        download_model("owner/tiny")


def test_two_downloads_of_one_file_do_not_mix(hub: Hub, tmp_path: Path):
    name = "unet/diffusion_pytorch_model.fp16.safetensors"
    blobs = tmp_path / "cache" / "models--owner--tiny" / "blobs"
    blobs.mkdir(parents=True)
    tag = hashlib.sha256(hub.files("owner/tiny")[name]).hexdigest()
    with FileLock(blobs / f"{tag}{PARTIAL}.lock"), pytest.raises(BaseError, match="being downloaded already"):
        download_model("owner/tiny")
    download_model("owner/tiny")
    assert not list(blobs.glob(f"*{PARTIAL}*"))


@pytest.mark.parametrize(("text", "fits"), [
    ("owner/model", True), ("stabilityai/sdxl-turbo", True), ("a/b.c", True), ("a/b/c", False), ("a", False),
    ("../model", False), ("a/..", False), ("a/.hidden", False), ("a/b c", False), ("a/b\n", False), ("a/b--c", False),
    ("a/model.safetensors", False), ("a/model.ckpt", False), ("a/" + "b" * 100, False), ("/a/b", False),
    ("a/é", False), ("-a/b", False), ("a/b?x=1", False), ("a\\b/c", False),
])   # fmt: skip
def test_only_ids_reach_the_hub(text: str, fits: bool):
    assert is_hub_id(text) == fits


def test_the_snapshot_is_the_one_that_other_programs_find(hub: Hub):
    folder = download_model("owner/tiny")
    assert folder.name == COMMIT
    assert (folder.parent.parent / "refs" / "main").read_text() == COMMIT
