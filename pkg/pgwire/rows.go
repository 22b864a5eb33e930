package pgwire

import (
	"encoding/binary"
	"math"
	"strconv"
)

// The types of result columns, by their object identifiers (pg_type.dat in
// PostgreSQL's source).
const (
	TypeBytea   = 17
	TypeInt8    = 20
	TypeInt4    = 23
	TypeText    = 25
	TypeNumeric = 1700
)

// Column is a column of a result.
type Column struct {
	Name string
	Type uint32 // one of the types above
}

// size is the length of a type's binary form in bytes, -1 for one that varies.
func (c Column) size() int16 {
	switch c.Type {
	case TypeInt8:
		return 8
	case TypeInt4:
		return 4
	}
	return -1
}

// AppendRowDescription announces the columns of a result, all in text format
// and of no table.
func AppendRowDescription(dst []byte, columns []Column) []byte {
	dst, at := begin(dst, MsgRowDescription)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(columns)))
	for _, c := range columns {
		dst = appendCString(dst, c.Name)
		dst = append(dst, 0, 0, 0, 0, 0, 0) // table and its column
		dst = binary.BigEndian.AppendUint32(dst, c.Type)
		dst = binary.BigEndian.AppendUint16(dst, uint16(c.size()))
		dst = binary.BigEndian.AppendUint32(dst, math.MaxUint32) // no modifier
		dst = append(dst, 0, 0)                                  // text
	}
	return finish(dst, at)
}

// DataRow composes DataRow messages, one field after the other, without
// allocating for a field. Begin starts a row, End ends it.
type DataRow struct {
	Buf []byte // the messages so far; whoever sends them may cut it

	at     int // of the length of the row in the making
	fields uint16
}

// Begin starts a row.
func (r *DataRow) Begin() {
	r.Buf, r.at = begin(r.Buf, MsgDataRow)
	r.Buf = append(r.Buf, 0, 0)
	r.fields = 0
}

// Text adds a text. Unlike the other strings of the protocol it may hold a NUL.
func (r *DataRow) Text(s string) {
	r.Buf = append(binary.BigEndian.AppendUint32(r.Buf, uint32(len(s))), s...)
	r.fields++
}

// Int adds a number.
func (r *DataRow) Int(n int64) {
	var digits [20]byte // -9223372036854775808
	r.bytes(strconv.AppendInt(digits[:0], n, 10))
}

// Uint adds a number.
func (r *DataRow) Uint(n uint64) {
	var digits [20]byte // 18446744073709551615
	r.bytes(strconv.AppendUint(digits[:0], n, 10))
}

// Null adds a field without a value.
func (r *DataRow) Null() {
	r.Buf = binary.BigEndian.AppendUint32(r.Buf, math.MaxUint32)
	r.fields++
}

// End ends the row.
func (r *DataRow) End() {
	binary.BigEndian.PutUint16(r.Buf[r.at+4:], r.fields)
	r.Buf = finish(r.Buf, r.at)
}

func (r *DataRow) bytes(b []byte) {
	r.Buf = append(binary.BigEndian.AppendUint32(r.Buf, uint32(len(b))), b...)
	r.fields++
}
