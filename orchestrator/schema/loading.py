"""Find the MetaData that `module:name` names, in the user's own code, which runs while it is imported.

Whatever that code does at import (ends the process, prints, sets up logging, reads the command line) stays its own
affair: it is told, or undone, and never mistaken for what this command does.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import sysconfig
import traceback
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import structlog

from orchestrator.errors import EXIT_CONFIG, OrchestratorError


class MissingExtraError(OrchestratorError):
    """What the extra `dev` brings is not installed."""

    exit_code: ClassVar[int] = EXIT_CONFIG


try:
    import alembic  # noqa: F401 asked for here, so that it is missing before any work is done
    from sqlalchemy import MetaData
    from sqlalchemy.exc import SQLAlchemyError
except ImportError as error:
    raise MissingExtraError(
        f"generate needs SQLAlchemy and alembic, and {error.name} is not installed",
        remedy="pip install 'orchestrator[dev]'",
        facts={"module": error.name},
    ) from error

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from types import ModuleType

    from sqlalchemy import ForeignKeyConstraint, Table

PUBLIC = "public"
_NAME_ONE = "Name a MetaData, a declarative Base or a registry: SCHEMA=my_app.models:Base"


class SchemaError(OrchestratorError):
    """SCHEMA names nothing that can be compared: the module does not import, or holds no MetaData there."""

    exit_code: ClassVar[int] = EXIT_CONFIG


def load_metadata(schema: str) -> MetaData:
    """The MetaData that `module:name` names: one, or what has one as `.metadata` (a declarative Base, a registry).

    The working directory is looked in as well, after everything that is installed.

    Raises:
        SchemaError: with the file and line of the user's at which the import failed.
    """
    module_name, _, attribute = schema.partition(":")
    here = os.getcwd()  # noqa: PTH109 sys.path holds strings
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    module = _import(module_name, schema)
    file = getattr(module, "__file__", None)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n, v in vars(module).items() if not n.startswith("_") and _metadata_of(v) is not None]
            suggestion = f"; is {module_name}:{names[0]} meant?" if names else ""
            raise SchemaError(
                f"SCHEMA={schema}: {module_name} has no {attribute!r}{suggestion}",
                remedy=_NAME_ONE,
                facts={"schema": schema, "file": file},
            )
        found = getattr(found, part)
    metadata = _metadata_of(found)
    if metadata is None:
        raise SchemaError(
            f"SCHEMA={schema} is a {type(found).__name__}, and neither a MetaData nor anything that has one",
            remedy=_NAME_ONE,
            facts={"schema": schema, "file": file},
        )
    if not metadata.tables:
        raise SchemaError(
            f"SCHEMA={schema} has no tables: compared with it, every table of the folder would be dropped",
            remedy="The modules that declare the tables are probably not imported by the module that SCHEMA names:"
            " import them there, or name a module that does.",
            facts={"schema": schema, "file": file},
        )
    return _without_public(metadata)


def _metadata_of(value: object) -> MetaData | None:
    if isinstance(value, MetaData):
        return value
    inner = getattr(value, "metadata", None)
    return inner if isinstance(inner, MetaData) else None


def _without_public(metadata: MetaData) -> MetaData:
    """The same with schema="public" left out: to alembic that and none are two places, to the server one."""
    if not any(table.schema == PUBLIC for table in metadata.tables.values()):
        return metadata
    copy = MetaData(naming_convention=metadata.naming_convention)

    def place(_table: Table, schema: str | None, _constraint: object, referred: str | None) -> str | None:
        del schema
        return None if referred == PUBLIC else referred

    for table in metadata.tables.values():
        moved: Any = None if table.schema == PUBLIC else table.schema  # None is "without one", which the type forgets
        table.to_metadata(copy, schema=moved, referred_schema_fn=place)
    return copy


def _import(name: str, schema: str) -> ModuleType:
    try:
        with _contained():
            return importlib.import_module(name)
    except SystemExit as error:
        what = f"it ends the process (sys.exit, code {error.code!r})"
        remedy = "Move what ends the process, or reads the command line, under `if __name__ == '__main__':`."
        raise _not_imported(error, name, schema, what, remedy) from error
    except Exception as error:
        remedy = "Correct the module, or name another; it is looked for in the working directory and on PYTHONPATH."
        raise _not_imported(error, name, schema, f"{type(error).__name__}: {error}", remedy) from error


def _not_imported(error: BaseException, name: str, schema: str, what: str, remedy: str) -> SchemaError:
    # Frames of ours, and of the machinery that imports.
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")][2:]
    own = [frame for frame in frames if _is_of_user(frame.filename, name)] or frames
    place = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" at {error.filename}:{error.lineno}"
    return SchemaError(
        f"SCHEMA={schema}: the module {name} does not import{place}: {what}",
        remedy=remedy,
        facts={"schema": schema, "place": place.removeprefix(" at ")},
    )


def _is_of_user(file: str, module: str) -> bool:
    """Whether `file` is code that the user can look into: not a library's, but for the package that SCHEMA names."""
    package = module.partition(".")[0]
    path = Path(file)
    if package in path.parts or path.stem == package:
        return True
    libraries = {sysconfig.get_path(which) for which in ("stdlib", "platstdlib", "purelib", "platlib")}
    return "site-packages" not in path.parts and not any(path.is_relative_to(one) for one in libraries)


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """What an import prints goes to stderr; the command line is not the module's; its logging set-up is undone."""
    loggers = [
        logging.root,
        *(one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)),
    ]
    before = [(one, one.level, one.handlers[:], one.filters[:], one.propagate, one.disabled) for one in loggers]
    disabled, structured, arguments = logging.root.manager.disable, structlog.get_config(), sys.argv
    sys.argv = arguments[:1]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv = arguments
        structlog.configure(**structured)
        logging.disable(disabled)
        for logger, level, handlers, filters, propagate, is_off in before:
            logger.setLevel(level)
            logger.handlers[:], logger.filters[:] = handlers, filters
            logger.propagate, logger.disabled = propagate, is_off
        for one in logging.root.manager.loggerDict.values():
            if isinstance(one, logging.Logger) and one not in loggers:
                one.handlers.clear()
                one.setLevel(logging.NOTSET)
                one.propagate = True


# -------------------------------------------------------------------------------------------------------- leaving out


def without_tables(metadata: MetaData, patterns: Collection[str]) -> frozenset[tuple[str, str]]:
    """Take the tables that `patterns` name (users, app.users, geo_*) out of `metadata`; returns their names.

    Foreign keys of other tables to them go as well: `generate` writes none of them, and drops none.

    Raises:
        SchemaError: a pattern fits no table.
    """
    names = {table.key: (table.schema or PUBLIC, table.name) for table in metadata.tables.values()}
    gone = {key for key, name in names.items() if any(_fits(name, pattern) for pattern in patterns)}
    for pattern in patterns:
        if not any(_fits(name, pattern) for name in names.values()):
            raise SchemaError(
                f"--exclude {pattern}: the code has no table of that name",
                remedy="Write it as table or schema.table, as the code has it; * stands for any letters.",
                facts={"exclude": pattern},
            )
    for table in metadata.tables.values():
        for key in [key for key in table.foreign_key_constraints if _referred(key) in gone]:
            _forget(table, key)
    for name in gone:
        metadata.remove(metadata.tables[name])
    return frozenset(names[name] for name in gone)


def _fits(name: tuple[str, str], pattern: str) -> bool:
    spelled = {".".join(name)} | ({name[1]} if name[0] == PUBLIC else set())
    return any(fnmatchcase(one, pattern) for one in spelled)


def _referred(key: ForeignKeyConstraint) -> str:
    return key.elements[0].target_fullname.rpartition(".")[0]


def _forget(table: Table, key: ForeignKeyConstraint) -> None:
    for one in key.elements:
        with contextlib.suppress(SQLAlchemyError):
            _ = one.column  # the type of the referring column may come from there
        one.parent.foreign_keys.discard(one)
        table.foreign_keys.discard(one)
    table.constraints.discard(key)
