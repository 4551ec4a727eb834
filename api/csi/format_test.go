//go:build devices

package csi

import (
	"bytes"
	"errors"
	"os"
	"testing"

	storage "github.com/storaged/storaged"
)

// A mkfs.ext4 that was killed leaves descriptors, bitmaps and inodes without a superblock, in the first 64 KiB too. The next
// call makes the file system; and a file system that is finished keeps no mark, and is not made anew, whatever it holds.
func TestFormatAfterKilledMkfs(t *testing.T) {
	path := disk(t, nil)
	if err := os.Truncate(path, 256<<20); err != nil {
		t.Fatal(err)
	}
	h := NewHostMounts("")
	if fs, err := h.Format(path, "", false); err != nil || fs != ext4 {
		t.Fatalf("a blank device: %q, %v", fs, err)
	}
	if there, err := hasMark(path); there || err != nil {
		t.Fatalf("the mark is left: %t, %v", there, err)
	}
	made, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if fs, err := h.Format(path, "ext4", false); err != nil || fs != ext4 {
		t.Fatalf("what is formatted: %q, %v", fs, err)
	}
	if again, err := os.ReadFile(path); err != nil || !bytes.Equal(made, again) {
		t.Fatalf("it was made anew (%v)", err)
	}
	// As mkfs leaves it until the end: it has not overwritten the mark.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(make([]byte, ext4HeadBytes), 0)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Format(path, "ext4", false); !errors.Is(err, storage.ErrConflict) {
		t.Fatalf("a file system that has lost its superblock: %v", err)
	}
	if err := writeMark(path); err != nil {
		t.Fatal(err)
	}
	if out, err := h.tools.Command("mkfs.ext4", "-q", "-E", "nodiscard", "-F", "-m0", path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	if there, err := hasMark(path); !there || err != nil {
		t.Fatalf("mkfs.ext4 overwrites the mark: %v", err)
	}
	if f, err = os.OpenFile(path, os.O_RDWR, 0); err == nil {
		_, err = f.WriteAt(make([]byte, ext4HeadBytes), 0)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if fs, err := h.Format(path, "ext4", false); err != nil || fs != ext4 {
		t.Fatalf("a mkfs that was cut short: %q, %v", fs, err)
	}
}
