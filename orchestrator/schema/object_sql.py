"""The SQL that makes, drops or changes one object of a catalogue. Pure: no I/O.

A direction for a person, to be read before it is run. Where no statement leads there, the answer is empty or a comment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.database.quoting import literal
from orchestrator.schema import ddl
from orchestrator.schema.column_sql import AlteredColumn, needs_made_anew
from orchestrator.schema.objects import name_parts
from orchestrator.schema.tables import column_of

if TYPE_CHECKING:
    from orchestrator.schema.objects import Schema, SchemaObject

# The words of DROP, COMMENT ON and ALTER for each kind; for a table's parts `ON table` follows.
_WORDS = {
    "enum": "TYPE",
    "composite type": "TYPE",
    "range type": "TYPE",
    "base type": "TYPE",
    "view column": "COLUMN",
    "server": "SERVER",
}
_ON_TABLE = frozenset({"trigger", "rule", "policy"})
_DATA_KINDS = frozenset({"table", "foreign table", "sequence", "view", "materialized view", "view column", "column"})
_STATES = {"on": "ENABLE", "off": "DISABLE", "replica": "ENABLE REPLICA", "always": "ENABLE ALWAYS"}


def _word(one: SchemaObject) -> str:
    return _WORDS.get(one.kind, one.kind.upper())


def _reference(one: SchemaObject) -> str:
    """How COMMENT ON and DROP name it."""
    if one.kind in {"column", "view column"}:
        return f"{_word(one)} {one.table}.{one.name}"
    if one.kind == "constraint":
        return f"CONSTRAINT {one.name} ON {'DOMAIN ' if one.facts.get('of_domain') else ''}{one.table}"
    if one.kind in _ON_TABLE:
        return f"{_word(one)} {one.name} ON {one.table}"
    return f"{_word(one)} {one.name}"


def _comment(one: SchemaObject) -> str:
    return f"{ddl.comment(_reference(one), one.facts.get('comment'))};"


def _of(one: SchemaObject) -> str:
    return "DOMAIN" if one.facts.get("of_domain") else "TABLE"


def _with_options(options: list[str] | None) -> str:
    return f" WITH ({', '.join(options)})" if options else ""


def _ended(text: str) -> str:
    return text.rstrip().rstrip(";") + ";"


def create(one: SchemaObject, schema: Schema) -> list[str]:
    """The statements that make `one` as it is in `schema`, with what belongs to it."""
    made = _create_table(one, schema) if one.kind in {"table", "foreign table"} else _create(one)
    if one.facts.get("comment") and (made or one.kind == "view column"):
        made.append(_comment(one))
    if one.kind in {"domain", "materialized view", "view"}:
        for part in schema.objects:
            if part.table == one.name and part.kind != "sequence":
                made += create(part, schema)
    if one.facts.get("enabled", "on") != "on":
        made += _enable(one)
    return made


def _create(one: SchemaObject) -> list[str]:  # noqa: C901, PLR0911, PLR0912 one line a kind
    facts = one.facts
    match one.kind:
        case "schema":
            return [f"CREATE SCHEMA {one.name};"]
        case "extension":
            return [f"CREATE EXTENSION {one.name} SCHEMA {facts['in_schema']} VERSION {literal(facts['version'])};"]
        case "column":
            return [f"ALTER TABLE {one.table} ADD COLUMN {_column(one)};"]
        case "constraint":
            validated = facts.get("validated", True)
            return [
                f"{ddl.add_constraint(str(one.table), one.name, _constraint(facts), validated=validated, of=_of(one))};"
            ]
        case "view":
            return [f"CREATE VIEW {one.name}{_with_options(facts.get('options'))} AS {_ended(facts['definition'])}"]
        case "materialized view":
            options = _with_options(facts.get("options"))
            return [f"CREATE MATERIALIZED VIEW {one.name}{options} AS {_ended(facts['definition'])}"]
        case "sequence":
            made = [f"CREATE SEQUENCE {one.name} {facts['options']};"]
            if "owned_by" in facts:
                made.append(f"ALTER SEQUENCE {one.name} OWNED BY {facts['owned_by']};")
            return made
        case "enum":
            return [f"{ddl.create_enum(one.name, facts.get('labels', []))};"]
        case "domain":
            return [f"CREATE DOMAIN {one.name} AS {ddl.column_tail(facts)};"]
        case "composite type":
            return [f"CREATE TYPE {one.name} AS ({', '.join(facts.get('attributes', []))});"]
        case "range type":
            words = {"subtype": "SUBTYPE", "subtype_opclass": "SUBTYPE_OPCLASS", "subtype_diff": "SUBTYPE_DIFF"}
            given = ", ".join(f"{word} = {facts[name]}" for name, word in words.items() if name in facts)
            return [f"CREATE TYPE {one.name} AS RANGE ({given});"]
        case "aggregate":
            return [f"CREATE AGGREGATE {one.name} ({facts['definition']});"]
        case "policy":
            return [_policy(one)]
        case "publication":
            tables = f" FOR TABLE {', '.join(facts['tables'])}" if facts.get("tables") else ""
            return [f"CREATE PUBLICATION {one.name}{tables};"]
        case "event trigger":
            tags = ", ".join(literal(tag).strip() for tag in facts.get("tags", []))
            when = f" WHEN TAG IN ({tags})" if tags else ""
            return [
                f"CREATE EVENT TRIGGER {one.name} ON {facts['event']}{when} EXECUTE FUNCTION {facts['function']}();"
            ]
        case "cast":
            how = f"WITH FUNCTION {facts['function']}" if "function" in facts else "WITHOUT FUNCTION"
            context = {"a": " AS ASSIGNMENT", "i": " AS IMPLICIT"}.get(facts["context"], "")
            return [f"CREATE CAST {one.name} {how if facts['method'] != 'i' else 'WITH INOUT'}{context};"]
        case "view column":
            default = facts.get("default")
            return [f"ALTER VIEW {one.table} ALTER COLUMN {one.name} SET DEFAULT {default};"] if default else []
        case "index":
            # ONLY is how the catalogue writes a partitioned index; made so, it would stay invalid.
            return [_ended(facts["definition"].replace(" ON ONLY ", " ON ", 1))]
        case _ if "definition" in facts:
            return [_ended(facts["definition"])]
    return []


def _constraint(facts: dict[str, Any]) -> str:
    """A constraint's definition with its index's options, which stand before what is said of deferring."""
    definition: str = facts["definition"]
    if "index_options" not in facts or definition.startswith("EXCLUDE"):
        return definition
    body, separator, rest = definition.partition(" DEFERRABLE")
    return f"{body}{_with_options(facts['index_options'])}{separator}{rest}"


def _column(one: SchemaObject) -> str:
    return f"{one.name} {ddl.column_tail(one.facts)}"


def _policy(one: SchemaObject) -> str:
    facts = one.facts
    text = (
        f"CREATE POLICY {one.name} ON {one.table} AS {facts['mode']} FOR {facts['command']}"
        f" TO {', '.join(facts['roles'])}"
    )
    if "using" in facts:
        text += f" USING ({facts['using']})"
    if "check" in facts:
        text += f" WITH CHECK ({facts['check']})"
    return text + ";"


def _create_table(one: SchemaObject, schema: Schema) -> list[str]:
    facts = one.facts
    parts = [part for part in schema.objects if part.table == one.name]
    columns = sorted((p for p in parts if p.kind == "column" and not p.inherited), key=lambda p: p.position)
    body = ", ".join(_column(column) for column in columns)
    kind = {"unlogged": "UNLOGGED TABLE"}.get(facts.get("persistence", ""), "TABLE")
    if "partition_of" in facts:
        parent, _, bound = facts["partition_of"].partition(" ")
        text = f"CREATE {kind} {one.name} PARTITION OF {parent} {bound}"
    else:
        text = f"CREATE {'FOREIGN TABLE' if one.kind == 'foreign table' else kind} {one.name} ({body})"
        if "inherits" in facts:
            text += f" INHERITS ({', '.join(facts['inherits'])})"
    if "server" in facts:
        text += f" SERVER {facts['server']}"
    if "partitioned_by" in facts:
        text += f" PARTITION BY {facts['partitioned_by']}"
    sequences = [part for part in parts if part.kind == "sequence"]
    made = [f"CREATE SEQUENCE {part.name} {part.facts['options']};" for part in sequences]
    made.append(f"{text}{_with_options(facts.get('options'))};")
    made += [f"ALTER SEQUENCE {part.name} OWNED BY {part.facts['owned_by']};" for part in sequences]
    for column in columns:
        made += [s for s in alter(column, None, column.facts.keys()) if "partition_of" not in facts]
    order = {"constraint": 0, "index": 2}
    rest = [part for part in parts if part.kind not in {"column", "sequence"} and not part.inherited]
    for part in sorted(rest, key=lambda p: ("FOREIGN" in p.facts.get("definition", ""), order.get(p.kind, 3))):
        made += create(part, schema)
    if facts.get("row_security"):
        made.append(f"ALTER TABLE {one.name} ENABLE ROW LEVEL SECURITY;")
    if facts.get("force_row_security"):
        made.append(f"ALTER TABLE {one.name} FORCE ROW LEVEL SECURITY;")
    if "replica_identity" in facts:
        made.append(f"ALTER TABLE {one.name} REPLICA IDENTITY {facts['replica_identity']};")
    return made


def drop(one: SchemaObject) -> list[str]:
    """The statement that drops `one`, without CASCADE: what depends on it is a difference, too, or a reason to look."""
    if one.kind == "column":
        return [f"ALTER TABLE {one.table} DROP COLUMN {one.name};"]
    if one.kind == "constraint":
        return [f"{ddl.drop_constraint(str(one.table), one.name, of=_of(one))};"]
    if one.kind == "view column":
        made = [f"COMMENT ON {_reference(one)} IS NULL;"] if "comment" in one.facts else []
        return made + (
            [f"ALTER VIEW {one.table} ALTER COLUMN {one.name} DROP DEFAULT;"] if "default" in one.facts else []
        )
    if one.kind == "default privileges":
        return []
    return [f"DROP {_reference(one)};"]


def _enable(one: SchemaObject) -> list[str]:
    state = _STATES[one.facts.get("enabled", "on")]
    if one.kind == "event trigger":
        return [f"ALTER EVENT TRIGGER {one.name} {state};"]
    return [f"ALTER TABLE {one.table} {state} {_word(one)} {one.name};"]


def alter(one: SchemaObject, other: SchemaObject | None, facts: Any) -> list[str]:
    """The statements that lead from `other` to `one` in `facts`; for a column, `other` None is a column just added."""
    changed = set(facts)
    made: list[str] = []
    if one.kind == "column":
        made = _alter_column(one, other, changed)
    elif one.kind == "domain":
        made = _alter_domain(one, changed)
    elif one.kind in {"table", "foreign table"}:
        made = _alter_table(one, other, changed)
    elif changed - {"comment", "privileges", "enabled", "validated"} and other is not None:
        made = _alter_whole(one, other, changed)
    elif changed & {"validated"} and other is not None:
        made = _validate(one, other)
    if "enabled" in changed:
        made += _enable(one)
    if "comment" in changed:
        made.append(_comment(one))
    if "privileges" in changed and other is not None:
        made += _grants(one, other)
    return made


def _validate(one: SchemaObject, other: SchemaObject) -> list[str]:
    if other.facts.get("validated") is False:
        return [f"{ddl.validate_constraint(str(one.table), one.name, of=_of(one))};"]
    return [*drop(other), *_create(one)]


def _alter_whole(one: SchemaObject, other: SchemaObject, changed: set[str]) -> list[str]:  # noqa: C901, PLR0911, PLR0912 one a kind
    facts, before = one.facts, other.facts
    match one.kind:
        case "function" | "procedure":
            return [_ended(facts["definition"])]
        case "view":
            if changed & {"definition"}:
                return ["-- where columns went or changed their type, DROP VIEW first", *_replace_view(one)]
            return [f"ALTER VIEW {one.name} {change};" for change in _options(facts, before)]
        case "extension" if changed == {"version"}:
            return [f"ALTER EXTENSION {one.name} UPDATE TO {literal(facts['version'])};"]
        case "extension":
            return [f"ALTER EXTENSION {one.name} SET SCHEMA {facts['in_schema']};"]
        case "enum":
            return _alter_enum(one, other)
        case "index" if changed <= {"valid", "comment"}:
            return [f"REINDEX INDEX CONCURRENTLY {one.name};"]
        case "index" if changed <= {"clustered", "comment"}:
            how = f"CLUSTER ON {one.name.rpartition('.')[2]}" if facts.get("clustered") else "SET WITHOUT CLUSTER"
            return [f"ALTER TABLE {one.table} {how};"]
        case "sequence":
            made = []
            if "options" in changed:
                made.append(f"ALTER SEQUENCE {one.name} {facts['options']};")
            if "owned_by" in changed:
                made.append(f"ALTER SEQUENCE {one.name} OWNED BY {facts.get('owned_by', 'NONE')};")
            if "persistence" in changed:
                made.append(f"ALTER SEQUENCE {one.name} {ddl.set_persistence(unlogged='persistence' in facts)};")
            return made
        case "publication" if changed == {"tables"} and facts.get("tables"):
            return [f"ALTER PUBLICATION {one.name} SET TABLE {', '.join(facts['tables'])};"]
        case "constraint" if changed <= {"index_valid"}:
            return [f"REINDEX TABLE CONCURRENTLY {one.table};"]
        case "policy" if not changed & {"mode", "command"} and not before.keys() - facts.keys() - {"comment"}:
            using = f" USING ({facts['using']})" if "using" in facts else ""
            check = f" WITH CHECK ({facts['check']})" if "check" in facts else ""
            return [f"ALTER POLICY {one.name} ON {one.table} TO {', '.join(facts['roles'])}{using}{check};"]
        case "view column":
            default = f"SET DEFAULT {facts['default']}" if "default" in facts else "DROP DEFAULT"
            return [f"ALTER VIEW {one.table} ALTER COLUMN {one.name} {default};"]
    made = _create(one)
    return [*drop(other), *made] if made else []


def _replace_view(one: SchemaObject) -> list[str]:
    options = _with_options(one.facts.get("options"))
    return [f"CREATE OR REPLACE VIEW {one.name}{options} AS {_ended(one.facts['definition'])}"]


def _options(facts: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """SET and RESET of storage options."""
    was, now = (dict(option.partition("=")[::2] for option in side.get("options", ())) for side in (before, facts))
    return ddl.changed_options(was, now)


def _alter_enum(one: SchemaObject, other: SchemaObject) -> list[str]:
    added = ddl.added_values(one.name, other.facts.get("labels", []), one.facts.get("labels", []))
    if added is None:
        return ["-- labels of an enum cannot be dropped or ordered anew: make the type anew and change its columns"]
    return [f"{sql};" for sql in added]


def _alter_table(one: SchemaObject, other: SchemaObject | None, changed: set[str]) -> list[str]:
    facts, before = one.facts, other.facts if other else {}
    made: list[str] = []
    if "persistence" in changed:
        made.append(ddl.set_persistence(unlogged="persistence" in facts))
    if "options" in changed:
        made += _options(facts, before)
    if "row_security" in changed:
        made.append(f"{'ENABLE' if facts.get('row_security') else 'DISABLE'} ROW LEVEL SECURITY")
    if "force_row_security" in changed:
        made.append(f"{'FORCE' if facts.get('force_row_security') else 'NO FORCE'} ROW LEVEL SECURITY")
    if "replica_identity" in changed:
        made.append(f"REPLICA IDENTITY {facts.get('replica_identity', 'DEFAULT')}")
    if "access_method" in changed:
        made.append(f"SET ACCESS METHOD {facts.get('access_method', 'heap')}")
    if "inherits" in changed:
        wanted, found = facts.get("inherits", []), before.get("inherits", [])
        made += [f"NO INHERIT {parent}" for parent in found if parent not in wanted]
        made += [f"INHERIT {parent}" for parent in wanted if parent not in found]
    statements = [f"ALTER TABLE {one.name} {change};" for change in made]
    if "partition_of" in changed:
        if "partition_of" in before:
            statements.append(f"ALTER TABLE {before['partition_of'].partition(' ')[0]} DETACH PARTITION {one.name};")
        if "partition_of" in facts:
            parent, _, bound = facts["partition_of"].partition(" ")
            statements.append(f"ALTER TABLE {parent} ATTACH PARTITION {one.name} {bound};")
    if "partitioned_by" in changed:
        statements.append("-- a table cannot become partitioned, or stop to be: make it anew and copy its rows")
    return statements


def _alter_column(one: SchemaObject, other: SchemaObject | None, changed: set[str]) -> list[str]:
    """What leads from `other` to `one`; for a column that was just added, what ADD COLUMN cannot say."""
    made = []
    if other is not None:
        was, now = column_of(other), column_of(one)
        if needs_made_anew(was, now):
            return _computed_anew(one, other)
        altered = AlteredColumn(str(one.table), one.name, name_parts(one.name)[0], was, now)
        for step in altered.steps():
            made += [f"-- {step.note}"] * bool(step.note) + [f"{step.sql};"]
    changes = []
    if "storage" in changed:
        changes.append(f"SET STORAGE {one.facts.get('storage', 'DEFAULT')}")
    if "compression" in changed:
        changes.append(f"SET COMPRESSION {one.facts.get('compression', 'default')}")
    if "statistics" in changed:
        changes.append(f"SET STATISTICS {one.facts.get('statistics', -1)}")
    if "options" in changed:
        changes += _options(one.facts, other.facts if other else {})
    return made + [f"ALTER TABLE {one.table} ALTER COLUMN {one.name} {change};" for change in changes]


def _computed_anew(one: SchemaObject, other: SchemaObject) -> list[str]:
    if all(str(side.facts.get("generated")).endswith(" STORED") for side in (one, other)):
        expression = one.facts["generated"].removesuffix(" STORED")
        return [
            "-- before PostgreSQL 17: drop the column and add it again",
            f"ALTER TABLE {one.table} ALTER COLUMN {one.name} SET EXPRESSION AS {expression};",
        ]
    return [*drop(other), *_create(one)]


def _alter_domain(one: SchemaObject, changed: set[str]) -> list[str]:
    if changed & {"type", "collation"}:
        return ["-- a domain's type cannot change: make it anew and change its columns"]
    made = []
    if "default" in changed:
        made.append(f"SET DEFAULT {one.facts['default']}" if "default" in one.facts else "DROP DEFAULT")
    if "not_null" in changed:
        made.append(f"{'SET' if one.facts.get('not_null') else 'DROP'} NOT NULL")
    return [f"ALTER DOMAIN {one.name} {change};" for change in made]


def _grants(one: SchemaObject, other: SchemaObject) -> list[str]:
    """GRANT and REVOKE; the owner's own rights are never in question."""
    sides = [
        {
            entry.partition(": ")[0]: set(entry.partition(": ")[2].split(", "))
            for entry in side.facts.get("privileges", [])
        }
        for side in (one, other)
    ]
    wanted, found = sides
    if one.kind in {"column", "view column"}:
        on, column = f"TABLE {one.table}", f" ({one.name})"
    else:
        word = "TABLE" if one.kind in _DATA_KINDS - {"sequence"} else _word(one)
        on, column = f"{'FOREIGN ' if one.kind == 'server' else ''}{word} {one.name}", ""
    made = []
    for grantee in sorted(wanted.keys() | found.keys()):
        give, take = wanted.get(grantee, set()), found.get(grantee, set())
        role = "CURRENT_USER" if grantee == "owner" else grantee
        made += [
            f"REVOKE {right.removesuffix(' WITH GRANT OPTION')}{column} ON {on} FROM {role};"
            for right in sorted(take - give)
            if f"{right} WITH GRANT OPTION" not in give
        ]
        for right in sorted(give - take):
            bare, option = right.removesuffix(" WITH GRANT OPTION"), right.endswith(" WITH GRANT OPTION")
            made.append(f"GRANT {bare}{column} ON {on} TO {role}{' WITH GRANT OPTION' if option else ''};")
    return made
