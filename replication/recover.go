package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/replication/segment"
)

// Survivor is a replica in the store of a stopped node, as its log has it.
type Survivor struct {
	Group storage.GroupID
	Key   storage.ReplicaKey
	// Index and Term are those of the last entry; 0: it holds nothing yet. LastAt is when the leader appended it; zero: not known.
	Index, Term uint64
	LastAt      time.Time
	// Voters are the members that vote by the newest configuration in the log, which may not be committed.
	Voters []SurvivingMember
	// Damaged says why it must not go on; empty: it may.
	Damaged string

	key segment.GroupKey
}

// SurvivingMember is a member of a group, by where it lies.
type SurvivingMember struct {
	Node storage.NodeID
	Key  storage.ReplicaKey
}

// Votes reports whether the replica votes itself.
func (s Survivor) Votes() bool {
	for _, v := range s.Voters {
		if v.Key == s.Key {
			return true
		}
	}
	return false
}

// Survivors returns the replicas in a store that no Replicas run on, by group.
func Survivors(store *extent.Store) ([]Survivor, error) {
	damaged := map[segment.GroupKey]segment.Damage{}
	for _, d := range store.Log().Damaged() {
		damaged[d.Key] = d
	}
	var out []Survivor
	for _, key := range store.Groups() {
		s := Survivor{Group: key.Group, Key: storage.ReplicaKey{Store: store.ID(), Incarnation: key.Incarnation}, key: key}
		if d, bad := damaged[key]; bad {
			s.Damaged = fmt.Sprintf("its log is damaged at segment %d, byte %d: %s", d.At.Segment(), d.At.Offset(), d.Reason)
			out = append(out, s)
			continue
		}
		log, err := stoppedLog(context.Background(), store, key)
		if err != nil {
			s.Damaged = err.Error()
			out = append(out, s)
			continue
		}
		if s.Index, s.Term, s.LastAt, err = lastOf(store.Group(key)); err != nil { // its checkpoint alone would be less than it has acknowledged
			s.Damaged = err.Error()
			out = append(out, s)
			continue
		}
		for _, m := range log.newest().servers {
			if k, err := storage.ParseReplicaKey(string(m.ID)); err == nil && m.Suffrage == raft.Voter {
				node, _ := runner.ParseNodeAddress(m.Address) // 0 is no node
				s.Voters = append(s.Voters, SurvivingMember{Node: node, Key: k})
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// stoppedLog is the log of a replica that no library runs over, with its configurations.
func stoppedLog(ctx context.Context, store *extent.Store, key segment.GroupKey) (*logStore, error) {
	extents := store.Group(key)
	checkpoint := extents.Checkpointed()
	if checkpoint.Index > 0 && !runner.ValidConfiguration(checkpoint.Config) {
		return nil, storage.E("read", storage.KindCorrupt, "group "+key.String(), errors.New("the checkpoint's configuration cannot be read"))
	}
	s := &logStore{log: extents.Log(), ctx: ctx, wait: store.Log().Wait, running: func() bool { return true },
		unreadable: func(_ uint64, err error) error { return err }}
	return s, s.readConfigs(checkpoint)
}

// lastOf returns the last entry of a replica: that of its log, or of its checkpoint.
func lastOf(g *extent.Group) (index, term uint64, at time.Time, err error) {
	c := g.Checkpointed()
	last := g.Log().LastIndex()
	if last <= c.Index {
		return c.Index, c.Term, at, nil
	}
	e, err := g.Log().Get(last)
	if err != nil {
		return 0, 0, at, err
	}
	if e.AppendedAt != 0 {
		at = time.Unix(0, e.AppendedAt).UTC()
	}
	return last, e.Term, at, nil
}

// LetLeadAlone makes a replica of a stopped node the only voter of its group, for the case that the majority is lost for good: it appends
// a configuration to its log, and is elected when the node is started. All that its log has is committed then, also what never was; what
// only the others had is lost. The caller has seen to it that the other voters are heard by nobody any more who goes on with this one.
// Again: no change. KindConflict: it does not vote, or is damaged.
//
// Guards I7: the term is one that this replica has not voted in, and is stored before the entry of that term.
func LetLeadAlone(ctx context.Context, store *extent.Store, node storage.NodeID, s Survivor) error {
	const op = "recover"
	subject := "group " + s.Group.String()
	switch {
	case s.Damaged != "":
		return storage.E(op, storage.KindConflict, subject, errors.New(s.Damaged))
	case !s.Votes():
		return storage.E(op, storage.KindConflict, subject, errors.New("the replica of this node does not vote: it may lack most of what the group held"))
	case len(s.Voters) == 1:
		return nil
	}
	log, err := stoppedLog(ctx, store, s.key)
	if err != nil {
		return err
	}
	stable := store.Stable(s.key)
	name := []byte("CurrentTerm")
	b, err := stable.Get(name)
	if err != nil {
		return err
	}
	term := s.Term
	if len(b) == 8 {
		term = max(term, binary.BigEndian.Uint64(b))
	}
	term++
	if err := stable.Set(name, binary.BigEndian.AppendUint64(nil, term)); err != nil {
		return err
	}
	alone := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: ServerID(s.Key.Store, s.Key.Incarnation), Address: runner.NodeAddress(node)}}}
	return log.StoreLog(&raft.Log{Index: s.Index + 1, Term: term, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(alone), AppendedAt: time.Now()})
}
