package doctor

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCapabilities(t *testing.T) {
	const (
		admin, raw, bpf, perfmon = 1 << unix.CAP_NET_ADMIN, 1 << unix.CAP_NET_RAW, 1 << unix.CAP_BPF, 1 << unix.CAP_PERFMON
		system                   = 1 << unix.CAP_SYS_ADMIN
	)
	tests := []struct {
		have uint64
		want string
	}{
		{admin | raw | bpf | perfmon, ""},
		{admin | raw | system, ""},
		{admin | raw | bpf, "missing the capability CAP_PERFMON: "},
		{admin | bpf | perfmon, "missing the capability CAP_NET_RAW: "},
		{raw | system, "missing the capability CAP_NET_ADMIN: "},
		{admin | raw | perfmon, "missing the capability CAP_BPF: "},
		{0, "missing the capabilities CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON: "},
	}
	for _, tt := range tests {
		got := ""
		if err := checkCapabilities(tt.have); err != nil {
			got = err.Error()
		}
		if tt.want == "" && got != "" || !strings.HasPrefix(got, tt.want) {
			t.Errorf("%#x: got %q, want %q", tt.have, got, tt.want)
		}
	}
}
