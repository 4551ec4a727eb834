package extent

import (
	"context"
	"fmt"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/extent/table"
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

// BenchmarkCheckpoint writes checkpoints of 1,024 pages, in each of which one block was written: again and again at one epoch, or
// each time at a later one.
func BenchmarkCheckpoint(b *testing.B) {
	for _, c := range []struct {
		name   string
		format int
		step   storage.Epoch
	}{{"one epoch, format 1", 1, 0}, {"one epoch", storedir.PagesByEpoch, 0}, {"epochs, format 1", 1, 1}, {"epochs", storedir.PagesByEpoch, 1}} {
		b.Run(c.name, func(b *testing.B) {
			r, epoch := benchRig(b), storage.Epoch(1)
			raise(b, r.s, c.format)
			fillExtents(r, 64)
			r.checkpoint()
			b.ReportAllocs()
			b.ResetTimer()
			for n := range b.N {
				b.StopTimer()
				epoch += c.step
				writeEachPage(r, 64, n, epoch)
				f, err := r.g.Freeze()
				if err != nil {
					b.Fatal(err)
				}
				index, term := r.g.Applied()
				b.StartTimer()
				if err := f.Persist(index, term, nil, 0); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				f.Release()
				r.g.Log().Compact(r.index)
				b.StartTimer()
			}
		})
	}
}

// BenchmarkLoad loads the newest version of a page from the tables, of pages in so many versions.
func BenchmarkLoad(b *testing.B) {
	for _, versions := range []int{1, 2, 8, 16} {
		b.Run(fmt.Sprint(versions, " versions"), func(b *testing.B) {
			r := benchRig(b)
			raise(b, r.s, storedir.PagesByEpoch)
			fillExtents(r, 16)
			for e := range versions - 1 {
				writeEachPage(r, 16, e, storage.Epoch(e+2))
			}
			r.checkpoint()
			x := uint32(1)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				x = x*1664525 + 1013904223
				k := table.PageKey{Volume: 1, Extent: storage.ExtentIndex(x >> 28), Page: uint8(x >> 24 & 15)}
				if p, err := r.g.load(r.g.set.id, k, op.HeadEpoch); err != nil || p == nil {
					b.Fatal(p, err)
				}
			}
		})
	}
}

// BenchmarkPull pulls an extent in so many versions into an empty replica, which gives it up.
func BenchmarkPull(b *testing.B) {
	for _, versions := range []int{1, 25, 100, 200} {
		b.Run(fmt.Sprint(versions, " versions"), func(b *testing.B) {
			r := benchRig(b)
			raise(b, r.s, storedir.PagesByEpoch)
			fillExtents(r, 1)
			for e := range versions - 1 {
				writeEachPage(r, 1, e, storage.Epoch(e+2))
			}
			r.checkpoint()
			to := newRig(b, testConfig(memFS(b)))
			raise(b, to.s, storedir.PagesByEpoch)
			b.ResetTimer()
			for range b.N {
				m, err := r.g.OpenManifest()
				if err != nil {
					b.Fatal(err)
				}
				st, err := to.s.Stage(testKey, header(b, m))
				if err != nil {
					b.Fatal(err)
				}
				pull(b, m, st)
				st.Abort()
				m.Close()
			}
		})
	}
}

func fillExtents(r *rig, extents storage.ExtentIndex) {
	for x := range extents {
		for off := uint32(0); off < storage.ExtentSize; off += storage.MaxEntryPayloadBytes {
			r.ok(r.write(x, off, blocks(uint64(x), 256)))
		}
	}
}

// writeEachPage writes a block of every page.
func writeEachPage(r *rig, extents storage.ExtentIndex, at int, epoch storage.Epoch) {
	payload := blocks(uint64(at), 1)
	var requests []request
	for x := range extents {
		for page := range uint32(table.PagesPerExtent) {
			q := r.write(x, (page*table.BlocksPerPage+uint32(at)%table.BlocksPerPage)*storage.BlockSize, payload)
			q.o.Epoch = epoch
			requests = append(requests, q)
		}
	}
	r.propose(requests...)
}
