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
    """Module, name and value of every public function, class and constant."""
    for name, module in MODULES.items():
        for member, value in vars(module).items():
            kind = inspect.isfunction(value) or inspect.isclass(value)
            own = kind and value.__module__.startswith(module.__name__)
            if member in getattr(module, "__all__", ()) or (own and member[0] != "_"):
                yield name, member, value
