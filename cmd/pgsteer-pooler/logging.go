package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"sync"

	"github.com/pgsteer/pgsteer/pkg/config/bouncer"
)

// logs are where the log goes: to standard error, and besides to a file and to
// syslog if the configuration says so. A reload may change all but the first,
// and opens the file anew, as log rotation needs it.
type logs struct {
	level  slog.LevelVar
	stderr io.Writer

	mu     sync.Mutex
	file   *os.File
	syslog *syslog.Writer
}

// facilities are syslog's.
var facilities = map[string]syslog.Priority{
	"auth": syslog.LOG_AUTH, "authpriv": syslog.LOG_AUTHPRIV, "daemon": syslog.LOG_DAEMON, "user": syslog.LOG_USER,
	"local0": syslog.LOG_LOCAL0, "local1": syslog.LOG_LOCAL1, "local2": syslog.LOG_LOCAL2, "local3": syslog.LOG_LOCAL3,
	"local4": syslog.LOG_LOCAL4, "local5": syslog.LOG_LOCAL5, "local6": syslog.LOG_LOCAL6, "local7": syslog.LOG_LOCAL7,
}

// logger returns the logger that writes there.
func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: &l.level}))
}

// configure follows a configuration. After an error all is as before.
func (l *logs) configure(c *bouncer.Config) (err error) {
	var file *os.File
	var sys *syslog.Writer
	defer func() {
		if err != nil && file != nil {
			file.Close()
		}
	}()
	if c.LogFile != "" {
		if file, err = os.OpenFile(c.LogFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640); err != nil {
			return fmt.Errorf("opening logfile: %w", err)
		}
	}
	if c.Syslog {
		if sys, err = syslog.New(facilities[c.SyslogFacility]|syslog.LOG_INFO, c.SyslogIdent); err != nil {
			return fmt.Errorf("opening syslog: %w", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close() // what it holds is written
	}
	if l.syslog != nil {
		l.syslog.Close()
	}
	l.file, l.syslog = file, sys
	l.level.Set(slog.LevelInfo)
	if c.Verbose > 0 {
		l.level.Set(slog.LevelDebug)
	}
	return nil
}

// Write takes one line.
func (l *logs) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.stderr.Write(line)
	if l.file != nil {
		_, ferr := l.file.Write(line)
		err = errors.Join(err, ferr)
	}
	if l.syslog != nil {
		err = errors.Join(err, l.toSyslog(line))
	}
	return len(line), err
}

// toSyslog gives a line its priority. Syslog has a clock of its own.
func (l *logs) toSyslog(line []byte) error {
	_, text, _ := bytes.Cut(line, []byte(" "))
	level, rest, _ := bytes.Cut(text, []byte(" "))
	s := string(rest)
	switch string(level) {
	case "level=DEBUG":
		return l.syslog.Debug(s)
	case "level=WARN":
		return l.syslog.Warning(s)
	case "level=ERROR":
		return l.syslog.Err(s)
	}
	return l.syslog.Info(s)
}
