package main

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
)

func TestSync(t *testing.T) {
	p := newPair()
	pgsteer := p.serve(t, true)
	const counters = `
COUNTER   KIND        COUNT
sent      changes        40
sent      closed          0
sent      copied          0
sent      unfit           0
sent      bytes      170779
received  changes         0
received  closed          0
received  copied          0
received  outdated        0
received  stored          7
received  removed         0
received  swept           0
received  unknown         0
received  refused         0
received  bytes           0
resync    connected       1
failure   connect         4
`
	res := pgsteer("sync show")
	want := `NODE  ADDRESS            PEER  PEER-ADDRESS       LINK        SINCE  HEARD  SYNCED  PEER-SYNCED  QUEUE  LAG  KEY               PEER-KEY
lb1   192.168.1.10:5480  lb2   192.168.1.11:5480  connected  1h0m0s   57ms  yes     yes              0   0s  9cd7647edd817396  5be0cd19137e2179
` + counters
	if res.status != exitOK || res.stdout != want {
		t.Errorf("status %d, %s\n%s\nwant\n%s", res.status, res.stderr, res.stdout, want)
	}
	var s flowsync.Status
	if err := json.Unmarshal([]byte(pgsteer("sync -j").stdout), &s); err != nil || s.PeerNode != "lb2" || s.Sent.Changes != 40 || s.PeerState.Routers[0].State != "backup" {
		t.Errorf("%+v, %v", s, err)
	}

	p.mu.Lock()
	p.status.Connected, p.status.Synced, p.status.PeerSynced, p.status.CopyAge = false, false, false, 4200*time.Millisecond
	p.status.LastError, p.status.Differences = "connection refused", []string{"service x (192.168.1.100:5434) is configured on lb2 only", "y"}
	p.mu.Unlock()
	want = `NODE  ADDRESS            PEER  PEER-ADDRESS       LINK   SINCE  HEARD  SYNCED                PEER-SYNCED  QUEUE  LAG  KEY               PEER-KEY
lb1   192.168.1.10:5480  lb2   192.168.1.11:5480  down  1h0m0s   57ms  no, copy of 4.2s ago  no               0   0s  9cd7647edd817396  5be0cd19137e2179
` + counters + `
The last error: connection refused

The configurations differ: service x (192.168.1.100:5434) is configured on lb2 only
The configurations differ: y
`
	if res := pgsteer("sync"); res.status != exitOK || res.stdout != want {
		t.Errorf("status %d, %s\n%s\nwant\n%s", res.status, res.stderr, res.stdout, want)
	}
	p.mu.Lock()
	p.status = flowsync.Status{Node: "lb1", Since: time.Now(), Heard: -1, CopyAge: -1}
	p.mu.Unlock()
	if res := pgsteer("sync"); res.status != exitOK {
		t.Errorf("never connected: status %d, %s%s", res.status, res.stdout, res.stderr)
	}
}

func TestSyncWithout(t *testing.T) {
	pgsteer := newPair().serve(t, false)
	const none = "connections are not replicated: sync is not configured"
	for args, want := range map[string]string{
		"sync show":         none,
		"vip rehearse main": "there is nothing to rehearse: " + none,
	} {
		if res := pgsteer(args); res.status != exitFailure || res.stderr != "pgsteer: "+want+"\n" {
			t.Errorf("pgsteer %s: status %d, %s%s", args, res.status, res.stdout, res.stderr)
		}
	}
}
