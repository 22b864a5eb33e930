package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// DefaultInterval is how often a Notifier looks.
const DefaultInterval = time.Second

// Config says who is told, and what of.
type Config struct {
	Node  string
	Link  string // to the stats page; may be empty
	Sinks Sinks
	// StateFile keeps what was said; its directory is made if it is missing.
	StateFile string
	Settings  Settings
	// Facts returns what is seen, and whether this node speaks. Peer returns what
	// the other node's Report was last, nil if it is not known. They are called
	// while the notifier runs, from one goroutine.
	Facts    func() (facts []Fact, speaks bool)
	Peer     func() json.RawMessage // may be nil
	Interval time.Duration          // DefaultInterval if 0
	Log      *slog.Logger
}

// Status is how it stands with one sink.
type Status struct {
	Name      string    `json:"name"`
	Speaks    bool      `json:"speaks"`  // this node is the one that tells people
	Pending   bool      `json:"pending"` // there is something to be told
	Sent      uint64    `json:"sent"`
	Failed    uint64    `json:"failed"` // attempts
	LastSent  time.Time `json:"last_sent"`
	LastError string    `json:"last_error"` // of the last attempt; "": it succeeded
	Unsaved   string    `json:"unsaved,omitempty"`
}

// Result is what became of a test of one sink.
type Result struct {
	Name     string        `json:"name"`
	Error    string        `json:"error,omitempty"`
	Duration time.Duration `json:"duration"` // nanoseconds
}

// Notifier watches and tells.
type Notifier struct {
	cfg     Config
	names   []string // of the sinks, in order
	sinks   map[string]sink
	outcome chan outcome

	// Of the goroutine that runs.
	machines map[string]*Machine
	saved    string // what the file has
	retry    time.Time

	mu     sync.Mutex
	status map[string]*Status
	report json.RawMessage
}

// outcome is what became of a message.
type outcome struct {
	sink, id string
	err      error
	took     time.Duration
}

// Open reads what was said. Run starts the rest.
func Open(cfg Config) (*Notifier, error) {
	sinks := cfg.Sinks.open()
	if err := cfg.Sinks.Check(); err != nil {
		// It must not keep the balancer from working, and may be mended meanwhile.
		cfg.Log.Error("nobody can be notified", "error", err)
	}
	said, err := loadFile(cfg.StateFile)
	if errors.Is(err, errBadFile) {
		// It must not keep the balancer from working.
		aside := cfg.StateFile + ".bad"
		cfg.Log.Error("what was notified of is forgotten, so that trouble is told again", "error", err, "set_aside", aside)
		err = os.Rename(cfg.StateFile, aside)
	}
	if err != nil {
		return nil, err
	}
	if cfg.Interval == 0 {
		cfg.Interval = DefaultInterval
	}
	n := &Notifier{
		cfg: cfg, names: slices.Sorted(maps.Keys(sinks)), sinks: sinks,
		outcome:  make(chan outcome),
		machines: make(map[string]*Machine), status: make(map[string]*Status),
	}
	for _, name := range n.names {
		n.machines[name] = NewMachine(cfg.Settings, cfg.Node, cfg.Link, said[name])
		n.status[name] = &Status{Name: name}
	}
	return n, nil
}

// Run looks and tells until ctx ends. What is under way then is given up: it is
// not known to have been said.
func (n *Notifier) Run(ctx context.Context) error {
	var g errgroup.Group
	defer func() { _ = g.Wait() }() // they return nil
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tick := time.NewTicker(n.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			n.look(now, func(name string, m *Message) {
				g.Go(func() error {
					n.deliver(ctx, name, m)
					return nil
				})
			})
		case o := <-n.outcome:
			n.finish(o, time.Now())
		}
	}
}

// look has every machine look once.
func (n *Notifier) look(now time.Time, deliver func(string, *Message)) {
	var o Observation
	o.Facts, o.Speaks = n.cfg.Facts()
	var peer map[string]Report
	if n.cfg.Peer != nil {
		var err error
		if peer, err = decodeReports(n.cfg.Peer()); err != nil {
			n.cfg.Log.Debug("the other node does not say what it notified of", "error", err)
		}
	}
	for _, name := range n.names {
		o.Peer = nil
		if r, ok := peer[name]; ok {
			o.Peer = &r
		}
		if m := n.machines[name].Observe(o, now); m != nil {
			deliver(name, m)
		}
	}
	n.keep(now, o.Speaks)
}

// deliver tells one sink, which may take its time.
func (n *Notifier) deliver(ctx context.Context, name string, m *Message) {
	start := time.Now()
	err := n.sinks[name].deliver(ctx, m)
	select {
	case <-ctx.Done():
	case n.outcome <- outcome{name, m.ID, err, time.Since(start)}:
	}
}

// finish notes what became of a message.
func (n *Notifier) finish(o outcome, now time.Time) {
	m := n.machines[o.sink]
	n.mu.Lock()
	s := n.status[o.sink]
	was := s.LastError
	if s.LastError = ""; o.err != nil {
		s.LastError = o.err.Error()
		s.Failed++
	} else {
		s.LastSent = now
		s.Sent++
	}
	n.mu.Unlock()
	if o.err != nil {
		m.Failed(o.id, retryAfter(o.err), now)
		level := slog.LevelDebug
		if o.err.Error() != was {
			level = slog.LevelWarn // once, not with every attempt
		}
		n.cfg.Log.Log(context.Background(), level, "a notification was not delivered; it is tried again", "sink", o.sink, "error", o.err)
		return
	}
	m.Delivered(o.id, now)
	n.cfg.Log.Info("notified", "sink", o.sink, "took", o.took.Round(time.Millisecond))
	n.keep(now, m.speaks)
}

// saveRetry is how long a disk is left alone that failed.
const saveRetry = 10 * time.Second

// keep publishes what was said, and has it outlive the daemon.
func (n *Notifier) keep(now time.Time, speaks bool) {
	said, out := make(map[string]map[string]Said), make(map[string]Report)
	for name, m := range n.machines {
		said[name], out[name] = m.Said(), m.Report(now)
	}
	report, err := encodeReports(out)
	if err != nil {
		n.cfg.Log.Error(err.Error())
	}
	err = n.save(said, now)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.report = report
	for name, s := range n.status {
		s.Speaks, s.Pending = speaks, n.machines[name].Pending()
		s.Unsaved = ""
		if err != nil {
			s.Unsaved = err.Error()
		}
	}
}

// save writes the file if something has changed. What cannot be written is in
// force all the same.
func (n *Notifier) save(said map[string]map[string]Said, now time.Time) error {
	text, err := json.Marshal(said) // maps are written in order
	if err != nil {
		return fmt.Errorf("encoding the notifications' state: %w", err)
	}
	if string(text) == n.saved || now.Before(n.retry) {
		return nil
	}
	if err := saveFile(n.cfg.StateFile, said); err != nil {
		n.retry = now.Add(saveRetry)
		n.cfg.Log.Error("a restart may repeat notifications", "error", err)
		return err
	}
	n.saved = string(text)
	return nil
}

// Report is what the other node has to know of what was said. It never waits for
// a sink or a disk.
func (n *Notifier) Report() json.RawMessage {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.report
}

// Status returns how it stands with each sink, in the order of names.
func (n *Notifier) Status() []Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]Status, len(n.names))
	for i, name := range n.names {
		all[i] = *n.status[name]
	}
	return all
}

// Test tells every sink that this is a test, at once and once, whether or not this
// node speaks; by is who asks. Nothing of it is kept.
func (n *Notifier) Test(ctx context.Context, by string) []Result {
	m := testMessage(n.cfg.Node, n.cfg.Link, by, time.Now())
	all := make([]Result, len(n.names))
	var g errgroup.Group
	for i, name := range n.names {
		g.Go(func() error {
			start := time.Now()
			all[i].Name = name
			if err := n.sinks[name].deliver(ctx, &m); err != nil {
				all[i].Error = err.Error()
			}
			all[i].Duration = time.Since(start)
			return nil
		})
	}
	_ = g.Wait() // they return nil
	return all
}
