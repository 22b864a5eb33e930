package bouncer

import "slices"

// Load reads pgbouncer.ini and the user list that it names. Every fault of the
// files is an *Error with file and line; nothing is returned then. A file that
// cannot be read is the operating system's error, wrapped.
func Load(path string) (Config, []Warning, error) { return NewLoader(path).Load() }

// Loader reads a configuration again and again, and remembers what was set
// besides.
type Loader struct {
	path  string
	texts map[string][]byte // of the ini files as they were last loaded
	sets  []pair            // since then
}

// NewLoader returns a Loader of pgbouncer.ini.
func NewLoader(path string) *Loader { return &Loader{path: path} }

// Load is like the function of that name. What was set besides the file is
// forgotten. After an error all is as before.
func (l *Loader) Load() (Config, []Warning, error) {
	f := newFile()
	if err := f.load(l.path, nil); err != nil {
		return Config{}, nil, err
	}
	l.texts, l.sets = f.texts, nil
	return f.Config, f.warnings, nil
}

// Set returns the configuration with one key of [pgbouncer] changed, until the
// next Load. The ini files are not read again, those that they name are.
func (l *Loader) Set(key, value string) (Config, []Warning, error) {
	f := newFile()
	f.texts, f.fresh = l.texts, false
	sets := append(slices.Clone(l.sets), pair{key, value})
	if err := f.load(l.path, sets); err != nil {
		return Config{}, nil, err
	}
	l.sets = sets
	return f.Config, f.warnings, nil
}

// Unset takes the last Set back.
func (l *Loader) Unset() {
	if n := len(l.sets); n > 0 {
		l.sets = l.sets[:n-1]
	}
}

// load reads the files; sets go before them.
func (f *file) load(path string, sets []pair) error {
	if err := parseINI(path, f); err != nil {
		return err
	}
	for _, s := range sets {
		f.given[s.key] = s.value
		w, err := apply(line{file: "SET"}, "pgbouncer", settings, f, s.key, s.value)
		if err != nil {
			return err
		}
		if w != nil {
			f.warnings = append(f.warnings, *w)
		}
	}
	if err := f.finish(path); err != nil {
		return err
	}
	if err := f.loadHBA(); err != nil {
		return err
	}
	if f.AuthFile == "" {
		return nil
	}
	users, err := LoadUsers(f.AuthFile)
	if err != nil {
		return err
	}
	f.Users = users
	return f.checkUsers()
}

// read implements handler.
func (f *file) read(path string) ([]byte, error) {
	if text, ok := f.texts[path]; ok && !f.fresh {
		return text, nil
	}
	text, err := readFile(path)
	if err == nil {
		f.texts[path] = text
	}
	return text, err
}

// fixed are the keys of [pgbouncer] that need a restart: those of PgBouncer
// (CF_NO_RELOAD in its main.c), and ours.
var fixed = []string{
	"control_socket", "disable_pqexec", "job_name", "listen_addr", "listen_backlog", "listen_port", "metrics_listen", "pidfile", "pkt_buf", "resolv_conf",
	"service_name", "so_reuseport", "tcp_defer_accept", "tcp_socket_buffer", "track_extra_parameters", "trusted_balancers", "unix_socket_dir",
	"unix_socket_group", "unix_socket_mode", "user",
}

// Changeable reports whether a key of [pgbouncer] takes effect at run time.
func Changeable(key string) bool { return !slices.Contains(fixed, key) }
