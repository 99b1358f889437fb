"""Packages of the extra `cli`, imported where they are used and not before."""

import importlib
from typing import Any

from siamese_jax.errors import UserError


def import_extra(name: str) -> Any:
    """Imports a module that only the extra `cli` installs.

    Raises:
      UserError: If the module is not installed. The message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise UserError(
            f"the package {package} is not installed: pip install 'siamese_jax[cli]'"
        ) from error
