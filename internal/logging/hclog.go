// Package logging makes the logger that a program's flags ask for, and lets hashicorp's libraries write to it.
//
// A message that a library repeats (a peer that does not answer, for every group, twice a second) is written once an
// interval, with the number of times it was left out. The memory for that is bounded. A logger may be used concurrently.
package logging

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Limits of the repetition filter.
const (
	repeatInterval = 10 * time.Second
	maxMessages    = 512 // distinct messages remembered; messages are constants of the libraries
)

// HC returns an hclog.Logger that writes to l; nil discards.
//
// Libraries call ordinary what an operator would not act on, and an error what they try again: levels move one step
// down, Info to Debug and Error to Warn. Warn stays.
func HC(l *slog.Logger) hclog.Logger {
	l = cmp.Or(l, slog.New(slog.DiscardHandler))
	return &hcLogger{out: l, repeats: &repeats{seen: map[string]*repeat{}}}
}

type hcLogger struct {
	out     *slog.Logger
	name    string
	implied []any
	repeats *repeats // shared by loggers derived from one another
}

// repeats remembers when a message was last written.
type repeats struct {
	mu   sync.Mutex // guards seen and what it points to
	seen map[string]*repeat
}

type repeat struct {
	written time.Time
	left    int // since written
}

// pass reports whether the message is written now, and how often it was left out before.
func (r *repeats) pass(message string, now time.Time) (ok bool, left int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.seen[message]
	if x == nil {
		if len(r.seen) >= maxMessages {
			maps.DeleteFunc(r.seen, func(_ string, x *repeat) bool { return now.Sub(x.written) >= repeatInterval })
		}
		if len(r.seen) < maxMessages {
			r.seen[message] = &repeat{written: now}
		}
		return true, 0
	}
	if now.Sub(x.written) < repeatInterval {
		x.left++
		return false, 0
	}
	left, x.left, x.written = x.left, 0, now
	return true, left
}

func slogLevel(level hclog.Level) slog.Level {
	switch level {
	case hclog.Error, hclog.Warn:
		return slog.LevelWarn
	case hclog.Info:
		return slog.LevelDebug
	default:
		return slog.LevelDebug - 4
	}
}

// Log implements hclog.Logger.
func (h *hcLogger) Log(level hclog.Level, msg string, args ...any) {
	to := slogLevel(level)
	if !h.out.Enabled(context.Background(), to) {
		return
	}
	if to >= slog.LevelWarn {
		ok, left := h.repeats.pass(h.name+"\x00"+msg, time.Now())
		if !ok {
			return
		}
		if left > 0 {
			args = append(args[:len(args):len(args)], "left_out", left)
		}
	}
	if h.name != "" {
		msg = h.name + ": " + msg
	}
	h.out.Log(context.Background(), to, msg, plain(args)...)
}

// plain replaces hclog's lazy formats by text: slog does not know them.
func plain(args []any) []any {
	out := args
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			if len(out) > 0 && &out[0] == &args[0] {
				out = append([]any(nil), args...)
			}
			layout, _ := f[0].(string)
			out[i] = fmt.Sprintf(layout, f[1:]...)
		}
	}
	return out
}

func (h *hcLogger) Trace(msg string, args ...any) { h.Log(hclog.Trace, msg, args...) }
func (h *hcLogger) Debug(msg string, args ...any) { h.Log(hclog.Debug, msg, args...) }
func (h *hcLogger) Info(msg string, args ...any)  { h.Log(hclog.Info, msg, args...) }
func (h *hcLogger) Warn(msg string, args ...any)  { h.Log(hclog.Warn, msg, args...) }
func (h *hcLogger) Error(msg string, args ...any) { h.Log(hclog.Error, msg, args...) }

func (h *hcLogger) enabled(level hclog.Level) bool {
	return h.out.Enabled(context.Background(), slogLevel(level))
}

func (h *hcLogger) IsTrace() bool { return h.enabled(hclog.Trace) }
func (h *hcLogger) IsDebug() bool { return h.enabled(hclog.Debug) }
func (h *hcLogger) IsInfo() bool  { return h.enabled(hclog.Info) }
func (h *hcLogger) IsWarn() bool  { return h.enabled(hclog.Warn) }
func (h *hcLogger) IsError() bool { return h.enabled(hclog.Error) }

func (h *hcLogger) ImpliedArgs() []any { return h.implied }

func (h *hcLogger) With(args ...any) hclog.Logger {
	d := *h
	d.out = h.out.With(plain(args)...)
	d.implied = append(h.implied[:len(h.implied):len(h.implied)], args...)
	return &d
}

func (h *hcLogger) Name() string { return h.name }

func (h *hcLogger) Named(name string) hclog.Logger {
	if h.name != "" {
		name = h.name + "." + name
	}
	return h.ResetNamed(name)
}

func (h *hcLogger) ResetNamed(name string) hclog.Logger {
	d := *h
	d.name = name
	return &d
}

// SetLevel does nothing: the slog handler decides.
func (h *hcLogger) SetLevel(hclog.Level) {}

func (h *hcLogger) GetLevel() hclog.Level {
	for _, level := range []hclog.Level{hclog.Trace, hclog.Info, hclog.Warn} {
		if h.enabled(level) {
			return level
		}
	}
	return hclog.Off
}

func (h *hcLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(h.StandardWriter(nil), "", 0)
}

func (h *hcLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return lineWriter{h} }

// lineWriter logs what a log.Logger writes, one message a Write.
type lineWriter struct{ h *hcLogger }

func (w lineWriter) Write(b []byte) (int, error) {
	w.h.Info(strings.TrimRight(string(b), "\n"))
	return len(b), nil
}
