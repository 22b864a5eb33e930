package stats

import "github.com/pgsteer/pgsteer/pkg/flowsync"

// The families of the replication. Without one they are absent.
var (
	syncConnected   = gauge("pgsteer_sync_connected", "1 if there is a connection to the other node.")
	syncChanged     = gauge("pgsteer_sync_connected_change_timestamp_seconds", "When the connection to the other node began or ended.")
	syncHeard       = gauge("pgsteer_sync_heartbeat_age_seconds", "Time since the last heartbeat of the other node; absent before the first.")
	syncSynced      = gauge("pgsteer_sync_synced", "1 if this node has a full copy of the other's connections, kept up to date.")
	syncPeerSynced  = gauge("pgsteer_sync_peer_synced", "1 if the other node has one of this node's connections.")
	syncCopyAge     = gauge("pgsteer_sync_copy_age_seconds", "Age of this node's copy of the other's connections, 0 while synced; absent before the first.")
	syncQueue       = gauge("pgsteer_sync_queue", "Changes that wait to be sent.")
	syncLag         = gauge("pgsteer_sync_lag_seconds", "Age of the oldest change that the other node has not acknowledged.")
	syncDifferences = gauge("pgsteer_sync_config_differences", "Services and backends that the nodes do not have in common.")
	syncConnects    = counter("pgsteer_sync_connections_total", "Connections made to the other node.")
	syncRecords     = counter("pgsteer_sync_records_total", "Records of connections exchanged, and what became of them, by kind.", "direction", "kind")
	syncBytes       = counter("pgsteer_sync_bytes_total", "Bytes exchanged with the other node.", "direction")
	syncOverflows   = counter("pgsteer_sync_overflows_total", "Times that changes came faster than they could be sent.")
	syncLost        = counter("pgsteer_sync_lost_total", "Times that the datapath lost changes.")
	syncTableErrors = counter("pgsteer_sync_table_failures_total", "Errors of the flow table while the other node's connections were stored.")
	syncResyncs     = counter("pgsteer_sync_resyncs_total", "Full copies sent, by why.", "reason")
	syncFailures    = counter("pgsteer_sync_handshake_failures_total", "Connections to the other node that did not come to be, by why.", "reason")
)

func (e emitter) sync(s *flowsync.Status) {
	if s == nil {
		return
	}
	e(syncConnected, oneIf(s.Connected))
	e(syncChanged, timestamp(s.Since))
	if s.Heard >= 0 {
		e(syncHeard, s.Heard.Seconds())
	}
	e(syncSynced, oneIf(s.Synced))
	e(syncPeerSynced, oneIf(s.PeerSynced))
	if s.CopyAge >= 0 {
		e(syncCopyAge, s.CopyAge.Seconds())
	}
	e(syncQueue, float64(s.Queue))
	e(syncLag, s.Lag.Seconds())
	e(syncDifferences, float64(len(s.Differences)))
	e(syncConnects, float64(s.Connections))
	for _, k := range s.Sent.Kinds() {
		e(syncRecords, float64(k.Count), "sent", k.Name)
	}
	for _, k := range s.Received.Kinds() {
		e(syncRecords, float64(k.Count), "received", k.Name)
	}
	e(syncBytes, float64(s.Sent.Bytes), "sent")
	e(syncBytes, float64(s.Received.Bytes), "received")
	e(syncOverflows, float64(s.Sent.Overflows))
	e(syncLost, float64(s.Sent.Lost))
	e(syncTableErrors, float64(s.Received.Failures))
	for _, c := range s.Resyncs {
		e(syncResyncs, float64(c.Count), c.Reason)
	}
	for _, c := range s.Failures {
		e(syncFailures, float64(c.Count), c.Reason)
	}
}
