"""The map of the rooms on the contributor's page, made from the layers in pyproject.toml and the docstrings.

`python tests/support/room_map.py` writes it into orchestrator/docs/developing.md.
"""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "orchestrator" / "docs" / "developing.md"
PART = re.compile(r"(<!-- rooms: .* -->\n).*?(<!-- end of rooms -->)", re.DOTALL)


def layers() -> list[str]:
    """The names in the package `orchestrator`, from the top of the ladder to its foot."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (ladder,) = [contract for contract in contracts if contract["type"] == "layers"]
    return [name for layer in ladder["layers"] for name in layer.split(" | ")]


def _first_paragraph(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def room_map() -> str:
    """A Markdown table: each room with what its docstring says of it; a room within a room stands below it."""
    rows = ["| room | what it is for |", "|---|---|"]
    for name in layers():
        place = ROOT / "orchestrator" / name
        if not place.is_dir():
            rows.append(f"| `{name}.py` | {_first_paragraph(place.with_suffix('.py'))} |")
            continue
        for file in sorted(place.rglob("__init__.py")):
            room = file.parent.relative_to(ROOT / "orchestrator").as_posix()
            rows.append(f"| `{room}/` | {_first_paragraph(file)} |")
    return "\n".join(rows) + "\n"


def with_map(text: str) -> str:
    """The page's text with the map as it should be."""
    return PART.sub(lambda found: found[1] + room_map() + found[2], text)


if __name__ == "__main__":
    PAGE.write_text(with_map(PAGE.read_text()))
