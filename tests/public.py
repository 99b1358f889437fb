"""The public names of the library: what tests and the documentation site must cover."""

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import siamese_jax

MODULES = {
    name: importlib.import_module(f"siamese_jax.{name}") for name in siamese_jax.__all__
}


def public_members() -> Iterator[tuple[str, str, Any]]:
    """Module, name and value of every public function and class."""
    for module, value_of in MODULES.items():
        for name, value in vars(value_of).items():
            kind = inspect.isfunction(value) or inspect.isclass(value)
            if kind and not name.startswith("_"):
                if value.__module__.startswith(value_of.__name__):
                    yield module, name, value
