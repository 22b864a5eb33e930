package pgwire

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// The severities of an ErrorResponse (section 53.8).
const (
	SeverityError = "ERROR" // the statement failed, the session lives
	SeverityFatal = "FATAL" // the session ends
)

// The SQLSTATEs that a pooler sends (appendix A of the manual).
const (
	CodeProtocolViolation    = "08P01"
	CodeConnectionFailure    = "08006"
	CodeFeatureNotSupported  = "0A000"
	CodeInvalidStatementName = "26000" // a prepared statement that does not exist
	CodeInvalidAuthorization = "28000"
	CodeInvalidPassword      = "28P01"
	CodeInvalidCatalogName   = "3D000" // a database that does not exist
	CodeDuplicateStatement   = "42P05" // a prepared statement that exists already
	CodeTooManyConnections   = "53300"
	CodeProgramLimitExceeded = "54000"
	CodeQueryCanceled        = "57014"
	CodeAdminShutdown        = "57P01"
	CodeCannotConnectNow     = "57P03"
)

// Error is an ErrorResponse or NoticeResponse: one that we send, or one that a
// server sent. As a Go error it reads "FATAL: message (SQLSTATE 08P01)".
type Error struct {
	Severity string // never empty in an error of ours
	Code     string // SQLSTATE; may be empty in a foreign one
	Message  string
	Detail   string // optional
	Hint     string // optional

	cause error
}

// NewError returns an error with the three fields that are always present.
func NewError(severity, code, message string) *Error {
	return &Error{Severity: severity, Code: code, Message: message}
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Severity)
	b.WriteString(": ")
	b.WriteString(e.Message)
	if e.Code != "" {
		b.WriteString(" (SQLSTATE ")
		b.WriteString(e.Code)
		b.WriteString(")")
	}
	return b.String()
}

// Unwrap returns the sentinel behind the error, if there is one.
func (e *Error) Unwrap() error { return e.cause }

// Append appends the error as an ErrorResponse.
func (e *Error) Append(dst []byte) []byte { return e.append(dst, MsgErrorResponse) }

// AppendNotice appends the error as a NoticeResponse.
func (e *Error) AppendNotice(dst []byte) []byte { return e.append(dst, MsgNoticeResponse) }

func (e *Error) append(dst []byte, typ byte) []byte {
	dst, at := begin(dst, typ)
	dst = appendField(dst, 'S', e.Severity)
	dst = appendField(dst, 'V', e.Severity)
	dst = appendField(dst, 'C', e.Code)
	dst = appendField(dst, 'M', e.Message)
	if e.Detail != "" {
		dst = appendField(dst, 'D', e.Detail)
	}
	if e.Hint != "" {
		dst = appendField(dst, 'H', e.Hint)
	}
	return finish(append(dst, 0), at)
}

func appendField(dst []byte, kind byte, value string) []byte {
	return appendCString(append(dst, kind), value)
}

// AppendError appends an ErrorResponse with severity (localised and not),
// SQLSTATE and message.
func AppendError(dst []byte, severity, code, message string) []byte {
	e := Error{Severity: severity, Code: code, Message: message}
	return e.Append(dst)
}

// SendError writes the *Error that err is or wraps. An error without one, such
// as a broken connection, is not the client's business and writes nothing.
func SendError(w io.Writer, err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return nil
	}
	if _, werr := w.Write(e.Append(nil)); werr != nil {
		return fmt.Errorf("failed to send error response: %w", werr)
	}
	return nil
}

// ErrErrorFields reports a body that is no list of error fields.
var ErrErrorFields = errors.New("malformed error response")

// ParseError decodes the body of an ErrorResponse or NoticeResponse. A server
// may leave any field out, the SQLSTATE too (CVE-2026-6666 was a crash on
// that); unknown fields are skipped. The severity is the one that is not
// localised ('V'), where the server sent it.
func ParseError(body []byte) (*Error, error) {
	e := &Error{}
	plain := false
	for {
		if len(body) == 0 {
			return nil, ErrErrorFields
		}
		kind := body[0]
		if kind == 0 {
			if len(body) != 1 {
				return nil, ErrErrorFields
			}
			return e, nil
		}
		value, rest, ok := cutCString(body[1:])
		if !ok {
			return nil, ErrErrorFields
		}
		body = rest
		switch kind {
		case 'V':
			e.Severity, plain = string(value), true
		case 'S':
			if !plain {
				e.Severity = string(value)
			}
		case 'C':
			e.Code = string(value)
		case 'M':
			e.Message = string(value)
		case 'D':
			e.Detail = string(value)
		case 'H':
			e.Hint = string(value)
		}
	}
}

// protocolError is what bad bytes from a client come to.
func protocolError(cause error, message string) *Error {
	return &Error{Severity: SeverityFatal, Code: CodeProtocolViolation, Message: message, cause: cause}
}
