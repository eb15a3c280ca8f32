"""Plant in a database what an attacker with CREATE could: every function and operator of PostgreSQL's, once more.

Each stands in `public` and in a schema of the role's name, which stand before `pg_catalog` on the database's path. So
whatever is called by an unqualified name is found there first, with the same types, or with types that fit better than
PostgreSQL's own do. Whoever is called counts it in a sequence, which no roll back undoes, and raises an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestrator.migrator.sql.parser import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

# What stands for an argument of the type "any", or for a polymorphic one. PL/pgSQL takes no "any".
_PLANT = """
DO $plant$
DECLARE
    f record; o record; s text; kinds text[]; kind text; arguments text; result text; made integer := 0;
    sorts text[] := ARRAY['text', 'integer', 'bigint', 'name', 'boolean', 'oid', '"char"', 'jsonb', 'double precision',
        'timestamptz', 'text[]', 'smallint', 'numeric', 'interval', 'regclass', 'oid[]', 'name[]', 'bigint[]'];
    lists text[];
    list text;
BEGIN
    PERFORM pg_catalog.set_config('check_function_bodies', 'off', true);
    FOREACH s IN ARRAY ARRAY[$1] LOOP
        FOR f IN
            SELECT p.oid, p.proname, p.proretset, p.prorettype, p.provariadic,
                ARRAY(SELECT pg_catalog.format_type(t, NULL)
                    FROM pg_catalog.unnest(p.proargtypes) WITH ORDINALITY a(t, n) ORDER BY n) AS types
            FROM pg_catalog.pg_proc p
            WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind IN ('f', 'a', 'w')
            AND NOT (p.proargtypes::oid[] && ARRAY['internal', 'cstring', 'trigger']::regtype[]::oid[])
            AND p.prorettype <> ALL (ARRAY['internal', 'trigger', 'event_trigger', 'language_handler',
                'fdw_handler', 'index_am_handler', 'table_am_handler', 'tsm_handler']::regtype[])
        LOOP
            result := pg_catalog.format_type(f.prorettype, NULL);
            IF result IN ('cstring', '"any"') THEN result := 'text'; END IF;
            lists := ARRAY[pg_catalog.array_to_string(f.types, ', ')];
            IF f.types && ARRAY['"any"', 'anyelement', 'anynonarray', 'anyarray', 'anycompatible', 'anycompatiblearray',
                'anycompatiblenonarray', 'anyenum'] THEN
                FOREACH kind IN ARRAY sorts LOOP
                    list := pg_catalog.array_to_string(ARRAY(
                        SELECT CASE WHEN t IN ('anyarray', 'anycompatiblearray') THEN
                                CASE WHEN kind LIKE '%[]' THEN kind ELSE kind || '[]' END
                            WHEN t LIKE 'any%' OR t = '"any"' THEN kind ELSE t END
                        FROM pg_catalog.unnest(f.types) WITH ORDINALITY a(t, n) ORDER BY n), ', ');
                    lists := lists || list;
                    IF f.provariadic = '"any"'::regtype THEN
                        lists := lists || (list || ', ' || kind) || ('text, ' || kind)
                            || ('text, ' || kind || ', text, ' || kind) || ('text, text, text, ' || kind);
                    END IF;
                END LOOP;
                IF result LIKE 'any%' THEN result := 'text'; END IF;
            END IF;
            FOREACH list IN ARRAY lists LOOP
                BEGIN
                    EXECUTE pg_catalog.format('CREATE FUNCTION %I.%I(%s) RETURNS %s %s LANGUAGE plpgsql AS %L',
                        s, f.proname, list, CASE WHEN f.proretset THEN 'SETOF' ELSE '' END, result,
                        pg_catalog.format('BEGIN PERFORM pg_catalog.nextval(''canary.hits''); RAISE EXCEPTION %L; END',
                            'planted: ' || f.proname || '(' || list || ')'));
                    made := made + 1;
                EXCEPTION WHEN OTHERS THEN NULL;
                END;
            END LOOP;
        END LOOP;
        FOR o IN SELECT oprname, oprleft, oprright, oprcode::oid AS code FROM pg_catalog.pg_operator
            WHERE oprnamespace = 'pg_catalog'::regnamespace
        LOOP
            BEGIN
                EXECUTE pg_catalog.format('CREATE OPERATOR %I.%s (%s RIGHTARG = %s, FUNCTION = %I.%I)', s, o.oprname,
                    CASE WHEN o.oprleft <> 0 THEN 'LEFTARG = ' || pg_catalog.format_type(o.oprleft, NULL) || ',' END,
                    pg_catalog.format_type(o.oprright, NULL), s,
                    (SELECT proname FROM pg_catalog.pg_proc WHERE oid = o.code));
                made := made + 1;
            EXCEPTION WHEN OTHERS THEN NULL;
            END;
        END LOOP;
    END LOOP;
    RAISE NOTICE 'made %', made;
END $plant$
"""


async def plant(admin: Any, dsn: str) -> None:
    """Plant them all in the database of `dsn`, and set its path so that they are found first."""
    user, database = urlsplit(dsn).username, urlsplit(dsn).path[1:]
    async with admin.connection(dsn) as connection:
        await connection.execute(f'CREATE SCHEMA canary; CREATE SEQUENCE canary.hits; CREATE SCHEMA "{user}"')
        await connection.execute("SET search_path = pg_catalog, pg_temp")
        for schema in ("public", user):
            await connection.execute(_PLANT.replace("$1", f"'{schema}'"))
        await connection.execute(f'ALTER DATABASE "{database}" SET search_path = "$user", public, pg_catalog')


async def called(admin: Any, dsn: str) -> int:
    """How often something that was planted has been called."""
    async with admin.connection(dsn) as connection:
        return await connection.fetchval("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM canary.hits")


def unqualified(sql: str) -> Iterator[str]:
    """Each function, operator and type in the SQL that is looked up by the search path.

    What the grammar itself makes of a keyword (`integer`, `coalesce`, `greatest`) is looked up in no path.
    """
    for statement in parse(sql.encode()):
        for kind, node in _nodes({statement.node: statement.fields()}):
            for field in _NAMES.get(kind, ()):
                names = node.get(field, [])
                names = names.get("names", []) if isinstance(names, dict) else names
                if len(names) == 1 or node.get("kind") in _ALWAYS_BY_PATH:
                    yield f"{kind} {names[-1]['String']['sval']}"
            # CASE x WHEN …, x IN (SELECT …) and JOIN … USING call an operator that cannot be named.
            if (kind == "CaseExpr" and "arg" in node) or (kind == "JoinExpr" and "usingClause" in node):
                yield kind
            if kind == "SubLink" and "testexpr" in node and len(node.get("operName", [])) < 2:
                yield kind


_NAMES = {"FuncCall": ["funcname"], "A_Expr": ["name"], "TypeCast": ["typeName"], "ColumnDef": ["typeName"]}
_ALWAYS_BY_PATH = {"AEXPR_IN", "AEXPR_LIKE", "AEXPR_ILIKE", "AEXPR_BETWEEN", "AEXPR_NOT_BETWEEN", "AEXPR_SIMILAR"}


def _nodes(tree: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(tree, list):
        for one in tree:
            yield from _nodes(one)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield key, value
            yield from _nodes(value)
