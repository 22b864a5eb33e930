package lab

import (
	"fmt"
	"net/netip"
	"strings"
)

// front is a service as the balancers are configured with it: an address, the
// virtual router that keeps it, and the poolers behind. There is one of each
// family.
type front struct {
	service string
	addr    netip.AddrPort
	router  string
	vrid    int
	own     func(host) netip.Addr // a host's address of the same family
	index   int                   // of the family in a cable's addresses
}

// fronts returns the services, that of IPv4 first.
func fronts() []front {
	return []front{
		{
			service: ServiceName, addr: netip.MustParseAddrPort(Service), router: "main", vrid: RouterID,
			own: func(h host) netip.Addr { return h.addr },
		},
		{
			service: ServiceName6, addr: netip.MustParseAddrPort(Service6), router: "main6", vrid: RouterID6,
			own: func(h host) netip.Addr { return h.addr6 }, index: 1,
		},
	}
}

// findFront finds a service by its name.
func findFront(service string) (front, error) {
	var names []string
	for _, f := range fronts() {
		if f.service == service {
			return f, nil
		}
		names = append(names, f.service)
	}
	return front{}, fmt.Errorf("there is no service %q in the lab, only %v", service, names)
}

// frontAddresses names the addresses of all services.
func frontAddresses() string {
	var all []string
	for _, f := range fronts() {
		all = append(all, f.addr.String())
	}
	return strings.Join(all, " and ")
}

// natSources lists the addresses that the poolers see the balancers' clients
// come from.
func natSources() string {
	var all []string
	for _, f := range fronts() {
		all = append(all, f.addr.Addr().String())
	}
	return strings.Join(all, ", ")
}

// vip is the virtual address.
func (f front) vip() netip.Prefix { return netip.PrefixFrom(f.addr.Addr(), f.addr.Addr().BitLen()) }

// pooler is where the balancers of a lab with these options find a pooler.
func (f front) pooler(o Options, i int) netip.AddrPort {
	addr := f.own(mustHost(Pooler))
	if o.Routed {
		addr = poolerCable.far[f.index].Addr()
	}
	return netip.AddrPortFrom(addr, uint16(poolerPort+i))
}
