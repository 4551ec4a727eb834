package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/runner"
)

// digestPatience bounds the wait for an entry that the leader has applied.
const digestPatience = 2 * time.Second

// Verify has this node's replica of a group, whether it leads or not, check a part of a volume, and mend what is damaged. With a token it says
// what an extent held when the replica applied the Digest. KindUnavailable if the node does not run that replica at the moment; other errors
// as of extent.Group.Verify.
func (rs *Replicas) Verify(ctx context.Context, id storage.GroupID, replica storage.ReplicaKey, r op.VerifyRequest) (op.VerifyAnswer, error) {
	unable := func(err error) (op.VerifyAnswer, error) {
		return op.VerifyAnswer{}, storage.E("verify", storage.KindUnavailable, "group "+id.String(), err)
	}
	g, err := rs.group(id)
	switch {
	case err != nil:
		return unable(errors.New("the node runs no replica of it"))
	case g.self != raft.ServerID(replica.String()):
		return unable(fmt.Errorf("the node runs replica %s, not %s", g.self, replica))
	case g.inst.Load() == nil:
		return unable(errors.New("the replica is stopped"))
	case g.disk.silent():
		return unable(runner.ErrSilent)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(rs.ctx, cancel)() // the node stops
	if r.Token == 0 {
		return g.extents.Verify(ctx, r)
	}
	ctx, stop := context.WithTimeout(ctx, digestPatience)
	defer stop()
	x, err := g.extents.Digested(ctx, r.Volume, r.Token)
	return op.VerifyAnswer{Extents: []op.ExtentContents{x}}, err
}
