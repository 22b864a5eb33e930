// Package bouncer reads PgBouncer's configuration: pgbouncer.ini and
// userlist.txt, in PgBouncer's own dialect and with the defaults of PgBouncer
// 1.25, so that a file moves over as it is.
//
// It is stricter than PgBouncer in three ways. A key that does not exist is
// refused with the name that was probably meant. A key that exists and that we
// do not honour is refused as well, unless its value says what we do anyway. A
// key that appears twice is refused instead of the last one winning.
//
// Some keys of [pgbouncer] are ours alone, so a file that has one is refused by
// PgBouncer: trusted_balancers, addresses and networks (192.168.1.100,
// 2001:db8::/64) of the balancers that are believed when they say whom a
// connection comes from, empty by default; and control_socket, the path of the
// Unix socket by which a new process takes over from an old one.
package bouncer

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pooler/hba"
)

// AuthType is how clients prove who they are.
type AuthType string

// The authentication types that are supported.
const (
	AuthTrust AuthType = "trust"
	AuthMD5   AuthType = "md5"
	AuthSCRAM AuthType = "scram-sha-256"
	AuthPlain AuthType = "plain"
	AuthAny   AuthType = "any"
	AuthCert  AuthType = "cert"
	AuthPeer  AuthType = "peer"
	AuthHBA   AuthType = "hba"
)

// Config is a validated configuration. All durations are zero for "off" unless
// said otherwise.
type Config struct {
	// ListenAddr are host names and IP addresses to listen on; "*" stands for
	// all addresses of the host. Empty only with a UnixSocketDir.
	ListenAddr    []string
	ListenPort    int // 1 to 65535
	ListenBacklog int // at least 1
	ReusePort     bool

	// ControlSocket is the path of the Unix socket at which another process may
	// take over; empty for the default.
	ControlSocket string

	UnixSocketDir   string // "" is none
	UnixSocketGiven bool   // the file says so; else it is PgBouncer's default
	UnixSocketGroup string
	UnixSocketMode  uint32

	// TrustedBalancers are whose word about a connection's client is taken.
	TrustedBalancers []netip.Prefix

	ClientTLS, ServerTLS TLS

	AuthType AuthType
	AuthFile string
	// AuthUser, AuthQuery and AuthDBName are for databases without their own.
	AuthUser, AuthQuery, AuthDBName string
	// HBAFile and IdentFile are read into HBA.
	HBAFile, IdentFile string
	HBA                hba.Rules
	Users              []User // what AuthFile holds, in its order

	AdminUsers []string // who may do everything in the console
	StatsUsers []string // who may look

	PoolMode     string        // session, transaction or statement
	UserSettings []UserSetting // the entries of [users], in the order of the file

	ServerResetQuery       string // "" is none
	ServerResetQueryAlways bool

	DefaultPoolSize int // servers per database and user, at least 1
	MaxClientConn   int // at least 1

	MinPoolSize        int
	ReservePoolSize    int
	ReservePoolTimeout time.Duration
	// Limits of connections to servers and of clients'; 0 is none.
	MaxDBConnections, MaxDBClientConnections     int
	MaxUserConnections, MaxUserClientConnections int

	MaxPreparedStatements int // per server; 0 turns the tracking off

	ServerRoundRobin bool
	ServerCheckQuery string // "" is none, "<empty>" the empty one
	ServerCheckDelay time.Duration
	DisablePQExec    bool
	MaxPacketSize    int

	QueryTimeout           time.Duration
	IdleTransactionTimeout time.Duration
	TransactionTimeout     time.Duration
	ClientIdleTimeout      time.Duration
	QueryWaitNotify        time.Duration
	PoolIdleTimeout        time.Duration
	AutoDBIdleTimeout      time.Duration

	DNSMaxTTL, DNSNotFoundTTL time.Duration
	ServerFastClose           bool

	TCPDeferAccept  bool
	TCPKeepAlive    bool
	TCPKeepCount    int // this and the following: 0 is for the default
	TCPKeepIdle     time.Duration
	TCPKeepInterval time.Duration
	TCPUserTimeout  time.Duration
	TCPSocketBuffer int

	ServerConnectTimeout time.Duration // never 0
	ServerLoginRetry     time.Duration // wait after a failed login
	ServerLifetime       time.Duration // 0: a server is used once
	ServerIdleTimeout    time.Duration
	QueryWaitTimeout     time.Duration
	ClientLoginTimeout   time.Duration
	CancelWaitTimeout    time.Duration // never 0
	SuspendTimeout       time.Duration

	// MetricsListen is the address and port at which Prometheus is served, "" for
	// nowhere.
	MetricsListen string
	// LeakGuard is clean, count, refuse or off: what becomes of session state in
	// transaction pooling.
	LeakGuard string

	IgnoreStartupParameters []string // names in lower case
	ApplicationNameAddHost  bool

	StatsPeriod time.Duration // never 0

	LogConnections    bool
	LogDisconnections bool
	LogPoolerErrors   bool

	LogStats           bool
	LogFile            string // "": standard error alone
	Syslog             bool
	SyslogFacility     string
	SyslogIdent        string
	Verbose            int
	PIDFile            string // "" is none
	RunUser            string // whom to become; "": nobody else
	LoginNotifyMessage string // "" is none

	PeerID int    // ours among Peers; 0 is none
	Peers  []Peer // in the order of the file

	Databases []Database // in the order of the file; at least one, or a Fallback
	Fallback  *Database  // the entry "*": for every name not in Databases

	// Settings are the keys of [pgbouncer] that say something about this
	// pooler, sorted: those that it honours and those with a fixed value.
	Settings []Setting
}

// Setting is a key and its value, as SHOW CONFIG has them.
type Setting struct{ Key, Value, Default string }

// Database is an entry of [databases]: a name that clients ask for and the
// server behind it.
type Database struct {
	Name string // as clients call it; "*" for the fallback
	// Host is a name, IP address, or directory of a unix socket, which begins
	// with /, or several of them separated by commas.
	Host     string
	Port     int
	DBName   string // as the server calls it; empty for what the client said
	User     string // who logs in to the server; empty for the client's user
	Password string // of User; only with User
	PoolSize int    // the database's own or DefaultPoolSize
	PoolMode string // "" for the Config's
	// LoadBalanceHosts is round-robin, disable, or "" for the first;
	// TargetSessionAttrs one of libpq's words, or "" for any.
	LoadBalanceHosts, TargetSessionAttrs string
	// MinPoolSize and ReservePoolSize are 0 for the Config's, -1 for none.
	MinPoolSize, ReservePoolSize int
	// Limits; 0 is for the Config's.
	MaxConnections, MaxClientConnections int
	ServerLifetime                       time.Duration // 0 is for the Config's
	QueryWaitTimeout                     time.Duration // 0 is for the Config's, -1 for none
	AuthUser, AuthQuery, AuthDBName      string        // "" for the Config's

	// What the server is asked for at each login; "" for its own.
	ApplicationName, ClientEncoding, DateStyle, TimeZone string
}

// Peer is an entry of [peers]: another pooler that a cancel request may be meant
// for.
type Peer struct {
	ID       int // its peer_id
	Host     string
	Port     int
	PoolSize int // 0 for DefaultPoolSize
}

// UserSetting is an entry of [users]: what is special about a user.
type UserSetting struct {
	Name     string
	PoolMode string // "" for the database's
	PoolSize int    // 0 for the database's
	// ReservePoolSize is 0 for the database's, -1 for none.
	ReservePoolSize int
	// Limits; 0 is for those of [pgbouncer].
	MaxConnections, MaxClientConnections int
	QueryWaitTimeout                     time.Duration // 0 is for the database's, -1 for none
	// Timeouts; 0 is for those of [pgbouncer].
	QueryTimeout, IdleTransactionTimeout, TransactionTimeout, ClientIdleTimeout time.Duration
}

// User is a line of the user list.
type User struct {
	Name string
	// Secret is a plain password, "md5" and 32 hex digits, or a verifier
	// "SCRAM-SHA-256$…". It may be empty.
	Secret string
}

// Error is what is wrong with a file.
type Error struct {
	File string
	Line int // from 1; 0 when the fault is no single line's
	Msg  string
}

// Error returns "file:line: what is wrong".
func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %s", e.File, e.Msg)
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg)
}

// Warning is something accepted that may not be what was meant.
type Warning Error

// String returns "file:line: what may be wrong".
func (w Warning) String() string { return (*Error)(&w).Error() }

// defaultAuthQuery is PgBouncer's: it finds no password that has expired.
const defaultAuthQuery = "SELECT rolname, CASE WHEN rolvaliduntil < pg_catalog.now() THEN NULL ELSE rolpassword END " +
	"FROM pg_catalog.pg_authid WHERE rolname=$1 AND rolcanlogin"

// defaults returns the defaults of PgBouncer 1.25.
func defaults() Config {
	return Config{
		ListenPort:            6432,
		ListenBacklog:         128,
		UnixSocketDir:         "/tmp",
		UnixSocketMode:        0o777,
		AuthType:              AuthMD5,
		AuthQuery:             defaultAuthQuery,
		ClientTLS:             defaultTLS("disable"),
		ServerTLS:             defaultTLS("prefer"),
		PoolMode:              "session",
		ReservePoolTimeout:    5 * time.Second,
		ServerCheckQuery:      "<empty>",
		ServerCheckDelay:      30 * time.Second,
		MaxPacketSize:         maxInt32,
		QueryWaitNotify:       5 * time.Second,
		DNSMaxTTL:             15 * time.Second,
		DNSNotFoundTTL:        15 * time.Second,
		AutoDBIdleTimeout:     time.Hour,
		TCPKeepAlive:          true,
		ServerResetQuery:      "DISCARD ALL",
		DefaultPoolSize:       20,
		MaxClientConn:         100,
		MaxPreparedStatements: 200,
		ServerConnectTimeout:  15 * time.Second,
		ServerLoginRetry:      15 * time.Second,
		ServerLifetime:        time.Hour,
		ServerIdleTimeout:     10 * time.Minute,
		QueryWaitTimeout:      2 * time.Minute,
		ClientLoginTimeout:    time.Minute,
		CancelWaitTimeout:     10 * time.Second,
		SuspendTimeout:        10 * time.Second,
		StatsPeriod:           time.Minute,
		LeakGuard:             "clean",
		LogStats:              true,
		SyslogFacility:        "daemon",
		SyslogIdent:           "pgbouncer",
		LogConnections:        true,
		LogDisconnections:     true,
		LogPoolerErrors:       true,
	}
}
