package pooler

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// pausedAlready is PgBouncer's error.
const pausedAlready = "already suspended/paused"

// named reports whether a command's argument is a database that it can be about,
// or answers that it is not. Verb is for the error about the console's own.
func (s *console) named(name, verb string) bool {
	switch {
	case name == consoleDatabase:
		s.fail(codeConsole, "cannot %s admin db: %s", verb, name)
	case s.p.conf().database(name) == nil:
		s.fail(codeConsole, "no such database: %s", name)
	default:
		return true
	}
	return false
}

// act has the machine do something that may fail, and answers.
func (s *console) act(tag string, do func(*machine) error) {
	err := error(errShutdown)
	s.p.ask(func(m *machine) { err = do(m) })
	s.answer(tag, err)
}

// answer ends a command: with its tag, or an error.
func (s *console) answer(tag string, err error) {
	switch e, ok := errors.AsType[*pgwire.Error](err); {
	case err == nil:
		s.done(tag)
	case err == errShutdown:
		s.err = err
	case ok:
		s.rows.Buf = e.Append(s.rows.Buf)
		s.ready()
	default:
		s.fail(codeConsole, "%s", err)
	}
}

// await has the machine begin something, waits for it to be done, and answers.
// A cancel request undoes it.
func (s *console) await(tag string, begin func(*machine) error, ready func(*machine) bool, undo func(*machine)) {
	select {
	case <-s.cancelled: // it came too late for what it was for
	default:
	}
	done := make(chan error, 1)
	if !s.p.loop.post(func() {
		m := s.p.loop.m
		if err := begin(m); err != nil {
			done <- err
			return
		}
		m.await(watch{what: s, pause: tag == "PAUSE", ready: func() bool { return ready(m) }, done: func(err error) { done <- err }})
	}) {
		s.err = errShutdown
		return
	}
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case err := <-done:
			s.answer(tag, err)
			return
		case <-s.p.late.Done():
			s.err = errShutdown
			return
		case <-s.cancelled:
			s.p.loop.post(func() {
				if s.p.loop.m.giveUp(s, errConsoleCanceled) {
					undo(s.p.loop.m)
				}
			})
		case <-look.C:
			if s.killed.Load() || peerGone(s.conn) {
				s.p.loop.post(func() { s.p.loop.m.giveUp(s, errConsoleCanceled) })
			}
		}
	}
}

var errConsoleCanceled = pgwire.NewError(pgwire.SeverityError, pgwire.CodeQueryCanceled, "canceling statement due to user request")

// errResumed ends a PAUSE that another session has ended.
var errResumed = errors.New("resumed before all servers were released")

// pause answers PAUSE: when it is done, no server is connected any more.
func (s *console) pause(_, name string) {
	if name != "" && !s.named(name, "pause") {
		return
	}
	s.announce(orderText("PAUSE", name))
	s.await("PAUSE", func(m *machine) error {
		switch {
		case m.paused || m.suspended:
			return errors.New(pausedAlready)
		case name != "":
			m.mark(name, func(k *mark) { k.paused = true })
		default:
			m.pauseAll()
		}
		return nil
	}, func(m *machine) bool { return m.serverless(name) }, func(m *machine) {
		if name != "" {
			m.mark(name, func(k *mark) { k.paused = false })
			return
		}
		m.resumeAll()
	})
}

// pauseAll pauses all databases, resumeAll those that are not paused by name.
func (m *machine) pauseAll() {
	m.paused = true
	m.pauseChanged()
}

func (m *machine) resumeAll() {
	m.paused = false
	m.endPauses()
	m.pauseChanged()
}

// endPauses tells those who wait for a pause to be complete that it is over.
func (m *machine) endPauses() {
	for _, w := range append([]watch(nil), m.watches...) {
		if w.pause {
			m.giveUp(w.what, errResumed)
		}
	}
}

func orderText(name, arg string) string {
	if arg == "" {
		return name
	}
	return fmt.Sprintf("%s '%s'", name, arg)
}

// resume answers RESUME.
func (s *console) resume(_, name string) {
	s.announce(orderText("RESUME", name))
	s.act("RESUME", func(m *machine) error {
		switch {
		case name == "" && (m.stopping || m.unloading):
			return errors.New("pooler is shutting down")
		case name == "" && !m.paused && !m.suspended:
			return errors.New("pooler is not paused/suspended")
		case name == "":
			s.p.resume()
			return nil
		case s.p.conf().database(name) == nil && name != consoleDatabase:
			return fmt.Errorf("no such database: %s", name)
		case !m.marks[name].paused:
			return fmt.Errorf("database %s is not paused", name)
		}
		m.endPauses()
		m.mark(name, func(k *mark) { k.paused = false })
		return nil
	})
}

// resume ends a pause of all databases or a suspension. It runs in the loop.
func (p *Pooler) resume() {
	m := p.loop.m
	if m.suspended {
		m.goOn()
		p.gate.open()
	}
	m.resumeAll()
}

// reconnect answers RECONNECT: servers are replaced as they become free.
func (s *console) reconnect(_, name string) {
	if name != "" && !s.named(name, "reconnect") {
		return
	}
	s.announce(orderText("RECONNECT", name))
	s.act("RECONNECT", func(m *machine) error {
		for _, p := range m.pools {
			if name == "" || p.key.database == name {
				m.replaceServers(p)
			}
		}
		return nil
	})
}

// waitClose answers WAIT_CLOSE: when it is done, RECONNECT or a RELOAD has
// replaced all servers that it had to.
func (s *console) waitClose(_, name string) {
	if name == consoleDatabase {
		s.fail(codeConsole, "cannot wait in admin db: %s", name)
		return
	}
	if name != "" && !s.named(name, "wait in") {
		return
	}
	s.announce(orderText("WAIT_CLOSE", name))
	s.await("WAIT_CLOSE", func(*machine) error { return nil },
		func(m *machine) bool { return m.renewed(name) }, func(*machine) {})
}

// disable answers DISABLE, enable ENABLE.
func (s *console) disable(_, name string) { s.able("DISABLE", name, true) }
func (s *console) enable(_, name string)  { s.able("ENABLE", name, false) }

func (s *console) able(command, name string, disabled bool) {
	if name == "" {
		s.fail(codeConsole, "a database is required")
		return
	}
	if !s.named(name, strings.ToLower(command)) {
		return
	}
	s.announce(orderText(command, name))
	s.act(command, func(m *machine) error {
		m.mark(name, func(k *mark) { k.disabled = disabled })
		return nil
	})
}

// kill answers KILL: the database is paused, its clients and servers are closed.
func (s *console) kill(_, name string) {
	if name != "" && !s.named(name, "kill") {
		return
	}
	s.announce(orderText("KILL", name))
	s.act("KILL", func(m *machine) error {
		if m.paused || m.suspended {
			return errors.New(pausedAlready)
		}
		for _, p := range m.pools {
			if name == "" || p.key.database == name {
				m.mark(p.key.database, func(k *mark) { k.paused = true })
				m.kill(p)
			}
		}
		if name != "" {
			m.mark(name, func(k *mark) { k.paused = true })
		}
		return nil
	})
}

// killClient answers KILL_CLIENT.
func (s *console) killClient(_, arg string) {
	id, err := strconv.ParseUint(arg, 10, 64)
	if err != nil {
		s.fail(codeConsole, "invalid client pointer supplied")
		return
	}
	s.announce("KILL_CLIENT " + arg)
	open, _ := s.p.openConsoles()
	for _, o := range open {
		if o.who.id == id {
			o.killed.Store(true)
			_ = o.conn.SetReadDeadline(time.Unix(1, 0))
			s.done("KILL_CLIENT")
			return
		}
	}
	s.act("KILL_CLIENT", func(m *machine) error {
		if !m.killClient(id) {
			return errors.New("client not found")
		}
		return nil
	})
}
