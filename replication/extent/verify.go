package extent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/sched"
	"github.com/storaged/storaged/replication/extent/compact"
	"github.com/storaged/storaged/replication/extent/scrub"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tableset"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

const (
	// verifyFor is after how long no further extent is begun: whoever asks hears how far it is, and may stop.
	verifyFor = 2 * time.Second
	// turnPatience bounds the wait for those who verify another volume.
	turnPatience = 4 * time.Second
	// maxVerifyBad is after how many bad blocks, which have to be mended, neither is.
	maxVerifyBad = 64
	// verifyRun is how many blocks are read at once.
	verifyRun = 64
)

// Verify reads every block of a part of the request's extents from the disk and compares it with the table, in all versions; what is bad is
// mended as by a scrub. It says what the extents hold, too, as of the moment when each was looked at. KindNotFound for a volume that is
// deleted, KindUnavailable while the replica does not work.
func (g *Group) Verify(ctx context.Context, r op.VerifyRequest) (a op.VerifyAnswer, err error) {
	if err := g.verifiable(&r); err != nil {
		return a, err
	}
	wait, cancel := context.WithTimeout(ctx, turnPatience)
	turn, err := g.store.scrubber.Turn(wait, r.RateBytes)
	cancel()
	if err != nil {
		return op.VerifyAnswer{Busy: ctx.Err() == nil}, ctx.Err()
	}
	defer turn.End()
	v := &verifying{scrubbing{g.store}, g, turn, scrub.Found{}}
	begun := time.Now()
	extents, next, err := v.extents(&r)
	if err != nil {
		return a, err
	}
	for i, x := range extents {
		if i > 0 && (time.Since(begun) >= verifyFor || len(v.found.Bad) >= maxVerifyBad) {
			next = x
			break
		}
		c, err := v.extent(ctx, table.ExtentID{Volume: r.Volume, Extent: x})
		if err != nil {
			return a, err
		}
		a.Extents = append(a.Extents, c)
	}
	n := turn.Mend(ctx, v.found)
	a.Next, a.Bytes, a.Blocks, a.DamagedPages = next, v.found.Bytes, int64(v.found.Blocks), int64(v.found.DamagedPages)
	a.Mended, a.Lost, a.Waiting = int64(n.Mended), int64(n.Lost), int64(n.Later)
	return a, cmp.Or(ctx.Err(), g.verifiable(&r))
}

// verifiable returns why the replica cannot be asked about the volume.
func (g *Group) verifiable(r *op.VerifyRequest) error {
	if err := r.Validate(); err != nil {
		return err
	}
	if err := g.store.Failed(); err != nil {
		return storage.E("verify", storage.KindUnavailable, "group "+g.key.String(), err)
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	switch v := g.state.Volume(r.Volume); {
	case g.removed:
		return storage.E("verify", storage.KindUnavailable, "group "+g.key.String(), errors.New("the replica was removed"))
	case g.damage != nil:
		return storage.E("verify", storage.KindUnavailable, "group "+g.key.String(), g.damage)
	case v != nil && v.Deleted():
		return storage.E("verify", storage.KindNotFound, fmt.Sprintf("volume %d", r.Volume), errors.New("it is deleted"))
	}
	return nil
}

// verifying is one look at a part of a replica.
type verifying struct {
	scrubbing
	g     *Group
	turn  *scrub.Turn
	found scrub.Found
}

// extents returns the first of the request's extents that ever held anything, at most op.MaxVerifyExtents, and where to go on.
func (v *verifying) extents(r *op.VerifyRequest) (found []storage.ExtentIndex, next storage.ExtentIndex, err error) {
	g := v.g
	g.mu.RLock()
	set := g.set.id
	found = g.cache.unsavedExtents(op.MappedRequest{Volume: r.Volume, First: r.First, End: r.End})
	g.mu.RUnlock()
	// What is in Pebble only is looked for after what is in memory only: pages move from there to here.
	x, next := r.First, r.End
	for n := 0; x < r.End; n++ {
		if n > op.MaxVerifyExtents { // those in memory may lie behind
			next = x
			break
		}
		id, ok, err := tableset.FirstExtent(g.store.db, set, table.ExtentID{Volume: r.Volume, Extent: x})
		if err != nil && v.tablesDamaged(err) {
			v.found.DamagedPages++
			id, ok, err = v.extentPast(set, table.ExtentID{Volume: r.Volume, Extent: x})
		}
		if err != nil {
			return nil, 0, tablesError(err)
		}
		if !ok || id.Volume != r.Volume || id.Extent >= r.End {
			break
		}
		found = append(found, id.Extent)
		x = id.Extent + 1
	}
	slices.Sort(found)
	found = slices.Compact(found)
	if i := slices.IndexFunc(found, func(x storage.ExtentIndex) bool { return x >= next }); i >= 0 {
		found = found[:i]
	}
	if len(found) > op.MaxVerifyExtents {
		next, found = found[op.MaxVerifyExtents], found[:op.MaxVerifyExtents]
	}
	return found, next, nil
}

// extentPast is where pages can be read again behind an extent whose first page cannot.
func (v *verifying) extentPast(set table.SetID, id table.ExtentID) (table.ExtentID, bool, error) {
	key, err := v.pastDamage(table.AppendPageKey(nil, set, table.PageKey{Volume: id.Volume, Extent: id.Extent}, storage.Epoch(math.MaxUint64)))
	if err != nil || key == nil {
		return id, false, err
	}
	_, at, _ := table.ParsePageKey(append(key, make([]byte, table.PageKeyLen-len(key))...))
	return table.ExtentID{Volume: at.Volume, Extent: at.Extent}, string(table.SetPrefix(table.KeyPage, set)) == string(key[:9]), nil
}

// extent looks at one extent.
func (v *verifying) extent(ctx context.Context, id table.ExtentID) (op.ExtentContents, error) {
	of := op.ExtentContents{Extent: id.Extent}
	pages := pagesOf(id)
	blocks, c, err := v.look16(pages)
	if err != nil && v.tablesDamaged(err) {
		of.Damaged, blocks = true, nil
		for _, k := range pages {
			in, _, err := v.look16([]table.PageKey{k})
			switch {
			case err == nil:
				blocks = append(blocks, in...)
			case v.tablesDamaged(err):
				v.found.DamagedPages++
				v.logger.Error("a page of the tables is damaged", "store", v.identity.Store, "group", v.g.key, "volume", k.Volume, "extent", k.Extent, "page", k.Page, "error", err)
			default:
				return of, tablesError(err)
			}
		}
	} else if err != nil {
		return of, tablesError(err)
	} else {
		of.Contents = c
	}
	slices.SortFunc(blocks, func(a, b compact.Block) int { return cmp.Compare(a.From.Position(), b.From.Position()) })
	blocks = slices.CompactFunc(blocks, func(a, b compact.Block) bool {
		return a.From.Position() == b.From.Position() && a.From.Sum == b.From.Sum
	})
	return of, v.blocks(ctx, blocks)
}

// look16 returns the blocks of an extent's pages, and what these hold.
func (v *verifying) look16(pages []table.PageKey) (blocks []compact.Block, d op.Contents, err error) {
	c := newContents()
	_, err = v.g.eachPage(pages, func(set table.SetID, k table.PageKey, versions []*page) {
		c.add(k.Page, versions)
		blocks = v.g.blocksOfPage(blocks, set, k, versions, table.Entry.Mapped)
	})
	return blocks, c.sum(), err
}

// blocks reads blocks, which are in the order of where they lie, and compares each with its sum.
func (v *verifying) blocks(ctx context.Context, blocks []compact.Block) error {
	var room [verifyRun * storage.BlockSize]byte
	for len(blocks) > 0 {
		n := 1
		for n < min(len(blocks), verifyRun) && blocks[n].From.Segment == blocks[0].From.Segment &&
			blocks[n].From.Offset == blocks[0].From.Offset+uint32(n)*storage.BlockSize {
			n++
		}
		run, part := blocks[:n], room[:n*storage.BlockSize]
		if err := v.turn.Wait(ctx, int64(len(part))); err != nil {
			return err
		}
		at := run[0].From.Position()
		// A follower may apply what is durable at others, and not here yet.
		if err := v.log.Wait(ctx, at+segment.Position(len(part))); err != nil {
			return err
		}
		readErr := v.log.ReadDisk(at, part)
		for i := range run {
			sched.Yield()
			if readErr == nil && op.Sum(part[i*storage.BlockSize:][:storage.BlockSize]) == run[i].From.Sum {
				continue
			}
			if err := v.scrubbing.look(&v.found, run[i]); err != nil {
				return err
			}
		}
		v.found.Bytes += int64(len(part))
		v.found.Blocks += n
		blocks = blocks[n:]
	}
	return nil
}
