package pooler

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// LoadBalance says which of a database's hosts a new server goes to
// (load_balance_hosts in PgBouncer).
type LoadBalance uint8

// The ways of PgBouncer.
const (
	LoadBalanceRoundRobin LoadBalance = iota // each in turn
	LoadBalanceDisable                       // the same as long as it can be reached
)

// String returns PgBouncer's word.
func (l LoadBalance) String() string {
	if l == LoadBalanceDisable {
		return "disable"
	}
	return "round-robin"
}

// hosts returns the hosts of a database.
func (d *Database) hosts() []string { return strings.Split(d.Host, ",") }

// hostBook remembers how it went with the hosts of databases. It is for the
// goroutines that dial.
type hostBook struct {
	mu   sync.Mutex
	list map[string]*hostNotes
}

// hostNotes are about the hosts of one database.
type hostNotes struct {
	next   int    // whose turn it is
	good   string // the last that could be used
	failed map[string]time.Time
}

// maxHostNotes bounds the book: clients may make up names of databases. Beyond
// that it begins anew, which costs an attempt at a dead host.
const maxHostNotes = 4096

func (b *hostBook) notes(d *Database) *hostNotes {
	key := d.Name + "\x00" + d.Host
	n := b.list[key]
	if n == nil {
		if len(b.list) >= maxHostNotes || b.list == nil {
			b.list = make(map[string]*hostNotes)
		}
		n = &hostNotes{failed: make(map[string]time.Time)}
		b.list[key] = n
	}
	return n
}

// order returns a database's hosts in the order in which they are to be tried.
// Those that failed within the last retry come last.
func (b *hostBook) order(d *Database, now time.Time, retry time.Duration) []string {
	hosts := d.hosts()
	if len(hosts) == 1 {
		return hosts
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.notes(d)
	start := n.next
	if d.LoadBalance == LoadBalanceDisable || d.Target.single() {
		start = max(slices.Index(hosts, n.good), 0)
	} else {
		n.next++
	}
	var good, bad []string
	for i := range hosts {
		host := hosts[(start+i)%len(hosts)]
		if at, ok := n.failed[host]; ok && now.Sub(at) < retry {
			bad = append(bad, host)
		} else {
			good = append(good, host)
		}
	}
	return append(good, bad...)
}

// tried notes how it went with a host.
func (b *hostBook) tried(d *Database, host string, now time.Time, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.notes(d)
	if !ok {
		n.failed[host] = now
		return
	}
	delete(n.failed, host)
	n.good = host
}
