"""Sphinx: the site is built with ``python -m sphinx -n -W -b html docs docs/_build``."""

from pyvhdx import __version__

project = "pyvhdx"
author = "the pyvhdx authors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
default_role = "any"
# Names of the standard library: the site is built without the network.
nitpick_ignore_regex = [("py:.*", r"(?!pyvhdx).*")]
suppress_warnings = ["ref.any", "ref.python"]
