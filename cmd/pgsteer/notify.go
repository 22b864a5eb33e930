package main

import (
	"context"
	"fmt"
	"time"

	"github.com/pgsteer/pgsteer/pkg/admin"
	"github.com/pgsteer/pgsteer/pkg/notify"
)

func notifyCommands() []command {
	return []command{
		showing(`each sink of notifications: whether this node is the one that tells it, what it
was told, and what went wrong last`, showNotifications),
		{name: "test", about: `tells every sink that this is a test, from this node, whether or not it is the
one that speaks. The exit status is 1 if one of them was not told.`, prepare: withoutArguments(testNotifications)},
	}
}

func showNotifications(s *session) error {
	var all []notify.Status
	err := s.ask(func(ctx context.Context, d daemon) (err error) {
		all, err = d.Notifications(ctx)
		return err
	})
	if err != nil {
		return err
	}
	return writeList(s.out, all, func(r *row, n *notify.Status) {
		last := "never"
		if !n.LastSent.IsZero() {
			last = age(time.Since(n.LastSent)) + " ago"
		}
		trouble := n.LastError
		if trouble == "" && n.Unsaved != "" {
			trouble = n.Unsaved
		}
		if trouble == "" {
			trouble = "-"
		}
		r.cells(n.Name, yes(n.Speaks), yes(n.Pending), fmt.Sprint(n.Sent), fmt.Sprint(n.Failed), last, trouble)
	}, left("SINK"), left("SPEAKS"), left("PENDING"), right("SENT"), right("FAILED"), left("LAST"), left("TROUBLE"))
}

func testNotifications(s *session) error {
	var all []notify.Result
	// The daemon's answer comes after the slowest sink.
	err := s.askWithin(admin.NotifyTestTimeout+answerTimeout, func(ctx context.Context, d daemon) (err error) {
		all, err = d.TestNotifications(ctx)
		return err
	})
	if err != nil {
		return err
	}
	failed := 0
	for _, n := range all {
		if n.Error != "" {
			failed++
		}
	}
	err = writeList(s.out, all, func(r *row, n *notify.Result) {
		result := "delivered"
		if n.Error != "" {
			result = n.Error
		}
		r.cells(n.Name, age(n.Duration), result)
	}, left("SINK"), right("TOOK"), left("RESULT"))
	if err == nil && failed > 0 {
		err = fmt.Errorf("%s not told", wasWere(failed))
	}
	return err
}

func wasWere(n int) string {
	if n == 1 {
		return "1 sink was"
	}
	return fmt.Sprintf("%d sinks were", n)
}
