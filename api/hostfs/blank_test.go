//go:build linux

package hostfs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	storage "github.com/storaged/storaged"
)

// disk returns a file that stands for a device of 16 MiB, with the given bytes at the given offsets.
func disk(t *testing.T, content map[int64]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err == nil {
		err = f.Truncate(16 << 20)
	}
	for at, text := range content {
		if err == nil {
			_, err = f.WriteAt([]byte(text), at)
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// An unfinished mkfs is formatted over, or its volume could never be used without a person; anything else that is written is
// not.
func TestInspect(t *testing.T) {
	const mark = 16<<20 - markEnd - storage.BlockSize
	for name, tc := range map[string]struct {
		content    map[int64]string
		unfinished bool
	}{
		"nothing":                     {nil, false},
		"a first byte":                {map[int64]string{0: "x"}, false},
		"an xfs in the making, early": {map[int64]string{1 << 20: "x", mark: markText}, true},
		"data at a first partition":   {map[int64]string{1 << 20: "x"}, false},
		"an xfs in the making":        {map[int64]string{0: "XFSB", 126: "\x01", 512: "XAGF", 1 << 20: "x"}, true},
		"an xfs":                      {map[int64]string{0: "XFSB"}, false},
		"descriptors, no superblock":  {map[int64]string{4096: "descriptors"}, false},
		"an ext4 in the making":       {map[int64]string{4096: "descriptors", mark: markText}, true},
		"an ext4 that is made":        {map[int64]string{1080: "\x53\xef", 4096: "descriptors", mark: markText}, false},
		"used raw after a first mkfs": {map[int64]string{0: "raw", 4096: "descriptors", mark: markText}, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := disk(t, tc.content)
			unfinished, err := inspect(path)
			if err != nil || unfinished != tc.unfinished {
				t.Fatalf("unfinished: %t, %v; want %t", unfinished, err, tc.unfinished)
			}
			if err := eraseMark(path); err != nil {
				t.Fatal(err)
			}
			if there, err := hasMark(path); there || err != nil {
				t.Errorf("the mark is there after it was erased: %t, %v", there, err)
			}
		})
	}
	if _, err := inspect(filepath.Join(t.TempDir(), "none")); !errors.Is(err, storage.ErrIO) {
		t.Errorf("a device that cannot be read: %v", err)
	}
}

// A device is formatted only when the cluster says that nothing is allocated of it, wherever that lies; when it cannot say, the
// device is left alone. The line that keeps it is the call of checkBlank in Format.
func TestFormatBlankOnly(t *testing.T) {
	unknown := storage.E("ask", storage.KindUnavailable, "volume db", errors.New("no leader"))
	for name, tc := range map[string]struct {
		allocated bool
		err, want error
	}{"data beyond its beginning": {true, nil, storage.ErrConflict}, "not known": {false, unknown, storage.ErrUnavailable}} {
		for _, fsType := range []string{"", Ext4, XFS} {
			path := disk(t, map[int64]string{4 << 20: "data"})
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = New("").Format(t.Context(), Disk{Path: path}, fsType, false,
				func(context.Context) (bool, error) { return tc.allocated, tc.err })
			if !errors.Is(err, tc.want) {
				t.Errorf("%s, %q: %v", name, fsType, err)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
				t.Errorf("%s, %q: the device has changed (%v)", name, fsType, err)
			}
		}
	}
}

// A device says that mkfs is at work on it from before it begins until it has ended well.
func TestUnderMark(t *testing.T) {
	path := disk(t, nil)
	fault := errors.New("a fault of the test")
	for _, want := range []error{fault, nil} {
		err := underMark(path, func() error {
			if there, err := hasMark(path); !there || err != nil {
				t.Errorf("mkfs begins on a device that does not say so (%v)", err)
			}
			return want
		})
		if there, markErr := hasMark(path); !errors.Is(err, want) || markErr != nil || there != (want != nil) {
			t.Errorf("mkfs ended with %v: %v, and the mark is there: %t (%v)", want, err, there, markErr)
		}
	}
}

func TestMountDefaults(t *testing.T) {
	given := []string{"noatime"}
	if got := withDefaults("xfs", given); !slices.Equal(got, []string{"noatime", "nouuid"}) || len(given) != 1 {
		t.Errorf("xfs is mounted with %v", got)
	}
	if got := withDefaults("ext4", given); !slices.Equal(got, given) {
		t.Errorf("ext4 is mounted with %v", got)
	}
}
