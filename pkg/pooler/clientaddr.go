package pooler

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// A balancer that translates addresses is the peer of every connection that
// comes through it. Ours writes whom it speaks for into the client's SYN, as a
// TCP option for experiments (RFC 6994, section 3): kind, length, a 16-bit
// experiment identifier, and the address. The kernel keeps the SYN's headers of
// a listener that asks for it (TCP_SAVE_SYN), and gives them out once.
//
//	IPv4: 254, 10, ExID, address (4), port (2)
//	IPv6: 254, 20, ExID, address (16); the port is the low 16 bits of the flow
//	      label, since both do not fit beside the usual options: 20 bytes of 40
const (
	tcpOptEnd        = 0
	tcpOptNop        = 1
	tcpOptExperiment = 254
	// clientExID is "PS". It is not registered with IANA.
	clientExID    = 0x5053
	clientOptLen4 = 10
	clientOptLen6 = 20
)

const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	tcpHeaderLen  = 20

	tcpFlagSYN = 0x02
	tcpFlagACK = 0x10

	// maxSYNHeaders is more than the headers of a SYN can have in practice, in
	// bytes: 120 for IPv4, 100 for IPv6 and the rest for its extensions.
	maxSYNHeaders = 512
)

// endpoints returns the two ends of a connection: its client, which is the peer
// or whom a trusted balancer speaks for, and the address that it was accepted
// at.
func (p *Pooler) endpoints(conn net.Conn) (client, peer, local netip.AddrPort) {
	if isLocal(conn) {
		end := p.localEnd()
		return end, end, end
	}
	peer, local = addrOf(conn.RemoteAddr()), addrOf(conn.LocalAddr())
	if len(p.conf().TrustedBalancers) == 0 {
		return peer, peer, local
	}
	// Read whoever the peer is: the kernel keeps the headers until then.
	var buf [maxSYNHeaders]byte
	syn, err := savedSYN(conn, buf[:])
	if err != nil {
		p.log.Debug("failed to read the SYN of a connection", "client", peer, "error", err)
		return peer, peer, local
	}
	if !slices.ContainsFunc(p.conf().TrustedBalancers, func(t netip.Prefix) bool { return t.Contains(peer.Addr()) }) {
		return peer, peer, local
	}
	if addr, ok := clientOfSYN(syn, peer); ok {
		return addr, peer, local
	}
	return peer, peer, local
}

// clientOfSYN returns the client that the headers of a SYN name, from the
// network header on. Ok is false if there is none, if anything in the headers
// is malformed, or if they are not those of the peer's SYN.
func clientOfSYN(b []byte, peer netip.AddrPort) (client netip.AddrPort, ok bool) {
	src, label, tcp, ok := cutIP(b)
	if !ok || len(tcp) < tcpHeaderLen {
		return netip.AddrPort{}, false
	}
	port := binary.BigEndian.Uint16(tcp)
	header := int(tcp[12]>>4) * 4
	if netip.AddrPortFrom(src, port) != peer || tcp[13]&(tcpFlagSYN|tcpFlagACK) != tcpFlagSYN ||
		header < tcpHeaderLen || header != len(tcp) {
		return netip.AddrPort{}, false
	}
	option, ok := clientOption(tcp[tcpHeaderLen:])
	if !ok {
		return netip.AddrPort{}, false
	}
	switch {
	case src.Is4() && len(option) == clientOptLen4:
		addr := netip.AddrFrom4([4]byte(option[4:8]))
		client = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(option[8:]))
	case src.Is6() && len(option) == clientOptLen6:
		addr := netip.AddrFrom16([16]byte(option[4:20]))
		client = netip.AddrPortFrom(addr, uint16(label))
	default:
		return netip.AddrPort{}, false
	}
	return client, canBeClient(client)
}

// canBeClient reports whether an address can be that of a connection's end.
func canBeClient(a netip.AddrPort) bool {
	addr := a.Addr()
	return a.Port() != 0 && !addr.IsUnspecified() && !addr.IsMulticast() && !addr.Is4In6() &&
		addr != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// clientOption returns the whole option that names the client. Ok is false when
// there is none or more than one, or when the list of options is malformed.
func clientOption(b []byte) (option []byte, ok bool) {
	for len(b) > 0 {
		switch b[0] {
		case tcpOptEnd:
			return option, option != nil
		case tcpOptNop:
			b = b[1:]
			continue
		}
		if len(b) < 2 || int(b[1]) < 2 || int(b[1]) > len(b) {
			return nil, false
		}
		o := b[:b[1]]
		b = b[len(o):]
		if o[0] != tcpOptExperiment || len(o) < 4 || binary.BigEndian.Uint16(o[2:]) != clientExID {
			continue
		}
		if option != nil {
			return nil, false
		}
		option = o
	}
	return option, option != nil
}

// cutIP takes the IP header off the front of b. Label is IPv6's flow label.
func cutIP(b []byte) (src netip.Addr, label uint32, tcp []byte, ok bool) {
	if len(b) == 0 {
		return netip.Addr{}, 0, nil, false
	}
	switch b[0] >> 4 {
	case 4:
		n := int(b[0]&0xf) * 4
		if n < ipv4HeaderLen || len(b) < n || b[9] != unix.IPPROTO_TCP {
			return netip.Addr{}, 0, nil, false
		}
		return netip.AddrFrom4([4]byte(b[12:16])), 0, b[n:], true
	case 6:
		if len(b) < ipv6HeaderLen {
			return netip.Addr{}, 0, nil, false
		}
		tcp, ok = cutExtensions(b[6], b[ipv6HeaderLen:])
		return netip.AddrFrom16([16]byte(b[8:24])), binary.BigEndian.Uint32(b) & 0xfffff, tcp, ok
	}
	return netip.Addr{}, 0, nil, false
}

// cutExtensions takes the extension headers of IPv6 (RFC 8200, section 4) off
// the front of b. Next is the type of the first header there.
func cutExtensions(next byte, b []byte) (tcp []byte, ok bool) {
	for {
		n := 0
		switch next {
		case unix.IPPROTO_TCP:
			return b, true
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(b) >= 2 {
				n = (int(b[1]) + 1) * 8
			}
		case unix.IPPROTO_FRAGMENT:
			n = 8
		}
		if n == 0 || len(b) < n {
			return nil, false
		}
		next, b = b[0], b[n:]
	}
}

func addrOf(a net.Addr) netip.AddrPort {
	t, _ := a.(*net.TCPAddr)
	if t == nil {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
