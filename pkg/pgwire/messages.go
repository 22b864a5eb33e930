package pgwire

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// The types of the messages that a client sends (section 53.7).
const (
	MsgBind         = 'B'
	MsgClose        = 'C'
	MsgCopyData     = 'd' // both directions
	MsgCopyDone     = 'c' // both directions
	MsgCopyFail     = 'f'
	MsgDescribe     = 'D'
	MsgExecute      = 'E'
	MsgFlush        = 'H'
	MsgFunctionCall = 'F'
	MsgParse        = 'P'
	MsgPassword     = 'p' // also SASLInitialResponse and SASLResponse
	MsgQuery        = 'Q'
	MsgSync         = 'S'
	MsgTerminate    = 'X'
)

// The types of the messages that a server sends.
const (
	MsgAuthentication       = 'R'
	MsgBackendKeyData       = 'K'
	MsgBindComplete         = '2'
	MsgCloseComplete        = '3'
	MsgCommandComplete      = 'C'
	MsgCopyInResponse       = 'G'
	MsgCopyOutResponse      = 'H'
	MsgCopyBothResponse     = 'W'
	MsgDataRow              = 'D'
	MsgEmptyQueryResponse   = 'I'
	MsgErrorResponse        = 'E'
	MsgFunctionCallResponse = 'V'
	MsgNegotiateProtocol    = 'v'
	MsgNoData               = 'n'
	MsgNoticeResponse       = 'N'
	MsgNotification         = 'A'
	MsgParameterDescription = 't'
	MsgParameterStatus      = 'S'
	MsgParseComplete        = '1'
	MsgPortalSuspended      = 's'
	MsgReadyForQuery        = 'Z'
	MsgRowDescription       = 'T'
)

// The transaction states in a ReadyForQuery.
const (
	TxIdle   = 'I' // outside a transaction
	TxActive = 'T' // in a transaction
	TxFailed = 'E' // in a transaction that must be rolled back
)

// The codes in an Authentication message.
const (
	authOK           = 0
	authCleartext    = 3
	authMD5          = 5
	authSASL         = 10
	authSASLContinue = 11
	authSASLFinal    = 12
)

// begin appends a header whose length finish fills in.
func begin(dst []byte, typ byte) (buf []byte, at int) {
	return append(dst, typ, 0, 0, 0, 0), len(dst) + 1
}

// finish writes the length of the message that begin started; at is the place
// of its length field.
func finish(dst []byte, at int) []byte {
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at))
	return dst
}

// appendCString appends s and its terminator. A NUL within s would shift every
// field after it, so s ends there.
func appendCString(dst []byte, s string) []byte {
	if i := strings.IndexByte(s, 0); i >= 0 {
		s = s[:i]
	}
	return append(append(dst, s...), 0)
}

// cutCString splits b behind its first NUL, which belongs to neither part.
func cutCString(b []byte) (s, rest []byte, ok bool) {
	return bytes.Cut(b, []byte{0})
}

// AppendAuthenticationOk tells a client that it is logged in.
func AppendAuthenticationOk(dst []byte) []byte {
	return appendAuth(dst, authOK, nil)
}

// appendAuth appends an Authentication message.
func appendAuth(dst []byte, code uint32, data []byte) []byte {
	dst, at := begin(dst, MsgAuthentication)
	dst = binary.BigEndian.AppendUint32(dst, code)
	return finish(append(dst, data...), at)
}

// appendAuthSASL offers SASL mechanisms.
func appendAuthSASL(dst []byte, mechanisms ...string) []byte {
	var list []byte
	for _, m := range mechanisms {
		list = appendCString(list, m)
	}
	return appendAuth(dst, authSASL, append(list, 0))
}

// AppendParameterStatus reports the value of a run-time parameter.
func AppendParameterStatus(dst []byte, name, value string) []byte {
	dst, at := begin(dst, MsgParameterStatus)
	return finish(appendCString(appendCString(dst, name), value), at)
}

// ParseParameterStatus decodes the body of a ParameterStatus message; the
// results point into it.
func ParseParameterStatus(body []byte) (name, value []byte, ok bool) {
	name, rest, ok := cutCString(body)
	if !ok {
		return nil, nil, false
	}
	value, rest, ok = cutCString(rest)
	return name, value, ok && len(rest) == 0
}

// AppendBackendKeyData hands a client its cancel key.
func AppendBackendKeyData(dst []byte, key CancelKey) []byte {
	dst, at := begin(dst, MsgBackendKeyData)
	dst = binary.BigEndian.AppendUint32(dst, key.PID)
	return finish(append(dst, key.Secret...), at)
}

// AppendReadyForQuery ends an answer; status is one of TxIdle, TxActive and
// TxFailed.
func AppendReadyForQuery(dst []byte, status byte) []byte {
	return append(AppendHeader(dst, MsgReadyForQuery, 1), status)
}

// AppendParseComplete answers a Parse.
func AppendParseComplete(dst []byte) []byte { return AppendHeader(dst, MsgParseComplete, 0) }

// AppendBindComplete answers a Bind.
func AppendBindComplete(dst []byte) []byte { return AppendHeader(dst, MsgBindComplete, 0) }

// AppendCloseComplete answers a Close.
func AppendCloseComplete(dst []byte) []byte { return AppendHeader(dst, MsgCloseComplete, 0) }

// AppendEmptyQueryResponse answers an empty query string.
func AppendEmptyQueryResponse(dst []byte) []byte {
	return AppendHeader(dst, MsgEmptyQueryResponse, 0)
}

// AppendCommandComplete ends a statement with its tag, "SELECT 1" for one.
func AppendCommandComplete(dst []byte, tag string) []byte {
	dst, at := begin(dst, MsgCommandComplete)
	return finish(appendCString(dst, tag), at)
}

// AppendQuery appends a simple query.
func AppendQuery(dst []byte, sql string) []byte {
	dst, at := begin(dst, MsgQuery)
	return finish(appendCString(dst, sql), at)
}

// AppendParse appends a Parse of the named statement. Tail is everything
// behind the name: the query text with its terminator and the parameter types,
// as Names.Tail finds it in a client's message.
func AppendParse(dst []byte, name string, tail []byte) []byte {
	dst, at := begin(dst, MsgParse)
	return finish(append(appendCString(dst, name), tail...), at)
}

// AppendClose closes a statement (kind 'S') or portal (kind 'P').
func AppendClose(dst []byte, kind byte, name string) []byte {
	dst, at := begin(dst, MsgClose)
	return finish(appendCString(append(dst, kind), name), at)
}

// AppendDescribe asks for the shape of a statement (kind 'S') or portal (kind
// 'P').
func AppendDescribe(dst []byte, kind byte, name string) []byte {
	dst, at := begin(dst, MsgDescribe)
	return finish(appendCString(append(dst, kind), name), at)
}

// AppendSync ends a batch of the extended protocol.
func AppendSync(dst []byte) []byte { return AppendHeader(dst, MsgSync, 0) }

// AppendFlush asks for the answers so far.
func AppendFlush(dst []byte) []byte { return AppendHeader(dst, MsgFlush, 0) }

// AppendTerminate says goodbye.
func AppendTerminate(dst []byte) []byte { return AppendHeader(dst, MsgTerminate, 0) }

// AppendCopyFail gives a COPY FROM STDIN up.
func AppendCopyFail(dst []byte, reason string) []byte {
	dst, at := begin(dst, MsgCopyFail)
	return finish(appendCString(dst, reason), at)
}

// appendPassword appends a PasswordMessage, SASLInitialResponse or
// SASLResponse with the given body.
func appendPassword(dst, body []byte) []byte {
	dst, at := begin(dst, MsgPassword)
	return finish(append(dst, body...), at)
}
