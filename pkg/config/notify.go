package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"
)

// Notify says who is told what happens. Without a sink nobody is.
type Notify struct {
	// StatsURL is where people find the stats page. Key: stats_url. Default: the
	// source of the first virtual router, and the stats port.
	StatsURL string
	// StateFile keeps what was said, so that a restart neither repeats nor forgets.
	// Key: state_file; absolute. Default: /var/lib/pgsteer/notify.json.
	StateFile string
	// Coalesce is how long a change waits for others to go with it.
	// Key: coalesce; 100ms to 30s. Default: 2s.
	Coalesce time.Duration
	// Remind is after what time trouble that lasts is told again; 0 is never.
	// Key: remind; 0s, or a minute at least. Default: 1h.
	Remind time.Duration
	// Slack is an incoming webhook of Slack's. Key: slack. Default: nil, none.
	Slack *NotifyURL
	// Webhook is an HTTP server of the operator's own. Key: webhook. Default: nil,
	// none.
	Webhook *NotifyURL
	// Exec is a program. Key: exec. Default: nil, none.
	Exec *NotifyExec
}

// Some reports whether there is anybody to be told.
func (n *Notify) Some() bool { return n.Slack != nil || n.Webhook != nil || n.Exec != nil }

// NotifyURL is a URL that is posted to. It is a secret, and therefore elsewhere.
type NotifyURL struct {
	// URL is where the URL stands. Keys: url_file, url_credential; one of them.
	URL Secret
	// Key is where the key stands that signs what is sent, for Webhook only.
	// Keys: key_file, key_credential; one of them at most. Default: no signature.
	Key Secret
	// Timeout is how long one attempt may take. Key: timeout; 100ms to 1m.
	// Default: 10s.
	Timeout time.Duration
}

// Secret is where a secret stands: in a file that is for its owner only, or in a
// credential that systemd hands over (LoadCredential=). The zero value is nowhere.
type Secret struct {
	File       string // absolute
	Credential string // its name
}

// NotifyExec is a program that is run for each message.
type NotifyExec struct {
	// Command is its absolute path and its arguments. Key: command. Required.
	Command []string
	// Timeout is how long it may run. Key: timeout; 100ms to 1m. Default: 10s.
	Timeout time.Duration
}

func parseNotify(root section) Notify {
	s := root.sub("notify", "stats_url", "state_file", "coalesce", "remind", "slack", "webhook", "exec")
	n := Notify{
		StatsURL:  get(s, "stats_url", "", statsURL),
		StateFile: get(s, "state_file", "/var/lib/pgsteer/notify.json", path),
		Coalesce:  get(s, "coalesce", 2*time.Second, duration(100*time.Millisecond, 30*time.Second)),
		Remind:    get(s, "remind", time.Hour, reminder),
	}
	timeout := duration(100*time.Millisecond, time.Minute)
	if s.has("slack") {
		w := s.sub("slack", "url_file", "url_credential", "timeout")
		n.Slack = &NotifyURL{URL: parseSecret(w, "url", true), Timeout: get(w, "timeout", 10*time.Second, timeout)}
	}
	if s.has("webhook") {
		w := s.sub("webhook", "url_file", "url_credential", "key_file", "key_credential", "timeout")
		n.Webhook = &NotifyURL{
			URL: parseSecret(w, "url", true), Key: parseSecret(w, "key", false),
			Timeout: get(w, "timeout", 10*time.Second, timeout),
		}
	}
	if s.has("exec") {
		e := s.sub("exec", "command", "timeout")
		n.Exec = &NotifyExec{Timeout: get(e, "timeout", 10*time.Second, timeout)}
		for i, word := range e.list("command", 1, 64) {
			parse := argument
			if i == 0 {
				parse = path
			}
			n.Exec.Command = append(n.Exec.Command, scalar(word, parse))
		}
	}
	return n
}

// parseSecret reads where a secret stands.
func parseSecret(s section, what string, needed bool) Secret {
	file, credential := what+"_file", what+"_credential"
	out := Secret{File: get(s, file, "", path), Credential: get(s, credential, "", name)}
	switch {
	case s.has(file) && s.has(credential):
		s.at(credential).fail("the %s stands in a file (%s) or in a credential, not in both", what, file)
	case needed && !s.broken && !s.has(file) && !s.has(credential):
		s.fail("needs %s or %s", file, credential)
	}
	return out
}

// argument reads any text that a program can be given.
func argument(n node) (string, error) {
	if slices.Contains([]byte(n.Value), 0) {
		return "", fmt.Errorf("%q holds a NUL byte", n.Value)
	}
	return n.Value, nil
}

// statsURL reads an address that a browser can open.
func statsURL(n node) (string, error) {
	u, err := url.Parse(n.Value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("%q is not a URL that begins with http:// or https://", n.Value)
	}
	if u.User != nil {
		return "", errors.New("it has a user or a password in it, which everybody who is told would see")
	}
	return n.Value, nil
}

// reminder reads a time that is not so short as to be a nuisance, or 0s.
func reminder(n node) (time.Duration, error) {
	if d, err := time.ParseDuration(n.Value); err == nil && d == 0 {
		return 0, nil
	}
	return duration(time.Minute, 0)(n)
}
