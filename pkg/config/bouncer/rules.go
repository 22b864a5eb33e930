package bouncer

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// rule is what becomes of a key that PgBouncer knows. The zero rule refuses it.
type rule[T any] struct {
	// set takes the value over; nil when the key is not supported.
	set func(dst *T, value string) error
	// only lists the values that are accepted of a key that is not supported,
	// because they say what we do anyway.
	only []string
	// moot says why a key has no effect; any value is accepted, with a
	// warning.
	moot string
}

// The rules that recur.
const (
	mootConffile = "the file is the one on the command line"
	mootJobName  = "no name is made of it here"
	mootBuffers  = "buffers are shared, and sized by the traffic"
	mootResolver = "names are resolved as the system does it"
	mootService  = "it is for Windows"
)

func supported[T any](set func(dst *T, value string) error) rule[T] { return rule[T]{set: set} }

func only[T any](values ...string) rule[T] { return rule[T]{only: values} }

func moot[T any](why string) rule[T] { return rule[T]{moot: why} }

// A timeout, limit or switch whose value 0 turns it off.
func off[T any]() rule[T] { return only[T]("0") }

// apply holds a key against the rules of its section and takes its value over.
func apply[T any](at line, section string, rules map[string]rule[T], dst *T, key, value string) (*Warning, error) {
	r, known := rules[key]
	switch {
	case !known:
		if name, ok := nearest(key, keysOf(rules)); ok {
			return nil, at.errorf("unknown key %q in [%s]; did you mean %q?", key, section, name)
		}
		return nil, at.errorf("unknown key %q in [%s]", key, section)
	case r.set != nil:
		if err := r.set(dst, value); err != nil {
			return nil, at.errorf("%s: %v", key, err)
		}
		return nil, nil
	case r.moot != "":
		w := Warning(*at.errorf("%s has no effect: %s", key, r.moot))
		return &w, nil
	case slices.ContainsFunc(r.only, func(s string) bool { return strings.EqualFold(s, value) }):
		return nil, nil
	case len(r.only) == 1:
		return nil, at.errorf("key %q in [%s] is known to PgBouncer but not supported yet, except with the value %q", key, section, r.only[0])
	}
	return nil, at.errorf("key %q in [%s] is known to PgBouncer but not supported yet", key, section)
}

func keysOf[T any](rules map[string]rule[T]) []string {
	keys := make([]string, 0, len(rules))
	for k := range rules {
		keys = append(keys, k)
	}
	slices.Sort(keys) // so that a tie always has the same winner
	return keys
}

// Bounds of the numbers. PostgreSQL itself ends at 262143 connections
// (MAX_BACKENDS); a client costs a file descriptor.
const (
	maxPool    = 262143
	maxClients = 1 << 20
	maxStmts   = 1 << 20
	maxBacklog = 65535
	maxInt32   = 1<<31 - 1
	// minPacket lets the messages through that hold no data.
	minPacket = 1024
	// maxKeepCount is the kernel's MAX_TCP_KEEPCNT.
	maxKeepCount = 127
	maxPeerID    = 16383 // PgBouncer's: it has 14 bits in a cancel key
	maxPeers     = 16383
	maxVerbose   = 9
	// A day, in seconds: averages over more say nothing.
	maxStatsPeriod = 86400
)

// Setters for the common types; field tells where the value goes.
func setInt[T any](low, high int, field func(*T) *int) rule[T] {
	return supported(func(dst *T, value string) error {
		n, err := parseInt(value, low, high)
		*field(dst) = n
		return err
	})
}

// setOwn is for a number that goes before the one in [pgbouncer] even if it is
// 0: that is kept as -1.
func setOwn[T any](high int, field func(*T) *int) rule[T] {
	return supported(func(dst *T, value string) error {
		n, err := parseInt(value, 0, high)
		if n == 0 {
			n = -1
		}
		*field(dst) = n
		return err
	})
}

func setTime[T any](field func(*T) *time.Duration) rule[T] {
	return supported(func(dst *T, value string) error {
		d, err := parseTime(value)
		*field(dst) = d
		return err
	})
}

// setOwnTime is for a time that goes before the one in [pgbouncer] even if it is
// 0: that is kept as -1.
func setOwnTime[T any](field func(*T) *time.Duration) rule[T] {
	return supported(func(dst *T, value string) error {
		d, err := parseTime(value)
		if d == 0 {
			d = -1
		}
		*field(dst) = d
		return err
	})
}

// setSeconds and setMillis are for times that PgBouncer has as whole numbers.
func setSeconds[T any](field func(*T) *time.Duration) rule[T] { return setUnits(field, time.Second) }

func setMillis[T any](field func(*T) *time.Duration) rule[T] {
	return setUnits(field, time.Millisecond)
}

func setUnits[T any](field func(*T) *time.Duration, unit time.Duration) rule[T] {
	return supported(func(dst *T, value string) error {
		n, err := parseInt(value, 0, min(maxInt32, int(maxTime/unit)))
		*field(dst) = time.Duration(n) * unit
		return err
	})
}

// setPositive is for timeouts that cannot be turned off: without them a dead
// host would hold its connections for ever.
func setPositive[T any](field func(*T) *time.Duration) rule[T] {
	return supported(func(dst *T, value string) error {
		d, err := parseTime(value)
		if err == nil && d == 0 {
			err = fmt.Errorf("%q must be more than zero", value)
		}
		*field(dst) = d
		return err
	})
}

func setBool[T any](field func(*T) *bool) rule[T] {
	return supported(func(dst *T, value string) error {
		b, err := parseBool(value)
		*field(dst) = b
		return err
	})
}

func setList[T any](field func(*T) *[]string) rule[T] {
	return supported(func(dst *T, value string) error {
		*field(dst) = parseList(value)
		return nil
	})
}

// setText is for texts that may be empty.
func setText[T any](field func(*T) *string) rule[T] {
	return supported(func(dst *T, value string) error {
		*field(dst) = value
		return nil
	})
}

func setString[T any](field func(*T) *string) rule[T] {
	return supported(func(dst *T, value string) error {
		if value == "" {
			return fmt.Errorf("value is empty")
		}
		*field(dst) = value
		return nil
	})
}

// setAuthType tells apart what PgBouncer has and we have not from what nobody
// has.
func setAuthType(c *Config, value string) error {
	v := strings.ToLower(value)
	switch v {
	case string(AuthTrust), string(AuthMD5), string(AuthSCRAM), string(AuthPlain), string(AuthAny), string(AuthCert), string(AuthPeer), string(AuthHBA):
		c.AuthType = AuthType(v)
		return nil
	case "ldap", "pam":
		return fmt.Errorf("%q is known to PgBouncer but not supported: it would need a library in C that asks another server", value)
	}
	return fmt.Errorf("%q is not one of scram-sha-256, md5, trust, plain, any, cert, peer and hba", value)
}

// setWord takes one of some words.
func setWord[T any](field func(*T) *string, words ...string) rule[T] {
	return supported(func(dst *T, value string) error {
		v := strings.ToLower(value)
		if !slices.Contains(words, v) {
			last := len(words) - 1
			return fmt.Errorf("%q is not one of %s and %s", value, strings.Join(words[:last], ", "), words[last])
		}
		*field(dst) = v
		return nil
	})
}

// setSocketMode takes an octal number.
func setSocketMode(f *file, value string) error {
	n, err := strconv.ParseUint(value, 8, 32)
	if err != nil || n > 0o777 {
		return fmt.Errorf("%q is no octal number up to 0777", value)
	}
	f.UnixSocketMode = uint32(n)
	return nil
}

// setPoolMode takes one of PgBouncer's pool modes.
func setPoolMode[T any](field func(*T) *string) rule[T] {
	return setWord(field, "session", "transaction", "statement")
}
