"""A reverse proxy of the test's own, with the configuration that docs/operations.md shows."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from processes import free_port, until
from test_house import ROOT

PAGE = ROOT / "docs" / "operations.md"


def block(title: str) -> str:
    """The block of code in docs/operations.md whose first line is a comment with this title."""
    found = re.findall(rf"^```\w*\n(# {re.escape(title)}\n.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(found) == 1, title
    return found[0]


@contextmanager
def nginx(folder: Path, server: int) -> Iterator[str]:
    """Start nginx before a server that listens on a port; gives the address of the proxy. Skips without nginx."""
    if not shutil.which("nginx"):
        pytest.skip("There is no nginx here. On Debian: apt-get install nginx.")
    port = free_port()
    site = block("nginx: /etc/nginx/conf.d/atelier.conf").replace("listen 80;", f"listen 127.0.0.1:{port};")
    site = site.replace("127.0.0.1:7860", f"127.0.0.1:{server}")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    alone = f"daemon off;\nmaster_process off;\npid {folder}/pid;\nevents {{}}\n"
    (folder / "nginx.conf").write_text(f"{alone}http {{\naccess_log off;\n{paths}{site}}}\n")
    command = ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(command)
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}"))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def answers(address: str) -> bool:
    try:
        httpx.get(address)
    except httpx.ConnectError:
        return False
    return True
