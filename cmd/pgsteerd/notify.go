package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/config"
	"github.com/pgsteer/pgsteer/pkg/notify"
)

// peerSaid is how old what the other node has said may be to go on from there:
// it counts also when that node has just died.
const peerSaid = 10 * time.Second

// openNotifier opens what tells people, or does nothing when nobody is told.
func (d *balancerDaemon) openNotifier() error {
	c := d.cfg.Notify
	if !c.Some() {
		return nil
	}
	settings := notify.DefaultSettings()
	settings.Coalesce, settings.Remind = c.Coalesce, c.Remind
	watch := newWatcher()
	cfg := notify.Config{
		Node: d.cfg.Node, Link: c.StatsURL, Sinks: sinks(c, os.Getenv("CREDENTIALS_DIRECTORY")),
		StateFile: c.StateFile, Settings: settings, Log: d.log,
		Facts: func() ([]notify.Fact, bool) {
			s := d.snapshot()
			return watch.look(&s)
		},
	}
	if d.sync != nil {
		cfg.Peer = func() json.RawMessage {
			if peer, ago, ok := d.sync.link.Peer(); ok && ago < peerSaid {
				return peer.Said
			}
			return nil
		}
	}
	n, err := notify.Open(cfg)
	if err != nil {
		return err
	}
	d.notifier = n
	if d.sync != nil {
		d.sync.said = n.Report
	}
	return nil
}

// sinks are those that the configuration names.
func sinks(c config.Notify, credentials string) (s notify.Sinks) {
	source := func(what string, from config.Secret) notify.Source {
		return func() (notify.Secret, error) { return readSecret(what, from, credentials) }
	}
	if c.Slack != nil {
		s.Slack = &notify.Slack{URL: source("the URL", c.Slack.URL), Timeout: c.Slack.Timeout}
	}
	if c.Webhook != nil {
		s.Webhook = &notify.Webhook{URL: source("the URL", c.Webhook.URL), Timeout: c.Webhook.Timeout}
		if c.Webhook.Key != (config.Secret{}) {
			s.Webhook.Key = source("the key", c.Webhook.Key)
		}
	}
	if c.Exec != nil {
		s.Exec = &notify.Exec{Command: c.Exec.Command, Timeout: c.Exec.Timeout}
	}
	return s
}

// maxSecret bounds what is read of a secret, in bytes.
const maxSecret = 4096

// readSecret reads a secret. credentials is the directory that systemd hands
// credentials over in; who may read it is systemd's business.
func readSecret(what string, from config.Secret, credentials string) (notify.Secret, error) {
	fail := func(err error) (notify.Secret, error) {
		return notify.Secret{}, fmt.Errorf("reading %s: %w", what, err)
	}
	path := from.File
	if from.Credential != "" {
		if credentials == "" {
			return fail(fmt.Errorf("systemd handed no credential %s over; see LoadCredential= of pgsteerd's unit", from.Credential))
		}
		path = filepath.Join(credentials, from.Credential)
	}
	f, err := os.Open(path)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	if mode := info.Mode().Perm(); from.Credential == "" && mode&0o077 != 0 {
		return fail(fmt.Errorf("%s is open to group or others (mode %04o); run: chmod 600 %s", path, mode, path))
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return fail(err)
	}
	secret := strings.TrimSpace(string(text))
	switch {
	case len(text) > maxSecret:
		return fail(fmt.Errorf("%s is larger than %d bytes", path, maxSecret))
	case secret == "":
		return fail(fmt.Errorf("%s is empty", path))
	case strings.ContainsAny(secret, "\r\n\x00"):
		return fail(errors.New(path + " has more than one line"))
	}
	return notify.NewSecret(secret), nil
}
