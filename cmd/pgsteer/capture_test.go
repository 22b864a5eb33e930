package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/capture"
)

func TestParseCapture(t *testing.T) {
	for _, tt := range []struct {
		args string
		want captureRequest
		err  string
	}{
		{args: "", want: captureRequest{config: capture.Config{SnapLen: 256}}},
		{
			args: "-w - -c 10 -d 1m30s -s 4096 --side=out --verdict tx_*,drop_ttl --verdict drop_race --host 192.168.1.50 --port 5432 --pin-path /pins",
			want: captureRequest{
				file: "-", duration: 90 * time.Second,
				config: capture.Config{
					PinPath: "/pins", SnapLen: 4096, Side: capture.Out, Verdicts: []string{"tx_*", "drop_ttl", "drop_race"},
					Host: netip.MustParsePrefix("192.168.1.50/32"), Port: 5432, Count: 10,
				},
			},
		},
		{args: "-all -host fd00::/8", want: captureRequest{config: capture.Config{SnapLen: 256, All: true, Host: netip.MustParsePrefix("fd00::/8")}}},
		{args: "--host ::ffff:10.0.0.1", want: captureRequest{config: capture.Config{SnapLen: 256, Host: netip.MustParsePrefix("10.0.0.1/32")}}},

		{args: "port 5432", err: `what is "port"? Filters are options: --host, --port, --verdict`},
		{args: "-x", err: "flag provided but not defined: -x"},
		{args: "-w", err: "flag needs an argument: -w"},
		{args: "-w=", err: `invalid value "" for flag -w: it is empty`},
		{args: "-c 0", err: `invalid value "0" for flag -c: it is not a positive number`},
		{args: "-c 18446744073709551616", err: `invalid value "18446744073709551616" for flag -c: it is too large`},
		{args: "-d 0s", err: `invalid value "0s" for flag -d: it is not positive`},
		{args: "-d 10", err: `invalid value "10" for flag -d: time: missing unit in duration "10"`},
		{args: "-s 0", err: `invalid value "0" for flag -s: it is not a positive number`},
		{args: "-s 4097", err: `invalid value "4097" for flag -s: 4096 bytes are the most`},
		{args: "--side up", err: `invalid value "up" for flag -side: unknown side "up"; want in, out or both`},
		{args: "--verdict tx_[", err: `verdict pattern "tx_[": syntax error in pattern`},
		{args: "--verdict tx_new --all", err: "either all verdicts are wanted or those of a pattern"},
		{args: "--host lb1", err: `invalid value "lb1" for flag -host: it is not an IP address`},
		{args: "--host fe80::1%eth0", err: `invalid value "fe80::1%eth0" for flag -host: it is not an IP address`},
		{args: "--host 10.0.0.0/33", err: `invalid value "10.0.0.0/33" for flag -host: it is not a prefix such as 192.168.1.0/24`},
		{args: "--host ::/0", err: "host ::/0 is too wide a prefix: it holds all of IPv4"},
		{args: "--port 0", err: `invalid value "0" for flag -port: it is not a positive number`},
		{args: "--port 65536", err: `invalid value "65536" for flag -port: it is too large`},
		{args: "--pin-path=", err: `invalid value "" for flag -pin-path: it is empty`},
	} {
		t.Run(tt.args, func(t *testing.T) {
			got, err := parseCapture(strings.Fields(tt.args))
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("got %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*got, tt.want) {
				t.Errorf("got %+v, want %+v", *got, tt.want)
			}
		})
	}
}

// Whoever is not root, and root where no program is: a sentence, not a stack.
func TestCaptureCommand(t *testing.T) {
	missing := t.TempDir() + "/missing"
	for _, tt := range []struct {
		name   string
		args   []string
		status int
		want   string
	}{
		{"usage", []string{"capture", "-s", "0"}, exitUsage, "pgsteer: capture: invalid value"},
		{"JSON", []string{"-p", "capture"}, exitUsage, `{"error":"capture has no JSON; -w writes pcapng"}`},
		{"no program", []string{"--pin-path", missing, "capture", "-w", missing}, exitFailure, "pgsteer: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res := run(nil, nil, "", tt.args...)
			if res.status != tt.status || res.stdout != "" || !strings.HasPrefix(res.stderr, tt.want) || strings.Count(res.stderr, "\n") != 1 {
				t.Errorf("status %d, stdout %q, stderr %q", res.status, res.stdout, res.stderr)
			}
		})
	}
}

func TestExplainCapture(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{
			fmt.Errorf("%w: nothing is pinned in /pins", capture.ErrNotAttached),
			"no XDP program is attached: nothing is pinned in /pins: either pgsteerd has never run on this node, or its xdp.pin_path is another (use --pin-path)",
		},
		{
			fmt.Errorf("opening it: %w", fs.ErrPermission),
			"no permission to capture from the program in /pins: run as root; the capabilities are CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH",
		},
		{errors.New("something else"), "something else"},
	} {
		if got := explainCapture("/pins", tt.err).Error(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestIsTerminal(t *testing.T) {
	if isTerminal(&bytes.Buffer{}) {
		t.Error("a buffer is taken for a terminal")
	}
}
