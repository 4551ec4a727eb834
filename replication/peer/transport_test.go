package peer

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/storaged/storaged"
)

var testCluster = storage.ClusterID{1, 2, 3}

// mesh is a few transports that know one another, running.
type mesh struct {
	nodes map[storage.NodeID]*Transport
	addrs map[storage.NodeID]string
}

// newMesh starts nodes 1 to n over loopback TCP; prepare registers handlers and may change the configuration first.
func newMesh(t testing.TB, n int, change func(*Config), prepare func(*Transport)) *mesh {
	t.Helper()
	m := &mesh{nodes: make(map[storage.NodeID]*Transport), addrs: make(map[storage.NodeID]string)}
	listeners := make(map[storage.NodeID]net.Listener)
	for id := storage.NodeID(1); id <= storage.NodeID(n); id++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners[id], m.addrs[id] = l, l.Addr().String()
	}
	for id, l := range listeners {
		cfg := Config{Cluster: testCluster, Self: id, Listener: l, Resolve: m.resolve}
		if change != nil {
			change(&cfg)
		}
		tr, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if prepare != nil {
			prepare(tr)
		}
		m.nodes[id] = tr
		ended := make(chan error, 1)
		go func() { ended <- tr.Run(context.Background()) }()
		t.Cleanup(func() {
			if err := tr.Close(); err != nil {
				t.Error(err)
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	return m
}

func (m *mesh) resolve(id storage.NodeID) (string, bool) {
	addr, ok := m.addrs[id]
	return addr, ok
}

func echo(in *Inbound) { in.Reply(in.Header, [][]byte{in.Payload}) }

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestCallEchoes(t *testing.T) {
	m := newMesh(t, 2, nil, func(tr *Transport) {
		tr.Handle(MethodRead, Concurrent, echo)
		tr.Handle(MethodRaftAppend, Ordered, echo)
	})
	ctx := testContext(t)
	for _, to := range []storage.NodeID{1, 2} {
		for _, method := range []Method{MethodRead, MethodRaftAppend} {
			for _, n := range []int{0, 1, 4096, 1 << 20, MaxPayloadBytes} {
				half := bytes.Repeat([]byte{byte(n), 7}, n/4)
				rest := bytes.Repeat([]byte{9}, n-len(half))
				resp, err := m.nodes[1].Call(ctx, to, Data, &Request{Method: method, Group: 3, Header: []byte("head"), Payload: [][]byte{half, rest}})
				if err != nil {
					t.Fatal(err)
				}
				if string(resp.Header) != "head" || !bytes.Equal(resp.Payload, append(half, rest...)) {
					t.Fatalf("to %v method %d %d bytes: the echo differs", to, method, n)
				}
				resp.Release()
			}
		}
	}
}

func BenchmarkCall(b *testing.B) {
	for _, depth := range []int{1, 32, 128} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			m := newMesh(b, 2, nil, func(tr *Transport) { tr.Handle(MethodRead, Concurrent, echo) })
			payload := make([]byte, storage.BlockSize)
			req := &Request{Method: MethodRead, Group: 1, Header: make([]byte, 64), Payload: [][]byte{payload}}
			ctx := context.Background()
			if resp, err := m.nodes[1].Call(ctx, 2, Data, req); err != nil {
				b.Fatal(err)
			} else {
				resp.Release()
			}
			b.ReportAllocs()
			b.SetBytes(2 * storage.BlockSize)
			b.ResetTimer()
			work := make(chan struct{}, depth)
			ended := make(chan error, depth)
			for range depth {
				go func() {
					for range work {
						resp, err := m.nodes[1].Call(ctx, 2, Data, req)
						if err != nil {
							ended <- err
							return
						}
						resp.Release()
					}
					ended <- nil
				}()
			}
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			for range depth {
				if err := <-ended; err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
