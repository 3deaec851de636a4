"""The web server: finds its port, starts the worker, and serves the app behind the guard."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import warnings
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from atelier.app.store.home import Home
from atelier.app.text import server as words
from atelier.app.web.ending import end_by_signals, signals_held
from atelier.app.web.home_guard import note_address, only_server
from atelier.app.web.listener import ServeError, bind, is_loopback
from atelier.app.web.starting_page import starting_page

if TYPE_CHECKING:   # everything that takes long to import is imported while the starting page is shown
    from fastapi import FastAPI

    from atelier.app.web.security import Access, Network

def serve(   # noqa: PLR0913 (each is an option of the command)
    home: Home, host: str = "127.0.0.1", port: int = 0, worker: bool = True, browser: bool = False, *,
    proxies: Sequence[Network] = (), names: Sequence[str] = (), root_path: str = "",
    mcp: bool = False,
) -> None:   # fmt: skip
    """Serve the web app until interrupted.

    Args:
        home: what is served.
        host: the address to listen on.
        port: its port; 0 takes the first free one from 7860 on.
        worker: whether a worker process is started too, unless one is at work on this home already.
        browser: whether the page is shown, where there is a desktop to show it on.
        proxies: addresses of reverse proxies, whose word on who sent a request is believed.
        names: host names under which browsers reach the server through them.
        root_path: what they have before every path and take away, such as ``/atelier``.
        mcp: whether the named endpoints are MCP tools too, for language models.

    Raises:
        ServeError: the port is taken, the package for MCP is missing, or the server is
            reachable from other machines and there is no password.
        HomeBusyError: another server serves this home.
    """
    # Out of the environment before anything is started that would inherit it.
    password = os.environ.pop("ATELIER_PASSWORD", "")
    if not password and not (is_loopback(host) and not proxies):
        raise ServeError(words.needs_password(host) if not is_loopback(host) else words.PROXY_NEEDS_PASSWORD)
    if mcp and find_spec("mcp") is None:
        raise ServeError(words.NO_MCP)
    end_by_signals()   # Uvicorn passes SIGTERM on when it has stopped
    with only_server(home), bind(host, port) as listener, ExitStack() as running:
        note_address(home, host, listener.getsockname()[1])
        with starting_page(listener):
            if browser:
                _show(listener.getsockname()[1])
            if worker:
                _start_worker(home, running)
            access = {"host": host, "password": password, "proxies": proxies, "names": names, "root_path": root_path}
            app = _load(home, access, _own_address(listener) if mcp else "")
        sys.stdout.write(words.served_at(host, listener.getsockname()[1]) + "\n")
        sys.stdout.flush()
        _run(app, listener, proxies)


def _start_worker(home: Home, running: ExitStack) -> None:
    from atelier.app.jobs.worker_process import worker_for_server

    with signals_held():
        running.enter_context(worker_for_server(home))


def _load(home: Home, access: dict[str, Any], mcp: str) -> FastAPI:
    """Import and make everything; ``access`` are the fields of an Access, whose class takes long to import.

    Says why a graphics card that is here is not used.
    """
    from atelier.app.web.security import Access
    from atelier.training.base_models.base_model import import_models
    from atelier.training.base_models.device import card_problem

    import_models()
    app = application(home, Access(**access), mcp=mcp)
    if problem := card_problem():
        sys.stderr.write(f"atelier: {problem}\n")
    return app


def application(home: Home, access: Access, *, mcp: str = "") -> FastAPI:
    """Make the whole application: the guard around the pages, and around MCP tools where ``mcp`` is its own address.

    From here on the process works in an empty folder, because Gradio would hand out files of the working folder.
    """
    temporary = home.state / "web"
    empty = home.state / "empty"
    for folder in (temporary, empty):
        folder.mkdir(mode=0o700, exist_ok=True)
    os.chdir(empty)
    # Gradio reads these when it is imported or first used.
    os.environ.update(GRADIO_TEMP_DIR=str(temporary), GRADIO_ANALYTICS_ENABLED="False", GRADIO_SHARE="False",
                      GRADIO_ROOT_PATH=access.root_path)   # fmt: skip
    import gradio as gr

    from atelier.app.services.engine import Engine
    from atelier.app.web.components.gradio_internals import call_tools_as, limit_form_fields
    from atelier.app.web.components.theme import FAVICON, FONT, STYLE_SHEETS, make_theme, palette_css
    from atelier.app.web.components.uploads import check_inputs, forget_old_files
    from atelier.app.web.security import guarded
    from atelier.app.web.sign_in import cookie_name
    from atelier.app.web.site import build

    forget_old_files()
    limit_form_fields()
    gr.set_static_paths([FONT])
    # Gradio says this whenever an app has several pages, although the mode is off.
    warnings.filterwarnings("ignore", "SSR mode is not supported with multi-page", UserWarning)
    parent = guarded(home, access, uploads=temporary, served=[temporary, FONT])
    _redirect_old_addresses(parent)
    engine = Engine.of_home(home)
    demo = build(home, engine, has_password=bool(access.password))
    app = gr.mount_gradio_app(
        parent, demo, path="/", footer_links=[], run_history=False, enable_monitoring=False,
        ssr_mode=False, max_file_size="2gb", show_error=False, favicon_path=str(FAVICON),
        root_path=access.root_path or None, app_kwargs={"openapi_url": None}, theme=make_theme(), css=palette_css(),
        css_paths=STYLE_SHEETS, mcp_server=bool(mcp),
    )   # fmt: skip
    if mcp:
        call_tools_as(demo, mcp, {cookie_name(home): access.sessions.start(endless=True)}, check_inputs)
    return app


def _own_address(listener: socket.socket) -> str:
    """Where the server reaches itself: MCP tools that wait in the queue are called through it."""
    host, port = listener.getsockname()[:2]
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"


def _redirect_old_addresses(app: FastAPI) -> None:
    """Lead bookmarks of the Fusion page, which is part of the Mix Lab now, to it with their query."""
    from starlette.responses import RedirectResponse

    from atelier.app.web.components.urls import page_url

    app.add_route("/fusion", lambda request: RedirectResponse(f"{page_url('mix')}?{request.url.query}"))


def _show(port: int) -> None:
    """Open the page in the desktop's browser. Without a desktop Python may find a text browser: not wanted here."""
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(f"http://127.0.0.1:{port}")


def _run(app: FastAPI, listener: socket.socket, proxies: Sequence[Network]) -> None:
    import uvicorn

    from atelier.app.web.connections import LimitedConnection, allow_many_files

    allow_many_files()
    LimitedConnection.proxies = proxies
    # An open page holds an event stream that never ends: don't wait for it when stopping. Warnings are about requests
    # that are no HTTP, and whoever sends those must not fill the log.
    settings = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, proxy_headers=False,
                              http=LimitedConnection, ws="none")   # fmt: skip
    logging.getLogger("uvicorn.error").addFilter(_is_error)
    uvicorn.Server(settings).run(sockets=[listener])


def _is_error(record: logging.LogRecord) -> bool:
    """Cutting off the streams of open pages is how the server ends, and no error."""
    cut_off = isinstance(record.exc_info, tuple) and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cut_off and not record.getMessage().startswith("Cancel ")
