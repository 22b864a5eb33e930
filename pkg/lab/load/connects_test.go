package load

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// server answers sessions on the loopback interface until the test ends. Every
// third one is refused if refuse is set. It counts those that said good-bye.
func server(t *testing.T, refuse bool) (address string, goodBye *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	goodBye = new(atomic.Int64)
	go func() {
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if serve(conn, refuse && n%3 == 2) {
					goodBye.Add(1)
				}
			}()
		}
	}()
	return l.Addr().String(), goodBye
}

// serve reports whether the client ended the session as it should.
func serve(conn net.Conn, refuse bool) bool {
	if _, err := pgwire.ReadStartup(conn, 1000); err != nil {
		return false
	}
	if refuse {
		_, _ = conn.Write(pgwire.AppendError(nil, "FATAL", "53300", "enough"))
		return false
	}
	ready := pgwire.AppendReadyForQuery(nil, 'I')
	if _, err := conn.Write(append(pgwire.AppendAuthenticationOk(nil), ready...)); err != nil {
		return false
	}
	typ, body, err := pgwire.ReadFrame(conn, 1000)
	if err != nil || typ != pgwire.MsgQuery || string(body) != "select 1\x00" {
		return false
	}
	// One column, one byte long.
	row := append(pgwire.AppendHeader(nil, pgwire.MsgDataRow, 7), 0, 1, 0, 0, 0, 1, '1')
	row = append(pgwire.AppendCommandComplete(row, "SELECT 1"), ready...)
	if _, err := conn.Write(row); err != nil {
		return false
	}
	typ, _, err = pgwire.ReadFrame(conn, 1000)
	return err == nil && typ == pgwire.MsgTerminate
}

func TestConnects(t *testing.T) {
	address, goodBye := server(t, false)
	r := Connects{
		Address: address, User: "u", Database: "d", Workers: 3, Duration: 200 * time.Millisecond,
		Sources: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")},
	}.Run(t.Context())
	if r.Done < 3 || r.Failed != 0 || r.Error != "" {
		t.Fatalf("%+v", r)
	}
	if r.Took < 200*time.Millisecond || r.P50 <= 0 || r.P99 < r.P50 || r.Rate() <= 0 {
		t.Errorf("%+v, %.0f a second", r, r.Rate())
	}
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for goodBye.Load() != int64(r.Done) {
		select {
		case <-deadline:
			t.Fatalf("%d sessions were done and %d ended as they should", r.Done, goodBye.Load())
		case <-tick.C:
		}
	}
}

func TestSession(t *testing.T) {
	address, goodBye := server(t, false)
	try := Session(new(net.Dialer).DialContext, address, "u", "d", "")
	if err := try(t.Context()); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); goodBye.Load() != 1; time.Sleep(time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("the session did not end as it should")
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := try(ended); err == nil {
		t.Error("a session succeeded that had no time")
	}
}

func TestConnectsCountsFailures(t *testing.T) {
	address, _ := server(t, true)
	r := Connects{Address: address, User: "u", Database: "d", Workers: 2, Duration: 200 * time.Millisecond}.Run(t.Context())
	if r.Done == 0 || r.Failed == 0 || !strings.Contains(r.Error, "enough") {
		t.Errorf("%+v", r)
	}
	if share := float64(r.Failed) / float64(r.Done+r.Failed); share < 0.2 || share > 0.5 {
		t.Errorf("%d of %d failed, of which every third was refused", r.Failed, r.Done+r.Failed)
	}
}

func TestConnectsWithoutServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	r := Connects{Address: l.Addr().String(), User: "u", Database: "d", Workers: 1, Duration: 20 * time.Millisecond}.Run(t.Context())
	if r.Done != 0 || r.Failed == 0 || !strings.Contains(r.Error, "connecting") {
		t.Errorf("%+v", r)
	}
}
