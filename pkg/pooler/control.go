package pooler

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Processes talk to each other over a Unix socket. A message has a header of
// eight bytes: its kind, how many descriptors come with it, two zeros, the
// body's length in network order. The body is JSON.

// messageKind says what a message is about.
type messageKind byte

// The messages. Those in capitals come from the process that takes over.
const (
	messageHello  messageKind = 'H' // carriedHello: I take over
	messageGo     messageKind = 'G' // I am ready: hand over
	messageAnswer messageKind = 'A' // carriedAnswer: I have it, or do not want it
	messageCancel messageKind = 'C' // carriedCancel, from either side
	messageDone   messageKind = 'D' // carriedAnswer to it

	messageOffer messageKind = 'h' // carriedHello: what there is, or why not
	messagePool  messageKind = 'p' // carriedPool
	messageCount messageKind = 'n' // carriedCount
	messageStmt  messageKind = 's' // carriedStmt
	messageItem  messageKind = 'i' // carriedItem
	messageEnd   messageKind = 'e' // there is nothing any more, and I end
)

const (
	controlHeader = 8
	// maxControlBody bounds a message: a statement of 1 MB in JSON, a client with
	// thousands of them.
	maxControlBody = 64 << 20
	// maxControlFDs is how many descriptors one message brings. The kernel allows
	// 253 (SCM_MAX_FD).
	maxControlFDs = 250
	// controlTimeout is for the other process to say or take in something that
	// needs no time.
	controlTimeout = 10 * time.Second
)

// control is a connection to another process.
type control struct {
	conn *net.UnixConn

	wmu sync.Mutex

	in  []byte // received and not used yet
	fds []int

	amu     sync.Mutex
	seq     uint64
	waiting map[uint64]chan bool // cancel requests that the other side looks into
	over    bool
}

func newControl(conn *net.UnixConn) *control {
	return &control{conn: conn, waiting: make(map[uint64]chan bool)}
}

// send sends a message with copies of descriptors.
func (c *control) send(kind messageKind, body any, fds ...int) error {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return fmt.Errorf("encoding message for the other process: %w", err)
		}
	}
	if len(text) > maxControlBody || len(fds) > maxControlFDs {
		return fmt.Errorf("a message of %d bytes and %d descriptors is too long", len(text), len(fds))
	}
	b := make([]byte, controlHeader, controlHeader+len(text))
	b[0], b[1] = byte(kind), byte(len(fds))
	binary.BigEndian.PutUint32(b[4:], uint32(len(text)))
	b = append(b, text...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(controlTimeout)); err != nil {
		return fmt.Errorf("sending to the other process: %w", err)
	}
	n, _, err := c.conn.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = c.conn.Write(b[n:])
	}
	if err != nil {
		return fmt.Errorf("sending to the other process: %w", err)
	}
	return nil
}

// receive returns the next message. Its descriptors are the caller's.
func (c *control) receive() (kind messageKind, body []byte, fds []int, err error) {
	if err := c.fill(controlHeader); err != nil {
		return 0, nil, nil, err
	}
	kind, count, size := messageKind(c.in[0]), int(c.in[1]), int(binary.BigEndian.Uint32(c.in[4:]))
	if size > maxControlBody {
		return 0, nil, nil, fmt.Errorf("the other process announces %d bytes", size)
	}
	if err := c.fill(controlHeader + size); err != nil {
		return 0, nil, nil, err
	}
	if count > len(c.fds) {
		return 0, nil, nil, errors.New("descriptors are missing")
	}
	body = append([]byte(nil), c.in[controlHeader:controlHeader+size]...)
	c.in = append(c.in[:0], c.in[controlHeader+size:]...)
	fds = append([]int(nil), c.fds[:count]...)
	c.fds = append(c.fds[:0], c.fds[count:]...)
	return kind, body, fds, nil
}

// fill receives until there are n bytes.
func (c *control) fill(n int) error {
	for len(c.in) < n {
		var oob [4096]byte // room for all descriptors of two messages
		buf := make([]byte, max(n-len(c.in), 16<<10))
		got, oobn, flags, _, err := c.conn.ReadMsgUnix(buf, oob[:])
		fds, ferr := parseRights(oob[:oobn])
		c.fds = append(c.fds, fds...)
		switch {
		case err != nil:
			return err
		case got == 0:
			return io.EOF
		case ferr != nil:
			return ferr
		case flags&unix.MSG_CTRUNC != 0:
			return errors.New("descriptors were lost: too many open files")
		}
		c.in = append(c.in, buf[:got]...)
	}
	return nil
}

func parseRights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	var fds []int
	for i := range messages {
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fds, os.NewSyscallError("recvmsg", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// hangUp ends the connection in an order that leaves no doubt who has what: what
// the other side could send has been sent and can still be received, and it can
// send nothing more.
func (c *control) hangUp() {
	// On a connection that is gone there is nothing to shut down.
	_ = c.conn.CloseRead()
	_ = c.conn.CloseWrite()
}

// close releases the connection and what nobody took.
func (c *control) close() {
	_ = c.conn.Close()
	for _, fd := range c.fds {
		_ = unix.Close(fd)
	}
	c.fds = nil
	c.amu.Lock()
	defer c.amu.Unlock()
	c.over = true
	for seq, ch := range c.waiting {
		close(ch)
		delete(c.waiting, seq)
	}
}

// cancel has the other process look for a client, and reports whether it found
// it. Found is told when the request can hit nothing else any more.
func (c *control) cancel(pid uint32, secret string, giveUp <-chan struct{}) bool {
	answer := make(chan bool, 1)
	c.amu.Lock()
	if c.over {
		c.amu.Unlock()
		return false
	}
	c.seq++
	seq := c.seq
	c.waiting[seq] = answer
	c.amu.Unlock()
	if c.send(messageCancel, carriedCancel{seq, pid, []byte(secret)}) != nil {
		c.answered(seq, false)
	}
	select {
	case found := <-answer:
		return found
	case <-giveUp:
		return false
	}
}

// answered gives the answer to a cancel request.
func (c *control) answered(seq uint64, found bool) {
	c.amu.Lock()
	defer c.amu.Unlock()
	if ch := c.waiting[seq]; ch != nil {
		delete(c.waiting, seq)
		ch <- found
	}
}

// samePeer reports whether the other process is one of the same user, or root's.
func samePeer(conn *net.UnixConn) (pid int, err error) {
	rc, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if cerr != nil {
		return 0, os.NewSyscallError("getsockopt SO_PEERCRED", cerr)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return 0, fmt.Errorf("it belongs to user %d", cred.Uid)
	}
	return int(cred.Pid), nil
}
