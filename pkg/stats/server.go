package stats

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/pgsteer/pgsteer/pkg/stats/web"
)

// Config says where to serve and what.
type Config struct {
	Listen   string          // ADDRESS:PORT or :PORT
	Snapshot func() Snapshot // called for each request; safe for concurrent use
	Log      *slog.Logger
}

// Server serves /stats, which is HAProxy's page and CSV, /status, which is ours,
// /metrics and /healthz.
type Server struct{ *web.Server }

// Open binds the port. A port that is taken is an error here, not in Run.
func Open(cfg Config) (*Server, error) {
	handler, err := newHandler(cfg)
	if err != nil {
		return nil, err
	}
	server, err := web.Open("stats", cfg.Listen, false, handler, cfg.Log)
	if err != nil {
		return nil, err
	}
	return &Server{server}, nil
}

// newHandler routes the paths. The patterns take GET and HEAD only; the mux
// answers 405 to the rest.
func newHandler(cfg Config) (http.Handler, error) {
	registry := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		newCollector(cfg.Snapshot),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelError),
		// What can be told is told, with the error in the log.
		ErrorHandling: promhttp.ContinueOnError,
	}))
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		var buf bytes.Buffer
		snapshot := cfg.Snapshot()
		err := writePage(&buf, &snapshot, r.URL.Query().Has("norefresh"))
		sendPage(w, &buf, err, cfg.Log)
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) { serveClassic(w, r, &cfg) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		snapshot := cfg.Snapshot()
		if err := snapshot.Unwell(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if _, err := fmt.Fprintln(w, "ok"); err != nil {
			cfg.Log.Debug("answering /healthz", "error", err)
		}
	})
	mux.Handle("GET /{$}", http.RedirectHandler("/stats", http.StatusSeeOther))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// HAProxy's options stand behind semicolons: /stats;csv;norefresh.
		if strings.HasPrefix(r.URL.Path, "/stats;") && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			serveClassic(w, r, &cfg)
			return
		}
		mux.ServeHTTP(w, r)
	}), nil
}

// serveClassic answers as HAProxy does.
func serveClassic(w http.ResponseWriter, r *http.Request, cfg *Config) {
	options := strings.Split(strings.TrimPrefix(r.URL.Path, "/stats"), ";")
	snapshot := cfg.Snapshot()
	rows := classicRows(&snapshot)
	if slices.Contains(options, "csv") {
		var csv strings.Builder
		writeCSV(&csv, rows)
		h := w.Header()
		if snapshot.DatapathErr != nil {
			// No row at all would be taken for nothing to be watched.
			http.Error(w, "reading the datapath: "+snapshot.DatapathErr.Error(), http.StatusServiceUnavailable)
			return
		}
		h.Set("Content-Type", "text/plain")
		h.Set("Cache-Control", "no-cache")
		if _, err := io.WriteString(w, csv.String()); err != nil {
			cfg.Log.Debug("sending the stats", "error", err)
		}
		return
	}
	if slices.Contains(options, "up") {
		rows = up(rows)
	}
	var buf bytes.Buffer
	err := writeClassic(&buf, &snapshot, rows, slices.Contains(options, "norefresh") || r.URL.Query().Has("norefresh"))
	sendPage(w, &buf, err, cfg.Log)
}

// sendPage sends what was rendered, or says that it was not.
func sendPage(w http.ResponseWriter, buf *bytes.Buffer, err error, log *slog.Logger) {
	if err != nil {
		log.Error("rendering the stats page", "error", err)
		http.Error(w, "rendering the stats page failed; see the log", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	if _, err := w.Write(buf.Bytes()); err != nil {
		log.Debug("sending the stats page", "error", err)
	}
}
