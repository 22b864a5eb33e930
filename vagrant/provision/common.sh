#!/bin/bash
# What the roles share. Sourced, never run.
#
# Everything here can be repeated: a second run changes nothing that is right
# already, and restarts only what it changed.

: "${NODE:?is set by the Vagrantfile}" "${ADDRESS:?is set by the Vagrantfile}" "${VIP:?is set by the Vagrantfile}"

stage=/opt/pgsteer/stage
# shellcheck disable=SC2034 # for the scripts that source this
examples=/usr/share/doc/pgsteer/examples
# The lab's only user, as in deploy/examples/userlist.txt.
# shellcheck disable=SC2034
bench_password=bench

say() { echo "$NODE: $*"; }

fail() {
	say "$*" >&2
	exit 1
}

# packages NAME... installs what is missing. A box that has them all needs no
# network. PostgreSQL makes no cluster of its own.
packages() {
	local missing=() name
	for name in "$@"; do
		[ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null || true)" = installed ] || missing+=("$name")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	say "installing ${missing[*]}"
	mkdir -p /etc/postgresql-common/createcluster.d
	echo 'create_main_cluster = off' >/etc/postgresql-common/createcluster.d/pgsteer.conf
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update
	apt-get -qq install --no-install-recommends -y "${missing[@]}" >/dev/null ||
		fail "could not install ${missing[*]}"
}

# put FILE OWNER:GROUP MODE writes its input to FILE and is true only if that
# changed something.
put() {
	local file=$1 owner=$2 mode=$3 new
	new=$(mktemp)
	cat >"$new"
	if cmp -s "$new" "$file"; then
		rm -f "$new"
		return 1
	fi
	install -D -o "${owner%:*}" -g "${owner#*:}" -m "$mode" "$new" "$file" || fail "could not write $file"
	rm -f "$new"
}

# install_programs copies what make install put into the stage onto /, and is
# true only if that changed something.
install_programs() {
	[ -x "$stage/usr/bin/pgsteerd" ] || fail "$stage holds no programs: run vagrant rsync on the host"
	local changes
	changes=$(rsync --recursive --perms --chmod=D755 --checksum --itemize-changes "$stage/usr/" /usr/) ||
		fail "could not copy $stage/usr"
	{ systemd-sysusers &&
		systemd-tmpfiles --create /usr/lib/tmpfiles.d/pgsteer.conf &&
		sysctl --quiet --load=/usr/lib/sysctl.d/60-pgsteer.conf &&
		systemctl daemon-reload; } || fail "could not set the system up for the programs"
	grep -q '^>f' <<<"$changes"
}

# lan_interface prints the name of the interface that has this node's address.
lan_interface() {
	ip -json address show to "$ADDRESS" | sed -n 's/.*"ifname":"\([^"]*\)".*/\1/p'
}

# run_unit UNIT CHANGED enables a unit and has it run with what is installed
# now; it is restarted only if something changed.
run_unit() {
	local unit=$1 changed=$2
	systemctl enable --quiet "$unit"
	if [ "$changed" = yes ]; then
		systemctl restart "$unit"
	else
		systemctl start "$unit"
	fi || {
		journalctl --no-pager --lines=20 --unit="$unit" >&2
		fail "$unit does not start"
	}
	say "$unit runs"
}
