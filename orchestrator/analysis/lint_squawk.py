"""How the rules of `lint` compare with those of squawk 2.70: which are the same, and which we leave out. Pure: no I/O.

tests/analysis/test_lint.py runs squawk on the same statements and compares the findings with both tables.
"""

from __future__ import annotations

# squawk's rule → ours.
SQUAWK: dict[str, str] = {
    "adding-field-with-default": "rewrites-table",
    "adding-foreign-key-constraint": "constraint-not-valid",
    "adding-not-nullable-field": "set-not-null",
    "adding-required-field": "required-column",
    "adding-serial-primary-key-field": "unique-builds-index",
    "ban-alter-domain-with-add-constraint": "constraint-not-valid",
    "ban-concurrent-index-creation-in-transaction": "concurrently-in-transaction",
    "ban-drop-column": "drop-column",
    "ban-drop-constraint": "drop-constraint",
    "ban-drop-database": "drop-database",
    "ban-drop-default": "drop-default",
    "ban-drop-domain": "drop-object",
    "ban-drop-extension": "drop-object",
    "ban-drop-function": "drop-object",
    "ban-drop-index": "drop-index",
    "ban-drop-not-null": "drop-not-null",
    "ban-drop-schema": "drop-object",
    "ban-drop-sequence": "drop-object",
    "ban-drop-table": "drop-table",
    "ban-drop-trigger": "drop-object",
    "ban-drop-type": "drop-object",
    "ban-drop-view": "drop-object",
    "ban-disable-trigger": "trigger-disabled",
    "ban-duplicate-column-assignments": "duplicate-column",
    "ban-set-schema": "rename",
    "ban-truncate-cascade": "truncate",
    "ban-uncommitted-transaction": "transaction-in-file",
    "changing-column-type": "type-change",
    "constraint-missing-not-valid": "constraint-not-valid",
    "disallowed-unique-constraint": "unique-builds-index",
    "identifier-too-long": "long-name",
    "prefer-repack": "blocking-maintenance",
    "renaming-column": "rename",
    "renaming-object": "rename",
    "renaming-table": "rename",
    "require-concurrent-index-creation": "index-not-concurrent",
    "require-concurrent-index-deletion": "drop-index",
    "require-concurrent-partition-detach": "detach-not-concurrent",
    "require-concurrent-reindex": "reindex-not-concurrent",
    "syntax-error": "syntax",
    "transaction-nesting": "transaction-in-file",
    "unused-ignore": "unused-allow",
}

_SCHEMA = (
    "how the schema is designed is decided in schema.ts, where drizzle-kit takes it from; it hurts nobody when applied"
)
_CLIENTS = (
    "on by request alone in squawk: every change of its kind is named, whether it hurts or not; review is for that"
)
_PLAN = "`plan` shows its lock; nobody waits longer than MIGRATION_DDL_LOCK_TIMEOUT for it"

# squawk's rule → why we have none.
UNLIKE_SQUAWK: dict[str, str] = {
    "prefer-bigint-over-int": _SCHEMA,
    "prefer-bigint-over-smallint": _SCHEMA,
    "prefer-identity": _SCHEMA,
    "prefer-text-field": _SCHEMA,
    "prefer-timestamp-tz": _SCHEMA,
    "ban-char-field": _SCHEMA,
    "ban-create-domain-with-constraint": _SCHEMA,
    "require-table-schema": "drizzle-kit leaves `public` out, and the migrator fixes the search path",
    "require-enum-value-ordering": "drizzle-kit writes BEFORE where the order asks for it; at the end is the default",
    "prefer-robust-stmts": "a migration is a transaction, and one that cannot be is resumed after its last statement",
    "require-lock-timeout": "MIGRATION_DDL_LOCK_TIMEOUT sets it for every migration, with retries",
    "require-statement-timeout": "MIGRATION_STATEMENT_TIMEOUT is the operator's choice, not the file's",
    "require-timeout-settings": "squawk's own alias of the two above",
    **dict.fromkeys(
        (
            "ban-add-column",
            "ban-add-composite-attribute",
            "ban-add-enum-value",
            "ban-alter-database-options",
            "ban-alter-extension",
            "ban-alter-function-options",
            "ban-alter-identity",
            "ban-alter-policy-condition",
            "ban-alter-policy-roles",
            "ban-alter-role-options",
            "ban-alter-sequence-values",
            "ban-alter-system-options",
            "ban-alter-view-options",
            "ban-create-policy",
            "ban-detach-inheritance",
            "ban-drop-generated-expression",
            "ban-drop-policy",
            "ban-new-write-restriction",
            "ban-replace-view-function",
            "ban-replica-identity",
            "ban-revoke",
            "ban-set-default",
        ),
        _CLIENTS,
    ),
    **dict.fromkeys(("ban-alter-row-level-security", "ban-alter-generated-expression"), _PLAN),
}
