#!/bin/bash
# The namespaces of a lab that is up. Sourced by failover.

: "${here:?is set by failover}" "${scratch:?is set by failover}" "${router:?is set by failover}"

program=$here/../../build/bin/pgsteer-lab
# PGSTEER_LAB is the name of a lab that is not called as usual.
lab=("$program" ${PGSTEER_LAB:+-name "$PGSTEER_LAB"})

# on HOST COMMAND... is a program of its own, for timeout.
on=$scratch/on

prepare() {
	[ -x "$program" ] || fail "$program is missing: run make build first"
	# shellcheck disable=SC2016 # for the shell there
	printf '#!/bin/bash\nhost=$1\nshift\nexec %sexec "$host" -- "$@"\n' "$(printf '%q ' "${lab[@]}")" >"$on"
	chmod +x "$on"
	"${lab[@]}" status >/dev/null || fail "no lab is up: run $program up first"
}

restore() { :; }

strike() {
	case $1 in
	killed) "${lab[@]}" kill lb1 ;;
	frozen) "${lab[@]}" stop lb1 ;;
	stopped) "${lab[@]}" term lb1 ;;
	# Nothing comes out of it any more, and nothing in it goes on.
	off) "${lab[@]}" cut lb1 && "${lab[@]}" kill lb1 ;;
	resigns) "$on" lb1 pgsteer vip resign "$router" >/dev/null ;;
	esac
}

mend() {
	case $1 in
	killed | stopped) "${lab[@]}" start lb1 ;;
	frozen) "${lab[@]}" cont lb1 ;;
	off) "${lab[@]}" heal lb1 && "${lab[@]}" start lb1 ;;
	resigns) ;;
	esac
}
