package peer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/simnet"
)

// process starts a transport that is node id at machine, and returns it with what ends it.
func process(t *testing.T, network *simnet.Network, machine string, id storage.NodeID, resolve map[storage.NodeID]string) (*Transport, func()) {
	t.Helper()
	l, err := network.Machine(machine).Listen(":1")
	if err != nil {
		t.Fatal(err)
	}
	tr, err := New(Config{Cluster: testCluster, Self: id, Listener: l, Dial: network.Machine(machine).Dial, Speaker: Speaker{Address: machine + ":1", Process: machine + "/1"},
		Resolve: func(n storage.NodeID) (string, bool) { a, ok := resolve[n]; return a, ok }})
	if err != nil {
		t.Fatal(err)
	}
	conformHandlers(tr)
	ended := make(chan error, 1)
	go func() { ended <- tr.Run(context.Background()) }()
	return tr, func() {
		if err := errors.Join(tr.Close(), <-ended); err != nil {
			t.Error(err)
		}
	}
}

// reaches calls again and again until a node answers, and returns after how long.
func reaches(t *testing.T, tr *Transport, to storage.NodeID, within time.Duration) time.Duration {
	t.Helper()
	begun := time.Now()
	for {
		resp, err := tr.Call(context.Background(), to, Control, &Request{Method: methodEcho})
		if err == nil {
			resp.Release()
			return time.Since(begun)
		}
		if time.Since(begun) > within {
			t.Fatalf("node %v is not reached after %v: %v", to, within, err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// TestMovedPeer: a node that greets from another address than recorded is reached there, and a lie of a third node about where it is
// costs attempts only.
func TestMovedPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		one, end := process(t, network, "one", 1, map[storage.NodeID]string{2: "nowhere:1"})
		defer end()
		one.Told(map[storage.NodeID]Place{2: {"elsewhere:1", ^uint64(0)}})
		two, end := process(t, network, "two", 2, map[storage.NodeID]string{1: "one:1"})
		defer end()
		reaches(t, two, 1, time.Second)
		if took := reaches(t, one, 2, time.Second); took > 100*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		if p := one.Places()[2]; p.Address != "two:1" {
			t.Errorf("node 2 is at %v", p)
		}
		// Only told: by the address that third nodes name, if none better is known.
		three, end := process(t, network, "three", 3, nil)
		defer end()
		three.Told(map[storage.NodeID]Place{2: {"two:1", 5}})
		three.Told(map[storage.NodeID]Place{2: {"gone:1", 4}})
		reaches(t, three, 2, time.Second)
	})
}

// TestSecondProcess: the process of a node that is heard first is the node. A second one is refused and silent, in both directions;
// it is the node soon after the first has ended, or fallen silent.
func TestSecondProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		at := map[storage.NodeID]string{1: "one:1", 2: "first:1"}
		one, end := process(t, network, "one", 1, at)
		defer end()
		first, endFirst := process(t, network, "first", 2, at)
		reaches(t, first, 1, time.Second)
		second, endSecond := process(t, network, "second", 2, at)
		defer endSecond()
		for begun := time.Now(); time.Since(begun) < 10*time.Second; <-time.After(50 * time.Millisecond) {
			if _, err := second.Call(context.Background(), 1, Control, &Request{Method: methodEcho}); err == nil {
				t.Fatal("a second process was taken for the node")
			}
			if resp, err := first.Call(context.Background(), 1, Control, &Request{Method: methodEcho}); err != nil {
				t.Fatalf("the first process: %v", err)
			} else {
				resp.Release()
			}
		}
		if e := second.Second(); e == nil || e.Other.Address != "first:1" || e.Other.Process != "first/1" {
			t.Errorf("the second knows of %+v", e)
		}
		if w := one.Look(2); w.Second == nil || w.Second.Address != "second:1" || w.Address != "first:1" {
			t.Errorf("the other node knows of %+v", w)
		}
		// A new process dials the second, which is silent.
		at[2], at[3] = "second:1", "three:1"
		three, end := process(t, network, "three", 3, at)
		defer end()
		if _, err := three.Call(context.Background(), 2, Control, &Request{Method: methodEcho}); err == nil {
			t.Error("a silent process answers")
		}
		if resp, err := second.Call(context.Background(), 3, Control, &Request{Method: methodEcho}); err == nil {
			resp.Release()
			t.Error("a process that was refused by one node is taken by another")
		}
		endFirst()
		if took := reaches(t, second, 1, 10*time.Second); took > 3*time.Second {
			t.Errorf("it was the node %v after the first had ended", took)
		}
		<-time.After(2 * silence)
		if e := second.Second(); e != nil {
			t.Errorf("it still knows of another: %v", e)
		}
	})
}

// TestRestartedProcess: a node that is killed and started again is the node at once; one whose host has vanished, once that is noticed.
func TestRestartedProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := simnet.New(lan)
		at := map[storage.NodeID]string{1: "one:1", 2: "two:1"}
		_, end := process(t, network, "one", 1, at)
		defer end()
		two, endTwo := process(t, network, "two", 2, at)
		reaches(t, two, 1, time.Second)
		endTwo() // its connections are reset
		two, endTwo = process(t, network, "two", 2, at)
		if took := reaches(t, two, 1, 5*time.Second); took > time.Second {
			t.Errorf("after a restart it took %v", took)
		}
		network.Isolate("two") // nothing says that it is gone
		moved, endMoved := process(t, network, "moved", 2, at)
		if took := reaches(t, moved, 1, 10*time.Second); took > 5*time.Second {
			t.Errorf("on another host it took %v", took)
		}
		endMoved()
		endTwo()
	})
}

// TestRefusedByNobodyOfUse: a process that was refused as a second one finds out by itself that the first is gone. It does so
// when it has nothing else to ask of the node that refused it, the only one that it may dial before, and when that node is gone.
func TestRefusedByNobodyOfUse(t *testing.T) {
	for _, refuserEnds := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			network := simnet.New(lan)
			at := map[storage.NodeID]string{1: "one:1", 2: "two:1", 3: "three:1"}
			one, endOne := process(t, network, "one", 1, at)
			three, end := process(t, network, "three", 3, at)
			defer end()
			first, endFirst := process(t, network, "two", 2, at)
			defer endFirst()
			reaches(t, first, 1, time.Second)
			network.Isolate("two") // nothing says that it is gone
			second, end := process(t, network, "second", 2, at)
			defer end()
			if _, err := second.Call(context.Background(), 1, Control, &Request{Method: methodEcho}); !errors.As(err, new(*SecondProcessError)) {
				t.Fatalf("it was not refused: %v", err)
			}
			if refuserEnds {
				endOne()
			} else {
				defer endOne()
			}
			reaches(t, second, 3, 10*time.Second)
			at[2] = "second:1"
			reaches(t, three, 2, 10*time.Second)
			if w := one.Look(2); !refuserEnds && w.Instance != second.cfg.Speaker.Instance {
				t.Errorf("who refused it takes %+v for the node", w)
			}
		})
	}
}
