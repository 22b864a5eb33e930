package bouncer

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Bounds that keep a wrong path from eating the memory.
const (
	maxInclude  = 10      // depth of %include: MAX_INCLUDE of PgBouncer
	maxFileSize = 8 << 20 // bytes; a user list of 50000 SCRAM secrets has 7 MB
)

// line is where something stands.
type line struct {
	file string
	no   int
}

func (l line) errorf(format string, args ...any) *Error {
	return &Error{File: l.file, Line: l.no, Msg: fmt.Sprintf(format, args...)}
}

// handler is told what an ini file says, in its order.
type handler interface {
	read(path string) ([]byte, error) // of an ini file
	section(at line, name string) error
	entry(at line, key, value string) error
}

// readFile reads a regular file of bounded size. The error names the file.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("failed to read configuration: %w", err)
	}
	if info.IsDir() {
		return nil, &Error{File: path, Msg: "is a directory"}
	}
	if info.Size() > maxFileSize {
		return nil, &Error{File: path, Msg: fmt.Sprintf("is larger than %d MiB", maxFileSize>>20)}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("failed to read configuration: %w", err)
	}
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return nil, line{path, 1 + bytes.Count(data[:i], []byte{'\n'})}.errorf("zero byte: not a text file")
	}
	return data, nil
}

// parseINI reads a file and those that it includes. As in PgBouncer, a path
// that is not absolute counts from the working directory, and a section goes on
// across the end of an included file.
func parseINI(path string, h handler) error {
	return parseFile(path, h, nil)
}

// parseFile does the work of parseINI; outer are the files that are being read.
func parseFile(path string, h handler, outer []string) error {
	data, err := h.read(path)
	if err != nil {
		return err
	}
	return parseData(path, string(data), h, append(outer, filepath.Clean(path)))
}

// parseData parses the contents of the innermost of the open files.
func parseData(path, data string, h handler, open []string) error {
	no := 0
	for text := range strings.Lines(data) {
		no++
		if err := parseLine(line{path, no}, strings.TrimSpace(text), h, open); err != nil {
			return err
		}
	}
	return nil
}

// parseLine handles one line without its surrounding space.
func parseLine(at line, text string, h handler, open []string) error {
	switch {
	case text == "" || text[0] == '#' || text[0] == ';':
		return nil
	case isInclude(text):
		return include(at, strings.TrimSpace(text[len(directive):]), h, open)
	case text[0] == '[':
		name, rest, ok := strings.Cut(text[1:], "]")
		if !ok {
			return at.errorf("section has no closing bracket")
		}
		if err := h.section(at, name); err != nil {
			return err
		}
		// Whatever follows on the line is parsed as PgBouncer does: it may be
		// a comment, or even an entry.
		return parseLine(at, strings.TrimSpace(rest), h, open)
	}
	key, rest, err := cutKey(at, text)
	if err != nil {
		return err
	}
	rest = strings.TrimLeft(rest, " \t")
	if !strings.HasPrefix(rest, "=") {
		return at.errorf("syntax error: want key = value")
	}
	return h.entry(at, key, strings.TrimLeft(rest[1:], " \t"))
}

// cutKey takes the key off the front of a line: letters, digits and "_.-*", or
// anything within single quotes (there is no escape).
func cutKey(at line, text string) (key, rest string, err error) {
	if text[0] == '\'' {
		key, rest, ok := strings.Cut(text[1:], "'")
		if !ok || key == "" {
			return "", "", at.errorf("quoted key is empty or has no closing quote")
		}
		return key, rest, nil
	}
	n := 0
	for n < len(text) && isKeyByte(text[n]) {
		n++
	}
	if n == 0 {
		return "", "", at.errorf("syntax error: want a section, key = value or a comment")
	}
	return text[:n], text[n:], nil
}

func isKeyByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_.-*", c) >= 0
}

// directive takes another file in.
const directive = "%include"

func isInclude(text string) bool {
	rest, ok := strings.CutPrefix(text, directive)
	return ok && (rest == "" || rest[0] == ' ' || rest[0] == '\t')
}

func include(at line, path string, h handler, open []string) error {
	if path == "" {
		return at.errorf("%%include names no file")
	}
	for _, o := range open {
		if o == filepath.Clean(path) {
			return at.errorf("%s includes itself", path)
		}
	}
	if len(open) > maxInclude {
		return at.errorf("%%include is nested more than %d deep", maxInclude)
	}
	if err := parseFile(path, h, open); err != nil {
		if _, ok := err.(*Error); ok { // it has a place of its own
			return err
		}
		return at.errorf("%v", err)
	}
	return nil
}
