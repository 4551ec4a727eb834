package session

import (
	"context"
	"encoding/json"
	"hash/fnv"
	"strings"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/remote"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/replication/peer/rpc"
	"github.com/storaged/storaged/server/catalog"
)

// askTimeout bounds a question of a host to the catalog: its gateway asks another node, or again, long before.
const askTimeout = 10 * time.Second

// Serve enters the methods by which gateways of hosts ask the desk. To be called before the peers run.
func (d *Desk) Serve(peers *peer.Transport) {
	remote.Open.Handle(peers, d.serveOpen)
	remote.Close.Handle(peers, d.serveClose)
	remote.Follow.Handle(peers, d.serveFollow)
}

func onHost(id string) Gateway { return Gateway{Gateway: catalog.Gateway{Host: id}} }

func (d *Desk) serveOpen(ctx context.Context, from rpc.Sender, q remote.OpenRequest) (volume.SessionInfo, error) {
	if err := q.Check(); err != nil {
		return volume.SessionInfo{}, storage.E("open session", storage.KindInvalid, "volume "+q.Volume, err)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	g := onHost(q.Host)
	g.Instance, g.Machine, g.From = q.Instance, q.Machine, whence(q.Name, from.Address)
	return d.Open(ctx, g, q.Volume, volume.SessionRequest{ReadOnly: q.ReadOnly, Attachment: q.Attachment, After: q.After})
}

// whence is a host's name and address, for people.
func whence(name, address string) string {
	if address == "" {
		return name
	}
	return strings.TrimSpace(name + " at " + address)
}

func (d *Desk) serveClose(ctx context.Context, _ rpc.Sender, q remote.CloseRequest) (struct{}, error) {
	if err := q.Check(); err != nil {
		return struct{}{}, storage.E("close session", storage.KindInvalid, "session "+q.Session.String(), err)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return struct{}{}, d.Close(ctx, onHost(q.Host), q.Session)
}

// serveFollow answers when something is new to the gateway, or after the time that it waits for.
func (d *Desk) serveFollow(ctx context.Context, _ rpc.Sender, q remote.FollowRequest) (answer remote.FollowAnswer, err error) {
	if err := q.Check(); err != nil {
		return answer, storage.E("follow", storage.KindInvalid, "host "+q.Host, err)
	}
	d.keep(onHost(q.Host), q.Sessions...)
	ctx, cancel := context.WithTimeout(ctx, max(0, min(q.Wait, remote.FollowFor)))
	defer cancel()
	for {
		_, changed := d.catalog.Changed()
		answer.Volumes, _ = d.News(ctx, q.Volumes) // of what cannot be asked nothing is said
		d.catalog.View(func(s *catalog.State) {
			if r := routesOf(s); r.Version != q.Routes && len(r.Nodes) > 0 {
				answer.Routes = &r
			}
		})
		if len(answer.Volumes) > 0 || answer.Routes != nil {
			return answer, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return answer, nil
		}
	}
}

func routesOf(st *catalog.State) remote.Routes {
	r := remote.Routes{Nodes: map[storage.NodeID]string{}, Groups: map[storage.GroupID][]storage.NodeID{}, HeartbeatTimeout: st.Cluster().HeartbeatTimeout}
	for _, n := range st.Nodes() {
		if n.State != storage.NodeRemoved && n.Addrs.Peer != "" {
			r.Nodes[n.ID] = n.Addrs.Peer
		}
	}
	for _, g := range st.Groups() {
		for _, m := range g.Replicas {
			if m.Role == storage.RoleVoter {
				r.Groups[g.ID] = append(r.Groups[g.ID], m.Node)
			}
		}
	}
	h := fnv.New64a()
	_ = json.NewEncoder(h).Encode(r) // maps are written in the order of their keys; a hash takes everything
	r.Version = h.Sum64()
	return r
}
