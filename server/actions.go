package server

import (
	"context"
	"errors"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/route"
	"github.com/storaged/storaged/replication"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/replication/peer/rpc"
	"github.com/storaged/storaged/server/control"
)

// maxOrderBytes bounds an order before it is decoded.
const maxOrderBytes = 64 << 10

// actions carries out what the catalog's leader decides: on this node directly, on others over the peers. It
// implements control.Actions.
type actions struct {
	self     storage.NodeID
	replicas *replication.Replicas
	peers    *peer.Transport
	router   *route.Router
	done     func() // an order was carried out: the leader wants to know
}

var _ control.Actions = (*actions)(nil)

// The methods by which the catalog's leader gives orders to nodes.
var (
	orderReplica    = order[replicaOrder]("make or drop a replica", 51, peer.Bulk)
	orderMembership = order[control.MembershipOrder]("change membership", 52, peer.Control)
	orderTransfer   = order[control.TransferOrder]("transfer leadership", 53, peer.Control)
)

func order[O any](name string, number peer.Method, lane peer.Lane) rpc.Method[O, rpc.None] {
	return rpc.Method[O, rpc.None]{Name: name, Number: number, Lane: lane, From: peer.Members, InHeader: true, MaxRequestBytes: maxOrderBytes}
}

// register enters the methods by which other nodes give orders to this one.
func (a *actions) register() {
	orderReplica.Handle(a.peers, obey(a.done, a.replicaHere))
	orderMembership.Handle(a.peers, obey(a.done, a.membershipHere))
	orderTransfer.Handle(a.peers, obey(a.done, a.transferHere))
}

// replicaOrder is a CreateOrder, or the order to drop the replica.
type replicaOrder struct {
	control.CreateOrder
	Drop bool `json:"drop,omitempty"`
}

// obey carries an order out, and calls done if that succeeded.
func obey[O any](done func(), do func(context.Context, O) error) func(context.Context, rpc.Sender, O) (rpc.None, error) {
	return func(ctx context.Context, _ rpc.Sender, o O) (rpc.None, error) {
		err := do(ctx, o)
		if err == nil {
			done()
		}
		return rpc.None{}, err
	}
}

// sent forgets the answer of an order, which says nothing but that it was carried out.
func sent(_ rpc.None, err error) error { return err }

// CreateReplica implements control.Actions.
func (a *actions) CreateReplica(ctx context.Context, o control.CreateOrder) error {
	return sent(orderReplica.Call(ctx, a.peers, o.Node, replicaOrder{CreateOrder: o}))
}

// DropReplica implements control.Actions.
func (a *actions) DropReplica(ctx context.Context, o control.ReplicaOrder) error {
	return sent(orderReplica.Call(ctx, a.peers, o.Node, replicaOrder{CreateOrder: control.CreateOrder{ReplicaOrder: o}, Drop: true}))
}

// ChangeMembership implements control.Actions.
func (a *actions) ChangeMembership(ctx context.Context, o control.MembershipOrder) error {
	return sent(orderMembership.Call(ctx, a.peers, o.Leader, o))
}

// TransferLeader implements control.Actions.
func (a *actions) TransferLeader(ctx context.Context, o control.TransferOrder) error {
	return sent(orderTransfer.Call(ctx, a.peers, o.Leader, o))
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
		return a.replicas.RemoveReplica(ctx, o.Group, o.Key.Store, o.Key.Incarnation)
	case o.Bootstrap:
		return a.replicas.Bootstrap(ctx, o.Group, o.Key.Store, o.Key.Incarnation)
	default:
		return a.replicas.CreateReplica(ctx, o.Group, o.Key.Store, o.Key.Incarnation, o.Source)
	}
}

func (a *actions) membershipHere(ctx context.Context, o control.MembershipOrder) error {
	if o.Leader != a.self {
		return a.notMine(o.Leader)
	}
	return a.replicas.ChangeMembership(ctx, o.Group, o.Change, o.Key.String(), o.Node, o.ConfigIndex)
}

func (a *actions) transferHere(ctx context.Context, o control.TransferOrder) error {
	if o.Leader != a.self {
		return a.notMine(o.Leader)
	}
	return a.replicas.TransferLeadership(ctx, o.Group, o.Key.String(), o.Node)
}

func (a *actions) notMine(n storage.NodeID) error {
	return storage.E("order", storage.KindInvalid, "node "+a.self.String(), errors.New("the order is for node "+n.String()))
}
