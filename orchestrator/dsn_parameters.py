"""The parameters that a connection string may have, and what becomes of each. Pure: no I/O.

They are libpq's, and what other clients add to a URL. A parameter that is in none of these tables is refused.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# libpq's variables (the manual's 34.15), by the keyword that each stands for.
PG_VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "PGHOST": "host",
        "PGPORT": "port",
        "PGUSER": "user",
        "PGPASSWORD": "password",
        "PGDATABASE": "dbname",
        "PGPASSFILE": "passfile",
        "PGSSLMODE": "sslmode",
        "PGSSLROOTCERT": "sslrootcert",
        "PGSSLCERT": "sslcert",
        "PGSSLKEY": "sslkey",
        "PGSSLCRL": "sslcrl",
        "PGSSLNEGOTIATION": "sslnegotiation",
        "PGCHANNELBINDING": "channel_binding",
        "PGGSSENCMODE": "gssencmode",
        "PGAPPNAME": "application_name",
        "PGOPTIONS": "options",
        "PGCONNECT_TIMEOUT": "connect_timeout",
        "PGTARGETSESSIONATTRS": "target_session_attrs",
    }
)
# Variables of our own environment that a program on libpq gets. HOME is that of ~/.pgpass and ~/.postgresql.
TAKEN_FROM_ENVIRONMENT = (
    "HOME",
    "PGUSER",
    "PGPASSWORD",
    "PGPASSFILE",
    "PGSSLROOTCERT",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGSSLCRL",
)
SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_TLS_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
# What asyncpg understands, as asyncpg/connect_utils.py reads it (0.30 to 0.32), and what database/dial.py does itself.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "sslmode": SSLMODES,
    "sslnegotiation": ("postgres", "direct"),
    "ssl_min_protocol_version": _TLS_VERSIONS,
    "ssl_max_protocol_version": _TLS_VERSIONS,
    "target_session_attrs": ("any", "primary", "standby", "prefer-standby", "read-write", "read-only"),
    "gsslib": ("gssapi", "sspi"),
    "load_balance_hosts": ("disable", "random"),
    "channel_binding": ("disable", "prefer", "require"),
}
FREE = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword", "passfile", "krbsrvname"})
TLS_FILES = (
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslcrl",
    "sslpassword",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
)
PLACE = {
    "host": "host",
    "port": "port",
    "user": "user",
    "password": "password",
    "dbname": "dbname",
    "database": "dbname",
}
# Settings of the server that clients pass in a URL, by the name that the server knows.
SERVER_SETTINGS: Mapping[str, str] = {
    "application_name": "application_name",
    "datestyle": "DateStyle",
    "default_transaction_isolation": "default_transaction_isolation",
    "idle_in_transaction_session_timeout": "idle_in_transaction_session_timeout",
    "idle_session_timeout": "idle_session_timeout",
    "intervalstyle": "IntervalStyle",
    "jit": "jit",
    "lock_timeout": "lock_timeout",
    "maintenance_work_mem": "maintenance_work_mem",
    "options": "options",
    "role": "role",
    "search_path": "search_path",
    "statement_timeout": "statement_timeout",
    "synchronous_commit": "synchronous_commit",
    "timezone": "TimeZone",
    "transaction_timeout": "transaction_timeout",
    "work_mem": "work_mem",
}
SCHEMAS = frozenset({"schema", "currentschema"})  # Prisma, JDBC
# False or 0 means: no prepared statements, since a pooler is in between. postgres.js, Rails, Prisma, SQLAlchemy, JDBC.
CACHES = frozenset(
    {"prepare", "prepared_statements", "statement_cache_size", "prepared_statement_cache_size", "preparethreshold"}
)
# What tunes another client or its pool, and changes nothing about which database is meant or who is trusted.
DROPPED = frozenset(
    {
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),  # libpq
        *("sslsni", "sslcompression", "client_encoding", "min_protocol_version", "krbspn"),
        *("connection_limit", "pool_timeout", "socket_timeout", "sslidentity", "single_use_connections"),  # Prisma
        *(
            "max",
            "idle_timeout",
            "max_lifetime",
            "backoff",
            "max_pipeline",
            "fetch_types",
            "debug",
            "keep_alive",
        ),  # postgres.js
        *("uselibpqcompat", "connectiontimeoutmillis", "idletimeoutmillis", "query_timeout", "binary"),  # node-postgres
        *("pool_max_conns", "pool_min_conns", "pool_max_conn_lifetime", "pool_max_conn_idle_time"),  # pgx
        *("pool_health_check_period", "default_query_exec_mode", "statement_cache_mode"),
        *("pool", "pool_size", "max_overflow", "pool_recycle", "pool_pre_ping", "async_fallback"),  # SQLAlchemy, Rails
        *("min_size", "max_size", "command_timeout", "timeout", "encoding"),  # asyncpg, Django
        *("tcpkeepalive", "sockettimeout", "logintimeout", "reconnect", "checkout_timeout", "reaping_frequency"),
    }
)
# Demands on security that asyncpg cannot meet: to drop one in silence would be to connect with less than was asked for.
DEMANDS: Mapping[str, tuple[str, ...]] = {
    "gssencmode": ("disable", "prefer"),
    "require_auth": (),
    "requirepeer": (),
    "sslaccept": ("accept_invalid_certs",),
    "sslcertmode": ("allow",),
    "sslcrldir": (),
}
UNSUPPORTED: Mapping[str, str] = {
    "service": "a connection service file is not read; write its values here",
    "servicefile": "a connection service file is not read; write its values here",
    "hostaddr": "asyncpg has no `hostaddr`; write the address as the host",
    "replication": "a replication connection cannot run migrations; leave it out",
    "requiressl": "it is libpq's old word; write sslmode=require",
}
_SPECIAL = frozenset({"connect_timeout", "fallback_application_name", "pgbouncer", "ssl"})
KNOWN = frozenset(
    {*CHOICES, *FREE, *PLACE, *SERVER_SETTINGS, *SCHEMAS, *CACHES, *DROPPED, *DEMANDS, *UNSUPPORTED, *_SPECIAL}
)
TRUE, FALSE = frozenset({"true", "1", "on", "yes", "t"}), frozenset({"false", "0", "off", "no", "f"})
# node-postgres, postgres.js and SQLAlchemy say `ssl`; libpq itself reads ssl=true as sslmode=require.
SSL_WORDS: Mapping[str, str] = {
    **{mode: mode for mode in SSLMODES},
    **dict.fromkeys(TRUE, "require"),
    **dict.fromkeys(FALSE, "disable"),
    "no-verify": "require",
}
