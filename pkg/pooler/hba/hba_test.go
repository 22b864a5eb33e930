package hba

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
)

const identText = `# map       system        user
certs	"CN of one"	app
certs	"CN of one"	"all"
certs	admin	all
`

// files are what @ may include.
var files = map[string]string{
	"/etc/apps":        "app1, app2\n\"quoted app\"\n@more # and more\n",
	"/etc/more":        "app3\n",
	"/etc/loop":        "@loop\n",
	"/absolute/people": "alice\n",
}

func readTest(name string) ([]byte, error) {
	if text, ok := files[name]; ok {
		return []byte(text), nil
	}
	return nil, os.ErrNotExist
}

func parseTest(t *testing.T, text string) Rules {
	t.Helper()
	maps, err := ParseIdent("/etc/ident", identText)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := Parse("/etc/hba", text, maps, readTest)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

const text = `
# TYPE  DATABASE  USER  ADDRESS  METHOD
local	all		all				peer map=certs
host	all		all		10.1.0.0/16	reject   # comment
hostssl	sales,"all"	app,admin	0.0.0.0/0	cert map=certs
hostssl all all ::/0 scram-sha-256
hostnossl	sameuser	all	192.168.0.0 255.255.255.0	md5
host	@apps	@/absolute/people	all	password
host	replication	all	all	trust
host	"replication"	rep	samehost	trust
host	near	all	samenet	trust
host	odd	all	10.0.0.5	255.0.0.255	trust
`

// TestMatch: whom which rule is for, by its line; 0 is none.
func TestMatch(t *testing.T) {
	rules := parseTest(t, text)
	own := func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("172.16.5.9/24")} }
	for _, tt := range []struct {
		client string // address and tls, database, user
		line   int
	}{
		{"local d u", 3},
		{"10.1.2.3 d u", 4}, {"10.1.2.3/tls sales app", 4}, {"::ffff:10.1.2.3 d u", 4},
		{"10.2.2.3/tls sales app", 5}, {"10.2.2.3/tls all admin", 5}, {"10.2.2.3/tls other app", 0}, {"10.2.2.3 sales app", 0},
		{"2001:db8::1/tls other app", 6}, {"2001:db8::1 other app", 0},
		{"192.168.0.7 bob bob", 7}, {"192.168.0.7 bob eve", 0}, {"192.168.1.7 bob bob", 0}, {"192.168.0.7/tls bob bob", 0},
		{"1.2.3.4 app1 alice", 8}, {"1.2.3.4 app3 alice", 8}, {"1.2.3.4 app3 bob", 0},
		{"1.2.3.4 any any", 0},
		{"172.16.5.9 replication rep", 10}, {"172.16.5.8 replication rep", 0},
		{"172.16.5.8 near u", 11}, {"172.16.6.8 near u", 0},
		{"10.7.8.5 odd u", 12}, {"10.7.8.6 odd u", 0}, {"::a07:805 odd u", 0},
	} {
		words := strings.Fields(tt.client)
		c := Client{Database: words[1], User: words[2], Own: own}
		addr, ssl := strings.CutSuffix(words[0], "/tls")
		if c.TLS = ssl; addr == "local" {
			c.Local = true
		} else {
			c.Addr = netip.MustParseAddr(addr)
		}
		line := 0
		if r := rules.Match(&c); r != nil {
			line = r.Line
		}
		if line != tt.line {
			t.Errorf("%s: line %d, want %d", tt.client, line, tt.line)
		}
	}
}

func TestAllows(t *testing.T) {
	rules := parseTest(t, text)
	mapped := &rules[0]
	for _, tt := range []struct {
		rule         *Rule
		called, user string
		want         bool
	}{
		{nil, "a", "a", true}, {nil, "a", "b", false}, {&rules[1], "a", "a", true},
		{mapped, "CN of one", "app", true}, {mapped, "CN of one", "all", true}, {mapped, "CN of one", "admin", false},
		{mapped, "admin", "whoever", true}, {mapped, "app", "app", false},
	} {
		if got := tt.rule.Allows(tt.user, func(n string) bool { return n == tt.called }); got != tt.want {
			t.Errorf("%q as %q: %t", tt.called, tt.user, got)
		}
	}
}

// TestBad: what is refused, and with what words.
func TestBad(t *testing.T) {
	maps, _ := ParseIdent("i", identText)
	for line, want := range map[string]string{
		"hostgssenc all all all trust":           `"hostgssenc" is not one of local`,
		`"host" all all all trust`:               "is not one of local",
		"host":                                   "no database",
		"host all":                               "no user",
		"host all all":                           "no address",
		"host all all all":                       "no method",
		"host a, all all trust":                  `"trust" is neither`,
		"host all,,b all all trust":              "no database",
		"host +group all all trust":              "membership",
		"host samerole all all trust":            "membership",
		"host /^db all all trust":                "regular expressions",
		"host @nothing all all trust":            "failed to include",
		"host @loop all all trust":               "one within another",
		`host "all all all trust`:                "without its match",
		"host all all 10.0.0.0/33 trust":         "is no network",
		"host all all 10.0.0/8 trust":            "is no network",
		"host all all db.example.net md5":        "names of hosts",
		"host all all 10.0.0.0 trust":            "is no mask",
		"host all all 10.0.0.0 ffff:: md5":       "is no mask",
		"host all all all ldap":                  "not supported",
		"host all all all gss":                   "is not one of",
		"host all all all cert":                  "for hostssl only",
		"host all all all peer":                  "for local only",
		"host all all all md5 map=certs":         "cert and peer only",
		"local all all peer map=none":            "not in the file of mappings",
		"local all all peer x=y":                 "is not map=NAME",
		"local all all peer map=certs map=certs": "twice",
		"local all all 10.0.0.0/8 peer":          `method "10.0.0.0/8" is not`,
	} {
		_, err := Parse("/etc/hba", "\n"+line, maps, readTest)
		if e, ok := errors.AsType[*Error](err); !ok || e.Line != 2 || !strings.Contains(e.Error(), want) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
	for _, line := range []string{"m s", "m s u v", "m , u", "m /^s$ u"} {
		if _, err := ParseIdent("i", line); err == nil {
			t.Errorf("ident %q was taken", line)
		}
	}
}

// FuzzParse: no input breaks the parser, and what it takes has a line each.
func FuzzParse(f *testing.F) {
	for _, line := range strings.Split(text, "\n") {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, text string) {
		rules, err := Parse("/etc/hba", text, nil, readTest)
		if err != nil {
			return
		}
		for i := range rules {
			if rules[i].Line < 1 || i > 0 && rules[i].Line <= rules[i-1].Line || rules[i].Method == "" {
				t.Errorf("rule %d: %+v", i, rules[i])
			}
			c := Client{Addr: netip.MustParseAddr("10.0.0.1"), Database: "d", User: "u"}
			_ = fmt.Sprint(rules[i].match(&c))
		}
	})
}
