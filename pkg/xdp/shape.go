package xdp

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/cilium/ebpf/btf"
)

// A shape is how a key or value lies in memory: a number, an array, or a
// struct. All machines that the program is built for are little-endian.
type shape struct {
	Size   uint32  `json:"s"` // bytes
	Signed bool    `json:"n,omitempty"`
	Elem   *shape  `json:"e,omitempty"` // of an array
	Fields []field `json:"f,omitempty"` // of a struct
}

type field struct {
	Name   string `json:"k"`
	Offset uint32 `json:"o"` // bytes
	Shape  shape  `json:"t"`
}

// shapeOf reads a shape from type information.
func shapeOf(t btf.Type) (shape, error) {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Int:
		return shape{Size: t.Size, Signed: t.Encoding == btf.Signed}, nil
	case *btf.Enum:
		return shape{Size: t.Size, Signed: t.Signed}, nil
	case *btf.Array:
		elem, err := shapeOf(t.Type)
		if err != nil {
			return shape{}, err
		}
		return shape{Size: t.Nelems * elem.Size, Elem: &elem}, nil
	case *btf.Struct:
		s := shape{Size: t.Size}
		for _, m := range t.Members {
			if m.BitfieldSize != 0 {
				return shape{}, fmt.Errorf("field %s is made of bits", m.Name)
			}
			f, err := shapeOf(m.Type)
			if err != nil {
				return shape{}, fmt.Errorf("field %s: %w", m.Name, err)
			}
			s.Fields = append(s.Fields, field{m.Name, m.Offset.Bytes(), f})
		}
		return s, nil
	default:
		return shape{}, fmt.Errorf("%v cannot be carried over", t)
	}
}

func (s *shape) equal(o *shape) bool { return reflect.DeepEqual(s, o) }

// field finds a struct's field: nil when it has none of the name.
func (s *shape) field(name string) *field {
	for i := range s.Fields {
		if s.Fields[i].Name == name {
			return &s.Fields[i]
		}
	}
	return nil
}

// errDoesNotFit means that something would be lost.
var errDoesNotFit = errors.New("a value does not fit into what it is now")

// convert copies what src holds into dst, by the names of fields. Fields that
// only one side has are zero or left out; dst is zero before.
func convert(to, from *shape, dst, src []byte) error {
	switch {
	case to.Fields != nil && from.Fields != nil:
		for i := range to.Fields {
			t := &to.Fields[i]
			f := from.field(t.Name)
			if f == nil {
				continue
			}
			if err := convert(&t.Shape, &f.Shape, dst[t.Offset:][:t.Shape.Size], src[f.Offset:][:f.Shape.Size]); err != nil {
				return fmt.Errorf("field %s: %w", t.Name, err)
			}
		}
		return nil
	case to.Elem != nil && from.Elem != nil:
		return convertArray(to, from, dst, src)
	case to.Fields != nil || from.Fields != nil || to.Elem != nil || from.Elem != nil:
		return errors.New("it is of another kind")
	}
	n := copy(dst, src)
	fill := byte(0)
	if from.Signed && to.Signed && src[len(src)-1]&0x80 != 0 {
		fill = 0xff
	}
	for i := n; i < len(dst); i++ {
		dst[i] = fill
	}
	for _, b := range src[n:] {
		if b != fill {
			return errDoesNotFit
		}
	}
	return nil
}

func convertArray(to, from *shape, dst, src []byte) error {
	t, f := int(to.Elem.Size), int(from.Elem.Size)
	n := min(len(dst)/t, len(src)/f)
	if to.Elem.equal(from.Elem) {
		copy(dst, src[:n*f])
	} else {
		for i := range n {
			if err := convert(to.Elem, from.Elem, dst[i*t:][:t], src[i*f:][:f]); err != nil {
				return err
			}
		}
	}
	if !allZero(src[n*f:]) {
		return errDoesNotFit
	}
	return nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
