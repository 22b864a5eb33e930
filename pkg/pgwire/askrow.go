package pgwire

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
)

// AskRow runs a simple query on a server connection that was just logged in, and
// returns its only row as text. Nothing else may be under way there.
func AskRow(ctx context.Context, conn net.Conn, sql string) ([]string, error) {
	release := breakOnDone(ctx, conn)
	row, err := askRow(conn, sql)
	if cerr := release(); cerr != nil {
		return nil, fmt.Errorf("asking server: %w", cerr)
	}
	if err != nil {
		return nil, fmt.Errorf("asking server: %w", err)
	}
	return row, nil
}

func askRow(conn net.Conn, sql string) (row []string, err error) {
	if err := writeAll(conn, AppendQuery(nil, sql)); err != nil {
		return nil, err
	}
	var failed error
	for rows := 0; ; {
		typ, body, err := ReadFrame(conn, MaxLoginLen)
		if err != nil {
			return nil, err
		}
		switch typ {
		case MsgErrorResponse:
			e, err := ParseError(body)
			if err != nil {
				return nil, err
			}
			failed = e
		case MsgDataRow:
			if row, err = parseRow(body); err != nil {
				return nil, err
			}
			rows++
		case MsgReadyForQuery:
			if failed == nil && rows != 1 {
				failed = fmt.Errorf("%w: %d rows in place of one", ErrServerProtocol, rows)
			}
			return row, failed
		}
	}
}

// parseRow takes a DataRow in text form apart. NULL reads as "".
func parseRow(body []byte) ([]string, error) {
	broken := fmt.Errorf("%w: malformed row", ErrServerProtocol)
	if len(body) < 2 {
		return nil, broken
	}
	row := make([]string, binary.BigEndian.Uint16(body))
	body = body[2:]
	for i := range row {
		if len(body) < 4 {
			return nil, broken
		}
		n := int(int32(binary.BigEndian.Uint32(body)))
		body = body[4:]
		if n < 0 {
			continue
		}
		if n > len(body) {
			return nil, broken
		}
		row[i], body = string(body[:n]), body[n:]
	}
	if len(body) > 0 {
		return nil, broken
	}
	return row, nil
}
