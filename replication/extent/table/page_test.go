package table

import (
	"bytes"
	"errors"
	"testing"

	storage "github.com/storaged/storaged"
)

// pageBody returns the parts of a page's value in the form by epoch.
func pageBody(chain byte, index, mapped, own, stored uint64, entries int) []byte {
	body := []byte{pageByEpoch, chain}
	for _, n := range []uint64{index, mapped, own, stored} {
		body = append(body, byte(n), byte(n>>8), byte(n>>16), byte(n>>24), byte(n>>32), byte(n>>40), byte(n>>48), byte(n>>56))
	}
	return append(body, bytes.Repeat([]byte{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0}, entries)...)
}

// TestPageDecode: what no version of a page can be is damage, under whatever checksum. Each case guards the part of the
// condition in Decode that its name says: taken out, it failed.
func TestPageDecode(t *testing.T) {
	key := AppendPageKey(nil, 1, PageKey{Volume: 2, Extent: 3, Page: 4}, 5)
	zero := pageBody(1, 9, 3, 1, 1, 1)
	zero[len(zero)-entryLen] = 0
	whole := append([]byte{pageWhole}, make([]byte, 15)...)
	for _, c := range []struct {
		name    string
		body    []byte
		sound   bool
		missing uint64
	}{
		{"part of a chain", pageBody(15, 9, 7, 4, 4, 1), true, 3},
		{"full", pageBody(0, 9, 7, 4, 7, 3), true, 0},
		{"nothing of its own", pageBody(1, 9, 7, 0, 0, 0), true, 7},
		{"nothing at all", pageBody(1, 9, 0, 0, 0, 0), true, 0},
		{"all bits", pageBody(0, 9, 1<<64-1, 1<<64-1, 1<<64-1, 64), true, 0},
		{"a chain too long", pageBody(16, 9, 7, 4, 4, 1), false, 0},
		{"own is not mapped", pageBody(1, 9, 3, 4, 4, 1), false, 0},
		{"own is not mapped, full", pageBody(0, 9, 3, 4, 3, 2), false, 0},
		{"more stored than its own", pageBody(1, 9, 7, 4, 5, 2), false, 0},
		{"less stored than its own", pageBody(1, 9, 7, 5, 4, 1), false, 0},
		{"less stored than mapped, full", pageBody(0, 9, 7, 4, 5, 2), false, 0},
		{"an entry less", pageBody(1, 9, 7, 6, 6, 1), false, 0},
		{"an entry more", pageBody(1, 9, 7, 6, 6, 3), false, 0},
		{"half an entry more", append(pageBody(1, 9, 7, 6, 6, 2), 1, 0, 0, 0, 2, 0), false, 0},
		{"an entry in segment 0", zero, false, 0},
		{"a beginning", pageBody(1, 9, 0, 0, 0, 0)[:33], false, 0},
		{"a version only", []byte{pageByEpoch}, false, 0},
		{"a beginning of the older form", whole, false, 0},
		{"a later form", append([]byte{3}, pageBody(1, 9, 0, 0, 0, 0)[1:]...), false, 0},
		{"nothing", nil, false, 0},
	} {
		var p Page
		err := p.Decode(key, Seal(key, bytes.Clone(c.body)))
		if c.sound != (err == nil) || !c.sound && !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.sound && p.Missing != c.missing {
			t.Errorf("%s: %#x are missing, want %#x", c.name, p.Missing, c.missing)
		}
		if err == nil && !bytes.Equal(p.AppendValue(nil, key, true), Seal(key, bytes.Clone(c.body))) {
			t.Errorf("%s: it encodes differently", c.name)
		}
	}
}

// Guards I1, in AppendValue: a version that leaves entries to older ones is never stored as if all were its own.
func TestPageByEpochIsNotStoredWhole(t *testing.T) {
	p := Page{Epoch: 1}
	p.Set(0, Entry{Segment: 1, Offset: 2, Sum: 3}, Counts{})
	q := p.Fork(2, true)
	defer func() {
		if recover() == nil {
			t.Error("it was encoded")
		}
	}()
	q.AppendValue(nil, AppendPageKey(nil, 1, PageKey{}, 2), false)
}

func TestLiveCounts(t *testing.T) {
	key := LiveKey(1, 2)
	for _, n := range []Count{{3, 3}, {3, 2}, {3, 0}} {
		if set, no, got, err := DecodeLive(key, LiveValue(key, n, true)); err != nil || set != 1 || no != 2 || got != n {
			t.Errorf("%d %d %+v, want %+v: %v", set, no, got, n, err)
		}
	}
	if _, _, got, err := DecodeLive(key, LiveValue(key, Count{3, 3}, false)); err != nil || got != (Count{3, 3}) {
		t.Errorf("one number is %+v: %v", got, err)
	}
	later := Seal(key, append([]byte{3}, make([]byte, 16)...))
	for _, bad := range [][]byte{LiveValue(key, Count{}, true), LiveValue(key, Count{}, false), LiveValue(key, Count{-1, -1}, false),
		LiveValue(key, Count{2, 3}, true), LiveValue(key, Count{2, -1}, true), LiveValue(key, Count{-1, -2}, true), later} {
		if _, _, n, err := DecodeLive(key, bad); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("%x: %+v, %v", bad, n, err)
		}
	}
}

func TestIndexKeys(t *testing.T) {
	v := VersionKey{PageKey: PageKey{Volume: 2, Extent: 3, Page: 4}, Epoch: 5}
	key := AppendIndexKey(nil, 1, v)
	if set, got, err := DecodeIndex(key, Seal(key, nil)); err != nil || set != 1 || got != v {
		t.Errorf("%d %+v, want %+v: %v", set, got, v, err)
	}
	for _, bad := range [][]byte{key[:29], append(bytes.Clone(key), 0), AppendIndexKey(nil, 1, VersionKey{PageKey: PageKey{Page: 16}, Epoch: 5}),
		AppendIndexKey(nil, 1, VersionKey{Epoch: 1})} {
		if _, _, err := DecodeIndex(bad, Seal(bad, nil)); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("%x: %v", bad, err)
		}
	}
	later := AppendIndexKey(nil, 1, VersionKey{PageKey: PageKey{Volume: 2}, Epoch: 6})
	if bytes.Compare(key, later) >= 0 || !bytes.HasPrefix(key, VolumeKey(KeyIndex, 1, 2)) {
		t.Errorf("%x does not come before %x, within its volume", key, later)
	}
}
