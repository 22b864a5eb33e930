package pooler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
	"github.com/pgsteer/pgsteer/pkg/pooler/hba"
)

// Config is what a Pooler is to do. DefaultConfig returns one with the values
// of PgBouncer 1.25 where it has them.
type Config struct {
	// Listen are the addresses to listen at, host:port each.
	Listen []string
	// Sockets are listening sockets that are there already. Those at an address of
	// Listen are used, and closed at the end; the others are the caller's.
	Sockets []*net.TCPListener
	// UnixSocket is where to listen besides.
	UnixSocket UnixSocket
	// Backlog is the length of the kernel's queue of connections not yet
	// accepted. 0 means the system's (net.core.somaxconn).
	Backlog int
	// ReusePort sets SO_REUSEPORT, so that several processes can share a port.
	ReusePort bool
	// ControlSocket is the path of the Unix socket at which another process may
	// take over from this one. Empty: none can.
	ControlSocket string
	// TakeOver has Open take over from the process at ControlSocket, if there is
	// one.
	TakeOver bool
	TCP      TCPOptions
	// TrustedBalancers are the peers that are believed when the SYN of a
	// connection names another address as its client's. Empty: nobody.
	TrustedBalancers []netip.Prefix

	// Databases by the name that clients use. Fallback, if not nil, is for all
	// other names; its DBName is replaced by the client's.
	Databases map[string]Database
	Fallback  *Database

	// AuthType is how clients prove who they are, AuthMethod by what password
	// exchange if it is AuthPassword, HBA are the rules for AuthHBA. Users are
	// whom there is.
	AuthType   AuthType
	AuthMethod pgwire.AuthMethod
	HBA        hba.Rules
	// AuthUser, AuthQuery and AuthDBName are for databases without their own:
	// as whom, how and in which database to ask for users who are not in Users.
	// Nobody is asked if AuthUser is empty.
	AuthUser, AuthQuery, AuthDBName string
	Users                           map[string]pgwire.Secret

	// ClientTLS is about connections from clients, ServerTLS about those to
	// servers. None of it concerns Unix sockets.
	ClientTLS, ServerTLS TLS

	// AuthSeed is the secret behind the made-up answers to users who do not
	// exist, see pgwire.NewAuthenticator. Empty: a random one.
	AuthSeed []byte

	// MaxClients bounds client connections, including those that are logging
	// in.
	MaxClients int
	// PoolSize bounds the server connections of a pool (a database and user)
	// whose Database does not say otherwise.
	PoolSize int
	// PoolMode is for databases and users that do not say otherwise.
	// PoolInherit means PoolTransaction.
	PoolMode PoolMode
	// MinPoolSize is how many servers a pool keeps open, while it has clients or
	// its database has a user of its own.
	MinPoolSize int
	// ReservePoolSize is how many servers above its size a pool may have when a
	// client has waited for ReservePoolTimeout; with 0 for that, none.
	ReservePoolSize    int
	ReservePoolTimeout time.Duration
	// MaxDBConnections and MaxDBClientConnections bound the servers and the
	// clients of a database, over all its users, MaxUserConnections and
	// MaxUserClientConnections those of a user, over all databases. 0: any
	// number.
	MaxDBConnections, MaxUserConnections             int
	MaxDBClientConnections, MaxUserClientConnections int
	// UserSettings are what is special about users, by name.
	UserSettings map[string]User
	// Peers are the poolers beside this one, in their order; PeerID is this one's
	// number among them, 0 for none.
	Peers  []Peer
	PeerID int
	// LogStats has the averages logged at the end of each StatsPeriod.
	LogStats bool
	// LoginNotice is told to each client that logs in. Empty: nothing.
	LoginNotice string
	// ServerResetQuery cleans a server when its client has left it in session
	// pooling, or always. Empty: none.
	ServerResetQuery       string
	ServerResetQueryAlways bool
	// MaxPrepared bounds the prepared statements on a server connection. 0
	// switches the support for them off: names are passed on as they are.
	MaxPrepared int
	// IgnoreStartup are startup parameters to accept and ignore. Others that
	// are not tracked are refused.
	IgnoreStartup []string

	Timeouts Timeouts
	// QueryWaitNotify is after what time a client is told that it waits; 0:
	// never.
	QueryWaitNotify time.Duration
	// ServerCheckQuery checks a server that has not been used for
	// ServerCheckDelay before its next use. Empty: none. CheckEmpty is the empty
	// query.
	ServerCheckQuery string
	ServerCheckDelay time.Duration
	// PoolIdleTimeout is after what time a pool without clients and servers is
	// forgotten, with its statistics, AutoDBIdleTimeout the same for databases
	// found by Fallback. 0: never.
	PoolIdleTimeout, AutoDBIdleTimeout time.Duration
	// DNSMaxTTL is for how long the addresses of a host are believed,
	// DNSNotFoundTTL for how long that it has none.
	DNSMaxTTL, DNSNotFoundTTL time.Duration
	// ServerFastClose closes a server that is to be replaced though a session
	// goes on there, if no transaction does.
	ServerFastClose bool
	// ServerRoundRobin uses the servers of a pool in turn, instead of the one
	// that was used last first.
	ServerRoundRobin bool
	// DisablePQExec refuses simple queries.
	DisablePQExec bool
	// MaxPacketSize bounds clients' messages, in bytes. 0: PostgreSQL's bounds
	// alone.
	MaxPacketSize int

	ClientLoginTimeout   time.Duration // from connect to welcome; 0: none
	QueryWaitTimeout     time.Duration // for a server; 0: none
	ServerConnectTimeout time.Duration // for connecting and logging in
	ServerLoginRetry     time.Duration // between logins to a server that refuses
	ServerLifetime       time.Duration // 0: servers are closed after one use
	ServerIdleTimeout    time.Duration // 0: none
	CancelWaitTimeout    time.Duration // for delivering a cancel request, and for settling a server
	SuspendTimeout       time.Duration // for buffers to be emptied at SUSPEND; 0: none
	ShutdownTimeout      time.Duration // for transactions to end when Run is cancelled

	// LeakGuard is what becomes of what a client leaves behind in a server's
	// session in transaction or statement pooling.
	LeakGuard Guard

	// StatsPeriod is the time over which the console's averages are taken.
	StatsPeriod time.Duration

	// AdminUsers may do everything in the console, StatsUsers may look. Both
	// must be among Users.
	AdminUsers []string
	StatsUsers []string
	// Version is what the console says that it is.
	Version string
	// Settings are shown by the console, in their order.
	Settings []Setting

	// Reread gets the configuration anew for the console's RELOAD, Change gets
	// it with one setting changed for its SET. Nil: these commands fail.
	Reread func() (Config, error)
	Change func(key, value string) (Config, error)

	// AddHost puts the client's address behind the application name that it
	// gives at login, so that pg_stat_activity shows it.
	AddHost bool

	LogConnections    bool // log each login of clients and servers
	LogDisconnections bool // log each end of a connection
	LogPoolerErrors   bool // log each error sent to a client

	parting time.Duration // 0: partingTimeout
	// lookup finds the addresses of a host. Nil: the system's resolver.
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Setting is a line of the configuration, for SHOW CONFIG.
type Setting struct {
	Name, Value, Default string
	Fixed                bool // a change needs a restart
}

// Database says where a database is.
type Database struct {
	Name string // as clients call it
	// Host is a name, an address, or the directory of a Unix socket, or several
	// of them, separated by commas.
	Host string
	// LoadBalance is for several hosts, as is Target.
	LoadBalance LoadBalance
	Target      TargetSession
	Port        uint16
	DBName      string // on the server; Name if empty
	// User, if not empty, is the user for all server connections; else each
	// client's own. Secret proves it; if it is the zero value, the one in
	// Config.Users does, or the keys learned from the client's own login.
	User     string
	Secret   pgwire.Secret
	PoolSize int // 0: Config.PoolSize
	PoolMode PoolMode
	// These are 0 for the Config's, negative for none.
	MinPoolSize, ReservePoolSize         int
	MaxConnections, MaxClientConnections int
	ServerLifetime                       time.Duration // 0: the Config's
	QueryWaitTimeout                     time.Duration // 0: the Config's, negative: none
	AuthUser, AuthQuery, AuthDBName      string        // empty: the Config's

	// Params are run-time parameters that servers are logged in with. Where they
	// are tracked, they hold for clients that do not name them.
	Params []pgwire.Param

	auto bool // made from Config.Fallback
}

// DefaultConfig returns PgBouncer's defaults. Its default limits of 100 clients
// and 20 servers are replaced by those of the stack that this pooler is for.
func DefaultConfig() Config {
	return Config{
		MaxClients:           4000,
		PoolSize:             70,
		PoolMode:             PoolTransaction,
		ReservePoolTimeout:   5 * time.Second,
		ServerResetQuery:     "DISCARD ALL",
		MaxPrepared:          200,
		ClientLoginTimeout:   60 * time.Second,
		QueryWaitTimeout:     120 * time.Second,
		ServerConnectTimeout: 15 * time.Second,
		ServerLoginRetry:     15 * time.Second,
		ServerLifetime:       time.Hour,
		ServerIdleTimeout:    10 * time.Minute,
		CancelWaitTimeout:    10 * time.Second,
		SuspendTimeout:       10 * time.Second,
		ShutdownTimeout:      30 * time.Second,
		StatsPeriod:          time.Minute,
		QueryWaitNotify:      5 * time.Second,
		ServerCheckQuery:     CheckEmpty,
		ServerCheckDelay:     30 * time.Second,
		AutoDBIdleTimeout:    time.Hour,
		DNSMaxTTL:            15 * time.Second,
		DNSNotFoundTTL:       15 * time.Second,
		LogConnections:       true,
		LogDisconnections:    true,
		LogPoolerErrors:      true,
	}
}

// validate refuses what the pooler cannot work with.
func (c *Config) validate() error {
	switch {
	case len(c.Listen) == 0 && c.UnixSocket.Dir == "":
		return errors.New("no address to listen at")
	case len(c.Databases) == 0 && c.Fallback == nil:
		return errors.New("no database")
	case c.MaxClients < 1:
		return fmt.Errorf("max clients must be positive, not %d", c.MaxClients)
	case c.PoolSize < 1:
		return fmt.Errorf("pool size must be positive, not %d", c.PoolSize)
	case c.MinPoolSize < 0, c.ReservePoolSize < 0, c.MaxDBConnections < 0, c.MaxUserConnections < 0,
		c.MaxDBClientConnections < 0, c.MaxUserClientConnections < 0:
		return errors.New("a limit of connections is negative")
	case c.MaxPrepared < 0:
		return fmt.Errorf("max prepared statements must not be negative, not %d", c.MaxPrepared)
	case c.ServerConnectTimeout <= 0:
		return errors.New("server connect timeout must be positive")
	case c.CancelWaitTimeout <= 0:
		return errors.New("cancel wait timeout must be positive")
	case c.StatsPeriod <= 0:
		return errors.New("statistics period must be positive")
	case c.ServerLoginRetry < 0, c.QueryWaitTimeout < 0, c.ClientLoginTimeout < 0,
		c.ReservePoolTimeout < 0, c.ServerLifetime < 0, c.ServerIdleTimeout < 0, c.ShutdownTimeout < 0:
		return errors.New("a timeout is negative")
	}
	if c.AuthType == AuthCert && (c.ClientTLS.Mode != TLSVerifyFull || c.ClientTLS.CAFile == "") {
		return errors.New("auth_type=cert requires client_tls_sslmode=verify-full and client_tls_ca_file")
	}
	for name, d := range c.Databases {
		if err := d.validate(); err != nil {
			return fmt.Errorf("checking database %q: %w", name, err)
		}
	}
	if c.Fallback != nil {
		if err := c.Fallback.validate(); err != nil {
			return fmt.Errorf("checking fallback database: %w", err)
		}
	}
	return nil
}

// inherit gives a database the Config's settings where it has none of its own.
func (c *Config) inherit(d *Database) {
	d.PoolSize = cmp.Or(d.PoolSize, c.PoolSize)
	d.PoolMode = cmp.Or(d.PoolMode, c.PoolMode)
	d.MinPoolSize = cmp.Or(d.MinPoolSize, c.MinPoolSize)
	d.ReservePoolSize = cmp.Or(d.ReservePoolSize, c.ReservePoolSize)
	d.MaxConnections = cmp.Or(d.MaxConnections, c.MaxDBConnections)
	d.AuthUser = cmp.Or(d.AuthUser, c.AuthUser)
	d.AuthQuery = cmp.Or(d.AuthQuery, c.AuthQuery, DefaultAuthQuery)
	d.AuthDBName = cmp.Or(d.AuthDBName, c.AuthDBName)
	d.MaxClientConnections = cmp.Or(d.MaxClientConnections, c.MaxDBClientConnections)
}

func (d *Database) validate() error {
	switch {
	case d.Host == "":
		return errors.New("no host")
	case d.Port == 0:
		return errors.New("no port")
	case d.PoolSize < 0:
		return fmt.Errorf("pool size must not be negative, not %d", d.PoolSize)
	}
	return nil
}
