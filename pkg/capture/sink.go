package capture

import (
	"bufio"
	"io"
	"time"

	"github.com/pgsteer/pgsteer/pkg/capture/pcapng"
)

var (
	_ Sink = (*File)(nil)
	_ Sink = (*Text)(nil)
)

// A File writes packets in pcapng, each side as a packet of its own: the
// verdict is the comment, and both sides have one packet id.
type File struct {
	w         *pcapng.Writer
	side      Side
	start     time.Time
	delivered uint64
}

// NewFile begins a file on w. Application is the name and version of the
// program that captures, kernel what it runs on.
func (c *Capture) NewFile(w io.Writer, application, kernel string) (*File, error) {
	pw, err := pcapng.NewWriter(w, pcapng.Interface{
		Name:        c.Interface(),
		Description: "XDP program of pgsteerd: in is as received, out as sent",
		Filter:      c.cfg.String(),
		SnapLen:     c.cfg.SnapLen,
		Application: application,
		OS:          kernel,
	})
	if err != nil {
		return nil, err
	}
	return &File{w: pw, side: c.cfg.Side, start: time.Now()}, nil
}

// Packet writes the wanted sides of a packet.
func (f *File) Packet(p *Packet) error {
	f.delivered++
	return p.each(f.side, func(direction string, frame *Frame) error {
		out := pcapng.Packet{
			Time: frame.Time, Data: frame.Data, Len: frame.Len,
			Comment: p.Verdict, Direction: pcapng.Inbound, ID: p.ID, XDPAction: p.Action,
		}
		if direction == sideNames[Out] {
			out.Direction = pcapng.Outbound
		}
		return f.w.Packet(out)
	})
}

// Flush writes what is buffered.
func (f *File) Flush() error { return f.w.Flush() }

// Finish ends the file with what was counted.
func (f *File) Finish(c Counts) error {
	err := f.w.Statistics(pcapng.Statistics{
		Start: f.start, End: time.Now(),
		Received: c.Seen, Accepted: c.Accepted, Dropped: c.Lost, Delivered: f.delivered,
	})
	if err != nil {
		return err
	}
	return f.w.Flush()
}

// A Text writes a line for each side of a packet.
type Text struct {
	w    *bufio.Writer
	side Side
	line []byte
}

// NewText writes to w.
func (c *Capture) NewText(w io.Writer) *Text {
	return &Text{w: bufio.NewWriter(w), side: c.cfg.Side}
}

// Packet writes the wanted sides of a packet: time, number, side, verdict, and
// what the headers say.
func (t *Text) Packet(p *Packet) error {
	return p.each(t.side, func(direction string, frame *Frame) error {
		t.line = appendLine(t.line[:0], p, direction, frame)
		_, err := t.w.Write(t.line)
		return err
	})
}

// Flush writes what is buffered.
func (t *Text) Flush() error { return t.w.Flush() }

// each calls fn for those sides of a packet that there are and that are wanted.
func (p *Packet) each(side Side, fn func(direction string, frame *Frame) error) error {
	if side != Out {
		if err := fn(sideNames[In], &p.In); err != nil {
			return err
		}
	}
	if side == In || p.Out.Len == 0 {
		return nil
	}
	return fn(sideNames[Out], &p.Out)
}
