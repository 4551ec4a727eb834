package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/ledger"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/replication/segment"
)

// logStore is raft.LogStore over one group's part of the segment log.
//
// StoreLogs returns as soon as the entries have their place in the log, before they are durable: what would count
// them is held back by the transport (runner.Gate). Two batches are the exception, and wait here until they and all
// before them are durable:
//
//   - a batch whose preceding configuration has one voter, because then hashicorp/raft commits on the return of
//     StoreLogs, without any message that could be held;
//   - a batch with a configuration entry, because the library counts it under the configuration it brings in, and
//     commits an AddVoter of a one-voter group the moment StoreLogs returns.
//
// StoreLogs is called by one goroutine (Raft's main loop), DeleteRange by that one and the snapshots', the others by
// several.
type logStore struct {
	log        *segment.GroupLog
	ctx        context.Context                                     // done when the instance is to stop
	wait       func(ctx context.Context, p segment.Position) error // segment.Log.Wait
	unreadable func(index uint64, err error) error                 // see group.unreadable
	running    func() bool                                         // see runner.Instance.Running

	inst atomic.Pointer[runner.Instance] // that this is the log of, as soon as it runs
	book *ledger.Book                    // of what others have yet to receive
	open func() ledger.Opening           // the method opening, made once
	// trace notes where entries are; nil for nothing.
	trace *runner.Trace

	mu      sync.Mutex
	configs []configAt // ascending by index, the checkpoint's first if there is one; guarded by mu
}

// configAt is a configuration in the log, and what StoreLogs decides by.
type configAt struct {
	index   uint64
	voters  int
	servers []raft.Server // not changed
}

func newConfigAt(index uint64, c raft.Configuration) configAt {
	return configAt{index: index, voters: runner.CountVoters(c), servers: c.Servers}
}

var (
	_ raft.LogStore          = (*logStore)(nil)
	_ raft.MonotonicLogStore = (*logStore)(nil)
)

// readConfigs reads the configurations that the log holds above the checkpoint, and no other entry: the segment log has read and
// checked all of them when it was opened. It is called once, before anything else.
func (s *logStore) readConfigs(checkpoint table.Checkpoint) error {
	s.open = s.opening
	if checkpoint.Index > 0 {
		s.configs = []configAt{newConfigAt(checkpoint.ConfigIndex, raft.DecodeConfiguration(checkpoint.Config))}
	}
	first, last := s.log.FirstIndex(), s.log.LastIndex()
	if first == 0 {
		return nil
	}
	for i := max(first, checkpoint.Index+1); i <= last; i++ {
		if _, kind, ok := s.log.TypeOf(i); ok && raft.LogType(kind) != raft.LogConfiguration {
			continue
		}
		e, err := s.log.Get(i)
		if err != nil {
			// Whatever the reason: without it the replica would vote with less than it once acknowledged (I7).
			return storage.E("read log", storage.KindCorrupt, "group", fmt.Errorf("entry %d: %w", i, err))
		}
		s.configs = append(s.configs, newConfigAt(i, raft.DecodeConfiguration(e.Data)))
	}
	return nil
}

// IsMonotonic tells Raft that a gap in the log is refused, so that it clears the log after an installed snapshot.
func (s *logStore) IsMonotonic() bool { return true }

// FirstIndex returns the lowest index in the log, 0 for none.
func (s *logStore) FirstIndex() (uint64, error) { return s.log.FirstIndex(), nil }

// LastIndex returns the highest index in the log, 0 for none.
func (s *logStore) LastIndex() (uint64, error) { return s.log.LastIndex(), nil }

// GetLog fills out with the entry of the given index, or returns raft.ErrLogNotFound. It returns no other error: the
// library panics on one. An entry that cannot be read is not found, or its replica is set aside and the caller parked
// until it stops (group.unreadable).
//
// While the library starts it asks for every entry above the checkpoint, and looks for configurations only. Commands come without
// their data then: otherwise a start would read the log once more.
func (s *logStore) GetLog(index uint64, out *raft.Log) error {
	if !s.running() {
		if term, kind, ok := s.log.TypeOf(index); ok && raft.LogType(kind) == raft.LogCommand {
			*out = raft.Log{Index: index, Term: term, Type: raft.LogCommand}
			return nil
		}
	}
	e, err := s.log.Get(index)
	switch {
	case err == nil:
	case errors.Is(err, storage.ErrNotFound):
		return raft.ErrLogNotFound
	default:
		return s.unreadable(index, err)
	}
	*out = raft.Log{Index: e.Index, Term: e.Term, Type: raft.LogType(e.Type), Data: e.Data, Extensions: e.Extensions}
	if e.AppendedAt != 0 {
		out.AppendedAt = time.Unix(0, e.AppendedAt)
	}
	return nil
}

// StoreLog appends one entry.
func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries, which must follow the last one. The data is kept by reference.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	entries := make([]segment.Entry, len(logs))
	mustWait := s.votersBefore(logs[0].Index) <= 1
	in := s.inst.Load()
	follows := in != nil && in.Follows() // clients read at the leader
	leads := in != nil && in.Leads()
	if leads {
		s.book.Begin(logs[0].Term, s.open)
		s.trace.Storing(logs[0].Index, logs[len(logs)-1].Index)
	}
	for i, l := range logs {
		entries[i] = segment.Entry{Index: l.Index, Term: l.Term, Type: uint8(l.Type), Data: l.Data,
			Extensions: l.Extensions, Cold: follows}
		if l.Type == raft.LogCommand { // verified before Raft had it: at the leader by propose, at a follower by its transport
			entries[i].BlockSums = op.EntrySums(l.Data)
		}
		if !l.AppendedAt.IsZero() {
			entries[i].AppendedAt = l.AppendedAt.UnixNano()
		}
		if l.Type == raft.LogConfiguration {
			mustWait = true
			s.addConfig(newConfigAt(l.Index, raft.DecodeConfiguration(l.Data)))
		}
	}
	end, err := s.log.Append(entries)
	if err != nil {
		s.dropConfigsFrom(logs[0].Index)
		return err
	}
	if leads {
		s.enter(logs)
	}
	if mustWait { // I1: take this out, and a lone voter acknowledges what its disk does not hold
		err = s.wait(s.ctx, end)
	}
	if leads {
		s.trace.Stored(logs[0].Index, logs[len(logs)-1].Index)
	}
	return err
}

// opening is what the book of a term begins with.
func (s *logStore) opening() (o ledger.Opening) {
	o.Servers = s.members()
	o.First, o.Sizes = s.log.Sizes()
	return o
}

// members returns the newest configuration.
func (s *logStore) members() (out []ledger.Server) {
	for _, m := range s.newest().servers {
		out = append(out, ledger.Server{ID: string(m.ID), Voter: m.Suffrage == raft.Voter})
	}
	return out
}

// enter notes entries that this replica has appended as leader, and that the others have yet to receive.
func (s *logStore) enter(logs []*raft.Log) {
	for _, l := range logs {
		n, reserved := logBytes(len(l.Data)), int64(0)
		switch l.Type {
		case raft.LogCommand:
			reserved = n // by group.propose
		case raft.LogConfiguration:
			s.book.SetServers(s.members())
		}
		s.book.Appended(l.Term, l.Index, n, reserved)
	}
}

// DeleteRange obeys at once when the range begins within the log or reaches its end (a conflicting suffix), and is
// advice when it is a prefix: the log keeps that for followers that lag, within its byte budget. After an installed
// manifest, whose Reset has emptied the log, there is nothing to do.
func (s *logStore) DeleteRange(first, last uint64) error {
	logFirst, logLast := s.log.FirstIndex(), s.log.LastIndex()
	switch {
	case logLast == 0 || first > logLast || last < logFirst:
		return nil
	case first <= logFirst && last < logLast:
		s.log.Compact(last)
		if first := s.log.FirstIndex(); first > 0 {
			s.book.Dropped(first)
		} else {
			s.book.Dropped(logLast + 1)
		}
		return nil
	}
	s.dropConfigsFrom(first)
	return s.log.TruncateSuffix(first)
}

// votersBefore returns the number of voters of the newest configuration below index.
func (s *logStore) votersBefore(index uint64) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range slices.Backward(s.configs) {
		if c.index < index {
			return c.voters
		}
	}
	return 0
}

func (s *logStore) addConfig(c configAt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.configs = append(s.configs, c)
	if len(s.configs) > 64 { // only the newest few can be truncated; the rest is history
		s.configs = append([]configAt(nil), s.configs[len(s.configs)-32:]...)
	}
}

func (s *logStore) dropConfigsFrom(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := slices.IndexFunc(s.configs, func(c configAt) bool { return c.index >= index }); at >= 0 {
		s.configs = s.configs[:at]
	}
}

// newest returns the newest configuration in the log, which may not be committed, and where it lies. The library tells the one
// without the other.
func (s *logStore) newest() configAt {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.configs) == 0 {
		return configAt{}
	}
	return s.configs[len(s.configs)-1]
}

// installed takes the configuration of an installed manifest in the place of all others.
func (s *logStore) installed(index uint64, c raft.Configuration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.configs = []configAt{newConfigAt(index, c)}
}
