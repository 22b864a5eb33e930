package pooler

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// What one process tells another about connections that it hands over, as JSON:
// a field that is not there has its zero value, and one that the reader does not
// know is an error, so that a process takes over no connection with a state that
// it would not honour. Times are ages. Text is bytes: JSON would bend what is
// not UTF-8.

// carryVersion is that of the records. It changes when a record of the version
// before would be misunderstood; new fields need no new version.
const carryVersion = 1

// carriedText is a text of any bytes.
type carriedText []byte

// carriedParam is a run-time parameter.
type carriedParam struct {
	Name  string
	Value carriedText `json:",omitempty"`
}

// carriedPool is a pool, told before any of its connections.
type carriedPool struct {
	Database, User carriedText
	Params         []carriedParam `json:",omitempty"`
	ClientKey      []byte         `json:",omitempty"` // of SCRAM, proved by the last client
	ServerKey      []byte         `json:",omitempty"`
}

// carriedCount says how many servers of a pool the old process has.
type carriedCount struct {
	Database, User carriedText
	Servers        int
}

// carriedStmt is a prepared statement, told before anybody who has it.
type carriedStmt struct {
	Name string // on servers
	Key  []byte // query text, NUL, parameter types
}

// carriedName is a client's name for a prepared statement.
type carriedName struct {
	Name carriedText
	Stmt string // the name on servers
}

// carriedClient is a client that has nothing outstanding.
type carriedClient struct {
	ID             uint64
	PID            uint32
	Secret         []byte
	Protocol       uint32
	Login          carriedText
	Database, User carriedText
	Mode           string // for how long it has a server
	Renames        bool   `json:",omitempty"` // its statements are tracked
	Addr, Local    netip.AddrPort
	Vars           []carriedParam
	Rest, Facts    carriedText   `json:",omitempty"` // paramState
	Names          []carriedName `json:",omitempty"`
	// The unnamed statement: whether there is one, and its Parse if it is kept.
	HasUnnamed bool   `json:",omitempty"`
	Unnamed    []byte `json:",omitempty"`
	Input      []byte `json:",omitempty"` // received and not processed
	Skip       int    `json:",omitempty"` // bytes of a message to come that are to be swallowed

	Connected time.Duration
	Requested *time.Duration `json:",omitempty"`
}

// carriedServer is a server that has answered everything.
type carriedServer struct {
	ID             uint64
	PID            uint32
	Secret         []byte
	Network, Addr  string
	Local          netip.AddrPort
	Database, User carriedText
	Host           carriedText // as its database's configuration had it
	ByName         bool        `json:",omitempty"`
	Target         string      // which of the hosts will do
	Port           uint16
	DBName         carriedText
	Vars           []carriedParam
	Rest, Facts    carriedText `json:",omitempty"` // paramState
	Left           leftovers   `json:",omitempty"`
	Pinned         bool        `json:",omitempty"`
	Prepared       []string    `json:",omitempty"` // names of statements, the least recently used first
	// HasUnnamed: it may have an unnamed statement.
	HasUnnamed bool `json:",omitempty"`
	Unreset    bool `json:",omitempty"`
	Touched    bool `json:",omitempty"`

	Opened time.Duration
	Used   time.Duration
}

// carriedPair is a client in the middle of a session or transaction, and the
// server that it has. Nothing is outstanding between them.
type carriedPair struct {
	Client carriedClient
	Server carriedServer
	Status byte // of the last ReadyForQuery
	// OwnUnnamed: the server's unnamed statement is the client's.
	OwnUnnamed bool           `json:",omitempty"`
	Tainted    bool           `json:",omitempty"` // nobody else is to have the server
	Linked     *time.Duration `json:",omitempty"` // the transaction's age; none outside of one
}

// carriedListener is a listening socket.
type carriedListener struct {
	Configured string // as the configuration has it
}

// carriedHello is the first message of either side.
type carriedHello struct {
	Version int
	PID     int
	Release string
	// Of the old process: what it refuses the takeover for, the sockets that go
	// along, and from where the new one is to count.
	Refused    string            `json:",omitempty"`
	Listeners  []carriedListener `json:",omitempty"`
	Control    bool              `json:",omitempty"` // the last descriptor is the control socket
	Generation uint64            `json:",omitempty"`
	NextID     uint64            `json:",omitempty"`
}

// carriedAnswer answers what was handed over, or a cancel request.
type carriedAnswer struct {
	Seq    uint64
	Error  string `json:",omitempty"`
	Failed bool   `json:",omitempty"`
}

// carriedItem has the number of what is handed over.
type carriedItem struct {
	Seq    uint64
	Client *carriedClient `json:",omitempty"`
	Server *carriedServer `json:",omitempty"`
	Pair   *carriedPair   `json:",omitempty"`
}

// carriedCancel is a cancel request for somebody whom the other process may know.
type carriedCancel struct {
	Seq    uint64
	PID    uint32
	Secret []byte
}

// decodeCarried reads a record, strictly.
func decodeCarried(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("decoding message of the other process: %w", err)
	}
	return nil
}

func carryVars(v *vars) []carriedParam {
	out := make([]carriedParam, numVars)
	for i := range v {
		out[i] = carriedParam{varNames[i], carriedText(v[i])}
	}
	return out
}

var errUnknownVar = errors.New("a run-time parameter is not known here")

// takeVars is the reverse of carryVars. A parameter that the old process did not
// track has an unknown value.
func takeVars(list []carriedParam) (v vars, err error) {
	n := 0
	for _, p := range list {
		i := varIndex(p.Name)
		if i < 0 {
			return v, errUnknownVar
		}
		v[i] = string(p.Value)
		n++
	}
	if n != numVars {
		return v, errors.New("a run-time parameter is missing")
	}
	return v, nil
}

func carryParams(l paramList) []carriedParam {
	out := make([]carriedParam, len(l))
	for i, p := range l {
		out[i] = carriedParam{p.Name, carriedText(p.Value)}
	}
	return out
}

func takeParams(l []carriedParam) paramList {
	out := make(paramList, len(l))
	for i, p := range l {
		out[i] = pgwire.Param{Name: p.Name, Value: string(p.Value)}
	}
	return out
}
