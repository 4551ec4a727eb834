//go:build e2e && devices

package e2e

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storaged/storaged/api/host"
)

// TestOverwrittenFileSystem: an ext4 file system on an attached volume, most of which one file takes, is overwritten at random, three
// times as much as a store may hold. Nothing in it ever sees an error.
func TestOverwrittenFileSystem(t *testing.T) {
	const disk, file, piece = 384 << 20, 96 << 20, 256 << 10
	c := threeSmallDisks(t, disk, file+file/4)
	g := startHost(t, c, "overwriter")
	at := mounted(t, g.MustAttach(t, host.Request{Volume: volumeName}))
	f, err := os.OpenFile(filepath.Join(at, "data"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := random(piece)
	write := func(off int64) {
		copy(p, random(64))
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	for off := int64(0); off < file; off += piece {
		write(off)
	}
	begun := time.Now()
	for wrote := int64(0); wrote < 3*disk; wrote += piece {
		write(rand.Int64N(file/4096-piece/4096) * 4096)
		if wrote%(8<<20) == 0 {
			if err := f.Sync(); err != nil {
				t.Fatalf("after %d MiB: %v", wrote>>20, err)
			}
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB overwritten in %v; %d MiB of the fullest file system are in use", 3*disk>>20, time.Since(begun).Round(time.Second), inUse(t, c)>>20)
	var s unix.Statfs_t
	if err := unix.Statfs(at, &s); err != nil || s.Flags&unix.ST_RDONLY != 0 {
		t.Errorf("the file system is read-only now: %v", err)
	}
}
