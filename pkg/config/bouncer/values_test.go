package bouncer

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseTime(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"0":     0,
		"15":    15 * time.Second,
		"0.25":  250 * time.Millisecond,
		"10us":  10 * time.Microsecond,
		"10ms":  10 * time.Millisecond,
		"10s":   10 * time.Second,
		"10 s":  10 * time.Second,
		"10m":   10 * time.Minute,
		"10min": 10 * time.Minute,
		"10h":   10 * time.Hour,
		"10d":   240 * time.Hour,
		"3650d": maxTime,
	} {
		if got, err := parseTime(in); err != nil || got != want {
			t.Errorf("%q: got %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "s", "1e9", "inf", "nan", "1_0", "0x1p4", "-1", "+1", "1.2.3", ".", "99999999999999", "1 2", "5w", "1 ss"} {
		if got, err := parseTime(in); err == nil {
			t.Errorf("%q: accepted as %v", in, got)
		}
	}
}

func TestParseConnstr(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want []pair
	}{
		{"", nil},
		{"  \t", nil},
		{"host=h", []pair{{"host", "h"}}},
		{" host = h\tport= 1 ", []pair{{"host", "h"}, {"port", "1"}}},
		{"password='a b=''c'''", []pair{{"password", "a b='c'"}}},
		{"a='' b=1", nil}, // refused
		{"password=it's", []pair{{"password", "it's"}}},
		{"a=b=c", []pair{{"a", "b=c"}}},
	} {
		got, err := parseConnstr(tt.in)
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(pair{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.in, diff)
		}
		if refused := tt.in == "a='' b=1"; (err != nil) != refused {
			t.Errorf("%q: error %v", tt.in, err)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"listen_addr", "listen_port", "max_client_conn", "pool_mode"}
	for in, want := range map[string]string{
		"listen_adr":       "listen_addr",
		"listen_ports":     "listen_port",
		"max_client_conns": "max_client_conn",
		"poolmode":         "pool_mode",
		"frobnicate":       "",
		"":                 "",
	} {
		if got, _ := nearest(in, known); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "abc", 0}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"ab", "ba", 2}} {
		if got := distance(tt.a, tt.b, 10); got != tt.want {
			t.Errorf("%q to %q: got %d, want %d", tt.a, tt.b, got, tt.want)
		}
		if got := distance(tt.b, tt.a, 10); got != tt.want {
			t.Errorf("%q to %q: got %d, want %d", tt.b, tt.a, got, tt.want)
		}
	}
}
