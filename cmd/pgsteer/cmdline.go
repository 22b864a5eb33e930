package main

import (
	"fmt"
	"strings"
)

// A usageError is a command line that makes no sense.
type usageError struct{ reason string }

func (e *usageError) Error() string { return e.reason }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// An invocation is a parsed command line. Exactly one of help, version and
// command is set.
type invocation struct {
	json, pretty bool
	pinPath      string

	help    string // text to print
	version bool
	command *command
}

// An object is a kind of thing that can be looked at.
type object struct {
	name     string
	about    string
	commands []command
}

// A command is something that can be done with an object.
type command struct {
	name  string
	alias string
	about string
	run   func(reader, *output) error
}

// objects drives both the parser and the help texts.
var objects = []object{
	{"service", "balanced addresses, each with the sum over its backends", showing("one line for each service", showServices)},
	{"backend", "poolers behind the services, with their connections", showing("one line for each backend", showBackends)},
	{"flow", "TCP connections in the flow table", showing("one line for each connection, as they come from the table", showFlows)},
	{"vip", "virtual addresses and this node's right to answer for them", showing("one line for each address", showVIPs)},
	{"counter", "what became of each packet that the XDP program saw", showing("one line for each verdict", showCounters)},
}

// showing is the list of commands of an object that can only be shown.
func showing(about string, run func(reader, *output) error) []command {
	return []command{{name: "show", alias: "list", about: about, run: run}}
}

const optionsHelp = `
OPTIONS (before or after OBJECT and COMMAND):
  -j, --json           print a JSON array
  -p, --pretty         print JSON with line breaks
      --pin-path DIR   directory of the pinned maps; without it the environment's
                       PGSTEER_PIN_PATH, without that ` + defaultPinPath + `
  -h, --help           print this text
  -V, --version        print the version
`

// usage lists the objects.
func usage() string {
	var b strings.Builder
	b.WriteString("Usage: pgsteer [OPTIONS] OBJECT { COMMAND | help }\n       pgsteer version\n\nOBJECT (any unique prefix will do):\n")
	for _, o := range objects {
		fmt.Fprintf(&b, "  %-9s%s\n", o.name, o.about)
	}
	b.WriteString("\nCOMMAND: show (the default; list is the same)\n" + optionsHelp)
	return b.String()
}

// usage lists the commands of an object.
func (o object) usage() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n\n", o.name, o.about)
	for _, c := range o.commands {
		fmt.Fprintf(&b, "Usage: pgsteer [OPTIONS] %s { %s | %s | help }\n\n  %s, %s   %s\n", o.name, c.name, c.alias, c.name, c.alias, c.about)
	}
	b.WriteString(optionsHelp)
	return b.String()
}

// parse reads a command line. The invocation says whether errors are wanted as
// JSON even when the rest of it makes no sense.
func parse(args []string, getenv func(string) string) (inv invocation, err error) {
	inv.pinPath = defaultPinPath
	if v := getenv("PGSTEER_PIN_PATH"); v != "" {
		inv.pinPath = v
	}
	words, wantHelp, err := inv.options(args)
	if err != nil {
		return inv, err
	}
	switch {
	case inv.version:
		return inv, nil
	case len(words) == 0 && wantHelp:
		inv.help = usage()
		return inv, nil
	case len(words) == 0:
		return inv, usagef("no object given; see pgsteer help")
	}
	return inv, inv.words(words, wantHelp)
}

// options takes the options out of args, wherever they stand. All of args is
// read even after an error, for -j to be seen.
func (inv *invocation) options(args []string) (words []string, help bool, err error) {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		name, value, hasValue := strings.Cut(arg, "=")
		if len(name) < 2 || name[0] != '-' {
			words = append(words, arg)
			continue
		}
		// One dash or two, as in the flag package that the daemons use.
		name = strings.TrimPrefix(strings.TrimPrefix(name, "-"), "-")
		if hasValue && name != "pin-path" {
			err = firstError(err, usagef("option %s takes no value", arg))
			continue
		}
		switch name {
		case "j", "json":
			inv.json = true
		case "p", "pretty":
			inv.json, inv.pretty = true, true
		case "h", "help":
			help = true
		case "V", "version":
			inv.version = true
		case "pin-path":
			if !hasValue && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
				i++
				value = args[i]
			}
			if value == "" {
				err = firstError(err, usagef("option --pin-path needs a directory"))
			}
			inv.pinPath = value
		default:
			err = firstError(err, usagef("unknown option %s; see pgsteer help", arg))
		}
	}
	return words, help, err
}

func firstError(first, next error) error {
	if first != nil {
		return first
	}
	return next
}

// words reads OBJECT and COMMAND.
func (inv *invocation) words(words []string, wantHelp bool) error {
	var names []string
	for _, o := range objects {
		names = append(names, o.name)
	}
	name, err := match("object", words[0], append(names, "help", "version"))
	if err != nil {
		return err
	}
	switch name {
	case "help":
		inv.help = usage()
		return nil
	case "version":
		inv.version = true
		return nil
	}
	for _, o := range objects {
		if o.name == name {
			return inv.objectWords(o, words[1:], wantHelp)
		}
	}
	return usagef("unknown object %q", name)
}

func (inv *invocation) objectWords(o object, words []string, wantHelp bool) error {
	if wantHelp {
		inv.help = o.usage()
		return nil
	}
	if len(words) == 0 {
		inv.command = &o.commands[0]
		return nil
	}
	if len(words) > 1 {
		return usagef("%s %s takes no argument, but %q was given", o.name, words[0], words[1])
	}
	names := []string{"help"}
	for _, c := range o.commands {
		names = append(names, c.name, c.alias)
	}
	name, err := match("command", words[0], names)
	if err != nil {
		return err
	}
	for i, c := range o.commands {
		if c.name == name || c.alias == name {
			inv.command = &o.commands[i]
			return nil
		}
	}
	inv.help = o.usage()
	return nil
}

// match finds the one of names that word is a prefix of, or is.
func match(what, word string, names []string) (string, error) {
	var found []string
	for _, n := range names {
		if n == word {
			return n, nil
		}
		if word != "" && strings.HasPrefix(n, word) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return "", usagef("unknown %s %q; want one of %s", what, word, strings.Join(names, ", "))
	case 1:
		return found[0], nil
	}
	return "", usagef("%s %q is ambiguous: %s", what, word, strings.Join(found, " or "))
}
