// Package nbdtest has an NBD backend in memory, for tests and benchmarks.
//
// Nothing in it survives the process. Its exports are sparse, merge nothing, and know what changed since a mark, so
// that they answer everything the nbd package may ask. All of it may be used concurrently.
package nbdtest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/nbd"
)

// pageBytes is the unit of allocation.
const pageBytes = 4 << 10

// Backend is a set of volumes in memory.
type Backend struct {
	mu      sync.Mutex
	volumes map[string]*Volume // guarded by mu
	names   []string           // guarded by mu; in the order of Add
}

// NewBackend makes an empty backend.
func NewBackend() *Backend { return &Backend{volumes: make(map[string]*Volume)} }

// Add makes a volume of sizeBytes zeroes.
func (b *Backend) Add(name string, sizeBytes uint64) *Volume {
	v := &Volume{info: nbd.ExportInfo{Name: name, Description: "volume " + name, SizeBytes: sizeBytes,
		MultiConn: true, FastZero: true, Resizable: true,
		Contexts: []string{nbd.ContextAllocation, nbd.ContextDirty}}, pages: make(map[int64]*page), dirty: make(map[int64]bool)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.volumes[name] == nil {
		b.names = append(b.names, name)
	}
	b.volumes[name] = v
	return v
}

func (b *Backend) find(name string) (*Volume, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if v := b.volumes[name]; v != nil {
		return v, nil
	}
	return nil, storage.E("open", storage.KindNotFound, fmt.Sprintf("volume %q", name), nil)
}

// Exports implements nbd.Backend.
func (b *Backend) Exports(context.Context) ([]nbd.ExportInfo, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var infos []nbd.ExportInfo
	for _, name := range b.names {
		infos = append(infos, b.volumes[name].Info())
	}
	return infos, nil
}

// Stat implements nbd.Backend.
func (b *Backend) Stat(_ context.Context, name string, _ nbd.Peer) (nbd.ExportInfo, error) {
	v, err := b.find(name)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	return v.Info(), nil
}

// Open implements nbd.Backend.
func (b *Backend) Open(_ context.Context, name string, peer nbd.Peer) (nbd.Export, error) {
	v, err := b.find(name)
	if err != nil {
		return nil, err
	}
	v.opened.Add(1)
	e := &export{Volume: v, peer: peer}
	v.peers.Store(e, peer)
	return e, nil
}

// Volume is a sparse array of bytes.
type Volume struct {
	mu     sync.RWMutex
	info   nbd.ExportInfo  // guarded by mu
	pages  map[int64]*page // guarded by mu; absent pages are holes
	dirty  map[int64]bool  // guarded by mu; pages changed since MarkClean
	before func(Call) error

	opened, closed, unanswered atomic.Int64
	peers                      sync.Map // *export -> nbd.Peer; the connections now open
}

type page [pageBytes]byte

// Call is an operation that an export is about to perform.
type Call struct {
	Ctx    context.Context
	Name   string // "read", "write", "flush", "trim", "zero", "status", "cache", "resize"
	Off, N int64
	Data   []byte // of a write
	Peer   nbd.Peer
}

// Before makes fn run before every operation, in its goroutine; what it returns is the operation's result if it is
// not nil. It must be set before the volume is used.
func (v *Volume) Before(fn func(Call) error) { v.before = fn }

// SetInfo changes what the volume says of itself. Size and name stay.
func (v *Volume) SetInfo(change func(*nbd.ExportInfo)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change(&v.info)
}

// MarkClean makes everything not dirty, as a snapshot does.
func (v *Volume) MarkClean() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.dirty)
}

// Disconnect ends every connection to the volume, as a backend does that gave the volume to somebody else.
func (v *Volume) Disconnect() {
	v.peers.Range(func(_, peer any) bool {
		peer.(nbd.Peer).Disconnect()
		return true
	})
}

// Opened counts the exports opened.
func (v *Volume) Opened() int64 { return v.opened.Load() }

// Closed counts the exports closed.
func (v *Volume) Closed() int64 { return v.closed.Load() }

// Unanswered counts the exports closed with requests unanswered.
func (v *Volume) Unanswered() int64 { return v.unanswered.Load() }

// Info describes the volume.
func (v *Volume) Info() nbd.ExportInfo {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.info
}

// Contents copies len(p) bytes at off to p.
func (v *Volume) Contents(p []byte, off int64) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	v.each(off, int64(len(p)), func(index int64, from, to int, done int64) {
		part := p[done : done+int64(to-from)]
		if pg := v.pages[index]; pg != nil {
			copy(part, pg[from:to])
		} else {
			clear(part)
		}
	})
}

// Store copies p to off.
func (v *Volume) Store(p []byte, off int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.each(off, int64(len(p)), func(index int64, from, to int, done int64) {
		copy(v.page(index)[from:to], p[done:done+int64(to-from)])
	})
}

// each calls fn for every page of a range: which part of it, and how many bytes of the range came before.
func (v *Volume) each(off, n int64, fn func(index int64, from, to int, done int64)) {
	for done := int64(0); done < n; {
		index, from := (off+done)/pageBytes, (off+done)%pageBytes
		to := min(pageBytes, from+n-done)
		fn(index, int(from), int(to), done)
		done += to - from
	}
}

// page returns a page to be written, allocating it. v.mu is held.
func (v *Volume) page(index int64) *page {
	p := v.pages[index]
	if p == nil {
		p = new(page)
		v.pages[index] = p
	}
	v.dirty[index] = true
	return p
}

// export is a Volume in use by one connection.
type export struct {
	*Volume
	peer nbd.Peer
}

func (e *export) call(ctx context.Context, name string, off, n int64, data []byte) error {
	if e.before == nil {
		return nil
	}
	return e.before(Call{Ctx: ctx, Name: name, Off: off, N: n, Data: data, Peer: e.peer})
}

func (e *export) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := e.call(ctx, "read", off, int64(len(p)), nil); err != nil {
		return err
	}
	e.Contents(p, off)
	return nil
}

// ReadSparse implements nbd.SparseReader.
func (e *export) ReadSparse(ctx context.Context, p []byte, off int64) (holes []nbd.Hole, err error) {
	if err := e.call(ctx, "read", off, int64(len(p)), nil); err != nil {
		return nil, err
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	e.each(off, int64(len(p)), func(index int64, from, to int, done int64) {
		start, end := int(done), int(done)+to-from
		if pg := e.pages[index]; pg != nil {
			copy(p[start:end], pg[from:to])
		} else if k := len(holes); k > 0 && holes[k-1].End == start {
			holes[k-1].End = end
		} else {
			holes = append(holes, nbd.Hole{Start: start, End: end})
		}
	})
	return holes, nil
}

func (e *export) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := e.call(ctx, "write", off, int64(len(p)), p); err != nil {
		return err
	}
	e.Store(p, off)
	return nil
}

func (e *export) Flush(ctx context.Context) error { return e.call(ctx, "flush", 0, 0, nil) }

func (e *export) Trim(ctx context.Context, off, n int64) error {
	if err := e.call(ctx, "trim", off, n, nil); err != nil {
		return err
	}
	e.zero(off, n, false)
	return nil
}

func (e *export) WriteZeroes(ctx context.Context, off, n int64, noHole bool) error {
	if err := e.call(ctx, "zero", off, n, nil); err != nil {
		return err
	}
	e.zero(off, n, noHole)
	return nil
}

func (e *export) zero(off, n int64, noHole bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.each(off, n, func(index int64, from, to int, _ int64) {
		switch {
		case noHole:
			clear(e.page(index)[from:to])
		case from == 0 && to == pageBytes:
			if e.pages[index] != nil {
				delete(e.pages, index)
				e.dirty[index] = true
			}
		case e.pages[index] != nil:
			clear(e.page(index)[from:to])
		}
	})
}

func (e *export) Status(ctx context.Context, off, n int64, metaContext string) ([]nbd.Extent, error) {
	if err := e.call(ctx, "status", off, n, nil); err != nil {
		return nil, err
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	var extents []nbd.Extent
	e.each(off, n, func(index int64, from, to int, _ int64) {
		flags := nbd.FlagHole | nbd.FlagZero
		pg := e.pages[index]
		if metaContext == nbd.ContextDirty {
			flags = 0
			if e.dirty[index] {
				flags = nbd.FlagDirty
			}
		} else if pg != nil {
			flags = 0
		}
		if k := len(extents); k > 0 && extents[k-1].Flags == flags {
			extents[k-1].LengthBytes += uint64(to - from)
		} else {
			extents = append(extents, nbd.Extent{LengthBytes: uint64(to - from), Flags: flags})
		}
	})
	return extents, nil
}

func (e *export) Cache(ctx context.Context, off, n int64) error {
	return e.call(ctx, "cache", off, n, nil)
}

// Resize implements nbd.Resizer.
func (e *export) Resize(ctx context.Context, sizeBytes uint64) error {
	if err := e.call(ctx, "resize", 0, int64(sizeBytes), nil); err != nil {
		return err
	}
	e.SetInfo(func(i *nbd.ExportInfo) { i.SizeBytes = sizeBytes })
	return nil
}

// Close implements nbd.Export.
func (e *export) Close(unanswered bool) error {
	if unanswered {
		e.unanswered.Add(1)
	}
	e.peers.Delete(e)
	e.closed.Add(1)
	return nil
}
