package extent

import (
	"context"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

func benchRig(b *testing.B) *rig {
	cfg := testConfig(memFS(b))
	cfg.SegmentBytes, cfg.CacheBytes, cfg.MemTableBytes = 64<<20, 32<<20, 8<<20
	r := newRig(b, cfg)
	r.ok(openSession(1))
	return r
}

// BenchmarkApply applies 4 KiB writes in batches of 64, spread over 256 extents.
func BenchmarkApply(b *testing.B) {
	r := benchRig(b)
	payload := blocks(1, 1)
	const batch = 64
	entries := make([]segment.Entry, batch)
	apply := make([]ApplyEntry, batch)
	x := uint32(1)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += batch {
		b.StopTimer()
		for i := range batch {
			x = x*1664525 + 1013904223
			q := r.write(storage.ExtentIndex(x>>24), (x>>8)%1024*4096, payload)
			r.index++
			data := q.data()
			entries[i] = segment.Entry{Index: r.index, Term: 1, Data: data}
			apply[i] = ApplyEntry{Index: r.index, Term: 1, IsCommand: true, Data: data}
		}
		end, err := r.g.Log().Append(entries)
		if err != nil {
			b.Fatal(err)
		}
		if err := r.s.Log().Wait(context.Background(), end); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		r.g.Apply(apply)
		if r.index%(1<<14) == 0 {
			b.StopTimer()
			r.checkpoint()
			r.g.Log().Compact(r.index)
			b.StartTimer()
		}
	}
}

// BenchmarkRead reads 4 KiB blocks, the tables being in memory.
func BenchmarkRead(b *testing.B) {
	r := benchRig(b)
	for x := range storage.ExtentIndex(16) {
		for off := uint32(0); off < storage.ExtentSize; off += storage.MaxEntryPayloadBytes {
			r.ok(r.write(x, off, blocks(uint64(x), 256)))
		}
	}
	r.checkpoint()
	dst, sums, holes := make([]byte, 4096), make([]uint32, 1), make([]bool, 1)
	x := uint32(1)
	b.SetBytes(4096)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		x = x*1664525 + 1013904223
		err := r.g.Read(op.ReadRequest{Volume: 1, Extent: storage.ExtentIndex(x >> 28), Offset: (x >> 8) % 1024 * 4096, Length: 4096, Epoch: op.HeadEpoch}, dst, sums, holes, nil)
		if err != nil {
			b.Fatal(err)
		}
	}
}
