package peer

import (
	"crypto/tls"
	"errors"
	"testing"

	"github.com/storaged/storaged"
)

// echoAll answers every method that there is with its own number, and notes whether the sender was a client.
func echoAll(fromClient func(bool)) func(*Transport) {
	return func(t *Transport) {
		for m := Method(1); m <= MethodMappedBlocks; m++ {
			t.Handle(m, Concurrent, func(in *Inbound) {
				fromClient(in.Client && in.From == 0)
				in.Reply([]byte{byte(in.Method)}, nil)
			})
		}
	}
}

func newTestClient(t *testing.T, m *mesh, change func(*Config)) *Transport {
	t.Helper()
	cfg := Config{Cluster: testCluster, Client: true, Resolve: m.resolve}
	if change != nil {
		change(&cfg)
	}
	tr, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

// TestClientsCallWhatGatewaysCall: every other method, Raft's above all, is refused before its handler sees it. The line
// that keeps it is the first case of Transport.receivable.
func TestClientsCallWhatGatewaysCall(t *testing.T) {
	m := newMesh(t, loopback(), 1, nil, echoAll(func(client bool) {
		if !client {
			t.Error("the sender is not known as a client")
		}
	}))
	client := newTestClient(t, m, nil)
	allowed := map[Method]bool{MethodPropose: true, MethodRead: true, MethodStatus: true, MethodMappedExtents: true, MethodGatewayOpen: true,
		MethodGatewayClose: true, MethodGatewayFollow: true, MethodNodeInfo: true}
	for method := Method(1); method <= MethodMappedBlocks; method++ {
		resp, err := client.Call(testContext(t), 1, Control, &Request{Method: method})
		switch {
		case allowed[method] && (err != nil || resp.Header[0] != byte(method)):
			t.Errorf("method %d: %v", method, err)
		case !allowed[method] && !errors.Is(err, storage.ErrPermission):
			t.Errorf("method %d: %v, want KindPermission", method, err)
		}
		if err == nil {
			resp.Release()
		}
	}
}

// TestClientsDoNotEndEachOther: all clients are node 0, and a node's newer connections end its older ones.
func TestClientsDoNotEndEachOther(t *testing.T) {
	m := newMesh(t, loopback(), 1, nil, echoAll(func(bool) {}))
	clients := []*Transport{newTestClient(t, m, nil), newTestClient(t, m, nil), newTestClient(t, m, nil)}
	var sets []*connSet
	for range 3 {
		for _, c := range clients {
			resp, err := c.Call(testContext(t), 1, Data, &Request{Method: MethodPropose, Group: 1})
			if err != nil {
				t.Fatal(err)
			}
			resp.Release()
			sets = append(sets, c.peer(1).set.Load())
		}
	}
	for i, s := range sets {
		if s != sets[i%3] || s.ctx.Err() != nil {
			t.Errorf("client %d lost its connections", i%3)
		}
	}
}

// TestClientsAreBounded: over the limit a client is not let in; a node still is.
func TestClientsAreBounded(t *testing.T) {
	m := newMesh(t, loopback(), 2, func(c *Config) { c.MaxClientConnections = 3 }, echoAll(func(bool) {}))
	first, second := newTestClient(t, m, nil), newTestClient(t, m, nil)
	call := func(tr *Transport) error {
		resp, err := tr.Call(testContext(t), 1, Data, &Request{Method: MethodPropose, Group: 1})
		if err == nil {
			resp.Release()
		}
		return err
	}
	if err := call(first); err != nil {
		t.Fatal(err)
	}
	if err := call(second); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("a client over the limit: %v, want KindUnavailable", err)
	}
	var place *inPeer
	m.nodes[1].mu.Lock()
	for key, s := range m.nodes[1].inSets {
		if key.client {
			place = s.in
		}
	}
	m.nodes[1].mu.Unlock()
	if place == nil || place == m.nodes[1].inFrom[0] {
		t.Error("a client has no place of its own")
	}
	resp, err := m.nodes[2].Call(testContext(t), 1, Data, &Request{Method: MethodRaftVote})
	if err != nil {
		t.Fatalf("a node beside too many clients: %v", err)
	}
	resp.Release()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	deadline := testContext(t)
	for call(second) != nil { // until the node has noticed that the first has left
		if deadline.Err() != nil {
			t.Fatal("a client that left keeps its place")
		}
	}
}

// TestCertificatesOfGateways: they open the door to clients only. The line that keeps it is in Transport.answerHello.
func TestCertificatesOfGateways(t *testing.T) {
	configs := testTLSFor(t, "", ClientUnit)
	m := newMesh(t, loopback(), 1, func(c *Config) { c.TLS = configs[0] }, echoAll(func(bool) {}))
	for name, tc := range map[string]struct {
		tls    *tls.Config
		client bool
		ok     bool
	}{
		"node":                        {configs[0], false, true},
		"client, node's certificate":  {configs[0], true, true},
		"client":                      {configs[1], true, true},
		"node, client's certificate":  {configs[1], false, false},
		"client without certificates": {nil, true, false},
	} {
		tr := newTestClient(t, m, func(c *Config) {
			if c.TLS = tc.tls; !tc.client {
				c.Client, c.Self = false, 2
			}
		})
		resp, err := tr.Call(testContext(t), 1, Data, &Request{Method: MethodPropose, Group: 1})
		if err == nil {
			resp.Release()
		}
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClientConfig(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no cluster": {Client: true},
		"a node":     {Client: true, Self: 1, Cluster: testCluster},
	} {
		if _, err := New(cfg); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("%s: %v, want KindInvalid", name, err)
		}
	}
}
