package pgwire

import (
	"bytes"
	"math"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// TestRows has another implementation read what is encoded here.
func TestRows(t *testing.T) {
	columns := []Column{{"name", TypeText}, {"n", TypeInt4}, {"big", TypeInt8}, {"sum", TypeNumeric}, {"none", TypeText}}
	var rows DataRow
	rows.Buf = AppendRowDescription(nil, columns)
	for _, n := range []int64{0, math.MinInt64} {
		rows.Begin()
		rows.Text("a\x00b")
		rows.Int(n)
		rows.Text("")
		rows.Uint(math.MaxUint64)
		rows.Null()
		rows.End()
	}
	frontend := pgproto3.NewFrontend(bytes.NewReader(rows.Buf), nil)
	msg, err := frontend.Receive()
	if err != nil {
		t.Fatal(err)
	}
	description, ok := msg.(*pgproto3.RowDescription)
	if !ok || len(description.Fields) != len(columns) {
		t.Fatalf("got %#v", msg)
	}
	sizes := []int16{-1, 4, 8, -1, -1}
	for i, f := range description.Fields {
		if string(f.Name) != columns[i].Name || f.DataTypeOID != columns[i].Type || f.DataTypeSize != sizes[i] || f.TypeModifier != -1 || f.Format != 0 {
			t.Errorf("column %d: %+v", i, f)
		}
	}
	for _, want := range []string{"0", "-9223372036854775808"} {
		msg, err := frontend.Receive()
		if err != nil {
			t.Fatal(err)
		}
		row, ok := msg.(*pgproto3.DataRow)
		if !ok || len(row.Values) != len(columns) {
			t.Fatalf("got %#v", msg)
		}
		if string(row.Values[0]) != "a\x00b" || string(row.Values[1]) != want || row.Values[2] == nil || len(row.Values[2]) != 0 ||
			string(row.Values[3]) != "18446744073709551615" || row.Values[4] != nil {
			t.Errorf("got %q", row.Values)
		}
	}
}
