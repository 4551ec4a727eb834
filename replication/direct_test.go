package replication

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/extent/check"
	"github.com/storaged/storaged/replication/extent/storedir"
)

// TestFollowersWriteDirectly: what a follower receives of large writes it writes around the page cache, every byte of every block,
// once its store may; the leader does not. Small batches of followers go there, too (ADR 43), and are allowed for here. What was written either way is read from every node, also
// after it was started again, and is sound. Without the Layout of AppendEntries, or with memory that begins elsewhere, no byte is
// written so (tried).
func TestFollowersWriteDirectly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, 3)
		defer h.close()
		metrics := map[storage.StoreID]*prometheus.Registry{}
		h.store = func(c *extent.Config) {
			metrics[c.Store] = prometheus.NewRegistry()
			c.Metrics = metrics[c.Store]
		}
		for id := storage.NodeID(1); id <= 3; id++ {
			h.nodes[id].start()
		}
		h.bootstrapVoters(1, 1, 2, 3)
		c := h.open(1, 7, 1)
		leader := h.awaitLeader(1)
		a, b := others(leader)
		direct := func(n storage.NodeID) (v float64) {
			families, err := metrics[storeID(n)].Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				if f.GetName() == "storage_segment_direct_bytes_total" {
					v = f.GetMetric()[0].GetCounter().GetValue()
				}
			}
			return v
		}
		want := map[uint32][]byte{}
		write := func(at, blocks int) {
			data := bytes.Repeat(block(byte(at+blocks)), blocks)
			data[len(data)-1] = byte(at)
			c.write(uint32(at)*storage.BlockSize, data)
			want[uint32(at)*storage.BlockSize] = data
		}
		const small = 128 << 10 // of small batches, in a stage
		before := map[storage.NodeID]float64{}
		expect := func(what string, leads, follows float64) {
			t.Helper()
			time.Sleep(time.Second) // both followers have it
			for n, want := range map[storage.NodeID]float64{leader: leads, a: follows, b: follows} {
				got := direct(n)
				if got -= before[n]; got < want || got > want*1.1+small {
					t.Errorf("%s: node %d (leader %d) has written %v bytes directly, want %v or a little more", what, n, leader, got, want)
				}
				before[n] += got
			}
		}
		write(0, 256)
		expect("before the format was raised", 0, 0)
		for _, n := range h.nodes {
			if err := n.replicas.RaiseFormat(storedir.AlignedRecords); err != nil {
				t.Fatal(err)
			}
		}
		write(256, 15) // less than 64 KiB
		expect("small", 0, 0)
		var blocks int
		for i, n := range []int{16, 256, 100, 17} {
			write(300+i*160, min(n, 150))
			blocks += min(n, 150)
		}
		expect("large", 0, float64(blocks*storage.BlockSize))
		for _, n := range h.nodes {
			n.shutdown()
			n.start()
		}
		h.lead(leader)
		time.Sleep(time.Second) // metrics begin anew with a store
		clear(before)
		write(2000-1024, 40)
		expect("after a restart", 0, 40*storage.BlockSize)
		for _, n := range []storage.NodeID{a, b, leader} {
			h.lead(n)
			for at, data := range want {
				if !bytes.Equal(c.read(at, uint32(len(data))), data) {
					t.Errorf("node %d: byte %d and after is not what was written", n, at)
				}
			}
		}
		for _, n := range h.nodes {
			n.shutdown()
			_, err := check.Run(context.Background(), check.Config{FS: n.disk, Dir: "store",
				Finding: func(text string) { t.Errorf("node %d: %s", n.id, text) }})
			if err != nil {
				t.Error(err)
			}
		}
	})
}
