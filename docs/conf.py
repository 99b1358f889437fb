"""Settings of the documentation site: `make docs` builds it to `docs/_build/html`."""

import hashlib
import inspect
import os
import pathlib
import re
import sys
from typing import Any

import jax
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms import SphinxTransform
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

# Docstrings ----------------------------------------------------------------------------
add_module_names = False
CONSTANTS = [
    (module, name)
    for module, name, value in public_members()
    if not (inspect.isfunction(value) or inspect.isclass(value))
]
autosummary_context = {"constants": CONSTANTS}  # automodule leaves them out
add_function_parentheses = False  # names in "Contents" fit their column
default_role = "py:obj"  # what stands in backquotes: code, with a link if it is public
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_attr_annotations = False  # the signature has them
napoleon_numpy_docstring = False
napoleon_use_ivar = True
next(f for f in PyObject.doc_field_types if f.name == "variable").label = "Attributes"
python_maximum_signature_line_length = 72
# Names of other packages, and of arguments, have no page here.
nitpick_ignore_regex = [("py:.*", r"(?s)(?!siamese_jax\.).*")]

# Pages in Markdown, of which notebooks are run -----------------------------------------
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_output_stderr = "remove"  # what XLA and others log depends on the machine
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # pages are alike on all machines


def code_digest() -> str:
    """Stands for the code that notebooks import: if it changes, they are run again."""
    files = [*ROOT.glob("siamese_jax/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    code = b"".join(path.read_bytes() for path in sorted(files))
    return hashlib.sha256(code + jax.__version__.encode()).hexdigest()[:16]


nb_execution_cache_path = str(ROOT / ".cache" / "notebooks" / code_digest())

# Appearance ----------------------------------------------------------------------------
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"siamese_jax {release}"
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search is in the sidebar
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_copy_source = False


# Names of the library --------------------------------------------------------------------

FULL_NAMES = {f"siamese_jax.{module}.{name}" for module, name, _ in public_members()}
MODULES = {f"siamese_jax.{module}" for module in siamese_jax.__all__}


def full_name(text: str) -> str | None:
    """The public name that `losses.nt_xent_loss` or `nt_xent_loss` stands for, if any."""
    if text in MODULES:
        return text
    name = text.partition("(")[0].removeprefix("sj.").removeprefix("siamese_jax.")
    if "." in name:
        return next(iter({f"siamese_jax.{name}"} & FULL_NAMES), None)
    found = [full for full in FULL_NAMES if full.endswith(f".{name}")]
    return found[0] if len(found) == 1 and "_" in name else None


def is_in_link(node: nodes.Node) -> bool:
    """Whether a node is part of a link, in which browsers allow no other."""
    parent = node.parent
    return parent is not None and (
        isinstance(parent, pending_xref | nodes.reference) or is_in_link(parent)
    )


class LinkPublicNames(SphinxTransform):
    """Makes code in the text of pages a link if it is a public name of the library."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Replaces the code by a reference around it."""
        for node in list(self.document.findall(nodes.literal)):
            full = full_name(node.astext())
            if full and not is_in_link(node):
                reference = {"refdomain": "py", "reftype": "obj", "reftarget": full}
                node.replace_self(pending_xref("", node.deepcopy(), **reference))


def complete_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Any
) -> Any:
    """Looks up the full name of a reference that has the name without its module."""
    full = full_name(node["reftarget"])
    if node.get("refdomain") == "py" and full and full != node["reftarget"]:
        domain = env.domains.python_domain
        return domain.resolve_xref(
            env, node["refdoc"], app.builder, "obj", full, node, content
        )


def shorten_signature(app: Sphinx, *args: Any) -> tuple[str | None, str | None]:
    """Writes `Array` whatever module defines it, and leaves out what Flax adds."""
    *_, signature, returned = args
    for pattern, text in {
        r"~?[\w.]+\.Array\b": "Array",
        r"(, )?parent: [^=]* = <[^>]*>, name: [^=]* = None\)": ")",
        r"<function _?(\w+)>": r"\1",
        r"<factory>": "{}",
    }.items():
        signature, returned = (
            s and re.sub(pattern, text, s) for s in (signature, returned)
        )
    return signature, returned


def complete_docstring(app: Sphinx, what: str, name: str, *args: Any) -> None:
    """Finds the docstring of a constant; keeps `|x - m|`, which has another meaning."""
    lines = args[-1]
    if what == "data":
        package, _, constant = name.rpartition(".")
        for module in [name for name in sys.modules if name.startswith(f"{package}.")]:
            found = ModuleAnalyzer.for_module(module).find_attr_docs()
            lines[:] = found.get(("", constant), lines)
    example = False
    for number, line in enumerate(lines):
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        if not example:
            lines[number] = line.replace("|", r"\|")


def leave_out_fields(app: Sphinx, *args: Any) -> bool | None:
    """The signature and the docstring of a tuple have its fields."""
    _, _, member, *_ = args
    return True if type(member).__name__ == "_tuplegetter" else None


def check_public_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of public names that no page has."""
    shown = env.domains.python_domain.objects
    for name in sorted((FULL_NAMES | MODULES) - set(shown)):
        logging.getLogger(__name__).warning("%s is on no page", name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the functions above to the build."""
    app.add_transform(LinkPublicNames)
    app.connect("missing-reference", complete_name)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-process-docstring", complete_docstring)
    app.connect("autodoc-skip-member", leave_out_fields)
    app.connect("env-check-consistency", check_public_names)
    return {"parallel_read_safe": True}
