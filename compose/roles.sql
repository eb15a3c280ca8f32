-- Least privilege: one role that migrates and owns the database, one that serves, and a superuser for neither. Run it
-- as a superuser on any database of the server, as often as you like:
--
--   psql -v owner=app_owner -v app=app -v database=app -v owner_password=… -v app_password=… -f roles.sql
--
-- Then MIGRATION_DATABASE_URL has the user `owner`, and DATABASE_URL the user `app`.
\set ON_ERROR_STOP on
\set QUIET on
-- The server's log shows neither the passwords nor a statement that fails with them.
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';
SET password_encryption = 'scram-sha-256';

SELECT format('CREATE ROLE %I LOGIN', name) FROM unnest(ARRAY[:'owner', :'app']) AS name
WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec
SELECT format('CREATE DATABASE %I OWNER %I', :'database', :'owner')
WHERE :'database' NOT IN (SELECT datname FROM pg_database) \gexec

-- CREATEDB: for the scratch databases of `backup --test`, `rehearse` and `verify`, and for `restore`. CREATEROLE: for
-- the role without rights that runs what is restored; before PostgreSQL 16 it would allow far more than that.
SELECT current_setting('server_version_num')::int >= 160000 AS may_create_roles \gset
ALTER ROLE :"owner" NOSUPERUSER CREATEDB PASSWORD :'owner_password';
\if :may_create_roles
ALTER ROLE :"owner" CREATEROLE;
\endif
ALTER ROLE :"app" NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'app_password';

ALTER DATABASE :"database" OWNER TO :"owner";
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT, TEMPORARY ON DATABASE :"database" TO :"app";

\connect :"database"
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO :"owner";
GRANT USAGE ON SCHEMA public TO :"app";
-- What migrations create from now on, and what is there. The schema of the program itself needs nothing: each start
-- grants there what the role that serves needs.
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO :"app";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO :"app";
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO :"app";
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO :"app";

-- Extensions that only a superuser may create; the others are created by the role that migrates. They are in a template
-- as well, from which the program makes the databases for a restore, a test or a rehearsal.
\if :{?extensions}
SELECT format('CREATE EXTENSION IF NOT EXISTS %I', name)
FROM unnest(regexp_split_to_array(:'extensions', '[,[:space:]]+')) AS name
WHERE name <> '' AND name IN (SELECT pg_available_extensions.name FROM pg_available_extensions) \gexec

SELECT 'CREATE DATABASE orchestrator_template IS_TEMPLATE true'
WHERE 'orchestrator_template' NOT IN (SELECT datname FROM pg_database) \gexec
REVOKE ALL ON DATABASE orchestrator_template FROM PUBLIC;
\connect orchestrator_template
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
SELECT format('CREATE EXTENSION IF NOT EXISTS %I', name)
FROM unnest(regexp_split_to_array(:'extensions', '[,[:space:]]+')) AS name
WHERE name <> '' AND name IN (SELECT pg_available_extensions.name FROM pg_available_extensions) \gexec
\endif
