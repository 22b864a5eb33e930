package main

import (
	"fmt"
	"strings"
)

// An object is a kind of thing that can be looked at, or something to do.
type object struct {
	name  string
	about string
	// commands has the one that is meant without a word first. An object that
	// is its own command has only one, without a name.
	commands []command
	// ownOptions has the words after the name, options included, handed to the
	// command as they are.
	ownOptions bool
}

// A command is something that can be done with an object.
type command struct {
	name  string
	alias string
	args  string // what may follow the name, for the help
	about string // lines
	// prepare reads what follows the name. Its errors are those of usage.
	prepare func(args []string) (action, error)
}

// objects drives both the parser and the help texts.
func objects() []object {
	return []object{
		{name: "service", about: "balanced addresses, each with the sum over its backends", commands: []command{showing("one line for each service", showServices)}},
		{name: "backend", about: "poolers behind the services, with their connections", commands: backendCommands()},
		{name: "flow", about: "TCP connections in the flow table", commands: flowCommands()},
		{name: "vip", about: "virtual addresses and this node's right to answer for them", commands: vipCommands()},
		{name: "sync", about: "the replication of connections between the two nodes", commands: syncCommands()},
		{name: "notify", about: "who is told what happens, and whether it works", commands: notifyCommands()},
		{name: "counter", about: "what became of each packet that the XDP program saw", commands: counterCommands()},
		{name: "audit", about: "a recount of the flow table against the active counts", commands: auditCommands()},
		{name: "capture", about: "packets before and after the XDP program's rewriting", commands: captureCommands(), ownOptions: true},
		{name: "doctor", about: "what stands in the way of this machine being a balancer", commands: doctorCommands()},
		{name: "config", about: "pgsteerd's configuration", commands: configCommands()},
		{name: "keygen", about: "a new key for the replication between the two nodes", commands: keygenCommands()},
	}
}

// showing is a show command that takes no argument.
func showing(about string, run action) command {
	return command{name: "show", alias: "list", about: about, prepare: withoutArguments(run)}
}

func withoutArguments(run action) func([]string) (action, error) {
	return func(args []string) (action, error) {
		if len(args) > 0 {
			return nil, usagef("it takes no argument, but %q was given", args[0])
		}
		return run, nil
	}
}

const optionsHelp = `
OPTIONS (before or after OBJECT and COMMAND):
  -j, --json           print JSON
  -p, --pretty         print JSON with line breaks
      --pin-path DIR   directory of the pinned maps; without it the environment's
                       PGSTEER_PIN_PATH, without that ` + defaultPinPath + `
      --socket PATH    pgsteerd's admin socket; without it the environment's
                       PGSTEER_ADMIN_SOCKET, without that ` + defaultSocket + `
  -h, --help           print this text
  -V, --version        print the version

The exit status is 0 when all went well, 1 when it did not, 2 when the command
line makes no sense, 3 when pgsteer doctor has warnings and no errors.
`

// usage lists the objects.
func usage() string {
	var b strings.Builder
	b.WriteString("Usage: pgsteer [OPTIONS] OBJECT { COMMAND | help }\n       pgsteer version\n\nOBJECT (any unique prefix will do):\n")
	for _, o := range objects() {
		fmt.Fprintf(&b, "  %-9s%s\n", o.name, o.about)
		var names []string
		for _, c := range o.commands {
			names = append(names, c.name)
		}
		if len(names) > 1 {
			fmt.Fprintf(&b, "           { %s }\n", strings.Join(names, " | "))
		}
	}
	b.WriteString("\nCOMMAND: show (the default; list is the same) or as listed; prefixes will do\n" + optionsHelp)
	return b.String()
}

// usage lists the commands of an object.
func (o object) usage() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n\n", o.name, o.about)
	lead := "Usage:"
	for _, c := range append(o.commands, command{name: "help"}) {
		parts := []string{lead, "pgsteer [OPTIONS]", o.name}
		switch {
		case c.alias != "":
			parts = append(parts, "{ "+c.name+" | "+c.alias+" }")
		case c.name != "":
			parts = append(parts, c.name)
		}
		if c.args != "" {
			parts = append(parts, c.args)
		}
		b.WriteString(strings.Join(parts, " ") + "\n")
		lead = "      "
	}
	for _, c := range o.commands {
		b.WriteString("\n")
		if c.name != "" {
			fmt.Fprintf(&b, "  %s\n", c.name)
		}
		for line := range strings.Lines(c.about) {
			if line != "\n" {
				line = "      " + line
			}
			b.WriteString(line)
		}
		b.WriteString("\n")
	}
	if !o.ownOptions {
		b.WriteString(optionsHelp)
	}
	return b.String()
}
