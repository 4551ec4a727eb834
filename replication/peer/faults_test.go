package peer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
)

// The tests of this file run in bubbles of virtual time; a goroutine that Close leaves behind fails the bubble.

var lan = simnet.Config{Link: simnet.Link{Delay: 100 * time.Microsecond}}

// noticed is the longest time after which a silent peer is given up with default settings.
const noticed = 2 * time.Second

func mustCall(t testing.TB, tr *Transport, to storage.NodeID, lane Lane, req *Request) {
	t.Helper()
	resp, err := tr.Call(context.Background(), to, lane, req)
	if err != nil {
		t.Fatalf("call of node %v on %v: %v", to, lane, err)
	}
	resp.Release()
}

func within(t testing.TB, what string, limit time.Duration, do func()) {
	t.Helper()
	began := time.Now()
	do()
	if d := time.Since(began); d > limit {
		t.Errorf("%s took %v, want at most %v", what, d, limit)
	}
}

func sentError(err error) (*SendError, bool) {
	var e *SendError
	return e, errors.Is(err, storage.ErrUnavailable) && errors.As(err, &e)
}

func TestBulkDoesNotDelayControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := simnet.New(simnet.Config{Link: simnet.Link{Delay: time.Millisecond, BytesPerSecond: 1 << 20}})
		m := newMesh(t, simulated(slow), 2, nil, conformHandlers)
		mustCall(t, m.nodes[1], 2, Control, &Request{Method: methodEcho})
		ended := make(chan error, 1)
		m.nodes[1].Go(2, Bulk, &Request{Method: methodEcho, Payload: [][]byte{make([]byte, MaxPayloadBytes)}},
			func(r *Response, err error) {
				if err == nil {
					r.Release()
				}
				ended <- err
			})
		for range 100 {
			for _, lane := range []Lane{Control, Data} {
				within(t, "a call beside a bulk transfer", 3*time.Millisecond, func() {
					mustCall(t, m.nodes[1], 2, lane, &Request{Method: methodEcho, Payload: [][]byte{make([]byte, 100)}})
				})
			}
			<-time.After(10 * time.Millisecond)
		}
		select {
		case err := <-ended:
			t.Errorf("the bulk transfer was over too early: %v", err)
		default:
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestFullGroupIsRefusedAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		open := make(chan struct{})
		m := newMesh(t, simulated(simnet.New(lan)), 2, func(c *Config) { c.MaxGroupQueueBytes = 10_000 }, func(tr *Transport) {
			conformHandlers(tr)
			tr.Handle(methodRaftAppend, termsOf(methodRaftAppend, Ordered), func(in *Inbound) {
				if in.Group == 1 {
					<-open
				}
				in.Reply(nil, nil)
			})
		})
		for _, to := range []storage.NodeID{1, 2} {
			open = make(chan struct{})
			mustCall(t, m.nodes[1], to, Data, &Request{Method: methodEcho})
			results := make(chan error, 5)
			req := func(g storage.GroupID) *Request {
				return &Request{Method: methodRaftAppend, Group: g, Payload: [][]byte{make([]byte, 4096)}}
			}
			for range 5 {
				m.nodes[1].Go(to, Data, req(1), func(_ *Response, err error) { results <- err })
			}
			for range 3 { // two fit
				if err := <-results; !errors.Is(err, storage.ErrUnavailable) {
					t.Errorf("to %v: a request over the group's limit: %v", to, err)
				}
			}
			within(t, "a call of another group", time.Millisecond, func() { mustCall(t, m.nodes[1], to, Data, req(2)) })
			close(open)
			for range 2 {
				if err := <-results; err != nil {
					t.Errorf("to %v: a request within the limit: %v", to, err)
				}
			}
			mustCall(t, m.nodes[1], to, Data, req(1))
		}
	})
}

func TestInboundLimits(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"number": func(c *Config) { c.MaxUnanswered = 4 },
		"bytes":  func(c *Config) { c.MaxInboundBytes = 4 * (frameHeaderBytes + 1000) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t, simulated(simnet.New(lan)), 2, change, conformHandlers)
				mustCall(t, m.nodes[1], 2, Control, &Request{Method: methodEcho})
				refused := make(chan error, 10)
				for range 10 {
					m.nodes[1].Go(2, Data, &Request{Method: methodHang, Payload: [][]byte{make([]byte, 1000)}},
						func(_ *Response, err error) { refused <- err })
				}
				for range 6 {
					var remote *RemoteError
					if err := <-refused; !errors.Is(err, storage.ErrUnavailable) || !errors.As(err, &remote) {
						t.Errorf("over the limit: %v", err)
					}
				}
				mustCall(t, m.nodes[1], 2, Control, &Request{Method: methodEcho}) // other lanes are not concerned
			})
		})
	}
}

// recorder remembers the connections it dials.
type recorder struct {
	dial  func(context.Context, string) (net.Conn, error)
	mu    sync.Mutex
	conns []net.Conn
}

func (r *recorder) Dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := r.dial(ctx, addr)
	if err == nil {
		r.mu.Lock()
		r.conns = append(r.conns, c)
		r.mu.Unlock()
	}
	return c, err
}

func TestLanesDieTogether(t *testing.T) {
	for lane := range Lane(laneCount) {
		t.Run(lane.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rec := &recorder{}
				ended := make(chan struct{}, laneCount)
				m := newMesh(t, simulated(simnet.New(lan)), 2, func(c *Config) {
					if c.Self == 1 {
						rec.dial, c.Dial = c.Dial, rec.Dial
					}
				}, func(tr *Transport) {
					conformHandlers(tr)
					tr.Handle(methodPropose, termsOf(methodPropose, Concurrent), func(in *Inbound) {
						<-in.Context().Done()
						ended <- struct{}{}
						in.Reply(nil, nil)
					})
				})
				mustCall(t, m.nodes[1], 2, Control, &Request{Method: methodEcho})
				results := make(chan error, laneCount)
				for l := range Lane(laneCount) {
					m.nodes[1].Go(2, l, &Request{Method: methodPropose}, func(_ *Response, err error) { results <- err })
				}
				<-time.After(time.Millisecond) // all are being handled
				rec.conns[lane].Close()
				within(t, "failing the requests of all lanes", 10*time.Millisecond, func() {
					for range laneCount {
						if e, ok := sentError(<-results); !ok || !e.Sent {
							t.Errorf("outstanding request ended with %v", e)
						}
						<-ended // the other side has noticed too
					}
				})
				mustCall(t, m.nodes[1], 2, Control, &Request{Method: methodEcho}) // a new set
				if len(rec.conns) != 2*laneCount {
					t.Errorf("%d connections were made, want two sets of three", len(rec.conns))
				}
			})
		})
	}
}

// TestFrozenPeer: a peer that stops (SIGSTOP) is noticed in time, and what it may cost until then is bounded.
func TestFrozenPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		const limit = 1 << 20
		m := newMesh(t, simulated(network), 2, func(c *Config) { c.MaxInFlightBytes = limit }, conformHandlers)
		one := m.nodes[1]
		mustCall(t, one, 2, Data, &Request{Method: methodEcho})
		network.Freeze("n2")
		began := time.Now()
		var outstanding, unsent, most atomic.Int64
		payload := [][]byte{make([]byte, 64<<10)}
		for range 1000 { // one second's load
			outstanding.Add(1)
			one.Go(2, Data, &Request{Method: methodEcho, Payload: payload}, func(_ *Response, err error) {
				outstanding.Add(-1)
				if e, ok := sentError(err); !ok {
					t.Errorf("ended with %v", err)
				} else if !e.Sent && errors.Is(err, errSilent) { // was still queued when the set ended
					unsent.Add(1)
				}
			})
			<-time.After(time.Millisecond)
			most.Store(max(most.Load(), outstanding.Load()))
		}
		if n := most.Load() * 64 << 10; n > limit {
			t.Errorf("%d bytes were outstanding, at most %d are allowed", n, limit)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		if _, err := one.Call(ctx, 2, Data, &Request{Method: methodEcho, Payload: payload}); !errors.Is(err, storage.ErrCanceled) {
			t.Errorf("a call over the limit: %v, want it to wait for its context", err)
		}
		cancel()
		if _, err := one.Call(context.Background(), 2, Control, &Request{Method: methodEcho}); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("a call of a frozen peer: %v", err)
		}
		if d := time.Since(began); d > noticed {
			t.Errorf("a frozen peer was noticed after %v", d)
		}
		synctest.Wait()
		if outstanding.Load() != 0 || unsent.Load() == 0 {
			t.Errorf("%d requests have not ended, %d were not sent", outstanding.Load(), unsent.Load())
		}
		network.Thaw("n2")
		<-time.After(2 * time.Second)
		mustCall(t, one, 2, Data, &Request{Method: methodEcho})
	})
}

// TestLongPath: a peer that is far away is connected to, and stays so: what it takes to open all lanes does not count as silence, for only
// then the dialling side begins to say that it is there.
func TestLongPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, simulated(simnet.New(simnet.Config{Link: simnet.Link{Delay: 220 * time.Millisecond}})), 2, nil, conformHandlers)
		for range 40 {
			mustCall(t, m.nodes[1], 2, Bulk, &Request{Method: methodEcho})
			<-time.After(137 * time.Millisecond)
		}
		if n := len(m.nodes[2].inSets); n != 1 {
			t.Errorf("%d sets are open", n)
		}
	})
}

func TestSilentPartition(t *testing.T) {
	for name, cut := range map[string]func(*simnet.Network){
		"there": func(n *simnet.Network) { n.Cut("n1", "n2") },
		"back":  func(n *simnet.Network) { n.Cut("n2", "n1") },
		"both":  func(n *simnet.Network) { n.CutBoth("n1", "n2") },
		"power": func(n *simnet.Network) { n.Isolate("n2") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := simnet.New(lan)
				m := newMesh(t, simulated(network), 3, nil, conformHandlers)
				for _, from := range []storage.NodeID{1, 2, 3} {
					for _, to := range []storage.NodeID{1, 2, 3} {
						mustCall(t, m.nodes[from], to, Data, &Request{Method: methodEcho})
					}
				}
				cut(network)
				within(t, "noticing the partition", noticed, func() {
					var wg sync.WaitGroup // both at once: a call after the notice is an attempt to connect
					for _, way := range [][2]storage.NodeID{{1, 2}, {2, 1}} {
						wg.Go(func() {
							if _, err := m.nodes[way[0]].Call(context.Background(), way[1], Data, &Request{Method: methodEcho}); !errors.Is(err, storage.ErrUnavailable) {
								t.Errorf("%v -> %v: %v", way[0], way[1], err)
							}
						})
					}
					wg.Wait()
				})
				mustCall(t, m.nodes[1], 3, Data, &Request{Method: methodEcho})
				within(t, "an attempt to connect", 4*time.Second, func() {
					if _, err := m.nodes[1].Call(context.Background(), 2, Data, &Request{Method: methodEcho}); !errors.Is(err, storage.ErrUnavailable) {
						t.Errorf("a call into the partition: %v", err)
					}
				})
				synctest.Wait()
				if n := len(m.nodes[2].inSets); name != "power" && n != 1 || name == "power" && n != 0 {
					t.Errorf("node 2 still holds %d accepted sets", n)
				}
				network.HealAll()
				<-time.After(time.Second) // the longest pause between attempts
				mustCall(t, m.nodes[1], 2, Data, &Request{Method: methodEcho})
				mustCall(t, m.nodes[2], 1, Data, &Request{Method: methodEcho})
			})
		})
	}
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		var attempts, running atomic.Int64
		m := newMesh(t, simulated(network), 1, func(c *Config) {
			dial := c.Dial
			c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
				attempts.Add(1)
				if running.Add(1) > 1 {
					t.Error("two attempts to connect to a peer at once")
				}
				defer running.Add(-1)
				return dial(ctx, addr)
			}
		}, conformHandlers)
		network.Machine("n2")
		m.addrs[2] = "n2:7001" // nobody listens
		for range 10_000 {
			m.nodes[1].Go(2, Data, &Request{Method: methodEcho}, func(_ *Response, err error) {
				if e, ok := sentError(err); !ok || e.Sent {
					t.Errorf("ended with %v", err)
				}
			})
			<-time.After(time.Millisecond)
		}
		if n := attempts.Load(); n < 10 || n > 30 { // at most one a second and the first few, twice that with jitter
			t.Errorf("%d attempts in 10 s", n)
		}
		_, err := m.nodes[1].Call(context.Background(), 2, Data, &Request{Method: methodEcho})
		if e, ok := sentError(err); !ok || e.Sent || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("a call between attempts: %v", err)
		}
	})
}

// TestPeerThatConnectsIsReachedAtOnce: without heardOf (tried) a node that is back and has connected itself is reached up
// to a second later, after the pause that its absence had led to.
func TestPeerThatConnectsIsReachedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		m := newMesh(t, simulated(network), 1, nil, conformHandlers)
		m.addrs[2] = "n2:7001"
		network.Machine("n2")
		failed := func() bool {
			_, err := m.nodes[1].Call(t.Context(), 2, Data, &Request{Method: methodEcho})
			return err != nil
		}
		for range 100 { // nobody listens: the pause grows
			failed()
			<-time.After(100 * time.Millisecond)
		}
		for !strings.Contains(m.nodes[1].peer(2).lastErr.Error(), "refused") || time.Until(m.nodes[1].peer(2).retryAt) < 300*time.Millisecond {
			failed()
			<-time.After(time.Millisecond)
		}
		l, err := network.Machine("n2").Listen(":7001")
		if err != nil {
			t.Fatal(err)
		}
		m.run(t, Config{Cluster: testCluster, Self: 2, Listener: l, Dial: network.Machine("n2").Dial, Resolve: m.resolve}, conformHandlers)
		mustCall(t, m.nodes[2], 1, Data, &Request{Method: methodEcho})
		<-time.After(20 * time.Millisecond)
		if !m.nodes[1].Connected(2) {
			t.Error("the node is not reached although it has connected")
		}
	})
}

// TestRestartedPeer: a node that crashed and came back is reached again, and its old connections are given up.
func TestRestartedPeer(t *testing.T) {
	for name, end := range map[string]func(*simnet.Network){
		"crash":     func(n *simnet.Network) { n.Crash("n2") },
		"power off": func(n *simnet.Network) { n.PowerOff("n2") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := simnet.New(lan)
				m := newMesh(t, simulated(network), 2, nil, conformHandlers)
				mustCall(t, m.nodes[1], 2, Data, &Request{Method: methodEcho})
				mustCall(t, m.nodes[2], 1, Data, &Request{Method: methodEcho})
				end(network)
				synctest.Wait() // it is noticed before anybody calls Close
				m.crashed[2] = true
				m.stop[2]()
				l, err := network.Machine("n2").Listen(":7001")
				if err != nil {
					t.Fatal(err)
				}
				m.run(t, Config{Cluster: testCluster, Self: 2, Listener: l, Dial: network.Machine("n2").Dial, Resolve: m.resolve}, conformHandlers)
				mustCall(t, m.nodes[2], 1, Data, &Request{Method: methodEcho})
				synctest.Wait()
				if n := len(m.nodes[1].inSets); n != 1 {
					t.Errorf("%d sets of the restarted node", n)
				}
				<-time.After(10 * time.Millisecond)
				mustCall(t, m.nodes[1], 2, Data, &Request{Method: methodEcho})
			})
		})
	}
}

func TestForeigners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		m := newMesh(t, simulated(network), 2, nil, conformHandlers)
		other := storage.ClusterID{7}
		for _, c := range []struct {
			name string
			cfg  Config
			to   storage.NodeID
			addr string
			text string
		}{
			{"other cluster", Config{Cluster: other, Self: 3}, 2, m.addrs[2],
				"the peer belongs to cluster " + testCluster.String() + ", this node to cluster " + other.String()},
			{"other node", Config{Cluster: testCluster, Self: 3}, 2, m.addrs[1], "node 1 answers at the address of node 2 (called by node 3)"},
			{"our own address", Config{Cluster: testCluster, Self: 2}, 1, m.addrs[2], "node 2 answers at the address of node 1 (called by node 2)"},
		} {
			c.cfg.Dial = network.Machine("x").Dial
			c.cfg.Resolve = func(storage.NodeID) (string, bool) { return c.addr, true }
			tr, err := New(c.cfg)
			if err != nil {
				t.Fatal(err)
			}
			_, err = tr.Call(context.Background(), c.to, Data, &Request{Method: methodEcho})
			if e, ok := sentError(err); !ok || e.Sent || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v\nwant: %s", c.name, err, c.text)
			}
			if k := remoteKind(err); k != storage.KindPermission {
				t.Errorf("%s: the cause is %v", c.name, k)
			}
			tr.Close()
		}
	})
}

// TestEndsExactlyOnce runs a load through resets, cuts, freezes and restarts: every request ends once, answers
// belong to their requests, and nobody reads a payload after its request ended.
func TestEndsExactlyOnce(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { endsExactlyOnce(t, seed) })
		})
	}
}

func endsExactlyOnce(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	network := simnet.New(simnet.Config{Seed: seed, BufferBytes: 32 << 10,
		Link: simnet.Link{Delay: 200 * time.Microsecond, Jitter: time.Millisecond}})
	m := newMesh(t, simulated(network), 3, func(c *Config) {
		c.MaxInFlightBytes, c.MaxInFlight, c.MaxReplyBytes = 96<<10, 40, 64<<10
	}, conformHandlers)
	var answered, failed, ended, begun atomic.Int64
	var load sync.WaitGroup
	stop := make(chan struct{})
	for worker := range 12 {
		from, to := storage.NodeID(worker%3+1), storage.NodeID(worker/3%3+1)
		random := rand.New(rand.NewPCG(seed, uint64(worker)))
		load.Go(func() {
			for n := uint64(worker) << 32; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(random.IntN(20_000)) * time.Microsecond):
				}
				header := binary.LittleEndian.AppendUint64(nil, n)
				payload := bytes.Repeat([]byte{byte(n) | 1}, random.IntN(8_000))
				req := &Request{Method: methodEcho + Method(random.IntN(2)), Group: storage.GroupID(n % 3), Header: header, Payload: [][]byte{payload}}
				begun.Add(1)
				check := func(r *Response, err error) {
					ended.Add(1)
					if err != nil {
						failed.Add(1)
					} else {
						answered.Add(1)
						if binary.LittleEndian.Uint64(r.Header) != n || len(r.Payload) != len(payload) || bytes.Count(r.Payload, []byte{byte(n) | 1}) != len(payload) {
							t.Errorf("the answer to request %d is another's", n)
						}
						r.Release()
					}
					clear(payload) // it is ours again: the race detector watches
				}
				if random.IntN(2) == 0 {
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(random.IntN(40))*time.Millisecond)
					check(m.nodes[from].Call(ctx, to, Lane(n%laneCount), req))
					cancel()
				} else {
					m.nodes[from].Go(to, Lane(n%laneCount), req, check)
				}
			}
		})
	}
	for range 20 {
		a, b := fmt.Sprintf("n%d", random.IntN(3)+1), fmt.Sprintf("n%d", random.IntN(3)+1)
		pause := time.Duration(random.IntN(400)) * time.Millisecond
		switch random.IntN(5) {
		case 0:
			network.Reset(a, b)
		case 1:
			network.Cut(a, b)
		case 2:
			network.Freeze(a)
		case 3:
			network.Isolate(a)
			pause *= 8
		}
		<-time.After(pause)
		network.HealAll()
		network.Thaw(a)
		<-time.After(pause / 2)
	}
	close(stop)
	load.Wait()
	for id := range m.stop {
		m.stop[id]()
	}
	if begun.Load() != ended.Load() || answered.Load() == 0 || failed.Load() == 0 {
		t.Errorf("seed %d: %d requests began, %d ended, %d answered, %d failed", seed, begun.Load(), ended.Load(), answered.Load(), failed.Load())
	}
}
