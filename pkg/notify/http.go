package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// maxReply is what is read of an answer, in bytes. Slack says a word.
const maxReply = 512

// A poster posts to one URL, which it never tells.
type poster struct {
	url    string
	hidden []string // what of it must not be seen, the longest first
	client http.Client
}

// newPoster asks for the URL and checks it. The error does not have it.
func newPoster(source Source, timeout time.Duration) (*poster, error) {
	u, err := source()
	if err != nil {
		return nil, err
	}
	parsed, err := url.Parse(u.text)
	switch {
	case err != nil: // the error would print it
		return nil, errors.New("the URL makes no sense")
	case parsed.Scheme != "https" && parsed.Scheme != "http" || parsed.Host == "":
		return nil, errors.New("the URL does not begin with https:// or http:// and a host")
	}
	p := &poster{url: u.text, hidden: []string{u.text, parsed.RequestURI()}}
	p.client = http.Client{
		Timeout: timeout,
		// Whoever answers with a redirection has the message go elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: timeout, ForceAttemptHTTP2: true,
			// Messages are far apart; a connection that idles may be dead.
			DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		},
	}
	if parsed.User != nil {
		p.hidden = append(p.hidden, parsed.User.String())
		if word, ok := parsed.User.Password(); ok {
			p.hidden = append(p.hidden, word)
		}
	}
	for _, part := range append(strings.Split(parsed.EscapedPath(), "/"), parsed.RawQuery) {
		// A short part is a word such as "services", not a token.
		if len(part) >= 8 && part != "services" {
			p.hidden = append(p.hidden, part)
		}
	}
	return p, nil
}

// post sends a body of JSON once.
func (p *poster) post(ctx context.Context, body []byte, header http.Header, now time.Time) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(body))
	if err != nil {
		return errors.New("making the request failed") // the error would print the URL
	}
	for k, v := range header {
		r.Header[k] = v
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "pgsteer")
	answer, err := p.client.Do(r)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // without the URL
		}
		return errors.New(p.clean(err.Error()))
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(answer.Body, maxReply)) // it is only shown
	if answer.StatusCode >= 200 && answer.StatusCode < 300 {
		return nil
	}
	err = errors.New(p.clean(fmt.Sprintf("the server answered %d %s %s", answer.StatusCode, http.StatusText(answer.StatusCode), text)))
	if after, ok := parseRetryAfter(answer.Header.Get("Retry-After"), now); ok {
		return &delayError{fmt.Errorf("%w; it wants to be left alone for %v", err, after.Round(time.Second)), after}
	}
	return err
}

// clean makes text fit for a line of a log, and takes out what of it is secret.
func (p *poster) clean(text string) string {
	for _, h := range p.hidden {
		if len(h) > 1 {
			text = strings.ReplaceAll(text, h, hidden)
		}
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	const limit = 200
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "…"
	}
	return strings.TrimSpace(text)
}

// parseRetryAfter reads seconds or a date (RFC 9110, 10.2.3).
func parseRetryAfter(text string, now time.Time) (time.Duration, bool) {
	text = strings.TrimSpace(text)
	if n, err := strconv.ParseUint(text, 10, 32); err == nil {
		return min(time.Duration(n)*time.Second, maxRetryAfter), true
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(0, at.Sub(now)), maxRetryAfter), true
	}
	return 0, false
}
