package stats

import (
	"errors"
	"flag"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

var update = flag.Bool("update", false, "write the golden files")

// gather scrapes s through a checked registry, which refuses descriptions that
// are inconsistent and values that stand twice.
func gather(t *testing.T, s Snapshot) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(newCollector(func() Snapshot { return s })); err != nil {
		t.Fatal(err)
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("promlint: %s: %s", p.Metric, p.Text)
	}
	handler, err := newHandler(Config{Snapshot: func() Snapshot { return s }, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	var own strings.Builder
	for line := range strings.Lines(get(handler, "/metrics").Body.String()) {
		if strings.Contains(line, "pgsteer_") {
			own.WriteString(line)
		}
	}
	return own.String()
}

// TestMetrics holds every family with its help, type, labels and value.
func TestMetrics(t *testing.T) {
	s := sample()
	s.Version = "v0.1.0"
	got := gather(t, s)
	const path = "testdata/metrics.golden"
	// The Go version is that of the test.
	lines := strings.SplitAfter(got, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "pgsteer_build_info") {
			if l != "pgsteer_build_info{goversion=\""+goVersion+"\",version=\"v0.1.0\"} 1\n" {
				t.Errorf("build info: %s", l)
			}
			lines[i] = ""
		}
	}
	got = strings.Join(lines, "")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("\n got:\n%s\nwant:\n%s", got, want)
	}
	for _, m := range all {
		if !strings.Contains(got, "# TYPE "+m.name+" ") && m.name != "pgsteer_build_info" {
			t.Errorf("%s is defined, but the sample has no value for it", m.name)
		}
	}
}

// TestMetricsWithoutDatapath checks that what could not be read is absent and
// that the rest is there.
func TestMetricsWithoutDatapath(t *testing.T) {
	s := sample()
	s.Datapath, s.DatapathErr = lb.DatapathStats{}, errors.New("odd")
	got := gather(t, s)
	for _, want := range []string{
		"pgsteer_datapath_up 0\n",
		"pgsteer_backend_up{backend=\"pooler1\",service=\"postgres\"} 1\n",
		"pgsteer_vrrp_state{router=\"main\",state=\"active\"} 1\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing", want)
		}
	}
	for _, absent := range []string{"pgsteer_backend_active_connections", "pgsteer_verdicts_total", "pgsteer_flow", "pgsteer_xdp_mode", "pgsteer_vip_lease", "pgsteer_backend_connect", "pgsteer_datapath_memory"} {
		if strings.Contains(got, absent) {
			t.Errorf("%s is there", absent)
		}
	}
}

// TestMetricsOfEmptySnapshot checks that nothing is made up.
func TestMetricsOfEmptySnapshot(t *testing.T) {
	got := gather(t, Snapshot{})
	for line := range strings.Lines(got) {
		if strings.Contains(line, "backend=") || strings.Contains(line, "router=") || strings.Contains(line, "pgsteer_sync") {
			t.Errorf("unexpected %s", line)
		}
	}
}

// TestConnectTimeMetric checks that the histogram is one: cumulative, with an
// end that counts all, and with the bounds in seconds.
func TestConnectTimeMetric(t *testing.T) {
	s := sample()
	b := &s.Datapath.Services[0].Backends[0]
	for i := range b.ConnectTime {
		b.ConnectTime[i] = 1
	}
	b.ConnectTimeSum = 90 * time.Second
	got := gather(t, s)
	const name = `pgsteer_backend_connect_duration_seconds`
	const labels = `backend="pooler1",service="postgres"`
	for _, want := range []string{
		"# TYPE " + name + " histogram\n",
		name + `_bucket{` + labels + `,le="1e-06"} 1` + "\n",
		name + `_bucket{` + labels + `,le="2e-06"} 2` + "\n",
		name + `_bucket{` + labels + `,le="0.001024"} 11` + "\n",
		name + `_bucket{` + labels + `,le="4.194304"} 23` + "\n",
		name + `_bucket{` + labels + `,le="+Inf"} 24` + "\n",
		name + `_sum{` + labels + "} 90\n",
		name + `_count{` + labels + "} 24\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if n := strings.Count(got, name+"_bucket{"+labels); n != lb.ConnectTimeBuckets {
		t.Errorf("%d buckets", n)
	}
}

// BenchmarkScrape scrapes a node with 64 backends.
func BenchmarkScrape(b *testing.B) {
	s := sample()
	s.Datapath.Services = s.Datapath.Services[:1]
	backends := &s.Datapath.Services[0].Backends
	for i := len(*backends); i < lb.MaxBackends; i++ {
		next := (*backends)[0]
		next.Name = "backend" + strconv.Itoa(i)
		*backends = append(*backends, next)
		s.Backends = append(s.Backends, lb.BackendStatus{Service: "postgres", Name: next.Name})
	}
	handler, err := newHandler(Config{Snapshot: func() Snapshot { return s }, Log: discard})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		get(handler, "/metrics")
	}
}
