package bouncer

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// units are the suffixes of a time, longest first where one ends in another.
var units = []struct {
	suffix string
	unit   time.Duration
}{
	{"us", time.Microsecond},
	{"ms", time.Millisecond},
	{"min", time.Minute},
	{"s", time.Second},
	{"m", time.Minute},
	{"h", time.Hour},
	{"d", 24 * time.Hour},
}

// maxTime is the longest time accepted, ten years: what exceeds it is a slip,
// and what exceeds 292 years has no time.Duration.
const maxTime = 10 * 365 * 24 * time.Hour

// parseTime reads a number of seconds, which may have a fraction, or a number
// with one of the units.
func parseTime(s string) (time.Duration, error) {
	number, unit := s, time.Second
	for _, u := range units {
		if n, ok := strings.CutSuffix(s, u.suffix); ok {
			number, unit = strings.TrimRight(n, " \t"), u.unit
			break
		}
	}
	// ParseFloat also knows hexadecimal, infinities and underscores.
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || strings.Trim(number, "0123456789.") != "" || v*float64(unit) > float64(maxTime) {
		return 0, fmt.Errorf("%q is no time: want seconds, or a number with us, ms, s, m, h or d, up to ten years", s)
	}
	return time.Duration(math.Round(v * float64(unit))), nil
}

// parseInt reads a decimal number within bounds.
func parseInt(s string, low, high int) (int, error) {
	n, err := strconv.Atoi(s)
	// A leading zero would mean octal to PgBouncer.
	if err != nil || n < low || n > high || s != strconv.Itoa(n) {
		return 0, fmt.Errorf("%q is not a number between %d and %d", s, low, high)
	}
	return n, nil
}

// parseBool reads PgBouncer's 0 and 1.
func parseBool(s string) (bool, error) {
	switch s {
	case "0":
		return false, nil
	case "1":
		return true, nil
	}
	return false, fmt.Errorf("%q is neither 0 nor 1", s)
}

// parseList splits at commas; blank elements are dropped.
func parseList(s string) []string {
	var list []string
	for e := range strings.SplitSeq(s, ",") {
		if e = strings.TrimSpace(e); e != "" {
			list = append(list, e)
		}
	}
	return list
}

// parseNetworks reads a list of addresses and networks.
func parseNetworks(s string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, e := range parseList(s) {
		p, err := parseNetwork(e)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

func parseNetwork(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q is neither an IP address nor a network like 192.168.1.0/24", s)
	case p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q is an IPv4 address in IPv6's form: want %s", s, p.Addr().Unmap())
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%q has bits behind its prefix: want %s", s, p.Masked())
	case p.Bits() == 0:
		return netip.Prefix{}, fmt.Errorf("%q is every address", s)
	}
	return p, nil
}

// nearest returns the known name that differs least from s, unless it differs
// in more than a third of its letters.
func nearest(s string, known []string) (name string, ok bool) {
	best := len(s)/3 + 1
	for _, k := range known {
		if d := distance(s, k, best); d <= best && (d < best || !ok) {
			name, ok, best = k, true, d
		}
	}
	return name, ok
}

// distance counts the insertions, deletions and replacements that turn a into
// b; above limit it may return anything that is above too.
func distance(a, b string, limit int) int {
	if len(a)-len(b) > limit || len(b)-len(a) > limit {
		return limit + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// maxSocketPath is how long the name of a Unix socket can be: sun_path has 108
// bytes, the last is NUL. The socket is made under a longer name at first.
const maxSocketPath = 90

// setMetricsListen takes an address and port, or a port alone.
func setMetricsListen(f *file, value string) error {
	if value == "" {
		f.MetricsListen = ""
		return nil
	}
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		return errors.New("it is no ADDRESS:PORT or :PORT")
	}
	if _, err := netip.ParseAddr(host); host != "" && err != nil {
		return fmt.Errorf("%q is no IP address", host)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is no port", port)
	}
	f.MetricsListen = value
	return nil
}

func setControlSocket(f *file, value string) error {
	switch {
	case value != "" && value[0] != '/':
		return fmt.Errorf("%q is no absolute path", value)
	case len(value) > maxSocketPath:
		return fmt.Errorf("a path of %d bytes is too long, at most %d", len(value), maxSocketPath)
	}
	f.ControlSocket = value
	return nil
}
