package replication

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
)

// TestPullWaitsForRoom: a step of a pull that finds no room is repeated for a while, and nothing of what was pulled is given up; what
// goes on for longer, and any other error, ends it.
//
// Line: the loop in withRoom.
func TestPullWaitsForRoom(t *testing.T) {
	full, other := storage.E("stage blocks", storage.KindNoSpace, "store", nil), errors.New("another")
	for _, tc := range []struct {
		name  string
		comes time.Duration // when there is room
		after error         // what the step says then
		want  error
		took  time.Duration
	}{
		{"at once", 0, nil, nil, 0},
		{"in time", 5 * time.Second, nil, nil, 5 * time.Second},
		{"another error", 5 * time.Second, other, other, 5 * time.Second},
		{"too late", time.Hour, nil, storage.ErrNoSpace, pullRoomPatience},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				err := withRoom(t.Context(), func() error {
					if time.Since(begun) < tc.comes {
						return full
					}
					return tc.after
				})
				if took := time.Since(begun); !errors.Is(err, tc.want) || took < tc.took || took > tc.took+2*pullRoomLook {
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := withRoom(ctx, func() error { return full }); !errors.Is(err, storage.ErrNoSpace) {
		t.Errorf("stopped: %v", err)
	}
}

// paces counts what it is asked for.
type paces struct{ bytes atomic.Int64 }

func (p *paces) Wait(ctx context.Context, n int64) error {
	p.bytes.Add(n)
	return ctx.Err()
}

// TestPullAsksForItsPace: what is read at the source, and written at the target, is asked for there first.
//
// Lines: the Wait in pullServer.serveBlocks, and that in puller.version.
func TestPullAsksForItsPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 2)
		defer h.close()
		h.nodes[1].start()
		h.nodes[2].start()
		if err := h.nodes[1].replicas.Bootstrap(t.Context(), 1, storeID(1), 1); err != nil {
			t.Fatal(err)
		}
		c := h.open(1, 7, 1)
		const blocks = 100
		for i := range uint32(blocks) {
			c.write(i*storage.BlockSize, block(1))
		}
		var asked [3]paces
		for n := 1; n <= 2; n++ {
			h.nodes[storage.NodeID(n)].replicas.disks[0].pulls = &asked[n]
		}
		if err := h.nodes[2].replicas.CreateReplica(t.Context(), 1, storeID(2), 2, 1); err != nil {
			t.Fatal(err)
		}
		for n := 1; n <= 2; n++ {
			if got := asked[n].bytes.Load(); got != blocks*storage.BlockSize {
				t.Errorf("node %d was asked for %d bytes", n, got)
			}
		}
	})
}
