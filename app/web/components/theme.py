"""The theme: one palette in light and dark, and Gradio's own components in its colours.

Colours are named for their use and defined only here; style sheets use them as ``var(--background)`` and so on.
The background is a quiet grey-green, so that pictures stand out; the accent is viridian, and always marks what to
press or what is chosen.
"""

from __future__ import annotations

import gradio as gr
from gradio.themes.utils import fonts, sizes

from atelier.app.text.create import DROP
from atelier.app.text.library import IMPORT_DROP
from atelier.app.text.studio import OPEN
from atelier.app.web.components.urls import file_url
from atelier.training.config.assets import ASSETS

STYLE_SHEETS = [ASSETS / "css" / name for name in ("frame.css", "parts.css", "controls.css", "pages.css")]
FAVICON = ASSETS / "icons" / "atelier.png"
FONT_FAMILY = "Bricolage Grotesque"
FONT = ASSETS / "fonts" / "bricolage-grotesque.woff2"   # variable, weights 200–800; licence beside it

# use → (light, dark)
PALETTE: dict[str, tuple[str, str]] = {
    "background": ("#F3F4F1", "#111513"),      # behind everything
    "card": ("#FFFFFF", "#191E1B"),            # boxes on the background
    "inset": ("#EAECE7", "#0B0E0C"),           # behind pictures, slider tracks, code
    "line": ("#DFE2DB", "#2A312D"),            # thin lines
    "control-border": ("#848D86", "#6B766F"),  # borders of fields and buttons
    "text": ("#17201B", "#EDF1EE"),
    "text-muted": ("#525D56", "#AAB5AE"),      # hints and labels
    "accent": ("#0B6B55", "#5FCBAA"),
    "accent-deep": ("#08523F", "#83DCC1"),     # the accent, pressed or under the pointer
    "accent-soft": ("#DCECE4", "#173229"),     # behind what is chosen
    "on-accent": ("#FFFFFF", "#06231A"),       # text on the accent
    "warn": ("#7A4F00", "#EBBD62"),
    "warn-soft": ("#FAEFD6", "#33290F"),
    "bad": ("#A12F1E", "#F2937F"),
    "bad-soft": ("#FBE7E2", "#3B1B15"),
}

# Gradio's variable → ours, for both themes: the values of ours change with the theme.
_COLOUR_VARIABLES = {
    "body_text_color": "text", "body_text_color_subdued": "text-muted",
    "background_fill_primary": "card", "background_fill_secondary": "background",
    "border_color_primary": "line", "border_color_accent": "accent", "border_color_accent_subdued": "accent-soft",
    "color_accent_soft": "accent-soft", "link_text_color": "accent", "link_text_color_hover": "accent-deep",
    "link_text_color_active": "accent-deep", "link_text_color_visited": "accent",
    "block_background_fill": "card", "block_border_color": "line", "block_info_text_color": "text-muted",
    "block_label_background_fill": "card", "block_label_text_color": "text-muted", "block_label_border_color": "line",
    "block_title_text_color": "text", "panel_background_fill": "card", "panel_border_color": "line",
    "accordion_text_color": "text", "code_background_fill": "inset",
    "input_background_fill": "card", "input_background_fill_focus": "card", "input_background_fill_hover": "card",
    "input_border_color": "control-border", "input_border_color_focus": "accent",
    "input_border_color_hover": "text-muted",
    "input_placeholder_color": "text-muted", "slider_color": "accent", "loader_color": "accent",
    "checkbox_background_color": "card", "checkbox_background_color_focus": "card",
    "checkbox_background_color_hover": "card", "checkbox_background_color_selected": "accent",
    "checkbox_border_color": "control-border", "checkbox_border_color_focus": "accent",
    "checkbox_border_color_hover": "text-muted",
    "checkbox_border_color_selected": "accent", "checkbox_label_background_fill": "card",
    "checkbox_label_background_fill_hover": "inset", "checkbox_label_background_fill_selected": "accent-soft",
    "checkbox_label_border_color": "control-border", "checkbox_label_border_color_hover": "text-muted",
    "checkbox_label_border_color_selected": "accent", "checkbox_label_text_color": "text",
    "checkbox_label_text_color_selected": "text",
    "button_primary_background_fill": "accent", "button_primary_background_fill_hover": "accent-deep",
    "button_primary_border_color": "accent", "button_primary_border_color_hover": "accent-deep",
    "button_primary_text_color": "on-accent", "button_primary_text_color_hover": "on-accent",
    "button_secondary_background_fill": "card", "button_secondary_background_fill_hover": "inset",
    "button_secondary_border_color": "control-border", "button_secondary_border_color_hover": "text-muted",
    "button_secondary_text_color": "text", "button_secondary_text_color_hover": "text",
    "button_cancel_background_fill": "card", "button_cancel_background_fill_hover": "bad-soft",
    "button_cancel_border_color": "bad", "button_cancel_border_color_hover": "bad",
    "button_cancel_text_color": "bad", "button_cancel_text_color_hover": "bad",
    "error_background_fill": "bad-soft", "error_border_color": "bad", "error_text_color": "bad",
    "error_icon_color": "bad",
    "table_border_color": "line", "table_even_background_fill": "card", "table_odd_background_fill": "card",
    "table_row_focus": "accent-soft", "table_text_color": "text", "stat_background_fill": "accent",
}
_OTHER_VARIABLES = {
    "body_text_size": "15px", "block_radius": "14px", "block_border_width": "0px", "block_shadow": "none",
    "block_padding": "0px", "block_title_text_weight": "600", "block_title_text_size": "14px",
    "block_label_text_weight": "600", "block_info_text_size": "13px", "input_radius": "10px",
    "input_padding": "10px 12px", "input_shadow": "none", "input_shadow_focus": "none", "input_text_size": "15px",
    "input_border_width": "1px", "checkbox_label_padding": "9px 14px", "checkbox_label_gap": "8px",
    "checkbox_label_shadow": "none", "checkbox_shadow": "none", "checkbox_border_radius": "5px",
    "checkbox_label_border_width": "1px", "button_border_width": "1px", "button_transition": "background .12s",
    "button_large_radius": "10px", "button_medium_radius": "10px", "button_small_radius": "8px",
    "button_large_padding": "12px 22px", "button_medium_padding": "9px 16px", "button_small_padding": "6px 12px",
    "button_large_text_size": "16px", "button_medium_text_size": "15px", "button_small_text_size": "13px",
    "button_large_text_weight": "600", "button_medium_text_weight": "600", "button_small_text_weight": "600",
    "button_primary_shadow": "none", "button_secondary_shadow": "none", "button_cancel_shadow": "none",
    "form_gap_width": "0px", "layout_gap": "18px", "shadow_drop": "none", "shadow_drop_lg": "none",
    "container_radius": "14px",
}


def make_theme() -> gr.themes.Base:
    """Gradio's base theme in our colours. No font is loaded from another site."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.emerald,
        neutral_hue=gr.themes.colors.stone,
        spacing_size=sizes.spacing_md,
        radius_size=sizes.radius_lg,
        font=[fonts.Font(FONT_FAMILY), "ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=[fonts.LocalFont("IBM Plex Mono", (400,)), "ui-monospace", "monospace"],
    )
    values = {name: f"var(--{use})" for name, use in _COLOUR_VARIABLES.items()} | _OTHER_VARIABLES
    dark = {f"{name}_dark": value for name, value in values.items() if hasattr(theme, f"{name}_dark")}
    light, night = PALETTE["background"]
    return theme.set(**values, **dark, body_background_fill=light, body_background_fill_dark=night)


def palette_css() -> str:
    """CSS with the palette as custom properties, for both themes, and the typeface."""
    light = "".join(f"--{use}:{pair[0]};" for use, pair in PALETTE.items())
    dark = "".join(f"--{use}:{pair[1]};" for use, pair in PALETTE.items())
    face = f"@font-face{{font-family:'{FONT_FAMILY}';font-weight:200 800;font-display:swap;" \
           f"src:url('{file_url(FONT)}') format('woff2')}}"
    # Gradio's drop zones have their own text; the style sheet replaces it with these.
    light += f"--text-drop:'{DROP}';--text-import:'{IMPORT_DROP}';--text-open:'{OPEN}';"
    return f":root{{{light}}}\n.dark{{{dark}}}\n{face}"
