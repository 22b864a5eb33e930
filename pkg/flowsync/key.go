package flowsync

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"slices"
	"time"
)

// Key is what the two nodes know each other by. Both have a copy of one file.
// It may hold several keys, so that one can follow another while the nodes are
// linked: the first is shown, and all are accepted.
type Key struct {
	certificates []tls.Certificate
}

// A rotation needs two keys at a time. Each is about 600 bytes.
const (
	maxKeys    = 8
	maxKeyFile = 64 << 10
)

// GenerateKey makes a new key file: an Ed25519 private key and a certificate
// that it signed itself, as PEM. The certificate's dates mean nothing, since
// the clocks of the nodes may be wrong.
func GenerateKey() ([]byte, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating a key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "pgsteer flow sync"},
		NotBefore:    time.Unix(0, 0),
		// RFC 5280 section 4.1.2.5 has this for no end.
		NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return nil, fmt.Errorf("generating a key: signing its certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("generating a key: %w", err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: pkcs8})
	return append(out, pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: certificate})...), nil
}

// LoadKey reads a key file. It must be readable by its owner only.
func LoadKey(path string) (*Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("loading the key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("loading the key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("loading the key: %s is open to group or others (mode %04o); run: chmod 600 %s", path, mode, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("loading the key: %w", err)
	}
	k, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("loading the key: %s: %w", path, err)
	}
	return k, nil
}

func parseKey(text []byte) (*Key, error) {
	pairs, err := splitKeys(text)
	if err != nil {
		return nil, err
	}
	k := &Key{}
	for i, pair := range pairs {
		c, err := tls.X509KeyPair(pair, pair)
		if err == nil {
			if _, ok := c.PrivateKey.(ed25519.PrivateKey); !ok {
				err = errors.New("it is no Ed25519 key")
			}
		}
		if err != nil {
			if len(pairs) > 1 {
				err = fmt.Errorf("key %d of %d: %w", i+1, len(pairs), err)
			}
			return nil, err
		}
		if k.accepts(c.Certificate[0]) {
			return nil, fmt.Errorf("key %d of %d is there twice", i+1, len(pairs))
		}
		k.certificates = append(k.certificates, c)
	}
	return k, nil
}

// The two kinds of blocks in a key file.
const (
	privateBlock     = "PRIVATE KEY"
	certificateBlock = "CERTIFICATE"
)

// splitKeys takes a key file apart into its keys, each a private key with its
// certificate. What is no block is left out, but for a block that is broken:
// that was a key.
func splitKeys(text []byte) (pairs [][]byte, err error) {
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("it is longer than %d bytes", maxKeyFile)
	}
	var privates, certificates [][]byte
	begun := bytes.Count(text, []byte("-----BEGIN"))
	for b, rest := pem.Decode(text); b != nil; b, rest = pem.Decode(rest) {
		begun--
		switch b.Type {
		case privateBlock:
			privates = append(privates, pem.EncodeToMemory(b))
		case certificateBlock:
			certificates = append(certificates, pem.EncodeToMemory(b))
		default:
			return nil, fmt.Errorf("it has a block of the kind %q", b.Type)
		}
	}
	switch {
	case begun > 0:
		return nil, errors.New("a block in it is broken")
	case len(privates) == 0:
		return nil, errors.New("there is no key in it")
	case len(privates) != len(certificates):
		return nil, fmt.Errorf("it has %d private keys and %d certificates; each key has one of either", len(privates), len(certificates))
	case len(privates) > maxKeys:
		return nil, fmt.Errorf("it has %d keys; %d is the most", len(privates), maxKeys)
	}
	for i := range privates {
		pairs = append(pairs, slices.Concat(privates[i], certificates[i]))
	}
	return pairs, nil
}

// AddKey appends a new key to the text of a key file: it is accepted, but not
// shown yet.
func AddKey(text []byte) ([]byte, error) {
	return rewriteKeys(text, func(pairs [][]byte) ([][]byte, error) {
		next, err := GenerateKey()
		return append(pairs, next), err
	})
}

// errOneKey is why there is nothing to rotate.
var errOneKey = errors.New("there is only one key in it: add one first")

// PromoteKey puts the last key first: it is shown from then on.
func PromoteKey(text []byte) ([]byte, error) {
	return rewriteKeys(text, func(pairs [][]byte) ([][]byte, error) {
		last := len(pairs) - 1
		if last == 0 {
			return nil, errOneKey
		}
		return append([][]byte{pairs[last]}, pairs[:last]...), nil
	})
}

// RetireKeys leaves the first key only.
func RetireKeys(text []byte) ([]byte, error) {
	return rewriteKeys(text, func(pairs [][]byte) ([][]byte, error) {
		if len(pairs) == 1 {
			return nil, errors.New("there is only one key in it")
		}
		return pairs[:1], nil
	})
}

// rewriteKeys changes the text of a key file, which is good before and after.
func rewriteKeys(text []byte, change func([][]byte) ([][]byte, error)) ([]byte, error) {
	if _, err := parseKey(text); err != nil {
		return nil, err
	}
	pairs, err := splitKeys(text)
	if err != nil {
		return nil, err
	}
	if pairs, err = change(pairs); err != nil {
		return nil, err
	}
	out := bytes.Join(pairs, nil)
	if _, err := parseKey(out); err != nil {
		return nil, err
	}
	return out, nil
}

// Fingerprint is a short name of the key that is shown, the same for all copies
// of it.
func (k *Key) Fingerprint() string { return fingerprint(k.certificates[0].Certificate[0]) }

// Fingerprints has the names of all keys that are accepted, the shown one first.
func (k *Key) Fingerprints() []string {
	var all []string
	for _, c := range k.certificates {
		all = append(all, fingerprint(c.Certificate[0]))
	}
	return all
}

func fingerprint(certificate []byte) string {
	sum := sha256.Sum256(certificate)
	return hex.EncodeToString(sum[:8])
}

// accepts reports whether a certificate is one of ours.
func (k *Key) accepts(certificate []byte) bool {
	return slices.ContainsFunc(k.certificates, func(c tls.Certificate) bool { return bytes.Equal(c.Certificate[0], certificate) })
}

// Why a peer is not let in.
var (
	errNoKey    = errors.New("the peer shows no key")
	errOtherKey = errors.New("the peer has another key")
)

// config returns the TLS configuration of either side. Whoever holds one of the
// very same keys is the peer; there is no authority, no name and no date to check.
func (k *Key) config() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           k.certificates[:1],
		ClientAuth:             tls.RequestClientCert, // and VerifyConnection requires it
		InsecureSkipVerify:     true,                  // VerifyConnection does it
		SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errNoKey
			}
			// That it has the private key too, TLS has proved.
			if !k.accepts(s.PeerCertificates[0].Raw) {
				return errOtherKey
			}
			return nil
		},
	}
}
