"""What the extensions that migrations ask for most bring, by kind and name. Pure: no I/O.

From the extensions' own control and SQL files (PostgreSQL 18's contrib, pgvector 0.8, PostGIS 3.5). A name that is not
here may come from an extension all the same: nothing is said of it then.
"""

from __future__ import annotations

_TYPES = {
    "citext": "citext",
    "cube": "cube",
    "hstore": "hstore",
    "isn": "ean13 isbn isbn13 ismn ismn13 issn issn13 upc",
    "lo": "lo",
    "ltree": "lquery ltree ltxtquery",
    "postgis": "box2d box3d geography geometry geometry_dump",
    "postgis_raster": "raster",
    "seg": "seg",
    "vector": "halfvec sparsevec vector",
}
_FUNCTIONS = {
    "dblink": "dblink dblink_connect dblink_exec",
    "earthdistance": "earth_box earth_distance ll_to_earth",
    "fuzzystrmatch": "difference dmetaphone levenshtein metaphone soundex",
    "pg_trgm": "show_trgm similarity strict_word_similarity word_similarity",
    "pgcrypto": "armor crypt digest gen_random_bytes gen_salt hmac pgp_sym_decrypt pgp_sym_encrypt",
    "postgis": "st_asgeojson st_distance st_dwithin st_geogfromtext st_geomfromtext st_makepoint st_setsrid"
    " st_transform",
    "tablefunc": "connectby crosstab normal_rand",
    "unaccent": "unaccent",
    "uuid-ossp": "uuid_generate_v1 uuid_generate_v1mc uuid_generate_v3 uuid_generate_v4 uuid_generate_v5 uuid_nil",
    "vector": "cosine_distance inner_product l2_distance l2_normalize",
}
_OPERATOR_CLASSES = {
    "intarray": "gin__int_ops gist__int_ops gist__intbig_ops",
    "pg_trgm": "gin_trgm_ops gist_trgm_ops",
    "vector": "bit_hamming_ops bit_jaccard_ops halfvec_cosine_ops halfvec_ip_ops halfvec_l1_ops halfvec_l2_ops"
    " sparsevec_cosine_ops sparsevec_ip_ops sparsevec_l1_ops sparsevec_l2_ops vector_cosine_ops vector_ip_ops"
    " vector_l1_ops vector_l2_ops",
}
_ACCESS_METHODS = {"bloom": "bloom", "rum": "rum", "vector": "hnsw ivfflat", "vectorscale": "diskann"}
_SCHEMAS = {"pg_cron": "cron", "pg_net": "net", "pg_partman": "partman", "pgmq": "pgmq"}

_BY_KIND = {
    "access method": _ACCESS_METHODS,
    "function": _FUNCTIONS,
    "operator class": _OPERATOR_CLASSES,
    "schema": _SCHEMAS,
    "type": _TYPES,
}


def extension_of(kind: str, name: str) -> str | None:
    """The extension that brings the type, function, operator class, access method or schema of this name."""
    return next((one for one, names in _BY_KIND.get(kind, {}).items() if name in names.split()), None)


# Settings (PostgreSQL's release notes) that a dump or a file of a newer major may hold, with the first major that
# knows them.
SETTINGS_SINCE = {
    "allow_alter_system": 17,
    "client_connection_check_interval": 14,
    "compute_query_id": 14,
    "default_toast_compression": 14,
    "enable_group_by_reordering": 17,
    "event_triggers": 17,
    "idle_session_timeout": 14,
    "io_combine_limit": 17,
    "io_method": 18,
    "recursive_worktable_factor": 15,
    "restrict_nonsystem_relation_kind": 17,
    "transaction_timeout": 17,
}
