package pooler

import (
	"maps"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// Peer is another pooler that clients may reach in our place, so that a cancel
// request may come to us that is meant for it ([peers] in PgBouncer).
type Peer struct {
	ID       int // its peer_id
	Host     string
	Port     uint16
	PoolSize int // connections for cancel requests at the same time; 0: Config.PoolSize
}

var peerColumns = columns("isii", "peer_id host port pool_size")

func (s *console) peers() error {
	s.header(peerColumns)
	conf := s.p.conf()
	for _, peer := range conf.Peers {
		size := peer.PoolSize
		if size == 0 {
			size = conf.PoolSize
		}
		s.rows.Begin()
		s.rows.Int(int64(peer.ID))
		s.rows.Text(peer.Host)
		s.rows.Int(int64(peer.Port))
		s.rows.Int(int64(size))
		s.endRow()
	}
	return nil
}

var peerPoolColumns = columns("iiiii", "peer_id cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel sv_login")

// peerPools shows a row for each peer that cancel requests are being sent to.
func (s *console) peerPools() error {
	s.header(peerPoolColumns)
	counts := s.p.forwarding.counts()
	for _, id := range slices.Sorted(maps.Keys(counts)) {
		s.rows.Begin()
		for _, n := range []int{id, counts[id], 0, counts[id], 0} {
			s.rows.Int(int64(n))
		}
		s.endRow()
	}
	return nil
}

var (
	dnsHostColumns = columns("sqs", "hostname ttl addrs")
	dnsZoneColumns = columns("sqi", "zonename serial count")
)

// dnsHosts shows the names of hosts whose addresses are remembered, and for how
// many seconds.
func (s *console) dnsHosts() error {
	s.header(dnsHostColumns)
	for _, a := range s.p.addresses.list() {
		s.rows.Begin()
		s.rows.Text(a.host)
		s.rows.Int(int64(max(a.left, 0) / time.Second))
		s.rows.Text(strings.Join(a.addrs, ","))
		s.endRow()
	}
	return nil
}

// knownHost is a host in an address book.
type knownHost struct {
	host  string
	left  time.Duration // until it is asked for again
	addrs []string
}

// list returns what an address book has, by name.
func (b *addressBook) list() (list []knownHost) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, host := range slices.Sorted(maps.Keys(b.hosts)) {
		a := b.hosts[host]
		k := knownHost{host: host, left: a.until.Sub(b.now())}
		for _, addr := range a.addrs {
			k.addrs = append(k.addrs, addr.String())
		}
		list = append(list, k)
	}
	return list
}

// dnsZones shows the zones whose serial numbers are watched: none are, the
// system's resolver does not tell them.
func (s *console) dnsZones() error {
	s.header(dnsZoneColumns)
	return nil
}

var fdColumns = columns("issssiqisssssbb", `fd task user database addr port cancel link client_encoding std_strings
	datestyle timezone password scram_client_key scram_server_key`)

// fds shows the descriptors. They are not sent along, since no other pooler takes
// over by them; so what one would need for that, and what would open doors
// (cancel keys, passwords, SCRAM keys), is left out.
func (s *console) fds() error {
	if !s.admin {
		return errAdmin
	}
	s.header(fdColumns)
	for _, ln := range s.p.listeners {
		k := socket{addr: addrOf(ln.Addr())}
		if sc, ok := ln.(syscall.Conn); ok {
			if rc, err := sc.SyscallConn(); err == nil {
				_ = rc.Control(func(fd uintptr) { k.fd = int(fd) }) // fails when it is closed
			}
		}
		if a, ok := ln.Addr().(*net.UnixAddr); ok {
			k.path = a.Name
		}
		s.fdRow(&k, "pooler")
	}
	return s.p.eachSocket(func(k *socket) {
		if k.server {
			s.fdRow(k, "server")
		} else {
			s.fdRow(k, "client")
		}
	})
}

func (s *console) fdRow(k *socket, task string) {
	r := &s.rows
	r.Begin()
	r.Int(int64(k.fd))
	r.Text(task)
	s.textOrNull(k.user)
	s.textOrNull(k.database)
	if k.path != "" || !k.addr.Addr().IsValid() {
		r.Text("unix")
	} else {
		r.Text(k.addr.Addr().String())
	}
	r.Int(int64(k.addr.Port()))
	r.Int(0)
	r.Int(int64(k.linkFD))
	for range 7 {
		r.Null()
	}
	s.endRow()
}

// errAdmin is the answer to those who may only look.
var errAdmin = pgwire.NewError(pgwire.SeverityError, codeConsole, "admin access needed")
