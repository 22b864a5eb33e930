package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/pgsteer/pgsteer/pkg/flowsync"
)

func keygenCommands() []command {
	return []command{{
		args: "[ add | promote | retire ] [FILE]",
		about: `makes a new key, by which the two nodes know each other when they replicate
connections (sync.key_file). It is written to FILE, for its owner only, or to
standard output. A file that is there already is left alone.
To change keys while the nodes are linked: add appends a new key to FILE,
promote puts the last first, retire leaves the first only. The first is shown,
all are accepted. After each, copy the file and restart both daemons.`,
		prepare: func(args []string) (action, error) {
			for _, r := range rotations() {
				switch {
				case len(args) == 0 || args[0] != r.word:
				case len(args) == 1 || args[1] == "":
					return nil, usagef("%s needs the key file", r.word)
				case len(args) > 2:
					return nil, usagef("nothing may follow the file, but %q was given", args[2])
				default:
					return func(s *session) error { return rotate(s, r, args[1]) }, nil
				}
			}
			switch {
			case len(args) > 1:
				return nil, usagef("nothing may follow the file, but %q was given", args[1])
			case len(args) == 1 && args[0] == "":
				return nil, usagef("the name of the file is empty")
			case len(args) == 1:
				return func(s *session) error { return keygenFile(s, args[0]) }, nil
			}
			return keygen, nil
		},
	}}
}

// keygen writes a new key to standard output.
func keygen(s *session) error {
	text, err := flowsync.GenerateKey()
	if err != nil {
		return err
	}
	if s.out.json {
		return s.out.value(map[string]string{"key": string(text)})
	}
	_, err = s.out.w.Write(text)
	return err
}

// keygenFile writes a new key to a file, and says what to do with it.
func keygenFile(s *session, path string) error {
	text, err := flowsync.GenerateKey()
	if err != nil {
		return err
	}
	if err := createSecret(path, text); err != nil {
		return err
	}
	key, err := flowsync.LoadKey(path) // as pgsteerd will
	if err != nil {
		return err
	}
	if s.out.json {
		return s.out.value(map[string]string{"file": path, "fingerprint": key.Fingerprint()})
	}
	return s.out.remark("%s: key %s\nCopy it to the other node as the same file, mode 0600, then restart pgsteerd on both.\n", path, key.Fingerprint())
}

// createSecret makes a file that only its owner can read, whole or not at all.
func createSecret(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already: a key that is in use is not overwritten; remove it first", path)
	}
	if err != nil {
		return fmt.Errorf("creating the key file: %w", err)
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing the key file: %w", errors.Join(err, os.Remove(path)))
	}
	return nil
}
