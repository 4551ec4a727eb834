package segment

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// TestChill: a cold part ends where a page may be shared with what comes before or after, and cold neighbours are one.
func TestChill(t *testing.T) {
	const page = pageBytes
	for _, test := range []struct {
		records []span
		want    []span
	}{
		{[]span{{0, 3 * page}}, []span{{0, 3 * page}}},
		{[]span{{64, 3*page + 64}}, []span{{page, 3 * page}}},
		{[]span{{page + 64, 2*page - 64}}, nil},
		{[]span{{page - 64, page + 64}}, nil},
		{[]span{{64, 3*page + 64}, {3*page + 64, 6 * page}}, []span{{page, 6 * page}}},
		{[]span{{0, 2 * page}, {3*page + 64, 6 * page}}, []span{{0, 2 * page}, {4 * page, 6 * page}}},
	} {
		var c committer
		for _, r := range test.records {
			c.chill(r.from, r.to)
		}
		if !slices.Equal(c.cold, test.want) {
			t.Errorf("records %v: cold are %v, want %v", test.records, c.cold, test.want)
		}
	}
}

// TestColdWrite writes vectors with cold parts to a real file and reads them back, whether the file system can write past
// its cache or not, and looks whether the cold parts have left the cache.
func TestColdWrite(t *testing.T) {
	const page, begin = pageBytes, 64
	for _, refused := range []bool{false, true} {
		t.Run(fmt.Sprintf("refused=%v", refused), func(t *testing.T) {
			f := realFile(t)
			c := committer{cached: refused}
			want := make([]byte, begin, 100*page)
			for i, n := range []int{100, 10 * page, 64, 20 * page, 1, 30*page + 17, 300, 5 * page} {
				v := bytes.Repeat([]byte{byte(i + 1)}, n)
				c.vectors = append(c.vectors, v)
				want = append(want, v...)
			}
			c.chill(begin, 11*page+5) // ends and begins within vectors
			c.chill(40*page, 50*page)
			if err := c.put(f, begin); err != nil {
				t.Fatal(err)
			}
			if err := f.SyncData(); err != nil {
				t.Fatal(err)
			}
			c.evictCold(f)
			if n, known := cachedPages(f, c.cold[1]); known && n > 0 {
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
func cachedPages(f vfs.File, p span) (n uint64, known bool) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil || fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return 0, false
	}
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Off: uint64(p.from), Len: uint64(p.to - p.from)}, &stat, 0)
	return stat.Cache, err == nil
}

// TestColdEntries appends cold and warm entries of many sizes to a log in real files, and reads all of them from there,
// before and after it is opened again.
func TestColdEntries(t *testing.T) {
	cfg := testConfig(vfs.Default, GroupStart{Key: key(1)})
	cfg.Dir, cfg.CacheBytes, cfg.SegmentBytes = t.TempDir(), 1, 4<<20
	sizes := []int{coldBytes, 100, coldBytes + 1, 300 << 10, 5000, coldBytes - 1, 1<<20 + 77, 1 << 20, 0}
	var want []Entry
	l := openLog(t, cfg)
	g := l.Group(key(1))
	for n := uint64(1); n <= 60; {
		var batch []Entry
		for range 1 + n%4 {
			e := testEntry(n, 1, sizes[int(n)%len(sizes)])
			e.Cold = n%5 != 0
			batch = append(batch, e)
			n++
		}
		end := mustAppend(t, g, batch...)
		want = append(want, batch...)
		if n%3 != 0 { // else the next batch joins it
			mustWait(t, l, end)
		}
	}
	mustWait(t, l, l.End())
	for _, e := range want {
		checkEntry(t, g, e)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, cfg)
	g = l.Group(key(1))
	for _, e := range want {
		checkEntry(t, g, e)
	}
}
