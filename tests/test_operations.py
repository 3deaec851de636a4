"""docs/operations.md: its commands are ones that Atelier and the programs around it take."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from gradio_client import Client
from proxied import PAGE, block, nginx
from serving import served, upload
from test_house import ROOT

from atelier.app.cli.arguments import build_parser
from atelier.app.store.home import open_home

CONTAINER = ROOT / "docs" / "examples" / "Containerfile"


def commands() -> list[str]:
    """Every command line of ours in the page and in the container file."""
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^(?:ExecStart=/usr/local/atelier/bin/)?(atelier (?:serve|worker|doctor).*)$", text, re.M)
    found += re.findall(r"`(atelier (?:serve|worker|doctor)[^`]*)`", text)
    listed = re.search(r"^CMD (\[.*\])$", CONTAINER.read_text(encoding="utf-8"), re.M)
    assert listed
    return [*found, shlex.join(eval(listed[1]))]   # our own text


def test_the_page_shows_every_kind_of_command() -> None:
    assert len(commands()) >= 7 and {"serve", "worker", "doctor"} == {shlex.split(line)[1] for line in commands()}


@pytest.mark.parametrize("command", commands())
def test_a_command_is_one_that_atelier_takes(command: str) -> None:
    build_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("name", ["atelier", "atelier-worker"])
def test_a_unit_leaves_trainings_alone_and_writes_to_the_home_alone(name: str) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str   # type: ignore[assignment]
    unit.read_string(block(f"systemd: /etc/systemd/system/{name}.service"))
    service = unit["Service"]
    assert (service["KillMode"], service["User"], service["ProtectSystem"]) == ("process", "atelier", "strict")
    assert service["ReadWritePaths"].split()[0] == shlex.split(service["ExecStart"])[3] == "/srv/atelier"


def test_the_upgrade_and_the_container_install_what_the_package_offers() -> None:
    extras = set(re.findall(r"(?:atelier-lora|/src)\[(\w+)\]", PAGE.read_text() + CONTAINER.read_text()))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert extras == {"redis"} and re.search(r"^redis = \[", project, re.M)


def test_the_image_is_built_from_what_the_package_is_made_of_and_runs_as_nobody_special() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {folder.split("/")[0] for folder in project["tool"]["setuptools"]["package-dir"].values()}
    files = {project["project"]["readme"], *project["project"]["license-files"]}
    assert lines[1] == "*" and sent == {*folders, *files, "pyproject.toml", "constraints.txt"}
    [user] = re.findall(r"^USER (\S+)$", CONTAINER.read_text(encoding="utf-8"), re.M)
    assert user.split(":")[0] not in ("0", "root")


def test_caddy_takes_its_file(tmp_path: Path) -> None:
    if not shutil.which("caddy"):
        pytest.skip("There is no caddy here. On Debian: apt-get install caddy.")
    (tmp_path / "Caddyfile").write_text(block("Caddy: /etc/caddy/Caddyfile"))
    command = ["caddy", "validate", "--adapter", "caddyfile", "--config", str(tmp_path / "Caddyfile")]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and "Valid configuration" in result.stdout, result.stderr


@pytest.mark.slow
def test_everything_works_behind_nginx_below_a_path(tmp_path: Path) -> None:
    environment = {"ATELIER_PASSWORD": "correct horse", "TEST_ROOT_PATH": "/atelier"}
    with served(open_home(tmp_path / "home"), "127.0.0.1", **environment) as (direct, _), \
            nginx(tmp_path, direct.base_url.port or 0) as address:   # fmt: skip
        direct.base_url, direct.headers["accept"] = f"{address}/atelier", "text/html"
        asked = direct.get("/jobs")
        assert asked.status_code == 401 and 'action="/atelier/login"' in asked.text
        form = {"username": "atelier", "password": "correct horse", "next": "/jobs"}
        signed = direct.post("/login", data=form, headers={"origin": address})
        assert (signed.status_code, signed.headers["location"]) == (303, "/atelier/jobs")
        page = direct.get("/jobs")
        assert page.status_code == 200 and f"{address}/atelier" in page.text, "Gradio knows where it stands"
        assert 'href="/atelier/library"' in page.text.replace("\\", "") or "/atelier/library" in page.text
        del direct.headers["accept"]
        assert upload(direct, "a.txt", b"a")
        assert direct.post("/gradio_api/upload", files={"files": ("a", b"a")},
                           headers={"origin": "http://evil.example"}).status_code == 403   # fmt: skip
        client = Client(f"{address}/atelier/", auth=("atelier", "correct horse"), verbose=False)
        assert client.view_api(return_format="dict") is not None
        client.close()
