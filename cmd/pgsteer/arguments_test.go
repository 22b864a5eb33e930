package main

import "testing"

func TestNearest(t *testing.T) {
	names := []string{"postgres/pooler1", "postgres/pooler2", "reports/r1"}
	for word, want := range map[string]string{
		"postgres/pooler3": "postgres/pooler1", // the first of several that are as near
		"postgres/poole2":  "postgres/pooler2",
		"Postgres/Pooler2": "postgres/pooler2",
		"report/r1":        "reports/r1",
		"reports/rr":       "reports/r1",
		"pooler1":          "",
		"":                 "",
		"x":                "",
	} {
		if got := nearest(word, names); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("%q to %q: got %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
