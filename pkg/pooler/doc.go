// Package pooler is a transaction pooler for PostgreSQL: thousands of client
// connections share a few server connections, each for the length of one
// transaction.
//
// # Parts
//
// The machine (machine.go and what stands beside it) is the protocol and the
// pools. It has no sockets and no clock: bytes, ends of streams and the time go
// in, bytes and a few wishes (the interface world) come out. Every
// rule about when a server may change hands is in it, and its tests run without
// a network.
//
// The loop (loop.go) is one goroutine that owns the machine and all sockets
// that are in protocol. It works in rounds of two phases: receive from whoever
// is ready and decide, then send to each destination once. Sockets are
// registered edge-triggered, once; a socket that may not be read is left alone
// and remembered as readable. Receiving goes into one shared arena, so a
// connection at rest holds no buffer.
//
// Goroutines do the rest: accepting, the startup conversation and
// authentication of clients (login.go), logging in to servers and sending cancel
// requests to them (dial.go). They hand their sockets to the loop by message.
// Sessions of the console (console.go) are goroutines to their end; they look at
// the machine by messages that take little time each.
//
// Clients that come through a balancer are known by their own addresses
// (clientaddr.go), and are let close first when they say goodbye (parting.go).
//
// # Invariants
//
// A server goes back to its pool only when it has answered everything that was
// sent to it (expect.go counts), said ReadyForQuery with status idle, no message
// is half sent, no COPY is open, no extended-protocol flight lacks its Sync and
// no cancel request for it is on its way. When that cannot be proved it is
// closed.
//
// A connection's state is one enum value, moved by one function, which also
// keeps the lists and counts (state.go).
//
// Bytes are relayed header first: only names, parameters and ends of
// transactions are looked at, bodies of any size stream through. What a slow
// reader has not taken is kept, bounded, and its source is not read meanwhile.
package pooler
