package pgwire

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"sync"
)

// The gs2 headers without an authorization identity: no channel binding known;
// known, but not offered by the server.
const (
	scramGS2        = "n,,"
	scramNotOffered = "y,,"
)

// scramClient is the client's side of one exchange.
type scramClient struct {
	keys  func(salt []byte, iterations int) (ScramKeys, error)
	nonce string
	user  string // empty: the server takes it from the startup packet
	// gs2 is the header, binding what follows it for a bound exchange.
	gs2     string // empty: scramGS2
	binding []byte

	authMsg  string
	derived  ScramKeys
	verified bool
}

func scramBadServer(detail string) error {
	return fmt.Errorf("%w from server: %s", ErrScramMessage, detail)
}

func (c *scramClient) header() string { return cmp.Or(c.gs2, scramGS2) }

// first returns client-first-message.
func (c *scramClient) first() string { return c.header() + "n=" + c.user + ",r=" + c.nonce }

// final answers server-first-message.
func (c *scramClient) final(msg string) (reply string, err error) {
	nonce, rest, ok := cutAttr(msg, 'r')
	if !ok || !validNonce(nonce) || len(nonce) <= len(c.nonce) || !strings.HasPrefix(nonce, c.nonce) {
		return "", scramBadServer("the nonce is missing or does not extend ours")
	}
	salt64, rest, ok := cutAttr(rest, 's')
	if !ok {
		return "", scramBadServer("the salt is missing")
	}
	salt, err := decode64(salt64)
	if err != nil || len(salt) == 0 {
		return "", scramBadServer("the salt is not base64")
	}
	count, _, ok := cutAttr(rest, 'i') // extensions behind it are ignored
	if !ok {
		return "", scramBadServer("the iteration count is missing")
	}
	iterations, err := parseIterations(count)
	if err != nil {
		return "", scramBadServer(err.Error())
	}
	if c.derived, err = c.keys(salt, iterations); err != nil {
		return "", err
	}
	bare := "c=" + base64.StdEncoding.EncodeToString(append([]byte(c.header()), c.binding...)) + ",r=" + nonce
	c.authMsg = strings.TrimPrefix(c.first(), c.header()) + "," + msg + "," + bare
	stored := sha256.Sum256(c.derived.ClientKey[:])
	var proof [sha256.Size]byte
	subtle.XORBytes(proof[:], c.derived.ClientKey[:], hmacSHA256(stored[:], c.authMsg))
	return bare + ",p=" + base64.StdEncoding.EncodeToString(proof[:]), nil
}

// verify checks server-final-message: that the server knows the password too.
func (c *scramClient) verify(msg string) error {
	if reason, _, ok := cutAttr(msg, 'e'); ok {
		return fmt.Errorf("%w: server refused: %q", ErrScramMessage, reason)
	}
	sig64, _, ok := cutAttr(msg, 'v')
	if !ok {
		return scramBadServer("the signature is missing")
	}
	sig, err := decode64(sig64)
	if err != nil {
		return scramBadServer("the signature is not base64")
	}
	if !hmac.Equal(sig, hmacSHA256(c.derived.ServerKey[:], c.authMsg)) {
		return scramBadServer("the signature is wrong: the server does not know the password")
	}
	c.verified = true
	return nil
}

// KeyCache remembers the keys that a password derived for a server, so that a
// pool's seventy logins cost one derivation. It is safe for concurrent use; the
// zero value is empty and ready. It holds the last password and salt only: a
// pool has one user.
type KeyCache struct {
	mu         sync.Mutex
	password   string
	salt       string
	iterations int
	keys       ScramKeys
	misses     int
}

// derive returns the keys, from memory if it can. It holds the lock while it
// derives: whoever comes meanwhile waits for the result instead of computing
// the same.
func (c *KeyCache) derive(password string, salt []byte, iterations int) (ScramKeys, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.iterations == iterations && c.salt == string(salt) && c.password == password {
		return c.keys, nil
	}
	keys, err := deriveKeys(password, salt, iterations)
	if err != nil {
		return ScramKeys{}, err
	}
	c.misses++
	c.password, c.salt, c.iterations, c.keys = password, string(salt), iterations, keys
	return keys, nil
}
