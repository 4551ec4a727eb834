package runner

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/registry"
)

// Where the time of a write goes, from its proposal to its answer. A leader notes when an entry passes each of its stations and
// books the stages between them when the entry is answered, all at once: their sums belong to the same entries, so the means of
// the stages add up to the mean of a proposal. A follower books its part of each request for itself.

// tracedEntries bounds the entries of one group whose stations are kept. One that is overtaken by so many is not booked.
const tracedEntries = 256

// writeStages are the stages of a write at the leader, one after another.
var writeStages = [...]string{
	"admit",    // proposed -> handed to the library: checks, room, the blocks' turn
	"queue",    // -> StoreLogs called
	"append",   // -> StoreLogs has returned: in the tail of the log, on its way to the disk
	"send",     // -> handed to the connection of the first follower
	"follower", // -> the first follower has answered: its log is durable
	"own_log",  // -> it may be counted: the own log is durable, too; 0 where it was before
	"commit",   // -> the state machine is called
	"apply",    // -> applied
	"answer",   // -> the proposal returns
}

// station is a place that an entry passes at its leader: where the stage of the same number, beginning with queue, ends.
type station int

const (
	atStoring station = iota
	atStored
	atSent
	atAnswered
	atCounted
	atCommitted
	atApplied
	stations
)

// followerStages are the stages of a request with entries at a follower, one after another.
var followerStages = [...]string{
	"receive", // its first bytes were read -> all of it has reached its group
	"store",   // -> the library has stored it: in the tail of the log, on its way to the disk
	"sync",    // -> durable
	"answer",  // -> the answer is written, or waits for the connection's writer
}

// Stages are the metrics of the stages of writes, of all groups of a node: for each stage how often it ended, and the time it took
// in all. It is a prometheus.Collector.
type Stages struct {
	begun time.Time // what stations are counted from

	mu       sync.Mutex // guards what follows
	writes   uint64
	write    [len(writeStages)]time.Duration
	requests uint64
	follower [len(followerStages)]time.Duration
	trips    map[storage.NodeID]trips
}

// trips are the requests to one follower that it has answered.
type trips struct {
	n    uint64
	took time.Duration
}

var (
	descWrite = prometheus.NewDesc("storage_replication_write_stage_seconds", "Time of a write in each stage at the leader of its group; the stages add up to the "+
		"whole. Worry when one that was small becomes the largest: follower is the other nodes and the way to them, own_log this node's disk, queue its processor.",
		[]string{"stage"}, nil)
	descFollower = prometheus.NewDesc("storage_replication_follower_stage_seconds", "Time of a leader's request with entries in each stage at a follower. "+
		"Worry when sync is much longer than on other nodes: this disk is slower.", []string{"stage"}, nil)
	descTrip = prometheus.NewDesc("storage_replication_append_seconds", "Time from sending entries to a follower until its answer, by follower. "+
		"Worry when one node's is much longer than the others': writes wait for it as soon as another one fails.", []string{"node"}, nil)
)

// NewStages makes the metrics and registers them; r may be nil.
func NewStages(r prometheus.Registerer) (*Stages, error) {
	s := &Stages{begun: time.Now(), trips: map[storage.NodeID]trips{}}
	_, err := registry.Register(r, s)
	return s, err
}

// Describe implements prometheus.Collector.
func (s *Stages) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descWrite, descFollower, descTrip} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *Stages) Collect(ch chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	summary := func(d *prometheus.Desc, n uint64, took time.Duration, label string) {
		ch <- prometheus.MustNewConstSummary(d, n, took.Seconds(), nil, label)
	}
	for i, stage := range writeStages {
		summary(descWrite, s.writes, s.write[i], stage)
	}
	for i, stage := range followerStages {
		summary(descFollower, s.requests, s.follower[i], stage)
	}
	for node, t := range s.trips {
		summary(descTrip, t.n, t.took, node.String())
	}
}

// Trace notes where the entries of one replica are while it leads. All methods may be called concurrently, and on nil, which
// notes nothing.
type Trace struct {
	stages *Stages

	mu      sync.Mutex
	entries []tracedEntry // tracedEntries of them, by index, once there is one; guarded by mu
}

// tracedEntry is when an entry passed its stations: nanoseconds since Stages.begun, and one; 0: it did not, as far as is known.
type tracedEntry struct {
	index uint64
	at    [stations]time.Duration
}

// Trace returns the trace of one replica; nil if s is.
func (s *Stages) Trace() *Trace {
	if s == nil {
		return nil
	}
	return &Trace{stages: s}
}

// Storing notes that the entries first to last are handed to the leader's log, and begins their traces. What no trace was begun
// for is ignored by the other stations.
func (t *Trace) Storing(first, last uint64) { t.pass(atStoring, first, last) }

// Stored notes that the leader's log has taken them.
func (t *Trace) Stored(first, last uint64) { t.pass(atStored, first, last) }

// Committed notes that the leader's state machine is given them.
func (t *Trace) Committed(first, last uint64) { t.pass(atCommitted, first, last) }

// Applied notes that it has applied them.
func (t *Trace) Applied(first, last uint64) { t.pass(atApplied, first, last) }

// passAll is pass for the entries of a request, if it has any.
func (t *Trace) passAll(s station, entries []*raft.Log) {
	if n := len(entries); n > 0 {
		t.pass(s, entries[0].Index, entries[n-1].Index)
	}
}

// pass notes the first time that the entries pass a station: the first of the followers counts.
func (t *Trace) pass(s station, first, last uint64) {
	if t == nil {
		return
	}
	now := time.Since(t.stages.begun) + 1 // not 0
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.entries == nil {
		if s != atStoring {
			return
		}
		t.entries = make([]tracedEntry, tracedEntries)
	}
	for i := first; i <= last; i++ {
		e := &t.entries[i%tracedEntries]
		if s == atStoring {
			*e = tracedEntry{index: i}
		}
		if e.index == i && e.at[s] == 0 {
			e.at[s] = now
		}
	}
}

// Answered books the stages of the entry at index, which was proposed at proposed, given to the library at handed, and is
// answered now.
func (t *Trace) Answered(index uint64, proposed, handed time.Time) {
	if t == nil {
		return
	}
	s := t.stages
	now, before := time.Since(s.begun)+1, handed.Sub(s.begun)+1
	t.mu.Lock()
	var e tracedEntry
	if t.entries != nil {
		e = t.entries[index%tracedEntries]
	}
	t.mu.Unlock()
	if e.index != index || e.at[atStoring] == 0 || e.at[atStored] == 0 || e.at[atCommitted] == 0 || e.at[atApplied] == 0 {
		return // another one has its place, or has had it meanwhile
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	s.write[0] += handed.Sub(proposed)
	for i, at := range e.at {
		// A lone voter sends nothing, and an entry may be committed by the answer for a later one: its stage is 0 then.
		at = max(at, before)
		s.write[1+i] += at - before
		before = at
	}
	s.write[len(writeStages)-1] += now - before
}

// tripped books the way of a request with entries to a follower and back.
func (t *Trace) tripped(node storage.NodeID, took time.Duration) {
	s := t.stages
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.trips[node]
	of.n++
	of.took += took
	s.trips[node] = of
}

// followed books the stages of a request at a follower, which was answered now.
func (t *Trace) followed(received, taken, stored, durable time.Time) {
	s, answered := t.stages, time.Since(durable)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	for i, took := range [...]time.Duration{taken.Sub(received), stored.Sub(taken), durable.Sub(stored), answered} {
		s.follower[i] += took
	}
}
