"""The web app: nine pages, each in the same frame."""

from __future__ import annotations

import gradio as gr

from atelier.app.services.engine import Engine
from atelier.app.services.model_downloads import ModelDownloads
from atelier.app.store.home import Home
from atelier.app.text import shared
from atelier.app.web.api import add_endpoints
from atelier.app.web.components.gradio_internals import CheckedBlocks
from atelier.app.web.components.page_frame import add_frame
from atelier.app.web.components.uploads import check_inputs, without_foreign_files
from atelier.app.web.components.urls import page_path
from atelier.app.web.pages import compress, create, gallery, grid, jobs, library, mix, settings, studio


def build(home: Home, engine: Engine, *, has_password: bool = False) -> gr.Blocks:
    """Build the web app with all its pages.

    Args:
        home: whose data the pages show and change.
        engine: draws for all pages.
        has_password: whether people sign in, so that Settings offers keys and signing out.
    """
    downloads = ModelDownloads()
    blocks = CheckedBlocks(check_inputs, without_foreign_files, title="Atelier", analytics_enabled=False,
                           delete_cache=(3600, 86400))   # fmt: skip
    with blocks as demo:
        add_endpoints(home, engine)   # before all handlers: Gradio gives the second one of a name another
        with page(demo, home, "create"):
            create.build(demo, home, engine, downloads)
    with demo.route(shared.TITLES["studio"], page_path("studio")), page(demo, home, "studio"):
        studio.build(demo, home, engine)
    with demo.route(shared.TITLES["grid"], page_path("grid")), page(demo, home, "grid"):
        grid.build(demo, home)
    with demo.route(shared.TITLES["mix"], page_path("mix")), page(demo, home, "mix"):
        mix.build(demo, home, engine)
    with demo.route(shared.TITLES["compress"], page_path("compress")), page(demo, home, "compress"):
        compress.build(demo, home, engine)
    with demo.route(shared.TITLES["library"], page_path("library")), page(demo, home, "library"):
        library.build(demo, home, engine)
    with demo.route(shared.TITLES["gallery"], page_path("gallery")), page(demo, home, "gallery"):
        gallery.build(demo, home)
    with demo.route(shared.TITLES["jobs"], page_path("jobs")), page(demo, home, "jobs"):
        jobs.build(demo, home, engine)
    with demo.route(shared.TITLES["settings"], page_path("settings")), page(demo, home, "settings"):
        settings.build(demo, home, engine, downloads, has_password=has_password)
    # Closed to direct posts, which would go past the queue and its length.
    demo.queue(max_size=64, default_concurrency_limit=4, api_open=False)
    return demo


def page(demo: gr.Blocks, home: Home, name: str) -> gr.Column:
    """Add the frame, and return the column for a page's own content."""
    add_frame(demo, home, name)
    return gr.Column(elem_classes=f"page page-{name}")
