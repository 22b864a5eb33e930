package pgwire

import (
	"crypto/tls"
	"strings"
)

// CipherName returns OpenSSL's name of a cipher suite, by which PostgreSQL and
// PgBouncer call it: ECDHE-RSA-AES128-GCM-SHA256. TLS 1.3 has the standard's
// own names there.
func CipherName(id uint16) string {
	name := tls.CipherSuiteName(id)
	kx, rest, ok := strings.Cut(strings.TrimPrefix(name, "TLS_"), "_WITH_")
	if !ok {
		return name
	}
	rest = strings.NewReplacer("AES_128", "AES128", "AES_256", "AES256", "_CBC", "", "3DES_EDE", "DES-CBC3",
		"CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305", "RC4_128", "RC4").Replace(rest)
	if kx == "RSA" {
		return strings.ReplaceAll(rest, "_", "-")
	}
	return strings.ReplaceAll(kx+"-"+rest, "_", "-")
}

// CipherByName finds the cipher suite with OpenSSL's name, among those that can
// be chosen: suites of TLS 1.3 cannot.
func CipherByName(name string) (id uint16, ok bool) {
	for _, list := range [][]*tls.CipherSuite{tls.CipherSuites(), tls.InsecureCipherSuites()} {
		for _, s := range list {
			if s.SupportedVersions[0] != tls.VersionTLS13 && strings.EqualFold(CipherName(s.ID), name) {
				return s.ID, true
			}
		}
	}
	return 0, false
}

// curveNames are OpenSSL's names of the curves that crypto/tls knows.
var curveNames = map[string]tls.CurveID{
	"prime256v1": tls.CurveP256, "secp384r1": tls.CurveP384, "secp521r1": tls.CurveP521, "X25519": tls.X25519,
	"X25519MLKEM768": tls.X25519MLKEM768,
}

// CurveByName finds a curve by OpenSSL's name or the standard's (P-256).
func CurveByName(name string) (id tls.CurveID, ok bool) {
	for n, id := range curveNames {
		if strings.EqualFold(n, name) {
			return id, true
		}
	}
	switch strings.ToUpper(name) {
	case "P-256":
		return tls.CurveP256, true
	case "P-384":
		return tls.CurveP384, true
	case "P-521":
		return tls.CurveP521, true
	}
	return 0, false
}

// TLSInfo describes a connection as PgBouncer's log does:
// "TLSv1.3/TLS_AES_128_GCM_SHA256/ECDH=X25519".
func TLSInfo(s *tls.ConnectionState) string {
	info := "TLSv" + strings.TrimPrefix(tls.VersionName(s.Version), "TLS ") + "/" + CipherName(s.CipherSuite)
	for name, id := range curveNames {
		if id == s.CurveID {
			info += "/ECDH=" + name
		}
	}
	return info
}
