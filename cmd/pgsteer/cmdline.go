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
// action is set.
type invocation struct {
	json, pretty bool
	pinPath      string
	socket       string

	help    string // text to print
	version bool
	action  action
}

// An action is a command with its arguments.
type action func(*session) error

// parse reads a command line. The invocation says whether errors are wanted as
// JSON even when the rest of it makes no sense.
func parse(args []string, getenv func(string) string) (inv invocation, err error) {
	inv.pinPath, inv.socket = defaultPinPath, defaultSocket
	if v := getenv("PGSTEER_PIN_PATH"); v != "" {
		inv.pinPath = v
	}
	if v := getenv("PGSTEER_ADMIN_SOCKET"); v != "" {
		inv.socket = v
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

// options takes the options out of args, wherever they stand, up to the name
// of an object that reads its own. All of args is read even after an error,
// for -j to be seen.
func (inv *invocation) options(args []string) (words []string, help bool, err error) {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		name, value, hasValue := strings.Cut(arg, "=")
		if len(name) < 2 || name[0] != '-' {
			words = append(words, arg)
			if len(words) == 1 && readsOptions(arg) {
				return append(words, args[i+1:]...), help, err
			}
			continue
		}
		// One dash or two, as in the flag package that the daemons use.
		name = strings.TrimPrefix(strings.TrimPrefix(name, "-"), "-")
		var path *string
		switch name {
		case "pin-path":
			path = &inv.pinPath
		case "socket":
			path = &inv.socket
		}
		if path != nil {
			if !hasValue && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
				i++
				value = args[i]
			}
			if value == "" {
				err = firstError(err, usagef("option --%s needs a path", name))
			}
			*path = value
			continue
		}
		if hasValue {
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

// objectNames are the words that may stand first.
func objectNames() []string {
	var names []string
	for _, o := range objects() {
		names = append(names, o.name)
	}
	return append(names, "help", "version")
}

// readsOptions tells whether word is the name of an object that reads the
// options after it itself.
func readsOptions(word string) bool {
	name, err := match("object", word, objectNames())
	for _, o := range objects() {
		if err == nil && o.name == name {
			return o.ownOptions
		}
	}
	return false
}

// words reads OBJECT, COMMAND and what belongs to it.
func (inv *invocation) words(words []string, wantHelp bool) error {
	name, err := match("object", words[0], objectNames())
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
	for _, o := range objects() {
		if o.name == name {
			return inv.objectWords(o, words[1:], wantHelp)
		}
	}
	return usagef("unknown object %q", name)
}

func (inv *invocation) objectWords(o object, words []string, wantHelp bool) (err error) {
	if wantHelp {
		inv.help = o.usage()
		return nil
	}
	c, prefix := o.commands[0], o.name
	switch {
	case c.name == "": // the object is its own command
		if len(words) == 1 && (words[0] == "help" || o.ownOptions && isHelp(words[0])) {
			inv.help = o.usage()
			return nil
		}
	case len(words) > 0:
		names := []string{"help"}
		for _, c := range o.commands {
			names = append(names, c.name)
			if c.alias != "" {
				names = append(names, c.alias)
			}
		}
		name, err := match("command", words[0], names)
		if err != nil {
			return err
		}
		if name == "help" {
			inv.help = o.usage()
			return nil
		}
		for _, known := range o.commands {
			if known.name == name || known.alias == name {
				c = known
			}
		}
		prefix += " " + c.name
		words = words[1:]
	}
	if inv.action, err = c.prepare(words); err != nil {
		return usagef("%s: %v", prefix, err)
	}
	return nil
}

// isHelp tells whether an option asks for the help.
func isHelp(option string) bool {
	return option == "-h" || option == "-help" || option == "--help"
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
