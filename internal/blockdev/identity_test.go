package blockdev

import (
	"errors"
	"testing"

	storage "github.com/storaged/storaged"
)

func TestIdentityText(t *testing.T) {
	for text, want := range map[string]Identity{
		"":                     {},
		"loop 45 2 1234":       {FileDevice: 45, FileInode: 2, Sequence: 1234},
		"loop 45 2 0":          {FileDevice: 45, FileInode: 2},
		"nbd storaged/data 17": {Backend: "storaged/data", Sequence: 17},
	} {
		got, err := ParseIdentity(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%q reads as %+v (%q), %v; want %+v", text, got, got.String(), err, want)
		}
	}
	for _, text := range []string{"loop", "loop 1 2", "loop 1 2 x", "nbd a", "nbd a b", "tape 1 2 3", "loop 1 2 3 4"} {
		if id, err := ParseIdentity(text); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("%q reads as %+v, %v", text, id, err)
		}
	}
}

func TestDiffers(t *testing.T) {
	loop := Identity{FileDevice: 45, FileInode: 2, Sequence: 9}
	nbd := Identity{Backend: "storaged/a", Sequence: 9}
	for name, tc := range map[string]struct {
		want, found Identity
		same        bool
	}{
		"itself":              {loop, loop, true},
		"a kernel without":    {loop, Identity{FileDevice: 45, FileInode: 2}, true},
		"made anew":           {loop, Identity{FileDevice: 45, FileInode: 2, Sequence: 10}, false},
		"another file system": {loop, Identity{FileDevice: 46, FileInode: 2, Sequence: 9}, false},
		"another file":        {loop, Identity{FileDevice: 45, FileInode: 3, Sequence: 9}, false},
		"no file":             {loop, Identity{Sequence: 9}, false},
		"a disk":              {loop, Identity{}, false},
		"an NBD device":       {loop, nbd, false},
		"its backend":         {nbd, nbd, true},
		"another backend":     {nbd, Identity{Backend: "storaged/b", Sequence: 9}, false},
		"disconnected":        {nbd, Identity{Sequence: 9}, false},
	} {
		if err := tc.want.differs(tc.found); (err == nil) != tc.same {
			t.Errorf("%s: %v", name, err)
		}
	}
}
