package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
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
}

func (a *array) add(v any) error {
	var text []byte
	var err error
	if a.out.pretty {
		text, err = json.MarshalIndent(v, "  ", "  ")
	} else {
		text, err = json.Marshal(v)
	}
	if err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	separator := ","
	if a.count == 0 {
		separator = "["
	}
	if a.out.pretty {
		separator += "\n  "
	}
	a.count++
	_, err = fmt.Fprintf(a.out.w, "%s%s", separator, text)
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

// writeTable writes rows under their titles, each column as wide as it must be.
func writeTable(w io.Writer, columns []column, rows [][]string) error {
	widths := make([]int, len(columns))
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.title
	}
	rows = append([][]string{titles}, rows...)
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			if i > 0 {
				b.WriteString("  ")
			}
			pad := strings.Repeat(" ", widths[i]-len(cell))
			if columns[i].right {
				b.WriteString(pad + cell)
			} else {
				b.WriteString(cell + pad)
			}
		}
		if _, err := io.WriteString(w, strings.TrimRight(b.String(), " ")+"\n"); err != nil {
			return fmt.Errorf("writing the result: %w", err)
		}
	}
	return nil
}
