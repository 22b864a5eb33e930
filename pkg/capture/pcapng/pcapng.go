// Package pcapng writes captured packets in the format that Wireshark and
// tcpdump read (draft-ietf-opsawg-pcapng): one section, one Ethernet
// interface, nanosecond timestamps.
package pcapng

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"time"
)

// The types of blocks (section 4) and what identifies the byte order.
const (
	sectionHeader       = 0x0A0D0D0A
	interfaceDescr      = 1
	interfaceStatistics = 5
	enhancedPacket      = 6

	byteOrderMagic = 0x1A2B3C4D
)

// Option codes: for any block (section 3.5), then by block (4.1 to 4.3, 4.6).
const (
	optEnd     = 0
	optComment = 1

	shbOS       = 3
	shbUserAppl = 4

	ifName        = 2
	ifDescription = 3
	ifTsResol     = 9
	ifFilter      = 11

	epbFlags    = 2
	epbPacketID = 5
	epbVerdict  = 7

	isbStartTime    = 2
	isbEndTime      = 3
	isbIfRecv       = 4
	isbFilterAccept = 6
	isbOSDrop       = 7
	isbUserDeliver  = 8
)

const (
	linkTypeEthernet = 1
	nanoseconds      = 9 // if_tsresol: ten to the minus ninth
	filterIsString   = 0 // if_filter: what kind of filter follows
	verdictIsXDP     = 2 // epb_verdict: an enum xdp_action of 64 bits follows
)

// Direction is a packet's, in the two lowest bits of epb_flags (section 4.3.1).
type Direction uint32

// The directions.
const (
	Inbound  Direction = 1
	Outbound Direction = 2
)

// Interface is what the packets were captured on.
type Interface struct {
	Name        string
	Description string
	Filter      string // in words
	SnapLen     int    // bytes kept of a packet
	Application string // that captures
	OS          string // that it runs on
}

// A Packet is a frame with what is known of it.
type Packet struct {
	Time      time.Time
	Data      []byte // the first bytes of the frame
	Len       int    // bytes on the wire
	Comment   string
	Direction Direction
	ID        uint64 // the same for all looks at one packet
	XDPAction uint32 // enum xdp_action of linux/bpf.h
}

// Statistics says how complete a capture is; all counts are packets.
type Statistics struct {
	Start, End time.Time
	Received   uint64 // seen on the interface
	Accepted   uint64 // by the filter
	Dropped    uint64 // lost between there and the program
	Delivered  uint64 // written
}

// A Writer writes blocks in this machine's byte order. After an error it
// returns nothing but that.
type Writer struct {
	w     *bufio.Writer
	block []byte // the block at hand
	err   error
}

// NewWriter writes what every capture begins with.
func NewWriter(w io.Writer, i Interface) (*Writer, error) {
	pw := &Writer{w: bufio.NewWriterSize(w, 64<<10)}

	pw.begin(sectionHeader)
	pw.u32(byteOrderMagic)
	pw.u16(1) // version 1.0
	pw.u16(0)
	pw.u64(math.MaxUint64) // the section's length is not known
	pw.text(shbOS, i.OS)
	pw.text(shbUserAppl, i.Application)
	pw.end()

	pw.begin(interfaceDescr)
	pw.u16(linkTypeEthernet)
	pw.u16(0)
	pw.u32(uint32(i.SnapLen))
	pw.text(ifName, i.Name)
	pw.text(ifDescription, i.Description)
	pw.option(ifTsResol, nanoseconds)
	if i.Filter != "" {
		pw.option(ifFilter, append([]byte{filterIsString}, i.Filter...)...)
	}
	pw.end()
	return pw, pw.err
}

// Packet writes one packet.
func (w *Writer) Packet(p Packet) error {
	w.begin(enhancedPacket)
	w.u32(0) // the only interface
	w.time(p.Time)
	w.u32(uint32(len(p.Data)))
	w.u32(uint32(p.Len))
	w.block = append(w.block, p.Data...)
	w.pad()
	w.text(optComment, p.Comment)
	w.option(epbFlags, binary.NativeEndian.AppendUint32(nil, uint32(p.Direction))...)
	w.option(epbPacketID, binary.NativeEndian.AppendUint64(nil, p.ID)...)
	w.option(epbVerdict, binary.NativeEndian.AppendUint64([]byte{verdictIsXDP}, uint64(p.XDPAction))...)
	w.end()
	return w.err
}

// Statistics ends a capture. One without them is complete all the same: its
// writer was killed.
func (w *Writer) Statistics(s Statistics) error {
	w.begin(interfaceStatistics)
	w.u32(0)
	w.time(s.End)
	w.timeOption(isbStartTime, s.Start)
	w.timeOption(isbEndTime, s.End)
	for _, count := range []struct {
		code  uint16
		value uint64
	}{
		{isbIfRecv, s.Received},
		{isbFilterAccept, s.Accepted},
		{isbOSDrop, s.Dropped},
		{isbUserDeliver, s.Delivered},
	} {
		w.option(count.code, binary.NativeEndian.AppendUint64(nil, count.value)...)
	}
	w.end()
	return w.err
}

// Flush writes what is buffered.
func (w *Writer) Flush() error {
	if w.err == nil {
		w.err = w.w.Flush()
	}
	return w.err
}

func (w *Writer) u16(v uint16) { w.block = binary.NativeEndian.AppendUint16(w.block, v) }
func (w *Writer) u32(v uint32) { w.block = binary.NativeEndian.AppendUint32(w.block, v) }
func (w *Writer) u64(v uint64) { w.block = binary.NativeEndian.AppendUint64(w.block, v) }

// time is a timestamp as blocks have it: its upper half first in either byte
// order.
func (w *Writer) time(t time.Time) {
	ns := uint64(t.UnixNano())
	w.u32(uint32(ns >> 32))
	w.u32(uint32(ns))
}

func (w *Writer) timeOption(code uint16, t time.Time) {
	w.u16(code)
	w.u16(8)
	w.time(t)
}

// pad fills up to 32 bits, on which everything is aligned.
func (w *Writer) pad() {
	for len(w.block)%4 != 0 {
		w.block = append(w.block, 0)
	}
}

// begin begins a block, whose length is filled in by end.
func (w *Writer) begin(blockType uint32) {
	w.block = w.block[:0]
	w.u32(blockType)
	w.u32(0)
}

// text adds an option that is a string; an empty one is left out.
func (w *Writer) text(code uint16, s string) {
	if s != "" {
		w.option(code, []byte(s)...)
	}
}

func (w *Writer) option(code uint16, value ...byte) {
	if len(value) > math.MaxUint16 {
		if w.err == nil {
			w.err = fmt.Errorf("an option of %d bytes is too long for a capture file", len(value))
		}
		return
	}
	w.u16(code)
	w.u16(uint16(len(value)))
	w.block = append(w.block, value...)
	w.pad()
}

// end ends the options and the block, and writes it.
func (w *Writer) end() {
	w.u16(optEnd)
	w.u16(0)
	size := uint32(len(w.block)) + 4
	w.u32(size)
	binary.NativeEndian.PutUint32(w.block[4:], size)
	if w.err == nil {
		_, w.err = w.w.Write(w.block)
	}
}
