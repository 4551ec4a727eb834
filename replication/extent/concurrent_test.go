package extent

import (
	"encoding/binary"
	"sync"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// Readers run beside apply, checkpoints, evictions and the recycling of segments: each block read is one that was
// there, whole, and none older than what was applied before the read began.
func TestReadersBesideApply(t *testing.T) {
	cfg := testConfig(memFS(t))
	cfg.SegmentBytes = 64 * kib
	cfg.Segment.RetainBytes, cfg.Segment.CacheBytes = -1, 1
	r := newRig(t, cfg)
	r.s.cached.Set(2, 2)
	r.ok(openSession(1))
	const n = 130
	block := func(round uint64) []byte {
		p := make([]byte, storage.BlockSize)
		for i := 0; i < len(p); i += 8 {
			binary.LittleEndian.PutUint64(p[i:], round)
		}
		return p
	}
	var mu sync.Mutex // guards applied: the round of the last write of each block that was applied
	applied := make([]uint64, n)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for b := 0; ; b = (b + 7) % n {
				select {
				case <-stop:
					return
				default:
				}
				mu.Lock()
				least := applied[b]
				mu.Unlock()
				got, _, err := readAt(r.g, op.HeadEpoch, 0, uint32(b)*4096, 4096)
				if err != nil {
					t.Errorf("block %d: %v", b, err)
					return
				}
				if round := binary.LittleEndian.Uint64(got); round < least || string(got) != string(block(round)) {
					t.Errorf("block %d: round %d after %d", b, round, least)
					return
				}
			}
		})
	}
	for round := uint64(1); round <= 900; round++ {
		b := int(round*11) % n
		r.ok(r.write(0, uint32(b)*4096, block(round)))
		mu.Lock()
		applied[b] = round
		mu.Unlock()
		if round%50 == 0 {
			r.checkpoint()
			r.g.Log().Compact(r.g.Checkpointed().Index)
		}
	}
	close(stop)
	readers.Wait()
}
