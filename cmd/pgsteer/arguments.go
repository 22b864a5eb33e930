package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A keyword is a word after a command that has a value behind it.
type keyword struct {
	name  string
	value string // what the value is, in capitals
	set   func(string) error
}

// keywords reads pairs of a keyword, or a unique prefix of it, and a value.
func keywords(args []string, known ...keyword) error {
	var names []string
	for _, k := range known {
		names = append(names, k.name)
	}
	given := make(map[string]bool)
	for len(args) > 0 {
		name, err := match("keyword", args[0], names)
		if err != nil {
			return err
		}
		k := known[slices.Index(names, name)]
		switch {
		case given[name]:
			return usagef("%s is given twice", name)
		case len(args) == 1:
			return usagef("%s needs a value: %s", name, k.value)
		}
		given[name] = true
		if err := k.set(args[1]); err != nil {
			return usagef("%s: %v", name, err)
		}
		args = args[2:]
	}
	return nil
}

// duration reads a length of time, which may be nothing.
func duration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is no length of time; want one like 90s, 5m or 24h", text)
	}
	return d, nil
}

// intervalOf reads a length of time to wait for.
func intervalOf(text string) (time.Duration, error) {
	d, err := duration(text)
	if err == nil && (d < minInterval || d > maxInterval) {
		return 0, fmt.Errorf("%s is out of range; want %s to %s", d, minInterval, maxInterval)
	}
	return d, err
}

// What lies between two readings that are compared: less is mostly noise of
// the clock, and nobody waits longer for an answer.
const (
	minInterval = 10 * time.Millisecond
	maxInterval = time.Hour
)

// wait lets d pass, unless the user ends the program before.
func (s *session) wait(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-s.ctx.Done():
		return errInterrupted
	}
}

// number reads a whole number between least and most.
func number(text string, least, most uint64) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%q is no number from %d to %d", text, least, most)
	}
	return n, nil
}

// nearest is the name that word was perhaps meant to be: the one with the
// fewest letters to change. It is empty when none is near, which is more than
// a third of the longer one away.
func nearest(word string, names []string) string {
	best, fewest := "", 0
	for _, n := range names {
		d := distance(strings.ToLower(word), strings.ToLower(n))
		if 3*d <= max(len(word), len(n)) && (best == "" || d < fewest) {
			best, fewest = n, d
		}
	}
	return best
}

// distance is the number of bytes to insert, delete or change to make b of a
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// unknown says that nothing has the name, and which name is meant perhaps.
func unknown(what, word string, names []string) error {
	if near := nearest(word, names); near != "" {
		return fmt.Errorf("no %s %q; did you mean %s?", what, word, near)
	}
	if len(names) == 0 {
		return fmt.Errorf("no %s %q: there is none at all", what, word)
	}
	const most = 8
	shown := strings.Join(names[:min(len(names), most)], ", ")
	if len(names) > most {
		shown += ", …"
	}
	return fmt.Errorf("no %s %q; there is %s", what, word, shown)
}
