package xdp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// The pinned tables are described by one more pinned map, so that any later
// program can read them. The kernel has the same in its type information, but
// hands that to CAP_SYS_ADMIN only, which the daemon does not have; it serves
// for tables that were pinned without a description.

// descriptionPin is the map's name.
const descriptionPin = "layout"

// meaning is raised by whoever gives a field that keeps its name another
// meaning, such as another unit: what goes by names cannot see that.
const meaning = 1

// description is what is pinned.
type description struct {
	Meaning int                         `json:"meaning"`
	Tables  map[string]tableDescription `json:"tables"`
	// Verdicts are the names of the entries of the table of that name; nil when
	// they are not known.
	Verdicts []string `json:"verdicts"`
}

type tableDescription struct {
	Key   shape `json:"key"`
	Value shape `json:"value"`
}

// describe describes the tables of programs as they are built.
func describe(specs ...*ebpf.CollectionSpec) (description, error) {
	d := description{Meaning: meaning, Tables: make(map[string]tableDescription)}
	for _, spec := range specs {
		for name, m := range spec.Maps {
			if !pinned(name) {
				continue
			}
			var t tableDescription
			var err, errValue error
			t.Key, err = shapeOf(m.Key)
			t.Value, errValue = shapeOf(m.Value)
			if err := errors.Join(err, errValue); err != nil {
				return d, fmt.Errorf("table %s: %w", name, err)
			}
			d.Tables[name] = t
		}
	}
	var err error
	d.Verdicts, err = verdictNames()
	return d, err
}

// pin writes the description under a name beside the tables.
func (d *description) pin(path string) error {
	text, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("describing the tables: %w", err)
	}
	text = append(text, 0)
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: descriptionPin, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(align8(len(text))), MaxEntries: 1,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: append(text, make([]byte, align8(len(text))-len(text))...)}},
	})
	if err != nil {
		return fmt.Errorf("making the tables' description: %w", err)
	}
	defer m.Close()
	if err := removePin(path); err != nil {
		return err
	}
	if err := m.Pin(path); err != nil {
		return fmt.Errorf("pinning the tables' description: %w", err)
	}
	return nil
}

// readDescription returns nil when there is none.
func readDescription(path string) (*description, error) {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the tables' description: %w", err)
	}
	defer m.Close()
	text, err := m.LookupBytes(uint32(0))
	if err != nil {
		return nil, fmt.Errorf("reading the tables' description: %w", err)
	}
	end := bytes.IndexByte(text, 0)
	if end < 0 {
		return nil, fmt.Errorf("%s is no description of tables", path)
	}
	var d description
	if err := json.Unmarshal(text[:end], &d); err != nil {
		return nil, fmt.Errorf("%s is no description of tables: %w", path, err)
	}
	return &d, nil
}

// describePinned asks the kernel what is pinned, for tables without a
// description. The types go by the names that they have in the program.
func describePinned(dir string, specs ...*ebpf.CollectionSpec) (*description, error) {
	d := &description{Meaning: meaning, Tables: make(map[string]tableDescription)}
	for _, spec := range specs {
		for name, ms := range spec.Maps {
			if !pinned(name) {
				continue
			}
			m, err := openPinned(filepath.Join(dir, name))
			if err != nil {
				return nil, err
			}
			if m == nil {
				continue
			}
			t, err := describeMap(m, ms)
			if err := errors.Join(err, m.Close()); err != nil {
				return nil, fmt.Errorf("%w: there is no description of %s, and the kernel gives none: %w", ErrTables, name, err)
			}
			d.Tables[name] = t
		}
	}
	if len(d.Tables) == 0 {
		return nil, nil
	}
	return d, nil
}

func describeMap(m *ebpf.Map, like *ebpf.MapSpec) (t tableDescription, err error) {
	handle, err := m.Handle()
	if err != nil {
		return t, err
	}
	defer handle.Close()
	types, err := handle.Spec(nil)
	if err != nil {
		return t, err
	}
	find := func(like btf.Type, size uint32) (shape, error) {
		named, ok := btf.UnderlyingType(like).(*btf.Struct)
		if !ok {
			return shape{Size: size}, nil
		}
		all, err := types.AnyTypesByName(named.Name)
		if err != nil {
			return shape{}, err
		}
		for _, one := range all {
			if was, ok := one.(*btf.Struct); ok && was.Size == size {
				return shapeOf(was)
			}
		}
		return shape{}, fmt.Errorf("no struct %s has %d bytes, as the entries do", named.Name, size)
	}
	if t.Key, err = find(like.Key, m.KeySize()); err != nil {
		return t, err
	}
	t.Value, err = find(like.Value, m.ValueSize())
	return t, err
}

// openPinned returns nil when nothing is pinned there.
func openPinned(path string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the pinned table %s: %w", filepath.Base(path), err)
	}
	return m, nil
}

func removePin(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing a pin: %w", err)
	}
	return nil
}

// differs says whether a table has another layout in the two descriptions. One
// that only one of them has does not.
func (d *description) differs(o *description, name string) bool {
	a, ok := d.Tables[name]
	b, both := o.Tables[name]
	if !ok || !both {
		return false
	}
	if name == balancerMapVerdicts && d.Verdicts != nil && !slices.Equal(d.Verdicts, o.Verdicts) {
		return true
	}
	return !a.Key.equal(&b.Key) || !a.Value.equal(&b.Value)
}
