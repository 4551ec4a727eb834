package segment

import (
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestMarkCold: a cold part ends where a page may be shared with what comes before or after, and cold neighbours are one.
func TestMarkCold(t *testing.T) {
	const page = pageBytes
	for _, test := range []struct {
		records [][2]int64
		want    [][2]int64
	}{
		{[][2]int64{{0, 3 * page}}, [][2]int64{{0, 3 * page}}},
		{[][2]int64{{64, 3*page + 64}}, [][2]int64{{page, 3 * page}}},
		{[][2]int64{{page + 64, 2*page - 64}}, nil},
		{[][2]int64{{page - 64, page + 64}}, nil},
		{[][2]int64{{64, 3*page + 64}, {3*page + 64, 6 * page}}, [][2]int64{{page, 6 * page}}},
		{[][2]int64{{0, 2 * page}, {3*page + 64, 6 * page}}, [][2]int64{{0, 2 * page}, {4 * page, 6 * page}}},
	} {
		var c committer
		for _, r := range test.records {
			c.markCold(r[0], r[1])
		}
		var cold [][2]int64
		for _, p := range c.spans {
			cold = append(cold, [2]int64{p.From, p.To})
		}
		if !slices.Equal(cold, test.want) {
			t.Errorf("records %v: cold are %v, want %v", test.records, cold, test.want)
		}
	}
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
	checkAgain(t, cfg, l, want)
}
