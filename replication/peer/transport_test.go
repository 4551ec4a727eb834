package peer

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
)

var testCluster = storage.ClusterID{1, 2, 3}

// fabric is what connects the nodes of a mesh.
type fabric struct {
	listen func(storage.NodeID) (net.Listener, error)
	dial   func(from storage.NodeID) func(context.Context, string) (net.Conn, error)
}

func loopback() fabric {
	return fabric{
		listen: func(storage.NodeID) (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") },
		dial:   func(storage.NodeID) func(context.Context, string) (net.Conn, error) { return nil },
	}
}

// simulated is a fabric whose hosts are called n1, n2, ...
func simulated(n *simnet.Network) fabric {
	machine := func(id storage.NodeID) *simnet.Machine { return n.Machine("n" + id.String()) }
	return fabric{
		listen: func(id storage.NodeID) (net.Listener, error) { return machine(id).Listen(":7001") },
		dial:   func(id storage.NodeID) func(context.Context, string) (net.Conn, error) { return machine(id).Dial },
	}
}

// mesh is a few transports that know one another, running.
type mesh struct {
	nodes   map[storage.NodeID]*Transport
	addrs   map[storage.NodeID]string
	stop    map[storage.NodeID]func()
	crashed map[storage.NodeID]bool // its network has ended under it: Run says so
}

// newMesh starts nodes 1 to n; change may alter a node's configuration and prepare registers its handlers.
func newMesh(t testing.TB, fab fabric, n int, change func(*Config), prepare func(*Transport)) *mesh {
	t.Helper()
	m := &mesh{nodes: make(map[storage.NodeID]*Transport), addrs: make(map[storage.NodeID]string),
		stop: make(map[storage.NodeID]func()), crashed: make(map[storage.NodeID]bool)}
	listeners := make(map[storage.NodeID]net.Listener)
	for id := storage.NodeID(1); id <= storage.NodeID(n); id++ {
		l, err := fab.listen(id)
		if err != nil {
			t.Fatal(err)
		}
		listeners[id], m.addrs[id] = l, l.Addr().String()
	}
	for id, l := range listeners {
		cfg := Config{Cluster: testCluster, Self: id, Listener: l, Dial: fab.dial(id), Resolve: m.resolve}
		if change != nil {
			change(&cfg)
		}
		m.run(t, cfg, prepare)
	}
	return m
}

func (m *mesh) run(t testing.TB, cfg Config, prepare func(*Transport)) {
	t.Helper()
	tr, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if prepare != nil {
		prepare(tr)
	}
	m.nodes[cfg.Self] = tr
	ended := make(chan error, 1)
	go func() { ended <- tr.Run(context.Background()) }()
	stop := sync.OnceFunc(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; (err != nil) != m.crashed[cfg.Self] {
			t.Errorf("Run of node %v: %v; crashed: %v", cfg.Self, err, m.crashed[cfg.Self])
		}
		m.crashed[cfg.Self] = false
		for i := range tr.self.budgets {
			if b := &tr.self.budgets[i]; b.count != 0 || b.bytes != 0 {
				t.Errorf("node %v: its own lane %d is charged for %d requests after Close", cfg.Self, i, b.count)
			}
		}
		for id, p := range tr.peers {
			for i := range p.budgets {
				if b := &p.budgets[i]; b.count != 0 || b.bytes != 0 || len(b.waiting) != 0 {
					t.Errorf("node %v: lane %d to %v is charged for %d requests after Close", cfg.Self, i, id, b.count)
				}
			}
		}
	})
	m.stop[cfg.Self] = stop
	t.Cleanup(stop)
}

func (m *mesh) resolve(id storage.NodeID) (string, bool) {
	addr, ok := m.addrs[id]
	return addr, ok
}

func echo(in *Inbound) {
	in.Retain()
	in.ReplyThen(in.Header, [][]byte{in.Payload}, in.Release)
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func BenchmarkCall(b *testing.B) {
	for _, depth := range []int{1, 32, 128} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			m := newMesh(b, loopback(), 2, nil, func(tr *Transport) { tr.Handle(methodRead, termsOf(methodRead, Concurrent), echo) })
			payload := make([]byte, storage.BlockSize)
			req := &Request{Method: methodRead, SumsInAnswer: true, Group: 1, Header: make([]byte, 64), Payload: [][]byte{payload}}
			ctx := context.Background()
			if resp, err := m.nodes[1].Call(ctx, 2, Data, req); err != nil {
				b.Fatal(err)
			} else {
				resp.Release()
			}
			b.ReportAllocs()
			b.SetBytes(2 * storage.BlockSize)
			writes := func() (n int64) {
				for _, tr := range m.nodes {
					n += tr.metrics.framesSent[Data].Load()
				}
				return n
			}
			cpuBefore, writesBefore := cpuMicros(b), writes()
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
			b.ReportMetric(float64(cpuMicros(b)-cpuBefore)/float64(b.N), "cpu-us/op") // both ends
			b.ReportMetric(float64(writes()-writesBefore)/float64(b.N), "writes/op")  // both ends
		})
	}
}

// cpuMicros is the CPU time that the process has used: unlike the wall clock it means something on a busy machine.
func cpuMicros(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return (u.Utime.Nano() + u.Stime.Nano()) / 1000
}
