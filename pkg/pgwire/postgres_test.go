package pgwire

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPostgresLogin(t *testing.T) {
	admin := superuser(t)
	admin.must(t, `create role scramuser login password 'geheim';
		create role trustuser login;
		create role clearuser login password 'geheim';
		set password_encryption = 'md5'; create role md5user login password 'geheim'`)
	stored := admin.must(t, `select rolpassword from pg_authid where rolname = 'md5user'`)
	md5Secret, err := ParseSecret(stored[0])
	if err != nil || md5Secret.Kind != SecretMD5 {
		t.Fatal(stored, err)
	}
	good, bad := PlainSecret("geheim"), PlainSecret("Geheim")
	for _, tt := range []struct {
		name  string
		login ServerLogin
		code  string // SQLSTATE of the refusal
		cause error
	}{
		{"scram", ServerLogin{User: "scramuser", Secret: good}, "", nil},
		{"scram wrong", ServerLogin{User: "scramuser", Secret: bad}, "28P01", nil},
		{"scram without", ServerLogin{User: "scramuser"}, "", ErrNoCredentials},
		{"unknown user", ServerLogin{User: "ghost", Secret: good}, "28P01", nil},
		{"md5", ServerLogin{User: "md5user", Secret: good}, "", nil},
		{"md5 from the hash", ServerLogin{User: "md5user", Secret: md5Secret}, "", nil},
		{"md5 wrong", ServerLogin{User: "md5user", Secret: bad}, "28P01", nil},
		{"trust", ServerLogin{User: "trustuser"}, "", nil},
		{"clear text, not allowed", ServerLogin{User: "clearuser", Secret: good}, "", ErrNoCredentials},
		{"clear text", ServerLogin{User: "clearuser", Secret: good, AllowCleartext: true}, "", nil},
		{"no database", ServerLogin{User: "scramuser", Secret: good, Database: "nowhere"}, "3D000", nil},
		{"bad parameter", ServerLogin{User: "scramuser", Secret: good, Params: []Param{{"nosuchthing", "1"}}}, "42704", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.login.Database == "" {
				tt.login.Database = "postgres"
			}
			tt.login.Params = append(tt.login.Params, Param{"application_name", "pgwire test"})
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			s, err := theCluster(t).login(ctx, tt.login)
			if tt.code != "" || tt.cause != nil {
				e, ok := errors.AsType[*Error](err)
				if ok != (tt.code != "") || ok && (e.Code != tt.code || e.Severity != "FATAL") || tt.cause != nil && !errors.Is(err, tt.cause) {
					t.Fatalf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.conn.Close()
			name, _ := reported(s.ServerSession, "application_name")
			version, _ := reported(s.ServerSession, "server_version")
			if name != "pgwire test" || version == "" || s.Key.PID == 0 || len(s.Key.Secret) != SecretLen30 {
				t.Errorf("session %+v", s.ServerSession)
			}
			// Nothing was swallowed or left: the next answer is the next one.
			rows := s.must(t, "select current_user || pg_backend_pid()")
			if want := fmt.Sprint(tt.login.User, s.Key.PID); len(rows) != 1 || rows[0] != want {
				t.Errorf("got %q, want %q", rows, want)
			}
		})
	}
}

// TestPostgresPassThrough: a client that proves its password to us lets us in
// at the server without our ever knowing it.
func TestPostgresPassThrough(t *testing.T) {
	admin := superuser(t)
	admin.must(t, `create role passer login password 'geheim'`)
	stored := admin.must(t, `select rolpassword from pg_authid where rolname = 'passer'`)
	secret, err := ParseSecret(stored[0])
	if err != nil || secret.Kind != SecretSCRAM {
		t.Fatal(stored, err)
	}
	if got := secret.verifier.Encode(); got != stored[0] {
		t.Errorf("%s encodes as %s", stored[0], got)
	}
	a := NewAuthenticator(AuthSCRAM, func(user string) (Secret, bool) { return secret, user == "passer" }, nil)
	got, err := connect(t, a, "passer", "geheim")
	if err != nil || got.err != nil {
		t.Fatal(err, got.err)
	}
	s := mustLogin(t, ServerLogin{User: "passer", Database: "postgres", Secret: secret, Keys: got.id.Keys})
	if rows := s.must(t, "select current_user"); rows[0] != "passer" {
		t.Errorf("got %q", rows)
	}
}

// TestPostgresSASLprep holds our preparation of passwords against PostgreSQL's:
// equal passwords give equal keys.
func TestPostgresSASLprep(t *testing.T) {
	admin := superuser(t)
	passwords := []string{
		"plain", "\u2168", "I\u00adX", "a\u00a0b", "\u00aa", "e\u0301", "\u0627\u0628", "\u0627\u0031\u00aa",
		"\u0627\u0031", "\u2168\a", "\u2168\ue000", "\u2168\U0001f600", "\u00ad", "\u200b\u2168",
		"\u2168\U000e0041", "\u1680\u2168", "\u0340\u00aa", "\ufdd0\u00aa", "\u0221\u00aa", "\ufb01\u0301",
	}
	// Characters that the tables care about, joined at random.
	rnd := rand.New(rand.NewPCG(15, 4013))
	pick := func() rune {
		sets := []runeSet{nonASCIISpace, mappedToNothing, prohibited, randALCat, randALCat, lCat, lCat, unassigned, {{0x20, 0x7e}}}
		set := sets[rnd.IntN(len(sets))]
		span := set[rnd.IntN(len(set))]
		return span[0] + rune(rnd.IntN(int(span[1]-span[0]+1)))
	}
	for range 300 {
		var b strings.Builder
		for range 1 + rnd.IntN(4) {
			if r := pick(); r > 0 && (r < 0xd800 || r > 0xdfff) {
				b.WriteRune(r)
			}
		}
		if b.Len() > 0 {
			passwords = append(passwords, b.String())
		}
	}
	admin.must(t, `create role prepper login`)
	prepared := 0
	for _, p := range passwords {
		quoted := strings.ReplaceAll(p, "'", "''")
		rows := admin.must(t, `set standard_conforming_strings = on; alter role prepper password '`+quoted+`';
			select rolpassword from pg_authid where rolname = 'prepper'`)
		theirs, err := ParseVerifier(rows[0])
		if err != nil {
			t.Fatalf("%+q: %v", p, err)
		}
		ours, err := NewVerifier(p, theirs.Salt, theirs.Iterations)
		if err != nil || ours.StoredKey != theirs.StoredKey || ours.ServerKey != theirs.ServerKey {
			t.Errorf("%+q: PostgreSQL prepares it in another way", p)
		}
		if saslPrep(p) != p {
			prepared++
		}
	}
	if prepared < 20 || prepared > len(passwords)-20 {
		t.Errorf("%d of %d passwords changed: both cases should be frequent", prepared, len(passwords))
	}
}

func TestPostgresCancel(t *testing.T) {
	s := superuser(t)
	admin := superuser(t)
	sleeping := func() bool {
		rows := admin.must(t, fmt.Sprintf("select 1 from pg_stat_activity where pid = %d and wait_event = 'PgSleep'", s.Key.PID))
		return len(rows) == 1
	}
	done := make(chan error, 1)
	go func() {
		_, err := s.query("select pg_sleep(60)")
		done <- err
	}()
	deadline := time.Now().Add(limit)
	for !sleeping() {
		if time.Now().After(deadline) {
			t.Fatal("the query does not start")
		}
	}
	request := func(key CancelKey) {
		conn, err := theCluster(t).dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := RequestCancel(t.Context(), conn, key); err != nil {
			t.Fatal(err)
		}
	}
	request(CancelKey{s.Key.PID, "nope"})
	if !sleeping() {
		t.Error("a wrong key cancels")
	}
	request(s.Key)
	err := <-done
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != CodeQueryCanceled {
		t.Errorf("got %v", err)
	}
	if rows := s.must(t, "select 1"); !slices.Equal(rows, []string{"1"}) {
		t.Errorf("afterwards: %q", rows)
	}
}

// TestPostgresStartup: the server takes our startup packets with odd contents as
// ReadStartup takes a client's.
func TestPostgresStartup(t *testing.T) {
	admin := superuser(t)
	admin.must(t, fmt.Sprintf(`create role %q login password 'x'`, strings.Repeat("u", MaxNameLen)))
	admin.must(t, fmt.Sprintf(`create database %q`, strings.Repeat("d", MaxNameLen)))
	s := mustLogin(t, ServerLogin{
		User: strings.Repeat("u", 80), Database: strings.Repeat("d", 80), Secret: PlainSecret("x"),
		Params: []Param{{"TimeZone", "UTC"}, {"timezone", "Asia/Tokyo"}, {"options", "-c work_mem=1MB"}},
	})
	want := fmt.Sprintf("%d %d Asia/Tokyo 1MB", MaxNameLen, MaxNameLen)
	rows := s.must(t, "select concat(length(current_user), ' ', length(current_database()), ' ', current_setting('timezone'), ' ', current_setting('work_mem'))")
	if len(rows) != 1 || rows[0] != want {
		t.Errorf("got %q, want %q", rows, want)
	}
}
