"""Whether the names that pending files need are there, and those that they make are not. Pure: no I/O.

It begins with the names of the catalogue (`catalog_reader.read_names`), or with nothing, and follows what the files
make and drop. A name is there, or perhaps there (a statement that may not have run makes it), or it is not. What a
statement does that its text does not show (EXECUTE, a function that is called, DROP … CASCADE) makes all of it
uncertain: from there on nothing is said, since a wrong finding costs more than none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.analysis import ast
from orchestrator.migrator.sql import names
from orchestrator.migrator.sql.names import Ref, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.analysis.ast import Tree
    from orchestrator.migrator.sql.names import NameKind

# Schema (None: the search path decides) and name of a relation.
Place = tuple[str | None, str]
Key = tuple["NameKind", str | None, str]

_IN_SCHEMAS: tuple[NameKind, ...] = ("function", "relation", "type")
_JUDGED = frozenset({"column", "extension", "function", "relation", "role", "schema", "type"})
# Every relation has these (PostgreSQL manual, "System Columns").
_SYSTEM_COLUMNS = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid", "oid"})
# Statements whose calls are looked at: what an INSERT or UPDATE calls computes, as a rule.
_CALLING = frozenset({"CallStmt", "SelectStmt"})
_QUIET_CALLS = frozenset({"nextval", "set_config", "setval"})
_FAR = frozenset(
    {"AlterExtensionContentsStmt", "AlterExtensionStmt", "CallStmt", "DropOwnedStmt", "ImportForeignSchemaStmt"}
)
# What an extension may bring; of relations only those here, or in a schema off the search path.
_BROUGHT = frozenset({"function", "schema", "type"})
_BROUGHT_RELATIONS = frozenset(
    {"geography_columns", "geometry_columns", "pg_stat_statements", "raster_columns", "spatial_ref_sys"}
)
_IMPLICIT = ("_idx", "_key", "_pkey", "_seq")
_WALKED_ROWS = 50


class Absent(NamedTuple):
    """A name that a statement needs and that is not there; `nearest` is the one that may have been meant."""

    ref: Ref
    nearest: str | None


class Thing(NamedTuple):
    """A name that is there: for certain or perhaps; `what` it is, of a relation."""

    certain: bool = True
    what: str = ""


@dataclass(slots=True)
class NamesThere:
    """The names that are there at a statement; `live` says that they began with the whole catalogue.

    The columns of a relation (each with whether it is certain) are None where they are not known. `available` are the
    extensions whose files the server has.
    """

    live: bool = False
    role_path: list[str] = field(default_factory=lambda: ["public"])
    things: dict[Key, Thing] = field(default_factory=dict)
    columns: dict[Place, dict[str, bool] | None] = field(default_factory=dict)
    children: dict[Place, set[Place]] = field(default_factory=dict)
    available: frozenset[str] = frozenset()
    path: list[str] = field(default_factory=list)
    _is_certain: bool = True
    _may_be_brought: bool = False
    _touched: set[str] = field(default_factory=set)

    def begin_file(self) -> None:
        """Each file begins with the role's own search path, and without temporary tables."""
        self.path = list(self.role_path)
        self.things = {key: thing for key, thing in self.things.items() if key[1] != "pg_temp"}

    def install(self, extensions: Iterable[str]) -> None:
        """These are made before the first file: what they bring is not known."""
        for name in extensions:
            if ("extension", None, name) not in self.things and name in self.available:
                self.things["extension", None, name] = Thing()
                self._may_be_brought = True

    def lose_track(self) -> None:
        """Something ran that was not followed: nothing is certain from here on."""
        self._is_certain = False

    # --- Asking ------------------------------------------------------------------------------------------------------

    def absent(self, node: str, fields: Tree) -> list[Absent]:
        """What the statement needs and is not there; nothing is said of what may not run."""
        if not (self.live and self._is_certain):
            return []
        if node == "CreateExtensionStmt":
            name = fields["extname"]
            lacks = name not in self.available and ("extension", None, name) not in self.things
            return [Absent(Ref("extension", name), nearest(name, self.available))] if lacks else []
        own = {(ref.kind, ref.name) for ref in names.made(node, fields)}
        found: dict[tuple[NameKind, str], Absent] = {}
        for ref in _needed(node, fields):
            if (ref.kind, ref.name) not in own and not self._is_there(ref):
                found.setdefault((ref.kind, ref.name), Absent(ref, nearest(ref.name, self._like(ref))))
        # Where a schema or a relation is not there, what it would hold is not told, too.
        lacking = {one.ref.name for one in found.values() if one.ref.kind in {"relation", "schema"}}
        return [
            one
            for one in found.values()
            if one.ref.schema not in lacking and (one.ref.of is None or one.ref.of[1] not in lacking)
        ]

    def present(self, node: str, fields: Tree) -> list[Ref]:
        """What the statement makes and is there for certain."""
        if not self._is_certain or node in {"RenameStmt", "AlterObjectSchemaStmt"}:
            return []
        gone = {(ref.kind, ref.name) for ref in names.dropped(node, fields)}
        return [
            ref
            for ref in names.made(node, fields)
            if not ref.is_optional
            and ref.kind in _JUDGED - {"function"}
            and (ref.kind, ref.name) not in gone
            and not (ref.kind == "column" and node == "CreateStmt")
            and self._is_certainly_there(self._in_place(ref, fields))
        ]

    def _is_there(self, ref: Ref) -> bool:
        if ref.kind == "column":
            return self._has_column(ref)
        if self._may_be_brought and (ref.kind in _BROUGHT or self._is_brought(ref)):
            return True
        if ref.kind not in _IN_SCHEMAS:
            is_temporary = ref.kind == "schema" and ref.name.startswith("pg_temp")
            return is_temporary or (ref.kind, None, ref.name) in self.things
        if ref.schema == "pg_temp" or ref.name.startswith("_") or self._may_be_implicit(ref):
            return True
        # A relation is a type, too, and date('…') a cast.
        also: dict[NameKind, tuple[NameKind, ...]] = {"type": ("relation",), "function": ("type",)}
        kinds = (ref.kind, *also.get(ref.kind, ()))
        return any((kind, schema, ref.name) in self.things for kind in kinds for schema in self._schemas(ref))

    def _is_brought(self, ref: Ref) -> bool:
        off_the_path = ref.schema is not None and ref.schema not in self.path
        return ref.kind == "relation" and (off_the_path or ref.name in _BROUGHT_RELATIONS)

    def _may_be_implicit(self, ref: Ref) -> bool:
        """Whether an index or a sequence may be one that Postgres named after a table that the files touched."""
        is_one = ref.what in {"index", "sequence"} or ref.name.endswith(_IMPLICIT)
        return ref.kind == "relation" and is_one and any(ref.name.startswith(f"{name}_") for name in self._touched)

    def _has_column(self, ref: Ref) -> bool:
        known = self.columns.get(place) if ref.of and (place := self._find("relation", ref.of)) else None
        return known is None or ref.name in known or ref.name in _SYSTEM_COLUMNS

    def _find(self, kind: NameKind, of: Place) -> Place | None:
        schemas = self._schemas(Ref(kind, of[1], of[0]))
        return next(((schema, of[1]) for schema in schemas if (kind, schema, of[1]) in self.things), None)

    def _schemas(self, ref: Ref) -> list[str]:
        return [ref.schema] if ref.schema else ["pg_temp", *self.path, "pg_catalog"]

    def _like(self, ref: Ref) -> Iterable[str]:
        if ref.kind == "column":
            place = self._find("relation", ref.of) if ref.of else None
            return (self.columns.get(place) or {}) if place else ()
        if ref.kind == "extension":
            return self.available
        schemas = {None, *self._schemas(ref)} - ({"pg_catalog"} if ref.kind == "relation" else set())
        return [name for kind, schema, name in self.things if kind == ref.kind and schema in schemas]

    def _is_certainly_there(self, ref: Ref) -> bool:
        if ref.kind == "column":
            place = self._find("relation", ref.of) if ref.of else None
            return bool(place and (self.columns.get(place) or {}).get(ref.name))
        thing = self.things.get((ref.kind, ref.schema, ref.name))
        return thing is not None and thing.certain

    def _in_place(self, ref: Ref, fields: Tree) -> Ref:
        """With the schema in which it is made."""
        if ref.kind not in _IN_SCHEMAS or ref.schema is not None:
            return ref
        made = [fields.get("relation", {}), fields.get("sequence", {}), fields.get("view", {})]
        if ref.what != "index" and any(one.get("relpersistence") == "t" for one in made):
            return ref._replace(schema="pg_temp")
        if ref.what == "index" and (table := self._find("relation", (None, fields["relation"]["relname"]))):
            return ref._replace(schema=table[0])
        exists = (one for one in self.path if not self.live or ("schema", None, one) in self.things)
        return ref._replace(schema=next(exists, "public"))

    # --- Following ---------------------------------------------------------------------------------------------------

    def learn(self, node: str, fields: Tree, *, certain: bool = True) -> None:
        """Follow what the statement makes and drops; not `certain`: it may not run."""
        if node == "CreateExtensionStmt" and ("extension", None, fields["extname"]) not in self.things:
            self._may_be_brought = True
        if self._reaches_far(node, fields):
            self.lose_track()
        for name, values in names.settings(node, fields):
            if name == "search_path":
                self.path = [value for value in values if value not in {"", "$user"}]
        self._learn(node, fields, certain=certain)

    def _reaches_far(self, node: str, fields: Tree) -> bool:
        """Whether it may change what its text does not name."""
        if node in _CALLING and any(map(self._is_unknown, ast.called(fields))):
            return True
        kind = fields.get("removeType") or fields.get("renameType") or fields.get("objectType")
        cascades = node == "DropStmt" and (fields.get("behavior") == "DROP_CASCADE" or kind == "OBJECT_EXTENSION")
        moves = node in {"RenameStmt", "AlterObjectSchemaStmt"} and kind in {"OBJECT_SCHEMA", "OBJECT_EXTENSION"}
        undoes = node == "TransactionStmt" and fields["kind"].startswith("TRANS_STMT_ROLLBACK")
        return node in _FAR or cascades or moves or undoes or bool(fields.get("schemaElts"))

    def _is_unknown(self, call: ast.Name) -> bool:
        """Whether a function may do what is not seen; without a catalogue, one that the files made."""
        if call.schema == "pg_catalog" or call.name in _QUIET_CALLS:
            return False
        is_system = ("function", "pg_catalog", call.name) in self.things
        is_made = any(("function", schema, call.name) in self.things for schema in (call.schema, *self.path))
        return not is_system if self.live else is_made

    def _learn(self, node: str, fields: Tree, *, certain: bool) -> None:
        gone, new = names.dropped(node, fields), names.made(node, fields)
        if gone:
            self._loosen_indexes()
        if "relname" in fields.get("relation", {}) and node not in {"InsertStmt", "UpdateStmt", "DeleteStmt"}:
            self._touched.add(fields["relation"]["relname"])
        if node in {"RenameStmt", "AlterObjectSchemaStmt"}:
            for old, to in zip(gone, new, strict=True):
                self._move(old, to, certain=certain)
            return
        for ref in gone:
            self._drop(ref, certain=certain)
        for ref in new:
            self._make(self._in_place(ref, fields), certain=certain)
        if node == "CreateStmt":
            self._give_columns(fields, certain=certain)
        elif node == "AlterTableStmt":
            for command in ast.commands(fields):
                if "PartitionCmd" in command.get("def", {}):
                    self._inherit(
                        ast.relation(command["def"]["PartitionCmd"]["name"]), ast.relation(fields["relation"])
                    )

    def _make(self, ref: Ref, *, certain: bool) -> None:
        if ref.kind == "column":
            place = self._find("relation", ref.of) if ref.of else None
            if place is None and ref.of and not self.live:  # never heard of: made before the files that we see
                place = self._in_place(Ref("relation", ref.of[1], ref.of[0]), {}).schema, ref.of[1]
                self.things["relation", place[0], place[1]] = Thing(certain=False)
                self.columns.setdefault(place, {})
            self._forget_children(place)
            known = self.columns.get(place) if place else None
            if known is not None:
                known[ref.name] = known.get(ref.name, False) or (certain and not ref.is_optional) or ref.is_optional
        elif ref.kind == "constraint":
            place = self._find("relation", ref.of) if ref.of else None
            if place:  # a UNIQUE or PRIMARY KEY makes an index of its name
                self.things.setdefault(("relation", place[0], ref.name), Thing(certain=False, what="index"))
        elif ref.kind in _JUDGED:
            key: Key = (ref.kind, ref.schema if ref.kind in _IN_SCHEMAS else None, ref.name)
            before = self.things.get(key)
            self.things[key] = Thing(certain or (before is not None and before.certain), ref.what)

    def _drop(self, ref: Ref, *, certain: bool) -> None:
        if ref.kind == "column":
            place = self._find("relation", ref.of) if ref.of else None
            self._forget_children(place)
            known = self.columns.get(place) if place else None
            if known and ref.name in known:
                if certain:
                    del known[ref.name]
                else:
                    known[ref.name] = False
            return
        if (key := self._key(ref)) is None or ref.kind == "function":  # another of a function's name may stay
            return
        if certain:
            del self.things[key]
        else:
            self.things[key] = self.things[key]._replace(certain=False)

    def _move(self, old: Ref, to: Ref, *, certain: bool) -> None:
        if old.kind == "column":
            self._drop(old, certain=certain)
            self._make(Ref("column", to.name, of=old.of), certain=certain)
            return
        if (key := self._key(old)) is None or old.kind == "function":
            self._make(to, certain=False)
            return
        schema = to.schema if to.schema is not None else key[1]
        self.things[key[0], schema, to.name] = self.things[key]._replace(certain=certain)
        self.columns[schema, to.name] = self.columns.get((key[1], old.name))
        self._drop(old, certain=certain)

    def _key(self, ref: Ref) -> Key | None:
        """Where a thing is, None where it is not there."""
        if ref.kind not in _IN_SCHEMAS:
            key: Key = (ref.kind, None, ref.name)
            return key if key in self.things else None
        kinds: tuple[NameKind, ...] = ("type", "relation") if ref.kind == "type" else (ref.kind,)
        for kind in kinds:
            if place := self._find(kind, (ref.schema, ref.name)):
                return (kind, *place)
        return None

    def _give_columns(self, fields: Tree, *, certain: bool) -> None:
        """The columns of a new table, where they all stand in the statement."""
        place = self._find("relation", ast.relation(fields["relation"]))
        if place is None or (fields.get("if_not_exists") and place in self.columns):
            return
        elements = fields.get("tableElts", ())
        if "ofTypename" in fields or fields.get("inhRelations") or any("TableLikeClause" in one for one in elements):
            self.columns[place] = None
        else:
            self.columns[place] = {one["colname"]: certain for one in ast.columns(fields)}
        for parent in fields.get("inhRelations", ()):
            self._inherit(place, ast.relation(parent["RangeVar"]))

    def _inherit(self, child: Place, parent: Place) -> None:
        above, below = self._find("relation", parent), self._find("relation", child)
        if above and below:
            self.children.setdefault(above, set()).add(below)

    def _forget_children(self, place: Place | None) -> None:
        """What is done to the columns of a table is done to those of its partitions."""
        for child in self.children.get(place, ()) if place else ():
            if self.columns.get(child) is not None:
                self.columns[child] = None
                self._forget_children(child)

    def _loosen_indexes(self) -> None:
        """What is dropped or renamed takes indexes, constraints and sequences with it, whose names are not told."""
        for key, thing in self.things.items():
            if thing.certain and thing.what in {"index", "sequence"}:
                self.things[key] = thing._replace(certain=False)


def _needed(node: str, fields: Tree) -> Iterable[Ref]:
    """What is judged of what a statement needs."""
    rows = fields.get("selectStmt", {}).get("SelectStmt", {})
    if len(rows.get("valuesLists", ())) > _WALKED_ROWS:
        cut = {"SelectStmt": {**rows, "valuesLists": rows["valuesLists"][:_WALKED_ROWS]}}
        fields = {**fields, "selectStmt": cut}
    kind = fields.get("removeType") or fields.get("renameType") or fields.get("objtype")
    what = {"OBJECT_INDEX": "index", "OBJECT_SEQUENCE": "sequence"}.get(str(kind), "")
    what = "sequence" if node == "AlterSeqStmt" else what
    return [
        ref._replace(what=ref.what or what)
        for ref in names.needed(node, fields)
        if ref.kind in _JUDGED and not ref.is_optional and not ref.in_query
    ]
