"""Files that come with Atelier: a package, so that an installed copy finds them (``training/config/assets.py``)."""
