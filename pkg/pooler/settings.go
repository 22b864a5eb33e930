package pooler

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// settings are a configuration and what is made of it. They never change:
// Reload puts others in their place. The goroutines get them by Pooler.conf, the
// machine has its limits and databases from them.
type settings struct {
	Config
	limits limits
	auth   *pgwire.Authenticator
	ignore map[string]bool // startup parameters, in lower case

	clientTLS *clientTLS // nil: none
	serverTLS *serverTLS // nil: none
}

// newSettings works a configuration out. What is costly to make is taken from
// old, if it would be the same.
func newSettings(c Config, old *settings) (*settings, error) {
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("checking configuration of pooler: %w", err)
	}
	s := &settings{Config: c, limits: limitsOf(&c), ignore: make(map[string]bool)}
	for _, name := range c.IgnoreStartup {
		s.ignore[strings.ToLower(name)] = true
	}
	var err error
	if s.clientTLS, err = c.ClientTLS.forClients(); err != nil {
		return nil, fmt.Errorf("preparing TLS to clients: %w", err)
	}
	if s.serverTLS, err = c.ServerTLS.forServers(); err != nil {
		return nil, fmt.Errorf("preparing TLS to servers: %w", err)
	}
	// The keys that an authenticator has derived cost milliseconds each.
	if old != nil && old.AuthMethod == c.AuthMethod && reflect.DeepEqual(old.Users, c.Users) && reflect.DeepEqual(old.AuthSeed, c.AuthSeed) {
		s.auth = old.auth
	} else {
		s.auth = pgwire.NewAuthenticator(c.AuthMethod, s.lookup, c.AuthSeed)
	}
	return s, nil
}

func (s *settings) lookup(user string) (pgwire.Secret, bool) {
	secret, ok := s.Users[user]
	return secret, ok
}

// database finds the settings for a database by the name that clients use, or
// nil.
func (s *settings) database(name string) *Database {
	d, ok := s.Databases[name]
	if !ok {
		if s.Fallback == nil {
			return nil
		}
		d = *s.Fallback
		d.DBName, d.auto = "", true
	}
	d.Name = name
	if d.DBName == "" {
		d.DBName = name
	}
	s.inherit(&d)
	return &d
}

// conf returns the settings in force.
func (p *Pooler) conf() *settings { return p.inForce.Load() }
