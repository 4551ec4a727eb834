package volume

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// clearAll makes the whole blocks of [off, end) unmapped, so that they read as zeroes.
//
// A range of several extents is not cleared extent by extent: the leaders of its groups are asked which of them hold
// anything, and only those are. What a leader names as empty was empty at a moment after the request began: the clear of
// it took effect there and changed nothing. By then the request has passed the gate of I3, so no part of a request that
// it is ordered after is on its way any more. And the leader's table has all that was acknowledged before, by the same
// rules as for a read.
func (v *Volume) clearAll(ctx context.Context, off, end int64) error {
	if first := nextClear(off, end); first.end() == end {
		return v.mutateOne(ctx, first, nil)
	}
	t := v.trunk
	r := new(request)
	if err := t.begin(ctx, v, r); err != nil {
		return err
	}
	defer t.unref(r)
	for looks := t.looksOf(off, end); len(looks) > 0; {
		if err := ctx.Err(); err != nil {
			return storage.E("mutate", storage.KindCanceled, t.subject, err)
		}
		if err := v.lookAll(ctx, looks); err != nil {
			return err
		}
		cut, extents := found(looks, off, end)
		if err := v.sendParts(ctx, r, cut, zeroPayload, helpers{min(int64(t.gateway.config.ClearParallel), extents) - 1, t.clearers}); err != nil {
			return err
		}
		looks = slices.DeleteFunc(looks, func(l *look) bool { return l.next >= l.end })
	}
	return nil
}

// look goes through the extents of a range in one group.
type look struct {
	lane      int
	next, end storage.ExtentIndex // what is not looked at yet
	extents   []storage.ExtentIndex
}

// looksOf returns one for each group that has extents of [off, end).
func (t *trunk) looksOf(off, end int64) (looks []*look) {
	first := storage.ExtentIndex(off / storage.ExtentSize)
	last := storage.ExtentIndex((end - 1) / storage.ExtentSize)
	seen := make([]bool, len(t.groups))
	for x := first; x <= last && int(x-first) < len(t.stripes); x++ {
		if lane := t.laneOf(x); !seen[lane] {
			seen[lane] = true
			looks = append(looks, &look{lane: lane, next: x, end: last + 1})
		}
	}
	return looks
}

// lookAll asks the groups, a bounded number at a time, each for a bounded number of extents that hold something.
func (v *Volume) lookAll(ctx context.Context, looks []*look) error {
	var groups errgroup.Group
	groups.SetLimit(requestParallel)
	for _, l := range looks {
		groups.Go(func() error { return v.look(ctx, l) })
	}
	return groups.Wait()
}

func (v *Volume) look(ctx context.Context, l *look) error {
	t := v.trunk
	if err := t.acquire(ctx, requestOverheadBytes); err != nil {
		return err
	}
	defer t.giveBack(requestOverheadBytes)
	req := op.MappedRequest{Volume: t.id, First: l.next, End: l.end, Generation: t.generation}
	return t.insistRead(ctx, "look for what is mapped", func(attempt context.Context) error {
		answer, err := t.gateway.config.Cluster.MappedExtents(attempt, t.groups[l.lane], req)
		if err != nil {
			return err
		}
		if err := t.checkMapped(&req, &answer, l.lane); err != nil {
			return err
		}
		l.next, l.extents = answer.Next, answer.Extents
		return nil
	})
}

// checkMapped returns an error unless the answer is one to the request.
func (t *trunk) checkMapped(req *op.MappedRequest, answer *op.MappedResponse, lane int) error {
	wrong := answer.Next <= req.First || answer.Next > req.End
	for i, x := range answer.Extents {
		wrong = wrong || x < req.First || x >= answer.Next || i > 0 && x <= answer.Extents[i-1] || t.laneOf(x) != lane
	}
	if wrong {
		return storage.E("look for what is mapped", storage.KindInternal, "",
			fmt.Errorf("the answer for the extents from %d to %d is of others", req.First, req.End))
	}
	return nil
}

// found returns the parts of [off, end) to be cleared, in the order of the extents, and how many there are.
func found(looks []*look, off, end int64) (_ *cutter, extents int64) {
	var parts []part
	for _, l := range looks {
		for _, x := range l.extents {
			at := int64(x) * storage.ExtentSize
			p := nextExtent(max(off, at), min(end, at+storage.ExtentSize))
			p.clear = true
			parts = append(parts, p)
		}
	}
	slices.SortFunc(parts, func(a, b part) int { return int(a.extent) - int(b.extent) })
	c, extents := &cutter{off: off, end: off}, int64(len(parts))
	if n := len(parts); n > 0 {
		c.end = parts[n-1].end()
		c.next = func(int64, int64) (p part) { // the cutter's lock is held
			p, parts = parts[0], parts[1:]
			return p
		}
	}
	return c, extents
}
