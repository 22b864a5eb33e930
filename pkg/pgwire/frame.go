package pgwire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// HeaderLen is the size of a message header in bytes: one type byte and a
// length that counts itself but not the type (section 53.7).
const HeaderLen = 5

// The caps on message bodies, in bytes. They are PostgreSQL's own.
const (
	// MaxAuthLen bounds a password message: PG_MAX_AUTH_TOKEN_LENGTH.
	MaxAuthLen = 65535
	// MaxSASLLen bounds a SASL message: PG_MAX_SASL_MESSAGE_LENGTH.
	MaxSASLLen = 1024
	// MaxSmallLen bounds the messages that carry a name at most:
	// PQ_SMALL_MESSAGE_LIMIT.
	MaxSmallLen = 10000
	// MaxLargeLen bounds those that carry a query or data:
	// PQ_LARGE_MESSAGE_LIMIT, which is one byte less than 1 GiB.
	MaxLargeLen = 0x3fffffff
	// MaxLoginLen bounds a message of a server during our login. An
	// ErrorResponse is the longest to be expected; libpq draws the line at
	// 30000 bytes, and we are no stricter than libpq.
	MaxLoginLen = 65535
)

// ErrFrameLength is wrapped by each error about a message whose length field
// is below four or above what its type may have.
var ErrFrameLength = errors.New("invalid message length")

// ErrFrameType is wrapped by each error about a message type that does not
// exist or has no place here.
var ErrFrameType = errors.New("invalid message type")

// Header reads the header at the front of b. Ok is false when b is shorter
// than HeaderLen. BodyLen is the number of bytes that follow the header; it is
// -1 when the length field is illegal (below four, or negative as an int32),
// which ends a connection. Header does not allocate.
func Header(b []byte) (typ byte, bodyLen int, ok bool) {
	if len(b) < HeaderLen {
		return 0, 0, false
	}
	n := binary.BigEndian.Uint32(b[1:HeaderLen])
	if n < 4 || n > math.MaxInt32 {
		return b[0], -1, true
	}
	return b[0], int(n) - 4, true
}

// AppendHeader appends a header for a body of bodyLen bytes.
func AppendHeader(dst []byte, typ byte, bodyLen int) []byte {
	dst = append(dst, typ)
	return binary.BigEndian.AppendUint32(dst, uint32(bodyLen+4))
}

// FrontendLimit returns the longest body that a client's message of this type
// may have once the client is logged in. Ok is false for a type that clients
// do not send then. The table is that of SocketBackend in PostgreSQL's
// postgres.c.
func FrontendLimit(typ byte) (maxBody int, ok bool) {
	switch typ {
	case MsgQuery, MsgParse, MsgBind, MsgFunctionCall, MsgCopyData:
		return MaxLargeLen, true
	case MsgClose, MsgDescribe, MsgExecute, MsgFlush, MsgSync, MsgTerminate, MsgCopyDone, MsgCopyFail:
		return MaxSmallLen, true
	}
	return 0, false
}

// CheckFrontend holds a client's header, as Header returned it, against
// FrontendLimit. The error is an *Error ready to be sent, FATAL 08P01 with
// PostgreSQL's wording, and wraps ErrFrameType or ErrFrameLength.
func CheckFrontend(typ byte, bodyLen int) error {
	limit, ok := FrontendLimit(typ)
	switch {
	case !ok:
		return protocolError(ErrFrameType, fmt.Sprintf("invalid frontend message type %d", typ))
	case bodyLen < 0 || bodyLen > limit:
		return protocolError(ErrFrameLength, "invalid message length")
	}
	return nil
}

// readChunk is how far a buffer grows ahead of the bytes that arrived. Most
// messages of a login fit in one chunk.
const readChunk = 512

// ReadFrame reads exactly one message whose body has at most maxBody bytes.
// It is meant for logins, not for the relay: it blocks and allocates.
//
// An end of stream before the first byte is io.EOF, within the message
// io.ErrUnexpectedEOF; a longer message is an *Error that wraps ErrFrameLength.
// The memory used follows the bytes that arrived, not the announced length.
func ReadFrame(r io.Reader, maxBody int) (typ byte, body []byte, err error) {
	var head [HeaderLen]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	typ, n, _ := Header(head[:])
	if n < 0 || n > maxBody {
		return typ, nil, protocolError(ErrFrameLength, "invalid message length")
	}
	body, err = readBounded(r, n)
	return typ, body, err
}

// readBounded reads exactly n bytes, growing its buffer as they arrive.
func readBounded(r io.Reader, n int) ([]byte, error) {
	buf := make([]byte, 0, min(n, readChunk))
	for len(buf) < n {
		if len(buf) == cap(buf) {
			grown := make([]byte, len(buf), min(n, 2*cap(buf)))
			copy(grown, buf)
			buf = grown
		}
		m, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+m]
		if len(buf) == n {
			break
		}
		if err == io.EOF {
			return nil, io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
	}
	return buf, nil
}
