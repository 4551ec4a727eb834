package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
)

// fullDisk is a file system on which a node cannot begin.
type fullDisk struct {
	free     int64
	attempts []time.Duration // since the first, when a step was tried
	begun    time.Time
	said     []string // what people were told, the last one last
	lobby    int      // who is in it
}

func (d *fullDisk) waiting() waiting {
	return waiting{dir: "/data", free: func() (int64, error) { return d.free, nil }, lacks: func(why string) { d.said = append(d.said, why) },
		lobby: func(ctx context.Context) error {
			d.lobby++
			<-ctx.Done()
			d.lobby--
			return nil
		},
		logger: slog.New(slog.DiscardHandler)}
}

// step is refused until so much is free.
func (d *fullDisk) step(need int64) func() error {
	d.begun = time.Now()
	return func() error {
		d.attempts = append(d.attempts, time.Since(d.begun))
		if d.free < need {
			return storage.E("open", storage.KindIO, "/data/store", syscall.ENOSPC)
		}
		return nil
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
		if len(d.attempts) != 1 || d.lobby != 1 || len(d.said) != 1 || !strings.Contains(d.said[0], "data directory /data") {
			t.Fatalf("after half a minute: tried %v, %d in the lobby, said %q", d.attempts, d.lobby, d.said)
		}
		d.free = 2 << 20
		time.Sleep(2 * roomLook)
		if len(d.attempts) != 2 {
			t.Errorf("more is free, and it was tried %v", d.attempts)
		}
		time.Sleep(roomPatience + 2*roomLook)
		if len(d.attempts) != 3 {
			t.Errorf("after a minute more: tried %v", d.attempts)
		}
		d.free = 4 << 20
		if err := <-ended; err != nil || d.lobby != 0 || d.said[len(d.said)-1] != "" {
			t.Errorf("there is room: %v, %d in the lobby, said %q", err, d.lobby, d.said)
		}
	})
}

// TestBeginEnds: what is no lack of room ends a start at once, and a node that waits for room can be stopped.
func TestBeginEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fullDisk{}
		other := storage.E("open", storage.KindIO, "/data/store", syscall.EIO)
		if err := d.waiting().begin(t.Context(), func() error { return other }); !errors.Is(err, syscall.EIO) || len(d.said) > 0 {
			t.Errorf("%v, said %q", err, d.said)
		}
		tries := 0
		err := d.waiting().begin(t.Context(), func() error {
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
		if err := d.waiting().begin(ctx, d.step(1)); !errors.Is(err, context.Canceled) || !errors.Is(err, storage.ErrNoSpace) || d.lobby != 0 {
			t.Errorf("stopped: %v", err)
		}
	})
}
