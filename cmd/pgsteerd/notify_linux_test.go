package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// told is who is told by a webhook.
type told struct {
	mu    sync.Mutex
	items []string // node: key = value
}

func (o *told) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var message struct {
		Node  string
		Items []struct{ Key, Value string }
	}
	if err := json.NewDecoder(r.Body).Decode(&message); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, i := range message.Items {
		o.items = append(o.items, fmt.Sprintf("%s: %s = %s", message.Node, i.Key, i.Value))
	}
}

func (o *told) count(item string) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, i := range o.items {
		if i == item {
			n++
		}
	}
	return n
}

func (o *told) all() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.items)
}

// TestNotifications has the true daemons tell of a pooler's death and of a
// balancer's: the active one speaks, and after a take-over the other one says
// what is new and nothing else.
func TestNotifications(t *testing.T) {
	v := newVillage(t)
	key := filepath.Join(v.dir, "key")
	text, err := flowsync.GenerateKey()
	v.must("generating a key", err)
	v.must("writing the key", os.WriteFile(key, text, 0o600))
	stopEcho := v.serveEcho()

	people := new(told)
	var l net.Listener
	v.must("listening", v.on("client", func() (err error) {
		l, err = net.Listen("tcp", villagers["client"]+":80")
		return err
	}))
	server := &http.Server{Handler: people, ReadHeaderTimeout: time.Minute}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	url := filepath.Join(v.dir, "url")
	v.must("writing the URL", os.WriteFile(url, []byte("http://"+villagers["client"]+"/\n"), 0o600))
	notify := func(node string) string {
		return fmt.Sprintf("notify: {coalesce: 100ms, state_file: %s/%s.told, webhook: {url_file: %s}}\n", v.dir, node, url)
	}

	one := v.balance("lb1", 101, key, notify("lb1"))
	v.eventually("lb1 is active", one.is(vrrp.Active))
	two := v.balance("lb2", 100, key, notify("lb2"))
	v.eventually("both have all connections", func() bool { return one.synced() && two.synced() })

	stopEcho()
	const down = "backend/echo/one = down"
	v.eventually("lb1 tells that the pooler is down", func() bool { return people.count("lb1: "+down) == 1 })
	// What was said crosses with the next heartbeats.
	v.eventually("lb2 knows what was said", func() bool {
		status, err := two.admin.Sync(t.Context())
		return err == nil && status.PeerState != nil && strings.Contains(string(status.PeerState.Said), "backend/echo/one")
	})

	one.end(syscall.SIGKILL)
	v.eventually("lb2 is active", two.is(vrrp.Active))
	v.eventually("lb2 tells that the addresses have moved", func() bool {
		return slices.ContainsFunc(people.all(), func(i string) bool { return strings.HasPrefix(i, "lb2: vip/") })
	})
	v.serveEcho()
	v.eventually("lb2 tells that the pooler is up", func() bool { return people.count("lb2: backend/echo/one = up") == 1 })
	if n := people.count("lb2: " + down); n != 0 {
		t.Errorf("the pooler's death was told again: %q", people.all())
	}
	for i, item := range people.all() {
		if slices.Contains(people.all()[:i], item) {
			t.Errorf("%q was told twice: %q", item, people.all())
		}
	}
	t.Logf("%q", people.all())
}
