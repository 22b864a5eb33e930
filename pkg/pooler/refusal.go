package pooler

import "github.com/pgsteer/pgsteer/pkg/pgwire"

// refusal says why a client was turned away. Each is counted.
type refusal uint8

const (
	refusedStartup      refusal = iota // no valid startup packet
	refusedAuth                        // failed authentication
	refusedLoginTimeout                // took too long to log in
	refusedFull                        // max_client_conn
	refusedDatabase                    // no such database
	refusedParameter                   // unsupported startup parameter
	refusedServerLogin                 // the server refuses the pool's logins
	refusedWait                        // query_wait_timeout
	refusedProtocol                    // bytes that are no message of a client
	refusedMemory                      // statements or unfinished messages beyond their bound
	refusedServerLost                  // its server died in its transaction
	refusedShutdown                    // the pooler stops
	refusedStatement                   // a transaction in statement pooling
	refusedTimeout                     // query, transaction and idle timeouts
	refusedDBClients                   // max_db_client_connections
	refusedUserClients                 // max_user_client_connections
	refusedConsole                     // neither admin nor stats user, or too many of them
	refusedDisabled                    // the database takes no clients (DISABLE)
	refusedKilled                      // by KILL_CLIENT
	refusedTLS                         // the handshake failed, or there was none and must be
	refusedLeftover                    // session state in transaction pooling, by leak_guard
	numRefusals
)

var refusalNames = [numRefusals]string{
	"startup", "auth", "login_timeout", "max_client_conn", "no_database", "startup_parameter",
	"server_login", "query_wait_timeout", "protocol", "memory", "server_lost", "shutdown", "statement_pooling", "timeout", "max_db_client_connections", "max_user_client_connections", "console",
	"disabled", "killed", "tls", "leftover",
}

// String returns the name under which the refusal is counted.
func (r refusal) String() string { return refusalNames[r] }

// The errors for clients that are the same each time. The wording is
// PgBouncer's or PostgreSQL's where they have the case.
var (
	errShutdown = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeAdminShutdown,
		"terminating connection due to administrator command")
	errWaitTimeout = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "query_wait_timeout")
	errFull        = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeTooManyConnections,
		"no more connections allowed (max_client_conn)")
	errDBClients = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation,
		"client connections exceeded (max_db_client_connections)")
	errUserClients = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation,
		"client connections exceeded (max_user_client_connections)")
	errServerLost = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeConnectionFailure,
		"server closed the connection unexpectedly")
	errServerGarbage = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation,
		"server sent a message that makes no sense here")
	errDuringCopy = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation,
		"unexpected message type during COPY from stdin")
	errCanceled = pgwire.NewError(pgwire.SeverityError, pgwire.CodeQueryCanceled,
		"canceling statement due to user request")
	errStmtTooLong = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProgramLimitExceeded,
		"prepared statement is too long for transaction pooling (at most 1 MB)")
	errStmtMemory = pgwire.NewError(pgwire.SeverityFatal, codeOutOfMemory,
		"too many prepared statements in the pooler")
	errGatherMemory = pgwire.NewError(pgwire.SeverityFatal, codeOutOfMemory,
		"too many unfinished messages in the pooler")
	errNameTooLong = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation,
		"name of portal or prepared statement is too long")
	errBadMessage   = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "invalid message format")
	errLoginTimeout = pgwire.NewError(pgwire.SeverityFatal, pgwire.CodeProtocolViolation, "client_login_timeout")
)

// codeOutOfMemory is the SQLSTATE out_of_memory.
const codeOutOfMemory = "53200"
