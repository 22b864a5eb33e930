package datapath

import (
	"context"
	"fmt"
	"net/netip"
)

// Initial sequence numbers, the same in all flows, so that packets of
// different flows differ in their addresses alone.
const (
	clientISN = 1000
	poolerISN = 5000
)

// payload makes data segments 64 bytes long, the smallest frame that there is
// on Ethernet, its checksum included.
const payload = 10

// client returns the n-th of many clients, each with an address of its own.
// The ports are those that Linux gives.
func client(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), uint16(32768+n%28232))
}

// fromClient is a segment of the n-th client's to the service.
func fromClient(n int, flags byte) segment {
	return segment{
		srcMAC: clientMAC, dstMAC: nodeMAC, src: client(n), dst: service,
		seq: clientISN + 1, ack: poolerISN + 1, flags: flags,
	}
}

// synOf is the n-th client's first packet.
func synOf(n int) []byte {
	s := fromClient(n, flagSYN)
	s.seq, s.ack, s.options = clientISN, 0, synOptions
	return s.frame()
}

// flowFrames are the data segments of flows, of each the one that the client
// sends and the one that the pooler sends, as the balancer receives them.
type flowFrames struct {
	forward, reverse [][]byte
}

// openFlows has the first n clients connect, each with a whole handshake.
func (n *node) openFlows(ctx context.Context, count int) (flowFrames, error) {
	var f flowFrames
	for i := range count {
		if ctx.Err() != nil {
			return f, ctx.Err()
		}
		out, err := n.forwarded(synOf(i), poolerMAC)
		if err != nil {
			return f, fmt.Errorf("opening flow %d: SYN: %w", i, err)
		}
		snat, backend := addresses(out)
		answer := segment{
			srcMAC: poolerMAC, dstMAC: nodeMAC, src: backend, dst: snat,
			seq: poolerISN, ack: clientISN + 1, flags: flagSYN | flagACK, options: synOptions,
		}
		if _, err := n.forwarded(answer.frame(), clientMAC); err != nil {
			return f, fmt.Errorf("opening flow %d: SYN-ACK: %w", i, err)
		}
		if _, err := n.forwarded(fromClient(i, flagACK).frame(), poolerMAC); err != nil {
			return f, fmt.Errorf("opening flow %d: ACK: %w", i, err)
		}
		data := fromClient(i, flagPSH|flagACK)
		data.payload = payload
		f.forward = append(f.forward, data.frame())
		answer.seq, answer.flags, answer.options, answer.payload = poolerISN+1, flagPSH|flagACK, nil, payload
		f.reverse = append(f.reverse, answer.frame())
	}
	return f, nil
}

// forwarded sends a frame that must leave towards the given hardware address.
func (n *node) forwarded(frame []byte, to [6]byte) ([]byte, error) {
	out, action, err := n.send(frame)
	switch {
	case err != nil:
		return nil, err
	case action != xdpTX || [6]byte(out) != to:
		return nil, fmt.Errorf("not forwarded: action %d, to %x", action, out[:6])
	}
	return out, nil
}

// strided returns the frames in an order in which neighbours were far apart:
// flows that were made one after the other lie side by side in memory, and the
// CPU would fetch them ahead.
func strided(frames [][]byte) [][]byte {
	// The golden section spreads best; the next number that shares no factor
	// with the length makes the walk pass by all of them.
	step := max(1, int(float64(len(frames))*0.618))
	for gcd(step, len(frames)) != 1 {
		step++
	}
	out := make([][]byte, 0, len(frames))
	for i := range frames {
		out = append(out, frames[i*step%len(frames)])
	}
	return out
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
