package hba

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Error is what is wrong with a line.
type Error struct {
	File string
	Line int
	Msg  string
}

// Error returns "file:line: what is wrong".
func (e *Error) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg) }

// token is a word of a line. Quoted ones are never keywords.
type token struct {
	text   string
	quoted bool
}

func (t token) is(word string) bool { return !t.quoted && t.text == word }

var comma = token{text: ","}

// maxIncluded bounds the files that @ includes, one within another.
const maxIncluded = 10

// tokens splits a line. A # begins a comment, "" within quotes stands for ".
func tokens(line string) (out []token, err error) {
	for i := 0; i < len(line); {
		switch c := line[i]; {
		case c == ' ' || c >= '\t' && c <= '\r':
			i++
		case c == '#':
			return out, nil
		case c == ',':
			out = append(out, comma)
			i++
		case c == '"':
			var b strings.Builder
			for i++; ; i++ {
				if i == len(line) {
					return nil, fmt.Errorf("quotation mark without its match")
				}
				if line[i] == '"' {
					if i+1 == len(line) || line[i+1] != '"' {
						break
					}
					i++
				}
				b.WriteByte(line[i])
			}
			i++
			out = append(out, token{b.String(), true})
		default:
			end := i
			for end < len(line) && !strings.ContainsRune(" \t\n\v\f\r,#\"", rune(line[end])) {
				end++
			}
			out = append(out, token{text: line[i:end]})
			i = end
		}
	}
	return out, nil
}

// lines calls each for the lines of a text that are not empty.
func lines(file, text string, each func(words []token) error) error {
	for i, line := range strings.Split(text, "\n") {
		words, err := tokens(line)
		if err == nil && len(words) > 0 {
			err = each(words)
		}
		if err != nil {
			return &Error{file, i + 1, err.Error()}
		}
	}
	return nil
}

// Load reads the file of rules, and the one of mappings unless its name is
// empty.
func Load(rules, idents string) (Rules, error) {
	var maps map[string][]Mapping
	if idents != "" {
		text, err := os.ReadFile(idents)
		if err != nil {
			return nil, fmt.Errorf("failed to read configuration: %w", err)
		}
		if maps, err = ParseIdent(idents, string(text)); err != nil {
			return nil, err
		}
	}
	text, err := os.ReadFile(rules)
	if err != nil {
		return nil, fmt.Errorf("failed to read configuration: %w", err)
	}
	return Parse(rules, string(text), maps, os.ReadFile)
}

// Parse decodes rules. File is for errors and for what @ includes, which read
// reads.
func Parse(file, text string, maps map[string][]Mapping, read func(name string) ([]byte, error)) (Rules, error) {
	var out Rules
	n := 0
	err := lines(file, text, func(words []token) error {
		p := parser{words: words, maps: maps, dir: filepath.Dir(file), read: read}
		r, err := p.rule()
		if err != nil {
			return err
		}
		out = append(out, r)
		return nil
	})
	if err != nil {
		return nil, err
	}
	// The numbers of the lines, for the log.
	for i, line := range strings.Split(text, "\n") {
		if words, _ := tokens(line); len(words) > 0 {
			out[n].Line = i + 1
			n++
		}
	}
	return out, nil
}

// parser has the rest of a line.
type parser struct {
	words []token
	maps  map[string][]Mapping
	dir   string
	read  func(string) ([]byte, error)
}

// next takes a word; what it is not there for is said.
func (p *parser) next(what string) (token, error) {
	if len(p.words) == 0 || p.words[0] == comma {
		return token{}, fmt.Errorf("no %s", what)
	}
	t := p.words[0]
	p.words = p.words[1:]
	return t, nil
}

func (p *parser) rule() (r Rule, err error) {
	kind, err := p.next("type")
	if err != nil {
		return r, err
	}
	var ok bool
	if r.Kind, ok = map[string]Kind{"local": Local, "host": Host, "hostssl": HostSSL, "hostnossl": HostNoSSL}[kind.text]; !ok || kind.quoted {
		return r, fmt.Errorf("%q is not one of local, host, hostssl and hostnossl", kind.text)
	}
	if r.Databases, err = p.names("database", true, 0); err != nil {
		return r, err
	}
	if r.Users, err = p.names("user", false, 0); err != nil {
		return r, err
	}
	if r.Kind != Local {
		if err := p.address(&r); err != nil {
			return r, err
		}
	}
	if err := p.method(&r); err != nil {
		return r, err
	}
	return r, p.options(&r)
}

// names takes a list. PgBouncer takes keywords that are for databases among
// users, too, where they mean nothing; here they are names there.
func (p *parser) names(what string, databases bool, depth int) (n Names, err error) {
	for {
		t, err := p.next(what)
		if err != nil {
			return n, err
		}
		switch {
		case t.is("all"):
			n.All = true
		case databases && t.is("sameuser"):
			n.Same = true
		case databases && t.is("replication"):
			// For replication connections, which there are none of.
		case databases && (t.is("samerole") || t.is("samegroup")), !t.quoted && strings.HasPrefix(t.text, "+"):
			return n, fmt.Errorf("%s: membership in roles is not known here", t.text)
		case !t.quoted && strings.HasPrefix(t.text, "/"):
			return n, fmt.Errorf("%s: regular expressions are not supported", t.text)
		case !t.quoted && strings.HasPrefix(t.text, "@"):
			if err := p.include(&n, t.text[1:], what, databases, depth); err != nil {
				return n, err
			}
		default:
			n.Exact = append(n.Exact, t.text)
		}
		if len(p.words) == 0 || p.words[0] != comma {
			return n, nil
		}
		p.words = p.words[1:]
	}
}

// include adds the names in a file, separated by commas or in lines.
func (p *parser) include(n *Names, name, what string, databases bool, depth int) error {
	if depth == maxIncluded {
		return fmt.Errorf("@%s: more than %d files one within another", name, maxIncluded)
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(p.dir, name)
	}
	text, err := p.read(name)
	if err != nil {
		return fmt.Errorf("failed to include names: %w", err)
	}
	return lines(name, string(text), func(words []token) error {
		sub := parser{words: words, dir: filepath.Dir(name), read: p.read}
		for len(sub.words) > 0 {
			more, err := sub.names(what, databases, depth+1)
			if err != nil {
				return err
			}
			n.All, n.Same = n.All || more.All, n.Same || more.Same
			n.Exact = append(n.Exact, more.Exact...)
		}
		return nil
	})
}

// address takes an address with its mask, or a keyword.
func (p *parser) address(r *Rule) error {
	t, err := p.next("address")
	if err != nil {
		return err
	}
	switch {
	case t.is("all"):
		r.AnyAddress = true
		return nil
	case t.is("samehost"):
		r.SameHost = true
		return nil
	case t.is("samenet"):
		r.SameNet = true
		return nil
	case strings.Contains(t.text, "/"):
		if r.Network, err = netip.ParsePrefix(t.text); err != nil || r.Network.Addr().Is4In6() {
			return fmt.Errorf("%q is no network", t.text)
		}
		r.Network = r.Network.Masked()
		return nil
	}
	if r.Base, err = netip.ParseAddr(t.text); err != nil || r.Base.Is4In6() || r.Base.Zone() != "" {
		return fmt.Errorf("%q is neither an address nor all, samehost or samenet; names of hosts are not supported", t.text)
	}
	m, err := p.next("mask")
	if err != nil {
		return err
	}
	if r.Mask, err = netip.ParseAddr(m.text); err != nil || r.Mask.BitLen() != r.Base.BitLen() || r.Mask.Is4In6() {
		return fmt.Errorf("%q is no mask for %s", m.text, r.Base)
	}
	return nil
}

func (p *parser) method(r *Rule) error {
	t, err := p.next("method")
	if err != nil {
		return err
	}
	r.Method = Method(t.text)
	switch r.Method {
	case Trust, Reject, MD5, SCRAM, Password:
	case Cert:
		if r.Kind != HostSSL { // as PostgreSQL demands
			return fmt.Errorf("method cert is for hostssl only")
		}
	case Peer:
		if r.Kind != Local {
			return fmt.Errorf("method peer is for local only")
		}
	case "ldap", "pam":
		return fmt.Errorf("method %s is not supported: it would need a library in C that asks another server", t.text)
	default:
		return fmt.Errorf("method %q is not one of trust, reject, md5, scram-sha-256, password, cert and peer", t.text)
	}
	return nil
}

// options takes map=NAME.
func (p *parser) options(r *Rule) error {
	for len(p.words) > 0 {
		t := p.words[0]
		p.words = p.words[1:]
		name, ok := strings.CutPrefix(t.text, "map=")
		switch {
		case !ok:
			return fmt.Errorf("option %q is not map=NAME", t.text)
		case r.Method != Cert && r.Method != Peer:
			return fmt.Errorf("map is for the methods cert and peer only")
		case r.Map != nil:
			return fmt.Errorf("map appears twice")
		}
		if r.Map, ok = p.maps[name]; !ok {
			return fmt.Errorf("map %q is not in the file of mappings (auth_ident_file)", name)
		}
	}
	return nil
}

// ParseIdent decodes mappings, by the names of the maps.
func ParseIdent(file, text string) (map[string][]Mapping, error) {
	out := make(map[string][]Mapping)
	err := lines(file, text, func(words []token) error {
		switch {
		case len(words) != 3:
			return fmt.Errorf("want a map's name, a system user's and a user's")
		case !words[1].quoted && strings.HasPrefix(words[1].text, "/"):
			return fmt.Errorf("%s: regular expressions are not supported", words[1].text)
		}
		for _, w := range words {
			if w == comma {
				return fmt.Errorf("a comma where a name should be")
			}
		}
		m := Mapping{System: words[1].text, User: words[2].text}
		if words[2].is("all") {
			m.User, m.AnyUser = "", true
		}
		out[words[0].text] = append(out[words[0].text], m)
		return nil
	})
	return out, err
}
