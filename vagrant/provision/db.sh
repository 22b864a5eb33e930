#!/bin/bash
# The database: PostgreSQL 15 with room for three pools of 70, and the role and
# database that the lab's clients use.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

packages postgresql-15
[ -e /etc/postgresql/15/main/postgresql.conf ] || pg_createcluster --encoding=UTF8 --locale=C.UTF-8 15 main >/dev/null

changed=no
memory_mb=$(awk '$1 == "MemTotal:" { print int($2 / 1024) }' /proc/meminfo)
if put /etc/postgresql/15/main/conf.d/pgsteer.conf postgres:postgres 644 <<-CONF; then changed=yes; fi
	listen_addresses = 'localhost,$ADDRESS'
	max_connections = 300
	password_encryption = scram-sha-256
	# A quarter of the memory, as PostgreSQL's manual advises.
	shared_buffers = $((memory_mb / 4))MB
CONF

# Only the poolers log in from outside.
hba=/etc/postgresql/15/main/pg_hba.conf
rule='host all all 192.168.1.5/32 scram-sha-256'
grep -qxF "$rule" "$hba" || {
	echo "$rule" >>"$hba"
	changed=yes
}
run_unit postgresql@15-main.service "$changed"

as_postgres() { runuser -u postgres -- psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 "$@"; }

as_postgres --set=password="$bench_password" <<-'SQL'
	SELECT 'CREATE ROLE bench LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'bench') \gexec
	ALTER ROLE bench PASSWORD :'password';
	SELECT 'CREATE DATABASE bench OWNER bench' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'bench') \gexec
SQL
say "database bench is there"
