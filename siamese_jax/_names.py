"""Names of files, folders and classes as text.

A name on a disk may hold bytes that are no text, which Python keeps as surrogate
characters, and one text may be written in several ways: "é" as one character or as "e"
with an accent after it.
"""

import io
import sys
import unicodedata
from collections.abc import Sequence

_LITTER = {"__macosx", "@eadir", "thumbs.db", "desktop.ini"}


def comparable(name: str) -> str:
    r"""The one spelling of a name (NFC) by which names are compared.

    >>> comparable("Jose\u0301") == "José"
    True
    """
    return unicodedata.normalize("NFC", name)


def shown(text: str) -> str:
    r"""The same text with an escape for what cannot be printed, encoded or drawn.

    >>> print(shown("caf\udce9"), shown("two\nlines"), shown("Ba$$in"))
    caf\udce9 two\nlines Ba$$in
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cs")  # control characters, surrogates
        else character
        for character in text
    )


def print_any_name() -> None:
    """Makes `print` escape the characters that the terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_litter(name: str) -> bool:
    """Whether a system has left this file or folder behind: it is nobody's image.

    >>> is_litter("._0.png"), is_litter("Thumbs.db"), is_litter("0.png")
    (True, True, False)
    """
    return name.startswith(".") or name.casefold() in _LITTER


def enumerated(words: Sequence[str], *, limit: int = 20) -> str:
    """Joins words by commas; those beyond the limit are only counted.

    >>> enumerated(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
