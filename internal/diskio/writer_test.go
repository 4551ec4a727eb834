package diskio

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// alignedBytes returns n bytes that begin where a page of memory does.
func alignedBytes(n int) []byte {
	b := make([]byte, n+page-1)
	return b[-uintptr(unsafe.Pointer(&b[0]))%page:][:n]
}

// TestColdWrite writes vectors with cold parts to a real file and reads them back, whether or not the file system can write
// past its cache. Then it looks whether the cold parts have left the cache.
func TestColdWrite(t *testing.T) {
	const begin = 64
	for _, refused := range []bool{false, true} {
		t.Run(fmt.Sprintf("refused=%v", refused), func(t *testing.T) {
			f := realFile(t)
			w := Writer{cached: refused}
			var vectors [][]byte
			want := make([]byte, begin, 100*page)
			for i, n := range []int{100, 10 * page, 64, 20 * page, 1, 30*page + 17, 300, 5 * page} {
				v := bytes.Repeat([]byte{byte(i + 1)}, n)
				vectors = append(vectors, v)
				want = append(want, v...)
			}
			cold := []Span{{From: page, To: 11 * page, Cold: true}, {From: 40 * page, To: 50 * page, Cold: true}} // they end and begin within vectors
			if err := w.WriteAt(f, vectors, begin, cold); err != nil {
				t.Fatal(err)
			}
			if err := f.SyncData(); err != nil {
				t.Fatal(err)
			}
			w.Evict(f, cold)
			if n, known := cachedPages(f, cold[1]); known && n > 0 {
				t.Errorf("%d of 10 cold pages are still in the page cache", n)
			}
			got := make([]byte, len(want))
			if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("what was read is not what was written (error %v)", err)
			}
		})
	}
}

// cachedPages returns how many pages of the part are in the page cache. known is false where the file system keeps all
// it has there, or the kernel does not tell.
func cachedPages(f vfs.File, p Span) (n uint64, known bool) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil || fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return 0, false
	}
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Off: uint64(p.From), Len: uint64(p.To - p.From)}, &stat, 0)
	return stat.Cache, err == nil
}

// TestDirectWrite writes vectors with direct parts to a real file that is in the page cache already, and reads them back through
// it. It does so with and without AIO, where the file system refuses direct writes, and where it refuses them only when it gets
// one.
func TestDirectWrite(t *testing.T) {
	for name, set := range map[string]func(*Writer){
		"direct":        func(*Writer) {},
		"without AIO":   func(w *Writer) { w.AIO.refused = true },
		"no direct I/O": func(w *Writer) { w.direct.refused = true },
		"nobody asked":  func(w *Writer) { w.AIO = nil },
	} {
		t.Run(name, func(t *testing.T) {
			f := realFile(t)
			if _, err := f.WriteAt(bytes.Repeat([]byte{0xee}, 4000*page), 0); err != nil {
				t.Fatal(err)
			}
			w := Writer{AIO: &Syncer{}}
			defer w.AIO.Close()
			aio := w.AIO
			set(&w)
			defer func() { w.AIO = aio; w.Close() }()
			var vectors [][]byte
			want := bytes.Repeat([]byte{0xee}, 4000*page)
			at := 100
			add := func(n int) {
				v := alignedBytes(n)
				for i := range v {
					v[i] = byte(len(vectors) + i>>12)
				}
				vectors = append(vectors, v)
				at += copy(want[at:], v)
			}
			var spans []Span
			var direct int64
			for _, parts := range [][]int{{1}, {256}, {1, 3, 1, 256}, {2000}, nil} {
				add(page - at%page) // cached, up to the next page
				from := at
				for _, n := range parts {
					add(n * page)
				}
				if parts == nil {
					for range maxVectors + 10 {
						add(page)
					}
				}
				spans = append(spans, Span{From: int64(from), To: int64(at), Direct: true})
				direct += int64(at - from)
				add(64)
			}
			if err := w.WriteAt(f, vectors, 100, spans); err != nil {
				t.Fatal(err)
			}
			if err := f.SyncData(); err != nil {
				t.Fatal(err)
			}
			w.Evict(f, spans)
			if wanted := w.AIO != nil && !w.direct.refused; wanted && w.DirectBytes != direct || !wanted && w.DirectBytes != 0 {
				t.Errorf("%d bytes of %d were written directly", w.DirectBytes, direct)
			}
			if n, known := cachedPages(f, spans[3]); known && w.DirectBytes > 0 && n > 0 {
				t.Errorf("%d pages are in the page cache", n)
			}
			got := make([]byte, len(want))
			if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("what was read is not what was written (error %v)", err)
			}
			other := realFile(t)
			if err := w.WriteAt(other, [][]byte{{1}}, 0, nil); err != nil || w.direct.of != nil {
				t.Errorf("a descriptor of the file before is still open, %v", err)
			}
		})
	}
}

// TestWriteDurable writes pages that the page cache holds, with and without AIO, and reads them back through it. Where it cannot
// be done nothing is written.
func TestWriteDurable(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(*Writer)
		skew int
		want bool
	}{
		"AIO":              {func(*Writer) {}, 0, true},
		"without AIO":      {func(w *Writer) { w.AIO.refused = true }, 0, true},
		"no direct I/O":    {func(w *Writer) { w.direct.refused = true }, 0, false},
		"nobody asked":     {func(w *Writer) { w.AIO = nil }, 0, false},
		"no page's memory": {func(*Writer) {}, 512, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := realFile(t)
			want := bytes.Repeat([]byte{0xee}, 3000*page)
			if _, err := f.WriteAt(want, 0); err != nil {
				t.Fatal(err)
			}
			aio := &Syncer{}
			w := Writer{AIO: aio}
			defer aio.Close()
			defer w.Close()
			c.set(&w)
			var vectors [][]byte
			for i := range maxVectors + 10 {
				v := alignedBytes(2 * page)[c.skew:][:page]
				for j := range v {
					v[j] = byte(i + j>>9)
				}
				vectors = append(vectors, v)
			}
			done, err := w.WriteDurable(f, vectors, page)
			if err != nil || done != c.want || w.Direct(f) != (done || c.skew > 0) || (w.DirectBytes > 0) != done {
				t.Errorf("done: %v, %v; direct: %v, %d bytes", done, err, w.Direct(f), w.DirectBytes)
			}
			if done {
				copy(want[page:], bytes.Join(vectors, nil))
			}
			got := make([]byte, len(want))
			if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("what was read is not what was written (error %v)", err)
			}
			if done {
				if w.direct.flags != 0 {
					t.Error("later writes would wait for the disk")
				}
				_ = unix.Close(w.direct.fd)
				if done, err := w.WriteDurable(f, vectors[:1], page); !done || !errors.Is(err, unix.EBADF) {
					t.Errorf("a write that fails: done %v, %v", done, err)
				}
				w.direct.of = nil
			}
		})
	}
}

// TestDirectNeedsPages: parts that are no whole pages, in the file or in memory, are written through the page cache, and so is all
// of a file system that has no direct I/O.
func TestDirectNeedsPages(t *testing.T) {
	b := alignedBytes(4 * page)
	for _, c := range []struct {
		vectors [][]byte
		offset  int64
		want    bool
	}{
		{[][]byte{b}, page, true},
		{[][]byte{b}, 512, false},
		{[][]byte{b[:page], b[2*page:]}, 0, true},
		{[][]byte{b[:100], b[:page]}, 0, false},
		{[][]byte{b[:page], b[512 : 512+page]}, 0, false},
	} {
		if got := pages(c.vectors, c.offset); got != c.want {
			t.Errorf("%d vectors at %d: %v", len(c.vectors), c.offset, got)
		}
	}
	fd, err := unix.MemfdCreate("memory", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	w := Writer{AIO: &Syncer{}}
	defer w.AIO.Close()
	defer w.Close()
	if err := w.WriteAt(pipeFile{fd: uintptr(fd)}, [][]byte{b}, 0, []Span{{To: 4 * page, Direct: true, Cold: true}}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(b))
	if n, err := unix.Pread(fd, got, 0); n != len(b) || err != nil || !bytes.Equal(got, b) {
		t.Errorf("memory holds %d bytes, %v", n, err)
	}
	if w.DirectBytes != 0 {
		t.Errorf("%d bytes of a file in memory were written directly", w.DirectBytes)
	}
}

// TestDirectRefused: a file system that takes the descriptor and refuses a write gets the same bytes in the other way, once and for
// all; any other error is the write's. Memory that begins between pages takes the part of what is refused.
func TestDirectRefused(t *testing.T) {
	f := realFile(t)
	v := alignedBytes(3 * page)
	for _, refused := range []bool{true, false} {
		w := Writer{AIO: &Syncer{refused: refused}}
		if done, err := w.writeDirect(f, [][]byte{v[1 : 1+page]}, 0); done || err != nil || !w.direct.refused {
			t.Errorf("without AIO %v: done %v, %v; no more are tried: %v", refused, done, err, w.direct.refused)
		}
		w.direct.refused = false
		_ = unix.Close(w.direct.fd)
		if done, err := w.writeDirect(f, [][]byte{v}, 0); !done || !errors.Is(err, unix.EBADF) || w.direct.refused {
			t.Errorf("without AIO %v: a write that fails: done %v, %v; no more are tried: %v", refused, done, err, w.direct.refused)
		}
		w.direct.of = nil
		w.AIO.Close()
	}
}
