package flowsync

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestSaid has what people were told cross as it is, and stay at home when it is
// too long for a heartbeat.
func TestSaid(t *testing.T) {
	for _, tt := range []struct {
		name, said string
		whole      bool
	}{
		{"none", "", true},
		{"some", `{"version":1,"sinks":{"slack":{"speaks":true}}}`, true},
		{"too much", `"` + strings.Repeat("x", maxState) + `"`, false},
	} {
		s := State{Node: "lb1", Backends: []BackendState{{Service: "postgres", Backend: "pooler1"}}, Said: json.RawMessage(tt.said)}
		frame, whole, err := appendState(nil, s)
		if err != nil || whole != tt.whole {
			t.Fatalf("%s: whole %v, %v", tt.name, whole, err)
		}
		back, err := parseState(frame[frameHeader:])
		want := tt.said
		if !whole {
			want = ""
		}
		if err != nil || string(back.Said) != want || back.Node != "lb1" {
			t.Errorf("%s: %s, %v", tt.name, back.Said, err)
		}
	}
}
