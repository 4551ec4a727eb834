package tabledb

import (
	"fmt"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/storaged/storaged/internal/diskio"
)

// metaFS is the file system that Pebble sees. It mends three things that Pebble takes for granted:
//
//   - Pebble moves the marker that names its manifest, and counts on the manifest's entry in the directory to be on the disk by
//     then, though nobody has synced it. Here the directory is synced before a marker is made.
//   - When a directory cannot be synced, Pebble panics in goroutines of its own (vfs/atomicfs), which would end the process.
//   - When its log cannot be closed, or the next one not made, Pebble panics between an unlock and the deferred unlock of the same
//     lock (DB.rotateWAL). Go ends the process then, whoever recovers; so does runtime.Goexit there.
//
// Here the last two fail the database, and Pebble is told that all is well. So that this is no lie that harms, nothing changes on the
// disk from then on of what Pebble recovers from: no log, no manifest, no marker, and nothing is removed or renamed. It stays as a
// power cut at that moment would leave it.
//
// What finds no room waits for it (shortage).
type metaFS struct {
	vfs.FS
	m *DB
}

// Create implements vfs.FS.
func (f metaFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasPrefix(f.PathBase(name), "marker.") {
		if err := f.m.cfg.syncs.SyncDir(f.FS, f.PathDir(name)); err != nil {
			return nil, err
		}
	}
	if category == compacting {
		f.m.space.holdBack()
	}
	if f.m.failure() != nil {
		<-f.m.space.stop // Pebble repeats what has failed without a pause
	}
	return f.made(name, category, func() (vfs.File, error) { return f.FS.Create(name, category) })
}

// ReuseForWrite implements vfs.FS.
func (f metaFS) ReuseForWrite(from, to string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return f.made(to, category, func() (vfs.File, error) { return f.FS.ReuseForWrite(from, to, category) })
}

// made makes a file, whose entry in the directory may want room, too.
func (f metaFS) made(name string, category vfs.DiskWriteCategory, open func() (vfs.File, error)) (vfs.File, error) {
	file := &metaFile{m: f.m, name: f.PathBase(name), category: category}
	lost, err := file.attempt(func() (err error) {
		file.File, err = open()
		return err
	})
	if lost {
		file.File, err = vfs.NewMem().Create("lost", category)
	}
	if err != nil {
		return nil, err
	}
	return file, nil
}

// Rename implements vfs.FS.
func (f metaFS) Rename(from, to string) error {
	_, err := (&metaFile{m: f.m, name: f.PathBase(to)}).attempt(func() error { return f.FS.Rename(from, to) })
	return err
}

// Remove implements vfs.FS. Once the database has failed nothing is removed: what took its place may not be there.
func (f metaFS) Remove(name string) error {
	if f.m.failure() != nil {
		return nil //nolint:nilerr // whoever writes is told
	}
	return f.FS.Remove(name)
}

// OpenDir implements vfs.FS.
func (f metaFS) OpenDir(name string) (vfs.File, error) {
	d, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return metaDirFile{d, f.m}, nil
}

// Unwrap implements vfs.FS.
func (f metaFS) Unwrap() vfs.FS { return f.FS }

type metaDirFile struct {
	vfs.File
	m *DB
}

// Sync implements vfs.File. It does not return an error: see metaFS.
func (d metaDirFile) Sync() error {
	if d.m.failure() != nil {
		return nil //nolint:nilerr // whoever writes is told
	}
	if err := d.m.cfg.syncs.Sync(d.File); err != nil {
		d.m.fail(diskio.Synced(fmt.Errorf("sync directory: %w", err)))
	}
	return nil
}

// metaFile is a file that Pebble writes.
type metaFile struct {
	vfs.File
	m        *DB
	name     string
	category vfs.DiskWriteCategory
	gaveWay  time.Duration
}

// recoveredFrom reports whether Pebble recovers from the file, or it is a directory's entry. Tables are the rest: nothing refers to one
// that was made after the manifest.
func (f *metaFile) recoveredFrom() bool { return f.category != compacting && f.category != flushing }

// frozen reports whether the file must stay as it is: the database has failed.
func (f *metaFile) frozen() bool { return f.m.dead() || f.recoveredFrom() && f.m.failure() != nil }

// attempt runs op, which writes. If op finds no room, attempt waits for some, unless the file can be given up. When the store
// closes before there is room, or the database has failed, the write is lost. Pebble is told that it succeeded, so that all its
// goroutines end; DB.write tells the caller of the failure.
func (f *metaFile) attempt(op func() error) (lost bool, err error) {
	if f.frozen() {
		return true, nil
	}
	if err = op(); diskio.NoSpace(err) && f.category != compacting && f.m.space.opened.Load() {
		err = f.m.space.insist(f.name, err, op)
	}
	if diskio.NoSpace(err) && !f.m.space.opened.Load() {
		f.m.space.halt() // nobody waits for room in Open
	}
	if err != nil && (f.m.space.stopped() || f.category == logging && f.m.space.opened.Load()) {
		f.m.fail(err)
		return true, nil
	}
	return false, err
}

// Write implements vfs.File.
func (f *metaFile) Write(p []byte) (n int, err error) {
	lost, err := f.attempt(func() error {
		k, err := f.File.Write(p[n:])
		n += k
		return err
	})
	if lost {
		n = len(p)
	}
	f.giveWay()
	return n, err
}

// flushGivesWay is for how long the flush of a file gives way to others at most: commits wait for flushes in the end.
const flushGivesWay = 500 * time.Millisecond

// giveWay lets others run while Pebble works beside them.
func (f *metaFile) giveWay() {
	switch {
	case f.category == compacting:
		f.m.cfg.yield()
	case f.category == flushing && f.gaveWay < flushGivesWay:
		from := time.Now()
		f.m.cfg.yield()
		f.gaveWay += time.Since(from)
	}
}

// WriteAt implements vfs.File.
func (f *metaFile) WriteAt(p []byte, offset int64) (n int, err error) {
	lost, err := f.attempt(func() error {
		k, err := f.File.WriteAt(p[n:], offset+int64(n))
		n += k
		return err
	})
	if lost {
		n = len(p)
	}
	return n, err
}

// Preallocate implements vfs.File. Without room for all of it, writes find out what there is.
func (f *metaFile) Preallocate(offset, length int64) error {
	if err := f.File.Preallocate(offset, length); err != nil && !diskio.NoSpace(err) {
		return err
	}
	return nil
}

// synced fails the database for good when a sync has failed. Pebble tells of some as it does of a write.
func (f *metaFile) synced(err error) error {
	if err != nil {
		f.m.fail(diskio.Synced(fmt.Errorf("sync %s: %w", f.name, err)))
	}
	if f.category == logging && f.m.space.opened.Load() {
		return nil
	}
	return err
}

// Sync implements vfs.File.
func (f *metaFile) Sync() error { return f.synced(f.m.cfg.syncs.Sync(f.File)) }

// SyncData implements vfs.File.
func (f *metaFile) SyncData() error { return f.synced(f.m.cfg.syncs.SyncData(f.File)) }

// SyncTo implements vfs.File.
func (f *metaFile) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	return full, f.synced(err)
}
