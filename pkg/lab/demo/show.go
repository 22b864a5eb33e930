package demo

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pgsteer/pgsteer/pkg/lab"
)

// pageLimit is longer than any page that the balancers serve.
const pageLimit = 1 << 20

// caption says what comes next.
func (s *show) caption(format string, args ...any) {
	fmt.Fprintf(s.out, "\n[%3.0f s] %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// say reports a step.
func (s *show) say(step string) { fmt.Fprintf(s.out, "        %s\n", step) }

// add puts a row into the final table.
func (s *show) add(what, format string, args ...any) {
	s.rows = append(s.rows, row{what, fmt.Sprintf(format, args...)})
}

// fail notes that something did not work, and goes on.
func (s *show) fail(err error) {
	s.wrong = append(s.wrong, err)
	s.say("DID NOT WORK: " + err.Error())
}

// table prints the figures.
func (s *show) table() {
	wide, wider := 0, 0
	for _, r := range s.rows {
		wide = max(wide, utf8.RuneCountInString(r.what))
		wider = max(wider, utf8.RuneCountInString(r.result))
	}
	line := "+" + strings.Repeat("-", wide+2) + "+" + strings.Repeat("-", wider+2) + "+"
	fmt.Fprintf(s.out, "\n%s\n", line)
	for _, r := range s.rows {
		fmt.Fprintf(s.out, "| %-*s | %-*s |\n", wide, r.what, wider, r.result)
	}
	fmt.Fprintln(s.out, line)
	verdict := "everything worked"
	switch n := len(s.wrong); {
	case n == 1:
		verdict = "1 thing did not work"
	case n > 1:
		verdict = fmt.Sprintf("%d things did not work", n)
	}
	fmt.Fprintf(s.out, "%s, %.0f s in all\n", verdict, time.Since(s.began).Seconds())
}

// goOn tells how to try more by hand.
func (s *show) goOn(invocation string) {
	fmt.Fprintf(s.out, "\nThe lab is still up. Go on by hand, as root:\n")
	for _, c := range []struct{ command, what string }{
		{"status", "hosts, processes, who is active"},
		{"exec client -- psql", "a session through the VIP"},
		{"exec lb1 -- pgsteer backend show", "what the balancer counts; also service, flow, vip, counter"},
		{"kill lb1", "and start lb1; also pooler1-3, postgres; stop and cont freeze"},
		{"cut lb2", "pull a cable; heal lb2"},
		{"down", "remove everything"},
	} {
		fmt.Fprintf(s.out, "  %s %-52s # %s\n", invocation, c.command, c.what)
	}
}

// fetch gets a page as a browser on the client would.
func (s *show) fetch(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	transport := &http.Transport{DialContext: s.lab.DialContext(lab.Client), DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", fmt.Errorf("fetching %s: %w", url, err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", fmt.Errorf("fetching %s: %w", url, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("fetching %s: %s", url, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, pageLimit))
	if err != nil {
		return "", fmt.Errorf("fetching %s: %w", url, err)
	}
	return string(body), nil
}
