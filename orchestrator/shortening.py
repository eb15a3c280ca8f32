"""Make the facts of one line of the log short enough for whoever cuts lines. Pure: no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Set as AbstractSet

# Items of a list and characters of a text: each step until it fits.
_STEPS = ((200, 4000), (100, 2000), (50, 1000), (20, 500), (10, 300), (5, 200), (2, 100), (1, 60))
# What tells a person what to do: the last to be shortened.
_REMEDIES = frozenset({"remedy", "hint"})
_REMEDY_CHARS = 2000
_FIELDS_LEAST = 12


def shortened(
    facts: Mapping[str, Any], limit: int, *, size: Callable[[Mapping[str, Any]], int], keep: AbstractSet[str]
) -> dict[str, Any]:
    """The facts, shortened until their `size` is at most `limit`: lists with a count, texts in their middle.

    What is no list comes before the lists, so that whoever cuts a line all the same cuts the least. The facts in `keep`
    are left as they are. The values are JSON's own types.
    """
    ordered = {k: v for k, v in facts.items() if k in keep}
    ordered |= {k: v for k, v in facts.items() if not isinstance(v, (list, dict))}
    ordered |= facts
    found: dict[str, Any] = {}
    for items, chars in _STEPS:
        found = {
            k: v if k in keep else _cut(v, items, max(chars, _REMEDY_CHARS) if k in _REMEDIES else chars)
            for k, v in ordered.items()
        }
        if size(found) <= limit:
            return found
    # Not a long fact, but a thousand of them: the last ones go.
    while len(found) > len(keep) and size(found) > limit:
        names = [k for k in found if k not in keep and k not in _REMEDIES] or list(_REMEDIES & found.keys())
        for name in names[len(names) // 2 :]:
            del found[name]
    return found


def _cut(value: Any, items: int, chars: int) -> Any:
    if isinstance(value, str):
        return _middle_cut(value, chars)
    if isinstance(value, list):
        cut = [_cut(one, items, chars) for one in value[:items]]
        return cut if len(value) <= items else [*cut, f"… and {len(value) - items} more"]
    if isinstance(value, dict):
        fields = max(items, _FIELDS_LEAST)
        cut_fields = {_middle_cut(k, chars): _cut(v, items, chars) for k, v in list(value.items())[:fields]}
        return cut_fields if len(value) <= fields else {**cut_fields, "…": f"and {len(value) - fields} more"}
    return value


def _middle_cut(text: str, chars: int) -> str:
    """The text without its middle: an error's end tells as much as its beginning."""
    if len(text) <= chars:
        return text
    tail = chars // 3
    return f"{text[: chars - tail]} … ({len(text) - chars} characters left out) … {text[-tail:]}"
