package extent

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/op"
)

const (
	// maxDigests bounds what a replica remembers of the Digests that it has applied.
	maxDigests = 64
	// digestPoll is how often there is looked whether one was applied.
	digestPoll = 5 * time.Millisecond
)

// contents digests what an extent's pages map, which must be added in order.
type contents struct {
	h     hash.Hash
	empty bool
	buf   []byte
}

func newContents() *contents { return &contents{h: sha256.New(), empty: true} }

// add takes a page in all its versions. Places do not count, nor does a version in which nothing changed: which of these there are may depend
// on how the replica came to be.
func (c *contents) add(page uint8, versions []*page) {
	before := &table.Page{}
	for _, v := range versions {
		same := v.Bitmap() == before.Bitmap()
		for i := range v.Entries {
			same = same && v.Entries[i].Sum == before.Entries[i].Sum
		}
		if before = &v.Page; same {
			continue
		}
		le := binary.LittleEndian
		c.buf = append(c.buf[:0], page)
		c.buf = le.AppendUint64(le.AppendUint64(c.buf, uint64(v.Epoch)), v.Bitmap())
		for i := range v.Entries {
			if e := &v.Entries[i]; e.Mapped() {
				c.buf = le.AppendUint32(c.buf, e.Sum)
			}
		}
		c.h.Write(c.buf)
		c.empty = false
	}
}

func (c *contents) sum() (d op.Contents) {
	if !c.empty {
		copy(d[:], c.h.Sum(nil))
	}
	return d
}

// pagesOf returns the names of an extent's pages, in order.
func pagesOf(id table.ExtentID) []table.PageKey {
	pages := make([]table.PageKey, table.PagesPerExtent)
	for i := range pages {
		pages[i] = table.PageKey{Volume: id.Volume, Extent: id.Extent, Page: uint8(i)}
	}
	return pages
}

// digested is what an extent held when a Digest was applied.
type digested struct {
	volume storage.VolumeID
	token  uint64
	found  op.ExtentContents
}

// digest notes what an extent holds at an entry. The goroutine that applies calls it, before anything later is applied: whatever else changes
// tables changes places only. Of a token that comes twice the first counts, on all replicas.
func (g *Group) digest(o *op.Op, index uint64) {
	g.mu.RLock()
	known := slices.ContainsFunc(g.digests, func(d digested) bool { return d.token == o.Seq })
	g.mu.RUnlock()
	if known {
		return
	}
	c := newContents()
	_, err := g.eachPage(pagesOf(table.ExtentID{Volume: o.Volume, Extent: o.Extent}), func(_ table.SetID, k table.PageKey, versions []*page) {
		c.add(k.Page, versions)
	})
	if err != nil { // no reason not to apply what follows: it is told to who asks
		g.store.logger.Error("what an extent holds cannot be told: its tables cannot be read", "store", g.store.identity.Store, "group", g.key, "volume", o.Volume,
			"extent", o.Extent, "error", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.digests) >= maxDigests {
		g.digests = slices.Delete(g.digests, 0, len(g.digests)-maxDigests+1)
	}
	g.digests = append(g.digests, digested{o.Volume, o.Seq, op.ExtentContents{Extent: o.Extent, Contents: c.sum(), Damaged: err != nil, Index: index}})
}

// Digested returns what an extent of a volume held when the Digest with that token was applied, and waits for that until ctx ends.
// KindUnavailable if it was not by then, or is not remembered.
func (g *Group) Digested(ctx context.Context, volume storage.VolumeID, token uint64) (op.ExtentContents, error) {
	for {
		g.mu.RLock()
		i := slices.IndexFunc(g.digests, func(d digested) bool { return d.token == token && d.volume == volume })
		var d digested
		if i >= 0 {
			d = g.digests[i]
		}
		g.mu.RUnlock()
		if i >= 0 {
			return d.found, nil
		}
		if err := clock.Sleep(ctx, digestPoll); err != nil {
			return op.ExtentContents{}, storage.E("verify", storage.KindUnavailable, "group "+g.key.String(),
				fmt.Errorf("it has not applied the entry at which replicas are compared: %w", errors.Join(err, context.Cause(ctx))))
		}
	}
}
