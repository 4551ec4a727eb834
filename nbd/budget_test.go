package nbd_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storaged/storaged/nbd/nbdclient"
)

// TestUnreadRepliesHoldUpNobody: clients that ask for as much as they may and read nothing do not keep others waiting, be
// their requests small or as large as that. Without Budget's shares the write waits until the clients are taken for
// stalled.
func TestUnreadRepliesHoldUpNobody(t *testing.T) {
	for name, volume := range map[string]func(i int) string{
		"one volume":        func(int) string { return "v" },
		"a volume for each": func(i int) string { return fmt.Sprint("v", i) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, nil)
				f.backend.Add("other", 64<<20)
				for i := range 8 {
					f.backend.Add(volume(i), 64<<20)
					nc := f.pipe()
					defer func() { _ = nc.Close() }()
					goRawTo(t, nc, volume(i))
					for range 2 {
						if _, err := nc.Write(rawRequest(0, 0, 1, 0, 32<<20)); err != nil {
							t.Fatal(err)
						}
						synctest.Wait()
					}
				}
				wantPrompt(t, f, "other")
			})
		})
	}
}

// TestWaitingRequestsHoldUpNobody: requests that wait inside of a volume, at its limits say, and have brought as much as
// their connections may have in flight, do not keep those of other volumes waiting.
func TestWaitingRequestsHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.backend.Add("other", 64<<20)
		limited := f.backend.Add("limited", 64<<20)
		h := newHold(limited, "write")
		var conns []net.Conn
		for range 16 {
			nc := f.pipe()
			conns = append(conns, nc)
			goRawTo(t, nc, "limited")
			go func() { // ends with the connection
				for i := range uint64(64) {
					b := append(rawRequest(0, 1, i, i<<20, 1<<20), make([]byte, 1<<20)...)
					if _, err := nc.Write(b); err != nil {
						return
					}
				}
			}()
		}
		synctest.Wait()
		if h.waiting.Load() < 16 {
			t.Errorf("%d requests wait at the limited volume; that is no load", h.waiting.Load())
		}
		wantPrompt(t, f, "other")
		close(h.released)
		for _, nc := range conns {
			_ = nc.Close()
		}
	})
}

// wantPrompt checks that requests of all sizes to a volume wait for nobody. The clock moves only when all wait.
func wantPrompt(t *testing.T, f *fixture, export string) {
	t.Helper()
	c := f.client(nbdclient.Config{Export: export})
	ctx, cancel := context.WithTimeout(bg, time.Hour)
	defer cancel()
	for _, n := range []int{4 << 10, 1 << 20, 32 << 20} {
		start := time.Now()
		if err := c.WriteAt(ctx, make([]byte, n), 0); err != nil {
			t.Errorf("write of %d bytes: %v", n, err)
		}
		if err := c.ReadAt(ctx, make([]byte, n), 0); err != nil {
			t.Errorf("read of %d bytes: %v", n, err)
		}
		if took := time.Since(start); took > 0 {
			t.Errorf("%d bytes took %v", n, took)
		}
	}
}
