package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/replication/segment"
)

// A block that a leader's disk does not give back is read from another replica, and the leader goes on leading. It knows
// by its own table what the block must be: the crc32c there. So it does not matter how far the other replica is, nor that
// it does not lead, and a group whose replicas have a bad block each serves all of them. See docs/adr/0014.

// elsewhere returns where the group's blocks come from when this disk does not give them back. It counts those against the
// disk.
func (g *group) elsewhere(ctx context.Context) extent.Elsewhere {
	return func(u extent.Unreadable, dst []byte) error {
		g.disk.unreadableBlock(g, u, time.Now())
		err := g.readCopy(ctx, u, dst)
		if err != nil {
			g.logger.Error("a block cannot be read by any replica that answers", "volume", u.Volume,
				"extent", u.Extent, "block", u.Block, "error", err)
		}
		return err
	}
}

// copyPatience bounds, in heartbeat time-outs, the search for a replica that has a block. Some may be behind, or changing.
const copyPatience = 2

// readCopy asks the other members for a block until one has it with the sum. It ends when all say that they cannot read it: then, and only
// then, the error is of KindIO, and the block lost. KindUnavailable when time is up and one may have it later.
func (g *group) readCopy(ctx context.Context, u extent.Unreadable, dst []byte) error {
	in := g.inst.Load()
	if in == nil {
		return storage.E("read copy", storage.KindUnavailable, "group "+g.id.String(), errors.New("the replica is stopped"))
	}
	ctx, cancel := context.WithTimeout(ctx, copyPatience*g.node.cfg.HeartbeatTimeout)
	defer cancel()
	for {
		again, errs := false, []error{u.Err}
		for _, s := range in.Configuration().Servers {
			if s.ID == g.self {
				continue
			}
			err := g.readCopyFrom(ctx, s, u, dst)
			if err == nil {
				return nil
			}
			kind := storage.KindOf(err)
			again = again || kind != storage.KindIO && kind != storage.KindCorrupt
			errs = append(errs, fmt.Errorf("node %s: %w", s.Address, err))
		}
		if !again {
			return storage.E("read copy", storage.KindIO, "group "+g.id.String(), errors.Join(errs...))
		}
		if clock.Sleep(ctx, g.node.cfg.HeartbeatTimeout/8) != nil {
			return storage.E("read copy", storage.KindUnavailable, "group "+g.id.String(), errors.Join(errs...))
		}
	}
}

// mendFrom is the extent.Source of the stores. What the scrub finds does not count against the disk: it is mended before anybody waits for
// it, and a disk whose rot of years is found in an hour is no worse than it was (ADR 45).
func (rs *Replicas) mendFrom(ctx context.Context, key segment.GroupKey, u extent.Unreadable, dst []byte) error {
	g, err := rs.group(key.Group)
	if err != nil {
		return err
	}
	if g.extents.Key() != key {
		return storage.E("mend", storage.KindUnavailable, "group "+key.String(), errors.New("the replica does not run"))
	}
	return g.readCopy(ctx, u, dst)
}

// readCopyFrom asks one member for a block. The error is of KindIO or KindCorrupt if it cannot read it either, and of another
// kind if it may have it later.
func (g *group) readCopyFrom(ctx context.Context, s raft.Server, u extent.Unreadable, dst []byte) error {
	node, err := runner.ParseNodeAddress(s.Address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, g.node.cfg.HeartbeatTimeout)
	defer cancel()
	req := op.ReadRequest{Volume: u.Volume, Extent: u.Extent, Offset: uint32(u.Block * storage.BlockSize),
		Length: storage.BlockSize, Epoch: u.Epoch}
	resp, err := g.node.cfg.Peers.Call(ctx, node, peer.Data, &peer.Request{Method: methodReadCopy, Group: g.id, Header: req.Append(nil), SumsInAnswer: true})
	if err != nil {
		return err
	}
	defer resp.Release()
	if len(resp.Payload) != len(dst) || op.Sum(resp.Payload) != u.Sum {
		return storage.E("read copy", storage.KindUnavailable, "group "+g.id.String(), errors.New("it has other bytes there: it is behind, or ahead"))
	}
	copy(dst, resp.Payload)
	return nil
}

// serveReadCopy answers with one block as this replica has it, and no word about how new that is: who asks knows its sum.
func (rs *Replicas) serveReadCopy(in *peer.Inbound) {
	req, err := op.DecodeReadRequest(in.Header)
	if err == nil && req.Length != storage.BlockSize {
		err = storage.E("read copy", storage.KindInvalid, "group "+in.Group.String(), fmt.Errorf("%d bytes: want one block", req.Length))
	}
	var g *group
	if err == nil {
		g, err = rs.group(in.Group)
	}
	if err == nil && g.disk.silent() {
		err = storage.E("read copy", storage.KindUnavailable, "group "+in.Group.String(), runner.ErrSilent)
	}
	if err == nil {
		err = acquireWithin(in.Context(), g.disk.reads, storage.BlockSize)
	}
	if err != nil {
		in.ReplyError(err)
		return
	}
	buf := getBuffer(storage.BlockSize)
	buf.room = g.disk.reads
	resp := op.ReadResponse{Sums: make([]uint32, 1), Holes: make([]bool, 1)}
	count := func(u extent.Unreadable, _ []byte) error {
		g.disk.unreadableBlock(g, u, time.Now())
		return u.Err
	}
	if err := g.extents.Read(req, buf.b, resp.Sums, resp.Holes, count); err != nil {
		buf.put()
		in.ReplyError(err)
		return
	}
	in.ReplyThen(resp.Append(nil), [][]byte{buf.b[:resp.PayloadLen()]}, buf.put)
}

// unreadable remembers which blocks a disk did not give back lately.
type unreadable struct {
	limit  int
	window time.Duration

	mu     sync.Mutex
	blocks map[segment.Position]time.Time // when each was last not read; at most limit; guarded by mu
}

// add notes a block, and returns how many different ones there were within the window, and whether this one is new.
func (u *unreadable) add(at segment.Position, now time.Time) (n int, fresh bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.blocks == nil {
		u.blocks = map[segment.Position]time.Time{}
	}
	for p, t := range u.blocks {
		if now.Sub(t) > u.window {
			delete(u.blocks, p)
		}
	}
	_, known := u.blocks[at]
	if known || len(u.blocks) < u.limit {
		u.blocks[at] = now
	}
	return len(u.blocks), !known
}

func (u *unreadable) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.blocks)
}

// unreadableBlock counts a block that the disk did not give back against it. One bad sector is no reason to lose all copies
// on the disk; many are: the next to fail may be what no other replica has either.
func (d *disk) unreadableBlock(g *group, u extent.Unreadable, now time.Time) {
	n, fresh := d.unreadable.add(u.At, now)
	if !fresh {
		return
	}
	d.logger.Error("the disk does not give back a block", "store", d.store.ID(), "group", g.id, "at", u.At.String(), "blocks_lately", n,
		"fails_at", d.unreadable.limit, "error", u.Err)
	if n < d.unreadable.limit {
		return
	}
	if lone := g.node.loneVoter(d); lone != 0 {
		d.logger.Error("the disk is not failed, because a group has no other voter", "store", d.store.ID(), "group", lone)
		return
	}
	d.fail(storage.E("read", storage.KindIO, "store "+d.store.ID().String(), fmt.Errorf(
		"it did not give back %d different blocks within %v: %w", n, d.unreadable.window, u.Err)))
}

// loneVoter returns a group of which this disk holds the only voter; 0 for none.
func (rs *Replicas) loneVoter(d *disk) storage.GroupID {
	for _, g := range rs.all() {
		in := g.inst.Load()
		if g.disk != d || in == nil {
			continue
		}
		voters, self := 0, false
		for _, s := range in.Configuration().Servers {
			if s.Suffrage == raft.Voter {
				voters++
				self = self || s.ID == g.self
			}
		}
		if self && voters == 1 {
			return g.id
		}
	}
	return 0
}
