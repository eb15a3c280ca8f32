"""The queries that read a catalogue: one for each kind of object. Pure: texts, made of constants.

Columns of each: kind, schema, name, and where they apply owner_table, inherited, parents, position; `oid` and `subid`
find the privileges; what begins with `detail_` takes apart what a fact says as text; every other column is a fact that
is compared. `x` is the catalogue's row, `c` the relation that it belongs to, `n` the schema. Names in definitions come
out qualified unless `search_path` holds their schema.
"""

# ruff: noqa: S608  # every part is a constant of this file

from __future__ import annotations

_USER_SCHEMA = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
FIRST_NORMAL_OID = 16384  # access/transam.h, FirstNormalObjectId


def _no_extension(catalogue: str, oid: str) -> str:
    return (
        f"NOT EXISTS (SELECT 1 FROM pg_depend e WHERE e.classid = '{catalogue}'::regclass AND e.objid = {oid}"
        " AND e.deptype = 'e')"
    )


_RELATION = "quote_ident(n.nspname) || '.' || quote_ident(c.relname)"


def _of_relation(catalogue: str, relation: str, joins: str = "") -> str:
    """FROM and WHERE over what belongs to a relation: `x`, its relation `c`, and the relation's schema `n`."""
    return (
        f"FROM {catalogue} x JOIN pg_class c ON c.oid = x.{relation} JOIN pg_namespace n ON n.oid = c.relnamespace"
        f" {joins} WHERE {_USER_SCHEMA} AND {_no_extension('pg_class', 'c.oid')}"
    )


def _of_type(joins: str = "") -> str:
    """FROM and WHERE over types `t` and their schema `n`."""
    return (
        f"FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace {joins} WHERE {_USER_SCHEMA}"
        f" AND {_no_extension('pg_type', 't.oid')}"
    )


_TYPE = "quote_ident(n.nspname) || '.' || quote_ident(t.typname)"
_PARENTS = (
    "ARRAY(SELECT quote_ident(pn.nspname) || '.' || quote_ident(p.relname) FROM pg_inherits i"
    " JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace"
    " WHERE i.inhrelid = c.oid ORDER BY i.inhseqno)"
)
_DEFAULT = "LEFT JOIN pg_attrdef d ON d.adrelid = x.attrelid AND d.adnum = x.attnum"
_SEQUENCE_OPTIONS = (
    "concat_ws(' ', 'AS ' || format_type(s.seqtypid, NULL), 'START ' || s.seqstart, 'INCREMENT ' || s.seqincrement,"
    " 'MINVALUE ' || s.seqmin, 'MAXVALUE ' || s.seqmax, 'CACHE ' || s.seqcache,"
    " CASE WHEN s.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END)"
)
_OPERATOR = (
    "(SELECT 'OPERATOR(' || quote_ident(oon.nspname) || '.' || o.oprname || ')' FROM pg_operator o"
    " JOIN pg_namespace oon ON oon.oid = o.oprnamespace WHERE o.oid = {oid})"
)
_ENABLED = "CASE {column} WHEN 'O' THEN 'on' WHEN 'D' THEN 'off' WHEN 'R' THEN 'replica' ELSE 'always' END"


def _column_names(relation: str, numbers: str) -> str:
    return (
        f"ARRAY(SELECT a.attname::text FROM unnest({numbers}) WITH ORDINALITY k (attnum, place) JOIN pg_attribute a"
        f" ON a.attrelid = {relation} AND a.attnum = k.attnum ORDER BY k.place)"
    )


# A foreign key has rows for the partitions of the table that it leads to: they are its own business.
_CONSTRAINTS = f"""
            SELECT x.oid, 'constraint' AS kind, n.nspname AS schema, quote_ident(x.conname) AS name,
            {_RELATION} AS owner_table, x.coninhcount > 0 AND NOT x.conislocal OR x.conparentid <> 0 AS inherited,
            {_PARENTS} AS parents,
            regexp_replace(pg_get_constraintdef(x.oid), ' NOT VALID$', '') AS definition,
            CASE WHEN NOT x.convalidated THEN false END AS validated,
            (SELECT false FROM pg_index i WHERE i.indexrelid = x.conindid AND NOT i.indisvalid
            AND x.contype IN ('p', 'u', 'x')) AS index_valid,
            (SELECT i.reloptions FROM pg_class i WHERE i.oid = x.conindid AND x.contype IN ('p', 'u', 'x'))
            AS index_options,
            obj_description(x.oid, 'pg_constraint') AS comment,
            x.contype::text AS detail_type, {_column_names("x.conrelid", "x.conkey")} AS detail_columns,
            (SELECT ARRAY[rn.nspname::text, r.relname::text] FROM pg_class r JOIN pg_namespace rn
            ON rn.oid = r.relnamespace WHERE r.oid = x.confrelid) AS detail_references,
            {_column_names("x.confrelid", "x.confkey")} AS detail_referenced_columns
            {_of_relation("pg_constraint", "conrelid")} AND (x.conparentid = 0
            OR x.conrelid <> (SELECT k.conrelid FROM pg_constraint k WHERE k.oid = x.conparentid))
"""

# (what it reads, the catalogue that `oid` is of, the query)
QUERIES: tuple[tuple[str, str, str], ...] = (
    (
        "schema",
        "pg_namespace",
        f"""
            SELECT n.oid, 'schema' AS kind, n.nspname AS schema, quote_ident(n.nspname) AS name,
            obj_description(n.oid, 'pg_namespace') AS comment FROM pg_namespace n WHERE {_USER_SCHEMA}
            AND {_no_extension("pg_namespace", "n.oid")}
        """,
    ),
    (
        "extension",
        "pg_extension",
        """
            SELECT x.oid, 'extension' AS kind, n.nspname AS schema, quote_ident(x.extname) AS name,
            x.extversion AS version, quote_ident(n.nspname) AS in_schema
            FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace
        """,
    ),
    (
        "table",
        "pg_class",
        f"""
            SELECT c.oid, CASE c.relkind WHEN 'f' THEN 'foreign table' ELSE 'table' END AS kind, n.nspname AS schema,
            {_RELATION} AS name, CASE c.relpersistence WHEN 'u' THEN 'unlogged' END AS persistence,
            pg_get_partkeydef(c.oid) AS partitioned_by,
            CASE WHEN c.relispartition THEN ({_PARENTS})[1] || ' ' || pg_get_expr(c.relpartbound, c.oid) END
            AS partition_of,
            CASE WHEN NOT c.relispartition THEN nullif({_PARENTS}, '{{}}') END AS inherits, {_PARENTS} AS parents,
            ARRAY(SELECT o FROM unnest(c.reloptions || ARRAY(SELECT 'toast.' || t FROM pg_class tc,
            unnest(tc.reloptions) t WHERE tc.oid = c.reltoastrelid)) o ORDER BY o) AS options,
            (SELECT a.amname FROM pg_am a WHERE a.oid = c.relam AND a.amname <> 'heap') AS access_method,
            nullif(c.relrowsecurity, false) AS row_security, nullif(c.relforcerowsecurity, false) AS force_row_security,
            CASE c.relreplident WHEN 'n' THEN 'NOTHING' WHEN 'f' THEN 'FULL' WHEN 'i' THEN (SELECT 'USING INDEX ' ||
            quote_ident(ic.relname) FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid
            WHERE i.indrelid = c.oid AND i.indisreplident) END AS replica_identity,
            CASE WHEN c.reloftype <> 0 THEN format_type(c.reloftype, NULL) END AS of_type,
            (SELECT quote_ident(s.srvname) FROM pg_foreign_table f JOIN pg_foreign_server s ON s.oid = f.ftserver
            WHERE f.ftrelid = c.oid) AS server,
            (SELECT f.ftoptions FROM pg_foreign_table f WHERE f.ftrelid = c.oid) AS server_options,
            obj_description(c.oid, 'pg_class') AS comment, c.oid::bigint AS position
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p', 'f') AND {_USER_SCHEMA} AND {_no_extension("pg_class", "c.oid")}
        """,
    ),
    (
        "column",
        "pg_class",
        f"""
            SELECT c.oid, x.attnum::int AS subid, 'column' AS kind, n.nspname AS schema, quote_ident(x.attname) AS name,
            {_RELATION} AS owner_table, x.attinhcount > 0 AND NOT x.attislocal AS inherited, {_PARENTS} AS parents,
            x.attnum::int AS position, format_type(x.atttypid, x.atttypmod) AS type,
            (SELECT quote_ident(cn.nspname) || '.' || quote_ident(co.collname) FROM pg_collation co
            JOIN pg_namespace cn ON cn.oid = co.collnamespace
            WHERE co.oid = x.attcollation AND co.oid <> t.typcollation) AS collation,
            -- PostgreSQL 18 knows NOT NULL that is not validated yet, as a constraint of type n.
            CASE WHEN x.attnotnull THEN CASE WHEN EXISTS (SELECT 1 FROM pg_constraint nc WHERE nc.conrelid = c.oid
            AND nc.contype = 'n' AND NOT nc.convalidated AND nc.conkey = ARRAY[x.attnum]) THEN 'NOT VALID'
            ELSE 'yes' END END AS not_null,
            CASE WHEN x.attgenerated = '' THEN pg_get_expr(d.adbin, d.adrelid) END AS "default",
            CASE x.attgenerated WHEN 's' THEN '(' || pg_get_expr(d.adbin, d.adrelid) || ') STORED'
            WHEN 'v' THEN '(' || pg_get_expr(d.adbin, d.adrelid) || ') VIRTUAL' END AS generated,
            CASE x.attidentity WHEN 'a' THEN 'ALWAYS' WHEN 'd' THEN 'BY DEFAULT' END AS identity,
            (SELECT {_SEQUENCE_OPTIONS} FROM pg_depend sd JOIN pg_sequence s ON s.seqrelid = sd.objid
            WHERE sd.classid = 'pg_class'::regclass AND sd.refclassid = 'pg_class'::regclass AND sd.refobjid = c.oid
            AND sd.refobjsubid = x.attnum AND sd.deptype = 'i') AS identity_options,
            CASE WHEN x.attstorage <> t.typstorage THEN CASE x.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL'
            WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END END AS storage,
            CASE x.attcompression WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4' END AS compression,
            nullif(x.attstattarget::int, -1) AS statistics,
            -- pg_attver is bookkeeping of some builds, no option.
            ARRAY(SELECT o FROM unnest(x.attoptions) o WHERE o !~ '^pg_attver=' ORDER BY o) AS options,
            x.attfdwoptions AS server_options, col_description(c.oid, x.attnum) AS comment,
            (SELECT ARRAY[en.nspname::text, et.typname::text] FROM pg_type et JOIN pg_namespace en
            ON en.oid = et.typnamespace WHERE et.typtype = 'e'
            AND et.oid = CASE WHEN t.typelem <> 0 AND t.typlen = -1 THEN t.typelem ELSE t.oid END) AS detail_enum
            {_of_relation("pg_attribute", "attrelid", f"JOIN pg_type t ON t.oid = x.atttypid {_DEFAULT}")}
            AND x.attnum > 0 AND NOT x.attisdropped AND c.relkind IN ('r', 'p', 'f')
        """,
    ),
    (
        # What can be said of a view's columns without its query.
        "view column",
        "pg_class",
        f"""
            SELECT c.oid, x.attnum::int AS subid, 'view column' AS kind, n.nspname AS schema,
            quote_ident(x.attname) AS name, {_RELATION} AS owner_table, pg_get_expr(d.adbin, d.adrelid) AS default,
            col_description(c.oid, x.attnum) AS comment
            {_of_relation("pg_attribute", "attrelid", _DEFAULT)}
            AND x.attnum > 0 AND NOT x.attisdropped AND c.relkind IN ('v', 'm')
            AND (d.oid IS NOT NULL OR x.attacl IS NOT NULL OR col_description(c.oid, x.attnum) IS NOT NULL)
        """,
    ),
    ("key", "pg_constraint", f"{_CONSTRAINTS} AND x.contype IN ('f', 'p', 'u')"),
    ("constraint", "pg_constraint", f"{_CONSTRAINTS} AND x.contype IN ('c', 'x')"),
    (
        "domain constraint",
        "pg_constraint",
        f"""
            SELECT x.oid, 'constraint' AS kind, n.nspname AS schema, quote_ident(x.conname) AS name, {_TYPE}
            AS owner_table, regexp_replace(pg_get_constraintdef(x.oid), ' NOT VALID$', '') AS definition,
            CASE WHEN NOT x.convalidated THEN false END AS validated, true AS of_domain,
            obj_description(x.oid, 'pg_constraint') AS comment
            {_of_type("JOIN pg_constraint x ON x.contypid = t.oid AND x.contype = $$c$$")}
        """,
    ),
    (
        "index",
        "pg_class",
        f"""
            SELECT ic.oid, 'index' AS kind, n.nspname AS schema, {_RELATION.replace("c.relname", "ic.relname")} AS name,
            {_RELATION} AS owner_table, ic.relispartition AS inherited, {_PARENTS} AS parents,
            pg_get_indexdef(ic.oid) AS definition,
            CASE WHEN NOT (x.indisvalid AND x.indisready) THEN false END AS valid,
            nullif(x.indisclustered, false) AS clustered, obj_description(ic.oid, 'pg_class') AS comment
            {_of_relation("pg_index", "indrelid", "JOIN pg_class ic ON ic.oid = x.indexrelid")}
            -- A constraint's index is the constraint's.
            AND NOT EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conindid = ic.oid
            AND k.contype IN ('p', 'u', 'x'))
        """,
    ),
    (
        "view",
        "pg_class",
        f"""
            SELECT c.oid, CASE c.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END AS kind, n.nspname AS schema,
            {_RELATION} AS name, pg_get_viewdef(c.oid) AS definition,
            ARRAY(SELECT o FROM unnest(c.reloptions) o ORDER BY o) AS options,
            obj_description(c.oid, 'pg_class') AS comment
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('v', 'm') AND {_USER_SCHEMA} AND {_no_extension("pg_class", "c.oid")}
        """,
    ),
    (
        "sequence",
        "pg_class",
        f"""
            SELECT c.oid, 'sequence' AS kind, n.nspname AS schema, {_RELATION} AS name,
            CASE c.relpersistence WHEN 'u' THEN 'unlogged' END AS persistence, {_SEQUENCE_OPTIONS} AS options,
            o.owner_table, o.owned_by, obj_description(c.oid, 'pg_class') AS comment
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_sequence s ON s.seqrelid = c.oid
            LEFT JOIN LATERAL (SELECT d.deptype, quote_ident(tn.nspname) || '.' || quote_ident(t.relname)
            AS owner_table,
            quote_ident(tn.nspname) || '.' || quote_ident(t.relname) || '.' || quote_ident(a.attname) AS owned_by
            FROM pg_depend d JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace tn ON tn.oid = t.relnamespace
            JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass
            AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')) o ON true
            WHERE {_USER_SCHEMA} AND {_no_extension("pg_class", "c.oid")} AND o.deptype IS DISTINCT FROM 'i'
        """,
    ),
    (
        "enum",
        "pg_type",
        f"""
            SELECT t.oid, 'enum' AS kind, n.nspname AS schema, {_TYPE} AS name,
            ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) AS labels,
            obj_description(t.oid, 'pg_type') AS comment {_of_type()} AND t.typtype = 'e'
        """,
    ),
    (
        "domain",
        "pg_type",
        f"""
            SELECT t.oid, 'domain' AS kind, n.nspname AS schema, {_TYPE} AS name,
            format_type(t.typbasetype, t.typtypmod) AS type, CASE WHEN t.typnotnull THEN 'yes' END AS not_null,
            t.typdefault AS "default",
            (SELECT quote_ident(cn.nspname) || '.' || quote_ident(co.collname) FROM pg_collation co
            JOIN pg_namespace cn ON cn.oid = co.collnamespace JOIN pg_type b ON b.oid = t.typbasetype
            WHERE co.oid = t.typcollation AND co.oid <> b.typcollation) AS collation,
            obj_description(t.oid, 'pg_type') AS comment {_of_type()} AND t.typtype = 'd'
        """,
    ),
    (
        "composite type",
        "pg_type",
        f"""
            SELECT t.oid, 'composite type' AS kind, n.nspname AS schema, {_TYPE} AS name,
            ARRAY(SELECT quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod) || coalesce(
            (SELECT ' COLLATE ' || quote_ident(cn.nspname) || '.' || quote_ident(co.collname) FROM pg_collation co
            JOIN pg_namespace cn ON cn.oid = co.collnamespace JOIN pg_type b ON b.oid = a.atttypid
            WHERE co.oid = a.attcollation AND co.oid <> b.typcollation), '')
            FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
            ORDER BY a.attnum) AS attributes,
            obj_description(t.oid, 'pg_type') AS comment {_of_type()} AND t.typtype = 'c'
            AND EXISTS (SELECT 1 FROM pg_class k WHERE k.oid = t.typrelid AND k.relkind = 'c')
        """,
    ),
    (
        "range type",
        "pg_type",
        f"""
            SELECT t.oid, 'range type' AS kind, n.nspname AS schema, {_TYPE} AS name,
            format_type(r.rngsubtype, NULL) AS subtype,
            (SELECT quote_ident(cn.nspname) || '.' || quote_ident(o.opcname) FROM pg_opclass o
            JOIN pg_namespace cn ON cn.oid = o.opcnamespace WHERE o.oid = r.rngsubopc AND NOT o.opcdefault)
            AS subtype_opclass,
            nullif(r.rngcanonical, 0)::regproc::text AS canonical, nullif(r.rngsubdiff, 0)::regproc::text
            AS subtype_diff, obj_description(t.oid, 'pg_type') AS comment
            {_of_type("JOIN pg_range r ON r.rngtypid = t.oid")}
            AND t.typtype = 'r'
        """,
    ),
    (
        "base type",
        "pg_type",
        f"""
            SELECT t.oid, 'base type' AS kind, n.nspname AS schema, {_TYPE} AS name, t.typinput::text AS input,
            t.typoutput::text AS output, t.typlen::int AS length, obj_description(t.oid, 'pg_type') AS comment
            {_of_type()}
            AND t.typtype = 'b' AND NOT EXISTS (SELECT 1 FROM pg_type el WHERE el.typarray = t.oid)
        """,
    ),
    (
        "function",
        "pg_proc",
        f"""
            SELECT p.oid, CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END
            AS kind,
            n.nspname AS schema, quote_ident(n.nspname) || '.' || quote_ident(p.proname) || '('
            || pg_get_function_identity_arguments(p.oid) || ')' AS name,
            CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid) ELSE (SELECT concat_ws(', ',
            'SFUNC = ' || g.aggtransfn::text, 'STYPE = ' || format_type(g.aggtranstype, NULL),
            'SSPACE = ' || nullif(g.aggtransspace, 0), 'FINALFUNC = ' || nullif(g.aggfinalfn, 0)::regproc::text,
            CASE WHEN g.aggfinalextra THEN 'FINALFUNC_EXTRA' END,
            'COMBINEFUNC = ' || nullif(g.aggcombinefn, 0)::regproc::text,
            'SERIALFUNC = ' || nullif(g.aggserialfn, 0)::regproc::text,
            'DESERIALFUNC = ' || nullif(g.aggdeserialfn, 0)::regproc::text,
            'INITCOND = ' || quote_literal(g.agginitval),
            'MSFUNC = ' || nullif(g.aggmtransfn, 0)::regproc::text,
            'MINVFUNC = ' || nullif(g.aggminvtransfn, 0)::regproc::text,
            'MSTYPE = ' || format_type(nullif(g.aggmtranstype, 0), NULL),
            'MFINALFUNC = ' || nullif(g.aggmfinalfn, 0)::regproc::text, 'MINITCOND = ' || quote_literal(g.aggminitval),
            'SORTOP = ' || {_OPERATOR.format(oid="nullif(g.aggsortop, 0)")},
            CASE p.proparallel WHEN 's' THEN 'PARALLEL = SAFE' WHEN 'r' THEN 'PARALLEL = RESTRICTED' END,
            CASE g.aggkind WHEN 'h' THEN 'HYPOTHETICAL' END) FROM pg_aggregate g WHERE g.aggfnoid = p.oid) END
            AS definition, obj_description(p.oid, 'pg_proc') AS comment
            FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
            -- The constructors of a range type are the type's.
            WHERE {_USER_SCHEMA} AND NOT EXISTS (SELECT 1 FROM pg_depend i WHERE i.classid = 'pg_proc'::regclass
            AND i.objid = p.oid AND i.deptype = 'i') AND {_no_extension("pg_proc", "p.oid")}
        """,
    ),
    (
        "trigger",
        "pg_trigger",
        f"""
            SELECT x.oid, 'trigger' AS kind, n.nspname AS schema, quote_ident(x.tgname) AS name,
            {_RELATION} AS owner_table, pg_get_triggerdef(x.oid) AS definition,
            {_ENABLED.format(column="x.tgenabled")} AS enabled, obj_description(x.oid, 'pg_trigger') AS comment
            {_of_relation("pg_trigger", "tgrelid")}
            AND NOT x.tgisinternal AND x.tgparentid = 0
        """,
    ),
    (
        "rule",
        "pg_rewrite",
        f"""
            SELECT x.oid, 'rule' AS kind, n.nspname AS schema, quote_ident(x.rulename) AS name,
            {_RELATION} AS owner_table, pg_get_ruledef(x.oid) AS definition,
            {_ENABLED.format(column="x.ev_enabled")} AS enabled, obj_description(x.oid, 'pg_rewrite') AS comment
            {_of_relation("pg_rewrite", "ev_class")} AND x.rulename <> '_RETURN'
        """,
    ),
    (
        "policy",
        "pg_policy",
        f"""
            SELECT x.oid, 'policy' AS kind, n.nspname AS schema, quote_ident(x.polname) AS name,
            {_RELATION} AS owner_table, CASE WHEN x.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END AS mode,
            CASE x.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE'
            ELSE 'ALL' END AS command, ARRAY(SELECT CASE r WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r))
            END FROM unnest(x.polroles) r ORDER BY 1) AS roles, pg_get_expr(x.polqual, x.polrelid) AS "using",
            pg_get_expr(x.polwithcheck, x.polrelid) AS "check", obj_description(x.oid, 'pg_policy') AS comment
            {_of_relation("pg_policy", "polrelid")}
        """,
    ),
    (
        "event trigger",
        "pg_event_trigger",
        f"""
            SELECT x.oid, 'event trigger' AS kind, NULL::text AS schema, quote_ident(x.evtname) AS name,
            x.evtevent::text AS event, x.evtfoid::regproc::text AS function, x.evttags AS tags,
            {_ENABLED.format(column="x.evtenabled")} AS enabled, obj_description(x.oid, 'pg_event_trigger') AS comment
            FROM pg_event_trigger x WHERE {_no_extension("pg_event_trigger", "x.oid")}
        """,
    ),
    (
        "statistics",
        "pg_statistic_ext",
        f"""
            SELECT x.oid, 'statistics' AS kind, n.nspname AS schema, quote_ident(n.nspname) || '.'
            || quote_ident(x.stxname) AS name, pg_get_statisticsobjdef(x.oid) AS definition,
            obj_description(x.oid, 'pg_statistic_ext') AS comment
            FROM pg_statistic_ext x JOIN pg_namespace n ON n.oid = x.stxnamespace
            WHERE {_USER_SCHEMA} AND {_no_extension("pg_statistic_ext", "x.oid")}
        """,
    ),
    (
        "collation",
        "pg_collation",
        f"""
            SELECT x.oid, 'collation' AS kind, n.nspname AS schema, quote_ident(n.nspname) || '.'
            || quote_ident(x.collname) AS name, x.collprovider::text AS provider,
            x.collisdeterministic AS deterministic,
            coalesce(to_jsonb(x) ->> 'colllocale', to_jsonb(x) ->> 'colliculocale', to_jsonb(x) ->> 'collcollate')
            AS locale, obj_description(x.oid, 'pg_collation') AS comment
            FROM pg_collation x JOIN pg_namespace n ON n.oid = x.collnamespace
            WHERE {_USER_SCHEMA} AND {_no_extension("pg_collation", "x.oid")}
        """,
    ),
    (
        "publication",
        "pg_publication",
        f"""
            SELECT x.oid, 'publication' AS kind, NULL::text AS schema, quote_ident(x.pubname) AS name,
            (to_jsonb(x) - 'oid' - 'pubname' - 'pubowner')::text AS options,
            ARRAY(SELECT quote_ident(t.schemaname) || '.' || quote_ident(t.tablename) FROM pg_publication_tables t
            WHERE t.pubname = x.pubname AND NOT x.puballtables ORDER BY 1) AS tables
            FROM pg_publication x WHERE {_no_extension("pg_publication", "x.oid")}
        """,
    ),
    (
        "server",
        "pg_foreign_server",
        f"""
            SELECT x.oid, 'server' AS kind, NULL::text AS schema, quote_ident(x.srvname) AS name,
            quote_ident(w.fdwname) AS wrapper, x.srvtype AS type, x.srvversion AS version, x.srvoptions AS options
            FROM pg_foreign_server x JOIN pg_foreign_data_wrapper w ON w.oid = x.srvfdw
            WHERE {_no_extension("pg_foreign_server", "x.oid")}
        """,
    ),
    (
        "operator",
        "pg_operator",
        f"""
            SELECT x.oid, 'operator' AS kind, n.nspname AS schema, x.oid::regoperator::text AS name,
            x.oprcode::text AS function, nullif(x.oprrest, 0)::regproc::text AS restrict,
            nullif(x.oprjoin, 0)::regproc::text AS join,
            nullif(x.oprcom, 0)::regoperator::text AS commutator,
            nullif(x.oprnegate, 0)::regoperator::text AS negator, obj_description(x.oid, 'pg_operator') AS comment
            FROM pg_operator x JOIN pg_namespace n ON n.oid = x.oprnamespace
            WHERE {_USER_SCHEMA} AND x.oprcode <> 0 AND {_no_extension("pg_operator", "x.oid")}
        """,
    ),
    (
        "cast",
        "pg_cast",
        f"""
            SELECT x.oid, 'cast' AS kind, NULL::text AS schema, '(' || format_type(x.castsource, NULL) || ' AS '
            || format_type(x.casttarget, NULL) || ')' AS name, nullif(x.castfunc, 0)::regprocedure::text AS function,
            x.castcontext::text AS context, x.castmethod::text AS method
            -- A range type's casts are the type's.
            FROM pg_cast x WHERE x.oid >= {FIRST_NORMAL_OID} AND {_no_extension("pg_cast", "x.oid")}
            AND NOT EXISTS (SELECT 1 FROM pg_depend i WHERE i.classid = 'pg_cast'::regclass AND i.objid = x.oid
            AND i.deptype = 'i')
        """,
    ),
    *(
        # Rare kinds: that they are there is compared, not how they are made.
        (
            "rare",
            catalogue,
            f"""
            SELECT x.oid, i.type AS kind, i.schema, i.identity AS name FROM {catalogue} x
            CROSS JOIN LATERAL pg_identify_object('{catalogue}'::regclass, x.oid, 0) i
            WHERE x.oid >= {FIRST_NORMAL_OID} AND {_no_extension(catalogue, "x.oid")}
        """,
        )
        for catalogue in (
            "pg_ts_config",
            "pg_ts_dict",
            "pg_ts_parser",
            "pg_ts_template",
            "pg_opclass",
            "pg_opfamily",
            "pg_language",
            "pg_foreign_data_wrapper",
            "pg_conversion",
            "pg_am",
            "pg_transform",
        )
    ),
)

# (catalogue, how acldefault calls its objects, the oid, sub-id, owner and acl of each)
PRIVILEGES = (
    ("pg_namespace", "'n'", "x.oid", "0", "x.nspowner", "x.nspacl", "pg_namespace x"),
    (
        "pg_class",
        "CASE x.relkind WHEN 'S' THEN 's'::\"char\" ELSE 'r'::\"char\" END",
        "x.oid",
        "0",
        "x.relowner",
        "x.relacl",
        "pg_class x",
    ),
    (
        "pg_class",
        "'c'",
        "x.attrelid",
        "x.attnum",
        "k.relowner",
        "x.attacl",
        "pg_attribute x JOIN pg_class k ON k.oid = x.attrelid",
    ),
    ("pg_proc", "'f'", "x.oid", "0", "x.proowner", "x.proacl", "pg_proc x"),
    ("pg_type", "'T'", "x.oid", "0", "x.typowner", "x.typacl", "pg_type x"),
    ("pg_foreign_server", "'S'", "x.oid", "0", "x.srvowner", "x.srvacl", "pg_foreign_server x"),
)
DEFAULT_PRIVILEGES = (
    "SELECT 'default privileges' AS kind, n.nspname AS schema, 'for ' || quote_ident(pg_get_userbyid(x.defaclrole))"
    " || coalesce(' in ' || quote_ident(n.nspname), '') || ' on ' || CASE x.defaclobjtype WHEN 'r' THEN 'tables'"
    " WHEN 'S' THEN 'sequences' WHEN 'f' THEN 'functions' WHEN 'T' THEN 'types' WHEN 'n' THEN 'schemas'"
    " ELSE 'large objects' END AS name, x.defaclacl::text AS privileges"
    " FROM pg_default_acl x LEFT JOIN pg_namespace n ON n.oid = x.defaclnamespace"
)
