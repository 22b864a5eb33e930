package main

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestList(t *testing.T) {
	var out, errOut bytes.Buffer
	if status := run([]string{"-list"}, &out, &errOut); status != exitOK || errOut.Len() > 0 {
		t.Fatalf("status %d: %s", status, errOut.String())
	}
	names := strings.Fields(out.String())
	for _, name := range []string{"datapath.forward.hot", "datapath.syn.64", "datapath.connect_rate"} {
		if !slices.Contains(names, name) {
			t.Errorf("%s is not among %v", name, names)
		}
	}
	if slices.Sort(names); len(slices.Compact(names)) != strings.Count(out.String(), "\n") {
		t.Errorf("a name comes twice: %v", names)
	}
}

func TestRefuses(t *testing.T) {
	for _, tt := range []struct {
		args   []string
		status int
		says   string
		root   bool // only root comes so far
	}{
		{[]string{"-rounds", "x"}, exitUsage, "invalid value", false},
		{[]string{"datapath.rst", "datapath.pass"}, exitUsage, "one name at the most", false},
		{[]string{"-rounds", "0", "datapath.pass"}, exitUsage, "-rounds", false},
		{[]string{"-flows", "200000", "datapath.pass"}, exitUsage, "-flows", false},
		{[]string{"datapath.nothing"}, exitUsage, "no benchmark of that name", true},
	} {
		if tt.root && os.Geteuid() != 0 {
			continue
		}
		var out, errOut bytes.Buffer
		if status := run(tt.args, &out, &errOut); status != tt.status || !strings.Contains(errOut.String(), tt.says) {
			t.Errorf("%v: status %d: %s", tt.args, status, errOut.String())
		}
		if out.Len() > 0 {
			t.Errorf("%v: printed %s", tt.args, out.String())
		}
	}
}

func TestNeedsRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("this is root")
	}
	var out, errOut bytes.Buffer
	if status := run(nil, &out, &errOut); status != exitFailure || !strings.Contains(errOut.String(), "only root") {
		t.Errorf("status %d: %s", status, errOut.String())
	}
}
