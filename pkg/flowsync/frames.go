package flowsync

import (
	"encoding/binary"
	"net/netip"
)

// Begin opens a pass.
type begin struct {
	seq, epoch uint64
	full       bool // else only flows that had packets lately
	reason     string
}

func appendBegin(dst []byte, b begin) []byte {
	f := beginFrame(dst, kindBegin)
	f = binary.AppendUvarint(f, b.seq)
	f = binary.AppendUvarint(f, b.epoch)
	var full byte
	if b.full {
		full = 1
	}
	f = append(f, full)
	return endFrame(appendText(f, b.reason, maxReason), len(dst))
}

func parseBegin(body []byte) (begin, error) {
	c := cursor{b: body}
	b := begin{seq: c.uvarint(), epoch: c.uvarint(), full: c.u8() == 1, reason: c.text(maxReason)}
	return b, c.done("the begin of a pass")
}

// End closes a pass.
type end struct {
	seq, epoch uint64
	// serves are the addresses that the sender held the lease for while it read
	// its table; the pass is complete for these.
	serves []netip.Addr
}

func appendEnd(dst []byte, e end) []byte {
	f := beginFrame(dst, kindEnd)
	f = binary.AppendUvarint(f, e.seq)
	f = binary.AppendUvarint(f, e.epoch)
	serves := e.serves[:min(len(e.serves), maxServes)]
	f = binary.AppendUvarint(f, uint64(len(serves)))
	for _, a := range serves {
		f = appendAnyAddr(f, a)
	}
	return endFrame(f, len(dst))
}

func parseEnd(body []byte) (end, error) {
	c := cursor{b: body}
	e := end{seq: c.uvarint(), epoch: c.uvarint()}
	n := c.uvarint()
	if n > maxServes {
		return e, malformed("the end of a pass names %d addresses", n)
	}
	for range n {
		e.serves = append(e.serves, c.anyAddr())
	}
	return e, c.done("the end of a pass")
}

// appendNumber is for frames that are a number, acknowledgements.
func appendNumber(dst []byte, k kind, n uint64) []byte {
	return endFrame(binary.AppendUvarint(beginFrame(dst, k), n), len(dst))
}

func parseNumber(body []byte) (uint64, error) {
	c := cursor{b: body}
	n := c.uvarint()
	return n, c.done("an acknowledgement")
}

// appendReason is for frames that are a sentence or a word.
func appendReason(dst []byte, k kind, reason string) []byte {
	return endFrame(appendText(beginFrame(dst, k), reason, maxReason), len(dst))
}

func parseReason(body []byte) (string, error) {
	c := cursor{b: body}
	s := c.text(maxReason)
	return s, c.done("a reason")
}
