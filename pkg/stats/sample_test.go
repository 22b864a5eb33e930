package stats

import (
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
	"github.com/pgsteer/pgsteer/pkg/health"
	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/notify"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

var (
	now   = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	lanIP = netip.MustParseAddr("192.168.1.100")
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// moves is a dozen of moves, a minute apart.
func moves() []vrrp.Change {
	var all []vrrp.Change
	for i := range 12 {
		c := vrrp.Change{At: now.Add(time.Duration(i-12) * time.Minute), From: vrrp.Backup, To: vrrp.Active, Reason: "silence", Priority: 101}
		if i%2 == 1 {
			c.From, c.To, c.Reason, c.Priority = c.To, c.From, "told to resign by uid 0", 1
		}
		if i > 2 {
			c.Peer = vrrp.Peer{Address: netip.MustParseAddr("192.168.1.11"), Priority: 100, Ago: 34 * time.Millisecond}
		}
		all = append(all, c)
	}
	return all
}

// sample is a node in the middle of its work: one backend is fine, one begins
// to fail, one comes back, one is down.
func sample() Snapshot {
	backend := func(name, addr string, state lb.State, active int64, total uint64) lb.BackendStats {
		return lb.BackendStats{
			Name: name, Addr: addrPort(addr), State: state, Weight: 1, Reachable: true, MAC: "02:00:00:00:01:05",
			Limit: 4000, Backup: name == "pooler3", Closed: total - uint64(active), Redispatched: total / 500, Resets: total / 100, Evicted: total / 2000,
			ConnectTime:    [lb.ConnectTimeBuckets]uint64{0: total % 5, 7: total / 2, 8: total / 3, 11: total / 50, 23: total / 20000},
			ConnectTimeSum: time.Duration(total) * 130 * time.Microsecond,
			Active:         active, Total: total, Refused: total / 1000, PacketsIn: total * 12, BytesIn: total * 2345, PacketsOut: total * 10, BytesOut: total * 98765,
		}
	}
	status := func(service, name string, state lb.State, age time.Duration, reason string, downs uint64, downtime time.Duration) lb.BackendStatus {
		return lb.BackendStatus{Service: service, Name: name, State: state, Since: now.Add(-age), Reason: reason, Transitions: downs, Downtime: downtime}
	}
	check := func(service, name string, up bool, consecutive int, result string, took time.Duration, failures uint64) health.TargetStatus {
		return health.TargetStatus{
			Service: service, Backend: name, CheckName: "postgres", Interval: 2 * time.Second, Timeout: time.Second, Fall: 3, Rise: 2,
			Up: up, Known: true, Consecutive: consecutive, LastResult: result, LastDuration: took, LastAt: now.Add(-700 * time.Millisecond),
			Checks: 45000, Failures: failures,
		}
	}
	unreachable := lb.BackendStats{Name: "reports1", Addr: addrPort("192.168.1.7:6432"), Weight: 256}
	return Snapshot{
		Node: "lb1", Interface: "eth0", Version: "v0.1.0", PID: 4711, Started: now.Add(-25 * time.Hour), Now: now,
		Datapath: lb.DatapathStats{
			Interface: "eth0", Mode: "native",
			Services: []lb.ServiceStats{
				{Name: "postgres", Addr: addrPort("192.168.1.100:5432"), Backends: []lb.BackendStats{
					backend("pooler1", "192.168.1.5:6432", lb.Up, 1022, 41003),
					backend("pooler2", "192.168.1.5:6433", lb.Up, 21, 41002),
					backend("pooler3", "192.168.1.5:6434", lb.Down, 0, 7),
				}},
				{Name: "reports", Addr: addrPort("192.168.1.100:5433"), Backends: []lb.BackendStats{unreachable}},
				{Name: "six", Addr: addrPort("[2001:db8::100]:5432"), Scheduler: lb.RandomTwo, Backends: []lb.BackendStats{
					{Name: "p6", Addr: addrPort("[2001:db8::5]:6432"), State: lb.Up, Weight: 1, Reachable: true, Active: 5, Total: 9, Closed: 4},
				}},
			},
			VIPs: []lb.VIPStats{{Addr: lanIP, Router: "main", VRID: 51, Priority: 101, State: "active", Since: time.Hour, Lease: 287 * time.Millisecond}},
			Verdicts: []lb.VerdictCount{
				{Name: "pass_arp", Action: "pass", Count: 1200}, {Name: "tx_new", Action: "tx", Count: 82012},
				{Name: "tx_forward", Action: "tx", Count: 9840012}, {Name: "drop_fenced", Action: "drop"}, {Name: "drop_ttl", Action: "drop", Count: 3},
			},
			Audit: lb.Audit{Flows: 1050, Live: 1043, Drift: 0, Orphans: 0, Capacity: 524288, Memory: 123_456_789, SweptAgo: int64(400 * time.Millisecond)},
		},
		Backends: []lb.BackendStatus{
			status("postgres", "pooler1", lb.Up, 25*time.Hour, "ok", 0, 0),
			status("postgres", "pooler2", lb.Up, 90*time.Second, "ok", 2, 75*time.Second),
			status("postgres", "pooler3", lb.Down, 4*time.Second, "connection refused", 1, 4*time.Second),
			status("reports", "reports1", lb.Down, 25*time.Hour, "not checked yet", 0, 25*time.Hour),
		},
		Checks: []health.TargetStatus{
			check("postgres", "pooler1", true, 0, "ok", 1234*time.Microsecond, 0),
			check("postgres", "pooler2", true, 1, "no answer within 1s", time.Second, 12),
			check("postgres", "pooler3", false, 1, "ok", 2*time.Millisecond, 3),
			check("reports", "reports1", false, 0, "57P03 the database system is starting up <b>", 3*time.Millisecond, 45000),
		},
		Routers: []vrrp.Snapshot{{
			Name: "main", Interface: "eth0", VRID: 51, Priority: 101, State: vrrp.Active, Since: now.Add(-time.Hour), Reason: "192.168.1.11 resigned",
			Addresses: []netip.Prefix{netip.PrefixFrom(lanIP, 32)}, AdvertInterval: 100 * time.Millisecond,
			Peer: vrrp.Peer{Address: netip.MustParseAddr("192.168.1.11"), Priority: 100, AdvertInterval: 100 * time.Millisecond, Ago: time.Hour},
			Sent: 36000, Received: 1234, Refused: []vrrp.RefusalCount{{Reason: "ttl", Count: 2}, {Reason: "checksum"}, {Reason: "vrid", Count: 5}},
			Transitions: 12, BecameActive: 6, GratuitousARP: 254, EffectivePriority: 254, Synced: true, Contentions: 1, Barred: 4, History: moves(),
		}},
		Notify: []notify.Status{{Name: notify.SlackName, Speaks: true, Pending: true, Sent: 12, Failed: 3, LastError: "connection refused"}},
		Sync: &flowsync.Status{
			Node: "lb1", Listen: "192.168.1.10:5480", Peer: "192.168.1.11:5480", Key: "9cd7647edd817396", Dials: true, Connected: true, Since: now.Add(-time.Hour),
			Connections: 3, PeerNode: "lb2", Version: 1, Heard: 57 * time.Millisecond, Synced: true, PeerSynced: true, Queue: 1200, Lag: 3 * time.Millisecond,
			Sent:     flowsync.SentCounts{Changes: 82012, Closed: 80969, Copied: 1043, Overflows: 1, Lost: 2, Bytes: 9_123_456},
			Received: flowsync.ReceivedCounts{Stored: 7, Failures: 1, Bytes: 98730},
			Resyncs:  []flowsync.Count{{Reason: "connected", Count: 3}, {Reason: "overflow", Count: 1}},
			Failures: []flowsync.Count{{Reason: "connect", Count: 4}, {Reason: "key"}},
			// As after a change of one node's configuration.
			LastError: "connection refused", Differences: []string{"backend postgres/pooler9 (192.168.1.9:6432) is configured on lb1 only"},
		},
	}
}
