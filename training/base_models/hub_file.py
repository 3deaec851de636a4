"""One large file of the hub, downloaded so that a process that begins anew continues where the last one stopped.

huggingface_hub 2.4 itself resumes only while one process lives: it throws unfinished files away. Here they stay beside
the finished ones, and the library is given the finished file, as if it had fetched it. Uses two functions that the
library does not export at its top, ``http_get`` and ``build_hf_headers``.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import urlparse

from filelock import FileLock, Timeout

from atelier.training.base_models.base_info import BaseError

PARTIAL = ".atelier-part"
_SHA256 = re.compile(r"[0-9a-f]{64}")   # what the hub names large files by
_TAG = re.compile(r"[0-9A-Za-z_-]{8,128}")   # becomes a file name


def download_blob(base: str, name: str, commit: str, endpoint: str | None, progress: type) -> None:
    """Fetch a file into the cache's folder of contents, where ``hf_hub_download`` then finds it.

    Args:
        base: the model's id.
        name: the file's path in the model.
        commit: the version of the model.
        endpoint: the hub's address; None for the usual one.
        progress: a class like tqdm's, told the bytes.

    Raises:
        BaseError: another process is downloading this file.
        OSError: errors of the network, the hub and the disk.
    """
    from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(base, name, revision=commit, endpoint=endpoint)
    facts = get_hf_file_metadata(url, token=get_token(), endpoint=endpoint)
    if not facts.etag or not _TAG.fullmatch(facts.etag):
        return   # the library itself fetches it, without resuming
    blob = Path(constants.HF_HUB_CACHE) / f"models--{base.replace('/', '--')}" / "blobs" / facts.etag
    if blob.exists():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(facts.etag + PARTIAL)
    headers = build_hf_headers(token=get_token())
    if urlparse(facts.location).netloc != urlparse(url).netloc:
        headers.pop("authorization", None)   # the token is for the hub alone
    try:
        with FileLock(f"{partial}.lock", timeout=0), partial.open("ab") as file:
            if file.tell() > (facts.size or 0):
                file.truncate(0)
            http_get(facts.location, file, resume_size=file.tell(), headers=headers, expected_size=facts.size,
                     tqdm_class=progress)   # fmt: skip
            file.flush()
            if not _is_intact(partial, facts.etag):
                partial.unlink()
                raise BaseError(f"{name} of {base} arrived damaged: its hash is not what the hub says. Start the "
                                "download again.")
            partial.replace(blob)
    except Timeout:
        raise BaseError(f"{base} is being downloaded already. Wait until that is done.") from None
    Path(f"{partial}.lock").unlink(missing_ok=True)


def _is_intact(path: Path, tag: str) -> bool:
    """Whether a file has the hash that it is named by; other names say nothing of the contents."""
    if not _SHA256.fullmatch(tag):
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == tag
