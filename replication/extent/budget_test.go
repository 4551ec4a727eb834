package extent

import (
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/segment"
)

// A group that is busy alone has the disk's whole budget, for the log before a checkpoint and for the cache; groups that
// are busy together share it, and all keep to it. Each of CheckpointDue's and evictLocked's looks at the total was taken
// out once; this failed.
func TestBusyGroupsShare(t *testing.T) {
	const groups, pages = 8, 256
	cfg := testConfig(memFS(t))
	cfg.CheckpointBytes = 1 << 20
	cfg.CacheBytes = groups * 64 * pageMemory
	s := openStore(t, cfg)
	t.Cleanup(func() { _ = s.Close() })
	rigs := make([]*rig, groups)
	for i := range rigs {
		g, err := s.CreateGroup(segment.GroupKey{Group: storage.GroupID(i + 1), Incarnation: 1})
		if err != nil {
			t.Fatal(err)
		}
		rigs[i] = &rig{t: t, s: s, g: g, term: 1}
		rigs[i].ok(openSession(1))
	}
	write := func(r *rig, page uint32) {
		r.ok(r.write(storage.ExtentIndex(page/16), page%16*table.BlocksPerPage*storage.BlockSize, blocks(uint64(page), 1)))
	}
	untilDue := func(r *rig) (bytes int64) {
		for page := uint32(0); !r.g.CheckpointDue(); page++ {
			if bytes += storage.BlockSize; bytes > 2*cfg.CheckpointBytes {
				t.Fatalf("no checkpoint is due after %d bytes", bytes)
			}
			write(r, page%pages)
		}
		return bytes
	}

	alone := untilDue(rigs[0])
	if alone < cfg.CheckpointBytes/4*3 || alone > cfg.CheckpointBytes {
		t.Errorf("alone, a checkpoint is due after %d bytes of %d", alone, cfg.CheckpointBytes)
	}
	if second := untilDue(rigs[1]); second < cfg.CheckpointBytes/groups/4*3 || second > cfg.CheckpointBytes/groups {
		t.Errorf("beside one that fills the budget, a checkpoint is due after %d bytes", second)
	}
	for _, r := range rigs {
		r.checkpoint()
	}
	if n := s.written.Total() + s.changed.Total(); n != 0 {
		t.Errorf("%d bytes and pages are counted after checkpoints of all", n)
	}

	held := func() (first, all int64) {
		for i, r := range rigs {
			r.g.mu.RLock()
			n := int64(len(r.g.cache.pages) - r.g.cache.pinned)
			r.g.mu.RUnlock()
			if i == 0 {
				first = n
			}
			all += n
		}
		return first, all
	}
	read := func(r *rig) {
		for page := range uint32(pages) {
			if err := r.g.lookupPage(table.PageKey{Volume: 1, Extent: storage.ExtentIndex(page / 16), Page: uint8(page % 16)}, 1, 0, make([]table.Entry, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	read(rigs[0])
	if first, _ := held(); first != pages {
		t.Errorf("alone, a group holds %d pages of %d in a cache of %d", first, pages, cfg.CacheBytes/pageMemory)
	}
	for range 4 {
		for _, r := range rigs {
			read(r)
		}
	}
	if _, all := held(); all > cfg.CacheBytes/pageMemory || all != s.cached.Total() {
		t.Errorf("all hold %d pages, counted as %d, in a cache of %d", all, s.cached.Total(), cfg.CacheBytes/pageMemory)
	}
	if err := s.RemoveGroup(rigs[0].g.key); err != nil {
		t.Fatal(err)
	}
	rigs = rigs[1:]
	if _, all := held(); s.cached.Total() != all {
		t.Errorf("a group that is gone is counted: %d pages of %d", s.cached.Total(), all)
	}
}
