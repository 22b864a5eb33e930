package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// Postgres is the name of the database's process.
const Postgres = "postgres"

// balancerNice is the priority of pgsteerd, the same as in its systemd unit:
// on a loaded machine its advertisements must leave in time.
const balancerNice = -15

// Daemon returns the name of a balancer's process.
func Daemon(balancer string) string { return "pgsteerd@" + balancer }

// specs returns the lab's processes in the order they are started.
func (l *Lab) specs(st *state) ([]spec, error) {
	dbUser, err := databaseUser()
	if err != nil {
		return nil, err
	}
	poolUser, err := unprivilegedUser("nobody")
	if err != nil {
		return nil, err
	}
	all := []spec{{
		name: Postgres, host: DB, user: dbUser.cred, env: daemonEnv(),
		argv: []string{filepath.Join(st.Postgres, "postgres"), "-D", l.clusterDir()},
		stop: syscall.SIGQUIT, // at once: the cluster is removed afterwards
	}}
	for _, name := range Poolers() {
		all = append(all, spec{
			name: name, host: Pooler, user: poolUser.cred,
			argv: []string{l.programFile("pgsteer-pooler"), l.confFile(name + ".ini")},
			env:  daemonEnv("GOMAXPROCS=1"), // a pooler has one CPU
			stop: syscall.SIGTERM,
		})
	}
	for _, name := range Balancers() {
		all = append(all, spec{
			name: Daemon(name), host: name, nice: balancerNice, env: daemonEnv(),
			argv: []string{l.programFile("pgsteerd"), "-config", l.confFile(name + ".yaml")},
			stop: syscall.SIGTERM,
		})
	}
	return all, nil
}

// daemonEnv is the environment of the lab's processes: what a service manager
// would give them, not what our user happens to have.
func daemonEnv(extra ...string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/"}
	return append(env, extra...)
}

// findSpec finds a process by its name, or a balancer's by its host.
func (l *Lab) findSpec(st *state, target string) (spec, error) {
	all, err := l.specs(st)
	if err != nil {
		return spec{}, err
	}
	var names []string
	for _, s := range all {
		if s.name == target || s.name == Daemon(target) {
			return s, nil
		}
		names = append(names, s.name)
	}
	return spec{}, fmt.Errorf("there is no process %q in the lab, only %s", target, strings.Join(names, ", "))
}

// startAll starts what does not run, layer by layer, and waits until each
// answers: the database, the poolers, the balancers, the service.
func (l *Lab) startAll(ctx context.Context, st *state, o Options) error {
	st.Options.Progress = o.Progress
	all, err := l.specs(st)
	if err != nil {
		return err
	}
	replaced, err := l.installPrograms(st.Options.BinDir)
	if err != nil {
		return err
	}
	for _, s := range all {
		if id := st.Processes[s.name]; replaced[s.argv[0]] && id.alive() {
			if err := l.endTree(ctx, id); err != nil {
				return fmt.Errorf("ending %s, whose program was built anew: %w", s.name, err)
			}
		}
	}
	// One balancer after the other: the first to listen in vain becomes
	// active, and with equal starts chance would decide who that is.
	for _, layer := range []struct{ host, done string }{
		{host: DB, done: "PostgreSQL answers at " + mustHost(DB).addr.String()},
		{host: Pooler, done: fmt.Sprintf("%d poolers answer at %s", PoolerCount, mustHost(Pooler).addr)},
		{host: LB1, done: LB1 + " runs"},
		{host: LB2, done: LB2 + " runs"},
	} {
		begin := time.Now()
		var group []spec
		for _, s := range all {
			if s.host == layer.host {
				group = append(group, s)
			}
		}
		if err := l.startGroup(ctx, st, group); err != nil {
			return err
		}
		o.Progress(fmt.Sprintf("%s (%.1f s)", layer.done, time.Since(begin).Seconds()))
	}
	if o.NoWait {
		return nil
	}
	begin := time.Now()
	owner, err := l.waitService(ctx, st)
	if err != nil {
		return err
	}
	o.Progress(fmt.Sprintf("the service answers at %s; %s is active (%.1f s)", frontAddresses(), owner, time.Since(begin).Seconds()))
	return nil
}

// startGroup starts processes of one layer together and waits for all.
func (l *Lab) startGroup(ctx context.Context, st *state, group []spec) error {
	for _, s := range group {
		if err := l.ensureRunning(ctx, st, s); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range group {
		g.Go(func() error { return l.waitReady(ctx, st, s) })
	}
	return g.Wait()
}

// ensureRunning starts a process unless it runs. A stopped one is continued.
func (l *Lab) ensureRunning(ctx context.Context, st *state, s spec) error {
	id := st.Processes[s.name]
	if letter, alive := id.state(); alive {
		if letter == 'T' {
			return l.signalTree(id, syscall.SIGCONT)
		}
		return nil
	}
	id.reap()
	if s.name == Postgres {
		if err := l.awaitOrphans(ctx, st); err != nil {
			return err
		}
	}
	id, err := l.launch(s)
	if err != nil {
		return err
	}
	st.Processes[s.name] = id
	return l.save(st)
}

// awaitOrphans waits for the children that a killed postmaster has left: they
// end as soon as they notice, and no new one may start before that.
func (l *Lab) awaitOrphans(ctx context.Context, st *state) error {
	orphans, err := processesIn(map[uint64]bool{namespaceInode(l.namespace(DB)): true})
	if err != nil {
		return err
	}
	program := filepath.Join(st.Postgres, "postgres")
	for _, id := range orphans {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", id.PID)); err != nil || exe != program {
			continue
		}
		if err := id.wait(ctx); err != nil {
			return fmt.Errorf("waiting for process %d, left by the killed PostgreSQL: %w", id.PID, err)
		}
	}
	return nil
}

// tree returns a process and its descendants.
func (l *Lab) tree(id identity) ([]identity, error) {
	rest, err := id.descendants()
	return append([]identity{id}, rest...), err
}

// signalTree signals a process and then its descendants: what is stopped,
// continued or killed is the whole of it.
func (l *Lab) signalTree(id identity, sig syscall.Signal) error {
	all, err := l.tree(id)
	return errors.Join(err, signalAll(all, sig))
}

// endTree kills a process of the lab and its descendants and waits until they
// are gone.
func (l *Lab) endTree(ctx context.Context, id identity) error {
	all, err := l.tree(id)
	if err := errors.Join(err, signalAll(all, syscall.SIGKILL)); err != nil {
		return err
	}
	for _, one := range slices.Backward(all) {
		if err := one.wait(ctx); err != nil {
			return err
		}
	}
	id.reap()
	return nil
}
