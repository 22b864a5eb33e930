#!/bin/bash
# The VMs of vagrant up. Sourced by failover.

: "${here:?is set by failover}" "${scratch:?is set by failover}" "${router:?is set by failover}"

# on HOST COMMAND... is a program of its own, for timeout.
on=$scratch/on

# A unit that systemd restarts by itself, or whose watchdog fires, would be back
# before the scenario has looked.
dropin=/run/systemd/system/pgsteerd.service.d/scenario.conf

vagrant_() { (cd "$here/.." && vagrant "$@"); }

prepare() {
	vagrant_ ssh-config >"$scratch/ssh" || fail "the VMs are not up: run vagrant up first"
	# One connection to each host for all commands; it ends with its host.
	cat >>"$scratch/ssh" <<-SSH
		Host *
		  ControlMaster auto
		  ControlPath $scratch/%n
		  ControlPersist 60
		  ConnectTimeout 3
		  ServerAliveInterval 2
		  ServerAliveCountMax 2
	SSH
	cat >"$on" <<-ON
		#!/bin/bash
		host=\$1
		shift
		printf -v command '%q ' "\$@"
		exec ssh -F $scratch/ssh "\$host" "sudo bash -lc \$(printf %q "\$command")"
	ON
	chmod +x "$on"
	local node
	for node in lb2 lb1; do
		patient "$node"
	done
}

# patient NODE has systemd leave the daemon alone, until restore or the next start
# of the VM.
patient() {
	"$on" "$1" bash -c "mkdir -p ${dropin%/*} && printf '[Service]\nRestart=no\nWatchdogSec=0\n' >$dropin && systemctl daemon-reload && systemctl restart pgsteerd"
	within 30 "$1 is linked" linked "$1"
}

restore() {
	local node
	for node in lb1 lb2; do
		"$on" "$node" bash -c "rm -f $dropin && systemctl daemon-reload && systemctl restart pgsteerd" || echo "failover: $node was not set back" >&2
		within 30 "$node is linked" linked "$node"
	done
	for node in client lb1 lb2; do
		ssh -F "$scratch/ssh" -O exit "$node" 2>/dev/null || true
	done
}

strike() {
	case $1 in
	killed) "$on" lb1 systemctl kill --signal=KILL pgsteerd ;;
	frozen) "$on" lb1 systemctl kill --signal=STOP pgsteerd ;;
	stopped) "$on" lb1 systemctl stop pgsteerd ;;
	off) vagrant_ halt --force lb1 >/dev/null ;;
	resigns) "$on" lb1 pgsteer vip resign "$router" >/dev/null ;;
	esac
}

mend() {
	case $1 in
	killed | stopped) "$on" lb1 systemctl start pgsteerd ;;
	frozen) "$on" lb1 systemctl kill --signal=CONT pgsteerd ;;
	off) vagrant_ up --no-provision lb1 >/dev/null && patient lb1 ;;
	resigns) ;;
	esac
}
