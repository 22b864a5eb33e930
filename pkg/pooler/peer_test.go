package pooler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgsteer/pgsteer/pkg/pgwire"
)

// TestPoolsLikePgBouncer has clients of PgBouncer and of ours do the same under
// the same settings, and compares what they get.
func TestPoolsLikePgBouncer(t *testing.T) {
	host, port := postgres(t)
	for _, tt := range []struct {
		name   string
		lines  string // of PgBouncer's configuration
		config func(*Config)
		steps  []string // "2 select 1" is for the second client; "wait" lets time pass
		want   string   // in the last answer, so that not both are wrong
	}{
		{"statement pooling", "pool_mode = statement", func(c *Config) { c.PoolMode = PoolStatement },
			[]string{"1 select 1", "1 begin;select 1;commit", "1 select 1/0", "1 begin", "1 select 1"}, ""},
		{"session pooling", "pool_mode = session\ndefault_pool_size = 1", func(c *Config) { c.PoolMode, c.PoolSize = PoolSession, 1 },
			[]string{"1 set work_mem = '1MB'", "1 show work_mem", "1 prepare p as select 7", "1 execute p", "1 begin", "1 commit", "1 close",
				"2 show work_mem", "2 execute p"}, "26000"},
		{"no reset", "pool_mode = session\ndefault_pool_size = 1\nserver_reset_query =", func(c *Config) { c.PoolMode, c.PoolSize, c.ServerResetQuery = PoolSession, 1, "" },
			[]string{"1 set work_mem = '1MB'", "1 close", "2 show work_mem"}, "1MB"},
		{"reset always", "pool_mode = transaction\ndefault_pool_size = 1\nserver_reset_query_always = 1",
			func(c *Config) { c.PoolSize, c.ServerResetQueryAlways = 1, true },
			[]string{"1 set work_mem = '1MB'", "1 show work_mem"}, "4MB"},
		{"query_timeout", "pool_mode = transaction\nquery_timeout = 1", func(c *Config) { c.Timeouts.Query = time.Second },
			[]string{"1 select pg_sleep(5)"}, "query timeout"},
		{"idle_transaction_timeout", "pool_mode = transaction\nidle_transaction_timeout = 1", func(c *Config) { c.Timeouts.IdleTransaction = time.Second },
			[]string{"1 begin", "wait", "1 select 1"}, "idle transaction timeout"},
		{"client_idle_timeout", "pool_mode = transaction\nclient_idle_timeout = 1", func(c *Config) { c.Timeouts.ClientIdle = time.Second },
			[]string{"1 select 1", "wait", "1 select 1"}, "client_idle_timeout"},
		{"query_wait_timeout", "pool_mode = transaction\ndefault_pool_size = 1\nquery_wait_timeout = 1",
			func(c *Config) { c.PoolSize, c.QueryWaitTimeout = 1, time.Second },
			[]string{"1 begin", "2 select 1", "1 commit"}, ""},
		{"disable_pqexec", "pool_mode = transaction\ndisable_pqexec = 1", func(c *Config) { c.DisablePQExec = true },
			[]string{"1 select 1"}, "PQexec disallowed"},
		{"reserve pool", "pool_mode = transaction\ndefault_pool_size = 1\nreserve_pool_size = 1\nreserve_pool_timeout = 1",
			func(c *Config) { c.PoolSize, c.ReservePoolSize, c.ReservePoolTimeout = 1, 1, time.Second },
			[]string{"1 begin", "2 select 1", "1 commit"}, ""},
		{"max_db_connections", "pool_mode = transaction\nmax_db_connections = 1\nquery_wait_timeout = 1",
			func(c *Config) { c.MaxDBConnections, c.QueryWaitTimeout = 1, time.Second },
			[]string{"1 begin", "2 select 1", "1 commit"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			theirs, _ := bouncerWith(t, fmt.Sprintf("postgres = host=%s port=%d", host, port), testPassword, tt.lines)
			ours := startPooler(t, func(c *Config) {
				c.AuthMethod = pgwire.AuthTrust
				tt.config(c)
			})
			got := conversation(t, ours.port, tt.steps)
			for i := range got {
				// PgBouncer throws away what it has not sent on when it ends a
				// client: here the answer to BEGIN, if all came at once.
				got[i] = strings.Replace(got[i], ": BEGIN FATAL ", ": FATAL ", 1)
			}
			if want := conversation(t, theirs, tt.steps); !slices.Equal(got, want) {
				t.Errorf("ours      %q\nPgBouncer %q", got, want)
			}
			if last := got[len(got)-1]; !strings.Contains(last, tt.want) {
				t.Errorf("the last answer is %q, want %s", last, tt.want)
			}
		})
	}
}

// conversation has clients take steps at a pooler, and returns the answers.
func conversation(t *testing.T, port int, steps []string) (answers []string) {
	t.Helper()
	ctx := testContext(t)
	clients := make(map[string]*pgconn.PgConn)
	defer func() {
		for _, c := range clients {
			c.Close(ctx)
		}
	}()
	for _, step := range steps {
		who, what, _ := strings.Cut(step, " ")
		if who == "wait" {
			time.Sleep(2 * time.Second) // for timeouts of 1 s, which PgBouncer looks at each third of one
			continue
		}
		if clients[who] == nil {
			c, err := pgconn.Connect(ctx, dsn("127.0.0.1", port, "postgres"))
			if err != nil {
				t.Fatal(err)
			}
			clients[who] = c
		}
		if what == "close" {
			clients[who].Close(ctx)
			continue
		}
		answers = append(answers, step+": "+answer(ctx, clients[who], what))
	}
	return answers
}

// answer sends a simple query, and puts all that comes into words.
func answer(ctx context.Context, c *pgconn.PgConn, sql string) string {
	var words []string
	results, err := c.Exec(ctx, sql).ReadAll()
	for _, r := range results {
		for _, row := range r.Rows {
			words = append(words, string(slices.Concat(row...)))
		}
		words = append(words, r.CommandTag.String())
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		words = append(words, e.Severity, e.Code, e.Message)
	} else if err != nil {
		words = append(words, "lost")
	}
	return strings.Join(words, " ")
}
