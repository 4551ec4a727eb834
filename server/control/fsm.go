package control

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
)

// fsm holds this node's copy of the catalog. Raft applies to it, everyone reads it.
type fsm struct {
	mu      sync.RWMutex   // guards the fields below; held for the length of one command or one view, never across I/O
	state   *catalog.State // replaced by Restore only
	changed chan struct{}  // closed and replaced at every command
	// halted is why nothing is applied any more: an entry cannot be decoded. The state stays what it was before that entry.
	halted error

	// config is the index of the newest configuration that is known to be committed. It is not guarded by mu: code that decides
	// inside a view asks for it, and would wait for a command that waits for the view.
	config atomic.Uint64

	onHalt func(error) // told once, from Raft's goroutine; must not block
}

func newFSM() *fsm {
	return &fsm{state: catalog.New(), changed: make(chan struct{}), onHalt: func(error) {}}
}

// Apply implements raft.FSM; it returns the catalog.Result, or the error that ended this copy.
//
// I1: if it skipped what cannot be decoded, this node would decide from a catalog that the others do not have.
func (f *fsm) Apply(l *raft.Log) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.halted != nil {
		return f.halted
	}
	c, err := catalog.DecodeEntry(l.Data)
	if err != nil {
		f.halted = unreadable(l.Index, err)
		f.onHalt(f.halted)
		return f.halted
	}
	result := f.state.ApplyCommand(l.Index, c)
	f.broadcastLocked()
	return result
}

// unreadable says of an entry that this node can go no further, and what to do.
func unreadable(index uint64, err error) error {
	kind, next := storage.KindCorrupt, "this node's copy of the catalog is damaged: replace its disk or memory, remove the node from the cluster and "+
		"let it join again with an empty data directory"
	if storage.KindOf(err) == storage.KindUnsupported {
		kind, next = storage.KindUnsupported, "a later version of storaged has written it: upgrade this node"
	}
	return storage.E("apply", kind, fmt.Sprintf("entry %d of the catalog", index), fmt.Errorf("%w; %s", err, next))
}

// StoreConfiguration implements raft.ConfigurationStore: the library tells where a configuration lies when it is committed,
// and not when it is asked for its newest.
func (f *fsm) StoreConfiguration(index uint64, _ raft.Configuration) { f.noteConfig(index) }

func (f *fsm) noteConfig(index uint64) {
	for newest := f.config.Load(); index > newest && !f.config.CompareAndSwap(newest, index); {
		newest = f.config.Load()
	}
}

func (f *fsm) broadcastLocked() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.halted != nil { // the library would store it under an index that was not applied
		return nil, f.halted
	}
	return fsmSnapshot{f.state.Clone()}, nil
}

// Restore implements raft.FSM. A snapshot that cannot be read leaves the state as it was.
func (f *fsm) Restore(r io.ReadCloser) error {
	state, err := catalog.Restore(r)
	if cerr := r.Close(); err == nil && cerr != nil {
		err = storage.E("restore catalog", storage.KindIO, "", cerr)
	}
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = state
	f.broadcastLocked()
	return nil
}

// view calls fn with the state, which fn must neither keep nor change.
func (f *fsm) view(fn func(*catalog.State)) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	fn(f.state)
}

// next returns the applied index and a channel that is closed at the next command.
func (f *fsm) next() (applied uint64, changed <-chan struct{}) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.state.Applied(), f.changed
}

// wait returns when the command at index has been applied.
func (f *fsm) wait(ctx context.Context, index uint64) error {
	for {
		applied, changed := f.next()
		if applied >= index {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return storage.E("wait for the catalog", storage.KindUnavailable, "",
				fmt.Errorf("this node's copy is at %d, not yet at %d: %w", applied, index, context.Cause(ctx)))
		}
	}
}

// fsmSnapshot is a state that nothing changes any more.
type fsmSnapshot struct{ state *catalog.State }

// Persist implements raft.FSMSnapshot.
func (s fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	b, err := s.state.Snapshot()
	if err == nil {
		_, err = sink.Write(b)
	}
	if err != nil {
		_ = sink.Cancel() // the first error counts
		return err
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (fsmSnapshot) Release() {}
