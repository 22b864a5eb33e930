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
	"time"
)

// Key is what the two nodes know each other by. Both have a copy of one file.
type Key struct {
	certificate tls.Certificate
}

// maxKeyFile is more than a key file can be.
const maxKeyFile = 64 << 10

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
	out := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})...), nil
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
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
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
	c, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, err
	}
	if _, ok := c.PrivateKey.(ed25519.PrivateKey); !ok || len(c.Certificate) != 1 {
		return nil, errors.New("it is not one Ed25519 key with one certificate")
	}
	return &Key{c}, nil
}

// Fingerprint is a short name of the key, the same for all copies of it.
func (k *Key) Fingerprint() string {
	sum := sha256.Sum256(k.certificate.Certificate[0])
	return hex.EncodeToString(sum[:8])
}

// Why a peer is not let in.
var (
	errNoKey    = errors.New("the peer shows no key")
	errOtherKey = errors.New("the peer has another key")
)

// config returns the TLS configuration of either side. Whoever holds the very
// same key is the peer; there is no authority, no name and no date to check.
func (k *Key) config() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{k.certificate},
		ClientAuth:             tls.RequestClientCert, // and VerifyConnection requires it
		InsecureSkipVerify:     true,                  // VerifyConnection does it
		SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errNoKey
			}
			// That it has the private key too, TLS has proved.
			if !bytes.Equal(s.PeerCertificates[0].Raw, k.certificate.Certificate[0]) {
				return errOtherKey
			}
			return nil
		},
	}
}
