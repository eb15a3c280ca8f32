"""The options of a statement, as the server reads them: `REINDEX (CONCURRENTLY off, …)`. Pure: no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def is_on(options: Sequence[dict[str, Any]] | None, name: str, *, default: bool = False) -> bool:
    """A boolean option as defGetBoolean (define.c) reads it: on where it has no value; the last one given counts."""
    value = default
    for option in options or ():
        element = option.get("DefElem", {})
        if element.get("defname") == name:
            value = "arg" not in element or _is_true(element["arg"])
    return value


def _is_true(argument: dict[str, Any]) -> bool:
    if "Integer" in argument:
        return bool(argument["Integer"].get("ival", 0))
    if "Boolean" in argument:
        return bool(argument["Boolean"].get("boolval", False))
    if "TypeName" in argument:
        # A bare word that is no keyword (`off`) is read as the name of a type.
        word = argument["TypeName"]["names"][-1]["String"].get("sval", "")
    else:
        word = argument.get("String", {}).get("sval", "")
    return str(word).lower() not in {"false", "off", "0"}


def has_option(options: Sequence[dict[str, Any]] | None, *names: str) -> bool:
    """Whether one of these options is given, whatever its value."""
    return any(option.get("DefElem", {}).get("defname") in names for option in options or ())
