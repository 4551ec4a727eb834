package runner

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"reflect"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
)

// badStore is a log and stable store in memory that fails in the goroutines of the library once bad is set, as a disk does.
type badStore struct {
	*raft.InmemStore
	inst *Instance
	bad  atomic.Bool
}

var errDisk = errors.New("input/output error")

func (s *badStore) StoreLogs(ls []*raft.Log) error {
	if s.bad.Load() {
		return s.inst.Park(errDisk)
	}
	return s.InmemStore.StoreLogs(ls)
}

func (s *badStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *badStore) SetUint64(key []byte, v uint64) error {
	if s.bad.Load() {
		return s.inst.Park(errDisk)
	}
	return s.InmemStore.SetUint64(key, v)
}

// nothing is a state machine that waits for gate, if there is one.
type nothing struct{ gate chan struct{} }

func (f nothing) Apply(*raft.Log) any {
	if f.gate != nil {
		<-f.gate
	}
	return nil
}
func (nothing) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("none") }
func (nothing) Restore(r io.ReadCloser) error       { return r.Close() }

// alone starts an instance that is the only voter of its group, and waits until it leads.
func alone(t *testing.T, f raft.FSM) *Instance {
	t.Helper()
	i, _ := start(t, f, "1")
	for !i.Leads() {
		time.Sleep(10 * time.Millisecond)
	}
	return i
}

// start starts the first of the given voters; the others are nowhere.
func start(t *testing.T, f raft.FSM, voters ...raft.ServerID) (*Instance, *badStore) {
	t.Helper()
	i := newInstance()
	store := &badStore{InmemStore: raft.NewInmemStore(), inst: i}
	conf := Settings("1", 500*time.Millisecond, slog.New(slog.DiscardHandler))
	conf.PreVoteDisabled = true // it counts the terms without the others' leave
	snaps := raft.NewInmemSnapshotStore()
	_, carrier := raft.NewInmemTransport(NodeAddress(1))
	var c raft.Configuration
	for _, id := range voters {
		c.Servers = append(c.Servers, raft.Server{ID: id, Address: raft.ServerAddress(id)})
	}
	err := raft.BootstrapCluster(conf, store, store, snaps, carrier, c)
	if err == nil {
		err = i.Start(conf, f, store, store, snaps, carrier)
	}
	if err != nil {
		t.Fatal(err)
	}
	return i, store
}

func newInstance() *Instance { return New(Config{Subject: "group 1", Group: 1}) }

func apply(r *raft.Raft) raft.ApplyFuture { return r.Apply([]byte("x"), 0) }

// TestFuturesOfTheLibraryTakeAnEnd guards until against a library whose futures have no such field any more.
func TestFuturesOfTheLibraryTakeAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := alone(t, nothing{})
		for name, future := range map[string]raft.Future{
			"apply": apply(i.raft), "barrier": i.raft.Barrier(0), "verify": i.raft.VerifyLeader(), "snapshot": i.raft.Snapshot(),
			"change":   i.raft.AddNonvoter("other", "2", 0, time.Second),
			"transfer": i.raft.LeadershipTransferToServer("other", "2"),
		} {
			v := reflect.ValueOf(until(&i.futures, future)).Elem()
			if f := v.FieldByName(shutdownField); !f.IsValid() || f.IsNil() {
				t.Errorf("%s: the future does not end with its instance", name)
			}
			_ = future.Error()
		}
		if err := i.Stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestRequestsEndWithTheirInstance: what waits for the state machine when the instance stops ends with it, and nothing is taken
// afterwards (tried: without the look at i.ctx in Do an entry can follow those that were given up, whose order nobody
// holds any more).
func TestRequestsEndWithTheirInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := nothing{gate: make(chan struct{})}
		i := alone(t, f)
		ended := make(chan error)
		for _, ctx := range []context.Context{context.Background(), t.Context()} {
			go func() {
				_, err := Do(ctx, i, "propose", apply)
				ended <- err
			}()
		}
		synctest.Wait()
		last := i.LastIndex()
		i.Cancel()
		for range 2 {
			if err := <-ended; !errors.Is(err, raft.ErrRaftShutdown) || storage.KindOf(err) != storage.KindUnavailable {
				t.Errorf("ended with %v", err)
			}
		}
		for _, ctx := range []context.Context{context.Background(), t.Context()} {
			if _, err := Do(ctx, i, "propose", apply); !errors.Is(err, raft.ErrRaftShutdown) {
				t.Errorf("a request to an instance that stops: %v", err)
			}
		}
		if i.LastIndex() != last {
			t.Error("an instance that stops has appended an entry")
		}
		close(f.gate)
		if err := i.Stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestRequestsHaveAContext: a request that is given up is of no known outcome, and their number is bounded (I9).
func TestRequestsHaveAContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := nothing{gate: make(chan struct{})}
		i := alone(t, f)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var taken atomic.Int32
		ended := make(chan error)
		for range maxWaiting + 10 {
			go func() {
				_, err := Do(ctx, i, "propose", func(r *raft.Raft) raft.ApplyFuture { taken.Add(1); return apply(r) })
				ended <- err
			}()
		}
		for range maxWaiting + 10 {
			if err := <-ended; storage.KindOf(err) != storage.KindUnavailable {
				t.Errorf("given up with %v", err)
			}
		}
		if n := taken.Load(); n != maxWaiting {
			t.Errorf("%d requests were on their way, the bound is %d", n, maxWaiting)
		}
		close(f.gate)
		if err := i.Stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestParkedUntilTheStop guards Park (tried: an error that is returned is a panic of the library, and so is a return after the
// stop): the disk of a candidate's term fails under the library's main loop, which waits until the instance stops, and ends.
func TestParkedUntilTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, store := start(t, nothing{}, "1", "2")
		store.bad.Store(true)
		time.Sleep(time.Minute)
		if term := i.CurrentTerm(); term != 1 {
			t.Errorf("it is in term %d, which it could not store", term)
		}
		if err := i.Stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestStartOnABadStore guards Start (tried): the library panics when a store fails while it starts. Nobody is parked
// yet.
func TestStartOnABadStore(t *testing.T) {
	i := newInstance()
	store := &badStore{InmemStore: raft.NewInmemStore(), inst: i}
	store.bad.Store(true)
	_, carrier := raft.NewInmemTransport(NodeAddress(1))
	conf := Settings("1", 500*time.Millisecond, slog.New(slog.DiscardHandler))
	err := i.Start(conf, nothing{}, store, store, raft.NewInmemSnapshotStore(), carrier)
	if err == nil || i.Context().Err() == nil {
		t.Errorf("started on a store that fails: %v", err)
	}
}

// TestStopHasPatience: an instance whose state machine hangs is given up (tried: without the timer Stop never returns).
func TestStopHasPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := nothing{gate: make(chan struct{})}
		i := alone(t, f)
		go Do(context.Background(), i, "propose", apply) // it ends with the instance
		synctest.Wait()
		begun := time.Now()
		if err := i.Stop(); !errors.Is(err, ErrHangs) || time.Since(begun) != stopPatience {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		close(f.gate)
	})
}
