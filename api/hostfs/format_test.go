//go:build devices

package hostfs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/blockdev"
)

// A mkfs.ext4 that was killed leaves descriptors, bitmaps and inodes without a superblock, in the first 64 KiB too. The next
// call makes the file system; and a file system that is finished keeps no mark, and is not made again, whatever it holds.
func TestFormatAfterKilledMkfs(t *testing.T) {
	path := disk(t, nil)
	if err := os.Truncate(path, 256<<20); err != nil {
		t.Fatal(err)
	}
	h := newHostMounts("")
	blank := func(context.Context) (bool, error) { return false, nil }
	written := func(context.Context) (bool, error) { return true, nil }
	if fs, err := h.Format(t.Context(), Disk{Path: path}, "", false, blank); err != nil || fs != Ext4 {
		t.Fatalf("a blank device: %q, %v", fs, err)
	}
	if there, err := hasMark(path); there || err != nil {
		t.Fatalf("the mark is left: %t, %v", there, err)
	}
	made, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if fs, err := h.Format(t.Context(), Disk{Path: path}, "ext4", false, written); err != nil || fs != Ext4 {
		t.Fatalf("what is formatted: %q, %v", fs, err)
	}
	if again, err := os.ReadFile(path); err != nil || !bytes.Equal(made, again) {
		t.Fatalf("it was made anew (%v)", err)
	}
	// As mkfs leaves it until the end: it has not overwritten the mark.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(make([]byte, zeroHeadBytes), 0)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Format(t.Context(), Disk{Path: path}, "ext4", false, written); !errors.Is(err, storage.ErrConflict) {
		t.Fatalf("a file system that has lost its superblock: %v", err)
	}
	if err := writeMark(path); err != nil {
		t.Fatal(err)
	}
	if out, err := h.tools(t.Context()).Command("mkfs.ext4", "-q", "-E", "nodiscard", "-F", "-m0", path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	if there, err := hasMark(path); !there || err != nil {
		t.Fatalf("mkfs.ext4 overwrites the mark: %v", err)
	}
	if f, err = os.OpenFile(path, os.O_RDWR, 0); err == nil {
		_, err = f.WriteAt(make([]byte, zeroHeadBytes), 0)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if fs, err := h.Format(t.Context(), Disk{Path: path}, "ext4", false, written); err != nil || fs != Ext4 {
		t.Fatalf("a mkfs that was cut short: %q, %v", fs, err)
	}
}

// A loop device that somebody has freed gives its path to another file. That file is neither formatted nor mounted nor shown,
// though it is blank. The line that keeps it is OpenOwned in each of the methods.
func TestAnothersDevice(t *testing.T) {
	losetup := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("losetup", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("losetup %v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	ours, others := disk(t, nil), disk(t, map[int64]string{4 << 20: "another's data"})
	device := losetup("--find", "--show", ours)
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	id, err := blockdev.Of(f)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	losetup("--detach", device)
	losetup(device, others)
	t.Cleanup(func() { losetup("--detach", device) })
	before, err := os.ReadFile(others)
	if err != nil {
		t.Fatal(err)
	}
	h, d, target := newHostMounts(""), Disk{Path: device, Identity: id}, filepath.Join(t.TempDir(), "target")
	_, lookErr := h.Device(t.Context(), d)
	_, formatErr := h.Format(t.Context(), d, "", false, func(context.Context) (bool, error) { return false, nil })
	for what, err := range map[string]error{"Device": lookErr, "Format": formatErr, "Mount": h.Mount(t.Context(), d, target, Ext4, nil),
		"BindDevice": h.BindDevice(t.Context(), d, target, false), "Grow": h.Grow(t.Context(), d, target)} {
		if !errors.Is(err, storage.ErrConflict) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if after, err := os.ReadFile(others); err != nil || !bytes.Equal(before, after) {
		t.Errorf("another's device has changed (%v)", err)
	}
}

// While a mkfs that an earlier driver has begun is at work, which claims the device, nothing is written to it.
func TestClaimedDevice(t *testing.T) {
	path := disk(t, nil)
	out, err := exec.Command("losetup", "--find", "--show", path).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", device).Run() })
	held, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := held.WriteAt([]byte("XFSB"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := held.WriteAt([]byte{1}, 126); err != nil {
		t.Fatal(err)
	}
	if err := held.Sync(); err != nil {
		t.Fatal(err)
	}
	format := func() error {
		_, err := New("").Format(t.Context(), Disk{Path: device}, Ext4, false, func(context.Context) (bool, error) { return true, nil })
		return err
	}
	if err := format(); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("while mkfs is at work: %v", err)
	}
	if unfinished, err := inspect(device); err != nil || !unfinished {
		t.Errorf("the device was written to meanwhile (%v)", err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if err := format(); err != nil {
		t.Errorf("when it has ended: %v", err)
	}
}
