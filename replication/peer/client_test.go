package peer

import (
	"crypto/tls"
	"errors"
	"testing"

	storage "github.com/storaged/storaged"
)

// lastAudience is the method of the largest of the audiences that echoAll serves; the method of each is 100 and the audience.
const lastAudience = 100 + Method(Members|Gateways|Strangers)

// echoAll answers a method for every audience, and some more, with its own number, and notes whether the sender was a client.
func echoAll(fromClient func(bool)) func(*Transport) {
	return func(t *Transport) {
		handle := func(m Method, terms Terms) {
			t.Handle(m, terms, func(in *Inbound) {
				fromClient(in.Client && in.From == 0)
				in.Reply([]byte{byte(in.Method)}, nil)
			})
		}
		for _, m := range []Method{methodRaftVote, methodPropose, methodNodeInfo} {
			handle(m, termsOf(m, Concurrent))
		}
		for m := Method(101); m <= lastAudience; m += 2 { // all have members
			handle(m, Terms{From: Audience(m - 100), Order: Concurrent})
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

// TestCallersOfTheWrongKind: a gateway, and a node without an id, call what was registered for them; every other method is refused
// before its handler sees it. The lines that keep it are in Transport.receivable.
func TestCallersOfTheWrongKind(t *testing.T) {
	m := newMesh(t, loopback(), 2, nil, echoAll(func(bool) {}))
	client := newTestClient(t, m, nil)
	stranger, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stranger.Close() })
	addr, _ := m.resolve(1)
	methods := m.nodes[1].Methods()
	if len(methods) != 3+4 {
		t.Fatalf("registered are %v", methods)
	}
	for method, from := range methods {
		for kind, call := range map[Audience]func(*Request) (*Response, error){
			Members:   func(r *Request) (*Response, error) { return m.nodes[2].Call(testContext(t), 1, Control, r) },
			Gateways:  func(r *Request) (*Response, error) { return client.Call(testContext(t), 1, Control, r) },
			Strangers: func(r *Request) (*Response, error) { return stranger.CallAddr(testContext(t), addr, r) },
		} {
			resp, err := call(&Request{Method: method})
			switch {
			case from&kind != 0 && (err != nil || resp.Header[0] != byte(method)):
				t.Errorf("method %d, caller %d: %v", method, kind, err)
			case from&kind == 0 && !errors.Is(err, storage.ErrPermission):
				t.Errorf("method %d, caller %d: %v, want KindPermission", method, kind, err)
			}
			if err == nil {
				resp.Release()
			}
		}
	}
}

// TestClientsAreKnown: the handler is told that a gateway asks.
func TestClientsAreKnown(t *testing.T) {
	m := newMesh(t, loopback(), 1, nil, echoAll(func(client bool) {
		if !client {
			t.Error("the sender is not known as a client")
		}
	}))
	resp, err := newTestClient(t, m, nil).Call(testContext(t), 1, Control, &Request{Method: methodPropose})
	if err != nil {
		t.Fatal(err)
	}
	resp.Release()
}

// TestClientsDoNotEndEachOther: all clients are node 0, and a node's newer connections end its older ones.
func TestClientsDoNotEndEachOther(t *testing.T) {
	m := newMesh(t, loopback(), 1, nil, echoAll(func(bool) {}))
	clients := []*Transport{newTestClient(t, m, nil), newTestClient(t, m, nil), newTestClient(t, m, nil)}
	var sets []*connSet
	for range 3 {
		for _, c := range clients {
			resp, err := c.Call(testContext(t), 1, Data, &Request{Method: methodPropose, Group: 1})
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
		resp, err := tr.Call(testContext(t), 1, Data, &Request{Method: methodPropose, Group: 1})
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
	resp, err := m.nodes[2].Call(testContext(t), 1, Data, &Request{Method: methodRaftVote})
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
		resp, err := tr.Call(testContext(t), 1, Data, &Request{Method: methodPropose, Group: 1})
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
