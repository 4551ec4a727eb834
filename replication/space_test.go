package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/op"
)

// TestFullOfGarbage writes over a few blocks of three small stores, ten times as much as they may hold: no write fails, because
// those that find no room wait until compaction has made it. Then it writes new blocks until what lives takes all that it may. That is
// refused, at once; overwrites go on, and what is discarded is room for others.
//
// Guards, in group.go: awaitSpace's way in for what overwrites; removed once, and this failed.
func TestFullOfGarbage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		h.store = func(c *extent.Config) {
			c.SegmentBytes, c.CapacityBytes, c.Compact, c.CheckpointBytes = 128<<10, 16<<20, true, 1<<20
			c.MemTableBytes, c.ReserveBytes = 64<<10, 1<<20
			c.Segment.RetainBytes, c.Segment.CacheBytes = -1, 256<<10
		}
		for _, n := range h.nodes {
			n.start()
		}
		h.bootstrapVoters(1, 1, 2, 3)
		c := h.open(1, 7, 1)
		const piece = 16 << 10
		data := func(seed uint64) []byte {
			b := make([]byte, piece)
			rng := rand.New(rand.NewPCG(seed, 1))
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			return b
		}
		rng := rand.New(rand.NewPCG(1, 1))
		const pieces = 128 // 2 MiB
		for i := range uint64(16 << 20 / piece * 10) {
			c.write(uint32(rng.IntN(pieces))*piece, data(i))
		}
		// grow writes a new piece, extent after extent.
		wrote := 0
		grow := func() error {
			time.Sleep(20 * time.Millisecond) // what the leader knows of the room is a third of a second old
			b := data(uint64(wrote))
			o := c.writeOp(uint32(wrote%256)*piece, b)
			o.Extent = storage.ExtentIndex(1 + wrote/256)
			_, err := h.nodes[h.awaitLeader(1)].replicas.Propose(context.Background(), 1, [][]byte{o.AppendHeader(nil), b})
			if err != nil {
				c.seq-- // refused before it was proposed
				return err
			}
			wrote++
			return nil
		}
		var refused error
		var refusedAfter time.Duration
		for refused == nil && wrote < 2000 {
			start := time.Now()
			refused = grow()
			refusedAfter = time.Since(start)
		}
		t.Logf("%d pieces of 16 KiB beside %d; refused after %v: %v", wrote, pieces, refusedAfter, refused)
		if !errors.Is(refused, storage.ErrNoSpace) || wrote < 400 || refusedAfter > time.Second {
			t.Fatalf("%d pieces, and after %v: %v", wrote, refusedAfter, refused)
		}
		for i := range uint64(1000) {
			c.write(uint32(rng.IntN(pieces))*piece, data(i))
		}
		for x := range storage.ExtentIndex(2) {
			c.seq++
			if r := c.do(op.Op{Kind: op.Clear, Volume: 7, Extent: 1 + x, Length: storage.ExtentSize, Session: 1, Seq: c.seq}, nil); r.Kind != storage.KindNone {
				t.Fatalf("discard: %+v", r)
			}
		}
		time.Sleep(10 * time.Second)
		for range 100 {
			if err := grow(); err != nil {
				t.Fatalf("after a discard: %v", err)
			}
		}
		h.close()
	})
}

// TestRefusedInTheEnd writes large pieces to small stores of small segments until one is refused: after a few seconds of waiting at most,
// however ill the pieces fit into segments.
//
// Guards, in extent/compaction.go: readRun's bound, compact.RecordBlocks; at 64 blocks copies of copies won nothing, and a write
// waited until the tables had taken all room: this failed in each case.
func TestRefusedInTheEnd(t *testing.T) {
	for _, c := range []struct{ capacity, segment, piece int }{
		{16 << 20, 512 << 10, 256 << 10},
		{24 << 20, 1 << 20, 256 << 10},
	} {
		t.Run(fmt.Sprintf("segments of %d KiB", c.segment>>10), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHarness(t, 1)
				h.store = func(s *extent.Config) {
					s.CapacityBytes, s.SegmentBytes, s.Compact = int64(c.capacity), int64(c.segment), true
					s.MemTableBytes = 256 << 10 // else it is most of the reserve, and more has to be written
				}
				n := h.nodes[1]
				n.start()
				defer h.close()
				const groups = 4
				var clients []*client
				for g := range storage.GroupID(groups) {
					if err := n.replicas.Bootstrap(t.Context(), 1+g, storeID(1), 1); err != nil {
						t.Fatal(err)
					}
					clients = append(clients, h.open(1+g, 7, 1))
				}
				perExtent := storage.ExtentSize / c.piece
				data := bytes.Repeat([]byte{1}, c.piece)
				for i := 0; ; i++ {
					k := i / groups
					o := clients[i%groups].writeOp(uint32(k%perExtent*c.piece), data)
					o.Extent = storage.ExtentIndex(k / perExtent)
					var err error = storage.ErrUnavailable
					for start := time.Now(); errors.Is(err, storage.ErrUnavailable); {
						_, err = n.replicas.Propose(t.Context(), clients[i%groups].group, [][]byte{o.AppendHeader(nil), data})
						if waited := time.Since(start); waited > 20*time.Second {
							t.Fatalf("after %d KiB one has waited for %v: %v", i*c.piece>>10, waited, err)
						}
					}
					if errors.Is(err, storage.ErrNoSpace) {
						return
					}
					if err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}

// TestWaitForRoom: a store that is below its reserve at one look, and not at the next, has a write wait if it makes room by itself,
// and refuses it if it does not; one that stays below refuses it after a while, so that the gateway tries again.
//
// Guards, in group.go: awaitSpace waits before it refuses; removed once, and this failed.
func TestWaitForRoom(t *testing.T) {
	for _, test := range []struct {
		name    string
		compact bool
		patient time.Duration
		want    storage.Kind
	}{
		{"room comes", true, time.Minute, storage.KindNone},
		{"no room comes in time", true, 30 * time.Millisecond, storage.KindUnavailable},
		{"it waits for nothing", false, time.Minute, storage.KindNoSpace},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHarness(t, 1)
				h.store = func(c *extent.Config) { c.Compact = test.compact }
				n := h.nodes[1]
				n.start()
				if err := n.replicas.Bootstrap(context.Background(), 1, storeID(1), 1); err != nil {
					t.Fatal(err)
				}
				c := h.open(1, 7, 1)
				c.write(0, block(1))
				d := n.replicas.mustGroup(1).disk
				for d.room.free.Store(0); d.room.free.Load() == 0; { // until the disk was looked at
					time.Sleep(time.Millisecond)
				}
				d.room.free.Store(0)
				ctx, cancel := context.WithTimeout(t.Context(), test.patient)
				defer cancel()
				o := c.writeOp(storage.BlockSize, block(2))
				_, err := n.replicas.Propose(ctx, 1, [][]byte{o.AppendHeader(nil), block(2)})
				if (err != nil || test.want != storage.KindNone) && storage.KindOf(err) != test.want {
					t.Errorf("%v, want %v", err, test.want)
				}
				h.close()
			})
		})
	}
}
