package bouncer

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// file is a configuration in the making.
type file struct {
	Config
	warnings []Warning

	given   map[string]string // values in [pgbouncer]
	current string            // section
	first   map[entryID]line  // where each key was given
	texts   map[string][]byte // of the ini files, by path
	fresh   bool              // they are read anew
}

// entryID names an entry of a file.
type entryID struct{ section, key string }

func newFile() *file {
	return &file{Config: defaults(), given: make(map[string]string), first: make(map[entryID]line),
		texts: make(map[string][]byte), fresh: true}
}

// sections are all that PgBouncer has.
var sections = []string{"databases", "peers", "pgbouncer", "users"}

// section implements handler. A section may be opened again.
func (f *file) section(at line, name string) error {
	if !slices.Contains(sections, name) {
		if known, ok := nearest(name, sections); ok {
			return at.errorf("unknown section [%s]; did you mean [%s]?", name, known)
		}
		return at.errorf("unknown section [%s]", name)
	}
	f.current = name
	return nil
}

// entry implements handler.
func (f *file) entry(at line, key, value string) error {
	if f.current == "" {
		return at.errorf("key %q stands before any section", key)
	}
	id := entryID{f.current, key}
	if prev, dup := f.first[id]; dup {
		if prev.file == at.file {
			return at.errorf("%q in [%s] is already in line %d", key, f.current, prev.no)
		}
		return at.errorf("%q in [%s] is already in %s:%d", key, f.current, prev.file, prev.no)
	}
	f.first[id] = at
	switch f.current {
	case "databases":
		return f.database(at, key, value)
	case "users":
		return f.user(at, key, value)
	case "peers":
		return f.peer(at, key, value)
	}
	f.given[key] = value
	w, err := apply(at, "pgbouncer", settings, f, key, value)
	if w != nil {
		f.warnings = append(f.warnings, *w)
	}
	return err
}

// database parses an entry of [databases].
func (f *file) database(at line, name, value string) error {
	if name == "pgbouncer" {
		return at.errorf("database name %q is reserved", name)
	}
	if len(name) > maxDBName {
		return at.errorf("database name is longer than %d bytes", maxDBName)
	}
	pairs, err := parseConnstr(value)
	if err != nil {
		return at.errorf("database %q: %v", name, err)
	}
	d := Database{Name: name, Port: 5432}
	if name != "*" {
		d.DBName = name
	}
	if err := applyPairs(at, "databases", databaseKeys, &d, pairs); err != nil {
		return err
	}
	switch {
	case d.Host == "":
		return at.errorf("database %q has no host", name)
	case d.Password != "" && d.User == "":
		return at.errorf("database %q has a password but no user", name)
	}
	if name == "*" {
		f.Fallback = &d
	} else {
		f.Databases = append(f.Databases, d)
	}
	return nil
}

// maxDBName is the longest name of a database, NAMEDATALEN - 1 in PostgreSQL:
// longer ones could never be asked for.
const maxDBName = 63

// user parses an entry of [users].
func (f *file) user(at line, name, value string) error {
	pairs, err := parseConnstr(value)
	if err != nil {
		return at.errorf("%v", err)
	}
	u := UserSetting{Name: name}
	if err := applyPairs(at, "users", userKeys, &u, pairs); err != nil {
		return err
	}
	f.UserSettings = append(f.UserSettings, u)
	return nil
}

// peer parses an entry of [peers].
func (f *file) peer(at line, name, value string) error {
	id, err := parseInt(name, 1, maxPeerID)
	if err != nil {
		return at.errorf("id of a peer: %v", err)
	}
	pairs, err := parseConnstr(value)
	if err != nil {
		return at.errorf("peer %d: %v", id, err)
	}
	p := Peer{ID: id, Port: 6432}
	if err := applyPairs(at, "peers", peerKeys, &p, pairs); err != nil {
		return err
	}
	if p.Host == "" {
		return at.errorf("peer %d has no host", id)
	}
	f.Peers = append(f.Peers, p)
	return nil
}

// peerKeys are the parameters in the value of an entry of [peers] (parse_peer in
// PgBouncer's loader.c).
var peerKeys = map[string]rule[Peer]{
	"host":      setString(func(p *Peer) *string { return &p.Host }),
	"port":      setInt(1, 65535, func(p *Peer) *int { return &p.Port }),
	"pool_size": setInt(1, maxPool, func(p *Peer) *int { return &p.PoolSize }),
}

// applyPairs applies a connection string, whose keys may appear once.
func applyPairs[T any](at line, section string, rules map[string]rule[T], dst *T, pairs []pair) error {
	seen := make(map[string]bool, len(pairs))
	for _, p := range pairs {
		if seen[p.key] {
			return at.errorf("%s appears twice", p.key)
		}
		seen[p.key] = true
		if _, err := apply(at, section, rules, dst, p.key, p.value); err != nil {
			return err
		}
	}
	return nil
}

// finish checks what no single line can tell, and fills in what depends on
// several.
func (f *file) finish(path string) error {
	whole := line{file: path}
	at := func(key string) line {
		if l, ok := f.first[entryID{"pgbouncer", key}]; ok {
			return l
		}
		return whole
	}
	switch {
	case len(f.ListenAddr) == 0 && f.UnixSocketDir == "":
		return at("listen_addr").errorf("neither listen_addr nor unix_socket_dir says where to listen")
	case len(f.Databases) == 0 && f.Fallback == nil:
		return whole.errorf("section [databases] has no entry")
	case f.AuthFile == "" && f.AuthType != AuthAny && !f.asks():
		return whole.errorf("auth_file is not set: no client could log in")
	case slices.Contains(f.ListenAddr, "*") && len(f.ListenAddr) > 1:
		return at("listen_addr").errorf("listen_addr has * beside other addresses")
	}
	if err := f.checkAuth(at); err != nil {
		return err
	}
	if err := f.checkTLS(at); err != nil {
		return err
	}
	for i := range f.Databases {
		f.poolSize(&f.Databases[i])
	}
	if f.Fallback != nil {
		f.poolSize(f.Fallback)
	}
	if len(f.Peers) > 0 {
		w := Warning(*whole.errorf("cancel requests are not passed on to [peers] yet"))
		f.warnings = append(f.warnings, w)
	}
	f.settings()
	return nil
}

// settings lists the keys that are in force.
func (f *file) settings() {
	for _, key := range keysOf(settings) {
		r := settings[key]
		s := Setting{Key: key, Default: defaultTexts[key]}
		switch {
		case r.set != nil:
		case len(r.only) == 1:
			s.Default = r.only[0]
		default:
			continue
		}
		s.Value = s.Default
		if v, ok := f.given[key]; ok && r.set != nil {
			s.Value = v
		}
		f.Settings = append(f.Settings, s)
	}
}

func (f *file) poolSize(d *Database) {
	if d.PoolSize == 0 {
		d.PoolSize = f.DefaultPoolSize
	}
}

// checkUsers looks at the user list in the light of the configuration.
func (f *file) checkUsers() error {
	if len(f.Users) == 0 && f.AuthType != AuthAny && !f.asks() {
		return &Error{File: f.AuthFile, Msg: "has no user: no client could log in"}
	}
	warn := func(format string, args ...any) {
		f.warnings = append(f.warnings, Warning{File: f.AuthFile, Msg: fmt.Sprintf(format, args...)})
	}
	info, err := os.Stat(f.AuthFile)
	if err != nil {
		return fmt.Errorf("failed to read configuration: %w", err)
	}
	if info.Mode().Perm()&0o004 != 0 {
		warn("the secrets in it can be read by everyone on this host (mode %04o)", info.Mode().Perm())
	}
	f.checkConsole("admin_users", f.AdminUsers, warn)
	f.checkConsole("stats_users", f.StatsUsers, warn)
	if f.AuthType != AuthSCRAM {
		return nil
	}
	for _, u := range f.Users {
		switch {
		case u.Secret == "":
			warn("user %q has no password and cannot log in with scram-sha-256", u.Name)
		case strings.HasPrefix(u.Secret, "md5") && len(u.Secret) == 35:
			warn("user %q has an md5 secret and cannot log in with scram-sha-256", u.Name)
		}
	}
	return nil
}

// checkConsole looks for users of the console who are in no user list.
func (f *file) checkConsole(key string, names []string, warn func(string, ...any)) {
	for _, name := range names {
		if !slices.ContainsFunc(f.Users, func(u User) bool { return u.Name == name }) {
			warn("user %q of %s is not in it and cannot log in", name, key)
		}
	}
}
