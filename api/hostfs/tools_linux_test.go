package hostfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	mount "k8s.io/mount-utils"

	storage "github.com/storaged/storaged"
)

// scripts returns Mounts of this host whose tools are shell scripts; each appends its name to the file "log" of the directory.
func scripts(t *testing.T, texts map[string]string) (h *hostMounts, dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range texts {
		text = "#!/bin/sh\nPATH=/usr/bin:/bin\necho " + name + " >> " + dir + "/log\n" + text + "\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h = newHostMounts("")
	h.dirs = []string{dir}
	return h, dir
}

// eventually waits until the condition holds, for as long as a busy machine may take.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline, look := time.After(30*time.Second), time.NewTicker(5*time.Millisecond)
	defer look.Stop()
	for !holds() {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatalf("it never happened: %s", what)
		}
	}
}

// fifo makes a pipe by name, that a script waits at until the test opens it.
func fifo(t *testing.T, path string) (open func()) {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// answer returns what comes from the channel in time.
func answer(t *testing.T, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("it never returned")
		return nil
	}
}

func lines(t *testing.T, path, word string) (n int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.TrimSpace(line) == word {
			n++
		}
	}
	return n
}

// A mkfs that hangs outlives its caller and is found by the next one; two are never at work side by side.
func TestHungMkfs(t *testing.T) {
	h, dir := scripts(t, map[string]string{"blkid": "exit 2", "mkfs.ext4": "cat < $(dirname $0)/gate"})
	open := fifo(t, filepath.Join(dir, "gate"))
	s := InSlots(h)
	t.Cleanup(s.Close)
	d := Disk{Path: disk(t, nil)}
	format := func(ctx context.Context) error {
		_, err := s.Format(ctx, d, Ext4, false, func(context.Context) (bool, error) { return false, nil })
		return err
	}
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { left <- format(ctx) }()
	eventually(t, "mkfs has begun", func() bool { return lines(t, dir+"/log", "mkfs.ext4") == 1 })
	leave()
	if err := answer(t, left); !errors.Is(err, ErrPending) || !errors.Is(err, storage.ErrCanceled) {
		t.Fatalf("a caller who has left: %v", err)
	}
	next := make(chan error, 1)
	go func() { next <- format(t.Context()) }()
	open()
	if err := answer(t, next); err != nil {
		t.Errorf("the next caller: %v", err)
	}
	if n := lines(t, dir+"/log", "mkfs.ext4"); n != 1 {
		t.Errorf("mkfs ran %d times", n)
	}
	if marked, err := hasMark(d.Path); err != nil || marked {
		t.Errorf("the device is marked as unfinished: %t, %v", marked, err)
	}
}

// Close ends tools that hang, with what they have started.
func TestCloseEndsTools(t *testing.T) {
	h, dir := scripts(t, map[string]string{"blkid": "exit 2", "mkfs.xfs": "sleep 1000 & echo $! > $(dirname $0)/child; wait"})
	s := InSlots(h)
	d := Disk{Path: disk(t, nil)}
	left := make(chan error, 1)
	go func() {
		_, err := s.Format(t.Context(), d, XFS, false, func(context.Context) (bool, error) { return false, nil })
		left <- err
	}()
	var child int
	eventually(t, "mkfs has begun", func() bool {
		b, _ := os.ReadFile(filepath.Join(dir, "child")) // not there yet
		child, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		return child != 0
	})
	s.Close()
	if err := answer(t, left); err == nil {
		t.Error("a mkfs that was killed is no error")
	}
	eventually(t, "what mkfs has started has ended", func() bool {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(child) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ") // nobody may be there to reap it
	})
}

// What a tool prints is kept up to a limit.
func TestToolOutput(t *testing.T) {
	h, _ := scripts(t, map[string]string{"talk": "yes | head -c 1000000; echo >&2 end"})
	out, err := h.tools(t.Context()).Command("talk").CombinedOutput()
	if err != nil || len(out) != maxToolOutput {
		t.Errorf("%d bytes were kept, %v; want %d", len(out), err, maxToolOutput)
	}
}

// A device that is mounted already, by a mount(2) whose caller has left, is not mounted a second time over the first.
func TestMountedMeanwhile(t *testing.T) {
	h, _ := scripts(t, nil)
	target, mounts := t.TempDir(), 0
	var table []mount.MountInfo
	h.table = func() ([]mount.MountInfo, error) { return table, nil }
	h.mount = func(string, string, string, []string) error {
		mounts++
		return nil
	}
	d := Disk{Path: "/dev/null"} // 1:3
	table = []mount.MountInfo{{MountPoint: target, Root: "/", FsType: "ext4", Major: 1, Minor: 3, MountOptions: []string{"rw"}}}
	if err := h.Mount(t.Context(), d, target, Ext4, nil); err != nil || mounts != 0 {
		t.Errorf("it was mounted %d times over itself, %v", mounts, err)
	}
	if err := h.Mount(t.Context(), d, target, Ext4, []string{"ro"}); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("on other terms: %v", err)
	}
	table = nil
	if err := h.Mount(t.Context(), d, target, Ext4, nil); err != nil || mounts != 1 {
		t.Errorf("what is not mounted was mounted %d times, %v", mounts, err)
	}
}
