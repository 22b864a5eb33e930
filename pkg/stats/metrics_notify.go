package stats

import "github.com/pgsteer/pgsteer/pkg/notify"

// Of the notifications; the label is one of three sinks.
var (
	notifySent    = counter("pgsteer_notifications_total", "Attempts to tell a sink of notifications something, by result.", "sink", "result")
	notifyPending = gauge("pgsteer_notifications_pending", "1 if there is something that the sink was not told yet.", "sink")
	notifySpeaks  = gauge("pgsteer_notifications_speaker", "1 if this node is the one of the two that tells the sink.", "sink")
)

func (e emitter) notifications(all []notify.Status) {
	for _, s := range all {
		e(notifySent, float64(s.Sent), s.Name, "success")
		e(notifySent, float64(s.Failed), s.Name, "failure")
		e(notifyPending, oneIf(s.Pending), s.Name)
		e(notifySpeaks, oneIf(s.Speaks), s.Name)
	}
}
