package server

import (
	"errors"
	"maps"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/peer"
)

// TestMethods: a node serves these methods, to these callers, and refuses each to every other before a handler sees it. A gateway of
// a host cannot change membership or replication, and a stranger can only ask to be taken in and which nodes there are.
func TestMethods(t *testing.T) {
	n := startNode(t)
	const members, gateways, strangers = peer.Members, peer.Gateways, peer.Strangers
	want := map[peer.Method]peer.Audience{1: members, 2: members, 3: members, 4: members, 5: members, 6: members,
		16: members | gateways, 17: members | gateways, 18: members | gateways, 19: members | gateways, 20: members,
		24: members | gateways, 25: members | gateways, 26: members | gateways, 32: members, 33: members, 34: members,
		48: members, 49: members, 50: members, 51: members, 52: members, 53: members, 54: members | strangers,
		55: members | gateways | strangers, 56: members, 60: members}
	methods := n.peers.Methods()
	if !maps.Equal(methods, want) {
		t.Errorf("registered are\n%v, want\n%v", methods, want)
	}
	addr := n.listeners.peer.Addr().String()
	transport := func(c peer.Config) *peer.Transport {
		c.Resolve = func(storage.NodeID) (string, bool) { return addr, true }
		tr, err := peer.New(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tr.Close() })
		return tr
	}
	gateway, stranger := transport(peer.Config{Cluster: n.identity.Cluster, Client: true}), transport(peer.Config{})
	for m, from := range methods {
		for kind, call := range map[peer.Audience]func(*peer.Request) (*peer.Response, error){
			gateways: func(r *peer.Request) (*peer.Response, error) {
				return gateway.Call(t.Context(), n.identity.Node, peer.Control, r)
			},
			strangers: func(r *peer.Request) (*peer.Response, error) { return stranger.CallAddr(t.Context(), addr, r) },
		} {
			resp, err := call(&peer.Request{Method: m})
			if refused := errors.Is(err, storage.ErrPermission); refused != (from&kind == 0) {
				t.Errorf("method %d is for %d; asked by %d: %v", m, from, kind, err)
			}
			if err == nil {
				resp.Release()
			}
		}
	}
}
