package segment

import (
	"bytes"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestWholeBatches appends a follower's small entries to a log in real files, with a leader's now and then, while others read what
// is there: pages are in the kernel's cache, or not, when the next batch begins in them. All is read from the disk in the end, before
// and after the log is opened again.
func TestWholeBatches(t *testing.T) {
	cfg := testConfig(vfs.Default, GroupStart{Key: key(1)})
	cfg.Dir, cfg.CacheBytes, cfg.SegmentBytes = t.TempDir(), 1, 256<<10
	l := openLog(t, cfg)
	g := l.Group(key(1))
	var want []Entry
	var reading sync.WaitGroup
	for n := uint64(1); n <= 600; {
		var batch []Entry
		for range 1 + n%3 {
			e := testEntry(n, 1, []int{100, 4168, 0, 1000, 9000}[n%5])
			e.Cold = n/16%4 != 0
			batch = append(batch, e)
			n++
		}
		end := mustAppend(t, g, batch...)
		want = append(want, batch...)
		if n%3 != 0 { // else the next batch joins it
			mustWait(t, l, end)
			last := want[len(want)-1]
			reading.Go(func() { _, _ = g.Get(last.Index) })
		}
	}
	reading.Wait()
	mustWait(t, l, l.End())
	if testutil.ToFloat64(l.metrics.direct) == 0 {
		t.Log("this file system has no direct I/O")
	}
	checkAgain(t, cfg, l, want)
}

// TestWholeWrites: only batches of a follower's entries are written as a whole, and only as long as the disk takes that. What the
// first page holds before them is read once, and then known.
func TestWholeWrites(t *testing.T) {
	cfg := testConfig(vfs.NewMem(), GroupStart{Key: key(1)})
	cfg.SegmentBytes, cfg.Aligned = 4<<20, true
	l := openLog(t, cfg)
	g := l.Group(key(1))
	mustWait(t, l, mustAppend(t, g, testEntry(1, 1, 100)))
	batch := func(entries ...Entry) (c *committer, records []*record) {
		for i := range entries {
			entries[i].Index = uint64(i + 2)
		}
		made, _, err := g.prepare(entries)
		if err != nil {
			t.Fatal(err)
		}
		at := l.End()
		for i := range made {
			made[i].header.position, made[i].seg, made[i].direct = at, l.current, made[i].blocks > 0
			at = made[i].end()
			records = append(records, &made[i])
		}
		c = &committer{l: l}
		c.writer.AIO = &c.sync
		return c, records
	}
	large := func(e Entry) Entry {
		withBlocks(&e)
		return e
	}
	follows := func(size int) Entry {
		e := testEntry(0, 1, size)
		e.Cold = true
		return e
	}
	for what, test := range map[string]struct {
		entries []Entry
		want    bool
	}{
		"one of a follower":     {[]Entry{follows(4168)}, true},
		"several of a follower": {[]Entry{follows(0), follows(20), follows(5000)}, true},
		"one of a leader":       {[]Entry{testEntry(0, 1, 4168)}, false},
		"large":                 {[]Entry{large(follows(AlignedBytes))}, false},
		"much":                  {[]Entry{follows(wholeBytes / 2), follows(wholeBytes/2 + 1)}, false},
		"both":                  {[]Entry{follows(4168), testEntry(0, 1, 20)}, false},
	} {
		c, records := batch(test.entries...)
		if c.wholeWrite(records) != test.want {
			t.Errorf("%s: written as a whole: %v", what, !test.want)
		}
		if c.knowsTail(records[0]) != test.want {
			t.Errorf("%s: the page's head is known: %v", what, !test.want)
		}
	}
	c, records := batch(follows(10))
	c.writer.AIO = nil
	if c.wholeWrite(records) || c.tail != nil {
		t.Error("the disk does not take whole writes")
	}
	c, records = batch(follows(10))
	durable, err := c.writeRecords(records, 0)
	if end := records[0].end(); !durable || err != nil || c.tailEnd != end || len(c.tail) != int(end.Offset()%pageBytes) {
		t.Errorf("durable: %v, %v; %d bytes are known before %s, the end is %s", durable, err, len(c.tail), c.tailEnd, end)
	}
	_, next := batch(testEntry(0, 1, 10))
	next[0].header.position = c.tailEnd
	durable, err = c.writeRecords(next, 0)
	if durable || err != nil || c.knowsTail(next[0]) || c.tailEnd != 0 || int(next[0].header.position.Offset()%pageBytes) != len(c.tail) {
		t.Errorf("a leader's after it: durable %v, %v, something is known up to %s", durable, err, c.tailEnd)
	}
	page := make([]byte, len(c.tail))
	if _, err := l.current.file.ReadAt(page, int64(next[0].header.position.Offset())-int64(len(page))); err != nil || !bytes.Equal(page, c.tail) {
		t.Errorf("what was before is not there any more, %v", err)
	}
}
