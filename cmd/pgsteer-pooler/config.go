package main

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"syscall"

	"github.com/pgsteer/pgsteer/pkg/config/bouncer"
	"github.com/pgsteer/pgsteer/pkg/pgwire"
	"github.com/pgsteer/pgsteer/pkg/pooler"
)

// poolerConfig turns PgBouncer's configuration into the pooler's.
func poolerConfig(f *bouncer.Config) (c pooler.Config, err error) {
	c = pooler.DefaultConfig()
	for _, host := range f.ListenAddr {
		if host == "*" {
			host = ""
		}
		c.Listen = append(c.Listen, net.JoinHostPort(host, strconv.Itoa(f.ListenPort)))
	}
	c.UnixSocket = pooler.UnixSocket{
		Dir: f.UnixSocketDir, Port: uint16(f.ListenPort), Mode: os.FileMode(f.UnixSocketMode), Group: f.UnixSocketGroup,
		// Who does not name it may not even know of it.
		Optional: !f.UnixSocketGiven && len(f.ListenAddr) > 0,
	}
	c.Backlog = f.ListenBacklog
	c.ReusePort = f.ReusePort
	c.TrustedBalancers = f.TrustedBalancers
	c.ControlSocket = controlSocket(f.ControlSocket, f.ListenPort)
	c.AuthMethod = map[bouncer.AuthType]pgwire.AuthMethod{
		bouncer.AuthSCRAM: pgwire.AuthSCRAM,
		bouncer.AuthMD5:   pgwire.AuthMD5,
		bouncer.AuthTrust: pgwire.AuthTrust,
		bouncer.AuthPlain: pgwire.AuthPlain,
	}[f.AuthType]
	c.AuthType = map[bouncer.AuthType]pooler.AuthType{
		bouncer.AuthAny:  pooler.AuthAny,
		bouncer.AuthCert: pooler.AuthCert,
		bouncer.AuthPeer: pooler.AuthPeer,
		bouncer.AuthHBA:  pooler.AuthHBA,
	}[f.AuthType]
	c.HBA = f.HBA
	c.AuthUser, c.AuthQuery, c.AuthDBName = f.AuthUser, f.AuthQuery, f.AuthDBName
	if c.ClientTLS, err = tlsSide(&f.ClientTLS); err != nil {
		return c, err
	}
	if c.ServerTLS, err = tlsSide(&f.ServerTLS); err != nil {
		return c, err
	}
	c.MaxClients = f.MaxClientConn
	c.PoolSize = f.DefaultPoolSize
	if c.PoolMode, err = poolMode(f.PoolMode); err != nil {
		return c, err
	}
	c.ServerResetQuery, c.ServerResetQueryAlways = f.ServerResetQuery, f.ServerResetQueryAlways
	c.UserSettings = make(map[string]pooler.User, len(f.UserSettings))
	for i := range f.UserSettings {
		u := &f.UserSettings[i]
		if c.UserSettings[u.Name], err = userSettings(u); err != nil {
			return c, err
		}
	}
	c.MinPoolSize = f.MinPoolSize
	c.ReservePoolSize, c.ReservePoolTimeout = f.ReservePoolSize, f.ReservePoolTimeout
	c.MaxDBConnections, c.MaxDBClientConnections = f.MaxDBConnections, f.MaxDBClientConnections
	c.MaxUserConnections, c.MaxUserClientConnections = f.MaxUserConnections, f.MaxUserClientConnections
	c.DNSMaxTTL, c.DNSNotFoundTTL = f.DNSMaxTTL, f.DNSNotFoundTTL
	c.ServerFastClose = f.ServerFastClose
	c.ServerRoundRobin = f.ServerRoundRobin
	c.ServerCheckQuery, c.ServerCheckDelay = f.ServerCheckQuery, f.ServerCheckDelay
	c.DisablePQExec, c.MaxPacketSize = f.DisablePQExec, f.MaxPacketSize
	c.Timeouts = pooler.Timeouts{
		Query: f.QueryTimeout, IdleTransaction: f.IdleTransactionTimeout,
		Transaction: f.TransactionTimeout, ClientIdle: f.ClientIdleTimeout,
	}
	c.QueryWaitNotify = f.QueryWaitNotify
	c.PoolIdleTimeout, c.AutoDBIdleTimeout = f.PoolIdleTimeout, f.AutoDBIdleTimeout
	c.TCP = pooler.TCPOptions{
		NoKeepAlive: !f.TCPKeepAlive, KeepIdle: f.TCPKeepIdle, KeepInterval: f.TCPKeepInterval, KeepCount: f.TCPKeepCount,
		UserTimeout: f.TCPUserTimeout, DeferAccept: f.TCPDeferAccept, Buffer: f.TCPSocketBuffer,
	}
	c.LogStats, c.LoginNotice = f.LogStats, f.LoginNotifyMessage
	c.PeerID = f.PeerID
	for _, p := range f.Peers {
		c.Peers = append(c.Peers, pooler.Peer{ID: p.ID, Host: p.Host, Port: uint16(p.Port), PoolSize: p.PoolSize})
	}
	c.MaxPrepared = f.MaxPreparedStatements
	c.IgnoreStartup = f.IgnoreStartupParameters
	c.ClientLoginTimeout = f.ClientLoginTimeout
	c.QueryWaitTimeout = f.QueryWaitTimeout
	c.ServerConnectTimeout = f.ServerConnectTimeout
	c.ServerLoginRetry = f.ServerLoginRetry
	c.ServerLifetime = f.ServerLifetime
	c.ServerIdleTimeout = f.ServerIdleTimeout
	c.CancelWaitTimeout = f.CancelWaitTimeout
	c.SuspendTimeout = f.SuspendTimeout
	c.StatsPeriod = f.StatsPeriod
	c.LeakGuard = map[string]pooler.Guard{
		"clean": pooler.GuardClean, "count": pooler.GuardCount, "refuse": pooler.GuardRefuse, "off": pooler.GuardOff,
	}[f.LeakGuard]
	c.AdminUsers, c.StatsUsers = f.AdminUsers, f.StatsUsers
	c.AddHost = f.ApplicationNameAddHost
	c.Version = version()
	for _, s := range f.Settings {
		c.Settings = append(c.Settings, pooler.Setting{Name: s.Key, Value: s.Value, Default: s.Default, Fixed: !bouncer.Changeable(s.Key)})
	}
	c.LogConnections = f.LogConnections
	c.LogDisconnections = f.LogDisconnections
	c.LogPoolerErrors = f.LogPoolerErrors

	c.Users = make(map[string]pgwire.Secret, len(f.Users))
	// Poolers that have the same user list make up the same salts for users
	// that do not exist, whichever of them a client reaches.
	seed := sha256.New()
	for _, u := range f.Users {
		secret, err := pgwire.ParseSecret(u.Secret)
		if err != nil {
			return c, fmt.Errorf("%s: user %q: %w", f.AuthFile, u.Name, err)
		}
		c.Users[u.Name] = secret
		fmt.Fprintf(seed, "%q %q\n", u.Name, u.Secret)
	}
	c.AuthSeed = seed.Sum(nil)

	c.Databases = make(map[string]pooler.Database, len(f.Databases))
	for _, d := range f.Databases {
		if c.Databases[d.Name], err = database(&d); err != nil {
			return c, err
		}
	}
	if f.Fallback != nil {
		d, err := database(f.Fallback)
		if err != nil {
			return c, err
		}
		c.Fallback = &d
	}
	return c, nil
}

func tlsSide(t *bouncer.TLS) (out pooler.TLS, err error) {
	out = pooler.TLS{
		KeyFile: t.KeyFile, CertFile: t.CertFile, CAFile: t.CAFile,
		MinVersion: t.MinVersion, MaxVersion: t.MaxVersion, Ciphers: t.Ciphers, Curves: t.Curves,
	}
	if t.SSLMode == "" { // not from a file
		return out, nil
	}
	out.Mode, err = pooler.ParseTLSMode(t.SSLMode)
	return out, err
}

// poolMode turns PgBouncer's word for a pool mode, or "", into the pooler's.
func poolMode(word string) (pooler.PoolMode, error) {
	if word == "" {
		return pooler.PoolInherit, nil
	}
	return pooler.ParsePoolMode(word)
}

func userSettings(u *bouncer.UserSetting) (out pooler.User, err error) {
	out = pooler.User{
		PoolSize: u.PoolSize, ReservePoolSize: u.ReservePoolSize,
		MaxConnections: u.MaxConnections, MaxClientConnections: u.MaxClientConnections,
		QueryWaitTimeout: u.QueryWaitTimeout,
		Timeouts: pooler.Timeouts{
			Query: u.QueryTimeout, IdleTransaction: u.IdleTransactionTimeout,
			Transaction: u.TransactionTimeout, ClientIdle: u.ClientIdleTimeout,
		},
	}
	out.PoolMode, err = poolMode(u.PoolMode)
	return out, err
}

func database(d *bouncer.Database) (out pooler.Database, err error) {
	out = pooler.Database{
		Name: d.Name, Host: d.Host, Port: uint16(d.Port), DBName: d.DBName, User: d.User, PoolSize: d.PoolSize,
		MinPoolSize: d.MinPoolSize, ReservePoolSize: d.ReservePoolSize,
		MaxConnections: d.MaxConnections, MaxClientConnections: d.MaxClientConnections,
		ServerLifetime: d.ServerLifetime, QueryWaitTimeout: d.QueryWaitTimeout,
		AuthUser: d.AuthUser, AuthQuery: d.AuthQuery, AuthDBName: d.AuthDBName,
	}
	for _, p := range []pgwire.Param{
		{Name: "client_encoding", Value: d.ClientEncoding}, {Name: "datestyle", Value: d.DateStyle},
		{Name: "timezone", Value: d.TimeZone}, {Name: "application_name", Value: d.ApplicationName},
	} {
		if p.Value != "" {
			out.Params = append(out.Params, p)
		}
	}
	if d.Password != "" {
		out.Secret = pgwire.PlainSecret(d.Password)
	}
	if d.LoadBalanceHosts == "disable" {
		out.LoadBalance = pooler.LoadBalanceDisable
	}
	if d.TargetSessionAttrs != "" {
		if out.Target, err = pooler.ParseTargetSession(d.TargetSessionAttrs); err != nil {
			return out, err
		}
	}
	out.PoolMode, err = poolMode(d.PoolMode)
	return out, err
}

const (
	// spareFiles are descriptors beside those of clients and servers: the
	// event loop's, listeners, cancel requests, the console's sessions, clients
	// above the limit that are being told so, clients that took their leave and
	// are to close first (twice 512 at the most).
	spareFiles = 1536
)

// setLimits sets the process's limits before it takes any connection.
func setLimits(c *pooler.Config, log *slog.Logger) error {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryFor(cgroupMemory("/proc/self/cgroup", "/sys/fs/cgroup")))
	}
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("reading limit of open files: %w", err)
	}
	files.Cur = files.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("raising limit of open files to %d: %w", files.Max, err)
	}
	servers := 0
	for _, d := range c.Databases {
		servers += d.PoolSize
	}
	if need := uint64(c.MaxClients + spareFiles); files.Max < need {
		return fmt.Errorf("at most %d open files are allowed, max_client_conn = %d needs %d: raise the limit (LimitNOFILE) or lower max_client_conn",
			files.Max, c.MaxClients, need)
	}
	// More users mean more pools: how many cannot be known, so this is said and
	// not refused.
	if want := uint64(c.MaxClients + servers + spareFiles); files.Max < want {
		log.Warn("limit of open files may be too low", "limit", files.Max, "clients", c.MaxClients, "servers_per_user", servers, "want", want)
	}
	return nil
}
