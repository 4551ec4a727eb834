package segment

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

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
	b.SetBytes(1 << 20)
	b.ResetTimer()
	before := cpuTime(b)
	for i := uint64(1); i <= uint64(b.N); i++ {
		e.Index = i
		end := mustAppend(b, g, e)
		if i%4 != 0 {
			continue
		}
		mustWait(b, l, end)
		useAgain(l, g, i)
	}
	b.ReportMetric(float64(cpuTime(b)-before)/1e6/float64(b.N), "cpu-ms/op")
}

// useAgain makes segments below the entry free.
func useAgain(l *Log, g *GroupLog, index uint64) {
	l.DurableCheckpoint(g.Key(), index, 1, g.NextNeeded(index))
	g.Compact(index)
	for _, s := range l.Segments() {
		if s.State == SegmentSealed {
			_ = l.Recycle(s.No, unused) // refused while it is needed
		}
	}
}

// cpuTime is the time that the process has used, in ns.
func cpuTime(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkSmallBatches appends batches of entries of 4 KiB to three logs at once on the file system of the working directory, and waits
// for two of them: all as a leader writes them, or two as followers do. The two take turns within each run, so that both meet the
// same disk; it tells the median time of a batch of each, and the process's CPU.
func BenchmarkSmallBatches(b *testing.B) {
	for _, entries := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("entries=%d", entries), func(b *testing.B) { benchmarkSmallBatches(b, entries) })
	}
}

func benchmarkSmallBatches(b *testing.B, entries int) {
	const turn = 200 // batches
	type side struct {
		logs  []*Log
		next  []uint64
		cpu   int64
		times []time.Duration
	}
	sides := make([]side, 2)
	for i := range sides {
		for range 3 {
			dir, err := os.MkdirTemp(".", "bench-*")
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = os.RemoveAll(dir) })
			l := openLog(b, Config{FS: vfs.Default, Dir: dir, Store: testStore, SegmentBytes: 16 << 20, FreeSegments: 2, CacheBytes: 1, RetainBytes: -1})
			if _, err := l.CreateGroup(key(1), 0, 0); err != nil {
				b.Fatal(err)
			}
			sides[i].logs, sides[i].next = append(sides[i].logs, l), append(sides[i].next, 1)
		}
	}
	// append writes one batch to a log, and returns when it is durable.
	appendTo := func(s *side, i int, cold bool) {
		g := s.logs[i].Group(key(1))
		var batch []Entry
		for range entries {
			e := testEntry(s.next[i], 1, 4096+76)
			e.Cold = cold
			batch = append(batch, e)
			s.next[i]++
		}
		mustWait(b, s.logs[i], mustAppend(b, g, batch...))
		if s.next[i]/512 != (s.next[i]-uint64(entries))/512 {
			useAgain(s.logs[i], g, s.next[i]-1)
		}
	}
	b.ResetTimer()
	for n := 0; n < b.N; n += turn {
		for way := range sides {
			way = (way + n/turn) % 2
			s := &sides[way]
			before := cpuTime(b)
			for range turn {
				done := make(chan struct{}, 3)
				start := time.Now()
				for i := range 3 {
					go func() {
						appendTo(s, i, way == 1 && i > 0)
						done <- struct{}{}
					}()
				}
				<-done
				<-done
				s.times = append(s.times, time.Since(start))
				<-done
			}
			s.cpu += cpuTime(b) - before
		}
	}
	for i, name := range []string{"leaders", "followers"} {
		slices.Sort(sides[i].times)
		b.ReportMetric(float64(sides[i].times[len(sides[i].times)/2].Nanoseconds())/1e3, name+"-us")
		b.ReportMetric(float64(sides[i].cpu)/1e3/float64(len(sides[i].times)), name+"-cpu-us")
	}
}
