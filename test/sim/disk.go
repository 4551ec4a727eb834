package sim

import (
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// disk is a machine's disk as one process sees it. The bytes outlive the process; slowness, stalls and death are the
// process's own.
//
// After kill, whatever the process still does changes nothing: writes and syncs seem to work and go nowhere, and files
// that it makes are its own. So a process that was killed winds down by itself, as a goroutine cannot be killed, while
// its bytes stay exactly as they were at the kill, synced and unsynced ones.
type disk struct {
	vfs.FS             // the machine's
	scratch *vfs.MemFS // files made after the kill

	mu     sync.RWMutex // held for reading by every change, for writing by kill
	killed bool         // guarded by mu
	ghosts sync.Map     // name -> *ghost: what the process believes to have written to files of the log since the kill

	faults sync.Mutex
	random *rand.Rand    // guarded by faults, as all below
	delay  time.Duration // a sync takes at most so long
	syncs  chan struct{} // closed when syncs pass; nil: they pass
	reads  chan struct{} // the same, for reads of the log
}

func newDisk(fs vfs.FS, delay time.Duration, random *rand.Rand) *disk {
	return &disk{FS: fs, scratch: vfs.NewMem(), delay: delay, random: random}
}

// kill ends the process's power over the bytes. When it returns, no change is under way.
func (d *disk) kill() {
	d.mu.Lock()
	d.killed = true
	d.mu.Unlock()
	d.stallSyncs(false)
	d.stallReads(false)
	d.setDelay(0)
}

func (d *disk) setDelay(most time.Duration) {
	d.faults.Lock()
	defer d.faults.Unlock()
	d.delay = most
}

func (d *disk) stallSyncs(on bool) { d.gate(&d.syncs, on) }
func (d *disk) stallReads(on bool) { d.gate(&d.reads, on) }

func (d *disk) gate(g *chan struct{}, on bool) {
	d.faults.Lock()
	defer d.faults.Unlock()
	if on && *g == nil {
		*g = make(chan struct{})
	} else if !on && *g != nil {
		close(*g)
		*g = nil
	}
}

// beforeSync waits as the disk does.
func (d *disk) beforeSync() {
	d.faults.Lock()
	gate := d.syncs
	var wait time.Duration
	if d.delay > 0 {
		wait = time.Duration(d.random.Int64N(int64(d.delay)))
	}
	d.faults.Unlock()
	if wait > 0 {
		time.Sleep(wait)
	}
	if gate != nil {
		<-gate
	}
}

func (d *disk) beforeRead() {
	d.faults.Lock()
	gate := d.reads
	d.faults.Unlock()
	if gate != nil {
		<-gate
	}
}

// change runs alive, or dead if the process was killed.
func (d *disk) change(alive, dead func() error) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.killed {
		return dead()
	}
	return alive()
}

func nothing() error { return nil }

// isLog says which files' syncs and reads are slow or stalled: the segments. Votes and tables share the disk, but
// Pebble waits for its syncs under locks, on which virtual time cannot pass.
func isLog(name string) bool { return strings.Contains(name, "/log/") }

func (d *disk) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &file{File: f, name: name, d: d, log: isLog(name)}, nil
}

// made opens a file that was made after the kill, or passes on what the machine has.
func (d *disk) made(name string, open func(fs vfs.FS) (vfs.File, error)) (vfs.File, error) {
	if f, err := open(d.scratch); err == nil {
		return d.wrap(name, f, nil)
	}
	f, err := open(d.FS)
	return d.wrap(name, f, err)
}

// create makes a file, on the scratch disk after the kill.
func (d *disk) create(name string, alive func() (vfs.File, error)) (vfs.File, error) {
	f := &file{name: name, d: d, log: isLog(name)}
	err := d.change(func() (err error) {
		f.File, err = alive()
		return err
	}, func() (err error) {
		f.own = true
		if err = d.scratch.MkdirAll(d.PathDir(name), 0o755); err == nil {
			f.File, err = d.scratch.Create(name, vfs.WriteCategoryUnspecified)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Create implements vfs.FS.
func (d *disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.create(name, func() (vfs.File, error) { return d.FS.Create(name, c) })
}

// ReuseForWrite implements vfs.FS.
func (d *disk) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.create(name, func() (vfs.File, error) { return d.FS.ReuseForWrite(old, name, c) })
}

// Open implements vfs.FS.
func (d *disk) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	return d.made(name, func(fs vfs.FS) (vfs.File, error) { return fs.Open(name, opts...) })
}

// OpenReadWrite implements vfs.FS.
func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return d.made(name, func(fs vfs.FS) (vfs.File, error) { return fs.OpenReadWrite(name, c, opts...) })
}

// OpenDir implements vfs.FS.
func (d *disk) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	return d.wrap(name, f, err)
}

// Link implements vfs.FS.
func (d *disk) Link(old, name string) error {
	return d.change(func() error { return d.FS.Link(old, name) }, nothing)
}

// Remove implements vfs.FS.
func (d *disk) Remove(name string) error {
	return d.change(func() error { return d.FS.Remove(name) }, nothing)
}

// RemoveAll implements vfs.FS.
func (d *disk) RemoveAll(name string) error {
	return d.change(func() error { return d.FS.RemoveAll(name) }, nothing)
}

// Rename implements vfs.FS.
func (d *disk) Rename(old, name string) error {
	return d.change(func() error { return d.FS.Rename(old, name) }, func() error {
		_ = d.scratch.Rename(old, name) // it may be the machine's, which stays as it is
		return nil
	})
}

// MkdirAll implements vfs.FS.
func (d *disk) MkdirAll(name string, perm os.FileMode) error {
	return d.change(func() error { return d.FS.MkdirAll(name, perm) }, nothing)
}

// Lock implements vfs.FS. The harness runs one process at a time on a disk, so there is nothing to lock.
func (d *disk) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }

// Stat implements vfs.FS.
func (d *disk) Stat(name string) (vfs.FileInfo, error) {
	if info, err := d.scratch.Stat(name); err == nil {
		return info, nil
	}
	return d.FS.Stat(name)
}

// Unwrap implements vfs.FS.
func (d *disk) Unwrap() vfs.FS { return d.FS }

// ghost is the content of a file as a killed process believes it to be.
type ghost struct {
	mu      sync.Mutex
	content []byte
}

func (d *disk) ghost(f *file) *ghost {
	if g, ok := d.ghosts.Load(f.name); ok {
		return g.(*ghost)
	}
	g := &ghost{}
	if info, err := f.File.Stat(); err == nil {
		g.content = make([]byte, info.Size())
		_, _ = f.File.ReadAt(g.content, 0)
	}
	first, _ := d.ghosts.LoadOrStore(f.name, g)
	return first.(*ghost)
}

func (g *ghost) writeAt(p []byte, off int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if missing := int(off) + len(p) - len(g.content); missing > 0 {
		g.content = append(g.content, make([]byte, missing)...)
	}
	copy(g.content[off:], p)
}

func (g *ghost) readAt(p []byte, off int64) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	if off < int64(len(g.content)) {
		n = copy(p, g.content[off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// file is an open file of a disk.
type file struct {
	vfs.File
	name string
	d    *disk
	log  bool
	own  bool // made after the kill
}

func (f *file) change(do func() error) error {
	if f.own {
		return do()
	}
	return f.d.change(do, nothing)
}

// Write implements vfs.File.
func (f *file) Write(p []byte) (n int, err error) {
	err = f.change(func() error { n, err = f.File.Write(p); return err })
	if err == nil {
		n = len(p)
	}
	return n, err
}

// WriteAt implements vfs.File.
func (f *file) WriteAt(p []byte, off int64) (n int, err error) {
	write := func() error { n, err = f.File.WriteAt(p, off); return err }
	if f.own {
		return n, write()
	}
	err = f.d.change(write, func() error {
		f.d.ghost(f).writeAt(p, off)
		n = len(p)
		return nil
	})
	return n, err
}

// ReadAt implements vfs.File.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if f.log {
		f.d.beforeRead()
		if g, ok := f.d.ghosts.Load(f.name); ok && !f.own {
			return g.(*ghost).readAt(p, off)
		}
	}
	return f.File.ReadAt(p, off)
}

// Preallocate implements vfs.File.
func (f *file) Preallocate(off, n int64) error {
	return f.change(func() error { return f.File.Preallocate(off, n) })
}

// Sync implements vfs.File.
func (f *file) Sync() error {
	f.slow()
	return f.change(f.File.Sync)
}

// SyncData implements vfs.File.
func (f *file) SyncData() error {
	f.slow()
	return f.change(f.File.SyncData)
}

// SyncTo implements vfs.File.
func (f *file) SyncTo(n int64) (full bool, err error) {
	f.slow()
	err = f.change(func() error { full, err = f.File.SyncTo(n); return err })
	return full, err
}

func (f *file) slow() {
	if f.log {
		f.d.beforeSync()
	}
}
