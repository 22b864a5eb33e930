package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pgsteer/pgsteer/pkg/lab"
	"github.com/pgsteer/pgsteer/pkg/lb"
)

// writeStatus prints a lab's status as plain tables.
func writeStatus(out io.Writer, s lab.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	active := "nobody"
	if len(s.Active) > 0 {
		active = strings.Join(s.Active, " and ")
	}
	condition := "as it should be"
	switch {
	case !s.Complete:
		condition = "NOT COMPLETE: raising it was interrupted, or goes on"
	case !s.Healthy():
		condition = "NOT as it should be"
	}
	fmt.Fprintf(w, "lab %s, up for %v, %s; %s answers for %s and %s\n\n", s.Name,
		time.Since(s.Since).Round(time.Second), condition, active, lab.Service, lab.Service6)
	fmt.Fprintln(w, "HOST\tADDRESS\tLINK\tNAMESPACE")
	for _, h := range s.Hosts {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", h.Name, h.Address, h.Link, h.Namespace)
	}
	fmt.Fprintln(w, "\nPROCESS\tHOST\tSTATE\tPID\tUPTIME")
	for _, p := range s.Processes {
		pid, uptime := "-", "-"
		if p.PID != 0 {
			pid, uptime = fmt.Sprint(p.PID), p.Uptime.Round(time.Second).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", p.Name, p.Host, p.State, pid, uptime)
	}
	fmt.Fprintln(w, "\nBALANCER\tVIP\tSTATE\tLEASE\tBACKEND\tSTATE\tACTIVE\tTOTAL")
	for _, b := range s.Balancers {
		if b.Error != "" {
			fmt.Fprintf(w, "%s\t%s\n", b.Host, b.Error)
			continue
		}
		for _, service := range b.Services {
			front := vip(b, service.Addr.Addr())
			for _, back := range service.Backends {
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\n", front, back.Name, back.State, back.Active, back.Total)
				front = "\t\t\t"
			}
		}
	}
	return w.Flush()
}

// vip is the front part of the first row of a service at the address.
func vip(b lab.BalancerStatus, addr netip.Addr) string {
	i := slices.IndexFunc(b.VIPs, func(v lb.VIPStats) bool { return v.Addr == addr })
	if i < 0 {
		return b.Host + "\tnone\t-\t-"
	}
	v, lease := b.VIPs[i], "none"
	if v.Lease > 0 {
		lease = v.Lease.Round(time.Millisecond).String()
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s", b.Host, v.Addr, v.State, lease)
}
