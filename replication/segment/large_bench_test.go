package segment

import (
	"os"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// BenchmarkLargeEntries appends entries of 1 MiB on the file system of the working directory, four to a sync, in segments that are
// used again. It tells the process's CPU for each: as a leader writes them, and as a follower does, without direct I/O and with it.
func BenchmarkLargeEntries(b *testing.B) {
	for _, way := range []struct {
		name          string
		cold, aligned bool
	}{{"cached", false, false}, {"cold", true, false}, {"direct", true, true}} {
		b.Run(way.name, func(b *testing.B) { benchmarkLargeEntries(b, way.cold, way.aligned) })
	}
}

func benchmarkLargeEntries(b *testing.B, cold, direct bool) {
	dir, err := os.MkdirTemp(".", "bench-*")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	l := openLog(b, Config{FS: vfs.Default, Dir: dir, Store: testStore, FreeSegments: 4, PrewriteBelowBytes: -1, Aligned: direct, CacheBytes: 1,
		RetainBytes: -1})
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		b.Fatal(err)
	}
	e := testEntry(1, 1, 1<<20+1100)
	withBlocks(&e)
	if e.Cold = cold; !direct {
		e.BlockSums = nil // and so it is not known to have blocks
	}
	cpu := func() (n int64) {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	b.SetBytes(1 << 20)
	b.ResetTimer()
	before := cpu()
	for i := uint64(1); i <= uint64(b.N); i++ {
		e.Index = i
		end := mustAppend(b, g, e)
		if i%4 != 0 {
			continue
		}
		mustWait(b, l, end)
		l.DurableCheckpoint(g.Key(), i, 1, g.NextNeeded(i))
		g.Compact(i)
		for _, s := range l.Segments() {
			if s.State == SegmentSealed {
				_ = l.Recycle(s.No, unused) // refused while it is needed
			}
		}
	}
	b.ReportMetric(float64(cpu()-before)/1e6/float64(b.N), "cpu-ms/op")
}
