package pgwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Version is a protocol version: major in the upper 16 bits, minor in the
// lower.
type Version uint32

// The protocol versions that we speak. 3.1 was never given out (section 53.7,
// StartupMessage); the only difference of 3.2 is the length of cancel keys.
const (
	Protocol30 Version = 3 << 16
	Protocol32 Version = 3<<16 | 2
)

// String returns "3.2".
func (v Version) String() string { return fmt.Sprintf("%d.%d", v>>16, v&0xffff) }

// The codes that stand in the place of a version (section 53.7).
const (
	codeCancel = 1234<<16 | 5678
	codeSSL    = 1234<<16 | 5679
	codeGSSENC = 1234<<16 | 5680
)

// Bounds of the startup packet.
const (
	// MaxStartupLen is the longest packet accepted, in bytes:
	// MAX_STARTUP_PACKET_LENGTH.
	MaxStartupLen = 10000
	// MaxNameLen is the longest user or database name: NAMEDATALEN - 1.
	MaxNameLen = 63
)

// tlsHandshake is the first byte of a TLS ClientHello (RFC 8446, section 5.1).
// As the first byte of a startup packet it would mean a length of 369 MB.
const tlsHandshake = 0x16

// Sentinels wrapped by the errors of ReadStartup and AcceptStartup.
var (
	// ErrDirectTLS: the client opened with a TLS ClientHello.
	ErrDirectTLS = errors.New("direct TLS connection")
	// ErrStartup: the packet is no startup packet.
	ErrStartup = errors.New("invalid startup packet")
	// ErrUnencryptedData: bytes came behind an SSLRequest or GSSENCRequest
	// before its answer.
	ErrUnencryptedData = errors.New("unencrypted data after encryption request")
)

// StartupKind tells the packets apart that open a connection.
type StartupKind uint8

// The kinds of startup packets.
const (
	KindStartup StartupKind = iota // StartupMessage: a login
	KindSSL                        // SSLRequest
	KindGSSENC                     // GSSENCRequest
	KindCancel                     // CancelRequest
)

// Param is a run-time parameter in a StartupMessage.
type Param struct{ Name, Value string }

// Startup is the packet that opens a connection.
type Startup struct {
	Kind StartupKind

	// The rest of a KindStartup packet.
	Asked    Version  // what the client asked for
	Protocol Version  // what it gets: Protocol30 or Protocol32
	Options  []string // "_pq_." options asked for; we know none of them
	User     string   // at most MaxNameLen bytes, never empty
	Database string   // likewise; the user's name when the client left it out
	// Params are the other parameters, "options" and "replication" among
	// them, each name once (PostgreSQL ignores case in names of run-time
	// parameters), in the order of their first appearance with the last value.
	Params []Param

	// Key is the session to cancel, for KindCancel.
	Key CancelKey
}

// Get returns the value of a parameter.
func (s *Startup) Get(name string) (value string, ok bool) {
	for _, p := range s.Params {
		if foldParam(p.Name) == foldParam(name) {
			return p.Value, true
		}
	}
	return "", false
}

// AppendNegotiation appends the NegotiateProtocolVersion message that must
// precede authentication when the client asked for a version or an option that
// it does not get; otherwise it appends nothing. AcceptStartup has already sent
// it. The version is sent whole, as PostgreSQL does, not its minor part alone.
func (s *Startup) AppendNegotiation(dst []byte) []byte {
	if s.Asked == s.Protocol && len(s.Options) == 0 {
		return dst
	}
	dst, at := begin(dst, MsgNegotiateProtocol)
	dst = binary.BigEndian.AppendUint32(dst, uint32(s.Protocol))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(s.Options)))
	for _, o := range s.Options {
		dst = appendCString(dst, o)
	}
	return finish(dst, at)
}

// ReadStartup reads one startup packet of at most limit bytes (0 means
// MaxStartupLen), and not a byte more.
//
// A client that closes before it sends anything, as a health check does, gives
// io.EOF itself; one that closes within the packet io.ErrUnexpectedEOF. A
// packet that is refused gives an *Error for the client, FATAL with 08P01,
// 28000 (no user) or 0A000 (a version that is not 3), which wraps ErrStartup or
// ErrDirectTLS.
func ReadStartup(r io.Reader, limit int) (Startup, error) {
	s, _, err := readStartup(r, limit)
	return s, err
}

// readStartup also returns what was read of a direct TLS connection.
func readStartup(r io.Reader, limit int) (s Startup, head []byte, err error) {
	if limit <= 0 || limit > MaxStartupLen {
		limit = MaxStartupLen
	}
	head = make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return Startup{}, nil, err
	}
	n := binary.BigEndian.Uint32(head)
	switch {
	case head[0] == tlsHandshake:
		return Startup{}, head, protocolError(ErrDirectTLS, "direct TLS connections are not supported")
	case n < 8 || n > uint32(limit):
		return Startup{}, nil, protocolError(ErrStartup, "invalid length of startup packet")
	}
	body, err := readBounded(r, int(n)-4)
	if err != nil {
		return Startup{}, nil, err
	}
	s, err = parseStartup(body)
	return s, nil, err
}

// AcceptStartup conducts a connection's opening on a port without encryption:
// it declines an SSLRequest and a GSSENCRequest, each at most once, in either
// order, and returns the StartupMessage or CancelRequest that follows. A
// StartupMessage that needs a NegotiateProtocolVersion has got it.
//
// The errors are those of ReadStartup. Where rw keeps a buffer of its own, or
// can look into the kernel's, and says so by a method Buffered() int, as
// bufio.ReadWriter's reader does, bytes in it behind an encryption request end
// the connection: they were sent before our answer, which only an injector does
// (CVE-2021-23214).
func AcceptStartup(rw io.ReadWriter, limit int) (Startup, error) {
	return AcceptStartupTLS(rw, limit, nil)
}

// StartTLS makes a connection an encrypted one by a handshake as its server.
// Head was read already and is the handshake's front; it is not empty if the
// client began with the handshake, without a request (sslnegotiation=direct).
type StartTLS func(head []byte) (io.ReadWriter, error)

// AcceptStartupTLS is AcceptStartup on a port with encryption: an SSLRequest is
// granted, and a direct handshake accepted. An error of start is returned as it
// is. Start may be nil.
func AcceptStartupTLS(rw io.ReadWriter, limit int, start StartTLS) (Startup, error) {
	var asked [KindCancel + 1]bool
	encrypted := false
	for first := true; ; first = false {
		s, head, err := readStartup(rw, limit)
		if errors.Is(err, ErrDirectTLS) && first && start != nil {
			if rw, err = start(head); err != nil {
				return Startup{}, err
			}
			encrypted = true
			continue
		}
		if err != nil {
			return Startup{}, err
		}
		switch s.Kind {
		case KindCancel:
			return s, nil
		case KindStartup:
			if msg := s.AppendNegotiation(nil); msg != nil {
				if _, err := rw.Write(msg); err != nil {
					return Startup{}, fmt.Errorf("failed to negotiate protocol version: %w", err)
				}
			}
			return s, nil
		}
		switch {
		case encrypted:
			return Startup{}, protocolError(ErrStartup, "encryption is already on")
		case asked[s.Kind]:
			return Startup{}, protocolError(ErrStartup, "encryption was already declined")
		}
		asked[s.Kind] = true
		if b, ok := rw.(interface{ Buffered() int }); ok && b.Buffered() > 0 {
			return Startup{}, protocolError(ErrUnencryptedData, "received unencrypted data after SSL or GSSAPI encryption request")
		}
		answer := byte('N')
		if s.Kind == KindSSL && start != nil {
			answer = 'S'
		}
		if _, err := rw.Write([]byte{answer}); err != nil {
			return Startup{}, fmt.Errorf("failed to answer encryption request: %w", err)
		}
		if answer == 'S' {
			if rw, err = start(nil); err != nil {
				return Startup{}, err
			}
			encrypted = true
		}
	}
}

// parseStartup decodes a packet without its length field.
func parseStartup(body []byte) (Startup, error) {
	code := binary.BigEndian.Uint32(body)
	rest := body[4:]
	switch code {
	case codeSSL, codeGSSENC:
		if len(rest) != 0 {
			return Startup{}, protocolError(ErrStartup, "invalid length of encryption request")
		}
		if code == codeSSL {
			return Startup{Kind: KindSSL}, nil
		}
		return Startup{Kind: KindGSSENC}, nil
	case codeCancel:
		key, ok := ParseBackendKeyData(rest) // the two have the same body
		if !ok {
			return Startup{}, protocolError(ErrStartup, "invalid length of cancel request")
		}
		return Startup{Kind: KindCancel, Key: key}, nil
	}
	v := Version(code)
	if v>>16 != 3 {
		e := protocolError(ErrStartup, fmt.Sprintf("unsupported frontend protocol %s: server supports 3.0 to 3.2", v))
		e.Code = CodeFeatureNotSupported
		return Startup{}, e
	}
	s := Startup{Kind: KindStartup, Asked: v, Protocol: Protocol30}
	if v >= Protocol32 {
		s.Protocol = Protocol32
	}
	if !s.parseParams(rest) {
		return Startup{}, protocolError(ErrStartup, "invalid startup packet layout: expected terminator as last byte")
	}
	if s.User == "" {
		e := protocolError(ErrStartup, "no PostgreSQL user name specified in startup packet")
		e.Code = CodeInvalidAuthorization
		return Startup{}, e
	}
	if s.Database == "" {
		s.Database = s.User
	}
	// PostgreSQL cuts names to what its catalogues can hold
	// (ProcessStartupPacket), so that is who the server would take them for.
	s.User, s.Database = truncate(s.User), truncate(s.Database)
	return s, nil
}

// parseParams decodes the list of names and values up to its final NUL, which
// must be the last byte.
func (s *Startup) parseParams(b []byte) bool {
	// 10000 bytes hold 3000 names: a map, lest they cost 3000² comparisons.
	seen := make(map[string]int)
	for {
		name, rest, ok := bytes.Cut(b, []byte{0})
		if !ok {
			return false
		}
		if len(name) == 0 {
			return len(rest) == 0
		}
		value, rest, ok := bytes.Cut(rest, []byte{0})
		if !ok {
			return false
		}
		s.set(seen, string(name), string(value))
		b = rest
	}
}

func (s *Startup) set(seen map[string]int, name, value string) {
	switch {
	case name == "user":
		s.User = value
	case name == "database":
		s.Database = value
	case strings.HasPrefix(name, "_pq_."):
		s.Options = append(s.Options, name)
	default:
		fold := foldParam(name)
		if i, ok := seen[fold]; ok {
			s.Params[i].Value = value
			return
		}
		seen[fold] = len(s.Params)
		s.Params = append(s.Params, Param{name, value})
	}
}

// foldParam maps the spellings of a parameter to one, as PostgreSQL does: those
// of run-time parameters differ in the case of ASCII letters, the protocol's
// own names ("options", "replication") are exact. A misspelt "Options" keeps
// its capital, so that it is never taken for the real one.
func foldParam(name string) string {
	fold := strings.ToLower(name)
	if fold == "options" || fold == "replication" {
		return name
	}
	return fold
}

func truncate(name string) string { return name[:min(len(name), MaxNameLen)] }

// AppendStartup appends a StartupMessage. The order of params is kept.
func AppendStartup(dst []byte, v Version, user, database string, params []Param) []byte {
	at := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(v))
	dst = appendCString(appendCString(dst, "user"), user)
	dst = appendCString(appendCString(dst, "database"), database)
	for _, p := range params {
		dst = appendCString(appendCString(dst, p.Name), p.Value)
	}
	return finish(append(dst, 0), at)
}

// AppendCancelRequest appends the packet that asks a server to cancel what the
// session with that key is doing. It is sent on a connection of its own, which
// the server closes.
func AppendCancelRequest(dst []byte, key CancelKey) []byte {
	at := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, 0)
	dst = binary.BigEndian.AppendUint32(dst, codeCancel)
	dst = binary.BigEndian.AppendUint32(dst, key.PID)
	return finish(append(dst, key.Secret...), at)
}
