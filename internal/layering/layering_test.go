// Package layering holds the import rules of the tree. They are checked on the
// import declarations of every Go file, for all build tags at once.
package layering

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/pgsteer/pgsteer"

// floors are the rooms of the house, the lowest floor first. Imports go down
// only, and rooms on one floor never import each other. A room is a directory
// with everything below it; inside a room anything goes.
var floors = [][]string{
	{"internal/mute", "internal/durable"},
	{"pkg/pgwire", "pkg/vrrp", "pkg/notify"},
	{"pkg/lb", "pkg/health", "pkg/pooler"},
	{"pkg/xdp", "pkg/flowsync"},
	{"pkg/config", "pkg/stats", "pkg/lab", "pkg/admin", "pkg/capture", "pkg/doctor"},
	{"pkg/bench"},
	{"cmd/pgsteerd", "cmd/pgsteer-pooler", "cmd/pgsteer", "cmd/pgsteer-lab", "cmd/pgsteer-bench", "deploy", "internal/layering"},
}

// onlyFor names the rooms that may be imported by some of those above them
// only: no package but the programs knows the configuration.
var onlyFor = map[string][]string{
	"pkg/config": {"cmd/pgsteerd", "cmd/pgsteer-pooler", "cmd/pgsteer", "deploy"},
}

// owners says who may import a library that is not ours, by the longest prefix
// of its path. A library that is not listed may not be imported at all. Tests
// may use any listed library: they play the other side.
var owners = map[string][]string{
	"github.com/cilium/ebpf":           {"pkg/xdp", "pkg/capture", "pkg/bench"},
	"github.com/vishvananda/netlink":   {"pkg/vrrp", "pkg/xdp", "pkg/lab", "pkg/capture", "pkg/bench"},
	"github.com/vishvananda/netns":     {"pkg/vrrp", "pkg/xdp", "pkg/lab", "pkg/bench"},
	"github.com/mdlayher/arp":          {"pkg/vrrp"},
	"github.com/mdlayher/ethernet":     {"pkg/vrrp"},
	"github.com/mdlayher/ndp":          {"pkg/vrrp"},
	"github.com/mdlayher/packet":       {"pkg/vrrp"},
	"github.com/jackc/pgproto3":        {"pkg/pgwire", "pkg/pooler"},
	"github.com/jackc/pgx/v5":          {"pkg/lab"},
	"github.com/jackc/pgx/v5/pgproto3": {"pkg/pgwire", "pkg/pooler"},
	"github.com/prometheus":            {"pkg/stats"},
	"go.yaml.in/yaml":                  {"pkg/config"},
	"github.com/coreos/go-systemd/v22": {"cmd/pgsteerd", "cmd/pgsteer-pooler"},
	"github.com/google/go-cmp":         nil, // tests only
	"golang.org/x/net":                 {anyRoom},
	"golang.org/x/sync":                {anyRoom},
	"golang.org/x/sys":                 {anyRoom},
	"golang.org/x/text":                {anyRoom},
}

// anyRoom stands for all rooms in owners.
const anyRoom = "*"

// file is one Go file: where it is and what it imports.
type file struct {
	path    string // relative to the module's root, with slashes
	imports []string
}

func (f file) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }

// roomOf returns the room that a package directory belongs to and its floor.
func roomOf(dir string) (room string, floor int, ok bool) {
	for n, rooms := range floors {
		for _, r := range rooms {
			if dir == r || strings.HasPrefix(dir, r+"/") {
				return r, n, true
			}
		}
	}
	return "", 0, false
}

// ownersOf returns the owners of the library that holds the given package.
func ownersOf(imported string) (allowed []string, ok bool) {
	for prefix := imported; prefix != "."; prefix = path.Dir(prefix) {
		if allowed, ok := owners[prefix]; ok {
			return allowed, true
		}
	}
	return nil, false
}

// isStandard tells the standard library by the first element of the path,
// which has a dot in every other module's name.
func isStandard(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return !strings.Contains(first, ".")
}

// violations checks the files against the rules and returns a sentence for
// each import that breaks one.
func violations(files []file) []string {
	var out []string
	for _, f := range files {
		room, floor, ok := roomOf(path.Dir(f.path))
		if !ok {
			out = append(out, fmt.Sprintf("%s: %s is on no floor", f.path, path.Dir(f.path)))
			continue
		}
		for _, imported := range f.imports {
			if why := judge(f, room, floor, imported); why != "" {
				out = append(out, fmt.Sprintf("%s: imports %s: %s", f.path, imported, why))
			}
		}
	}
	return out
}

// judge returns what is wrong with one import, or nothing.
func judge(f file, room string, floor int, imported string) string {
	ours, isOurs := strings.CutPrefix(imported, module+"/")
	switch {
	case isOurs:
		target, below, ok := roomOf(ours)
		allowed, limited := onlyFor[target]
		switch {
		case !ok:
			return "it is on no floor"
		case target == room:
			return ""
		case below > floor:
			return fmt.Sprintf("imports go down only, and %s is above %s", target, room)
		case below == floor:
			return fmt.Sprintf("%s and %s are on one floor", room, target)
		case limited && !slices.Contains(allowed, room):
			return "it is only for " + strings.Join(allowed, ", ")
		}
	case imported == "C":
		return "the programs are static and use no cgo"
	case !isStandard(imported):
		allowed, ok := ownersOf(imported)
		switch {
		case !ok:
			return "the library has no owner"
		case f.isTest() || slices.Contains(allowed, anyRoom) || slices.Contains(allowed, room):
			return ""
		case len(allowed) == 0:
			return "it is for tests only"
		default:
			return "its owner is " + strings.Join(allowed, ", ")
		}
	}
	return ""
}

// readTree parses the import declarations of every Go file below root.
func readTree(root string) ([]file, error) {
	var files []file
	fset := token.NewFileSet()
	walk := func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			// As the go command does, and without what is built.
			if base := d.Name(); name != root && (base == "testdata" || base == "build" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")) {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(fset, name, nil, parser.ImportsOnly)
		if err != nil {
			return fmt.Errorf("reading imports: %w", err)
		}
		f := file{path: filepath.ToSlash(rel)}
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return fmt.Errorf("reading imports of %s: %w", rel, err)
			}
			f.imports = append(f.imports, imported)
		}
		files = append(files, f)
		return nil
	}
	if err := filepath.WalkDir(root, walk); err != nil {
		return nil, err
	}
	return files, nil
}

func TestTree(t *testing.T) {
	root := filepath.Join("..", "..")
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatalf("this is not the module's root: %v", err)
	}
	files, err := readTree(root)
	if err != nil {
		t.Fatal(err)
	}
	var seen bool
	for _, f := range files {
		seen = seen || f.path == "internal/layering/layering_test.go"
	}
	if !seen {
		t.Fatalf("the walk over %d files did not come by this one", len(files))
	}
	for _, v := range violations(files) {
		t.Error(v)
	}
}

// TestRules proves that each rule catches what breaks it, and nothing else.
func TestRules(t *testing.T) {
	for _, tt := range []struct {
		name, path, imported string
		want                 string // part of the sentence; empty if allowed
	}{
		{"standard library", "pkg/lb/lb.go", "net/netip", ""},
		{"down one floor", "pkg/xdp/xdp.go", module + "/pkg/lb", ""},
		{"down many floors", "cmd/pgsteerd/main.go", module + "/pkg/vrrp", ""},
		{"up", "pkg/lb/lb.go", module + "/pkg/xdp", "imports go down only"},
		{"up, in a test", "pkg/lb/lb_test.go", module + "/pkg/xdp", "imports go down only"},
		{"same floor", "pkg/health/health.go", module + "/pkg/lb", "on one floor"},
		{"program to program", "cmd/pgsteer/main.go", module + "/cmd/pgsteerd", "on one floor"},
		{"within a room", "pkg/config/bouncer/load.go", module + "/pkg/config", ""},
		{"sub-package keeps its floor", "pkg/lb/inner/x.go", module + "/pkg/config/bouncer", "imports go down only"},
		{"names that begin alike", "pkg/lbx/x.go", "fmt", "is on no floor"},
		{"unknown package of ours", "cmd/pgsteerd/main.go", module + "/pkg/lbx", "it is on no floor"},
		{"configuration into a program", "cmd/pgsteerd/main.go", module + "/pkg/config", ""},
		{"configuration into another program", "cmd/pgsteer-lab/main.go", module + "/pkg/config", "only for"},
		{"library of the owner", "pkg/xdp/xdp.go", "github.com/cilium/ebpf/link", ""},
		{"library of somebody else", "cmd/pgsteer/main.go", "github.com/cilium/ebpf", "its owner is pkg/xdp"},
		{"library of somebody else, in a test", "pkg/lab/lab_test.go", "github.com/cilium/ebpf", ""},
		{"longest prefix", "pkg/config/bouncer/load.go", "go.yaml.in/yaml/v3", ""},
		{"anybody's library", "pkg/pooler/loop.go", "golang.org/x/sys/unix", ""},
		{"test library", "pkg/lb/lb_test.go", "github.com/google/go-cmp/cmp", ""},
		{"test library in the product", "pkg/lb/lb.go", "github.com/google/go-cmp/cmp", "for tests only"},
		{"unlisted library", "cmd/pgsteerd/main.go", "github.com/sirupsen/logrus", "has no owner"},
		{"unlisted library in a test", "pkg/lb/lb_test.go", "github.com/stretchr/testify/require", "has no owner"},
		{"cgo", "pkg/lb/lb.go", "C", "no cgo"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Join(violations([]file{{path: tt.path, imports: []string{tt.imported}}}), "\n")
			if tt.want == "" && got != "" {
				t.Errorf("refused, but allowed by the rules: %s", got)
			}
			if tt.want != "" && !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want a sentence with %q", got, tt.want)
			}
		})
	}
}
