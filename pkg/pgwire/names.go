package pgwire

import (
	"bytes"
	"errors"
	"fmt"
	"math"
)

// Span is a place in a message body: body[Off:End].
type Span struct{ Off, End int }

// Len returns the number of bytes in the span.
func (s Span) Len() int { return s.End - s.Off }

// Of returns the bytes of body that the span covers.
func (s Span) Of(body []byte) []byte { return body[s.Off:s.End] }

// Names says where the names are in a message of the extended protocol.
// Offsets count from the start of the body, behind the header.
type Names struct {
	// Kind is what the message is about: 'S' a statement (Parse, Bind,
	// Describe, Close), 'P' a portal (Execute, Describe, Close).
	Kind byte
	// Portal is empty unless the message has the name of a portal.
	Portal Span
	// Statement is empty unless it has the name of a statement. The unnamed
	// statement is an empty span too: Kind tells the two apart.
	Statement Span
	// Tail is the offset behind the last name and its terminator: where the
	// query text of a Parse and the parameters of a Bind start.
	Tail int
}

// ErrNamesCut says that the names do not end within the bytes given: give more
// of the body, or, when this was all of it, refuse the message.
var ErrNamesCut = errors.New("name in message has no terminator")

// ErrNamesKind says that a Describe or Close is for neither a statement nor a
// portal.
var ErrNamesKind = errors.New("describe or close of neither statement nor portal")

// ParseNames finds the names in the body of a Parse, Bind, Describe, Execute or
// Close message. Head may be only the front of the body, so that a Bind of any
// size can pass through a small buffer. It does not allocate.
func ParseNames(typ byte, head []byte) (Names, error) {
	switch typ {
	case MsgParse:
		stmt, tail, ok := nameAt(head, 0)
		if !ok {
			return Names{}, ErrNamesCut
		}
		return Names{Kind: 'S', Statement: stmt, Tail: tail}, nil
	case MsgBind:
		portal, next, ok := nameAt(head, 0)
		if !ok {
			return Names{}, ErrNamesCut
		}
		stmt, tail, ok := nameAt(head, next)
		if !ok {
			return Names{}, ErrNamesCut
		}
		return Names{Kind: 'S', Portal: portal, Statement: stmt, Tail: tail}, nil
	case MsgExecute:
		portal, tail, ok := nameAt(head, 0)
		if !ok {
			return Names{}, ErrNamesCut
		}
		return Names{Kind: 'P', Portal: portal, Tail: tail}, nil
	case MsgDescribe, MsgClose:
		if len(head) == 0 {
			return Names{}, ErrNamesCut
		}
		if head[0] != 'S' && head[0] != 'P' {
			return Names{}, ErrNamesKind
		}
		name, tail, ok := nameAt(head, 1)
		if !ok {
			return Names{}, ErrNamesCut
		}
		n := Names{Kind: head[0], Tail: tail}
		if n.Kind == 'S' {
			n.Statement = name
		} else {
			n.Portal = name
		}
		return n, nil
	}
	return Names{}, fmt.Errorf("finding names in message of type %d: %w", typ, ErrFrameType)
}

// nameAt returns the NUL-terminated name at off and the offset behind it.
func nameAt(b []byte, off int) (name Span, next int, ok bool) {
	i := bytes.IndexByte(b[off:], 0)
	if i < 0 {
		return Span{}, 0, false
	}
	return Span{off, off + i}, off + i + 1, true
}

// AppendRenamed appends the message with another statement name: a header with
// the length that results, and head with the name replaced. Head is the front
// of a body of bodyLen bytes and must contain the names; the caller relays the
// bodyLen-len(head) bytes behind it unchanged.
func AppendRenamed(dst []byte, typ byte, bodyLen int, head []byte, n Names, name string) ([]byte, error) {
	newLen := bodyLen - n.Statement.Len() + len(name)
	if newLen > math.MaxInt32-4 { // CVE-2024-27304: a length that wraps around
		return dst, fmt.Errorf("renaming statement: %w", ErrFrameLength)
	}
	dst = AppendHeader(dst, typ, newLen)
	dst = append(dst, head[:n.Statement.Off]...)
	dst = append(dst, name...)
	return append(dst, head[n.Statement.End:]...), nil
}
