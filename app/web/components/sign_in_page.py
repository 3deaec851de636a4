"""The page that asks for the password, without any other file: before it, nothing else is served.

Apart from ``sign_in.py``, which decides who gets in and writes no HTML.
"""

from __future__ import annotations

from html import escape

from atelier.app.web.components.panel import template
from atelier.app.web.components.theme import PALETTE
from atelier.training.config.assets import ASSETS

_STYLE = ASSETS / "css" / "sign-in.css"


def sign_in_page(page: str, why: str = "") -> str:
    """Write the page as HTML.

    Args:
        page: path of the page that is opened after signing in.
        why: why the last try did not succeed.
    """
    light, dark = ("".join(f"--{job}:{pair[i]};" for job, pair in PALETTE.items()) for i in (0, 1))
    style = f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    html = template("sign-in").replace("{{style}}", style + _STYLE.read_text(encoding="utf-8"))
    # The texts last: nothing that a person gave may be filled a second time.
    return html.replace("{{why}}", escape(why)).replace("{{next}}", escape(page))
