package replication

import (
	"testing"
	"testing/synctest"

	storage "github.com/storaged/storaged"
)

// A start reads the log once. That is when the segment log is opened: neither we nor the library, both of which look for configurations
// in every entry above the checkpoint, read the entries again (tried: without the branch for a start in logStore.GetLog the library does).
// Who the members are is known all the same (tried: without the type of entries in applyEntry of package segment nobody is), and
// every entry is there.
func TestStartReadsTheLogOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		defer h.close()
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].start()
		}
		h.bootstrapVoters(1, 1, 2, 3)
		c := h.open(1, 7, 1)
		const written = 100
		for i := range uint32(written) {
			c.write(i*storage.BlockSize, block(byte(i+1)))
		}
		h.eventually("node 3 has all, durably", func() bool {
			l := h.nodes[3].store.Log()
			return h.nodes[3].replicas.mustGroup(1).extents.Log().LastIndex() >= written && l.Durable() == l.End()
		})
		h.nodes[3].crash()
		h.net.CutBoth(nodeName(1), nodeName(3))
		h.net.CutBoth(nodeName(2), nodeName(3))
		before := h.nodes[3].stall.readsOfLog()
		h.nodes[3].start() // it knows nothing of what is committed, so it applies nothing
		g := h.nodes[3].replicas.mustGroup(1)
		if applied, _ := g.extents.Applied(); g.extents.Log().LastIndex() < applied+written {
			t.Fatalf("of %d entries %d are applied: the test shows nothing", g.extents.Log().LastIndex(), applied)
		}
		if n := h.nodes[3].stall.readsOfLog() - before; n < 2 || n > written/4 {
			t.Errorf("%d reads of the log at a start with %d entries, of which a window holds many", n, written)
		}
		in := h.instance(3)
		if n := in.log.newest(); n.voters != 3 {
			t.Errorf("we found the configuration %+v", n)
		}
		h.nodes[1].shutdown() // node 3 is of the majority
		h.net.HealAll()
		h.eventually("a group of two", func() bool { return h.leaderOf(1) != 0 })
		for i := range uint32(written) {
			h.equal(c.read(i*storage.BlockSize, storage.BlockSize), block(byte(i+1)), "after the start")
		}
	})
}
