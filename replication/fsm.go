package replication

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/runner"
)

// maxStagingNameBytes bounds what Restore reads: the name of a staging area.
const maxStagingNameBytes = 256

// fsm is raft.FSM over one group's extents. A snapshot of it is a checkpoint in the store (snapshotStore), so nothing
// is streamed; a restore installs what the transport has pulled and staged.
type fsm struct {
	extents *extent.Group
	// lastBeforeInstall is set to the log's last index before a manifest puts the log at its own.
	lastBeforeInstall *atomic.Uint64
	// damaged is told once why nothing is applied any more. It must not block.
	damaged func(error)
	told    bool // owned by the goroutine that applies
	trace   *runner.Trace
}

var _ raft.BatchingFSM = (*fsm)(nil)

// Apply applies one entry.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch applies committed entries in order. Configuration entries count as applied, so that the applied index of a
// checkpoint covers them. Each response is a *op.Result.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	first, last := logs[0].Index, logs[len(logs)-1].Index
	f.trace.Committed(first, last)
	entries := make([]extent.ApplyEntry, len(logs))
	for i, l := range logs {
		entries[i] = extent.ApplyEntry{Index: l.Index, Term: l.Term, IsCommand: l.Type == raft.LogCommand, Data: l.Data}
	}
	results := f.extents.Apply(entries)
	if err := f.extents.Damage(); err != nil && !f.told {
		f.told = true
		f.damaged(err)
	}
	out := make([]any, len(logs))
	for i := range results {
		out[i] = &results[i]
	}
	f.trace.Applied(first, last)
	return out
}

// Snapshot freezes the tables: copy on write from here on.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	frozen, err := f.extents.Freeze()
	if err != nil {
		return nil, err
	}
	return &fsmSnapshot{frozen}, nil
}

// Restore installs the staging area whose name the reader gives.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	name, err := io.ReadAll(io.LimitReader(r, maxStagingNameBytes+1))
	if err != nil {
		return err
	}
	if len(name) == 0 || len(name) > maxStagingNameBytes {
		return fmt.Errorf("the name of a staging area has %d bytes", len(name))
	}
	f.lastBeforeInstall.Store(f.extents.Log().LastIndex()) // Raft's main loop waits for us: nothing is appended
	return f.extents.Install(string(name))
}

// resultOf takes a *op.Result out of an apply future. What only this replica came to is not the group's decision: when
// its disk failed meanwhile the entry is applied by the others.
func (g *group) resultOf(response any) (op.Result, error) {
	r, ok := response.(*op.Result)
	if !ok {
		return op.Result{}, fmt.Errorf("unexpected response %T", response)
	}
	if r.Kind == storage.KindIO || r.Kind == storage.KindInternal || r.Kind == storage.KindCorrupt {
		return op.Result{}, storage.E("propose", storage.KindUnavailable, "group "+g.id.String(),
			fmt.Errorf("this replica cannot apply it: %s", r.Text))
	}
	return *r, nil
}

// fsmSnapshot is a frozen state on its way into the store.
type fsmSnapshot struct {
	frozen *extent.Frozen
}

// Persist writes the checkpoint. The sink carries what only the library knows: index, term and configuration.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	c, ok := sink.(*checkpointSink)
	if !ok {
		return errors.New("not a sink of this package")
	}
	if err := s.frozen.Persist(c.index, c.term, raft.EncodeConfiguration(c.config), c.configIndex); err != nil {
		return err
	}
	return sink.Close()
}

// Release gives the frozen pages up.
func (s *fsmSnapshot) Release() { s.frozen.Release() }
