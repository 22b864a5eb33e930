package main

import (
	"fmt"

	"github.com/pgsteer/pgsteer/pkg/config"
)

func configCommands() []command {
	return []command{{
		name: "check", args: "[FILE]", about: `reads a configuration of pgsteerd's, ` + defaultConfig + ` without FILE, by
the daemon's own rules, and says what is wrong with it, each fault with its line.
It touches nothing else; what only the machine can tell is for pgsteer doctor.`,
		prepare: func(args []string) (action, error) {
			switch {
			case len(args) > 1:
				return nil, usagef("nothing may follow the file, but %q was given", args[1])
			case len(args) == 1 && args[0] == "":
				return nil, usagef("the name of the file is empty")
			case len(args) == 1:
				return func(s *session) error { return checkConfig(s, args[0]) }, nil
			}
			return func(s *session) error { return checkConfig(s, defaultConfig) }, nil
		},
	}}
}

func checkConfig(s *session, file string) error {
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	if s.out.json {
		return s.out.value(map[string]any{"file": file, "node": cfg.Node, "valid": true})
	}
	if _, err := fmt.Fprintf(s.out.w, "%s: configuration is valid\n", file); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}
