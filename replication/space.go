package replication

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/ledger"
	"github.com/storaged/storaged/replication/op"
)

// spaceLook is how often a write that waits for room looks whether there is some.
const spaceLook = 50 * time.Millisecond

// recordBytes is what the log takes for an entry beside its data, about.
const recordBytes = 128

// logBytes is what the log takes for an entry with so many bytes of data.
func logBytes(data int) int64 { return int64(data) + recordBytes }

// proposedBytes is the length of the entry that comes of an operation of so many bytes: merged, it is one of whole blocks.
func proposedBytes(o *op.Op, n int) int {
	if o.Kind != op.Write || o.Aligned() {
		return n
	}
	_, blocks := o.Blocks()
	return op.HeaderLen(o.Kind, blocks) + blocks*storage.BlockSize
}

// awaitSpace reserves n bytes of log on the stores of all voters. It lets a write wait, no longer than admissionPatience, while a
// voter is below its reserve but makes room, or has yet to receive what would fill it; otherwise it refuses it before it is
// proposed. What overwrites blocks that are mapped needs no more room in the end: it is let in down to half of the reserve, so that
// journals are replayed and file systems checked in a full volume. What is no write is always let in.
func (g *group) awaitSpace(ctx context.Context, in *instance, o *op.Op, n int64) (ledger.Reservation, error) {
	book := in.log.book
	g.disk.room.hear(g.node.cfg.Node)
	if o.Kind != op.Write {
		res, _, _ := book.Reserve(n, math.MinInt64, math.MaxInt64, false)
		return res, nil
	}
	res, room, ok := book.Reserve(n, g.disk.reserveBytes(), g.disk.grantBytes(), true)
	if ok {
		return res, nil
	}
	compacts, overwrites := g.disk.store.Compacts(), false
	if compacts {
		var err error
		if overwrites, err = g.extents.Maps(o); err != nil {
			return res, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, admissionPatience)
	defer cancel()
	for {
		reserve := g.disk.reserveBytes()
		if overwrites {
			if res, room, ok = book.Reserve(n, reserve/2, g.disk.grantBytes(), false); ok {
				return res, nil
			}
		}
		full := shortOf(room, reserve, n)
		if !overwrites && (room.Exhausted || !compacts && room.Told-n < reserve) {
			return res, storage.E("write", storage.KindNoSpace, "group "+g.id.String(), full)
		}
		if err := clock.Sleep(ctx, spaceLook); err != nil {
			return res, storage.E("write", storage.KindUnavailable, "group "+g.id.String(), full)
		}
		if res, room, ok = book.Reserve(n, g.disk.reserveBytes(), g.disk.grantBytes(), true); ok {
			return res, nil
		}
	}
}

// shortOf says in words what a write of n bytes lacks.
func shortOf(r ledger.Room, reserve, n int64) error {
	switch {
	case r.Server == "":
		return errors.New("files that are not the stores' own fill the disks of so many replicas that the others are no majority; remove them; 'storagectl node list' shows where")
	case r.Exhausted && r.LeftBytes()-n >= reserve:
		return errors.New("what lives takes all the room that it may have on the fullest replica; delete volumes, discard blocks or make its file system larger")
	case r.Told-n >= reserve:
		return fmt.Errorf("replica %s can take %d bytes more from this node, and %d are on their way to it; it is slow, or was away", r.Server,
			r.Told-reserve, r.OutBytes)
	}
	return fmt.Errorf("the fullest replica, %s, has %d bytes left and keeps %d in reserve; delete volumes, discard blocks or make its file system larger", r.Server,
		r.LeftBytes(), reserve)
}
