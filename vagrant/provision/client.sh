#!/bin/bash
# A client: psql and pgbench, set up for the virtual address. It ends with a
# query that takes the whole way, so that a lab that came up is a lab that works.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

# pgbench is part of Debian's server package.
packages postgresql-15

put /etc/profile.d/pgsteer.sh root:root 644 <<-PROFILE || true
	export PGHOST=$VIP PGPORT=5432 PGUSER=bench PGDATABASE=bench PGPASSWORD=$bench_password
	export PATH=\$PATH:/usr/lib/postgresql/15/bin
PROFILE
# shellcheck source=/dev/null
. /etc/profile.d/pgsteer.sh

# A backend takes traffic after its first good check: 2 s, and some for slow VMs.
deadline=$((SECONDS + 120))
until answer=$(PGCONNECT_TIMEOUT=5 psql --no-psqlrc --tuples-only --no-align --command='SELECT current_user' 2>&1); do
	[ $SECONDS -lt $deadline ] || fail "the virtual address $VIP does not answer: $answer"
	sleep 1
done
[ "$answer" = bench ] || fail "the virtual address $VIP answered \"$answer\""
say "a query through $VIP:5432 was answered; try: vagrant ssh client -c 'bash -lc \"pgbench -i && pgbench -c 8 -T 10\"'"
