package diskio

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

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
			cold := []Span{{page, 11 * page}, {40 * page, 50 * page}} // they end and begin within vectors
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
