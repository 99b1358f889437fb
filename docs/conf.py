"""Settings of the documentation site: `make docs` builds it to `docs/_build/html`."""

import hashlib
import os
import pathlib
import sys
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import siamese_jax  # noqa: E402
from tests.public import public_members  # noqa: E402

project = "siamese_jax"
author = "the authors of siamese_jax"
release = siamese_jax.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "notebooks"]
templates_path = ["_templates"]

# Docstrings: a word in backquotes is code, and a link if it is a public name -----------
default_role = "py:obj"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autosummary_imported_members = True
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 72
python_use_unqualified_type_names = True

# Pages in Markdown, of which notebooks are run -----------------------------------------
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # pages are alike on all machines


def code_digest() -> str:
    """Notebooks are run again if the code that they import has changed."""
    files = [*ROOT.glob("siamese_jax/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    code = b"".join(path.read_bytes() for path in sorted(files))
    return hashlib.sha256(code).hexdigest()[:16]


nb_execution_cache_path = str(ROOT / ".cache" / "notebooks" / code_digest())

# Appearance ----------------------------------------------------------------------------
html_theme = "sphinx_book_theme"
html_title = f"siamese_jax {release}"
html_theme_options = {
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_copy_source = False


def check_public_names(app: Sphinx, exception: Exception | None) -> None:
    """Refuses a site on which a public name has no entry."""
    if exception is None:
        shown = app.env.domains.python_domain.objects
        names = {f"siamese_jax.{module}.{name}" for module, name, _ in public_members()}
        missing = sorted({f"siamese_jax.{name}" for name in siamese_jax.__all__} | names)
        missing = [name for name in missing if name not in shown]
        for name in missing:
            logging.getLogger(__name__).error("%s is on no page", name)
        if missing:
            raise ExtensionError(f"{len(missing)} public names are on no page")


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the check to the build."""
    app.connect("build-finished", check_public_names)
    return {"parallel_read_safe": True}
