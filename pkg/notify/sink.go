package notify

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A sink is somebody who is told: an URL, a program.
type sink interface {
	// deliver tells m, once. The error says what went wrong in words that have no
	// secret in them, and is a *delayError when the other side named a time.
	deliver(ctx context.Context, m *Message) error
}

// A delayError is a failure after which the other side wants to be left alone.
type delayError struct {
	error
	after time.Duration
}

func (e *delayError) Unwrap() error { return e.error }

// retryAfter is what an error says of the time, 0 if nothing.
func retryAfter(err error) time.Duration {
	var d *delayError
	if errors.As(err, &d) {
		return d.after
	}
	return 0
}

// The names of the sinks. A node's word to the other one goes by them.
const (
	SlackName   = "slack"
	WebhookName = "webhook"
	ExecName    = "exec"
)

// A Source returns a secret. It is asked for each message, so that another secret
// needs no restart; its error is shown, and must not have the secret in it.
type Source func() (Secret, error)

// Slack is an incoming webhook of Slack's, or of what speaks like it.
type Slack struct {
	URL     Source
	Timeout time.Duration
}

// Webhook is an HTTP server of the operator's own.
type Webhook struct {
	URL Source
	// Key signs what is sent; nil: it is not signed.
	Key     Source
	Timeout time.Duration
}

// Exec is a program.
type Exec struct {
	Command []string // the absolute path and the arguments
	Timeout time.Duration
}

// Sinks are those that are told; nil: not this one.
type Sinks struct {
	Slack   *Slack
	Webhook *Webhook
	Exec    *Exec
}

// open returns the sinks by name.
func (s Sinks) open() map[string]sink {
	all := make(map[string]sink)
	if s.Slack != nil {
		all[SlackName] = (*slack)(s.Slack)
	}
	if s.Webhook != nil {
		all[WebhookName] = (*webhook)(s.Webhook)
	}
	if s.Exec != nil {
		all[ExecName] = (*program)(s.Exec)
	}
	return all
}

// Check returns what is wrong with the secrets, as far as it can be told without
// telling anybody something.
func (s Sinks) Check() error {
	var errs []error
	if s.Slack != nil {
		_, err := newPoster(s.Slack.URL, s.Slack.Timeout)
		errs = append(errs, named(SlackName, err))
	}
	if s.Webhook != nil {
		_, err := newPoster(s.Webhook.URL, s.Webhook.Timeout)
		errs = append(errs, named(WebhookName, err))
		if s.Webhook.Key != nil {
			_, err := s.Webhook.Key()
			errs = append(errs, named(WebhookName, err))
		}
	}
	return errors.Join(errs...)
}

func named(sink string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", sink, err)
}
