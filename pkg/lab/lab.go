// Package lab raises the whole picture of pgsteer on one machine: a client,
// two balancers, three poolers and a PostgreSQL server, each in a network
// namespace of its own on one LAN, with the real programs and a real database.
//
// The demo, the integration tests and the fault tests stand on it. A lab is
// known by its name; several can run side by side, with the same addresses.
// What a lab has made is written down under /run/pgsteer-lab, so that any
// program can go on with it or remove it, also after the one that raised it
// was killed.
//
// Everything here needs root.
package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// DefaultName is the name of a lab whose user did not choose one.
const DefaultName = "pgsteer"

// defaultTimeout bounds Up: raising takes about ten seconds on two cores, so
// this is for machines that are very busy.
const defaultTimeout = 90 * time.Second

// downTimeout bounds the clean-up that follows a failed or cancelled Up.
const downTimeout = 30 * time.Second

// Options say what lab to raise. The zero value is the classic picture.
type Options struct {
	Name   string `json:"name"`    // default DefaultName
	BinDir string `json:"bin_dir"` // where pgsteerd and pgsteer-pooler are; default: beside this program

	Balancer BalancerOptions `json:"balancer"`
	Pooler   PoolerOptions   `json:"pooler"`
	// Routed adds two networks beyond the LAN: one with the host Remote, whose
	// clients come through the router Gateway, and one in which the balancers
	// find the poolers, through the router Router.
	Routed bool `json:"routed,omitempty"`
	// Spares adds two hosts to the LAN on which nothing runs, Spare1 and
	// Spare2, for whatever the balancers are to be compared with.
	Spares bool `json:"spares,omitempty"`

	// Timeout bounds Up; default 90 s.
	Timeout time.Duration `json:"-"`
	// NoWait lets Up return when every process answers, without waiting for
	// the balancers to have found the poolers and the VIP to answer.
	NoWait bool `json:"-"`
	// Progress, if set, is told in a few words what has been done.
	Progress func(string) `json:"-"`
}

func (o *Options) setDefaults() error {
	setDefault(&o.Name, DefaultName)
	if err := checkName(o.Name); err != nil {
		return err
	}
	if o.BinDir == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("finding the directory of the programs: %w", err)
		}
		o.BinDir = filepath.Dir(exe)
	}
	abs, err := filepath.Abs(o.BinDir)
	if err != nil {
		return fmt.Errorf("finding the directory of the programs: %w", err)
	}
	o.BinDir = abs
	setDefault(&o.Timeout, defaultTimeout)
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	o.Balancer.setDefaults()
	o.Pooler.setDefaults()
	return nil
}

// same tells whether two labs would be alike.
func (o Options) same(other Options) bool {
	a, err := json.Marshal(o)
	if err != nil {
		return false
	}
	b, err := json.Marshal(other)
	return err == nil && string(a) == string(b)
}

// Lab is a handle on a lab. Its methods may be called from several
// goroutines.
type Lab struct {
	name string
	dir  string // under runDir
	data string // under dataDir

	mu sync.Mutex // held together with the file lock, which is per program
}

func newLab(name string) *Lab {
	return &Lab{name: name, dir: filepath.Join(runDir, name), data: filepath.Join(dataDir, name)}
}

// Open returns a handle on a lab that is up, or an error that is ErrNotUp.
func Open(name string) (*Lab, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := checkRoot(); err != nil {
		return nil, err
	}
	l := newLab(name)
	st, err := l.load()
	if err != nil {
		return nil, err
	}
	if !st.Complete {
		return nil, fmt.Errorf("lab %q: %w: raising it was not completed", name, ErrNotUp)
	}
	return l, nil
}

// Name returns the lab's name.
func (l *Lab) Name() string { return l.name }

func (l *Lab) namespace(host string) string { return l.name + "-" + host }

// Up raises a lab. If it is up already, as the options want it, whatever has
// died, been stopped or been cut off since is brought back and the database
// stays; otherwise what an earlier one left is removed first. When Up fails or
// ctx ends, it leaves nothing behind.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	if err := checkRoot(); err != nil {
		return nil, err
	}
	l := newLab(o.Name)
	pgBin, err := l.preflight(o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("not done after %v", o.Timeout))
	defer cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	lock, err := l.acquire()
	if err != nil {
		return nil, err
	}
	if err := l.refuseStrangers(); err != nil {
		return nil, errors.Join(err, lock.remove())
	}
	if st, err := l.load(); err == nil && st.Complete && st.Options.same(o) && l.networkExists(o) {
		err := l.repair(ctx, st, o)
		lock.release()
		if err != nil {
			return nil, err
		}
		return l, nil
	}
	if err := l.raise(ctx, o, pgBin); err != nil {
		if ctx.Err() == context.Canceled {
			err = ctx.Err() // the user's wish: what it interrupted is of no interest
		}
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
		defer cancel()
		if cerr := errors.Join(l.clean(clean, false), lock.remove()); cerr != nil {
			err = fmt.Errorf("%w\nand cleaning up failed: %w", err, cerr)
		}
		return nil, err
	}
	lock.release()
	return l, nil
}

// raise builds the lab from nothing.
func (l *Lab) raise(ctx context.Context, o Options, pgBin string) error {
	if err := l.clean(ctx, false); err != nil {
		return fmt.Errorf("removing what an earlier lab left: %w", err)
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	st := &state{
		Options: o, BootID: boot, Since: time.Now(), Postgres: pgBin,
		Passwords: map[string]string{}, Processes: map[string]identity{},
	}
	for _, user := range []string{superuser, Database, checkUser} {
		if st.Passwords[user], err = randomPassword(); err != nil {
			return err
		}
	}
	if err := l.makeDirs(); err != nil {
		return err
	}
	if err := l.save(st); err != nil {
		return err
	}
	if err := l.mountBPF(); err != nil {
		return err
	}
	begin := time.Now()
	if err := l.buildNetwork(o); err != nil {
		return err
	}
	o.Progress(fmt.Sprintf("network: %d hosts on one LAN (%.1f s)", len(o.hosts()), time.Since(begin).Seconds()))
	if err := l.writeConfigs(st); err != nil {
		return err
	}
	if err := l.initDatabase(ctx, st); err != nil {
		return err
	}
	if err := l.startAll(ctx, st, o); err != nil {
		return err
	}
	st.Complete = true
	return l.save(st)
}

// repair brings a lab that was up back to the full picture.
func (l *Lab) repair(ctx context.Context, st *state, o Options) error {
	for _, h := range o.hosts() {
		if err := l.setLink(h, true); err != nil {
			return err
		}
	}
	return l.startAll(ctx, st, o)
}

// Down removes the lab called name and everything it has made. Logs stay when
// keepLogs is set, until the next Up. A lab that is not up is no error.
func Down(ctx context.Context, name string, keepLogs bool) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := checkRoot(); err != nil {
		return err
	}
	return newLab(name).Down(ctx, keepLogs)
}

// Down removes the lab and everything it has made. Logs stay when keepLogs is
// set, until the next Up.
func (l *Lab) Down(ctx context.Context, keepLogs bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	lock, err := l.acquire()
	if err != nil {
		return err
	}
	if err := l.refuseStrangers(); err != nil {
		return errors.Join(err, lock.remove())
	}
	if err := l.clean(ctx, keepLogs); err != nil {
		lock.release()
		return err
	}
	return lock.remove()
}

// change runs fn with the lab's state under its lock and saves the state that
// fn leaves.
func (l *Lab) change(fn func(*state) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	lock, err := l.acquire()
	if err != nil {
		return err
	}
	defer lock.release()
	st, err := l.load()
	if err != nil {
		return err
	}
	return errors.Join(fn(st), l.save(st))
}

func randomPassword() (string, error) {
	b := make([]byte, 12)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("making a password: %w", err)
	}
	return hex.EncodeToString(b), nil
}
