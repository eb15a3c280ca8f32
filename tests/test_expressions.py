"""No regular expression of the package takes more than linear time, whatever it reads: each is found in the source and
tried, as it is used there, on repetitions that its own parts suggest."""

import ast
import re
import time
from itertools import product
from pathlib import Path
from re import _parser as grammar  # type: ignore[attr-defined]  # the parse tree of an expression has no public door

import pytest

PACKAGE = Path(__file__).parents[1] / "orchestrator"
METHODS = ("match", "search", "fullmatch", "sub", "subn", "split", "findall", "finditer")
LENGTH = 6_000  # linear: a millisecond; quadratic: some hundred; cubic: for ever
LIMIT_S = 0.1
# Put together when they run: a constant part repeated, or names that are escaped, between boundaries.
COMPOSED = {
    "orchestrator/analysis/outside_database.py", "orchestrator/migrator/sql/statements.py", "orchestrator/redaction.py",
    "orchestrator/schema/table_sql.py", "orchestrator/tools/replay_edits.py",
}  # fmt: skip


def uses():
    """Each constant expression with how it is used: (place, expression, flags, method)."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE.parent))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assigned = {
            id(node.value): node.targets[0].id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and ast.unparse(call.func).removeprefix("re.") in (*METHODS, "compile")):
                continue
            if not ast.unparse(call.func).startswith("re."):
                continue
            if not isinstance(call.args[0], ast.Constant):
                assert name in COMPOSED, f"{name}:{call.lineno}: an expression that this test cannot read"
                continue
            flags = 0
            for word in re.findall(r"re\.([A-Z]+)\b", ast.unparse(call)):
                flags |= getattr(re, word)
            method = call.func.attr
            if method == "compile":
                used = re.findall(
                    rf"\b{assigned.get(id(call), '')}\.({'|'.join(METHODS)})\(", path.read_text(encoding="utf-8")
                )
                method = "match" if used and set(used) <= {"match", "fullmatch"} else "search"
            yield pytest.param(call.args[0].value, flags, method, id=f"{name}:{call.lineno}")


def example(nodes):
    """A short text that matches, as far as that can be told without a search."""
    found = ""
    for kind, value in nodes:
        match str(kind):
            case "LITERAL":
                found += chr(value)
            case "NOT_LITERAL" | "ANY":
                found += "x"
            case "IN":
                found += members(value)[0]
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                found += example(value[2]) * value[0]
            case "SUBPATTERN":
                found += example(value[3])
            case "ATOMIC_GROUP":
                found += example(value)
            case "BRANCH":
                found += example(value[1][0])
    return found


def members(choices):
    """A few characters of a class, and for a negated one a few from outside of it."""
    negated, found = False, []
    for kind, value in choices:
        match str(kind):
            case "NEGATE":
                negated = True
            case "LITERAL":
                found.append(chr(value))
            case "RANGE":
                found.append(chr(value[0]))
            case "CATEGORY":
                found.append({"CATEGORY_DIGIT": "1", "CATEGORY_SPACE": " ", "CATEGORY_WORD": "a"}.get(str(value), "-"))
    return ["~", *found[:3]] if negated else found[:4]


def repetitions(nodes, before=""):
    """What stands before a repetition, and the pieces that it repeats, for each one at any depth."""
    for place, (kind, value) in enumerate(nodes):
        prefix = before + example(nodes[:place])
        match str(kind):
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                inner = value[2]
                pieces = {example(inner), *(members(inner[0][1]) if str(inner[0][0]) == "IN" else ())}
                yield prefix, pieces - {""}
                yield from repetitions(inner, prefix)
            case "SUBPATTERN":
                yield from repetitions(value[3], prefix)
            case "ATOMIC_GROUP":
                yield from repetitions(value, prefix)
            case "ASSERT" | "ASSERT_NOT":
                yield from repetitions(value[1], prefix)
            case "BRANCH":
                for branch in value[1]:
                    yield from repetitions(branch, prefix)


@pytest.mark.parametrize(("expression", "flags", "method"), list(uses()))
def test_its_time_grows_with_the_length_alone(expression, flags, method):
    compiled = re.compile(expression, flags)
    if isinstance(expression, bytes):
        encode, expression = (lambda text: text.encode("latin-1", "replace")), expression.decode("latin-1")
    else:
        encode = str
    run = compiled.match if method in {"match", "fullmatch"} else lambda text: sum(1 for _ in compiled.finditer(text))
    if method == "fullmatch":
        run = compiled.fullmatch
    found = list(repetitions(list(grammar.parse(expression, flags))))
    everything = set().union(*(pieces for _, pieces in found)) if found else set()
    texts = set()
    for prefix, pieces in found:
        for one, other in product(pieces, ["", *everything]):
            unit = one + other
            texts.update(f"{start}{unit * (LENGTH // len(unit))}{end}" for start in ("", prefix) for end in ("", "\0"))
            texts.add((prefix + one) * (LENGTH // len(prefix + one)))
    for text in texts:
        given = encode(text)
        began = time.process_time()
        run(given)
        assert time.process_time() - began < LIMIT_S, f"{expression!r} on {text[:40]!r}…"
