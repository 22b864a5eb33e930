package pgwire

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
)

// Lengths of a cancel key's secret, in bytes (BackendKeyData, section 53.7).
const (
	SecretLen30 = 4   // the only length before protocol 3.2
	SecretLen32 = 32  // what we hand to clients of 3.2
	MaxSecret   = 256 // the longest that 3.2 allows
)

// CancelKey names a session to a CancelRequest. It is comparable and can be
// the key of a map; use Matches where the secret decides, for it takes the
// same time whatever the bytes.
type CancelKey struct {
	PID    uint32 // positive as an int32
	Secret string // raw bytes, 4 to MaxSecret of them
}

// NewCancelKey returns a random key for a client of the given protocol
// version: 31 random bits as PID and a secret of SecretLen30 or SecretLen32
// bytes. PIDs of two keys may be equal; a pooler that looks sessions up by PID
// sets that field itself.
func NewCancelKey(v Version) CancelKey {
	n := SecretLen30
	if v >= Protocol32 {
		n = SecretLen32
	}
	var raw [4 + SecretLen32]byte
	rand.Read(raw[:4+n]) // never fails: it ends the process instead (crypto/rand)
	pid := binary.BigEndian.Uint32(raw[:4]) & 0x7fffffff
	return CancelKey{PID: max(pid, 1), Secret: string(raw[4 : 4+n])}
}

// Matches reports whether the keys are equal, in a time that does not depend
// on the secrets' contents.
func (k CancelKey) Matches(other CancelKey) bool {
	secret := subtle.ConstantTimeCompare([]byte(k.Secret), []byte(other.Secret))
	return k.PID == other.PID && secret == 1
}

// ParseBackendKeyData decodes the body of a BackendKeyData message. Ok is
// false when the secret is shorter than 4 or longer than MaxSecret bytes.
func ParseBackendKeyData(body []byte) (key CancelKey, ok bool) {
	if len(body) < 4+SecretLen30 || len(body) > 4+MaxSecret {
		return CancelKey{}, false
	}
	return CancelKey{PID: binary.BigEndian.Uint32(body), Secret: string(body[4:])}, true
}
