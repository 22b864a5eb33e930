package stats

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pgsteer/pgsteer/pkg/lb"
	"github.com/pgsteer/pgsteer/pkg/stats/latency"
	"github.com/pgsteer/pgsteer/pkg/vrrp"
)

// A metric is one metric family. Its values are made at scrape. kind says
// nothing of a histogram.
type metric struct {
	name   string
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	labels []string
}

// all is every family that the collector can emit, in the order of the source.
var all []*metric

func define(kind prometheus.ValueType, name, help string, labels ...string) *metric {
	m := &metric{name, prometheus.NewDesc(name, help, labels, nil), kind, labels}
	all = append(all, m)
	return m
}

func gauge(name, help string, labels ...string) *metric {
	return define(prometheus.GaugeValue, name, help, labels...)
}

func counter(name, help string, labels ...string) *metric {
	return define(prometheus.CounterValue, name, help, labels...)
}

// The families. Labels are bounded by the configuration: names of services,
// backends and routers, and words of fixed lists.
var (
	buildInfo = gauge("pgsteer_build_info", "Always 1; what the program was built from.", "version", "goversion")
	nodeInfo  = gauge("pgsteer_node_info", "Always 1; which node this is and the interface that it balances on.", "node", "interface")

	datapathUp = gauge("pgsteer_datapath_up", "1 if the tables of the XDP program could be read; if 0, what is in them is absent from this scrape.")
	xdpMode    = gauge("pgsteer_xdp_mode", "1 for the way in which the XDP program is attached.", "mode")
	verdicts   = counter("pgsteer_verdicts_total", "Packets that the XDP program saw, by what became of them.", "verdict", "action")

	flows         = gauge("pgsteer_flows", "Flows in the flow table at the last audit, closed ones that still rest there included.")
	flowsLive     = gauge("pgsteer_flows_live", "Flows at the last audit that count as active connections.")
	flowDrift     = gauge("pgsteer_flow_drift", "Active counts that disagreed with the flow table at the last audit, summed over backends; 0 is right.")
	flowOrphans   = gauge("pgsteer_flow_orphans", "Halves of flows without the other half at the last audit.")
	flowCapacity  = gauge("pgsteer_flow_table_capacity", "Entries that the flow table holds; a flow takes two.")
	flowAuditAge  = gauge("pgsteer_flow_audit_age_seconds", "Time since the last audit of the flow table.")
	tableMemory   = gauge("pgsteer_datapath_memory_bytes", "Memory that all tables of the XDP program take together.")
	backendActive = gauge("pgsteer_backend_active_connections", "Connections open now.", "service", "backend")
	backendConns  = counter("pgsteer_backend_connections_total", "Connections ever given to the backend.", "service", "backend")
	backendClosed = counter("pgsteer_backend_closed_total", "Connections of the backend that are over.", "service", "backend")
	backendRefuse = counter("pgsteer_backend_refused_total", "Connections that the backend refused; others were asked in its place.", "service", "backend")
	backendRedisp = counter("pgsteer_backend_redispatched_total", "Connections taken from the backend, because it refused or did not answer, and offered to others.", "service", "backend")
	backendResets = counter("pgsteer_backend_resets_total", "Connections of the backend that ended by a reset, from either side.", "service", "backend")
	backendEvict  = counter("pgsteer_backend_evicted_total", "Half-open connections of the backend that gave way to newer ones.", "service", "backend")
	backendTime   = define(prometheus.UntypedValue, "pgsteer_backend_connect_duration_seconds", "Time from the SYN forwarded to the backend to its SYN-ACK.", "service", "backend")
	backendBytes  = counter("pgsteer_backend_bytes_total", "IP bytes forwarded; in is towards the backend.", "service", "backend", "direction")
	backendPkts   = counter("pgsteer_backend_packets_total", "Packets forwarded; in is towards the backend.", "service", "backend", "direction")
	backendWeight = gauge("pgsteer_backend_weight", "Share of the new connections.", "service", "backend")
	backendLimit  = gauge("pgsteer_backend_max_connections", "Connections that the backend may have at a time; 0 is no limit.", "service", "backend")
	backendBackup = gauge("pgsteer_backend_backup", "1 if the backend is used only while no other is up.", "service", "backend")
	backendReach  = gauge("pgsteer_backend_reachable", "1 if the MAC address of the backend's next hop is known.", "service", "backend")

	backendUp      = gauge("pgsteer_backend_up", "1 if the backend takes new connections.", "service", "backend")
	backendState   = gauge("pgsteer_backend_state", "1 for the state that the backend is in.", "service", "backend", "state")
	backendChanged = gauge("pgsteer_backend_state_change_timestamp_seconds", "When the backend entered its state.", "service", "backend")
	backendDowns   = counter("pgsteer_backend_down_transitions_total", "Times that the backend went from up to down.", "service", "backend")
	backendOutage  = counter("pgsteer_backend_downtime_seconds_total", "Time that the backend has been down.", "service", "backend")

	checks        = counter("pgsteer_health_checks_total", "Finished health checks, by result.", "service", "backend", "result")
	checkDuration = gauge("pgsteer_health_check_last_duration_seconds", "Time that the last health check took.", "service", "backend")
	checkTime     = gauge("pgsteer_health_check_last_timestamp_seconds", "When the last health check ended.", "service", "backend")

	vipLease        = gauge("pgsteer_vip_lease_seconds", "Time for which this node may still answer for the address without renewal; 0 means that it is silent.", "router", "address")
	vrrpState       = gauge("pgsteer_vrrp_state", "1 for the state that the virtual router is in on this node.", "router", "state")
	vrrpChanged     = gauge("pgsteer_vrrp_state_change_timestamp_seconds", "When the virtual router entered its state.", "router")
	vrrpPriority    = gauge("pgsteer_vrrp_priority", "This node's priority, as configured.", "router")
	vrrpEffective   = gauge("pgsteer_vrrp_effective_priority", "Priority that this node would advertise now: 254 when told to take over, 1 as long as it stands back.", "router")
	vrrpSynced      = gauge("pgsteer_vrrp_synced", "1 if this node has a copy of what the active one knows, or needs none.", "router")
	vrrpGated       = gauge("pgsteer_vrrp_gated", "1 if this node stands back behind any other: it was told to resign, or is not synced.", "router")
	vrrpFault       = gauge("pgsteer_vrrp_fault", "1 if this node stays out of the election.", "router")
	vrrpCutOff      = gauge("pgsteer_vrrp_cut_off", "1 if this node must not become active, because nothing outside gives a sign.", "router")
	vrrpInterval    = gauge("pgsteer_vrrp_advert_interval_seconds", "This node's time between two adverts.", "router")
	vrrpPeerAge     = gauge("pgsteer_vrrp_peer_last_advert_age_seconds", "Time since the last valid advert of another node; absent before the first.", "router")
	vrrpPeerPrio    = gauge("pgsteer_vrrp_peer_priority", "Priority in the last valid advert of another node, 0 if it resigned; absent before the first.", "router")
	vrrpSent        = counter("pgsteer_vrrp_adverts_sent_total", "Adverts sent, one for each peer.", "router")
	vrrpSendErrors  = counter("pgsteer_vrrp_advert_send_errors_total", "Adverts that could not be sent.", "router")
	vrrpReceived    = counter("pgsteer_vrrp_adverts_received_total", "Valid adverts received.", "router")
	vrrpRefused     = counter("pgsteer_vrrp_adverts_refused_total", "Received packets that were not accepted as adverts, by reason.", "router", "reason")
	vrrpMismatches  = counter("pgsteer_vrrp_advert_mismatches_total", "Accepted adverts that say that a peer is configured otherwise, by what.", "router", "what")
	vrrpContentions = counter("pgsteer_vrrp_contentions_total", "Times that another node was seen to be active beside this one.", "router")
	vrrpBarred      = counter("pgsteer_vrrp_barred_total", "Times that this node did not become active though it heard nobody, once per interval.", "router")
	vrrpTransitions = counter("pgsteer_vrrp_transitions_total", "Changes of state.", "router")
	vrrpActive      = counter("pgsteer_vrrp_became_active_total", "Times that this node took the addresses.", "router")
	vrrpGARP        = counter("pgsteer_vrrp_garp_sent_total", "Gratuitous ARP frames sent.", "router")
	vrrpGARPErrors  = counter("pgsteer_vrrp_garp_errors_total", "Gratuitous ARP announcements that failed.", "router")
	vrrpNA          = counter("pgsteer_vrrp_na_sent_total", "Unsolicited Neighbor Advertisements sent.", "router")
	vrrpNAErrors    = counter("pgsteer_vrrp_na_errors_total", "Unsolicited Neighbor Advertisements that could not be sent.", "router")
	vrrpRestored    = counter("pgsteer_vrrp_addresses_restored_total", "Virtual addresses that somebody took off the interface while this node was active.", "router")
)

// vrrpStates and backendStates are the label values of the state families:
// each is always there, so that a query finds a 0 and not a hole.
var (
	vrrpStates    = []vrrp.State{vrrp.Init, vrrp.Backup, vrrp.Active}
	backendStates = []lb.State{lb.Down, lb.Up, lb.Draining, lb.Maintenance}
	xdpModes      = []string{"native", "generic"}
)

// A collector makes metrics from snapshots.
type collector struct{ snapshot func() Snapshot }

func newCollector(snapshot func() Snapshot) *collector { return &collector{snapshot} }

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range all {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.snapshot()
	e := emitter(func(m *metric, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, v, labels...)
	})
	e(buildInfo, 1, s.Version, runtime.Version())
	e(nodeInfo, 1, s.Node, s.Interface)
	e(datapathUp, oneIf(s.DatapathErr == nil))
	if s.DatapathErr == nil {
		e.datapath(&s.Datapath)
		connectTimes(ch, s.Datapath.Services)
	}
	e.backends(&s)
	e.checks(&s)
	e.routers(&s)
	e.sync(s.Sync)
	e.notifications(s.Notify)
}

// An emitter sends one value of a family.
type emitter func(m *metric, v float64, labels ...string)

func (e emitter) datapath(d *lb.DatapathStats) {
	for _, mode := range xdpModes {
		e(xdpMode, oneIf(d.Mode == mode), mode)
	}
	for _, v := range d.Verdicts {
		e(verdicts, float64(v.Count), v.Name, v.Action)
	}
	e(flows, float64(d.Audit.Flows))
	e(flowsLive, float64(d.Audit.Live))
	e(flowDrift, float64(d.Audit.Drift))
	e(flowOrphans, float64(d.Audit.Orphans))
	e(flowCapacity, float64(d.Audit.Capacity))
	e(tableMemory, float64(d.Audit.Memory))
	e(flowAuditAge, time.Duration(d.Audit.SweptAgo).Seconds())
	for _, s := range d.Services {
		for _, b := range s.Backends {
			e(backendActive, float64(b.Active), s.Name, b.Name)
			e(backendConns, float64(b.Total), s.Name, b.Name)
			e(backendClosed, float64(b.Closed), s.Name, b.Name)
			e(backendRedisp, float64(b.Redispatched), s.Name, b.Name)
			e(backendResets, float64(b.Resets), s.Name, b.Name)
			e(backendEvict, float64(b.Evicted), s.Name, b.Name)
			e(backendLimit, float64(b.Limit), s.Name, b.Name)
			e(backendBackup, oneIf(b.Backup), s.Name, b.Name)
			e(backendRefuse, float64(b.Refused), s.Name, b.Name)
			e(backendBytes, float64(b.BytesIn), s.Name, b.Name, "in")
			e(backendBytes, float64(b.BytesOut), s.Name, b.Name, "out")
			e(backendPkts, float64(b.PacketsIn), s.Name, b.Name, "in")
			e(backendPkts, float64(b.PacketsOut), s.Name, b.Name, "out")
			e(backendWeight, float64(b.Weight), s.Name, b.Name)
			e(backendReach, oneIf(b.Reachable), s.Name, b.Name)
		}
	}
	for _, v := range d.VIPs {
		e(vipLease, max(0, v.Lease.Seconds()), v.Router, v.Addr.String())
	}
}

// connectTimes sends each backend's histogram, in the buckets that the datapath
// counts in. A handshake that took 2^n microseconds to the nanosecond, which
// Prometheus has in the bucket that ends there, is in the next one.
func connectTimes(ch chan<- prometheus.Metric, services []lb.ServiceStats) {
	for _, s := range services {
		for _, b := range s.Backends {
			var sum uint64
			buckets := make(map[float64]uint64, lb.ConnectTimeBuckets)
			for i, n := range b.ConnectTime {
				sum += n
				if i < lb.ConnectTimeBuckets-1 { // the last is what Prometheus calls +Inf
					buckets[latency.UpperBound(i).Seconds()] = sum
				}
			}
			ch <- prometheus.MustNewConstHistogram(backendTime.desc, sum, b.ConnectTimeSum.Seconds(), buckets, s.Name, b.Name)
		}
	}
}

func (e emitter) backends(s *Snapshot) {
	for _, b := range s.Backends {
		e(backendUp, oneIf(b.State == lb.Up), b.Service, b.Name)
		for _, state := range backendStates {
			e(backendState, oneIf(b.State == state), b.Service, b.Name, state.String())
		}
		e(backendChanged, timestamp(b.Since), b.Service, b.Name)
		e(backendDowns, float64(b.Transitions), b.Service, b.Name)
		e(backendOutage, b.Downtime.Seconds(), b.Service, b.Name)
	}
}

func (e emitter) checks(s *Snapshot) {
	for _, c := range s.Checks {
		e(checks, float64(c.Checks-c.Failures), c.Service, c.Backend, "success")
		e(checks, float64(c.Failures), c.Service, c.Backend, "failure")
		if c.LastAt.IsZero() {
			continue // none has finished yet
		}
		e(checkDuration, c.LastDuration.Seconds(), c.Service, c.Backend)
		e(checkTime, timestamp(c.LastAt), c.Service, c.Backend)
	}
}

func (e emitter) routers(s *Snapshot) {
	for _, r := range s.Routers {
		for _, state := range vrrpStates {
			e(vrrpState, oneIf(r.State == state), r.Name, state.String())
		}
		e(vrrpChanged, timestamp(r.Since), r.Name)
		e(vrrpPriority, float64(r.Priority), r.Name)
		e(vrrpEffective, float64(r.EffectivePriority), r.Name)
		e(vrrpSynced, oneIf(r.Synced), r.Name)
		e(vrrpGated, oneIf(r.Gate != ""), r.Name)
		e(vrrpFault, oneIf(r.Fault != ""), r.Name)
		e(vrrpCutOff, oneIf(r.CutOff), r.Name)
		e(vrrpInterval, r.AdvertInterval.Seconds(), r.Name)
		if r.Peer.Address.IsValid() {
			e(vrrpPeerAge, r.Peer.Ago.Seconds(), r.Name)
			e(vrrpPeerPrio, float64(r.Peer.Priority), r.Name)
		}
		e(vrrpSent, float64(r.Sent), r.Name)
		e(vrrpSendErrors, float64(r.SendErrors), r.Name)
		e(vrrpReceived, float64(r.Received), r.Name)
		for _, c := range r.Refused {
			e(vrrpRefused, float64(c.Count), r.Name, c.Reason)
		}
		e(vrrpMismatches, float64(r.IntervalMismatches), r.Name, "interval")
		e(vrrpMismatches, float64(r.AddressMismatches), r.Name, "addresses")
		e(vrrpContentions, float64(r.Contentions), r.Name)
		e(vrrpBarred, float64(r.Barred), r.Name)
		e(vrrpTransitions, float64(r.Transitions), r.Name)
		e(vrrpActive, float64(r.BecameActive), r.Name)
		e(vrrpGARP, float64(r.GratuitousARP), r.Name)
		e(vrrpGARPErrors, float64(r.GratuitousErrors), r.Name)
		e(vrrpNA, float64(r.UnsolicitedNA), r.Name)
		e(vrrpNAErrors, float64(r.UnsolicitedNAErrors), r.Name)
		e(vrrpRestored, float64(r.Restored), r.Name)
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func timestamp(t time.Time) float64 { return float64(t.UnixMilli()) / 1e3 }
