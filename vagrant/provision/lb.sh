#!/bin/bash
# A balancer: pgsteerd with this node's example configuration.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

packages rsync
changed=no
if install_programs; then changed=yes; fi

# The examples say eth0; in a VM that is the interface vagrant talks through.
interface=$(lan_interface)
[ -n "$interface" ] || fail "no interface has the address $ADDRESS"
if sed "s/^interface: .*/interface: $interface/" "$examples/$NODE.yaml" |
	put /etc/pgsteer/pgsteerd.yaml root:root 640; then
	changed=yes
fi
# The balancers tell each other of their connections on TCP port 5480, by this
# key. Debian's VMs have no firewall; elsewhere it needs a rule.
[ -s /opt/pgsteer/keys/sync.key ] || fail "there is no /opt/pgsteer/keys/sync.key: run vagrant rsync on the host"
if put /etc/pgsteer/sync.key root:root 600 </opt/pgsteer/keys/sync.key; then changed=yes; fi
pgsteerd -check -config /etc/pgsteer/pgsteerd.yaml
run_unit pgsteerd.service "$changed"
