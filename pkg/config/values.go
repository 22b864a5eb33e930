package config

import (
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// Each function here reads one scalar, or makes such a reader; its error is
// the reason that the message ends with.

var nameChars = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// name reads a name that is fit for metric labels, paths and the pinned maps.
func name(n node) (string, error) {
	switch {
	case n.Value == "":
		return "", errors.New("is empty")
	case len(n.Value) > lb.MaxNameLen:
		return "", fmt.Errorf("%q has %d bytes; %d is the limit", n.Value, len(n.Value), lb.MaxNameLen)
	case n.Value == ".", n.Value == "..":
		return "", fmt.Errorf("%q is not a name, but stands for a directory", n.Value)
	case !nameChars.MatchString(n.Value):
		return "", fmt.Errorf("%q is not a name; use letters, digits, '.', '_' and '-'", n.Value)
	}
	return n.Value, nil
}

// interfaceName reads what the kernel accepts as one (dev_valid_name).
func interfaceName(n node) (string, error) {
	const maxLen = 15 // IFNAMSIZ less the terminating NUL
	switch v := n.Value; {
	case v == "":
		return "", errors.New("is empty")
	case len(v) > maxLen:
		return "", fmt.Errorf("%q has %d bytes; %d is the limit of an interface name", v, len(v), maxLen)
	case v == ".", v == "..", strings.ContainsAny(v, "/: \t\r\n\v\f"):
		return "", fmt.Errorf("%q is not an interface name", v)
	}
	return n.Value, nil
}

// text reads up to limit bytes of text without NUL (it ends a string of the
// PostgreSQL protocol).
func text(limit int) func(node) (string, error) {
	return func(n node) (string, error) {
		switch {
		case n.Value == "":
			return "", errors.New("is empty")
		case len(n.Value) > limit:
			return "", fmt.Errorf("%q has %d bytes; %d is the limit", n.Value, len(n.Value), limit)
		case strings.ContainsRune(n.Value, 0):
			return "", fmt.Errorf("%q holds a NUL byte", n.Value)
		}
		return n.Value, nil
	}
}

// oneOf reads one of a few words.
func oneOf(words ...string) func(node) (string, error) {
	return func(n node) (string, error) {
		if !slices.Contains(words, n.Value) {
			return "", fmt.Errorf("%q is not one of %s", n.Value, strings.Join(words, ", "))
		}
		return n.Value, nil
	}
}

// scheduler reads the name of a scheduler.
func scheduler(n node) (lb.Scheduler, error) {
	all := []lb.Scheduler{lb.LeastConn, lb.RoundRobin, lb.RandomTwo}
	var names []string
	for _, s := range all {
		if s.String() == n.Value {
			return s, nil
		}
		names = append(names, s.String())
	}
	_, err := oneOf(names...)(n)
	return lb.LeastConn, err
}

// boolean reads true or false.
func boolean(n node) (bool, error) {
	var v bool
	if n.Tag != "!!bool" || n.Decode(&v) != nil {
		return false, fmt.Errorf("%q is not true or false", n.Value)
	}
	return v, nil
}

// number reads a whole number from lo to hi.
func number[T uint8 | uint16 | uint32 | int](lo, hi T) func(node) (T, error) {
	return func(n node) (T, error) {
		if n.Tag != "!!int" {
			return 0, fmt.Errorf("%q is not a whole number", n.Value)
		}
		var v int64
		if err := n.Decode(&v); err != nil || v < int64(lo) || v > int64(hi) {
			return 0, fmt.Errorf("%s is out of range; want %d to %d", n.Value, lo, hi)
		}
		return T(v), nil
	}
}

// powerOfTwo reads one from lo to hi.
func powerOfTwo(lo, hi uint32) func(node) (uint32, error) {
	return func(n node) (uint32, error) {
		v, err := number(lo, hi)(n)
		if err == nil && v&(v-1) != 0 {
			below := uint32(1) << (bits.Len32(v) - 1)
			return 0, fmt.Errorf("%s is not a power of two; the next ones are %d and %d", n.Value, below, 2*below)
		}
		return v, err
	}
}

// duration reads a time with its unit, from lo to hi; a hi of 0 is no limit.
func duration(lo, hi time.Duration) func(node) (time.Duration, error) {
	return func(n node) (time.Duration, error) {
		d, err := time.ParseDuration(n.Value)
		switch {
		case err != nil && (n.Tag == "!!int" || n.Tag == "!!float"):
			return 0, fmt.Errorf("%q has no unit; write 500ms, 2s, 5m or 24h", n.Value)
		case err != nil:
			return 0, fmt.Errorf("%q is not a duration; write 500ms, 2s, 5m or 24h", n.Value)
		case hi == 0 && d < lo:
			return 0, fmt.Errorf("%q is too short; want %s at least", n.Value, brief(lo))
		case d < lo || hi > 0 && d > hi:
			return 0, fmt.Errorf("%q is out of range; want %s to %s", n.Value, brief(lo), brief(hi))
		}
		return d, nil
	}
}

// brief is d without the zero minutes and seconds of time.Duration's String.
func brief(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// addr reads an address that a host can have.
func addr(n node) (netip.Addr, error) {
	a, err := netip.ParseAddr(n.Value)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", n.Value)
	}
	return a, hostAddr(n.Value, a)
}

// hostAddr refuses what cannot be the address of a host on the network.
func hostAddr(text string, a netip.Addr) error {
	switch {
	case a.Zone() != "":
		return fmt.Errorf("%q has a zone; write it without, the interface is known", text)
	case a.Is4In6():
		return fmt.Errorf("%q is an IPv4 address in the guise of IPv6; write %s", text, a.Unmap())
	case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%q is not the address of a host on the network", text)
	}
	return nil
}

// addrPort reads ADDRESS:PORT or [ADDRESS]:PORT, no names.
func addrPort(n node) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(n.Value)
	if err != nil {
		// The text may be a bare address, the commonest slip.
		if a, aerr := netip.ParseAddr(n.Value); aerr == nil && a.Is6() {
			return netip.AddrPort{}, fmt.Errorf("%q has no port; write [%s]:PORT", n.Value, a)
		}
		if !strings.Contains(n.Value, ":") {
			return netip.AddrPort{}, fmt.Errorf("%q has no port", n.Value)
		}
		return netip.AddrPort{}, fmt.Errorf("%q is not ADDRESS:PORT", n.Value)
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not ADDRESS:PORT with an IP address", n.Value)
	}
	if a.Is6() && a.IsLinkLocalUnicast() {
		return netip.AddrPort{}, fmt.Errorf("%q is a link-local address; connections need one that is unique beyond the link", n.Value)
	}
	if err := hostAddr(n.Value, a); err != nil {
		return netip.AddrPort{}, err
	}
	p, err := portNumber(n.Value, port)
	return netip.AddrPortFrom(a, p), err
}

// portNumber reads a TCP port from 1 to 65535; whole is the text to show.
func portNumber(whole, port string) (uint16, error) {
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil || p == 0 {
		return 0, fmt.Errorf("%q has a bad port; want 1 to 65535", whole)
	}
	return uint16(p), nil
}

// listenAddr reads [ADDRESS]:PORT to listen on, of either address family.
func listenAddr(n node) (Stats, error) {
	host, port, err := net.SplitHostPort(n.Value)
	if err != nil {
		return Stats{}, fmt.Errorf("%q is not ADDRESS:PORT or :PORT", n.Value)
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" {
		return Stats{}, fmt.Errorf("%q is not ADDRESS:PORT or :PORT; names are not resolved", n.Value)
	}
	p, err := portNumber(n.Value, port)
	return Stats{Listen: n.Value, Port: p}, err
}

// prefix reads ADDRESS or ADDRESS/LENGTH.
func prefix(n node) (netip.Prefix, error) {
	if !strings.Contains(n.Value, "/") {
		a, err := addr(n)
		return netip.PrefixFrom(a, a.BitLen()), err
	}
	p, err := netip.ParsePrefix(n.Value)
	if err != nil || p.Bits() == 0 {
		return netip.Prefix{}, fmt.Errorf("%q is not ADDRESS/LENGTH", n.Value)
	}
	return p, hostAddr(n.Value, p.Addr())
}

// network reads NETWORK/LENGTH, or the address of a single host.
func network(n node) (netip.Prefix, error) {
	if !strings.Contains(n.Value, "/") {
		return prefix(n)
	}
	p, err := netip.ParsePrefix(n.Value)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q is not NETWORK/LENGTH", n.Value)
	case p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q is an IPv4 network in the guise of IPv6", n.Value)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%q has bits beyond its length; write %s", n.Value, p.Masked())
	}
	return p, nil
}

// A portRange is a range of ports, both ends included.
type portRange struct{ low, high uint16 }

func (r portRange) contains(p uint16) bool { return r.low <= p && p <= r.high }

// ports reads LOW-HIGH. Ports below 1024 are refused because services of the
// node itself answer there.
func ports(n node) (portRange, error) {
	const lowest = 1024
	low, high, ok := strings.Cut(n.Value, "-")
	l, lerr := strconv.ParseUint(low, 10, 16)
	h, herr := strconv.ParseUint(high, 10, 16)
	switch {
	case !ok || lerr != nil || herr != nil:
		return portRange{}, fmt.Errorf("%q is not a range of ports; write 10240-65535", n.Value)
	case l < lowest:
		return portRange{}, fmt.Errorf("%q begins below %d", n.Value, lowest)
	case l >= h:
		return portRange{}, fmt.Errorf("%q is empty; the first port must be below the last", n.Value)
	}
	return portRange{uint16(l), uint16(h)}, nil
}

// path reads an absolute path.
func path(n node) (string, error) {
	if !filepath.IsAbs(n.Value) || strings.ContainsRune(n.Value, 0) {
		return "", fmt.Errorf("%q is not an absolute path", n.Value)
	}
	return filepath.Clean(n.Value), nil
}

// socketPath reads the path of a Unix socket, which fits into sockaddr_un.
func socketPath(n node) (string, error) {
	const most = 107 // 108 of sun_path less the terminating NUL
	p, err := path(n)
	if err == nil && len(p) > most {
		return "", fmt.Errorf("%q has %d bytes; %d is the limit of a socket's path", p, len(p), most)
	}
	return p, err
}

// advertInterval reads the time between adverts: centiseconds in 12 bits
// (RFC 9568, 5.2.7), never 0 (erratum 8301 of RFC 5798).
func advertInterval(n node) (time.Duration, error) {
	const unit, most = 10 * time.Millisecond, 4095 * 10 * time.Millisecond
	d, err := duration(unit, most)(n)
	if err == nil && d%unit != 0 {
		return 0, fmt.Errorf("%q is not a multiple of %s", n.Value, unit)
	}
	return d, err
}

// advertInterval2 is that of version 2: seconds in one byte (RFC 3768, 5.3.7).
func advertInterval2(n node) (time.Duration, error) {
	d, err := duration(time.Second, 255*time.Second)(n)
	if err == nil && d%time.Second != 0 {
		return 0, fmt.Errorf("%q is not a multiple of %s, as version 2 needs it to be", n.Value, time.Second)
	}
	return d, err
}
