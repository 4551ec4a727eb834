package powercut

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/nbd"
)

// plain is what all exports of this package have in common.
type plain struct{ bytes int64 }

// Info implements nbd.Export.
func (p plain) Info() nbd.ExportInfo { return nbd.ExportInfo{Name: "disk", SizeBytes: uint64(p.bytes)} }

// Status implements nbd.Export: there is none.
func (plain) Status(context.Context, int64, int64, string) ([]nbd.Extent, error) {
	return nil, storage.E("status", storage.KindUnsupported, "disk", errors.New("it has no metadata contexts"))
}

// Cache implements nbd.Export.
func (plain) Cache(context.Context, int64, int64) error { return nil }

// Close implements nbd.Export.
func (plain) Close(bool) error { return nil }

// Disk is a disk with a volatile cache: what is written is on the medium only when a flush that began later is over. It
// writes down in a trace what happens. It implements nbd.Export.
type Disk struct {
	plain
	trace *Trace
	no    int
	image *os.File      // what readers see
	takes time.Duration // a flush; each eighth twelve times as long

	flushes atomic.Int64
}

var _ nbd.Export = (*Disk)(nil)

// NewDisk returns an empty disk, whose flushes take a while, some longer, as those of disks do.
func NewDisk(trace *Trace, no int, image *os.File, sizeBytes int64, flushTakes time.Duration) (*Disk, error) {
	if err := image.Truncate(sizeBytes); err != nil {
		return nil, err
	}
	return &Disk{plain: plain{sizeBytes}, trace: trace, no: no, image: image, takes: flushTakes}, nil
}

// ReadAt implements nbd.Export.
func (d *Disk) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := d.image.ReadAt(p, off)
	return err
}

// WriteAt implements nbd.Export. What it has written is not durable.
func (d *Disk) WriteAt(_ context.Context, p []byte, off int64) error {
	return d.trace.write(d.no, p, off, func() error { _, err := d.image.WriteAt(p, off); return err })
}

// Flush implements nbd.Export.
func (d *Disk) Flush(ctx context.Context) error {
	began := d.trace.Now()
	takes := d.takes
	if d.flushes.Add(1)%8 == 0 {
		takes *= 12
	}
	if err := clock.Sleep(ctx, takes); err != nil {
		return err
	}
	d.trace.flush(d.no, began)
	return nil
}

// Trim implements nbd.Export.
func (d *Disk) Trim(ctx context.Context, off, n int64) error {
	return d.WriteZeroes(ctx, off, n, false)
}

// WriteZeroes implements nbd.Export.
func (d *Disk) WriteZeroes(_ context.Context, off, n int64, _ bool) error {
	return d.trace.zero(d.no, off, n, func() error { return writeZeroes(d.image, off, n) })
}

// writeZeroes zeroes a range of a file.
func writeZeroes(f *os.File, off, n int64) error {
	zeroes := make([]byte, min(n, 1<<20))
	for n > 0 {
		part := min(n, int64(len(zeroes)))
		if _, err := f.WriteAt(zeroes[:part], off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// Cut is a disk after a loss of power. What is written to it is kept in memory, and never reaches the medium. It implements
// nbd.Export.
type Cut struct {
	plain
	image *os.File   // the medium; it is not written to
	mu    sync.Mutex // guards pages
	pages map[int64][]byte
}

var _ nbd.Export = (*Cut)(nil)

const pageBytes = 4096

// ReadAt implements nbd.Export.
func (c *Cut) ReadAt(_ context.Context, p []byte, off int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.image.ReadAt(p, off); err != nil {
		return err
	}
	return c.eachPage(p, off, func(part []byte, page, from int64) error {
		if own := c.pages[page]; own != nil {
			copy(part, own[from:])
		}
		return nil
	})
}

// eachPage calls do with each part of p that lies in one page, which page that is, and where in it the part begins.
func (c *Cut) eachPage(p []byte, off int64, do func(part []byte, page, from int64) error) error {
	for len(p) > 0 {
		page, from := off/pageBytes, off%pageBytes
		n := min(int64(len(p)), pageBytes-from)
		if err := do(p[:n], page, from); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (c *Cut) write(p []byte, off int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.eachPage(p, off, func(part []byte, page, from int64) error {
		own := c.pages[page]
		if own == nil {
			own = make([]byte, pageBytes)
			if _, err := c.image.ReadAt(own, page*pageBytes); err != nil {
				return err
			}
			c.pages[page] = own
		}
		copy(own[from:], part)
		return nil
	})
}

// WriteAt implements nbd.Export.
func (c *Cut) WriteAt(_ context.Context, p []byte, off int64) error { return c.write(p, off) }

// Flush implements nbd.Export.
func (*Cut) Flush(context.Context) error { return nil }

// Trim implements nbd.Export.
func (c *Cut) Trim(ctx context.Context, off, n int64) error { return c.WriteZeroes(ctx, off, n, false) }

// WriteZeroes implements nbd.Export.
func (c *Cut) WriteZeroes(_ context.Context, off, n int64, _ bool) error {
	zeroes := make([]byte, min(n, 1<<20))
	for n > 0 {
		part := min(n, int64(len(zeroes)))
		if err := c.write(zeroes[:part], off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}
