package flowsync

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

// Failure is the reason why no link came to be.
type Failure uint8

// The reasons.
const (
	FailureConnect Failure = iota // there is nobody, or no way
	FailureAddress                // a connection from another address than the peer's
	FailureBusy                   // too many connections at a time
	FailureNoKey                  // the peer has shown no key
	FailureKey                    // the peer has another key
	FailureTLS                    // TLS failed otherwise
	FailureTimeout                // the peer took too long
	FailureHello                  // what it said was no hello
	FailureVersion                // there is no version of the protocol that both speak
	FailureNode                   // both nodes have the same name
	FailureRefused                // the peer refused this node
	numFailures
)

var failureNames = [numFailures]string{
	"connect", "address", "busy", "no_key", "key", "tls", "timeout", "hello", "version", "node", "refused",
}

// String returns the reason as used in metrics: one word, stable.
func (f Failure) String() string {
	if f < numFailures {
		return failureNames[f]
	}
	return fmt.Sprintf("failure(%d)", uint8(f))
}

// failed is an error with its reason.
type failed struct {
	why Failure
	err error
}

func (f *failed) Error() string { return f.err.Error() }
func (f *failed) Unwrap() error { return f.err }

// failure returns the reason of an error that ended a handshake; other is for
// those that say nothing better.
func failure(err error, other Failure) Failure {
	var f *failed
	var op *net.OpError
	switch {
	case errors.As(err, &f):
		return f.why
	case errors.Is(err, errNoKey):
		return FailureNoKey
	case errors.Is(err, errOtherKey):
		return FailureKey
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return FailureTimeout
	case errors.As(err, &op) && op.Op == "remote error":
		return FailureRefused // a TLS alert, most likely about the key
	case errors.Is(err, errMalformed):
		return FailureHello
	}
	return other
}
