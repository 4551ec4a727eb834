package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
)

// fullDisk is a file system on which a node cannot begin.
type fullDisk struct {
	begun time.Time

	mu       sync.Mutex // guards what follows
	free     int64
	attempts []time.Duration // since the first, when a step was tried
	said     []string        // what people were told, the last one last
	lobby    int             // who is in it
}

// change runs fn with the lock held.
func (d *fullDisk) change(fn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fn()
}

// look returns what was noted so far.
func (d *fullDisk) look() (attempts []time.Duration, said []string, lobby int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.attempts), slices.Clone(d.said), d.lobby
}

func (d *fullDisk) waiting() waiting {
	return waiting{dir: "/data",
		free: func() (free int64, err error) {
			d.change(func() { free = d.free })
			return free, nil
		},
		lacks: func(why string) { d.change(func() { d.said = append(d.said, why) }) },
		lobby: func(ctx context.Context) error {
			d.change(func() { d.lobby++ })
			<-ctx.Done()
			d.change(func() { d.lobby-- })
			return nil
		},
		logger: slog.New(slog.DiscardHandler)}
}

// step is refused until so much is free.
func (d *fullDisk) step(need int64) func() error {
	d.begun = time.Now()
	return func() (err error) {
		d.change(func() {
			d.attempts = append(d.attempts, time.Since(d.begun))
			if d.free < need {
				err = storage.E("open", storage.KindIO, "/data/store", syscall.ENOSPC)
			}
		})
		return err
	}
}

// TestBeginWaitsForRoom: a node whose file system is full does not end. It says why it waits, to people and to other nodes, tries again
// when more is free, or after a minute, and goes on when it finds room.
//
// Lines: the loop in begin, roomGain in more.
func TestBeginWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fullDisk{}
		ended := make(chan error, 1)
		step := d.step(4 << 20)
		go func() { ended <- d.waiting().begin(t.Context(), step) }()
		time.Sleep(30*time.Second + roomLook/2)
		if attempts, said, lobby := d.look(); len(attempts) != 1 || lobby != 1 || len(said) != 1 || !strings.Contains(said[0], "data directory /data") {
			t.Fatalf("after half a minute: tried %v, %d in the lobby, said %q", attempts, lobby, said)
		}
		d.change(func() { d.free = 2 << 20 })
		time.Sleep(2 * roomLook)
		if attempts, _, _ := d.look(); len(attempts) != 2 {
			t.Errorf("more is free, and it was tried %v", attempts)
		}
		time.Sleep(roomPatience + 2*roomLook)
		if attempts, _, _ := d.look(); len(attempts) != 3 {
			t.Errorf("after a minute more: tried %v", attempts)
		}
		d.change(func() { d.free = 4 << 20 })
		err := <-ended
		if _, said, lobby := d.look(); err != nil || lobby != 0 || said[len(said)-1] != "" {
			t.Errorf("there is room: %v, %d in the lobby, said %q", err, lobby, said)
		}
	})
}

// TestBeginEnds: what is no lack of room ends a start at once, and a node that waits for room can be stopped.
func TestBeginEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fullDisk{}
		other := storage.E("open", storage.KindIO, "/data/store", syscall.EIO)
		err := d.waiting().begin(t.Context(), func() error { return other })
		if _, said, _ := d.look(); !errors.Is(err, syscall.EIO) || len(said) > 0 {
			t.Errorf("%v, said %q", err, said)
		}
		tries := 0
		err = d.waiting().begin(t.Context(), func() error {
			if tries++; tries > 1 {
				return other
			}
			return fmt.Errorf("a quota: %w", syscall.EDQUOT)
		})
		if !errors.Is(err, syscall.EIO) || tries != 2 {
			t.Errorf("%v after %d attempts", err, tries)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_ = clock.Sleep(ctx, time.Hour)
			cancel()
		}()
		err = d.waiting().begin(ctx, d.step(1))
		if _, _, lobby := d.look(); !errors.Is(err, context.Canceled) || !errors.Is(err, storage.ErrNoSpace) || lobby != 0 {
			t.Errorf("stopped: %v, %d in the lobby", err, lobby)
		}
	})
}
