package extent

import (
	"fmt"
	"sync"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

// maxLooks bounds how often a read looks a block up again because it was moved or overwritten meanwhile.
const maxLooks = 64

// readScratch is the entries of a read, reused by later ones.
type readScratch struct {
	entries [storage.BlocksPerExtent]table.Entry
}

// scratchPool keeps the entries of reads between them.
type scratchPool struct{ p sync.Pool }

func (s *scratchPool) get() *readScratch {
	if r, ok := s.p.Get().(*readScratch); ok {
		return r
	}
	return new(readScratch)
}

// Unreadable is a block that this disk does not give back as it was written.
type Unreadable struct {
	Volume storage.VolumeID
	Extent storage.ExtentIndex
	Epoch  storage.Epoch // of the version that was asked for
	Block  int
	At     segment.Position
	Sum    uint32 // crc32c of what was written
	Err    error  // of KindIO or KindCorrupt
}

// Elsewhere gets a block that cannot be read here from another replica, into dst, or says why not. What it brings is
// checked against the sum.
type Elsewhere func(u Unreadable, dst []byte) error

// Read reads the whole blocks that cover the request's range, as of its epoch: n blocks into dst (n*BlockSize bytes,
// holes as zeroes), their crc32c into sums (0 for a hole) and whether they are holes into holes (n each). It does
// not judge session and generation: CheckRead does. Each block is one that was there between call and return.
//
// Blocks that the disk does not give back are asked for elsewhere, if that is not nil; an error is that of this disk all the
// same. It is of KindCorrupt if a block fails its checksum, of KindIO if the disk refuses; then dst holds nothing
// to be used.
func (g *Group) Read(r op.ReadRequest, dst []byte, sums []uint32, holes []bool, elsewhere Elsewhere) error {
	if err := r.Validate(); err != nil {
		return err
	}
	first, n := r.Blocks()
	if len(dst) != n*storage.BlockSize || len(sums) != n || len(holes) != n {
		return storage.E("read", storage.KindInvalid, "buffer", fmt.Errorf("%d bytes, %d sums and %d holes for %d blocks", len(dst), len(sums), len(holes), n))
	}
	scratch := g.store.scratch.get()
	defer g.store.scratch.p.Put(scratch)
	entries := scratch.entries[:n]
	if err := g.lookup(r.Volume, r.Extent, r.Epoch, first, entries); err != nil {
		return err
	}
	for i, e := range entries {
		sums[i], holes[i] = e.Sum, !e.Mapped()
	}
	for i := 0; i < n; {
		run := runLength(entries[i:])
		part := dst[i*storage.BlockSize:][:run*storage.BlockSize]
		if !entries[i].Mapped() {
			clear(part)
		} else if !g.readRun(entries[i:i+run], part) {
			for j := range run {
				b := i + j
				if err := g.readBlock(&r, first+b, &entries[b], dst[b*storage.BlockSize:][:storage.BlockSize], elsewhere); err != nil {
					return err
				}
				sums[b], holes[b] = entries[b].Sum, !entries[b].Mapped()
			}
		}
		i += run
	}
	return nil
}

// runLength returns how many blocks from the first on can be read at once: holes, or blocks that lie one after the
// other.
func runLength(entries []table.Entry) int {
	first := entries[0]
	for i := 1; i < len(entries); i++ {
		e := entries[i]
		if e.Mapped() != first.Mapped() {
			return i
		}
		if e.Mapped() && (e.Segment != first.Segment || e.Offset != first.Offset+uint32(i)*storage.BlockSize) {
			return i
		}
	}
	return len(entries)
}

// readRun reads blocks that lie one after the other, and reports whether all have their checksum.
func (g *Group) readRun(entries []table.Entry, dst []byte) bool {
	if g.store.log.ReadAt(entries[0].Position(), dst) != nil {
		return false
	}
	for i, e := range entries {
		if op.Sum(dst[i*storage.BlockSize:][:storage.BlockSize]) != e.Sum {
			return false
		}
	}
	return true
}

// readBlock reads one block after something went wrong, looking it up again: the segment may have been recycled
// after the block was overwritten or moved.
func (g *Group) readBlock(r *op.ReadRequest, block int, e *table.Entry, dst []byte, elsewhere Elsewhere) error {
	for range maxLooks {
		if !e.Mapped() {
			clear(dst)
			return nil
		}
		readErr := g.store.log.ReadAt(e.Position(), dst)
		// Guards I5: no read returns bytes that fail their crc32c.
		if readErr == nil && op.Sum(dst) == e.Sum {
			return nil
		}
		var again [1]table.Entry
		if err := g.lookup(r.Volume, r.Extent, r.Epoch, block, again[:]); err != nil {
			return err
		}
		if again[0] == *e {
			err := g.readFailed(r, block, *e, readErr)
			return g.fromElsewhere(elsewhere, Unreadable{r.Volume, r.Extent, r.Epoch, block, e.Position(), e.Sum, err}, *e, dst)
		}
		*e = again[0]
	}
	return storage.E("read", storage.KindUnavailable, blockName(r, block), fmt.Errorf("it was overwritten %d times while it was read", maxLooks))
}

// fromElsewhere gets a block that lies at e and cannot be read there, and has it written anew here.
func (g *Group) fromElsewhere(elsewhere Elsewhere, u Unreadable, e table.Entry, dst []byte) error {
	err := elsewhere.get(u, dst)
	if err == nil {
		g.mendLater(u, e, dst)
	} else if storage.KindOf(u.Err) != storage.KindUnavailable {
		g.store.scrubber.Ask(e.Segment) // it lists what is lost, and goes on asking
	}
	return err
}

// get returns nil when the block has been brought from elsewhere, and otherwise the error of the disk.
func (e Elsewhere) get(u Unreadable, dst []byte) error {
	if k := storage.KindOf(u.Err); e == nil || k != storage.KindIO && k != storage.KindCorrupt {
		return u.Err
	}
	// Guards I5, as for what comes from the disk.
	if err := e(u, dst); err != nil || op.Sum(dst) != u.Sum {
		return u.Err
	}
	return nil
}

// readFailed names what is wrong with a block that the table still places there.
func (g *Group) readFailed(r *op.ReadRequest, block int, e table.Entry, readErr error) error {
	if readErr == nil {
		g.store.metrics.corrupt.Inc()
		return storage.E("read", storage.KindCorrupt, blockName(r, block), fmt.Errorf("checksum mismatch at %s of store %s", e.Position(), g.store.identity.Store))
	}
	kind := storage.KindOf(readErr)
	if kind == storage.KindNotFound || kind == storage.KindInvalid {
		kind = storage.KindCorrupt // the table refers to what the log does not have
	}
	return storage.E("read", kind, blockName(r, block), readErr)
}

func blockName(r *op.ReadRequest, block int) string {
	return fmt.Sprintf("block %d of extent %d of volume %d", block, r.Extent, r.Volume)
}

// Status returns runs of blocks of the request's range, as of its epoch. The runs cover exactly the range.
func (g *Group) Status(r op.StatusRequest) ([]op.Run, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	if err := g.checkRead(r.Volume, r.Session, r.Generation); err != nil {
		return nil, err
	}
	first, n := r.Blocks()
	entries := make([]table.Entry, n)
	if err := g.lookup(r.Volume, r.Extent, r.Epoch, first, entries); err != nil {
		return nil, err
	}
	var since []table.Entry
	if r.Dirty {
		since = make([]table.Entry, n)
		if err := g.lookup(r.Volume, r.Extent, r.Since, first, since); err != nil {
			return nil, err
		}
	}
	var runs []op.Run
	at, end := r.Offset, r.Offset+r.Length
	for i := range entries {
		next := min(at-at%storage.BlockSize+storage.BlockSize, end)
		flags := op.RunAllocated
		if !entries[i].Mapped() {
			flags = op.RunHole | op.RunZero
		}
		// Equal sums do not prove equal contents; equal locations do.
		if r.Dirty && entries[i] != since[i] {
			flags |= op.RunDirty
		}
		if k := len(runs) - 1; k >= 0 && runs[k].Flags == flags {
			runs[k].Length += next - at
		} else {
			runs = append(runs, op.Run{Length: next - at, Flags: flags})
		}
		at = next
	}
	return runs, nil
}
