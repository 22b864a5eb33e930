package admin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// RuntimeShows is what the runtime socket shows, in HAProxy's words.
type RuntimeShows interface {
	Stat() (string, error)
	Info() (string, error)
	// ServersState is of one backend, or of all with ""; ok is false if there is no
	// such one.
	ServersState(backend string) (text string, ok bool)
}

// RuntimeConfig says where to listen and what to steer.
type RuntimeConfig struct {
	Socket     string // absolute path; its directory is made if it is missing
	Controller *lb.Controller
	Shows      RuntimeShows
	Log        *slog.Logger
}

// Runtime answers the commands of HAProxy's runtime socket that operators use from
// day to day: one line, which may have several commands with semicolons between
// them, is answered, and the connection closed.
type Runtime struct {
	cfg    RuntimeConfig
	socket *socket
}

const (
	// maxLine bounds a line, in bytes, as HAProxy's buffer of 16 KiB does.
	maxLine = 16 << 10
	// runtimeTime is how long a line may take to arrive, HAProxy's own 10 s, and its
	// answer to be taken.
	runtimeTime = 10 * time.Second
)

// OpenRuntime listens, under the conditions of Open.
func OpenRuntime(cfg RuntimeConfig) (*Runtime, error) {
	l, err := listen(cfg.Socket, cfg.Log)
	if err != nil {
		return nil, err
	}
	return &Runtime{cfg, l}, nil
}

// Close releases the socket and removes it.
func (r *Runtime) Close() error { return r.socket.Close() }

// Run serves until ctx ends, lets answers under way finish and returns nil.
func (r *Runtime) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() {
		if err := r.socket.Close(); err != nil {
			r.cfg.Log.Warn("closing the runtime socket", "error", err)
		}
	})
	defer stop()
	for {
		c, err := r.socket.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			return nil
		case err != nil:
			return fmt.Errorf("serving the runtime socket: %w", err)
		}
		wg.Go(func() { r.serve(ctx, c) })
	}
}

// serve answers one line.
func (r *Runtime) serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	by, err := credentials(c.(*conn).UnixConn)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(runtimeTime))
	}
	if err != nil {
		r.cfg.Log.Warn("refusing a client of the runtime socket", "error", err)
		return
	}
	line, err := bufio.NewReader(io.LimitReader(c, maxLine)).ReadString('\n')
	if err != nil && !(errors.Is(err, io.EOF) && line != "" && len(line) < maxLine) {
		return
	}
	for command := range strings.SplitSeq(strings.TrimSpace(line), ";") {
		answer := r.answer(strings.Fields(command), by.String())
		if _, err := io.WriteString(c, answer+"\n"); err != nil {
			r.cfg.Log.Debug("nobody waits for an answer", "error", err)
			return
		}
	}
}

const runtimeHelp = `The following commands are valid at this level:
  disable server <bk>/<srv>               : disable a server for maintenance
  enable server <bk>/<srv>                : enable a disabled server
  get weight <bk>/<srv>                   : report a server's current weight
  help                                    : this message
  set server <bk>/<srv> state {ready|drain|maint}
  set server <bk>/<srv> weight {N|N%}     : change a server's weight
  set weight <bk>/<srv> {N|N%}            : the same
  show info                               : report information about the running process
  show servers state [<backend>]          : dump volatile server information
  show stat                               : report counters for each proxy and server
  quit                                    : disconnect
`

// answer does what a command says; "" is HAProxy's word for done.
func (r *Runtime) answer(words []string, by string) string {
	show := func(text string, err error) string {
		if err != nil {
			return err.Error() + "\n"
		}
		return text
	}
	is := func(command string) bool { return strings.Join(words, " ") == command }
	begins := func(command string, arguments int) bool {
		all := strings.Fields(command)
		return len(words) == len(all)+arguments && strings.Join(words[:len(all)], " ") == command
	}
	switch {
	case len(words) == 0, is("quit"):
		return ""
	case is("show stat"):
		return show(r.cfg.Shows.Stat())
	case is("show info"):
		return show(r.cfg.Shows.Info())
	case is("show servers state"), begins("show servers state", 1):
		text, ok := r.cfg.Shows.ServersState(strings.Join(words[3:], ""))
		if !ok {
			return "Can't find backend.\n"
		}
		return text
	case is("help"):
		return runtimeHelp
	case begins("enable server", 1):
		return r.setState(words[2], "ready", by)
	case begins("disable server", 1):
		return r.setState(words[2], "maint", by)
	case begins("get weight", 1):
		return r.getWeight(words[2])
	case begins("set weight", 2):
		return r.setWeight(words[2], words[3], by)
	case len(words) == 5 && begins("set server", 3) && words[3] == "state":
		return r.setState(words[2], words[4], by)
	case len(words) == 5 && begins("set server", 3) && words[3] == "weight":
		return r.setWeight(words[2], words[4], by)
	case len(words) > 2 && words[0] == "set" && words[1] == "server":
		return "usage: set server <backend>/<server> state | weight\n"
	}
	return "Unknown command.\n" + runtimeHelp
}

// find returns a backend by the name that HAProxy gives a server.
func (r *Runtime) find(name string) (status lb.BackendStatus, complaint string) {
	service, backend, ok := strings.Cut(name, "/")
	if !ok || service == "" || backend == "" {
		return status, "Require 'backend/server'.\n"
	}
	for _, b := range r.cfg.Controller.Snapshot() {
		if b.Service == service && b.Name == backend {
			return b, ""
		}
	}
	return status, "No such server.\n"
}

// change has the controller change something.
func (r *Runtime) change(name string, by string, what func(lb.BackendStatus) (lb.Change, string)) string {
	b, complaint := r.find(name)
	if complaint != "" {
		return complaint
	}
	c, complaint := what(b)
	if complaint != "" {
		return complaint
	}
	if _, err := r.cfg.Controller.Change(b.Service, b.Name, c, by); err != nil {
		r.cfg.Log.Error("failed to do what an operator wants", "by", by, "backend", name, "error", err)
		return err.Error() + "\n"
	}
	return ""
}

func (r *Runtime) setState(name, word, by string) string {
	return r.change(name, by, func(lb.BackendStatus) (c lb.Change, complaint string) {
		states := map[string]lb.AdminState{"ready": lb.AdminReady, "drain": lb.AdminDraining, "maint": lb.AdminMaint}
		state, ok := states[word]
		if !ok {
			return c, "'set server <srv> state' expects 'ready', 'drain' and 'maint'.\n"
		}
		c.Admin = &state
		return c, ""
	})
}

// setWeight takes a weight, or a share of the configured one. A weight of 0 is
// HAProxy's other word for a drain, which has a word of its own here.
func (r *Runtime) setWeight(name, word, by string) string {
	return r.change(name, by, func(b lb.BackendStatus) (c lb.Change, complaint string) {
		text, percent := strings.CutSuffix(word, "%")
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return c, "Empty weight string empty or preceded by garbage\n"
		}
		if percent {
			n = uint64(math.Round(float64(n) * float64(b.ConfiguredWeight) / 100))
		}
		if n < 1 || n > 256 {
			return c, "Absolute weight can only be between 1 and 256 inclusive; 'set server <srv> state drain' is for 0.\n"
		}
		weight := uint16(n)
		c.Weight = &weight
		return c, ""
	})
}

func (r *Runtime) getWeight(name string) string {
	b, complaint := r.find(name)
	if complaint != "" {
		return complaint
	}
	return fmt.Sprintf("%d (initial %d)\n", b.Weight, b.ConfiguredWeight)
}
