package bouncer

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TLS are the keys of one side, client_tls_* or server_tls_*.
type TLS struct {
	SSLMode                   string // one of sslModes
	KeyFile, CertFile, CAFile string
	MinVersion, MaxVersion    uint16        // of crypto/tls
	Ciphers                   []uint16      // for TLS 1.2 and below; nil: the usual ones
	Curves                    []tls.CurveID // nil: the usual ones
}

// sslModes are libpq's words, which both sides have.
var sslModes = []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}

// defaultTLS is "secure".
func defaultTLS(mode string) TLS {
	return TLS{SSLMode: mode, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13}
}

func client(f *file) *TLS { return &f.ClientTLS }
func server(f *file) *TLS { return &f.ServerTLS }

// tlsFile is a key that names a file.
func tlsFile(side func(*file) *TLS, field func(*TLS) *string) rule[file] {
	return setText(func(f *file) *string { return field(side(f)) })
}

func tlsMode(side func(*file) *TLS) rule[file] {
	return supported(func(f *file, value string) error {
		mode := strings.ToLower(value)
		if !slices.Contains(sslModes, mode) {
			return fmt.Errorf("%q is not one of %s", value, strings.Join(sslModes, ", "))
		}
		side(f).SSLMode = mode
		return nil
	})
}

func tlsProtocols(side func(*file) *TLS) rule[file] {
	return supported(func(f *file, value string) (err error) {
		t := side(f)
		t.MinVersion, t.MaxVersion, err = parseProtocols(value)
		return err
	})
}

func tlsCiphers(side func(*file) *TLS) rule[file] {
	return supported(func(f *file, value string) (err error) {
		side(f).Ciphers, err = parseCiphers(value)
		return err
	})
}

// tlsCiphers13 takes what names suites of TLS 1.3. That they have no effect is
// said by warnTLS.
func tlsCiphers13() rule[file] {
	return supported(func(_ *file, value string) error {
		for _, name := range ciphersIn(value) {
			if !strings.HasPrefix(strings.ToUpper(name), "TLS_") {
				return fmt.Errorf("%q is no cipher suite of TLS 1.3", name)
			}
		}
		return nil
	})
}

func tlsCurve(side func(*file) *TLS) rule[file] {
	return supported(func(f *file, value string) error {
		if v := strings.ToLower(value); v == "auto" || v == "" {
			return nil
		}
		id, ok := pgwire.CurveByName(value)
		if !ok {
			return fmt.Errorf("%q is no curve that is supported: want auto, X25519, prime256v1, secp384r1 or secp521r1", value)
		}
		side(f).Curves = []tls.CurveID{id}
		return nil
	})
}

// protocolNames are the words of libtls, as bits of TLS 1.0 to 1.3.
var protocolNames = map[string]uint{
	"tlsv1.0": 1, "tlsv1.1": 2, "tlsv1.2": 4, "tlsv1.3": 8,
	"tlsv1": 15, "all": 15, "legacy": 15, "secure": 12, "default": 12,
}

// parseProtocols decodes a list like "secure" or "tlsv1.2,tlsv1.3" or
// "all,!tlsv1.0" (tls_config_parse_protocols in libtls).
func parseProtocols(value string) (low, high uint16, err error) {
	var set uint
	for _, word := range strings.FieldsFunc(strings.ToLower(value), func(r rune) bool { return r == ',' || r == ':' || r == ' ' }) {
		name, negated := strings.CutPrefix(word, "!")
		bits, ok := protocolNames[name]
		switch {
		case !ok:
			return 0, 0, fmt.Errorf("%q is not one of tlsv1.0, tlsv1.1, tlsv1.2, tlsv1.3, all, secure and legacy", word)
		case negated && set == 0:
			set = 15 &^ bits
		case negated:
			set &^= bits
		default:
			set |= bits
		}
	}
	for bit := range uint16(4) {
		if set>>bit&1 == 0 {
			continue
		}
		version := tls.VersionTLS10 + bit
		if low == 0 {
			low = version
		} else if high != version-1 {
			return 0, 0, fmt.Errorf("%q leaves a version out between two others, which is not supported", value)
		}
		high = version
	}
	if low == 0 {
		return 0, 0, fmt.Errorf("%q allows no version of TLS", value)
	}
	return low, high, nil
}

func ciphersIn(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ':' || r == ',' || r == ' ' })
}

// keywords of OpenSSL's cipher lists, which are not interpreted: Go's own choice
// holds. A name that is none of them must be a suite.
var cipherWords = []string{"default", "secure", "fast", "normal", "compat", "legacy", "insecure", "all", "high", "medium"}

// parseCiphers decodes a list of suites by OpenSSL's names. It is nil, for Go's
// own choice, where the list speaks in OpenSSL's keywords.
func parseCiphers(value string) (ids []uint16, err error) {
	for _, name := range ciphersIn(value) {
		id, ok := pgwire.CipherByName(name)
		switch {
		case ok:
			ids = append(ids, id)
		case !isCipherExpression(name):
			return nil, fmt.Errorf("%q is no cipher suite that is supported for TLS 1.2 and below", name)
		}
	}
	if slices.ContainsFunc(ciphersIn(value), func(name string) bool {
		return !strings.ContainsAny(name[:1], "!-+@") && isCipherExpression(name)
	}) {
		return nil, nil // keywords add to the suites, so there is no choice to be made
	}
	return ids, nil
}

func isCipherExpression(name string) bool {
	return strings.ContainsAny(name[:1], "!-+@") || strings.Contains(name, "+") || slices.Contains(cipherWords, strings.ToLower(name))
}

// warnTLS says what is accepted and cannot be honoured.
func (f *file) warnTLS(at func(string) line) {
	warn := func(key, why string) {
		f.warnings = append(f.warnings, Warning(*at(key).errorf("%s has no effect: %s", key, why)))
	}
	for _, side := range []string{"client", "server"} {
		key := side + "_tls_ciphers"
		if v := f.given[key]; v != "" && !slices.Contains([]string{"default", "secure", "fast", "normal"}, strings.ToLower(v)) &&
			slices.ContainsFunc(ciphersIn(v), isCipherExpression) {
			f.warnings = append(f.warnings, Warning(*at(key).errorf("%s: keywords and operators of OpenSSL's lists are not interpreted, Go's crypto/tls chooses", key)))
		}
		if key := side + "_tls13_ciphers"; f.given[key] != "" {
			warn(key, "Go's crypto/tls has no choice of cipher suites for TLS 1.3, all of its are strong")
		}
	}
	if v := strings.ToLower(f.given["client_tls_dheparams"]); v != "" && v != "auto" {
		warn("client_tls_dheparams", "there is no key exchange by plain Diffie-Hellman")
	}
}

// checkTLS looks at what several keys must say together, as sbuf_tls_setup in
// PgBouncer's sbuf.c.
func (f *file) checkTLS(at func(string) line) error {
	c, s := &f.ClientTLS, &f.ServerTLS
	verify := func(t *TLS) bool { return t.SSLMode == "verify-ca" || t.SSLMode == "verify-full" }
	switch {
	case c.SSLMode != "disable" && (c.KeyFile == "" || c.CertFile == ""):
		return at("client_tls_sslmode").errorf("to allow TLS connections from clients, client_tls_key_file and client_tls_cert_file must be set")
	case verify(c) && c.CAFile == "":
		return at("client_tls_sslmode").errorf("client_tls_sslmode = %s needs client_tls_ca_file", c.SSLMode)
	case verify(s) && s.CAFile == "":
		return at("server_tls_sslmode").errorf("server_tls_sslmode = %s needs server_tls_ca_file", s.SSLMode)
	case (s.KeyFile == "") != (s.CertFile == ""):
		return at("server_tls_key_file").errorf("server_tls_key_file and server_tls_cert_file need each other")
	}
	f.warnTLS(at)
	return nil
}
