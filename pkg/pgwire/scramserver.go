package pgwire

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
)

// ErrScramMessage is wrapped by the errors about SCRAM messages that are not
// as RFC 5802 has them.
var ErrScramMessage = errors.New("malformed SCRAM message")

// errProof: the proof does not fit the verifier. The caller words it, since it
// knows the user's name.
var errProof = errors.New("wrong SCRAM proof")

// scramServer is the server's side of one exchange (RFC 5802, section 5):
// client-first → server-first → client-final → server-final.
type scramServer struct {
	verifier Verifier
	doomed   bool   // the user does not exist: play along and refuse at the end
	nonce    string // our part
	// binding is that of the TLS connection, nil without one; bound says that
	// the client has chosen the mechanism with it.
	binding []byte
	bound   bool

	flag      string // the client's gs2 header: "n,,", "y,," or scramBindingFlag and a comma
	fullNonce string
	authMsg   string // client-first-bare "," server-first
}

func scramError(detail string) *Error {
	e := protocolError(ErrScramMessage, "malformed SCRAM message")
	e.Detail = detail
	return e
}

func scramUnsupported(message string) *Error {
	return &Error{Severity: SeverityFatal, Code: CodeFeatureNotSupported, Message: message, cause: ErrScramMessage}
}

// first answers client-first-message. Errors are *Error.
func (s *scramServer) first(msg string) (reply string, err error) {
	if strings.IndexByte(msg, 0) >= 0 {
		return "", scramError("The message contains a zero byte.")
	}
	head := len("n,")
	switch {
	case s.bound && !strings.HasPrefix(msg, scramBindingFlag):
		return "", scramError("The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data of the type tls-server-end-point.")
	case s.bound:
		head = len(scramBindingFlag)
	case strings.HasPrefix(msg, "p="):
		return "", scramError("The client requires channel binding, but has not selected SCRAM-SHA-256-PLUS.")
	case !strings.HasPrefix(msg, "n,") && !strings.HasPrefix(msg, "y,"):
		return "", scramError("The channel binding flag is missing.")
	case msg[0] == 'y' && s.binding != nil:
		// It has not seen our offer: somebody took it away (RFC 5802, section 6).
		e := scramError("The client supports SCRAM channel binding but thinks the server does not.  However, this server does support channel binding.")
		e.Message = "SCRAM channel binding negotiation error"
		return "", e
	}
	if len(msg) == head || msg[head] != ',' {
		return "", scramUnsupported("client uses authorization identity, but it is not supported")
	}
	s.flag = msg[:head+1]
	bare := msg[head+1:]
	if strings.HasPrefix(bare, "m=") {
		return "", scramUnsupported("client requires an unsupported SCRAM extension")
	}
	// The user's name here is ignored, as PostgreSQL does: the one in the
	// startup packet counts, and libpq leaves this one empty.
	_, rest, ok := cutAttr(bare, 'n')
	if !ok {
		return "", scramError("The user name attribute is missing.")
	}
	nonce, _, ok := cutAttr(rest, 'r') // extensions behind it are ignored
	if !ok || !validNonce(nonce) {
		return "", scramError("The nonce is missing or not printable.")
	}
	s.fullNonce = nonce + s.nonce
	reply = "r=" + s.fullNonce + ",s=" + base64.StdEncoding.EncodeToString(s.verifier.Salt) +
		",i=" + strconv.Itoa(s.verifier.Iterations)
	s.authMsg = bare + "," + reply
	return reply, nil
}

// final checks client-final-message. The error is errProof or an *Error. The
// keys are those that the client's password derives.
func (s *scramServer) final(msg string) (reply string, keys ScramKeys, err error) {
	binding, rest, ok := cutAttr(msg, 'c')
	want := []byte(s.flag)
	if s.bound {
		want = append(want, s.binding...)
	}
	if ok && s.bound && subtle.ConstantTimeCompare([]byte(binding), []byte(base64.StdEncoding.EncodeToString(want))) != 1 {
		return "", keys, &Error{Severity: SeverityFatal, Code: CodeInvalidAuthorization, Message: "SCRAM channel binding check failed", cause: ErrScramMessage}
	}
	if !ok || binding != base64.StdEncoding.EncodeToString(want) {
		return "", keys, scramError("The channel binding data is missing or has changed.")
	}
	nonce, _, ok := cutAttr(rest, 'r')
	if !ok || subtle.ConstantTimeCompare([]byte(nonce), []byte(s.fullNonce)) != 1 {
		return "", keys, scramError("The nonce is missing or not the one sent.")
	}
	// The proof is the last attribute; extensions may precede it.
	at := strings.LastIndex(msg, ",p=")
	if at < 0 {
		return "", keys, scramError("The proof is missing.")
	}
	var proof [sha256.Size]byte
	if !decodeKey(&proof, msg[at+len(",p="):]) {
		return "", keys, scramError("The proof is not 32 bytes in base64.")
	}
	authMsg := s.authMsg + "," + msg[:at]

	keys.ServerKey = s.verifier.ServerKey
	signature := hmacSHA256(s.verifier.StoredKey[:], authMsg)
	subtle.XORBytes(keys.ClientKey[:], proof[:], signature)
	stored := sha256.Sum256(keys.ClientKey[:])
	serverSignature := hmacSHA256(s.verifier.ServerKey[:], authMsg)
	if !hmac.Equal(stored[:], s.verifier.StoredKey[:]) || s.doomed {
		return "", ScramKeys{}, errProof
	}
	return "v=" + base64.StdEncoding.EncodeToString(serverSignature), keys, nil
}
