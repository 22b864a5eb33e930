package capture

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// appendLine adds a frame's line:
//
//	15:04:05.123456 1 in  tx_new 192.168.1.50:40000 > 192.168.1.100:5432 tcp [S] seq 1000 len 0
func appendLine(b []byte, p *Packet, direction string, f *Frame) []byte {
	b = f.Time.AppendFormat(b, "15:04:05.000000")
	b = fmt.Appendf(b, " %d %-3s %s ", p.ID, direction, p.Verdict)
	b = appendFrame(b, f)
	return append(b, '\n')
}

// appendFrame says what the captured bytes of a frame tell of it.
func appendFrame(b []byte, f *Frame) []byte {
	if len(f.Data) < 14 {
		return fmt.Appendf(b, "%d bytes, too short for Ethernet", f.Len)
	}
	kind, payload := binary.BigEndian.Uint16(f.Data[12:]), f.Data[14:]
	for (kind == unix.ETH_P_8021Q || kind == unix.ETH_P_8021AD) && len(payload) >= 4 {
		b = fmt.Appendf(b, "vlan %d ", binary.BigEndian.Uint16(payload)&0xfff)
		kind, payload = binary.BigEndian.Uint16(payload[2:]), payload[4:]
	}
	switch {
	case kind == unix.ETH_P_ARP && len(payload) >= 28:
		return appendARP(b, payload)
	case kind == unix.ETH_P_IP && len(payload) >= 20 && payload[0]>>4 == 4:
		return appendIPv4(b, payload)
	case kind == unix.ETH_P_IPV6 && len(payload) >= 40 && payload[0]>>4 == 6:
		return appendIPv6(b, payload)
	default:
		return fmt.Appendf(b, "ethertype 0x%04x, %d bytes", kind, f.Len)
	}
}

// appendARP takes ARP for IPv4 (RFC 826).
func appendARP(b, arp []byte) []byte {
	sender, target := netip.AddrFrom4([4]byte(arp[14:18])), netip.AddrFrom4([4]byte(arp[24:28]))
	switch operation := binary.BigEndian.Uint16(arp[6:]); operation {
	case 1:
		return fmt.Appendf(b, "arp who-has %s tell %s", target, sender)
	case 2:
		return fmt.Appendf(b, "arp %s is at %s", sender, net.HardwareAddr(arp[8:14]))
	default:
		return fmt.Appendf(b, "arp operation %d from %s", operation, sender)
	}
}

// appendIPv4 takes an IPv4 packet (RFC 791) of which there is a header.
func appendIPv4(b, ip []byte) []byte {
	header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	src, dst := netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	proto := ip[9]
	if binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 {
		return fmt.Appendf(b, "%s > %s fragment of protocol %d, length %d", src, dst, proto, total)
	}
	if header < 20 || total < header || header > len(ip) {
		return fmt.Appendf(b, "%s > %s malformed IPv4 header", src, dst)
	}
	return appendTransport(b, src, dst, proto, ip[header:], total-header)
}

// appendIPv6 takes an IPv6 packet (RFC 8200) of which there is a fixed header.
func appendIPv6(b, ip []byte) []byte {
	src, dst := netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
	return appendTransport(b, src, dst, ip[6], ip[40:], int(binary.BigEndian.Uint16(ip[4:])))
}

// appendTransport takes what follows the network header: size bytes, of which
// data was captured.
func appendTransport(b []byte, src, dst netip.Addr, proto byte, data []byte, size int) []byte {
	if proto == unix.IPPROTO_TCP && len(data) >= 20 {
		b = appendPorts(b, src, dst, data)
		b = append(b, " tcp ["...)
		b = appendFlags(b, data[13])
		b = fmt.Appendf(b, "] seq %d", binary.BigEndian.Uint32(data[4:]))
		if data[13]&tcpACK != 0 {
			b = fmt.Appendf(b, " ack %d", binary.BigEndian.Uint32(data[8:]))
		}
		return fmt.Appendf(b, " len %d", size-int(data[12]>>4)*4)
	}
	if proto == unix.IPPROTO_UDP && len(data) >= 8 {
		b = appendPorts(b, src, dst, data)
		return fmt.Appendf(b, " udp len %d", size-8)
	}
	return fmt.Appendf(b, "%s > %s protocol %d, length %d", src, dst, proto, size)
}

func appendPorts(b []byte, src, dst netip.Addr, data []byte) []byte {
	from, to := binary.BigEndian.Uint16(data), binary.BigEndian.Uint16(data[2:])
	return fmt.Appendf(b, "%s > %s", netip.AddrPortFrom(src, from), netip.AddrPortFrom(dst, to))
}

const tcpACK = 0x10

// appendFlags writes them as tcpdump does; RFC 9293, 3.1, has them in this
// order from the lowest bit.
func appendFlags(b []byte, flags byte) []byte {
	if flags == 0 {
		return append(b, "none"...)
	}
	for i, letter := range []byte("FSRP.UEW") {
		if flags&(1<<i) != 0 {
			b = append(b, letter)
		}
	}
	return b
}
