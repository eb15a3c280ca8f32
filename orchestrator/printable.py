"""Text from outside made harmless for a terminal: control characters are escaped. Pure: no I/O."""

from __future__ import annotations

import re

# C0 but for tab and line feed, DEL, C1 (8-bit escape sequences), and what turns the direction of text or breaks lines.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""The text with each steering character written as \uXXXX, as JSON does: what is JSON stays JSON."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
