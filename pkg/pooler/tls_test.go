package pooler

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestOverTLS runs what other tests do over plain text with TLS on both sides:
// there is one path for the protocol, so it is to behave the same.
func TestOverTLS(t *testing.T) {
	overTLS = true
	defer func() { overTLS = false }()
	for name, test := range map[string]func(*testing.T){
		"Queries": TestQueries, "PreparedEverywhere": TestPreparedEverywhere, "Pipeline": TestPipeline, "Copy": TestCopy,
		"LargeQueries": TestLargeQueries, "ManyClients": TestManyClients, "SlowReader": TestSlowReader,
		"BothSidesFull": TestBothSidesFull, "Chaos": TestChaos,
	} {
		t.Run(name, test)
	}
}

// TestTLSModes: who is let in under each mode.
func TestTLSModes(t *testing.T) {
	postgres(t)
	certs := pki(t)
	tests := []struct {
		mode        TLSMode
		plain, tls  string // what the error contains; empty: let in
		certificate string // with a certificate
	}{
		{TLSDisable, "", "refused TLS", "refused TLS"},
		{TLSAllow, "", "", ""},
		{TLSPrefer, "", "", ""},
		{TLSRequire, "SSL required", "", ""},
		{TLSVerifyCA, "SSL required", "certificate required", ""},
		{TLSVerifyFull, "SSL required", "certificate required", ""},
	}
	for _, tt := range tests {
		t.Run(tt.mode.String(), func(t *testing.T) {
			p := startPooler(t, func(c *Config) {
				c.ClientTLS = TLS{}
				if tt.mode != TLSDisable {
					c.ClientTLS = certs.clientTLS(tt.mode)
				}
			})
			for _, way := range []struct {
				name, want string
				config     *tls.Config
			}{{"plain", tt.plain, nil}, {"tls", tt.tls, certs.trust()}, {"certificate", tt.certificate, certs.trust(certs.client)}} {
				c, err := pgx.ParseConfig(dsn(p.host, p.port, "postgres"))
				if err != nil {
					t.Fatal(err)
				}
				c.TLSConfig = way.config
				conn, err := pgx.ConnectConfig(testContext(t), c)
				if err == nil {
					var n int
					if err = conn.QueryRow(testContext(t), "select 42").Scan(&n); n != 42 && err == nil {
						t.Errorf("got %d", n)
					}
					conn.Close(context.Background())
				}
				if way.want == "" && err != nil || way.want != "" && (err == nil || !strings.Contains(err.Error(), way.want)) {
					t.Errorf("%s: %v, want %q", way.name, err, way.want)
				}
			}
		})
	}
}

// handshake asks for TLS in the usual way.
func handshake(t *testing.T, p *testPooler, conn net.Conn, c *tls.Config) *tls.Conn {
	t.Helper()
	var one [1]byte
	if _, err := conn.Write(sslRequest); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, one[:]); err != nil || one[0] != 'S' {
		t.Fatalf("answer to SSLRequest: %q, %v", one, err)
	}
	secured := tls.Client(conn, c)
	if err := secured.Handshake(); err != nil {
		t.Fatal(err)
	}
	return secured
}

// TestTLSStart: the ways to begin, and the traps in them.
func TestTLSStart(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.ClientTLS = pki(t).clientTLS(TLSAllow) })
	trust := pki(t).trust()
	direct := trust.Clone()
	direct.NextProtos = []string{alpn}
	wrong := trust.Clone()
	wrong.NextProtos = []string{"h2"}
	gss := []byte("\x00\x00\x00\x08\x04\xd2\x16\x30")
	login := pgwire.ServerLogin{User: testUser, Database: "postgres", Secret: pgwire.PlainSecret(testPassword)}
	works := func(t *testing.T, conn net.Conn) {
		t.Helper()
		s, err := pgwire.ConnectServer(t.Context(), conn, login)
		if err != nil {
			t.Fatal(err)
		}
		raw := &rawClient{t: t, conn: conn, key: s.Key}
		raw.send(msgQuery("select 1"))
		if got := raw.until('Z'); got != "TDCZ" {
			t.Errorf("answer: %q", got)
		}
	}

	t.Run("request", func(t *testing.T) { works(t, handshake(t, p, dialTCP(t, p), trust)) })
	t.Run("direct", func(t *testing.T) {
		conn := tls.Client(dialTCP(t, p), direct)
		works(t, conn)
		if s := conn.ConnectionState(); s.Version != tls.VersionTLS13 || s.NegotiatedProtocol != alpn {
			t.Errorf("connection: %+v", s)
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		old := trust.Clone()
		old.MaxVersion = tls.VersionTLS12
		works(t, handshake(t, p, dialTCP(t, p), old))
	})
	t.Run("TLS 1.1", func(t *testing.T) {
		old := trust.Clone()
		old.MinVersion, old.MaxVersion = tls.VersionTLS11, tls.VersionTLS11
		conn := dialTCP(t, p)
		if _, err := conn.Write(sslRequest); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if err := tls.Client(conn, old).Handshake(); err == nil {
			t.Error("a handshake succeeded")
		}
	})
	t.Run("GSSAPI first", func(t *testing.T) {
		conn := dialTCP(t, p)
		if _, err := conn.Write(gss); err != nil {
			t.Fatal(err)
		}
		var one [1]byte
		if _, err := io.ReadFull(conn, one[:]); err != nil || one[0] != 'N' {
			t.Fatalf("answer %q, %v", one, err)
		}
		works(t, handshake(t, p, conn, trust))
	})
	t.Run("direct without ALPN", func(t *testing.T) {
		conn := tls.Client(dialTCP(t, p), trust)
		if _, err := pgwire.ConnectServer(t.Context(), conn, login); err == nil {
			t.Error("a login succeeded")
		}
		until(t, "the reason in the log", func() bool { return strings.Contains(p.log.String(), errNoALPN.Error()) })
	})
	t.Run("another protocol by ALPN", func(t *testing.T) {
		if err := tls.Client(dialTCP(t, p), wrong).Handshake(); err == nil || !strings.Contains(err.Error(), "application protocol") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("smuggled", func(t *testing.T) {
		conn := dialTCP(t, p)
		if _, err := conn.Write(append(sslRequest[:8:8], startupPacket()...)); err != nil {
			t.Fatal(err)
		}
		if got := string(closes(t, conn)); !strings.Contains(got, "received unencrypted data") {
			t.Errorf("answer %q", got)
		}
	})
	t.Run("TLS in TLS", func(t *testing.T) {
		conn := handshake(t, p, dialTCP(t, p), trust)
		if _, err := conn.Write(sslRequest); err != nil {
			t.Fatal(err)
		}
		if got := string(closes(t, conn)); !strings.Contains(got, "C08P01") {
			t.Errorf("answer %q", got)
		}
	})
	t.Run("no handshake", func(t *testing.T) {
		conn := dialTCP(t, p)
		if _, err := conn.Write(sslRequest); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(startupPacket()); err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(conn)
		if strings.Contains(string(got), "SCRAM") {
			t.Errorf("a startup packet in plain text was answered: %q", got)
		}
		until(t, "the handshake's failure to be counted", func() bool { return p.Snapshot().Refusals["tls"] > 0 })
	})
	t.Run("a query sent with the password", func(t *testing.T) {
		// What the login reads ahead must not be lost.
		conn := handshake(t, p, dialTCP(t, p), trust)
		works(t, &eager{Conn: conn, extra: msgQuery("select 'early'")})
	})
	t.Run("wrong record", func(t *testing.T) {
		under := dialTCP(t, p)
		conn := handshake(t, p, under, trust)
		if _, err := pgwire.ConnectServer(t.Context(), conn, login); err != nil {
			t.Fatal(err)
		}
		if _, err := under.Write([]byte("\x17\x03\x03\x00\x20 thirty-two bytes of no meaning..")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("the connection lives")
		}
	})
	t.Run("close_notify", func(t *testing.T) {
		conn := handshake(t, p, dialTCP(t, p), trust)
		if _, err := pgwire.ConnectServer(t.Context(), conn, login); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && err == nil {
			t.Errorf("got %v", err)
		}
	})
	p.quiet()
}

// TestTLSQuick: a client that waits for acknowledgements does not wait long. One
// of ten logins is enough to show it; without it each takes 40 ms more.
func TestTLSQuick(t *testing.T) {
	p := startPooler(t, func(c *Config) {
		c.ClientTLS = pki(t).clientTLS(TLSRequire)
		c.AuthMethod = pgwire.AuthTrust
	})
	dialRaw(t, p) // so that there is a server
	best := time.Hour
	for range 10 {
		conn := dialTCP(t, p)
		if err := conn.(*net.TCPConn).SetNoDelay(false); err != nil {
			t.Fatal(err)
		}
		secured := handshake(t, p, conn, pki(t).trust())
		began := time.Now()
		if _, err := secured.Write(startupPacket()); err != nil {
			t.Fatal(err)
		}
		raw := &rawClient{t: t, conn: secured}
		raw.until('Z')
		best = min(best, time.Since(began))
		secured.Close()
	}
	if best > 30*time.Millisecond {
		t.Errorf("the fastest login took %v", best)
	}
}

// eager sends a query together with the last message of its SCRAM exchange, and
// hides the answer.
type eager struct {
	net.Conn
	extra  []byte
	writes int
}

func (e *eager) Write(b []byte) (int, error) {
	if e.writes++; e.writes != 3 {
		return e.Conn.Write(b)
	}
	if _, err := e.Conn.Write(append(b[:len(b):len(b)], e.extra...)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// TestTLSServers: under each mode, whether a server is logged in to and whether
// its session is encrypted.
func TestTLSServers(t *testing.T) {
	host, port := postgres(t)
	certs := pki(t)
	foreign, err := newPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		host string
		tls  TLS
		ssl  string // of pg_stat_ssl
		want string // in the error
	}{
		{"disable", host, TLS{Mode: TLSDisable}, "false", ""},
		{"prefer", host, TLS{Mode: TLSPrefer}, "true", ""},
		{"require", host, TLS{Mode: TLSRequire}, "true", ""},
		{"verify-ca", host, TLS{Mode: TLSVerifyCA, CAFile: certs.ca.cert}, "true", ""},
		{"verify-ca of another", host, TLS{Mode: TLSVerifyCA, CAFile: foreign.ca.cert}, "", "unknown authority"},
		{"verify-full", host, TLS{Mode: TLSVerifyFull, CAFile: certs.ca.cert}, "true", ""},
		{"verify-full of another name", "127.0.0.2", TLS{Mode: TLSVerifyFull, CAFile: certs.ca.cert}, "", "127.0.0.2"},
		{"with a certificate", host, TLS{Mode: TLSRequire, CertFile: certs.client.cert, KeyFile: certs.client.key}, "true", ""},
		{"TLS 1.2", host, TLS{Mode: TLSRequire, MaxVersion: tls.VersionTLS12}, "true", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.host != host {
				relayTCP(t, net.JoinHostPort(tt.host, fmt.Sprint(port)), net.JoinHostPort(host, fmt.Sprint(port)))
			}
			p := startPoolerAt(t, tt.host, port, func(c *Config) { c.ServerTLS = tt.tls })
			conn, err := pgx.Connect(testContext(t), dsn(p.host, p.port, "postgres"))
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error()+p.log.String(), tt.want) {
					t.Fatalf("got %v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.Background())
			var ssl string
			if err := conn.QueryRow(testContext(t), "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()").Scan(&ssl); err != nil || ssl != tt.ssl {
				t.Errorf("ssl %q, %v; want %q", ssl, err, tt.ssl)
			}
		})
	}
}

// relayTCP relays connections.
func relayTCP(t *testing.T, from, to string) {
	ln, err := net.Listen("tcp", from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			go func() { _, _ = io.Copy(out, in); out.Close() }()
			go func() { _, _ = io.Copy(in, out); in.Close() }()
		}
	}()
}

// TestTLSServerWithout: a server that has no TLS, or answers nonsense.
func TestTLSServerWithout(t *testing.T) {
	host, port := postgres(t)
	for name, answer := range map[string]string{"No": "N", "an error": "E", "smuggled bytes": "S\x00\x00garbage that is no handshake"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					if _, err := io.ReadFull(conn, make([]byte, 8)); err != nil {
						return
					}
					if _, err := conn.Write([]byte(answer)); err != nil || answer != "N" {
						return
					}
					out, err := net.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(port)))
					if err != nil {
						return
					}
					defer out.Close()
					go func() { _, _ = io.Copy(out, conn) }()
					_, _ = io.Copy(conn, out)
				}()
			}
		}()
		for _, mode := range []TLSMode{TLSPrefer, TLSRequire} {
			t.Run(name+" "+mode.String(), func(t *testing.T) {
				p := startPoolerAt(t, "127.0.0.1", ln.Addr().(*net.TCPAddr).Port, func(c *Config) {
					c.ServerTLS = TLS{Mode: mode}
					c.ClientLoginTimeout = time.Second
				})
				conn, err := pgx.Connect(testContext(t), dsn(p.host, p.port, "postgres"))
				if err == nil {
					conn.Close(context.Background())
				}
				if good := answer == "N" && mode == TLSPrefer; good != (err == nil) {
					t.Errorf("got %v", err)
				}
			})
		}
	}
}

// TestTLSReload: new connections get the new certificate, old ones go on.
func TestTLSReload(t *testing.T) {
	certs := pki(t)
	p := startPooler(t, func(c *Config) { c.ClientTLS = certs.clientTLS(TLSRequire) })
	old := dialRaw(t, p)
	c := p.conf().Config
	c.ClientTLS.CertFile, c.ClientTLS.KeyFile = certs.second.cert, certs.second.key
	if err := p.Reload(c); err != nil {
		t.Fatal(err)
	}
	conn := handshake(t, p, dialTCP(t, p), certs.trust())
	if got := conn.ConnectionState().PeerCertificates[0].SerialNumber; got.Cmp(certs.second.leaf.SerialNumber) != 0 {
		t.Errorf("the certificate is number %v", got)
	}
	old.send(msgQuery("select 1"))
	if got := old.until('Z'); got != "TDCZ" {
		t.Errorf("on the old connection: %q", got)
	}
	c.ClientTLS.CertFile = os.DevNull
	if err := p.Reload(c); err == nil {
		t.Error("a file without certificate was taken")
	}
	handshake(t, p, dialTCP(t, p), certs.trust())
}

// TestTLSServerReload: servers are replaced when what concerns TLS to them has
// changed.
func TestTLSServerReload(t *testing.T) {
	certs := pki(t)
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	conn := p.connect()
	ssl := func() (pid int, on bool) {
		t.Helper()
		if err := conn.QueryRow(testContext(t), "select pid, ssl from pg_stat_ssl where pid = pg_backend_pid()").Scan(&pid, &on); err != nil {
			t.Fatal(err)
		}
		return pid, on
	}
	first, on := ssl()
	if on {
		t.Error("TLS, which nobody has asked for")
	}
	c := p.conf().Config
	c.ServerTLS = TLS{Mode: TLSVerifyCA, CAFile: certs.ca.cert}
	for i := range 2 {
		if err := p.Reload(c); err != nil {
			t.Fatal(err)
		}
		pid, on := ssl()
		if !on || i == 0 && pid == first || i == 1 && pid != first {
			t.Errorf("reload %d: server %d after %d, TLS %t", i, pid, first, on)
		}
		first = pid
	}
}
