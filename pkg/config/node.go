package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxErrors bounds how many faults of one file are reported: more only hide
// the first.
const maxErrors = 20

// Error is one reason why a file was refused.
type Error struct {
	File   string
	Line   int    // counted from 1; 0 where the fault has no line
	Path   string // such as services[0].backends[1].address; "" for the file
	Reason string
}

// Error returns "FILE:LINE: PATH: REASON".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	if e.Path != "" {
		b.WriteString(": " + e.Path)
	}
	b.WriteString(": " + e.Reason)
	return b.String()
}

// A decoder walks the YAML tree and collects what is wrong with it. The tree
// is walked by hand, not decoded into structs, because only the nodes know
// the line of a value that is well-formed but wrong.
type decoder struct {
	file   string
	errors []*Error
}

func (d *decoder) fail(line int, path, format string, args ...any) {
	d.errors = append(d.errors, &Error{d.file, line, path, fmt.Sprintf(format, args...)})
}

// err joins the collected faults in the order of their lines; nil if none.
func (d *decoder) err() error {
	slices.SortStableFunc(d.errors, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	var errs []error
	for i, e := range d.errors {
		if i == maxErrors {
			errs = append(errs, fmt.Errorf("%s: and %d more errors", d.file, len(d.errors)-i))
			break
		}
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

// A node is a YAML node and the place where it was found.
type node struct {
	*yaml.Node
	d    *decoder
	path string
}

func (n node) fail(format string, args ...any) { n.d.fail(n.Line, n.path, format, args...) }

// A section is a mapping whose keys have been checked.
type section struct {
	node
	fields map[string]node
	broken bool // not a mapping; keys missing in it are not reported on top
}

// yamlLine finds the line in an error of the YAML parser, which has no field for it.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// document parses data and returns the root of its only document.
func (d *decoder) document(data []byte) (node, bool) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		d.syntax(err)
		return node{}, false
	}
	if err := dec.Decode(&more); err == nil {
		d.fail(more.Line, "", "file holds more than one YAML document")
		return node{}, false
	} else if !errors.Is(err, io.EOF) {
		d.syntax(err)
		return node{}, false
	}
	if len(doc.Content) == 0 {
		d.fail(0, "", "file is empty")
		return node{}, false
	}
	return d.resolve(doc.Content[0], ""), true
}

func (d *decoder) syntax(err error) {
	if errors.Is(err, io.EOF) {
		d.fail(0, "", "file is empty")
		return
	}
	line, reason := 0, err.Error()
	if m := yamlLine.FindStringSubmatch(reason); m != nil {
		line, _ = strconv.Atoi(m[1]) // no line in the message leaves 0, which means that
		reason = m[2]
	}
	d.fail(line, "", "not valid YAML: %s", reason)
}

// resolve follows an alias. Cycles do no harm: the walk goes as deep as the
// schema, not as the tree.
func (d *decoder) resolve(y *yaml.Node, path string) node {
	if y.Kind == yaml.AliasNode && y.Alias != nil {
		y = y.Alias
	}
	return node{y, d, path}
}

// kind names what stands at the node, for messages.
func (n node) kind() string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "nothing"
	}
	return strconv.Quote(n.Value)
}

// section reads a mapping that may have the given keys and no others.
func (n node) section(keys ...string) section {
	s := section{node: n, fields: map[string]node{}}
	if n.Kind != yaml.MappingNode {
		n.fail("want a mapping (key: value), found %s", n.kind())
		s.broken = true
		return s
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, path := n.Content[i], n.Content[i].Value
		if n.path != "" {
			path = n.path + "." + path
		}
		switch {
		case key.Kind != yaml.ScalarNode:
			n.d.fail(key.Line, n.path, "a key must be a plain word")
		case !slices.Contains(keys, key.Value):
			n.d.fail(key.Line, path, "unknown key; the keys here are %s", strings.Join(keys, ", "))
		case s.has(key.Value):
			n.d.fail(key.Line, path, "key stands twice; it was first set in line %d", s.fields[key.Value].Line)
		default:
			s.fields[key.Value] = n.d.resolve(n.Content[i+1], path)
		}
	}
	return s
}

func (s section) has(key string) bool {
	_, ok := s.fields[key]
	return ok
}

// sub reads the mapping under key; absent, it is an empty one.
func (s section) sub(key string, keys ...string) section {
	if n, ok := s.fields[key]; ok {
		return n.section(keys...)
	}
	return section{node: s.at(key), fields: map[string]node{}}
}

// at is the place of a key for messages: that of its value if there is one,
// else that of the mapping in which it is missing.
func (s section) at(key string) node {
	if n, ok := s.fields[key]; ok {
		return n
	}
	path := key
	if s.path != "" {
		path = s.path + "." + key
	}
	return node{s.Node, s.d, path}
}

// list reads the sequence under key, which has between lo and hi elements;
// absent, it is an empty one, which is refused when lo is above 0.
func (s section) list(key string, lo, hi int) []node {
	n := s.at(key)
	if !s.has(key) {
		if lo > 0 && !s.broken {
			n.fail("is missing")
		}
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		n.fail("want a list, found %s", n.kind())
		return nil
	}
	if len(n.Content) < lo || len(n.Content) > hi {
		n.fail("has %d entries; want %d to %d", len(n.Content), lo, hi)
		return nil
	}
	var l []node
	for i, y := range n.Content {
		l = append(l, n.d.resolve(y, fmt.Sprintf("%s[%d]", n.path, i)))
	}
	return l
}

// get reads the scalar under key with parse; absent, it is def.
func get[T any](s section, key string, def T, parse func(node) (T, error)) T {
	if !s.has(key) {
		return def
	}
	return scalar(s.fields[key], parse)
}

// need reads the scalar under key with parse; absent, it is an error.
func need[T any](s section, key string, parse func(node) (T, error)) T {
	if !s.has(key) {
		if !s.broken {
			s.at(key).fail("is missing")
		}
		var zero T
		return zero
	}
	return scalar(s.fields[key], parse)
}

// scalar reads one value with parse, whose error says what is wrong with it.
func scalar[T any](n node, parse func(node) (T, error)) T {
	var zero T
	if n.Kind != yaml.ScalarNode {
		n.fail("want one value, found %s", n.kind())
		return zero
	}
	if n.Tag == "!!null" {
		n.fail("has no value")
		return zero
	}
	v, err := parse(n)
	if err != nil {
		n.fail("%s", err)
		return zero
	}
	return v
}
