package bouncer

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// settings are the keys of [pgbouncer]: all that PgBouncer 1.25 has
// (bouncer_params in its main.c), and ownSettings.
var settings = map[string]rule[file]{
	"listen_addr": supported(func(f *file, value string) error {
		f.ListenAddr = parseList(value)
		return nil
	}),
	"listen_port":             setInt(1, 65535, func(f *file) *int { return &f.ListenPort }),
	"listen_backlog":          setInt(1, maxBacklog, func(f *file) *int { return &f.ListenBacklog }),
	"so_reuseport":            setBool(func(f *file) *bool { return &f.ReusePort }),
	"auth_type":               supported(func(f *file, v string) error { return setAuthType(&f.Config, v) }),
	"auth_file":               setString(func(f *file) *string { return &f.AuthFile }),
	"default_pool_size":       setInt(1, maxPool, func(f *file) *int { return &f.DefaultPoolSize }),
	"max_client_conn":         setInt(1, maxClients, func(f *file) *int { return &f.MaxClientConn }),
	"max_prepared_statements": setInt(0, maxStmts, func(f *file) *int { return &f.MaxPreparedStatements }),
	"cancel_wait_timeout":     setPositive(func(f *file) *time.Duration { return &f.CancelWaitTimeout }),
	"server_connect_timeout":  setPositive(func(f *file) *time.Duration { return &f.ServerConnectTimeout }),
	"suspend_timeout":         setTime(func(f *file) *time.Duration { return &f.SuspendTimeout }),
	"server_login_retry":      setTime(func(f *file) *time.Duration { return &f.ServerLoginRetry }),
	"server_lifetime":         setTime(func(f *file) *time.Duration { return &f.ServerLifetime }),
	"server_idle_timeout":     setTime(func(f *file) *time.Duration { return &f.ServerIdleTimeout }),
	"query_wait_timeout":      setTime(func(f *file) *time.Duration { return &f.QueryWaitTimeout }),
	"client_login_timeout":    setTime(func(f *file) *time.Duration { return &f.ClientLoginTimeout }),
	"log_connections":         setBool(func(f *file) *bool { return &f.LogConnections }),
	"log_disconnections":      setBool(func(f *file) *bool { return &f.LogDisconnections }),
	"log_pooler_errors":       setBool(func(f *file) *bool { return &f.LogPoolerErrors }),
	"ignore_startup_parameters": supported(func(f *file, value string) error {
		f.IgnoreStartupParameters = parseList(strings.ToLower(value))
		return nil
	}),
	"admin_users":               setList(func(f *file) *[]string { return &f.AdminUsers }),
	"stats_users":               setList(func(f *file) *[]string { return &f.StatsUsers }),
	"application_name_add_host": setBool(func(f *file) *bool { return &f.ApplicationNameAddHost }),
	"stats_period": supported(func(f *file, value string) error {
		n, err := parseInt(value, 1, maxStatsPeriod)
		f.StatsPeriod = time.Duration(n) * time.Second
		return err
	}),
	"leak_guard": supported(func(f *file, value string) error {
		f.LeakGuard = strings.ToLower(value)
		if !slices.Contains([]string{"clean", "count", "refuse", "off"}, f.LeakGuard) {
			return fmt.Errorf("want clean, count, refuse or off, not %q", value)
		}
		return nil
	}),
	"control_socket":       supported(setControlSocket),
	"metrics_listen":       supported(setMetricsListen),
	"log_stats":            setBool(func(f *file) *bool { return &f.LogStats }),
	"logfile":              setText(func(f *file) *string { return &f.LogFile }),
	"login_notify_message": setText(func(f *file) *string { return &f.LoginNotifyMessage }),
	"peer_id":              setInt(0, maxPeerID, func(f *file) *int { return &f.PeerID }),
	"pidfile":              setText(func(f *file) *string { return &f.PIDFile }),
	"syslog":               setBool(func(f *file) *bool { return &f.Syslog }),
	"syslog_facility": setWord(func(f *file) *string { return &f.SyslogFacility }, "auth", "authpriv", "daemon",
		"local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7", "user"),
	"syslog_ident": setString(func(f *file) *string { return &f.SyslogIdent }),
	"user":         setText(func(f *file) *string { return &f.RunUser }),
	"verbose":      setInt(0, maxVerbose, func(f *file) *int { return &f.Verbose }),

	"conffile":     moot[file](mootConffile),
	"job_name":     moot[file](mootJobName),
	"pkt_buf":      moot[file](mootBuffers),
	"resolv_conf":  moot[file](mootResolver),
	"sbuf_loopcnt": moot[file](mootBuffers),
	"service_name": moot[file](mootService),

	"unix_socket_dir": supported(func(f *file, value string) error {
		if value != "" && value[0] != '/' && value[0] != '@' {
			return fmt.Errorf("%q is neither an absolute path nor an abstract name", value)
		}
		f.UnixSocketDir, f.UnixSocketGiven = value, true
		return nil
	}),
	"unix_socket_group": setText(func(f *file) *string { return &f.UnixSocketGroup }),
	"unix_socket_mode":  supported(setSocketMode),
	"trusted_balancers": supported(func(f *file, value string) (err error) {
		f.TrustedBalancers, err = parseNetworks(value)
		return err
	}),
	"max_db_client_connections":   setInt(0, maxClients, func(f *file) *int { return &f.MaxDBClientConnections }),
	"max_db_connections":          setInt(0, maxPool, func(f *file) *int { return &f.MaxDBConnections }),
	"max_user_client_connections": setInt(0, maxClients, func(f *file) *int { return &f.MaxUserClientConnections }),
	"max_user_connections":        setInt(0, maxPool, func(f *file) *int { return &f.MaxUserConnections }),
	"min_pool_size":               setInt(0, maxPool, func(f *file) *int { return &f.MinPoolSize }),
	"reserve_pool_size":           setInt(0, maxPool, func(f *file) *int { return &f.ReservePoolSize }),
	"reserve_pool_timeout":        setTime(func(f *file) *time.Duration { return &f.ReservePoolTimeout }),
	"autodb_idle_timeout":         setTime(func(f *file) *time.Duration { return &f.AutoDBIdleTimeout }),
	"client_idle_timeout":         setTime(func(f *file) *time.Duration { return &f.ClientIdleTimeout }),
	"dns_max_ttl":                 setTime(func(f *file) *time.Duration { return &f.DNSMaxTTL }),
	"dns_nxdomain_ttl":            setTime(func(f *file) *time.Duration { return &f.DNSNotFoundTTL }),
	"server_fast_close":           setBool(func(f *file) *bool { return &f.ServerFastClose }),
	"disable_pqexec":              setBool(func(f *file) *bool { return &f.DisablePQExec }),
	"idle_transaction_timeout":    setTime(func(f *file) *time.Duration { return &f.IdleTransactionTimeout }),
	"max_packet_size":             setInt(minPacket, maxInt32, func(f *file) *int { return &f.MaxPacketSize }),
	"pool_idle_timeout":           setTime(func(f *file) *time.Duration { return &f.PoolIdleTimeout }),
	"query_timeout":               setTime(func(f *file) *time.Duration { return &f.QueryTimeout }),
	"query_wait_notify":           setSeconds(func(f *file) *time.Duration { return &f.QueryWaitNotify }),
	"server_check_delay":          setTime(func(f *file) *time.Duration { return &f.ServerCheckDelay }),
	"server_check_query":          setText(func(f *file) *string { return &f.ServerCheckQuery }),
	"server_round_robin":          setBool(func(f *file) *bool { return &f.ServerRoundRobin }),
	"tcp_defer_accept":            setBool(func(f *file) *bool { return &f.TCPDeferAccept }),
	"tcp_keepalive":               setBool(func(f *file) *bool { return &f.TCPKeepAlive }),
	"tcp_keepcnt":                 setInt(0, maxKeepCount, func(f *file) *int { return &f.TCPKeepCount }),
	"tcp_keepidle":                setSeconds(func(f *file) *time.Duration { return &f.TCPKeepIdle }),
	"tcp_keepintvl":               setSeconds(func(f *file) *time.Duration { return &f.TCPKeepInterval }),
	"tcp_socket_buffer":           setInt(0, maxInt32, func(f *file) *int { return &f.TCPSocketBuffer }),
	"tcp_user_timeout":            setMillis(func(f *file) *time.Duration { return &f.TCPUserTimeout }),
	"transaction_timeout":         setTime(func(f *file) *time.Duration { return &f.TransactionTimeout }),
	"pool_mode":                   setPoolMode(func(f *file) *string { return &f.PoolMode }),
	"server_reset_query":          setText(func(f *file) *string { return &f.ServerResetQuery }),
	"server_reset_query_always":   setBool(func(f *file) *bool { return &f.ServerResetQueryAlways }),

	"auth_user":            setText(func(f *file) *string { return &f.AuthUser }),
	"auth_query":           setText(func(f *file) *string { return &f.AuthQuery }),
	"auth_dbname":          setText(func(f *file) *string { return &f.AuthDBName }),
	"auth_hba_file":        setText(func(f *file) *string { return &f.HBAFile }),
	"auth_ident_file":      setText(func(f *file) *string { return &f.IdentFile }),
	"client_tls_sslmode":   tlsMode(client),
	"client_tls_key_file":  tlsFile(client, func(t *TLS) *string { return &t.KeyFile }),
	"client_tls_cert_file": tlsFile(client, func(t *TLS) *string { return &t.CertFile }),
	"client_tls_ca_file":   tlsFile(client, func(t *TLS) *string { return &t.CAFile }),
	"client_tls_protocols": tlsProtocols(client),
	"client_tls_ciphers":   tlsCiphers(client),
	"client_tls13_ciphers": tlsCiphers13(),
	"server_tls_sslmode":   tlsMode(server),
	"server_tls_key_file":  tlsFile(server, func(t *TLS) *string { return &t.KeyFile }),
	"server_tls_cert_file": tlsFile(server, func(t *TLS) *string { return &t.CertFile }),
	"server_tls_ca_file":   tlsFile(server, func(t *TLS) *string { return &t.CAFile }),
	"server_tls_protocols": tlsProtocols(server),
	"server_tls_ciphers":   tlsCiphers(server),
	"server_tls13_ciphers": tlsCiphers13(),
	"client_tls_ecdhcurve": tlsCurve(client),
	"client_tls_dheparams": supported(func(_ *file, value string) error {
		if !slices.Contains([]string{"", "none", "auto", "legacy"}, strings.ToLower(value)) {
			return fmt.Errorf("%q is not one of none, auto and legacy", value)
		}
		return nil
	}),

	"auth_ldap_options":     only[file](""),
	"dns_zone_check_period": off[file](),
	"scram_iterations":      only[file]("4096"),

	// What PostgreSQL reports is tracked, and PgBouncer can track no more.
	"track_extra_parameters": supported(func(*file, string) error { return nil }),
}

// ownSettings are the keys that PgBouncer does not know.
var ownSettings = []string{"control_socket", "leak_guard", "metrics_listen", "trusted_balancers"}

// defaultTexts are the defaults of the settings that are supported, in
// PgBouncer's spelling.
var defaultTexts = map[string]string{
	"unix_socket_dir":             "/tmp",
	"unix_socket_group":           "",
	"unix_socket_mode":            "0777",
	"log_stats":                   "1",
	"logfile":                     "",
	"login_notify_message":        "",
	"peer_id":                     "0",
	"pidfile":                     "",
	"syslog":                      "0",
	"syslog_facility":             "daemon",
	"syslog_ident":                "pgbouncer",
	"user":                        "",
	"verbose":                     "0",
	"admin_users":                 "",
	"autodb_idle_timeout":         "3600",
	"client_idle_timeout":         "0",
	"disable_pqexec":              "0",
	"dns_max_ttl":                 "15",
	"dns_nxdomain_ttl":            "15",
	"server_fast_close":           "0",
	"idle_transaction_timeout":    "0",
	"max_packet_size":             "2147483647",
	"pool_idle_timeout":           "0",
	"query_timeout":               "0",
	"query_wait_notify":           "5",
	"server_check_delay":          "30",
	"server_check_query":          "<empty>",
	"server_round_robin":          "0",
	"tcp_defer_accept":            "0",
	"tcp_keepalive":               "1",
	"tcp_keepcnt":                 "0",
	"tcp_keepidle":                "0",
	"tcp_keepintvl":               "0",
	"tcp_socket_buffer":           "0",
	"tcp_user_timeout":            "0",
	"transaction_timeout":         "0",
	"application_name_add_host":   "0",
	"auth_file":                   "",
	"auth_user":                   "",
	"auth_dbname":                 "",
	"auth_query":                  defaultAuthQuery,
	"auth_hba_file":               "",
	"auth_ident_file":             "",
	"auth_type":                   "md5",
	"cancel_wait_timeout":         "10",
	"client_login_timeout":        "60",
	"client_tls13_ciphers":        "",
	"client_tls_ca_file":          "",
	"client_tls_cert_file":        "",
	"client_tls_ciphers":          "default",
	"client_tls_dheparams":        "auto",
	"client_tls_ecdhcurve":        "auto",
	"client_tls_key_file":         "",
	"client_tls_protocols":        "secure",
	"client_tls_sslmode":          "disable",
	"server_tls13_ciphers":        "",
	"server_tls_ca_file":          "",
	"server_tls_cert_file":        "",
	"server_tls_ciphers":          "default",
	"server_tls_key_file":         "",
	"server_tls_protocols":        "secure",
	"server_tls_sslmode":          "prefer",
	"default_pool_size":           "20",
	"ignore_startup_parameters":   "",
	"listen_addr":                 "",
	"listen_backlog":              "128",
	"listen_port":                 "6432",
	"log_connections":             "1",
	"log_disconnections":          "1",
	"log_pooler_errors":           "1",
	"max_client_conn":             "100",
	"max_prepared_statements":     "200",
	"max_db_client_connections":   "0",
	"max_db_connections":          "0",
	"max_user_client_connections": "0",
	"max_user_connections":        "0",
	"min_pool_size":               "0",
	"reserve_pool_size":           "0",
	"reserve_pool_timeout":        "5",
	"pool_mode":                   "session",
	"query_wait_timeout":          "120",
	"server_connect_timeout":      "15",
	"server_idle_timeout":         "600",
	"server_lifetime":             "3600",
	"server_login_retry":          "15",
	"server_reset_query":          "DISCARD ALL",
	"server_reset_query_always":   "0",
	"so_reuseport":                "0",
	"stats_period":                "60",
	"suspend_timeout":             "10",
	"stats_users":                 "",
	"control_socket":              "",
	"trusted_balancers":           "",
	"leak_guard":                  "clean",
	"metrics_listen":              "",
	"track_extra_parameters":      "IntervalStyle",
}

// ownDatabaseKeys are the parameters there that PgBouncer does not know.
var ownDatabaseKeys = []string{"target_session_attrs"}

// databaseKeys are the parameters in the value of an entry of [databases]
// (parse_database in PgBouncer's loader.c).
var databaseKeys = map[string]rule[Database]{
	"host":                      supported(setHost),
	"port":                      setInt(1, 65535, func(d *Database) *int { return &d.Port }),
	"auth_user":                 setText(func(d *Database) *string { return &d.AuthUser }),
	"auth_query":                setText(func(d *Database) *string { return &d.AuthQuery }),
	"auth_dbname":               setText(func(d *Database) *string { return &d.AuthDBName }),
	"dbname":                    setString(func(d *Database) *string { return &d.DBName }),
	"user":                      setString(func(d *Database) *string { return &d.User }),
	"password":                  setString(func(d *Database) *string { return &d.Password }),
	"pool_size":                 setInt(1, maxPool, func(d *Database) *int { return &d.PoolSize }),
	"max_db_client_connections": setInt(0, maxClients, func(d *Database) *int { return &d.MaxClientConnections }),
	"max_db_connections":        setInt(0, maxPool, func(d *Database) *int { return &d.MaxConnections }),
	"min_pool_size":             setOwn(maxPool, func(d *Database) *int { return &d.MinPoolSize }),
	"reserve_pool":              setOwn(maxPool, func(d *Database) *int { return &d.ReservePoolSize }), // until 1.23
	"reserve_pool_size":         setOwn(maxPool, func(d *Database) *int { return &d.ReservePoolSize }),
	"query_wait_timeout":        setOwnTime(func(d *Database) *time.Duration { return &d.QueryWaitTimeout }),
	"server_lifetime":           setTime(func(d *Database) *time.Duration { return &d.ServerLifetime }),
	"pool_mode":                 setPoolMode(func(d *Database) *string { return &d.PoolMode }),

	"application_name":   setString(func(d *Database) *string { return &d.ApplicationName }),
	"client_encoding":    setString(func(d *Database) *string { return &d.ClientEncoding }),
	"connect_query":      {},
	"datestyle":          setString(func(d *Database) *string { return &d.DateStyle }),
	"load_balance_hosts": setWord(func(d *Database) *string { return &d.LoadBalanceHosts }, "round-robin", "disable"),
	"target_session_attrs": setWord(func(d *Database) *string { return &d.TargetSessionAttrs },
		"any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
	"timezone": setString(func(d *Database) *string { return &d.TimeZone }),
}

// setHost takes hosts, or directories of servers' unix sockets, separated by
// commas.
func setHost(d *Database, value string) error {
	for host := range strings.SplitSeq(value, ",") {
		switch {
		case host == "" || strings.ContainsAny(host, " \t"):
			return fmt.Errorf("%q: want hosts separated by commas alone", value)
		case strings.HasPrefix(host, "@"):
			return fmt.Errorf("%q: abstract unix sockets are known to PgBouncer but not supported yet", value)
		case strings.Contains(host, "/") && host[0] != '/':
			return fmt.Errorf("%q is neither a host nor the absolute path of a directory", host)
		}
	}
	d.Host = value
	return nil
}

// userKeys are the parameters in the value of an entry of [users] (parse_user
// in PgBouncer's loader.c).
var userKeys = map[string]rule[UserSetting]{
	"client_idle_timeout":         setTime(func(u *UserSetting) *time.Duration { return &u.ClientIdleTimeout }),
	"idle_transaction_timeout":    setTime(func(u *UserSetting) *time.Duration { return &u.IdleTransactionTimeout }),
	"query_timeout":               setTime(func(u *UserSetting) *time.Duration { return &u.QueryTimeout }),
	"query_wait_timeout":          setOwnTime(func(u *UserSetting) *time.Duration { return &u.QueryWaitTimeout }),
	"transaction_timeout":         setTime(func(u *UserSetting) *time.Duration { return &u.TransactionTimeout }),
	"max_user_client_connections": setInt(0, maxClients, func(u *UserSetting) *int { return &u.MaxClientConnections }),
	"max_user_connections":        setInt(0, maxPool, func(u *UserSetting) *int { return &u.MaxConnections }),
	"pool_size":                   setInt(1, maxPool, func(u *UserSetting) *int { return &u.PoolSize }),
	"reserve_pool_size":           setOwn(maxPool, func(u *UserSetting) *int { return &u.ReservePoolSize }),
	"pool_mode":                   setPoolMode(func(u *UserSetting) *string { return &u.PoolMode }),
}
