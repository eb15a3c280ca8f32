#!/usr/bin/env bash
# Makes the secrets of the stack: random ones, once, in two volumes. /secrets/database is for the containers of the
# database, /secrets/job-server for job-server, which never sees the superuser's password. The files can be read by
# every user, since each volume is mounted only where all of it may be known.
set -euo pipefail
umask 022
cd /secrets

keep() { # keep FILE [VALUE]: the file as it is; with a value, that one; else a new random one
  [[ -n ${2:-} || ! -s $1 ]] || return 0
  printf '%s' "${2:-$(head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n')}" >"$1.new"
  mv "$1.new" "$1"
}
quoted() { sed "s/[\\\\']/\\\\&/g; s/^/'/; s/\$/'/" <<<"$1"; }
url() { # url USER PASSWORD_FILE
  echo "host=vectorchord port=5432 dbname=$(quoted "$POSTGRES_DB") user=$1 password=$(cat "$2")"
}

keep database/superuser_password "$POSTGRES_PASSWORD"
keep database/owner_password
keep database/app_password
keep job-server/api_token
keep job-server/backup_key
keep job-server/database_url "$(url app database/app_password)"
keep job-server/migration_database_url "$(url app_owner database/owner_password)"
