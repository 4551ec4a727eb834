package segment

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
)

// TestCheckSealed: a segment that is as it was written has nothing to be told of. A flipped bit in a payload, in a header, and pages that the
// disk does not give back are each found, and what is sound beside them is told as sound.
//
// Guards I5: body's comparison (removed once: the flipped payload passed); its look at the unreadable pages (removed once: a page
// of zeroes that cannot be read passed); read's second try page by page (removed once: the whole segment was given up).
func TestCheckSealed(t *testing.T) {
	fs := &unreadableFS{FS: vfs.NewMem()}
	cfg := testConfig(fs)
	cfg.SegmentBytes = 1 << 20
	l := openLog(t, cfg)
	g, err := l.CreateGroup(key(1), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []Position // of the data
	for i := uint64(1); l.End().Segment() == 1; i++ {
		mustWait(t, l, mustAppend(t, g, testEntry(i, 1, int(i*997%9000))))
		_, at, _, _, _ := g.Location(i)
		data, end, err := l.AppendData(DataHeader{Group: 1, Volume: 1}, make([]byte, 3*storage.BlockSize))
		if err != nil {
			t.Fatal(err)
		}
		mustWait(t, l, end)
		all = append(all, at, data)
	}
	for all[len(all)-1].Segment() != 1 {
		all = all[:len(all)-1]
	}
	check := func(what string, damaged, stray, notTold int) {
		t.Helper()
		var told, bad int
		waited := int64(0)
		c, err := l.CheckSealed(1, func(n int64) error { waited += n; return nil }, func(r SealedRecord, data []byte) error {
			told++
			if data == nil {
				bad++
			} else if len(data) != r.Bytes || r.Head != nil && !bytes.Equal(data[:len(r.Head)], r.Head) {
				t.Errorf("%s: %d bytes of %d at %s", what, len(data), r.Bytes, r.Data)
			}
			return nil
		})
		if err != nil || c.DamagedRecords != damaged || bad != damaged || told != len(all)-notTold || (c.StrayBytes > 0) != (stray > 0) || c.Bytes != waited {
			t.Errorf("%s: %+v, %d of %d records told, %d as damaged, %d bytes waited for; error %v", what, c, told, len(all), bad, waited, err)
		}
		if c.Sound() != (damaged == 0 && stray == 0) {
			t.Errorf("%s: sound %v", what, c.Sound())
		}
	}
	check("as it was written", 0, 0, 0)
	fs.page = int64(all[9].Offset())/pageBytes + 1 // in the middle of zeroes
	check("an unreadable page", 1, 0, 0)
	fs.page = 0
	flip(t, fs, all[4])
	check("a flipped payload", 1, 0, 0)
	flip(t, fs, g.entries[3].at)
	check("and a flipped header", 1, 1, 1)
	fs.all = true
	if _, err := l.CheckSealed(1, nil, nil); !errors.Is(err, storage.ErrIO) {
		t.Errorf("nothing can be read: %v", err)
	}
	stop := errors.New("enough")
	if _, err := l.CheckSealed(1, func(int64) error { return stop }, nil); !errors.Is(err, stop) {
		t.Errorf("the wait's error: %v", err)
	}
	if _, err := l.CheckSealed(l.End().Segment(), nil, nil); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("an open segment: %v", err)
	}
}

// unreadableFS gives back no bytes of one page of each file, or none at all.
type unreadableFS struct {
	vfs.FS
	page int64 // 0: none
	all  bool
}

func (fs *unreadableFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.OpenReadWrite(name, c, opts...)
	return &unreadableFile{f, fs}, err
}

func (fs *unreadableFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(name, c)
	return &unreadableFile{f, fs}, err
}

type unreadableFile struct {
	vfs.File
	fs *unreadableFS
}

func (f *unreadableFile) ReadAt(p []byte, at int64) (int, error) {
	from := f.fs.page * pageBytes
	if f.fs.all || from > 0 && at < from+pageBytes && at+int64(len(p)) > from {
		return 0, errors.New("medium error")
	}
	return f.File.ReadAt(p, at)
}
