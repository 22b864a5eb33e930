package pooler

import (
	"crypto"
	"crypto/sha256"
	_ "crypto/sha512" // for certificates' hashes
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// TLSMode says whether connections go over TLS, and what is checked. The names
// are libpq's.
type TLSMode uint8

// The modes. To clients: Allow and Prefer let them choose, Require refuses plain
// text, VerifyCA and VerifyFull ask for a valid certificate as well. To servers:
// Allow is as Prefer, which goes on in plain text if the server has no TLS;
// VerifyCA wants a valid certificate, VerifyFull one for the server's host name
// too.
const (
	TLSDisable TLSMode = iota
	TLSAllow
	TLSPrefer
	TLSRequire
	TLSVerifyCA
	TLSVerifyFull
)

var tlsModes = []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}

// String returns the mode's name.
func (m TLSMode) String() string { return tlsModes[m] }

// ParseTLSMode finds a mode by its name.
func ParseTLSMode(name string) (TLSMode, error) {
	i := slices.Index(tlsModes, strings.ToLower(name))
	if i < 0 {
		return 0, fmt.Errorf("%q is not one of %s", name, strings.Join(tlsModes, ", "))
	}
	return TLSMode(i), nil
}

// TLS is how TLS is spoken to clients or to servers. The files are PEM, and are
// read by Open and Reload.
type TLS struct {
	Mode     TLSMode
	KeyFile  string
	CertFile string
	CAFile   string
	// MinVersion and MaxVersion are of crypto/tls; 0: its own.
	MinVersion, MaxVersion uint16
	Ciphers                []uint16      // for TLS 1.2 and below; nil: the usual ones
	Curves                 []tls.CurveID // nil: the usual ones
}

// alpn is the protocol's name in TLS (section 53.2.11 of the manual).
const alpn = "postgresql"

// base is what both sides have in common.
func (t *TLS) base() (*tls.Config, error) {
	c := &tls.Config{
		MinVersion: t.MinVersion, MaxVersion: t.MaxVersion, CipherSuites: t.Ciphers, CurvePreferences: t.Curves,
		NextProtos: []string{alpn},
		// Small records at first are for browsers, which begin to work on a part
		// of a page.
		DynamicRecordSizingDisabled: true,
	}
	if t.CertFile != "" || t.KeyFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("loading certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// authorities reads the certificates that are trusted.
func (t *TLS) authorities() (*x509.CertPool, error) {
	pem, err := os.ReadFile(t.CAFile)
	if err != nil {
		return nil, fmt.Errorf("loading certificate authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("loading certificate authorities: %s has no certificate", t.CAFile)
	}
	return pool, nil
}

// clientTLS is how TLS is spoken to clients.
type clientTLS struct {
	mode   TLSMode
	config *tls.Config
	// binding is the certificate's hash for SCRAM-SHA-256-PLUS; nil if it has
	// none.
	binding []byte
}

// forClients reads the files. It returns nil for TLSDisable.
func (t *TLS) forClients() (*clientTLS, error) {
	if t.Mode == TLSDisable {
		return nil, nil
	}
	if t.KeyFile == "" || t.CertFile == "" {
		return nil, errors.New("TLS to clients needs a key and a certificate")
	}
	c, err := t.base()
	if err != nil {
		return nil, err
	}
	// Nobody among PostgreSQL's clients resumes sessions, and a resumed one
	// would keep a client certificate valid that is not any more.
	c.SessionTicketsDisabled = true
	c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if w, ok := h.Conn.(*tlsWire); ok {
			w.compute()
		}
		return nil, nil
	}
	switch {
	case t.Mode >= TLSVerifyCA && t.CAFile == "":
		return nil, fmt.Errorf("mode %s needs a file of certificate authorities", t.Mode)
	case t.Mode >= TLSVerifyCA:
		c.ClientAuth = tls.RequireAndVerifyClientCert
	case t.CAFile != "":
		// For auth_type=hba, whose rules may ask for a certificate.
		c.ClientAuth = tls.VerifyClientCertIfGiven
	}
	if t.CAFile != "" {
		if c.ClientCAs, err = t.authorities(); err != nil {
			return nil, err
		}
	}
	return &clientTLS{mode: t.Mode, config: c, binding: endPoint(c.Certificates[0].Leaf)}, nil
}

// endPoint returns the channel binding tls-server-end-point of a connection
// whose server has this certificate (RFC 5929, section 4.1): its hash by the
// hash function of its signature, SHA-256 in the place of weak ones. There is
// none for signatures without a hash function of their own (Ed25519).
func endPoint(cert *x509.Certificate) []byte {
	h := map[x509.SignatureAlgorithm]crypto.Hash{
		x509.MD5WithRSA: crypto.SHA256, x509.SHA1WithRSA: crypto.SHA256, x509.ECDSAWithSHA1: crypto.SHA256,
		x509.SHA256WithRSA: crypto.SHA256, x509.ECDSAWithSHA256: crypto.SHA256,
		x509.SHA384WithRSA: crypto.SHA384, x509.ECDSAWithSHA384: crypto.SHA384,
		x509.SHA512WithRSA: crypto.SHA512, x509.ECDSAWithSHA512: crypto.SHA512,
	}[cert.SignatureAlgorithm]
	if h == 0 {
		return nil
	}
	sum := h.New()
	sum.Write(cert.Raw)
	return sum.Sum(nil)
}

// serverTLS is how TLS is spoken to servers.
type serverTLS struct {
	mode   TLSMode
	config *tls.Config
	// print is a fingerprint of the settings and the files: servers that were
	// logged in under another one are replaced (as in PgBouncer).
	print [sha256.Size]byte
}

// forServers reads the files. It returns nil for TLSDisable.
func (t *TLS) forServers() (*serverTLS, error) {
	if t.Mode == TLSDisable {
		return nil, nil
	}
	if (t.KeyFile == "") != (t.CertFile == "") {
		return nil, errors.New("a key needs a certificate and a certificate a key")
	}
	c, err := t.base()
	if err != nil {
		return nil, err
	}
	// As libpq's modes: verify-ca checks the certificate below, the modes before
	// it check nothing.
	c.InsecureSkipVerify = t.Mode < TLSVerifyFull
	switch {
	case t.Mode >= TLSVerifyCA && t.CAFile == "":
		return nil, fmt.Errorf("mode %s needs a file of certificate authorities", t.Mode)
	case t.Mode >= TLSVerifyCA:
		if c.RootCAs, err = t.authorities(); err != nil {
			return nil, err
		}
	}
	if t.Mode == TLSVerifyCA {
		roots := c.RootCAs
		c.VerifyConnection = func(s tls.ConnectionState) error { return verifyChain(&s, roots) }
	}
	return &serverTLS{mode: t.Mode, config: c, print: t.fingerprint()}, nil
}

func (t *TLS) fingerprint() (sum [sha256.Size]byte) {
	h := sha256.New()
	fmt.Fprintf(h, "%+v\n", *t)
	for _, file := range []string{t.KeyFile, t.CertFile, t.CAFile} {
		b, err := os.ReadFile(file) // it was read a moment ago, if it is needed
		fmt.Fprintf(h, "%d %q %v\n", len(b), b, err != nil)
	}
	h.Sum(sum[:0])
	return sum
}

// changed reports whether the servers logged in under s are to be replaced.
func (s *serverTLS) changed(now *serverTLS) bool {
	if s == nil || now == nil {
		return s != now
	}
	return s.print != now.print
}

// verifyChain checks a server's certificate, but not its name.
func verifyChain(s *tls.ConnectionState, roots *x509.CertPool) error {
	if len(s.PeerCertificates) == 0 {
		return errServerCertificate
	}
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	if _, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between}); err != nil {
		return fmt.Errorf("%w: %w", errServerCertificate, err)
	}
	return nil
}
