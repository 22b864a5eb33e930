package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/pgsteer/pgsteer/pkg/lb"
)

// An output writes results in the form that was asked for.
type output struct {
	w            io.Writer
	json, pretty bool
}

// value writes one JSON value and a newline.
func (o *output) value(v any) error {
	enc := json.NewEncoder(o.w)
	enc.SetEscapeHTML(false)
	if o.pretty {
		enc.SetIndent("", "  ")
	}
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return nil
}

// An array is a JSON array that is written as its elements come. It is left
// without its end when they stop coming because of an error, so that half a
// result is never taken for a whole one.
type array struct {
	out   *output
	count int
	line  []byte
}

func (a *array) add(v any) error {
	b := a.line[:0]
	if a.count == 0 {
		b = append(b, '[')
	} else {
		b = append(b, ',')
	}
	flow, isFlow := v.(*lb.Flow)
	switch {
	case a.out.pretty:
		text, err := json.MarshalIndent(v, "  ", "  ")
		if err != nil {
			return fmt.Errorf("writing JSON: %w", err)
		}
		b = append(append(b, "\n  "...), text...)
	case isFlow:
		b = appendFlow(b, flow)
	default:
		text, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("writing JSON: %w", err)
		}
		b = append(b, text...)
	}
	a.count++
	a.line = b
	_, err := a.out.w.Write(b)
	return err
}

func (a *array) end() error {
	text := "]\n"
	switch {
	case a.count == 0:
		text = "[]\n"
	case a.out.pretty:
		text = "\n]\n"
	}
	_, err := io.WriteString(a.out.w, text)
	return err
}

// A column of a plain table. Numbers stand on the right.
type column struct {
	title string
	right bool
}

func left(title string) column  { return column{title, false} }
func right(title string) column { return column{title, true} }

// A row is the cells of one line, one after the other.
type row struct {
	text []byte
	ends []int // of each cell in text
}

// end ends the cell that was appended to text.
func (r *row) end(text []byte) {
	r.text = text
	r.ends = append(r.ends, len(text))
}

func (r *row) cells(all ...string) {
	for _, c := range all {
		r.end(append(r.text, c...))
	}
}

func (r *row) addrPort(a netip.AddrPort) { r.end(a.AppendTo(r.text)) }

func (r *row) total(n uint64) { r.end(strconv.AppendUint(r.text, n, 10)) }

// heldRows is how many rows of a table are looked at to find how wide its
// columns must be. A wider cell that comes later pushes what is right of it.
const heldRows = 1000

// A table writes rows under their titles, each column as wide as it must be.
type table struct {
	w       io.Writer
	columns []column
	widths  []int
	held    []row // nil once the widths are fixed
	line    []byte
}

func newTable(w io.Writer, columns ...column) *table {
	t := &table{w: w, columns: columns, widths: make([]int, len(columns))}
	var titles row
	for _, c := range columns {
		titles.cells(c.title)
	}
	t.hold(titles)
	return t
}

func (t *table) hold(r row) {
	start := 0
	for i, end := range r.ends {
		t.widths[i] = max(t.widths[i], utf8.RuneCount(r.text[start:end]))
		start = end
	}
	t.held = append(t.held, row{bytes.Clone(r.text), slices.Clone(r.ends)})
}

// add takes a row, which has a cell for each column.
func (t *table) add(r row) error {
	if t.held == nil {
		return t.write(r)
	}
	t.hold(r)
	if len(t.held) <= heldRows {
		return nil
	}
	return t.end()
}

// end writes what is held; rows that come after it are written at once.
func (t *table) end() error {
	for _, r := range t.held {
		if err := t.write(r); err != nil {
			return err
		}
	}
	t.held = nil
	return nil
}

func (t *table) write(r row) error {
	b := t.line[:0]
	start := 0
	for i, end := range r.ends {
		cell := r.text[start:end]
		start = end
		if i > 0 {
			b = append(b, "  "...)
		}
		if !t.columns[i].right {
			b = append(b, cell...)
		}
		for range t.widths[i] - utf8.RuneCount(cell) {
			b = append(b, ' ')
		}
		if t.columns[i].right {
			b = append(b, cell...)
		}
	}
	t.line = append(bytes.TrimRight(b, " "), '\n')
	if _, err := t.w.Write(t.line); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

// A list writes elements as they come: as a JSON array, or as a table.
type list[T any] struct {
	elements array
	table    *table
	fill     func(*row, *T)
	row      row
}

func newList[T any](out *output, fill func(*row, *T), columns ...column) *list[T] {
	return &list[T]{elements: array{out: out}, table: newTable(out.w, columns...), fill: fill}
}

func (l *list[T]) add(e *T) error {
	if l.elements.out.json {
		return l.elements.add(e)
	}
	l.row.text, l.row.ends = l.row.text[:0], l.row.ends[:0]
	l.fill(&l.row, e)
	return l.table.add(l.row)
}

func (l *list[T]) end() error {
	if l.elements.out.json {
		return l.elements.end()
	}
	return l.table.end()
}

// writeList writes all elements.
func writeList[T any](out *output, elements []T, fill func(*row, *T), columns ...column) error {
	l := newList(out, fill, columns...)
	for i := range elements {
		if err := l.add(&elements[i]); err != nil {
			return err
		}
	}
	return l.end()
}

// remark writes a line that belongs to a table and to no JSON.
func (o *output) remark(format string, args ...any) error {
	if o.json {
		return nil
	}
	if _, err := fmt.Fprintf(o.w, format, args...); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}
