// Package classic has what the suites share of the classic stack, with which
// pgsteer is compared: HAProxy before the lab's poolers, and keepalived, which
// keeps a virtual address on one of two nodes.
package classic

import (
	"bytes"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"text/template"

	"github.com/pgsteer/pgsteer/pkg/lab"
)

const firstPoolerPort = 6432

// Program finds a program that Debian keeps out of a user's PATH.
func Program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	path, err := exec.LookPath(filepath.Join("/usr/sbin", name))
	if err != nil {
		return "", fmt.Errorf("%s is not installed (Debian: apt-get install %s)", name, name)
	}
	return path, nil
}

var haproxyConfig = template.Must(template.New("haproxy").Parse(`global
    maxconn 9000

defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    default-server inter 2s fall 3 rise 2

frontend postgres
    bind {{.Listen}}
    default_backend poolers

backend poolers
    balance leastconn
{{- range $i, $addr := .Poolers}}
    server pooler{{$i}} {{$addr}} check
{{- end}}

listen stats
    mode http
    bind {{.Stats}}
    stats enable
    stats uri /stats
`))

// HAProxyConfig returns a configuration before the lab's poolers with the
// figures of the classic stack.
func HAProxyConfig(listen, stats netip.AddrPort) ([]byte, error) {
	poolers, err := lab.Address(lab.Pooler)
	if err != nil {
		return nil, err
	}
	values := struct {
		Listen, Stats netip.AddrPort
		Poolers       []netip.AddrPort
	}{Listen: listen, Stats: stats}
	for i := range lab.PoolerCount {
		values.Poolers = append(values.Poolers, netip.AddrPortFrom(poolers, uint16(firstPoolerPort+i)))
	}
	return render(haproxyConfig, values)
}

var keepalivedConfig = template.Must(template.New("keepalived").Parse(`global_defs {
    router_id {{.Node}}
    script_user root
}

vrrp_script haproxy {
    script "{{.Check}}"
    interval 2
    weight 2
}

vrrp_instance postgres {
    state {{.State}}
    interface eth0
    virtual_router_id 51
    priority {{.Priority}}
    advert_int 1
    virtual_ipaddress {
        {{.VIP}}
    }
    track_script {
        haproxy
    }
}
`))

// Keepalived is one node's configuration. What is not in it has the figures of
// the classic stack.
type Keepalived struct {
	Node     string
	State    string // at the start: MASTER or BACKUP
	Priority int
	VIP      netip.Prefix
	Check    string // the script that tells by its exit status whether HAProxy runs
}

// Config returns the file.
func (k Keepalived) Config() ([]byte, error) { return render(keepalivedConfig, k) }

func render(t *template.Template, values any) ([]byte, error) {
	var b bytes.Buffer
	if err := t.Execute(&b, values); err != nil {
		return nil, fmt.Errorf("writing the configuration of %s: %w", t.Name(), err)
	}
	return b.Bytes(), nil
}
