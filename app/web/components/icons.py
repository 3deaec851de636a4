"""Line icons: one 24 × 24 path each, drawn for Atelier with the same two-pixel pen.

Apart from the panels that show them, because the frame of every page shows them too.
"""

from __future__ import annotations

PATHS = {
    "create": "M12 5v14M5 12h14",
    "jobs": "M4 7h10M4 12h16M4 17h7M18 5v4M15 15v4",
    "library": "M5 4h4v16H5zM10 4h4v16h-4zM16.2 5.2l3.6-.9 3 14.5-3.7.9z",
    "studio": "M4 20c3 0 4-1 4-3a2.5 2.5 0 0 1 5 0c0 2.5-3 3-9 3zM12 14L20.5 4.5M9.5 12.5L19 3",
    "mix": "M9 6a5 5 0 1 0 0 10a5 5 0 1 0 0-10zM15 8a5 5 0 1 0 0 10a5 5 0 1 0 0-10z",
    "compress": "M4 9h5V4M20 9h-5V4M4 15h5v5M20 15h-5v5",
    "gallery": "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9h.01",
    "settings": "M4 7h9M19 7h1M4 17h1M11 17h9M16 4.5v5M8 14.5v5",
    "theme": "M12 4v2M12 18v2M4 12h2M18 12h2M6.5 6.5l1.2 1.2M16.3 16.3l1.2 1.2M6.5 17.5l1.2-1.2"
             "M16.3 7.7l1.2-1.2M12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6z",
    "close": "M6 6l12 12M18 6L6 18",
    "copy": "M9 9h11v11H9zM5 15H4V4h11v1",
    "check": "M5 12.5l4.5 4.5L19 7.5",
    "warn": "M12 4l9 16H3zM12 10v4M12 17h.01",
    "pin": "M9 4h6l-1 6 3 3H7l3-3zM12 13v7",
    "redraw": "M4 12a8 8 0 0 1 14-5l2 2M20 4v5h-5M20 12a8 8 0 0 1-14 5l-2-2M4 20v-5h5",
    "grid": "M4 4h16v16H4zM4 12h16M12 4v16",
    "star": "M12 4l2.4 5.2 5.6.7-4.1 3.9 1.1 5.6-5-2.8-5 2.8 1.1-5.6L4 9.9l5.6-.7z",
    "download": "M12 4v11M7 10.5l5 5 5-5M5 20h14",
}


def icon(name: str) -> str:
    """Markup of an icon, for a panel's template; it says nothing to a screen reader."""
    return f'<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d="{PATHS[name]}"/></svg>'
