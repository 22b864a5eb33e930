package load

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const pgbenchOutput = `pgbench (15.14 (Debian 15.14-0+deb12u1))
transaction type: <builtin: select only>
scaling factor: 10
query mode: prepared
number of clients: 64
number of threads: 2
maximum number of tries: 1
duration: 8 s
number of transactions actually processed: 109343
number of failed transactions: 0 (0.000%)
latency average = 4.653 ms
initial connection time = 98.343 ms
tps = 13754.301249 (without initial connection time)
`

func TestParsePgbench(t *testing.T) {
	r, err := ParsePgbench(pgbenchOutput)
	want := PgbenchResult{TPS: 13754.301249, Latency: 4653 * time.Microsecond, Transactions: 109343}
	if err != nil || r != want {
		t.Errorf("got %+v, %v; want %+v", r, err, want)
	}
	bad := "pgbench: error: client 3 script 0 aborted in command 5 query 0: server closed the connection unexpectedly\n" +
		"pgbench: error: client 7 aborted in command 1\n" +
		strings.ReplaceAll(pgbenchOutput, "transactions: 0 (0.000%)", "transactions: 12 (0.011%)")
	r, err = ParsePgbench(bad)
	if err != nil || r.Aborted != 2 || r.Failed != 12 {
		t.Errorf("of a run with failures got %+v, %v", r, err)
	}
	for _, line := range []string{"tps = ", "latency average", "number of transactions actually", "number of failed"} {
		if r, err := ParsePgbench(strings.ReplaceAll(pgbenchOutput, line, "nothing like ")); err == nil {
			t.Errorf("accepted output without %q as %+v", line, r)
		}
	}
}

func TestPgbenchArgs(t *testing.T) {
	p := Pgbench{Script: TPCB, Protocol: Prepared, Clients: 64, Duration: 20 * time.Second}
	want := "pgbench -n -b tpcb-like -M prepared -c 64 -j 2 -T 20"
	if got := strings.Join(p.Args(), " "); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOutageSince(t *testing.T) {
	zero := time.Now()
	at := func(ms, took int, err error) Attempt {
		return Attempt{Start: zero.Add(time.Duration(ms) * time.Millisecond), Took: time.Duration(took) * time.Millisecond, Err: err}
	}
	lost := errors.New("lost")
	for _, c := range []struct {
		name     string
		attempts []Attempt
		want     Outage
		fails    bool
	}{
		{name: "nothing noticed", attempts: []Attempt{at(-10, 2, nil), at(5, 2, nil), at(15, 2, nil)}, want: Outage{Gap: 15 * time.Millisecond, Attempts: 2}},
		{
			name: "an attempt under way is lost, those at first still served count for nothing",
			attempts: []Attempt{
				at(-5, 900, lost), at(5, 2, nil), at(15, 900, lost), at(25, 900, lost), at(35, 20, nil), at(45, 3, nil),
			},
			want: Outage{Lasted: 48 * time.Millisecond, Gap: 41 * time.Millisecond, Attempts: 5, Failed: 3},
		},
		{name: "no answer since", attempts: []Attempt{at(-5, 2, nil), at(5, 900, lost)}, fails: true},
		{name: "nothing tried since", attempts: []Attempt{at(-5, 2, nil)}, fails: true},
	} {
		got, err := OutageSince(c.attempts, zero)
		if (err != nil) != c.fails || err == nil && got != c.want {
			t.Errorf("%s: got %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
}

func TestProber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		down := errors.New("down")
		p := &Prober{Every: 10 * time.Millisecond, Timeout: 100 * time.Millisecond}
		// Answers at once, but not at all between 45 and 295 ms.
		p.Try = func(ctx context.Context) error {
			if since := time.Since(begin); since > 45*time.Millisecond && since < 295*time.Millisecond {
				<-ctx.Done()
				return down
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.Run(ctx) }()
		if err := p.AwaitSuccess(ctx, begin.Add(100*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if since := time.Since(begin); since != 300*time.Millisecond {
			t.Errorf("the first answer came after %v, want 300ms", since)
		}
		time.Sleep(105 * time.Millisecond) // in the bubble: let the failing ones end
		cancel()
		<-done
		attempts := p.Attempts()
		if !slices.IsSortedFunc(attempts, func(a, b Attempt) int { return a.Start.Compare(b.Start) }) {
			t.Error("the attempts are not in the order of their start")
		}
		got, err := OutageSince(attempts, begin.Add(45*time.Millisecond))
		want := Outage{Lasted: 255 * time.Millisecond, Gap: 260 * time.Millisecond, Attempts: 36, Failed: 25}
		if err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	})
}

func TestAwaitSuccessEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := new(Prober).AwaitSuccess(ctx, time.Now()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestAnswer(t *testing.T) {
	for _, c := range []struct {
		name, reply, want string
	}{
		{name: "asked to authenticate", reply: "R\x00\x00\x00\x08\x00\x00\x00\x03"},
		{name: "refused", reply: "E\x00\x00\x00\x17SFATAL\x00C57P03\x00Mno\x00\x00", want: "57P03"},
		{name: "not a server", reply: "HTTP/1.1 400 Bad Request\r\n\r\n", want: "length"},
		{name: "another message", reply: "Z\x00\x00\x00\x05I", want: "unexpected message 'Z'"},
		{name: "closed", reply: "", want: "EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := make(chan string, 1)
			dial := func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				go func() {
					defer server.Close()
					b := make([]byte, 100)
					n, err := server.Read(b)
					got <- string(b[:n])
					if err != nil || c.reply == "" {
						return
					}
					if _, err := server.Write([]byte(c.reply)); err != nil {
						return
					}
					_, _ = server.Read(b) // the end
				}()
				return client, nil
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := Answer(dial, Service, "u", "d")(ctx)
			if want := "\x00\x00\x00\x1b\x00\x03\x00\x00user\x00u\x00database\x00d\x00\x00"; <-got != want {
				t.Errorf("the startup packet is wrong")
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestAnswerEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dial := func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			b := make([]byte, 100)
			_, _ = server.Read(b)
			cancel() // and never answer
		}()
		t.Cleanup(func() { server.Close() })
		return client, nil
	}
	if err := Answer(dial, Service, "u", "d")(ctx); err == nil {
		t.Error("an attempt without an answer succeeded")
	}
}

// Service is any address: the dials of these tests do not look at it.
const Service = "192.0.2.1:5432"
