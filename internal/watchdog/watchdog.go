// Package watchdog tells the service manager that started this process that it lives, so that one which hangs is started anew
// (systemd's WatchdogSec=, sd_watchdog_enabled(3)). It tells it only for as long as a check of the process's own succeeds: a timer
// that ticks in a process whose work stands still would say nothing. Nothing else of systemd's protocol is here. A Watchdog may be
// used by one goroutine.
package watchdog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	storage "github.com/storaged/storaged"
)

// Names of what the service manager says in the environment.
const (
	socketVariable = "NOTIFY_SOCKET"
	everyVariable  = "WATCHDOG_USEC"
	pidVariable    = "WATCHDOG_PID"
)

// Watchdog tells one service manager. It is made by FromEnvironment.
type Watchdog struct {
	socket string
	// within is how long the manager waits for a word.
	within time.Duration
}

// FromEnvironment returns the watchdog that the manager has asked this process, of that id, to tell; nil: it has asked for none.
// KindInvalid for what no manager says.
func FromEnvironment(lookup func(string) (string, bool), pid int) (*Watchdog, error) {
	every, asked := lookup(everyVariable)
	socket, _ := lookup(socketVariable)
	if !asked || socket == "" {
		return nil, nil
	}
	if whose, is := lookup(pidVariable); is && whose != strconv.Itoa(pid) { // of the process that started this one
		return nil, nil
	}
	microseconds, err := strconv.ParseInt(every, 10, 64)
	if err != nil || microseconds <= 0 || microseconds > maxWithin.Microseconds() {
		return nil, storage.E("read", storage.KindInvalid, everyVariable, fmt.Errorf("%q is no number of microseconds; set WatchdogSec= of the unit "+
			"to a time up to %v", every, maxWithin))
	}
	return &Watchdog{socket: socket, within: time.Duration(microseconds) * time.Microsecond}, nil
}

// maxWithin is the longest time that a manager may wait.
const maxWithin = 24 * time.Hour

// Run tells the manager that the process lives, four times within the time that it waits, each time when alive has returned nil
// within a quarter of that. It returns when ctx ends. A nil Watchdog waits for that and tells nobody.
func (w *Watchdog) Run(ctx context.Context, log *slog.Logger, alive func(context.Context) error) {
	if w == nil {
		<-ctx.Done()
		return
	}
	turn := time.NewTicker(w.within / 4)
	defer turn.Stop()
	for {
		if err := w.once(ctx, alive); err != nil && ctx.Err() == nil {
			log.Error("the service manager is not told that this process lives, and will start it anew if that goes on", "within", w.within, "error", err)
		}
		select {
		case <-turn.C:
		case <-ctx.Done():
			return
		}
	}
}

func (w *Watchdog) once(ctx context.Context, alive func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, w.within/4)
	defer cancel()
	if err := alive(ctx); err != nil {
		return err
	}
	// A leading @ is an abstract name to package net, as it is to systemd.
	conn, err := (&net.Dialer{}).DialContext(ctx, "unixgram", w.socket)
	if err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	if err = conn.SetWriteDeadline(deadline); err == nil { // a manager that does not read is not waited for
		_, err = conn.Write([]byte("WATCHDOG=1"))
	}
	return errors.Join(err, conn.Close())
}
