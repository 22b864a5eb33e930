package bouncer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzINI looks for text that makes the parser panic, accept nonsense or
// report a place outside the file. Includes are left out: they would read the
// machine's files.
func FuzzINI(f *testing.F) {
	for _, pattern := range []string{"testdata/*.ini", "testdata/bad/*.ini"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(data))
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, directive) {
			t.Skip()
		}
		c := newFile()
		err := parseData("f", text, c, []string{"f"})
		if err == nil {
			err = c.finish("f")
		}
		if err != nil {
			e, ok := err.(*Error)
			if !ok {
				t.Fatalf("error is a %T: %v", err, err)
			}
			if e.File != "f" || e.Line < 0 || e.Line > strings.Count(text, "\n")+1 || e.Msg == "" {
				t.Fatalf("error points nowhere: %#v", e)
			}
			return
		}
		if len(c.ListenAddr) == 0 && c.UnixSocketDir == "" || c.ListenPort < 1 || c.ListenPort > 65535 || c.DefaultPoolSize < 1 || c.MaxClientConn < 1 {
			t.Fatalf("accepted %+v", c.Config)
		}
		for _, d := range c.Databases {
			if d.Name == "" || d.Host == "" || d.DBName == "" || d.PoolSize < 1 || d.Port < 1 {
				t.Fatalf("accepted %+v", d)
			}
		}
	})
}

// FuzzUsers does the same for the user list, and checks that what was read can
// be written and read again.
func FuzzUsers(f *testing.F) {
	files, err := filepath.Glob("testdata/bad/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range append(files, "testdata/good.txt") {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		if len(data) < 1000 { // the one with the long password is no use as a seed
			f.Add(string(data))
		}
	}
	quote := func(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
	f.Fuzz(func(t *testing.T, text string) {
		users, err := parseUsers("f", text)
		if err != nil {
			if e, ok := err.(*Error); !ok || e.Line < 1 || e.Line > strings.Count(text, "\n")+1 {
				t.Fatalf("error points nowhere: %v", err)
			}
			return
		}
		var b strings.Builder
		for _, u := range users {
			b.WriteString(quote(u.Name) + "\t" + quote(u.Secret) + "\n")
		}
		again, err := parseUsers("f", b.String())
		if err != nil || len(again) != len(users) {
			t.Fatalf("written and read again: %v", err)
		}
		for i := range users {
			if users[i] != again[i] {
				t.Fatalf("user %d: %q became %q", i, users[i], again[i])
			}
		}
	})
}
