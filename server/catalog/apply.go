package catalog

import (
	"errors"
	"fmt"
	"slices"

	storage "github.com/storaged/storaged"
)

// Apply is DecodeEntry and ApplyCommand. An entry that cannot be decoded is answered with why, and the state is untouched,
// Applied included.
func (s *State) Apply(index uint64, entry []byte) Result {
	c, err := DecodeEntry(entry)
	if err != nil {
		return Result{Index: index, Err: asError(err)}
	}
	return s.ApplyCommand(index, c)
}

// ApplyCommand applies the command that the log holds at index, which must be above Applied: it panics otherwise, since
// applying a log twice means that the caller lost track of its state.
//
// Commands that are refused are answered, not skipped: Result.Err says why, the state is as before but for Applied.
func (s *State) ApplyCommand(index uint64, c Command) Result {
	if index <= s.applied {
		panic(fmt.Sprintf("catalog: command %d applied after %d", index, s.applied))
	}
	s.applied = index
	res := Result{Index: index}
	err := c.check()
	if err == nil {
		if err = s.permits(c, max(s.InForce(), unruledVersion)); err == nil {
			err = c.apply(s, &res)
		}
	}
	if err == nil {
		return res
	}
	return Result{Index: index, Err: asError(err)}
}

// InForce returns the version that commands may say: BaseVersion, until a later one is recorded in Cluster.Version.
func (s *State) InForce() int { return max(s.cluster.Version, BaseVersion) }

// Permits returns why a leader does not propose a command, whatever it asks for: there is no cluster yet, or what it says came with a
// later version than the one in force. A build that does not know the command would stop where it finds it.
func (s *State) Permits(c Command) error { return s.permits(c, s.InForce()) }

// permits returns why a command is refused where a version, and what came before it, may be used. What reaches the log all the same is
// judged with unruledVersion at least, by all copies alike.
func (s *State) permits(c Command, version int) error {
	_, first := c.(InitCluster)
	_, raise := c.(RaiseVersion)
	switch v := versionOf(c); {
	case first:
	case !s.Initialised():
		return refuse(c.name(), storage.KindUnavailable, "cluster", "the cluster is not initialised yet")
	case !raise && v > version:
		return refuse(c.name(), storage.KindConflict, "cluster", "it came with version %d, and version %d is in force: run "+
			"`storagectl cluster upgrade` once every node runs a release that knows it", v, s.InForce())
	}
	return nil
}

func asError(err error) *storage.Error {
	var e *storage.Error
	if errors.As(err, &e) {
		return e
	}
	return storage.E("apply command", storage.KindInternal, "", err)
}

// refuse is the error of a command that this state does not accept.
func refuse(op string, kind storage.Kind, subject, format string, args ...any) error {
	return storage.E(op, kind, subject, fmt.Errorf(format, args...))
}

func (c InitCluster) apply(s *State, _ *Result) error {
	if s.cluster.ID == c.Cluster.ID {
		return nil
	}
	if s.Initialised() {
		return refuse("create cluster", storage.KindExists, "cluster "+s.cluster.ID.String(),
			"this catalog belongs to it already; use an empty data directory for another cluster")
	}
	s.cluster = c.Cluster.withDefaults()
	return nil
}

func (c RaiseVersion) apply(s *State, _ *Result) error {
	if c.To > s.InForce() {
		s.cluster.Version = c.To
	}
	return nil
}

// group finds a group for a command.
func (s *State) group(op string, id storage.GroupID) (storage.Group, error) {
	g, ok := s.Group(id)
	if !ok {
		return g, refuse(op, storage.KindNotFound, "group "+id.String(), "there is no such group")
	}
	return g, nil
}

// usableStore checks that a new replica may be placed on the store.
func (s *State) usableStore(op, subject string, node storage.NodeID, store storage.StoreID) error {
	n, ok := s.nodes[node]
	switch {
	case !ok:
		return refuse(op, storage.KindNotFound, subject, "there is no node %s", node)
	case s.nodeByStore[store] != node:
		return refuse(op, storage.KindNotFound, subject, "node %s has no store %s", n.Name, store)
	case n.State != storage.NodeUp:
		return refuse(op, storage.KindConflict, subject, "node %s is %s; only a node that is up takes new replicas", n.Name,
			n.State)
	}
	return nil
}

func (c AddGroup) apply(s *State, res *Result) error {
	const op = "add group"
	subject, store := "group "+c.Group.String(), c.Store
	res.Group, res.Replica = c.Group, storage.ReplicaKey{Store: store, Incarnation: 1}
	if g, ok := s.groups[c.Group]; ok {
		if _, same := g.Replica(res.Replica); same {
			return nil
		}
		return refuse(op, storage.KindExists, subject, "it exists already")
	}
	if c.Group != s.NextGroup() {
		return refuse(op, storage.KindConflict, subject, "the next group is %s; read the catalog again", s.NextGroup())
	}
	if len(s.groups) >= MaxGroups {
		return refuse(op, storage.KindNoSpace, subject, "the cluster has %d groups, the limit", MaxGroups)
	}
	if err := s.usableStore(op, subject, c.Node, store); err != nil {
		return err
	}
	s.lastGroup = c.Group
	s.putGroup(storage.Group{ID: c.Group, State: storage.GroupCreating, LastIncarnation: 1,
		Replicas: []storage.Replica{{Node: c.Node, Key: res.Replica, Role: storage.RoleVoter}}})
	return nil
}

func (c SetGroupReady) apply(s *State, res *Result) error {
	g, err := s.group("set group ready", c.Group)
	if err != nil {
		return err
	}
	res.Group = g.ID
	if g.State == storage.GroupReady {
		return nil
	}
	g.State = storage.GroupReady
	s.putGroup(g)
	return nil
}

func (c PlanReplica) apply(s *State, res *Result) error {
	const op = "plan replica"
	g, err := s.group(op, c.Group)
	if err != nil {
		return err
	}
	subject, store := "group "+g.ID.String(), c.Store
	res.Group = g.ID
	if r, ok := g.OnNode(c.Node); ok {
		if r.Key.Store == store && r.Role != storage.RoleLeaving {
			res.Replica = r.Key
			return nil
		}
		return refuse(op, storage.KindConflict, subject,
			"node %s holds replica %s (%s) of it; replicas of a group lie on different nodes", c.Node, r.Key, r.Role)
	}
	if g.State != storage.GroupReady {
		return refuse(op, storage.KindConflict, subject, "its first replica is still being created")
	}
	if len(g.Replicas) >= MaxReplicasPerGroup {
		return refuse(op, storage.KindConflict, subject, "it has %d replicas, the limit; remove one first", len(g.Replicas))
	}
	if err := s.usableStore(op, subject, c.Node, store); err != nil {
		return err
	}
	g.LastIncarnation++
	res.Replica = storage.ReplicaKey{Store: store, Incarnation: g.LastIncarnation}
	g.Replicas = append(g.Replicas, storage.Replica{Node: c.Node, Key: res.Replica, Role: storage.RolePulling})
	s.putGroup(g)
	return nil
}

func (c SetReplica) apply(s *State, res *Result) error {
	const op = "set replica"
	g, err := s.group(op, c.Group)
	if err != nil {
		return err
	}
	res.Group, res.Replica = g.ID, c.Key
	at := slices.IndexFunc(g.Replicas, func(r storage.Replica) bool { return r.Key == c.Key })
	if at < 0 {
		return refuse(op, storage.KindNotFound, "group "+g.ID.String(), "it has no replica %s", c.Key)
	}
	old := g.Replicas[at].Role
	switch {
	case old == c.Role:
		return nil
	case old == storage.RoleLeaving && c.Stays: // its leader says that it votes
	case old == storage.RoleLeaving: // it may be dropped already
		return refuse(op, storage.KindConflict, "group "+g.ID.String(), "replica %s leaves; another one takes its place", c.Key)
	case old == storage.RoleVoter && c.Role == storage.RoleLearner:
		return refuse(op, storage.KindConflict, "group "+g.ID.String(), "replica %s votes; voters leave, they are not demoted",
			c.Key)
	case old == storage.RoleVoter && g.Count(storage.RoleVoter) == 1:
		return refuse(op, storage.KindConflict, "group "+g.ID.String(),
			"replica %s is its last voter; add another replica first", c.Key)
	}
	g.Replicas[at].Role, g.Replicas[at].ConfigIndex = c.Role, c.ConfigIndex
	s.putGroup(g)
	return nil
}

func (c RemoveReplica) apply(s *State, res *Result) error {
	const op = "remove replica"
	g, err := s.group(op, c.Group)
	if err != nil {
		return err
	}
	res.Group, res.Replica = g.ID, c.Key
	r, ok := g.Replica(c.Key)
	if !ok {
		if c.Key.Incarnation > g.LastIncarnation {
			return refuse(op, storage.KindNotFound, "group "+g.ID.String(), "it never had replica %s", c.Key)
		}
		return nil
	}
	if r.Role != storage.RolePulling && r.Role != storage.RoleLeaving {
		return refuse(op, storage.KindConflict, "group "+g.ID.String(),
			"replica %s is a %s; take it out of the group's configuration first", c.Key, r.Role)
	}
	g.Replicas = slices.DeleteFunc(g.Replicas, func(r storage.Replica) bool { return r.Key == c.Key })
	s.putGroup(g)
	return nil
}
