package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	storage "github.com/storaged/storaged"
	"golang.org/x/sys/unix"
)

// BenchmarkRead reads pages of a log on the file system of the working directory in random order, each once, by some
// goroutines: from the disk (cold) or from the page cache (hot).
func BenchmarkRead(b *testing.B) {
	dir, err := os.MkdirTemp(".", "bench-*")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	pages := fillLog(b, dir, 512<<20)
	for _, parallel := range []int{1, 32} {
		b.Run(fmt.Sprintf("cold/parallel=%d", parallel), func(b *testing.B) { benchmarkRead(b, dir, pages, parallel, true) })
	}
	for _, parallel := range []int{1, 32} {
		b.Run(fmt.Sprintf("hot/parallel=%d", parallel), func(b *testing.B) { benchmarkRead(b, dir, pages, parallel, false) })
	}
}

// fillLog writes a log of so many bytes and returns where its pages of data lie. Each begins with its place in pages.
func fillLog(tb testing.TB, dir string, size int) (pages []Position) {
	tb.Helper()
	l := openLog(tb, Config{FS: vfs.Default, Dir: dir, Store: testStore, PrewriteBelowBytes: -1})
	random := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{8}).Read(random)
	for n := 0; n < size; n += len(random) {
		data := slices.Clone(random)
		for i := 0; i < len(data); i += pageBytes {
			binary.LittleEndian.PutUint64(data[i:], uint64(len(pages)+i/pageBytes))
		}
		at, end, err := l.AppendData(DataHeader{}, data)
		if err != nil {
			tb.Fatal(err)
		}
		for i := 0; i < len(data); i += pageBytes {
			pages = append(pages, at+Position(i))
		}
		mustWait(tb, l, end)
	}
	if err := l.Close(); err != nil {
		tb.Fatal(err)
	}
	return pages
}

// dropCache makes the kernel forget what it has of the files of the directory.
func dropCache(tb testing.TB, dir string) {
	tb.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if err != nil || len(names) == 0 {
		tb.Fatalf("no segments: %v", err)
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			tb.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			tb.Fatal(err)
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			tb.Fatal(err)
		}
		_ = f.Close()
	}
}

func benchmarkRead(b *testing.B, dir string, pages []Position, parallel int, cold bool) {
	l := openLog(b, Config{FS: vfs.Default, Dir: dir, Store: testStore, InUse: func(SegmentNo) bool { return true }})
	defer l.Close()
	order := rand.New(rand.NewPCG(3, uint64(b.N))).Perm(len(pages))
	if cold {
		dropCache(b, dir)
	} else {
		page := make([]byte, pageBytes)
		for _, p := range pages {
			if err := l.ReadAt(p, page); err != nil {
				b.Fatal(err)
			}
		}
	}
	var (
		work  sync.WaitGroup
		next  atomic.Int64
		times = make([]time.Duration, b.N)
		usage unix.Rusage
	)
	_ = unix.Getrusage(unix.RUSAGE_SELF, &usage)
	cpu := usage.Utime.Nano() + usage.Stime.Nano()
	b.ReportAllocs()
	b.ResetTimer()
	for range parallel {
		work.Go(func() {
			page := make([]byte, pageBytes)
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				from := time.Now()
				if err := l.ReadAt(pages[order[int(i)%len(order)]], page); err != nil {
					b.Error(err)
					return
				}
				times[i] = time.Since(from)
			}
		})
	}
	work.Wait()
	b.StopTimer()
	_ = unix.Getrusage(unix.RUSAGE_SELF, &usage)
	slices.Sort(times)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
	b.ReportMetric(float64(times[b.N/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(times[b.N*99/100].Microseconds()), "p99-us")
	b.ReportMetric(float64(usage.Utime.Nano()+usage.Stime.Nano()-cpu)/float64(b.N)/1e3, "cpu-us/read")
}

// TestCloseWaitsForReads: Close leaves files open that are being read, and what comes later is refused.
func TestCloseWaitsForReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1)
		var held atomic.Bool
		release, closed := make(chan struct{}), make(chan error, 1)
		cfg := w.config(errorfs.Wrap(w.mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileReadAt && held.Load() {
				<-release
			}
			return nil
		})))
		cfg.CacheBytes = 1
		l := openLog(t, cfg)
		data := bytes.Repeat([]byte("data"), storage.BlockSize/4)
		at, end, err := l.AppendData(DataHeader{}, data)
		if err != nil {
			t.Fatal(err)
		}
		mustWait(t, l, end)
		held.Store(true)
		read, got := make(chan error, 1), make([]byte, len(data))
		go func() { read <- l.ReadAt(at, got) }()
		synctest.Wait()
		go func() { closed <- l.Close() }()
		synctest.Wait()
		select {
		case err := <-closed:
			t.Fatalf("closed while a read is under way: %v", err)
		case err := <-read:
			t.Fatalf("the read returned: %v", err)
		default:
		}
		if err := l.ReadAt(at, make([]byte, 10)); !errors.Is(err, storage.ErrUnavailable) {
			t.Fatalf("read of a log that is being closed: %v", err)
		}
		close(release)
		if err := <-read; err != nil || !bytes.Equal(got, data) {
			t.Fatalf("the read: %v", err)
		}
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
	})
}

// TestCloseAmongReads closes logs on real files while they are read from the disk, and opens them again, whose files get
// the numbers of the old ones' descriptors.
func TestCloseAmongReads(t *testing.T) {
	dir := t.TempDir()
	pages := fillLog(t, dir, 8<<20)
	cfg := Config{FS: vfs.Default, Dir: dir, Store: testStore, InUse: func(SegmentNo) bool { return true }}
	for round := range 10 {
		l := openLog(t, cfg)
		var work, some sync.WaitGroup
		some.Add(16)
		for worker := range uint64(16) {
			work.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(round), worker))
				buf := make([]byte, 8)
				for i := 0; ; i++ {
					page := rnd.IntN(len(pages))
					err := l.ReadAt(pages[page], buf)
					if i == 20 || err != nil && i < 20 {
						some.Done()
					}
					if errors.Is(err, storage.ErrUnavailable) {
						return
					}
					if err != nil || binary.LittleEndian.Uint64(buf) != uint64(page) {
						t.Errorf("page %d: %x, %v", page, buf, err)
						return
					}
				}
			})
		}
		dropCache(t, dir)
		some.Wait()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		work.Wait()
	}
}
