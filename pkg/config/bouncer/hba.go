package bouncer

import (
	"errors"
	"slices"

	"github.com/pgsteer/pgsteer/pkg/pooler/hba"
)

// checkAuth looks at what several keys must say together.
func (f *file) checkAuth(at func(string) line) error {
	switch {
	case f.AuthType == AuthHBA && f.HBAFile == "":
		return at("auth_type").errorf("auth_type = hba needs auth_hba_file")
	case f.AuthType == AuthCert && f.ClientTLS.SSLMode != "verify-full":
		return at("auth_type").errorf("auth_type=cert requires client_tls_sslmode=verify-full")
	}
	return nil
}

// loadHBA reads the rules of auth_hba_file.
func (f *file) loadHBA() (err error) {
	if f.HBAFile == "" {
		return nil
	}
	f.HBA, err = hba.Load(f.HBAFile, f.IdentFile)
	if e, ok := errors.AsType[*hba.Error](err); ok {
		return &Error{File: e.File, Line: e.Line, Msg: e.Msg}
	}
	return err
}

// asks reports whether users may be found by auth_query, in some database.
func (f *file) asks() bool {
	some := func(d *Database) bool { return d != nil && d.AuthUser != "" }
	return f.AuthUser != "" || some(f.Fallback) || slices.ContainsFunc(f.Databases, func(d Database) bool { return some(&d) })
}
