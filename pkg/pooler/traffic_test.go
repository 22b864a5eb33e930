package pooler

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// TestQueries runs pgx's ways of executing through the pooler.
func TestQueries(t *testing.T) {
	p := startPooler(t, nil)
	modes := map[string]pgx.QueryExecMode{
		"named":    pgx.QueryExecModeCacheStatement,
		"describe": pgx.QueryExecModeCacheDescribe,
		"two":      pgx.QueryExecModeDescribeExec,
		"exec":     pgx.QueryExecModeExec,
		"simple":   pgx.QueryExecModeSimpleProtocol,
	}
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			conn := p.connect()
			for i := range 20 {
				var got int
				if err := conn.QueryRow(ctx, "select $1::int + 1", mode, i).Scan(&got); err != nil || got != i+1 {
					t.Fatalf("got %d, %v; want %d", got, err, i+1)
				}
			}
			_, err := conn.Exec(ctx, "select 1/$1::int", mode, 0)
			if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "22012" {
				t.Fatalf("got error %v, want 22012", err)
			}
			var s string
			if err := conn.QueryRow(ctx, "select $1::text", mode, "still fine").Scan(&s); err != nil || s != "still fine" {
				t.Fatalf("after an error: %q, %v", s, err)
			}
		})
	}
	p.quiet()
}

// TestPreparedEverywhere: many clients with statements of their own, on few
// servers with a small limit, in transactions that force changes of server.
func TestPreparedEverywhere(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize, c.MaxPrepared = 2, 3 })
	var wg sync.WaitGroup
	for client := range 20 {
		conn := p.connect()
		wg.Go(func() {
			ctx := testContext(t)
			for i := range 30 {
				stmt := fmt.Sprintf("s%d", i%5)
				if i < 5 {
					text := fmt.Sprintf("select %d, $1::int, pg_backend_pid()", i*(client%3+1))
					if _, err := conn.Prepare(ctx, stmt, text); err != nil {
						t.Errorf("client %d: prepare: %v", client, err)
						return
					}
				}
				var a, b, pid int
				if err := conn.QueryRow(ctx, stmt, i).Scan(&a, &b, &pid); err != nil {
					t.Errorf("client %d: query %d: %v", client, i, err)
					return
				}
				if a != (i%5)*(client%3+1) || b != i {
					t.Errorf("client %d got %d, %d: another's statement", client, a, b)
					return
				}
			}
		})
	}
	wg.Wait()
	p.quiet()
	if s := p.pool(); s.ServersIdle > 2 || s.ClientParses < 100 || s.ServerParses <= s.ClientParses/20 {
		t.Errorf("pool: %+v", s)
	}
}

// TestPipeline sends batches in pgx's pipeline mode, with errors in them.
func TestPipeline(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	ctx := testContext(t)
	conn := p.connect()
	other := p.connect()
	for range 3 {
		batch := &pgx.Batch{}
		for i := range 500 {
			batch.Queue("select $1::int", i)
		}
		results := conn.SendBatch(ctx, batch)
		for i := range 500 {
			var got int
			if err := results.QueryRow().Scan(&got); err != nil || got != i {
				t.Fatalf("result %d: %d, %v", i, got, err)
			}
		}
		if err := results.Close(); err != nil {
			t.Fatal(err)
		}
		pipe := conn.PgConn().StartPipeline(ctx)
		for i := range 20 {
			sql := "select 'ok'"
			if i%3 == 0 {
				sql = "select 1/0"
			}
			pipe.SendQueryParams(sql, nil, nil, nil, nil)
			if err := pipe.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		failed, synced := 0, 0
		for synced < 20 {
			r, err := pipe.GetResults()
			if err != nil {
				failed++
				continue
			}
			switch r := r.(type) {
			case *pgconn.ResultReader:
				if res := r.Read(); res.Err != nil {
					failed++
				}
			case *pgconn.PipelineSync:
				synced++
			}
		}
		if err := pipe.Close(); err != nil || failed != 7 {
			t.Fatalf("%d failed (%v), want 7", failed, err)
		}
		var one int
		if err := other.QueryRow(ctx, "select 1").Scan(&one); err != nil || one != 1 {
			t.Fatalf("other client: %d, %v", one, err)
		}
	}
}

// TestCopy moves rows in both directions.
func TestCopy(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	ctx := testContext(t)
	conn := p.connect()
	if _, err := conn.Exec(ctx, "create table if not exists copied (a int, b text); truncate copied"); err != nil {
		t.Fatal(err)
	}
	rows := make([][]any, 20000)
	for i := range rows {
		rows[i] = []any{i, strings.Repeat("x", i%200)}
	}
	n, err := conn.CopyFrom(ctx, pgx.Identifier{"copied"}, []string{"a", "b"}, pgx.CopyFromRows(rows))
	if err != nil || n != 20000 {
		t.Fatalf("copied %d in: %v", n, err)
	}
	var out bytes.Buffer
	tag, err := conn.PgConn().CopyTo(ctx, &out, "copy copied to stdout")
	if err != nil || tag.RowsAffected() != 20000 || strings.Count(out.String(), "\n") != 20000 {
		t.Fatalf("copied out: %v, %v", tag, err)
	}
	// One that fails in the middle, while the client goes on sending.
	bad := "1\tx\nnonsense\n" + strings.Repeat("2\ty\n", 300000)
	_, err = conn.PgConn().CopyFrom(ctx, strings.NewReader(bad), "copy copied from stdin")
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "22P04" && pgErr.Code != "22P02" {
		t.Fatalf("bad copy: %v", err)
	}
	var count int
	if err := conn.QueryRow(ctx, "select count(*) from copied").Scan(&count); err != nil || count != 20000 {
		t.Fatalf("%d rows afterwards, %v", count, err)
	}
	p.quiet()
}

// TestLargeQueries sends texts far above any buffer.
func TestLargeQueries(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	ctx := testContext(t)
	conn := p.connect()
	for _, size := range []int{31 << 10, 32<<10 - 3, 1 << 20, 4 << 20} {
		text := strings.Repeat("y", size)
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeExec} {
			var n int
			if err := conn.QueryRow(ctx, "select length($1::text)", mode, text).Scan(&n); err != nil || n != size {
				t.Fatalf("parameter of %d bytes, mode %v: %d, %v", size, mode, n, err)
			}
			if err := conn.QueryRow(ctx, "select length('"+text+"')", mode).Scan(&n); err != nil || n != size {
				t.Fatalf("text of %d bytes, mode %v: %d, %v", size, mode, n, err)
			}
		}
	}
	// A named statement is held in memory, so it has a bound.
	_, err := conn.Prepare(ctx, "long", "select '"+strings.Repeat("z", 2<<20)+"'")
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "54000" {
		t.Fatalf("got %v, want 54000", err)
	}
	p.quiet()
}

// TestManyClients: 200 clients on five servers, each sees its own answers.
func TestManyClients(t *testing.T) {
	p := startPooler(t, nil)
	ctx := testContext(t)
	conns := make([]*pgx.Conn, 200)
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() {
			conn, err := pgx.Connect(ctx, dsn(p.host, p.port, "postgres")+p.sslmode())
			if err != nil {
				t.Errorf("client %d: %v", i, err)
				return
			}
			conns[i] = conn
		})
	}
	wg.Wait()
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close(ctx)
			}
		}
	}()
	if t.Failed() {
		return
	}
	for i, conn := range conns {
		wg.Go(func() {
			for j := range 20 {
				var a, b int
				err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
					if err := tx.QueryRow(ctx, "select $1::int", i).Scan(&a); err != nil {
						return err
					}
					return tx.QueryRow(ctx, "select $1::int", j).Scan(&b)
				})
				if err != nil || a != i || b != j {
					t.Errorf("client %d got %d, %d: %v", i, a, b, err)
					return
				}
			}
		})
	}
	wg.Wait()
	s := p.pool()
	if s.ServersIdle+s.ServersActive > 5 {
		t.Errorf("more servers than the pool's size: %+v", s)
	}
	if s.Transactions < 4000 {
		t.Errorf("%d transactions counted, want at least 4000", s.Transactions)
	}
}

// TestSlowReader: a client that does not read holds up nothing but itself, and
// what is kept for it is bounded.
func TestSlowReader(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 2 })
	ctx := testContext(t)
	slow := p.connect()
	rows, err := slow.Query(ctx, "select i, repeat('a', 1000) from generate_series(1, 50000) i", pgx.QueryExecModeExec)
	if err != nil {
		t.Fatal(err)
	}
	host, port := postgres(t)
	direct, err := pgx.Connect(ctx, dsn(host, port, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close(ctx)
	kept := 0
	until(t, "the server to wait for its client", func() bool {
		var n int
		err := direct.QueryRow(ctx, "select count(*) from pg_stat_activity where wait_event = 'ClientWrite'").Scan(&n)
		kept = p.spilled()
		return err == nil && n == 1 && kept > 0
	})
	other := p.connect()
	var one int
	if err := other.QueryRow(ctx, "select 1").Scan(&one); err != nil || one != 1 {
		t.Fatalf("other client: %d, %v", one, err)
	}
	if kept > 2*readSize {
		t.Errorf("%d bytes kept for the slow reader, want at most %d", kept, 2*readSize)
	}
	next := 1
	for rows.Next() {
		var i int
		var s string
		if err := rows.Scan(&i, &s); err != nil || i != next || len(s) != 1000 {
			t.Fatalf("row %d: %d, %d bytes, %v", next, i, len(s), err)
		}
		next++
	}
	if rows.Err() != nil || next != 50001 {
		t.Fatalf("%d rows, %v", next-1, rows.Err())
	}
	p.quiet()
}

// spilled returns how many bytes are kept for slow readers.
func (p *testPooler) spilled() int {
	counted := make(chan int, 1)
	p.loop.post(func() {
		n := 0
		for _, c := range p.loop.m.slots {
			if c != nil {
				n += len(c.spill)
			}
		}
		counted <- n
	})
	return <-counted
}

// TestBothSidesFull: a client that writes without reading until everything is
// full, and then reads. Nothing may lock up for good.
func TestBothSidesFull(t *testing.T) {
	p := startPooler(t, func(c *Config) { c.PoolSize = 1 })
	raw := dialRaw(t, p)
	const queries = 10000
	var sent bytes.Buffer
	for i := range queries {
		sent.Write(msgQuery(fmt.Sprintf("select %d, repeat('b', 10000) /* %s */", i, strings.Repeat("c", 4000))))
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := raw.conn.Write(sent.Bytes())
		wrote <- err
	}()
	until(t, "both sides to be full", func() bool {
		full := make(chan bool, 1)
		p.loop.post(func() {
			for _, c := range p.loop.m.slots {
				if c != nil && c.sv != nil && len(c.spill) > 0 && c.sv.client != nil && len(c.sv.client.spill) > 0 {
					full <- true
					return
				}
			}
			full <- false
		})
		return <-full
	})
	for i := range queries {
		for {
			typ, body := raw.receive()
			if typ == 'E' {
				t.Fatalf("query %d: %q", i, body)
			}
			if typ == 'D' && !bytes.Contains(body[:20], fmt.Appendf(nil, "%d", i)) {
				t.Fatalf("row of query %d begins %q", i, body[:20])
			}
			if typ == 'Z' {
				break
			}
		}
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	raw.conn.Close()
	p.quiet()
}
