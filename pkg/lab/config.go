package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"
	"time"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
)

// syncPort is where the balancers tell each other of connections.
const syncPort = 5480

// BalancerOptions are the settings of pgsteerd that a lab can change. Zero
// values mean the classic figures.
type BalancerOptions struct {
	XDPMode        string        `json:"xdp_mode"`        // auto, native or generic; default auto
	TX             string        `json:"tx"`              // tx or redirect; default tx
	FlowTableSize  uint32        `json:"flow_table_size"` // entries, two per flow; default 524288
	HalfOpenFlows  uint32        `json:"half_open_flows"` // default 32768
	SYNTotal       uint32        `json:"syn_total"`       // a second, of sources not known; default 100,000
	SYN            time.Duration `json:"syn"`             // default 10 s
	Established    time.Duration `json:"established"`     // default 24 h
	FIN            time.Duration `json:"fin"`             // default 120 s
	TimeWait       time.Duration `json:"time_wait"`       // default 60 s
	Reset          time.Duration `json:"reset"`           // default 10 s
	SweepInterval  time.Duration `json:"sweep_interval"`  // default 1 s
	CheckType      string        `json:"check_type"`      // tcp or postgres; default postgres
	CheckInterval  time.Duration `json:"check_interval"`  // default 2 s
	CheckTimeout   time.Duration `json:"check_timeout"`   // default 1 s, or the interval if that is less
	Fall           int           `json:"fall"`            // default 3
	Rise           int           `json:"rise"`            // default 2
	AdvertInterval time.Duration `json:"advert_interval"` // default 100 ms
	Preempt        bool          `json:"preempt"`         // default false
	NoSync         bool          `json:"no_sync"`         // connections end when the addresses move; default false
	LogLevel       string        `json:"log_level"`       // default info
}

// PoolerOptions are the settings of pgsteer-pooler that a lab can change. Zero
// values mean the classic figures.
type PoolerOptions struct {
	PoolSize    int `json:"pool_size"`    // servers per database and user; default 70
	MaxClients  int `json:"max_clients"`  // default 4000
	MaxPrepared int `json:"max_prepared"` // prepared statements per server; default 200
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (b *BalancerOptions) setDefaults() {
	setDefault(&b.XDPMode, "auto")
	setDefault(&b.TX, "tx")
	setDefault(&b.FlowTableSize, 524288)
	setDefault(&b.HalfOpenFlows, 32768)
	setDefault(&b.SYNTotal, 100_000)
	setDefault(&b.SYN, 10*time.Second)
	setDefault(&b.Established, 24*time.Hour)
	setDefault(&b.FIN, 120*time.Second)
	setDefault(&b.TimeWait, 60*time.Second)
	setDefault(&b.Reset, 10*time.Second)
	setDefault(&b.SweepInterval, time.Second)
	setDefault(&b.CheckType, "postgres")
	setDefault(&b.CheckInterval, 2*time.Second)
	setDefault(&b.CheckTimeout, min(time.Second, b.CheckInterval))
	setDefault(&b.Fall, 3)
	setDefault(&b.Rise, 2)
	setDefault(&b.AdvertInterval, 100*time.Millisecond)
	setDefault(&b.LogLevel, "info")
}

func (p *PoolerOptions) setDefaults() {
	setDefault(&p.PoolSize, 70)
	setDefault(&p.MaxClients, 4000)
	setDefault(&p.MaxPrepared, 200)
}

// balancerConfig is pgsteerd's file, as on a balancer VM but for the pin path.
var balancerConfig = template.Must(template.New("pgsteerd").Parse(`# Written by pgsteer-lab.
node: {{.Node}}
interface: {{.Interface}}
xdp:
  mode: {{.XDPMode}}
  tx: {{.TX}}
  pin_path: {{.PinPath}}
  flow_table_size: {{.FlowTableSize}}
  half_open_flows: {{.HalfOpenFlows}}
  syn_rate: {total: {{.SYNTotal}}}
  snat_ports: 10240-65535
  sweep_interval: {{.SweepInterval}}
timeouts:
  syn: {{.SYN}}
  established: {{.Established}}
  fin: {{.FIN}}
  time_wait: {{.TimeWait}}
  reset: {{.Reset}}
services:
{{- range .Fronts}}
  - name: {{.Service}}
    address: "{{.Address}}"
    scheduler: leastconn
    check:
      type: {{$.CheckType}}
      interval: {{$.CheckInterval}}
      timeout: {{$.CheckTimeout}}
      fall: {{$.Fall}}
      rise: {{$.Rise}}
{{- if eq $.CheckType "postgres"}}
      user: {{$.CheckUser}}
      database: {{$.Database}}
{{- end}}
    backends:
{{- range .Backends}}
      - {name: {{.Name}}, address: "{{.Addr}}", weight: 1}
{{- end}}
{{- end}}
virtual_routers:
{{- range .Fronts}}
  - name: {{.Router}}
    vrid: {{.VRID}}
    priority: {{$.Priority}}
    advert_interval: {{$.AdvertInterval}}
    preempt: {{$.Preempt}}
    addresses: ["{{.VIP}}"]
    source: "{{.Source}}"
    peers: ["{{.Peer}}"]
{{- end}}
{{- if not .NoSync}}
sync: {listen: "{{.SyncListen}}", peer: "{{.SyncPeer}}", key_file: "{{.SyncKey}}"}
{{- end}}
stats: {listen: ":{{.StatsPort}}"}
admin: {socket: "{{.AdminSocket}}", state_file: "{{.OrdersFile}}"}
log: {level: {{.LogLevel}}, format: text}
`))

type balancerValues struct {
	BalancerOptions
	Node, Interface, PinPath, CheckUser, Database string
	AdminSocket, OrdersFile, SyncKey              string
	SyncListen, SyncPeer                          netip.AddrPort
	Fronts                                        []frontValues
	StatsPort                                     int
	Priority                                      uint8
}

type frontValues struct {
	Service, Router string
	Address         netip.AddrPort
	Backends        []backendValues
	VRID            int
	VIP             netip.Prefix
	Source, Peer    netip.Addr
}

type backendValues struct {
	Name string
	Addr netip.AddrPort
}

// poolerConfig is a pgbouncer.ini with the classic figures.
var poolerConfig = template.Must(template.New("pooler").Parse(`; Written by pgsteer-lab.
[databases]
* = host={{.DBHost}} port={{.DBPort}}

[pgbouncer]
listen_addr = {{.Addrs}}
listen_port = {{.Port}}
unix_socket_dir =
listen_backlog = 4096
auth_type = scram-sha-256
auth_file = {{.AuthFile}}
pool_mode = transaction
default_pool_size = {{.PoolSize}}
max_client_conn = {{.MaxClients}}
max_prepared_statements = {{.MaxPrepared}}
trusted_balancers = {{.Balancers}}
admin_users = {{.Admin}}
stats_users = {{.Stats}}
`))

type poolerValues struct {
	PoolerOptions
	DBHost          netip.Addr
	DBPort, Port    int
	Addrs, AuthFile string
	Balancers       string // sources that may say who the client is
	Admin, Stats    string // users of the console
}

func (l *Lab) confFile(name string) string { return filepath.Join(l.dir, "conf", name) }

// PinPath is where a balancer's maps are pinned, in the lab's own BPF file
// system.
func (l *Lab) PinPath(balancer string) string { return filepath.Join(l.dir, "bpf", balancer) }

// AdminSocket is where a balancer's daemon takes orders: the balancers of a lab
// share one file system, and its default path.
func (l *Lab) AdminSocket(balancer string) string { return filepath.Join(l.dir, balancer+".sock") }

// poolerAddr is where a pooler listens for IPv4.
func poolerAddr(i int) netip.AddrPort {
	return netip.AddrPortFrom(mustHost(Pooler).addr, uint16(poolerPort+i))
}

// poolerAddrs lists the addresses that the poolers listen on.
func poolerAddrs(o Options) string {
	h := mustHost(Pooler)
	all := fmt.Sprintf("%v, %v", h.addr, h.addr6)
	if o.Routed {
		all += fmt.Sprintf(", %v, %v", poolerCable.far[0].Addr(), poolerCable.far[1].Addr())
	}
	return all
}

// writeConfigs writes every file that the daemons read.
func (l *Lab) writeConfigs(st *state) error {
	if err := l.writeSyncKey(); err != nil {
		return err
	}
	for _, name := range Balancers() {
		h := mustHost(name)
		v := balancerValues{
			BalancerOptions: st.Options.Balancer,
			Node:            name, Interface: hostLink, PinPath: l.PinPath(name),
			AdminSocket: l.AdminSocket(name), OrdersFile: filepath.Join(l.data, name+"-orders.json"),
			CheckUser: checkUser, Database: Database, StatsPort: StatsPort, Priority: h.priority,
			SyncListen: netip.AddrPortFrom(h.addr, syncPort), SyncPeer: netip.AddrPortFrom(peerOf(h).addr, syncPort),
			SyncKey: l.confFile("sync.key"),
		}
		for _, f := range fronts() {
			fv := frontValues{
				Service: f.service, Address: f.addr, Router: f.router, VRID: f.vrid, VIP: f.vip(),
				Source: f.own(h), Peer: f.own(peerOf(h)),
			}
			for i := range PoolerCount {
				fv.Backends = append(fv.Backends, backendValues{Name: poolerName(i), Addr: f.pooler(st.Options, i)})
			}
			v.Fronts = append(v.Fronts, fv)
		}
		if err := writeTemplate(l.confFile(name+".yaml"), balancerConfig, v); err != nil {
			return err
		}
	}
	for i := range PoolerCount {
		v := poolerValues{
			PoolerOptions: st.Options.Pooler,
			DBHost:        mustHost(DB).addr, DBPort: dbPort,
			Addrs: poolerAddrs(st.Options), Port: poolerPort + i,
			AuthFile: l.confFile("userlist.txt"), Balancers: natSources(), Admin: Database, Stats: checkUser,
		}
		if err := writeTemplate(l.confFile(poolerName(i)+".ini"), poolerConfig, v); err != nil {
			return err
		}
	}
	return l.writeUserlist(st)
}

// writeSyncKey makes what the balancers know each other by, once: those that run
// go on with it.
func (l *Lab) writeSyncKey() error {
	path := l.confFile("sync.key")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := flowsync.GenerateKey()
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, key, 0o600); err != nil {
		return fmt.Errorf("writing the balancers' key: %w", err)
	}
	return nil
}

// writeUserlist writes the poolers' accounts. The passwords are in clear text
// because the pooler needs them to log in to the server as well; only the
// poolers' user may read them.
func (l *Lab) writeUserlist(st *state) error {
	var b bytes.Buffer
	for _, user := range []string{Database, checkUser} {
		fmt.Fprintf(&b, "%q %q\n", user, st.Passwords[user])
	}
	user, err := unprivilegedUser("nobody")
	if err != nil {
		return err
	}
	return writeFileFor(l.confFile("userlist.txt"), b.Bytes(), 0o400, user)
}

func writeTemplate(path string, t *template.Template, values any) error {
	var b bytes.Buffer
	if err := t.Execute(&b, values); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("writing a configuration: %w", err)
	}
	return nil
}
