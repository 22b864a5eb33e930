// Package pgwire is PostgreSQL's wire protocol as a pooler needs it: frames
// looked at header first, the startup conversation, authentication towards
// clients (server side) and towards PostgreSQL (client side), cancel keys, and
// append-style encoders for the few messages that a pooler sends itself.
//
// Three rules hold throughout.
//
// Nothing is read past the message at hand. A socket is handed from the
// goroutine that authenticates it to the loop that relays it, so a byte
// swallowed here would be lost there; and no plain-text byte can survive in a
// buffer into an encrypted session (CVE-2021-23214).
//
// No allocation follows a length from the wire. Every message read here has a
// cap, and buffers grow with the bytes that arrived.
//
// Deadlines belong to the caller, who sets them on the connection.
//
// Section numbers such as "53.7" refer to the chapter "Frontend/Backend
// Protocol" of the PostgreSQL 17 manual.
package pgwire
