package pooler

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// shows are the answers to SHOW. Names, order and types of their columns are
// those of PgBouncer 1.25 (admin.c and stats.c): dashboards go by them. Where we
// have nothing of a kind, such as paused databases, the value says so.
var shows = map[string]func(*console) error{
	"active_sockets": (*console).activeSockets,
	"clients":        (*console).clients,
	"config":         (*console).config,
	"databases":      (*console).databases,
	"dns_hosts":      (*console).dnsHosts,
	"dns_zones":      (*console).dnsZones,
	"fds":            (*console).fds,
	"help":           (*console).help,
	"lists":          (*console).lists,
	"mem":            (*console).mem,
	"peer_pools":     (*console).peerPools,
	"peers":          (*console).peers,
	"pools":          (*console).pools,
	"servers":        (*console).servers,
	"sockets":        (*console).sockets,
	"state":          (*console).state,
	"stats":          (*console).stats,
	"stats_averages": (*console).statsAverages,
	"stats_totals":   (*console).statsTotals,
	"totals":         (*console).totals,
	"users":          (*console).users,
	"version":        (*console).version,
}

// columns describes a result: a letter for the type of each column (s text, i
// int4, q int8, N numeric, b bytea), as in PgBouncer's source, and the names.
func columns(types, names string) []pgwire.Column {
	list := strings.Fields(names)
	out := make([]pgwire.Column, len(list))
	for i, name := range list {
		out[i] = pgwire.Column{Name: name, Type: map[byte]uint32{
			's': pgwire.TypeText, 'i': pgwire.TypeInt4, 'q': pgwire.TypeInt8, 'N': pgwire.TypeNumeric, 'b': pgwire.TypeBytea,
		}[types[i]]}
	}
	return out
}

var poolColumns = columns("ssiiiiiiiiiiiiiss", `database user cl_active cl_waiting cl_active_cancel_req
	cl_waiting_cancel_req sv_active sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait
	maxwait_us pool_mode load_balance_hosts`)

func (s *console) pools() error {
	rows, _, err := s.p.pools()
	if err != nil {
		return err
	}
	s.header(poolColumns)
	for i := range rows {
		s.poolRow(&rows[i], rows[i].Mode.String())
	}
	open, _ := s.p.openConsoles()
	own := poolRow{PoolSnapshot: PoolSnapshot{Database: consoleDatabase, User: consoleDatabase, ClientsActive: len(open)}}
	s.poolRow(&own, "statement")
	return nil
}

func (s *console) poolRow(r *poolRow, mode string) {
	s.rows.Begin()
	s.rows.Text(r.Database)
	s.rows.Text(r.User)
	for _, n := range []int{
		r.ClientsActive + r.ClientsIdle, // PgBouncer's active clients are all that do not wait
		r.ClientsWaiting + r.ClientsLogin,
		r.waiting,
		0, // a cancel request does not wait for its turn
		r.ServersActive,
		r.cancels,
		r.held,
		r.ServersIdle,
		r.ServersUsed,
		r.ServersSettling - r.held + r.ServersTesting,
		r.ServersLogin,
		int(r.MaxWait / time.Second),
		int(r.MaxWait % time.Second / time.Microsecond),
	} {
		s.rows.Int(int64(n))
	}
	s.rows.Text(mode)
	s.textOrNull(loadBalance(r.db))
	s.endRow()
}

var databaseColumns = columns("ssissiiiissiiiiii", `name host port database force_user pool_size min_pool_size
	reserve_pool_size server_lifetime pool_mode load_balance_hosts max_connections current_connections
	max_client_connections current_client_connections paused disabled`)

// databaseRow is a database and what its pools sum up to.
type databaseRow struct {
	db               *Database
	mark             mark
	servers, clients int
}

func (s *console) databases() error {
	pools, _, err := s.p.pools()
	if err != nil {
		return err
	}
	byName := s.p.databaseRows(pools)
	s.header(databaseColumns)
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		s.databaseRow(byName[name], s.p.conf().Databases[name].PoolMode.String())
	}
	open, _ := s.p.openConsoles()
	own := Database{Name: consoleDatabase, DBName: consoleDatabase, User: consoleDatabase, PoolSize: maxConsoles}
	own.Port = s.p.conf().UnixSocket.Port
	if len(s.p.listeners) > 0 {
		if a, ok := s.p.listeners[0].Addr().(*net.TCPAddr); ok {
			own.Port = uint16(a.Port)
		}
	}
	s.databaseRow(&databaseRow{db: &own, clients: len(open)}, "statement")
	return nil
}

// databaseRows returns the databases of the configuration, and those that
// clients found by the fallback.
func (p *Pooler) databaseRows(pools []poolRow) map[string]*databaseRow {
	byName := make(map[string]*databaseRow)
	conf := p.conf()
	for name := range conf.Databases {
		byName[name] = &databaseRow{db: conf.database(name)}
	}
	for i := range pools {
		r := &pools[i]
		row := byName[r.Database]
		if row == nil {
			row = &databaseRow{db: r.db}
			byName[r.Database] = row
		}
		row.servers += r.servers()
		row.clients += r.ClientsActive + r.ClientsIdle + r.ClientsLogin + r.ClientsWaiting
	}
	p.ask(func(m *machine) {
		for name, k := range m.marks {
			if db := conf.database(name); byName[name] == nil && db != nil {
				byName[name] = &databaseRow{db: db}
			}
			if row := byName[name]; row != nil {
				row.mark = k
			}
		}
	})
	return byName
}

func (s *console) databaseRow(r *databaseRow, mode string) {
	s.rows.Begin()
	s.rows.Text(r.db.Name)
	s.textOrNull(r.db.Host)
	s.rows.Int(int64(r.db.Port))
	s.rows.Text(r.db.DBName)
	s.textOrNull(r.db.User)
	s.rows.Int(int64(r.db.PoolSize))
	s.rows.Int(int64(max(r.db.MinPoolSize, 0)))
	s.rows.Int(int64(max(r.db.ReservePoolSize, 0)))
	s.rows.Int(int64(cmp.Or(r.db.ServerLifetime, s.p.conf().ServerLifetime) / time.Second))
	s.textOrNull(mode)
	s.textOrNull(loadBalance(r.db))
	for _, n := range []int{max(r.db.MaxConnections, 0), r.servers, max(r.db.MaxClientConnections, 0), r.clients, oneIf(r.mark.paused), oneIf(r.mark.disabled)} {
		s.rows.Int(int64(n))
	}
	s.endRow()
}

// numberOrNone writes a setting of a user: 0 is not set, negative is 0.
func numberOrNone(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(max(n, 0))
}

// loadBalance is what the console says about the choice of hosts: nothing for
// one host.
func loadBalance(d *Database) string {
	if d == nil || len(d.hosts()) == 1 {
		return ""
	}
	return d.LoadBalance.String()
}

func (s *console) textOrNull(text string) {
	if text == "" {
		s.rows.Null()
		return
	}
	s.rows.Text(text)
}

var listColumns = columns("si", "list items")

func (s *console) lists() error {
	pools, _, err := s.p.pools()
	if err != nil {
		return err
	}
	population := 0
	if !s.p.ask(func(m *machine) { population = m.population }) {
		return errShutdown
	}
	open, _ := s.p.openConsoles()
	connected, servers := int(s.p.clients.Load()), 0
	for i := range pools {
		servers += pools[i].servers()
	}
	s.header(listColumns)
	for _, l := range []struct {
		name string
		n    int
	}{
		{"databases", len(s.p.databaseRows(pools)) + 1},
		{"users", len(s.p.conf().Users)},
		{"peers", len(s.p.conf().Peers)},
		{"pools", len(pools) + 1},
		{"peer_pools", len(s.p.forwarding.counts())},
		{"free_clients", 0}, // no memory is kept for clients that are gone
		{"used_clients", connected + len(open)},
		{"login_clients", max(connected-population, 0)}, // counted at two moments
		{"free_servers", 0},
		{"used_servers", servers},
		{"dns_names", len(s.p.addresses.list())},
		{"dns_zones", 0},
		{"dns_queries", 0},
		{"dns_pending", 0},
	} {
		s.rows.Begin()
		s.rows.Text(l.name)
		s.rows.Int(int64(l.n))
		s.endRow()
	}
	return nil
}

var userColumns = columns("ssssiiii", `name pool_size reserve_pool_size pool_mode max_user_connections
	current_connections max_user_client_connections current_client_connections`)

func (s *console) users() error {
	pools, _, err := s.p.pools()
	if err != nil {
		return err
	}
	servers, clients := make(map[string]int), make(map[string]int)
	for i := range pools {
		r := &pools[i]
		servers[r.User] += r.servers()
	}
	if err := s.p.eachSocket(func(k *socket) {
		if !k.server {
			clients[k.user]++
		}
	}); err != nil {
		return err
	}
	open, _ := s.p.openConsoles()
	for _, o := range open {
		clients[o.who.login]++
	}
	s.header(userColumns)
	for _, name := range slices.Sorted(maps.Keys(s.p.conf().Users)) {
		s.rows.Begin()
		s.rows.Text(name)
		user := s.p.conf().UserSettings[name]
		s.rows.Text(numberOrNone(user.PoolSize))
		s.rows.Text(numberOrNone(user.ReservePoolSize))
		s.textOrNull(user.PoolMode.String())
		for _, n := range []int{
			cmp.Or(user.MaxConnections, s.p.conf().MaxUserConnections), servers[name],
			cmp.Or(user.MaxClientConnections, s.p.conf().MaxUserClientConnections), clients[name],
		} {
			s.rows.Int(int64(n))
		}
		s.endRow()
	}
	return nil
}

var configColumns = columns("ssss", "key value default changeable")

func (s *console) config() error {
	s.header(configColumns)
	for _, c := range s.p.conf().Settings {
		s.rows.Begin()
		s.rows.Text(c.Name)
		s.rows.Text(c.Value)
		s.rows.Text(c.Default)
		s.rows.Text(yesNo(!c.Fixed))
		s.endRow()
	}
	return nil
}

func oneIf(b bool) int {
	if b {
		return 1
	}
	return 0
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

var versionColumns = columns("s", "version")

func (s *console) version() error {
	s.header(versionColumns)
	s.rows.Begin()
	s.rows.Text(fmt.Sprintf("pgsteer-pooler %s, console of PgBouncer %s", s.p.conf().Version, consoleVersion))
	s.endRow()
	return nil
}

var stateColumns = columns("ss", "key value")

func (s *console) state() error {
	var paused, suspended bool
	if !s.p.ask(func(m *machine) { paused, suspended = m.paused, m.suspended }) {
		return errShutdown
	}
	s.header(stateColumns)
	for _, kv := range [][2]string{
		{"active", yesNo(!paused && !suspended)}, {"paused", yesNo(paused)}, {"suspended", yesNo(suspended)},
	} {
		s.rows.Begin()
		s.rows.Text(kv[0])
		s.rows.Text(kv[1])
		s.endRow()
	}
	return nil
}

var memColumns = columns("siiii", "name size used free memtotal")

// mem shows what memory goes to, in bytes. The names are PgBouncer's where it
// has the kind.
func (s *console) mem() error {
	type kind struct {
		name             string
		size, used, free int
	}
	var kinds []kind
	if !s.p.ask(func(m *machine) {
		servers := 0
		for _, p := range m.pools {
			servers += p.live()
		}
		statement := 0
		if n := len(m.stmts.byKey); n > 0 {
			statement = m.stmts.memory / n // a mean
		}
		kinds = []kind{
			{"pool_cache", int(unsafe.Sizeof(pool{})), len(m.pools), 0},
			{"server_cache", int(unsafe.Sizeof(server{})), servers, 0},
			{"client_cache", int(unsafe.Sizeof(client{})), m.population, 0},
			{"iobuf_cache", spillKeep, 0, len(m.spills)},
			{"prepared_statement_cache", statement, len(m.stmts.byKey), 0},
			{"gathered_input", 1, m.gathered, 0},
			{"held_input", 1, m.heldBytes, 0},
			{"receive_arena", len(m.arena.buf), 1, 0},
		}
		for _, c := range m.slots {
			if c != nil && cap(c.spill) > 0 {
				kinds[3].used++
			}
		}
	}) {
		return errShutdown
	}
	s.header(memColumns)
	for _, k := range kinds {
		s.rows.Begin()
		s.rows.Text(k.name)
		for _, n := range []int{k.size, k.used, k.free, k.size * (k.used + k.free)} {
			s.rows.Int(int64(n))
		}
		s.endRow()
	}
	return nil
}
