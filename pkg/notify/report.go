package notify

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// reportVersion is that of the report's form. A node that does not know it goes by
// what it sees itself.
const reportVersion = 1

// maxReport is the most facts of a report, so that a heartbeat stays small: some
// 25 kB with the longest names. What is beyond is told again after a take-over.
const maxReport = 128

// recent is how long something that is well again stays in the report: the other
// node looks every second.
const recent = 10 * time.Minute

// Report is what a node has said to one sink, without what goes without saying.
type Report struct {
	Speaks bool            `json:"speaks"` // it is the node that speaks
	Said   map[string]Said `json:"said"`
}

// reports is what crosses to the other node: a report for each sink.
type reports struct {
	Version int               `json:"version"`
	Sinks   map[string]Report `json:"sinks"`
}

// ordinary are the values that go without saying.
var ordinary = map[string]bool{"up": true, "ok": true}

// Report returns what the other node has to know, trouble first, what was told
// last next.
func (m *Machine) Report(now time.Time) Report {
	r := Report{Speaks: m.speaks, Said: make(map[string]Said)}
	keys := slices.SortedFunc(maps.Keys(m.said), func(a, b string) int {
		x, y := m.said[a], m.said[b]
		switch {
		case x.Bad != y.Bad && x.Bad:
			return -1
		case x.Bad != y.Bad:
			return 1
		}
		return cmp.Or(y.At.Compare(x.At), cmp.Compare(a, b))
	})
	for _, k := range keys {
		if s := m.said[k]; len(r.Said) < maxReport && (s.Bad || !ordinary[s.Value] || now.Sub(s.At) < recent) {
			r.Said[k] = s
		}
	}
	return r
}

// encodeReports returns what crosses, or nil if there are no sinks.
func encodeReports(sinks map[string]Report) (json.RawMessage, error) {
	if len(sinks) == 0 {
		return nil, nil
	}
	text, err := json.Marshal(reports{reportVersion, sinks})
	if err != nil {
		return nil, fmt.Errorf("encoding what was said: %w", err)
	}
	return text, nil
}

// decodeReports is the inverse; nothing, or something of another version, is none.
func decodeReports(text json.RawMessage) (map[string]Report, error) {
	if len(text) == 0 {
		return nil, nil
	}
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return nil, fmt.Errorf("decoding what was said: %w", err)
	}
	if version.Version != reportVersion {
		return nil, nil
	}
	var r reports
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("decoding what was said: %w", err)
	}
	return r.Sinks, nil
}
