package server

import (
	"context"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/control"
)

// controlPeers carries the catalog's requests. It implements control.Peers.
type controlPeers struct{ peers *peer.Transport }

// Call implements control.Peers.
func (p controlPeers) Call(ctx context.Context, to storage.NodeID, m control.Method, body []byte) ([]byte, error) {
	resp, err := p.peers.Call(ctx, to, peer.Control, &peer.Request{Method: peer.Method(m), Payload: [][]byte{body}})
	if err != nil {
		return nil, err
	}
	defer resp.Release()
	return append([]byte(nil), resp.Payload...), nil
}

// registerControl enters the methods that other nodes' control loops, and joining nodes, call.
func registerControl(peers *peer.Transport, c *control.Controller) {
	for m, from := range map[control.Method]peer.Audience{control.MethodPropose: peer.Members, control.MethodRead: peer.Members,
		control.MethodReport: peer.Members, control.MethodJoin: peer.Members | peer.Strangers} {
		peers.Handle(peer.Method(m), peer.Terms{From: from, Order: peer.Concurrent}, func(in *peer.Inbound) {
			answer := c.Serve(in.Context(), in.From, m, in.Payload)
			in.Reply(nil, [][]byte{answer})
		})
	}
}
