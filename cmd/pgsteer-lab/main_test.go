package main

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		stdout string // a part of it
		stderr string // all of it, unless empty
	}{
		{nil, 2, "", ""},
		{[]string{"help"}, 0, "exec HOST -- COMMAND...", ""},
		{[]string{"-h"}, 0, "pgsteer-lab exec lb1 -- pgsteer backend show", ""},
		{[]string{"-version"}, 0, "pgsteer-lab ", ""},
		{[]string{"-colour"}, 2, "", "pgsteer-lab: flag provided but not defined: -colour\n"},
		{[]string{"lift"}, 2, "", "pgsteer-lab: there is no command \"lift\"; see pgsteer-lab help\n"},
		{[]string{"kill"}, 2, "", "pgsteer-lab: usage: pgsteer-lab kill PROCESS\n"},
		{[]string{"kill", "a", "b"}, 2, "", "pgsteer-lab: usage: pgsteer-lab kill PROCESS\n"},
		{[]string{"up", "now"}, 2, "", "pgsteer-lab: usage: pgsteer-lab up [-wait=false]\n"},
		{[]string{"status", "-x"}, 2, "", "pgsteer-lab: status: flag provided but not defined: -x\n"},
		{[]string{"logs", "-n", "-1"}, 2, "", "pgsteer-lab: logs: -n cannot be negative\n"},
		{[]string{"exec", "client", "--"}, 2, "", "pgsteer-lab: usage: pgsteer-lab exec HOST -- COMMAND...\n"},
		{[]string{"-name", "No", "down"}, 1, "", "pgsteer-lab: \"No\" cannot be a lab's name: 1-31 lower-case letters, digits and hyphens, not beginning with a hyphen\n"},
	} {
		var stdout, stderr bytes.Buffer
		status := run(c.args, &stdout, &stderr)
		if status != c.status || !strings.Contains(stdout.String(), c.stdout) || c.stderr != "" && stderr.String() != c.stderr {
			t.Errorf("%v: status %d, stdout %q, stderr %q", c.args, status, &stdout, &stderr)
		}
	}
}

func TestWriteStatus(t *testing.T) {
	backend := lb.BackendStats{Name: "pooler1", State: lb.Up, Active: 22, Total: 1234}
	dead := lb.BackendStats{Name: "pooler2", State: lb.Down}
	s := lab.Status{
		Name: "pgsteer", Since: time.Now().Add(-90 * time.Second), Complete: true, Active: []string{"lb1"},
		Hosts: []lab.HostStatus{
			{Name: "lb1", Namespace: "pgsteer-lb1", Address: netip.MustParseAddr("192.168.1.10"), Link: "up"},
			{Name: "lb2", Namespace: "pgsteer-lb2", Address: netip.MustParseAddr("192.168.1.11"), Link: "cut"},
		},
		Processes: []lab.ProcessStatus{
			{Name: "pooler1", Host: "pooler", State: "running", PID: 77, Uptime: 90 * time.Second},
			{Name: "pooler2", Host: "pooler", State: "dead"},
		},
		Balancers: []lab.BalancerStatus{
			{
				Host: "lb1",
				VIPs: []lb.VIPStats{
					{Addr: netip.MustParseAddr("fd00:1::100"), State: "backup"},
					{Addr: netip.MustParseAddr("192.168.1.100"), State: "active", Lease: 251 * time.Millisecond},
				},
				Services: []lb.ServiceStats{
					{Addr: netip.MustParseAddrPort("192.168.1.100:5432"), Backends: []lb.BackendStats{backend, dead}},
					{Addr: netip.MustParseAddrPort("[fd00:1::100]:5432"), Backends: []lb.BackendStats{dead}},
				},
			},
			{Host: "lb2", Error: "no tables"},
		},
	}
	var b bytes.Buffer
	if err := writeStatus(&b, s); err != nil {
		t.Fatal(err)
	}
	want := `lab pgsteer, up for 1m30s, NOT as it should be; lb1 answers for 192.168.1.100:5432 and [fd00:1::100]:5432

HOST  ADDRESS       LINK  NAMESPACE
lb1   192.168.1.10  up    pgsteer-lb1
lb2   192.168.1.11  cut   pgsteer-lb2

PROCESS  HOST    STATE    PID  UPTIME
pooler1  pooler  running  77   1m30s
pooler2  pooler  dead     -    -

BALANCER  VIP            STATE   LEASE  BACKEND  STATE  ACTIVE  TOTAL
lb1       192.168.1.100  active  251ms  pooler1  up     22      1234
                                        pooler2  down   0       0
lb1       fd00:1::100    backup  none   pooler2  down   0       0
lb2       no tables
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", &b, want)
	}
}

func TestPrintTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("one\ntwo\nthree\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for lines, want := range map[int]string{0: "one\ntwo\nthree\n", 2: "two\nthree\n", 9: "one\ntwo\nthree\n"} {
		var b bytes.Buffer
		if err := printTail(&b, path, lines, false); err != nil || b.String() != "==> "+path+" <==\n"+want {
			t.Errorf("%d lines: got %q, %v", lines, &b, err)
		}
	}
}
