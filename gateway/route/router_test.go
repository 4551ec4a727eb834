package route

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
)

const group = storage.GroupID(7)

// scene is three nodes with real peers between them over a simulated network. Each answers as its script says; the
// router under test is node 1's.
type scene struct {
	t      *testing.T
	net    *simnet.Network
	nodes  [4]*scripted // by id; 0 is not used
	router *Router
}

// scripted is a node that answers as it is told to, as its own and for others.
type scripted struct {
	mu     sync.Mutex
	follow storage.NodeID // what Leader says; guarded by mu, as all below
	answer func() error   // nil, or an error of nil: success
	raw    []byte         // instead of the header of a success
	asked  int
}

func (s *scripted) says(err error) { s.set(func() error { return err }) }

func (s *scripted) set(answer func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// follows makes the node's own replica believe in a leader.
func (s *scripted) follows(n storage.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.follow = n
}

func (s *scripted) take() (answer func() error, raw []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return s.answer, s.raw
}

// times returns how often the node was asked since the last call.
func (s *scripted) times() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.asked
	s.asked = 0
	return n
}

func (s *scripted) reply() error {
	if answer, _ := s.take(); answer != nil {
		return answer()
	}
	return nil
}

func (s *scripted) Leader(storage.GroupID) storage.NodeID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.follow
}

func (s *scripted) Propose(context.Context, storage.GroupID, [][]byte) (op.Result, error) {
	return op.Result{}, s.reply()
}

func (s *scripted) Read(_ context.Context, _ storage.GroupID, req op.ReadRequest) (*op.ReadData, error) {
	if err := s.reply(); err != nil {
		return nil, err
	}
	return op.NewReadData(allHoles(req), nil, func() {}), nil
}

func (s *scripted) BlockStatus(_ context.Context, _ storage.GroupID, req op.StatusRequest) ([]op.Run, error) {
	return wholly(req).Runs, s.reply()
}

func (s *scripted) MappedExtents(_ context.Context, _ storage.GroupID, req op.MappedRequest) (op.MappedResponse, error) {
	return op.MappedResponse{Next: req.End}, s.reply()
}

func allHoles(req op.ReadRequest) op.ReadResponse {
	_, n := req.Blocks()
	r := op.ReadResponse{Sums: make([]uint32, n), Holes: make([]bool, n)}
	for i := range r.Holes {
		r.Holes[i] = true
	}
	return r
}

func wholly(req op.StatusRequest) op.StatusResponse {
	return op.StatusResponse{Runs: []op.Run{{Length: req.Length}}}
}

// serve answers requests of other nodes.
func (s *scripted) serve(p *peer.Transport) {
	handle := func(m peer.Method, header func(in *peer.Inbound) []byte) {
		p.Handle(m, peer.Terms{From: peer.Members | peer.Gateways, Order: peer.Concurrent, SumsInRequests: m == op.MethodPropose, SumsInAnswers: m == op.MethodRead}, func(in *peer.Inbound) {
			answer, raw := s.take()
			if answer != nil {
				if err := answer(); err != nil {
					in.ReplyError(err)
					return
				}
			}
			if raw == nil {
				raw = header(in)
			}
			in.Reply(raw, nil)
		})
	}
	handle(op.MethodPropose, func(*peer.Inbound) []byte { return new(op.Result).Append(nil) })
	handle(op.MethodRead, func(in *peer.Inbound) []byte {
		req, err := op.DecodeReadRequest(in.Header)
		if err != nil {
			return nil
		}
		r := allHoles(req)
		return r.Append(nil)
	})
	handle(op.MethodStatus, func(in *peer.Inbound) []byte {
		req, err := op.DecodeStatusRequest(in.Header)
		if err != nil {
			return nil
		}
		r := wholly(req)
		return r.Append(nil)
	})
}

func nodeAddr(id storage.NodeID) string { return fmt.Sprintf("n%d", id) }

// play runs a test on a scene in virtual time.
func play(t *testing.T, do func(t *testing.T, s *scene)) {
	synctest.Test(t, func(t *testing.T) {
		s := &scene{t: t, net: simnet.New(simnet.Config{Seed: 1, Link: simnet.Link{Delay: time.Millisecond}})}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for id := storage.NodeID(1); id <= 3; id++ {
			s.nodes[id] = &scripted{}
			p := s.start(id)
			s.nodes[id].serve(p)
			running.Go(func() { _ = p.Run(ctx) })
			if id == 1 {
				s.router = New(Config{Self: 1, HeartbeatTimeout: 500 * time.Millisecond, Own: s.nodes[1], Peers: p,
					Replicas: func(storage.GroupID) []storage.NodeID { return []storage.NodeID{1, 2, 3} }})
			}
		}
		do(t, s)
		cancel()
		running.Wait()
	})
}

func (s *scene) start(id storage.NodeID) *peer.Transport {
	s.t.Helper()
	machine := s.net.Machine(nodeAddr(id))
	l, err := machine.Listen(nodeAddr(id) + ":1")
	if err != nil {
		s.t.Fatal(err)
	}
	p, err := peer.New(peer.Config{Cluster: storage.ClusterID{1}, Self: id, Listener: l,
		Dial:    func(ctx context.Context, addr string) (net.Conn, error) { return machine.Dial(ctx, addr) },
		Resolve: func(id storage.NodeID) (string, bool) { return nodeAddr(id) + ":1", id <= 3 }})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// propose makes one attempt, for a second at most.
func (s *scene) propose(g storage.GroupID) error {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
	defer cancel()
	_, err := s.router.Propose(ctx, g, [][]byte{{1}})
	return err
}

// until repeats attempts until one succeeds, and says how many it took.
func (s *scene) until(most int) int {
	s.t.Helper()
	var err error
	for n := 1; n <= most; n++ {
		if err = s.propose(group); err == nil {
			return n
		}
	}
	s.t.Fatalf("no success in %d attempts: %v", most, err)
	return 0
}

func (s *scene) wantAsked(what string, one, two, three int) {
	s.t.Helper()
	if a, b, c := s.nodes[1].times(), s.nodes[2].times(), s.nodes[3].times(); a != one || b != two || c != three {
		s.t.Errorf("%s: the nodes were asked %d, %d and %d times, want %d, %d and %d", what, a, b, c, one, two, three)
	}
}

// notLeader is what a replica answers that follows another; 0: it knows of none.
func notLeader(leader storage.NodeID) error {
	return storage.E("propose", storage.KindNotLeader, "group 7", &op.NotLeaderError{Group: group, Leader: leader})
}

// TestFollowsTheHint: whoever does not lead says who does; that node is asked next, and then at once.
func TestFollowsTheHint(t *testing.T) {
	play(t, func(t *testing.T, s *scene) {
		s.nodes[1].says(notLeader(3))
		s.nodes[2].says(notLeader(3))
		if n := s.until(2); n != 2 {
			t.Errorf("%d attempts, want one for the hint and one at the leader", n)
		}
		s.wantAsked("hint", 1, 0, 1)
		s.until(1)
		s.wantAsked("known", 0, 0, 1)
		s.nodes[3].says(notLeader(3)) // it has just lost it, and does not know yet
		s.nodes[2].says(nil)
		s.until(5)
	})
}

// TestAsksOwnReplicaFirst: what this node's replica follows needs no question.
func TestAsksOwnReplicaFirst(t *testing.T) {
	play(t, func(t *testing.T, s *scene) {
		s.nodes[1].follows(2)
		s.until(1)
		s.wantAsked("own replica", 0, 1, 0)
	})
}

// TestOwnReplicaThatIsNotNamed: this node's replica leads by itself and the catalog does not name it, as after a recovery that went on with another one. It is
// not asked.
//
// Guards I7: the look at Replicas in target.
func TestOwnReplicaThatIsNotNamed(t *testing.T) {
	play(t, func(t *testing.T, s *scene) {
		s.router.cfg.Replicas = func(storage.GroupID) []storage.NodeID { return []storage.NodeID{3} }
		s.nodes[1].follows(1)
		s.until(1)
		s.wantAsked("not named", 0, 0, 1)
	})
}

// TestLocalCalls: this node's own replica is asked without the network.
func TestLocalCalls(t *testing.T) {
	play(t, func(t *testing.T, s *scene) {
		s.net.Isolate(nodeAddr(1))
		s.nodes[1].follows(1)
		s.until(1)
		s.wantAsked("local", 1, 0, 0)
	})
}

// TestEachReplicaInTurn: without any hint every replica is asked, none twice before all others.
func TestEachReplicaInTurn(t *testing.T) {
	play(t, func(t *testing.T, s *scene) {
		for _, n := range s.nodes[1:] {
			n.says(notLeader(0))
		}
		for range 6 {
			if err := s.propose(group); storage.KindOf(err) != storage.KindNotLeader {
				t.Fatal(err)
			}
		}
		s.wantAsked("in turn", 2, 2, 2)
	})
}

// TestSilentNodeIsLeftOut: a node that leaves a request unanswered is not asked again for a while, although the others
// still name it, and its leaderships of other groups are forgotten with it. After that it is asked like others.
func TestSilentNodeIsLeftOut(t *testing.T) {
	play(t, func(t *testing.T, s *scene) {
		other := group + 1
		s.nodes[1].says(notLeader(3))
		s.nodes[2].says(notLeader(3))
		s.until(2)
		s.nodes[1].follows(3)
		if err := s.propose(other); err != nil {
			t.Fatal(err)
		}
		s.net.Isolate(nodeAddr(3))
		began := time.Now()
		if err := s.propose(group); !errors.Is(err, storage.ErrUnavailable) && !errors.Is(err, storage.ErrCanceled) {
			t.Fatalf("a node that is cut off: %v", err)
		}
		s.wantAsked("before", 1, 0, 2)
		for range 4 {
			if err := s.propose(group); storage.KindOf(err) != storage.KindNotLeader {
				t.Fatal(err)
			}
			if err := s.propose(other); storage.KindOf(err) != storage.KindNotLeader {
				t.Fatalf("the other group: %v", err)
			}
		}
		s.wantAsked("silent", 4, 4, 0)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it took %v: a silent node was waited for again", took)
		}
		s.net.Rejoin(nodeAddr(3))
		time.Sleep(silentFor)
		s.until(3)
	})
}

// TestSlowLeaderIsAskedAgain: a leader that left one request unanswered, and that the others still name when they would
// have forgotten it had it died, is asked again at once. The line is doubted's: without the sum there a volume stands still
// for three seconds.
func TestSlowLeaderIsAskedAgain(t *testing.T) {
	play(t, func(t *testing.T, s *scene) {
		s.nodes[1].says(notLeader(3))
		s.nodes[2].says(notLeader(3))
		s.nodes[1].follows(3)
		s.until(1)
		slow := make(chan struct{})
		s.nodes[3].set(func() error { <-slow; return nil })
		if err := s.propose(group); err == nil {
			t.Fatal("an answer that never came")
		}
		close(slow)
		silent := time.Now()
		s.wantAsked("before", 0, 0, 2)
		for s.propose(group) != nil {
			time.Sleep(20 * time.Millisecond) // as a gateway pauses
		}
		if took := time.Since(silent); took < 900*time.Millisecond || took > 1200*time.Millisecond {
			t.Errorf("asked again after %v, want two heartbeat timeouts", took)
		}
	})
}

// TestAllSilent: when nobody answers, somebody is asked all the same.
func TestAllSilent(t *testing.T) {
	play(t, func(t *testing.T, s *scene) {
		s.nodes[1].says(notLeader(0))
		for _, n := range []storage.NodeID{2, 3} {
			s.net.Isolate(nodeAddr(n))
		}
		for range 4 {
			_ = s.propose(group)
		}
		s.net.HealAll()
		s.nodes[1].says(notLeader(2))
		time.Sleep(silentFor)
		s.until(5)
	})
}

// TestCallerWhoLeavesTeachesNothing: a request whose caller gives up says nothing about the node that was working on it.
// The line is the one that asks for context.Canceled in learn: without it a volume that is closed while it is busy takes
// its leader away from all other volumes for seconds.
func TestCallerWhoLeavesTeachesNothing(t *testing.T) {
	play(t, func(t *testing.T, s *scene) {
		s.nodes[1].follows(2)
		s.until(1)
		s.wantAsked("before", 0, 1, 0)
		busy := make(chan struct{})
		s.nodes[2].set(func() error { <-busy; return nil })
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error)
		go func() {
			_, err := s.router.Propose(ctx, group, [][]byte{{1}})
			left <- err
		}()
		synctest.Wait()
		time.Sleep(10 * time.Millisecond)
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Fatalf("a caller who left got %v", err)
		}
		close(busy)
		s.until(1)
		s.wantAsked("after", 0, 2, 0)
	})
}

// TestUnreadableAnswerIsNoRefusal (I3): an answer that cannot be read is KindInternal, never a kind that says that nothing
// was done. The line is unreadable's.
func TestUnreadableAnswerIsNoRefusal(t *testing.T) {
	play(t, func(t *testing.T, s *scene) {
		s.nodes[1].follows(2)
		s.nodes[2].raw = []byte{1, 2, 3}
		ctx := t.Context()
		_, err := s.router.Propose(ctx, group, [][]byte{{1}})
		if storage.KindOf(err) != storage.KindInternal {
			t.Errorf("propose: %v", err)
		}
		_, err = s.router.Read(ctx, group, op.ReadRequest{Volume: 1, Length: storage.BlockSize, Epoch: op.HeadEpoch})
		if storage.KindOf(err) != storage.KindInternal {
			t.Errorf("read: %v", err)
		}
		_, err = s.router.Status(ctx, group, op.StatusRequest{ReadRequest: op.ReadRequest{Volume: 1, Length: storage.BlockSize, Epoch: op.HeadEpoch}})
		if storage.KindOf(err) != storage.KindInternal {
			t.Errorf("status: %v", err)
		}
	})
}

// TestReadsAndStatusTravel: reads and block status give the same here and from another node.
func TestReadsAndStatusTravel(t *testing.T) {
	play(t, func(t *testing.T, s *scene) {
		for _, at := range []storage.NodeID{1, 2} {
			g := group + storage.GroupID(at)
			s.nodes[1].follows(at)
			data, err := s.router.Read(t.Context(), g, op.ReadRequest{Volume: 1, Length: 2 * storage.BlockSize, Epoch: op.HeadEpoch})
			if err != nil {
				t.Fatalf("node %d: %v", at, err)
			}
			data.Release()
			runs, err := s.router.Status(t.Context(), g, op.StatusRequest{ReadRequest: op.ReadRequest{Volume: 1, Length: 2 * storage.BlockSize, Epoch: op.HeadEpoch}})
			if err != nil || len(runs) != 1 || runs[0].Length != 2*storage.BlockSize {
				t.Errorf("node %d: %v %v", at, runs, err)
			}
		}
		s.wantAsked("each", 2, 2, 0)
	})
}

// TestRefusalsKeepTheLeader: an answer of the leader that refuses the request does not make it less of a leader; one that
// says that its disk has failed does.
func TestRefusalsKeepTheLeader(t *testing.T) {
	play(t, func(t *testing.T, s *scene) {
		s.nodes[1].follows(2)
		s.until(1)
		s.nodes[1].follows(3)
		for _, kind := range []storage.Kind{storage.KindNoSpace, storage.KindInvalid} {
			s.nodes[2].says(storage.E("propose", kind, "group 7", nil))
			if err := s.propose(group); storage.KindOf(err) != kind {
				t.Fatal(err)
			}
		}
		s.wantAsked("refusals", 0, 3, 0)
		s.nodes[2].says(storage.E("propose", storage.KindIO, "group 7", nil))
		if err := s.propose(group); storage.KindOf(err) != storage.KindIO {
			t.Fatal(err)
		}
		s.until(1)
		s.wantAsked("failed disk", 0, 1, 1)
	})
}

// TestNoReplicas: for a group that the catalog does not know, this node says what it has to say.
func TestNoReplicas(t *testing.T) {
	play(t, func(t *testing.T, s *scene) {
		s.router.cfg.Replicas = func(storage.GroupID) []storage.NodeID { return nil }
		s.nodes[1].says(storage.E("find replica", storage.KindNotFound, "group 9", nil))
		if err := s.propose(9); !errors.Is(err, storage.ErrNotFound) {
			t.Fatal(err)
		}
		s.wantAsked("unknown group", 1, 0, 0)
	})
}

// TestHeartbeatTimeoutIsLearned: a node was silent, and a replica names it as the leader two heartbeat timeouts later. It is
// asked again as soon as the cluster's timeout is known; until the timeout is known, only after silentFor.
func TestHeartbeatTimeoutIsLearned(t *testing.T) {
	r, now := New(Config{}), time.Now()
	r.silentUntil[2] = now.Add(silentFor)
	later := now.Add(1500 * time.Millisecond)
	if !r.doubted(2, later) {
		t.Error("a silent node is asked although it is not known how long a dead leader is named")
	}
	r.SetHeartbeatTimeout(0) // not known
	if !r.doubted(2, later) {
		t.Error("no timeout was taken for one")
	}
	r.SetHeartbeatTimeout(500 * time.Millisecond)
	if r.doubted(2, later) || !r.doubted(2, now.Add(900*time.Millisecond)) {
		t.Error("the cluster's timeout does not decide")
	}
}
