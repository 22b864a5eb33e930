#!/bin/bash
# The machine of the three poolers, each an instance of one unit.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

packages rsync
changed=no
if install_programs; then changed=yes; fi
if put /etc/pgsteer/userlist.txt root:pgsteer 640 <"$examples/userlist.txt"; then changed=yes; fi

for i in 1 2 3; do
	mine=$changed
	ini=/etc/pgsteer/pooler-$i.ini
	if put "$ini" root:pgsteer 640 <"$examples/pooler-$i.ini"; then mine=yes; fi
	pgsteer-pooler -check "$ini"
	run_unit "pgsteer-pooler@$i.service" "$mine"
done
