package pooler

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// overTLS has startPooler use TLS on both sides. TestOverTLS sets it.
var overTLS bool

// testPKI are certificates of the tests' own.
type testPKI struct {
	dir                               string
	ca, server, client, other, second keyPair
}

// keyPair is a certificate with its key: the PEM files, and what is in them.
type keyPair struct {
	cert, key string
	leaf      *x509.Certificate
	priv      *ecdsa.PrivateKey
}

// pki returns the certificates that the tests' PostgreSQL has too.
func pki(t *testing.T) *testPKI {
	t.Helper()
	if cluster.pki != nil {
		return cluster.pki
	}
	p, err := newPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newPKI(dir string) (*testPKI, error) {
	p := &testPKI{dir: dir}
	var errs [5]error
	p.ca, errs[0] = p.issue("ca", "test authority", nil)
	p.server, errs[1] = p.issue("server", "localhost", &p.ca)
	p.client, errs[2] = p.issue("client", testUser, &p.ca)
	p.other, errs[3] = p.issue("other", "somebody else", &p.ca)
	p.second, errs[4] = p.issue("second", "localhost", &p.ca)
	return p, errors.Join(errs[:]...)
}

// issue makes a certificate, signed by itself if by is nil.
func (p *testPKI) issue(file, name string, by *keyPair) (keyPair, error) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return keyPair{}, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return keyPair{}, err
	}
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true, IsCA: by == nil,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if name == "localhost" {
		c.DNSNames, c.IPAddresses = []string{name}, []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	k := keyPair{cert: filepath.Join(p.dir, file+".crt"), key: filepath.Join(p.dir, file+".key"), priv: priv}
	parent, signer := c, priv
	if by != nil {
		parent, signer = by.leaf, by.priv
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &priv.PublicKey, signer)
	if err != nil {
		return keyPair{}, err
	}
	if k.leaf, err = x509.ParseCertificate(der); err != nil {
		return keyPair{}, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return keyPair{}, err
	}
	return k, errors.Join(
		writePEM(k.cert, "CERTIFICATE", der, 0o644, p.dir),
		writePEM(k.key, "PRIVATE KEY", keyDER, 0o600, p.dir))
}

// writePEM gives the file to the owner of the directory: PostgreSQL is
// particular about the keys' owner.
func writePEM(path, kind string, der []byte, mode os.FileMode, dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	return errors.Join(
		os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode),
		os.Chown(path, int(owner.Uid), int(owner.Gid)))
}

// clientTLS is a configuration for clients.
func (p *testPKI) clientTLS(mode TLSMode) TLS {
	c := TLS{Mode: mode, CertFile: p.server.cert, KeyFile: p.server.key, MinVersion: tls.VersionTLS12}
	if mode >= TLSVerifyCA {
		c.CAFile = p.ca.cert
	}
	return c
}

// trust is a client's configuration that checks the server's certificate.
func (p *testPKI) trust(certs ...keyPair) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(p.ca.leaf)
	c := &tls.Config{RootCAs: pool, ServerName: "localhost"}
	for _, k := range certs {
		c.Certificates = append(c.Certificates, tls.Certificate{Certificate: [][]byte{k.leaf.Raw}, PrivateKey: k.priv})
	}
	return c
}

// sslRequest is the packet that asks for TLS.
var sslRequest = []byte("\x00\x00\x00\x08\x04\xd2\x16\x2f")

// secure turns TLS on, if the pooler wants it. What fails then shows in the
// first use.
func (p *testPooler) secure(conn net.Conn) net.Conn {
	if p.conf().ClientTLS.Mode < TLSRequire {
		return conn
	}
	var one [1]byte
	if _, err := conn.Write(sslRequest); err == nil {
		_, _ = conn.Read(one[:])
	}
	return tls.Client(conn, pki(p.t).trust(pki(p.t).client))
}

// sslmode is what to append to a DSN.
func (p *testPooler) sslmode() string {
	if p.conf().ClientTLS.Mode < TLSRequire {
		return ""
	}
	return " sslmode=require"
}
