package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/replication"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/control"
	"github.com/storaged/storaged/server/route"
)

// maxOrderBytes bounds an order before it is decoded.
const maxOrderBytes = 64 << 10

// actions carries out what the catalog's leader decides: on this node directly, on others over the peers. It
// implements control.Actions.
type actions struct {
	self   storage.NodeID
	host   *replication.Host
	peers  *peer.Transport
	router *route.Router
	done   func() // an order was carried out: the leader wants to know
}

var _ control.Actions = (*actions)(nil)

// register enters the methods by which other nodes give orders to this one.
func (a *actions) register() {
	a.peers.Handle(peer.MethodReplicaCreate, peer.Concurrent, func(in *peer.Inbound) {
		serveOrder(in, a.done, a.replicaHere)
	})
	a.peers.Handle(peer.MethodMembership, peer.Concurrent, func(in *peer.Inbound) {
		serveOrder(in, a.done, a.membershipHere)
	})
	a.peers.Handle(peer.MethodTransferLeader, peer.Concurrent, func(in *peer.Inbound) {
		serveOrder(in, a.done, a.transferHere)
	})
}

// replicaOrder is a CreateOrder, or the order to drop the replica.
type replicaOrder struct {
	control.CreateOrder
	Drop bool `json:"drop,omitempty"`
}

func serveOrder[O any](in *peer.Inbound, done func(), do func(context.Context, O) error) {
	var o O
	err := decodeOrder(in.Header, &o)
	if err == nil {
		err = do(in.Context(), o)
	}
	if err != nil {
		in.ReplyError(err)
		return
	}
	in.Reply(nil, nil)
	done()
}

func decodeOrder(b []byte, o any) error {
	if len(b) > maxOrderBytes {
		return storage.E("decode order", storage.KindInvalid, "", fmt.Errorf("it has %d bytes", len(b)))
	}
	if err := json.Unmarshal(b, o); err != nil {
		return storage.E("decode order", storage.KindInvalid, "", err)
	}
	return nil
}

// order sends an order to a node and waits until it has been carried out.
func (a *actions) order(ctx context.Context, to storage.NodeID, lane peer.Lane, m peer.Method, o any) error {
	body, err := json.Marshal(o)
	if err != nil {
		return storage.E("order", storage.KindInternal, "", err)
	}
	resp, err := a.peers.Call(ctx, to, lane, &peer.Request{Method: m, Header: body})
	if err != nil {
		return err
	}
	resp.Release()
	return nil
}

// CreateReplica implements control.Actions.
func (a *actions) CreateReplica(ctx context.Context, o control.CreateOrder) error {
	return a.order(ctx, o.Node, peer.Bulk, peer.MethodReplicaCreate, replicaOrder{CreateOrder: o})
}

// DropReplica implements control.Actions.
func (a *actions) DropReplica(ctx context.Context, o control.ReplicaOrder) error {
	return a.order(ctx, o.Node, peer.Bulk, peer.MethodReplicaCreate, replicaOrder{CreateOrder: control.CreateOrder{ReplicaOrder: o}, Drop: true})
}

// ChangeMembership implements control.Actions.
func (a *actions) ChangeMembership(ctx context.Context, o control.MembershipOrder) error {
	return a.order(ctx, o.Leader, peer.Control, peer.MethodMembership, o)
}

// TransferLeader implements control.Actions.
func (a *actions) TransferLeader(ctx context.Context, o control.TransferOrder) error {
	return a.order(ctx, o.Leader, peer.Control, peer.MethodTransferLeader, o)
}

// CloseSession implements control.Actions.
func (a *actions) CloseSession(ctx context.Context, group storage.GroupID, volume storage.VolumeID, session storage.SessionID) error {
	return a.propose(ctx, group, op.Op{Kind: op.CloseSession, Volume: volume, Session: session})
}

// SetGeneration implements control.Actions.
func (a *actions) SetGeneration(ctx context.Context, group storage.GroupID, volume storage.VolumeID, generation storage.Generation,
	at uint64) error {
	err := a.propose(ctx, group, op.Op{Kind: op.SetGeneration, Volume: volume, Generation: generation, Seq: at})
	if errors.Is(err, storage.ErrFenced) { // the group refuses even later ones
		return nil
	}
	return err
}

// DeleteVolume implements control.Actions.
func (a *actions) DeleteVolume(ctx context.Context, group storage.GroupID, volume storage.VolumeID, at uint64) error {
	return a.propose(ctx, group, op.Op{Kind: op.DeleteVolume, Volume: volume, Seq: at})
}

// ForgetDeleted implements control.Actions.
func (a *actions) ForgetDeleted(ctx context.Context, group storage.GroupID, session storage.SessionID, at uint64) error {
	return a.propose(ctx, group, op.Op{Kind: op.ForgetDeleted, Session: session, Seq: at})
}

func (a *actions) propose(ctx context.Context, group storage.GroupID, o op.Op) error {
	result, err := a.router.Propose(ctx, group, [][]byte{o.AppendHeader(nil)})
	if err != nil {
		return err
	}
	if result.Kind == storage.KindNotFound { // the volume is deleted: what was asked for is so
		return nil
	}
	return result.Err(o.Kind.String(), "group "+group.String())
}

func (a *actions) replicaHere(ctx context.Context, o replicaOrder) error {
	if o.Node != a.self {
		return a.notMine(o.Node)
	}
	switch {
	case o.Drop:
		return a.host.RemoveReplica(o.Group, o.Key.Store, o.Key.Incarnation)
	case o.Bootstrap:
		return a.host.Bootstrap(o.Group, o.Key.Store, o.Key.Incarnation)
	default:
		return a.host.CreateReplica(ctx, o.Group, o.Key.Store, o.Key.Incarnation, o.Source)
	}
}

func (a *actions) membershipHere(ctx context.Context, o control.MembershipOrder) error {
	if o.Leader != a.self {
		return a.notMine(o.Leader)
	}
	change, ok := map[control.Membership]replication.Change{control.AddNonvoter: replication.AddNonvoter,
		control.AddVoter: replication.AddVoter, control.RemoveServer: replication.RemoveServer}[o.Change]
	if !ok {
		return storage.E("change membership", storage.KindInvalid, "group "+o.Group.String(), fmt.Errorf("unknown change %q", o.Change))
	}
	return a.host.ChangeMembership(ctx, o.Group, change, o.Key.String(), o.Node, o.ConfigIndex)
}

func (a *actions) transferHere(ctx context.Context, o control.TransferOrder) error {
	if o.Leader != a.self {
		return a.notMine(o.Leader)
	}
	return a.host.TransferLeadership(ctx, o.Group, o.Key.String(), o.Node)
}

func (a *actions) notMine(n storage.NodeID) error {
	return storage.E("order", storage.KindInvalid, "node "+a.self.String(), errors.New("the order is for node "+n.String()))
}
