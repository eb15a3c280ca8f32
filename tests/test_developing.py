"""The contributor's page is true where a machine can tell, and the source names no file that is not here."""

import ast
import re
import subprocess
from pathlib import Path

from support.room_map import PAGE, ROOT, with_map

_READ = {".py", ".md", ".js", ".mjs", ".yaml", ".toml", ".html", ".css"}
# Files of other projects, which the source cites, and one that a container's kernel has.
_ELSEWHERE = {
    "connect_utils.py",
    "dialect.js",
    "migrator.js",
    "migrator.utils.js",
    "native.py",
    "pg.js",
    "postgres.js",
}


def _texts() -> dict[Path, str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    paths = [ROOT / name for name in listed.split("\0") if name] or [*ROOT.rglob("*")]  # CI's tree is no repository
    return {
        path: path.read_text()
        for path in paths
        if path.suffix in _READ and path.is_file() and not {"node_modules", ".venv"} & set(path.parts)
    }


def test_the_map_of_the_rooms_is_what_their_docstrings_say():
    text = PAGE.read_text()
    assert text == with_map(text), "run: python tests/support/room_map.py"


def test_no_file_names_a_document_and_no_module_a_file_that_the_repository_does_not_hold():
    texts = _texts()
    names = {path.name for path in texts} | _ELSEWHERE
    missing = [
        f"{path.relative_to(ROOT)}: {named}"
        for path, text in texts.items()
        for named in re.findall(r"(?<![\w.*-])[\w-][\w.-]*\.(?:md|py|mjs|js)\b", text)
        if named not in names and (named.endswith(".md") or _is_module(path))
    ]
    assert missing == []


def _is_module(path: Path) -> bool:
    return path.suffix == ".py" and "tests" not in path.relative_to(ROOT).parts


def _files_called(path: str) -> list[Path]:
    """The files of the repository that the page means by `path`, which may be less than the whole path."""
    whole = [place for place in (ROOT / path, ROOT / "orchestrator" / path) if place.is_file()]
    return whole or [*(ROOT / "orchestrator").rglob(path)]


def test_each_file_and_each_name_that_the_contributors_page_mentions_is_there():
    text = PAGE.read_text()
    files = re.findall(r"`((?:[\w.-]+/)*\w+\.(?:py|js|md|toml))`", text)
    names = re.findall(r"`(\w+)`\s+in\s+`((?:\w+/)*\w+\.(?:py|js))`", text)
    assert len(files) > 60  # the patterns still find what they are for
    assert len(names) > 20
    assert [path for path in files if not _files_called(path)] == []
    assert [(name, path) for name, path in names if not any(_defines(file, name) for file in _files_called(path))] == []


def _defines(file: Path, name: str) -> bool:
    if file.suffix != ".py":
        return re.search(rf"\b{name}\b", file.read_text()) is not None
    tree = ast.parse(file.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, functions)}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        defined |= {target.id for target in targets if isinstance(target, ast.Name)}
    return name in defined
