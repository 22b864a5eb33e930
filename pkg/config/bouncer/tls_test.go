package bouncer

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseProtocols(t *testing.T) {
	for value, want := range map[string][2]uint16{
		"secure":            {tls.VersionTLS12, tls.VersionTLS13},
		"all":               {tls.VersionTLS10, tls.VersionTLS13},
		"legacy":            {tls.VersionTLS10, tls.VersionTLS13},
		"TLSv1.3":           {tls.VersionTLS13, tls.VersionTLS13},
		"tlsv1.2, tlsv1.3":  {tls.VersionTLS12, tls.VersionTLS13},
		"all,!tlsv1.0":      {tls.VersionTLS11, tls.VersionTLS13},
		"!tlsv1.0:!tlsv1.1": {tls.VersionTLS12, tls.VersionTLS13},
	} {
		low, high, err := parseProtocols(value)
		if err != nil || low != want[0] || high != want[1] {
			t.Errorf("%q: %x to %x, %v", value, low, high, err)
		}
	}
}

func TestParseCiphers(t *testing.T) {
	gcm, old := tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_128_CBC_SHA
	for value, want := range map[string][]uint16{
		"default": nil, "": nil, "HIGH:MEDIUM:+3DES:!aNULL": nil, "HIGH:AES128-SHA": nil,
		"ECDHE-RSA-AES128-GCM-SHA256":            {gcm},
		"ecdhe-rsa-aes128-gcm-sha256,AES128-SHA": {gcm, old},
		"AES128-SHA:!aNULL:@STRENGTH":            {old},
		"ECDHE-ECDSA-CHACHA20-POLY1305":          {tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256},
	} {
		got, err := parseCiphers(value)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %x, %v; want %x", value, got, err, want)
		}
	}
}

// TestTLSWarnings: what is accepted without effect is said.
func TestTLSWarnings(t *testing.T) {
	dir := t.TempDir()
	users := filepath.Join(dir, "users.txt")
	ini := filepath.Join(dir, "p.ini")
	text := "[databases]\nd = host=h\n[pgbouncer]\nlisten_addr = *\nauth_file = " + users + "\n" +
		"client_tls_ciphers = HIGH:!aNULL\nclient_tls13_ciphers = TLS_AES_256_GCM_SHA384\nclient_tls_dheparams = legacy\nserver_tls_ciphers = fast\n"
	for path, data := range map[string]string{users: `"a" "b"` + "\n", ini: text} {
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, warnings, err := Load(ini)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range warnings {
		got = append(got, strings.TrimPrefix(w.String(), ini))
	}
	for i, want := range []string{":6: client_tls_ciphers", ":7: client_tls13_ciphers", ":8: client_tls_dheparams"} {
		if i >= len(got) || !strings.HasPrefix(got[i], want) {
			t.Fatalf("warnings: %q", got)
		}
	}
	if len(got) != 3 {
		t.Errorf("warnings: %q", got)
	}
}
