package segment

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// BenchmarkAppendWait appends entries of 4 KiB on the file system of the working directory and waits for each,
// in parallel by one group each.
func BenchmarkAppendWait(b *testing.B) {
	for _, parallel := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("parallel=%d", parallel), func(b *testing.B) { benchmarkAppendWait(b, parallel) })
	}
}

func benchmarkAppendWait(b *testing.B, parallel int) {
	dir, err := os.MkdirTemp(".", "bench-*")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	l := openLog(b, Config{FS: vfs.Default, Dir: dir, Store: testStore, FreeSegments: 4})
	data := make([]byte, 4096+64)
	for i := range data {
		data[i] = byte(i * 7)
	}
	var work sync.WaitGroup
	b.SetBytes(4096)
	b.ReportAllocs()
	b.ResetTimer()
	for p := range parallel {
		g, err := l.CreateGroup(key(p+1), 0, 0)
		if err != nil {
			b.Fatal(err)
		}
		work.Go(func() {
			entries := make([]Entry, 1)
			for i := uint64(1); i <= uint64(b.N/parallel)+1; i++ {
				entries[0] = Entry{Index: i, Term: 1, Data: data}
				end, err := g.Append(entries)
				if err == nil {
					err = l.Wait(context.Background(), end)
				}
				if err != nil {
					b.Error(err)
					return
				}
				if i%1024 == 0 {
					l.DurableCheckpoint(g.Key(), i, 1, g.NextNeeded(i))
					g.Compact(i)
				}
			}
		})
	}
	work.Wait()
}
