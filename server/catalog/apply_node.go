package catalog

import (
	"maps"
	"slices"
	"strings"
	"time"

	storage "github.com/storaged/storaged"
)

func (c AddNode) apply(s *State, res *Result) error {
	const op = "add"
	subject := "node " + c.Name
	known, err := s.ownerOf(op, subject, c.Stores)
	if err != nil {
		return err
	}
	if known != 0 {
		res.Node = known
		return nil
	}
	if len(s.nodes) >= MaxNodes {
		return refuse(op, storage.KindNoSpace, subject, "the cluster has had %d nodes, the limit", MaxNodes)
	}
	id := s.lastNode + 1
	n := storage.Node{ID: id, Name: c.Name, Zone: c.Zone, Addrs: c.Addrs, Stores: slices.Clone(c.Stores), State: storage.NodeUp,
		AddedAt: c.At.UTC()}
	if n.Name == "" {
		n.Name = "node-" + id.String()
	}
	if err := s.nameFree(op, n.Name, id); err != nil {
		return err
	}
	s.lastNode = id
	s.putNode(n)
	res.Node = id
	return nil
}

// ownerOf returns the node that has the stores already, 0 if none has any.
func (s *State) ownerOf(op, subject string, stores []storage.Store) (storage.NodeID, error) {
	var owner storage.NodeID
	for _, st := range stores {
		id, ok := s.nodeByStore[st.ID]
		if !ok {
			continue
		}
		if n := s.nodes[id]; n.State == storage.NodeRemoved {
			return 0, refuse(op, storage.KindConflict, subject,
				"store %s belonged to node %s, which was removed; start with an empty data directory", st.ID, n.Name)
		}
		if owner != 0 && owner != id {
			return 0, refuse(op, storage.KindConflict, subject,
				"its stores belong to the nodes %s and %s; start each node with its own data directories",
				s.nodes[owner].Name, s.nodes[id].Name)
		}
		owner = id
	}
	return owner, nil
}

func (s *State) nameFree(op, name string, self storage.NodeID) error {
	if id, ok := s.nodeByName[name]; ok && id != self {
		return refuse(op, storage.KindExists, "node "+name,
			"node %s has this name already; give another one with --name, or remove that node", id)
	}
	return nil
}

func (c UpdateNode) apply(s *State, res *Result) error {
	const op = "update"
	old, ok := s.nodes[c.Node]
	if !ok || old.State == storage.NodeRemoved {
		return refuse(op, storage.KindNotFound, "node "+c.Node.String(), "there is no such node, or it was removed")
	}
	subject := "node " + old.Name
	if err := s.nameFree(op, c.Name, c.Node); err != nil {
		return err
	}
	if owner, err := s.ownerOf(op, subject, c.Stores); err != nil {
		return err
	} else if owner != 0 && owner != c.Node {
		return refuse(op, storage.KindConflict, subject, "a store of it belongs to node %s", s.nodes[owner].Name)
	}
	for _, st := range old.Stores {
		kept := slices.ContainsFunc(c.Stores, func(x storage.Store) bool { return x.ID == st.ID })
		if groups := s.groupsOn(st.ID); !kept && len(groups) > 0 {
			return refuse(op, storage.KindConflict, subject,
				"store %s is missing and holds replicas of groups %s; start the node with all its data directories, "+
					"or drain the node first", st.ID, listGroups(groups))
		}
	}
	res.Node = c.Node
	n := *old
	n.Name, n.Zone, n.Addrs, n.Stores = c.Name, c.Zone, c.Addrs, slices.Clone(c.Stores)
	if n.Name == old.Name && n.Zone == old.Zone && n.Addrs == old.Addrs && slices.Equal(n.Stores, old.Stores) {
		return nil
	}
	s.putNode(n)
	return nil
}

// groupsOn returns the groups with a replica on the store, ascending.
func (s *State) groupsOn(store storage.StoreID) []storage.GroupID {
	return keysOf(s.groups, func(g *storage.Group) bool {
		return slices.ContainsFunc(g.Replicas, func(r storage.Replica) bool { return r.Key.Store == store })
	})
}

func listGroups(ids []storage.GroupID) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	return listed(names)
}

// listed joins the first few names, so that an error message stays readable.
func listed(names []string) string {
	const most = 8
	if len(names) > most {
		return strings.Join(names[:most], ", ") + " and others"
	}
	return strings.Join(names, ", ")
}

func (c SetNodeState) apply(s *State, res *Result) error {
	const op = "set node state"
	old, ok := s.nodes[c.Node]
	if !ok {
		return refuse(op, storage.KindNotFound, "node "+c.Node.String(), "there is no such node")
	}
	res.Node = c.Node
	if old.State == c.State {
		return nil
	}
	subject := "node " + old.Name
	if c.From != "" && c.From != old.State {
		return refuse(op, storage.KindConflict, subject, "it is %s, not %s", old.State, c.From)
	}
	if err := s.stateAllowed(op, subject, old, c.State); err != nil {
		return err
	}
	n := old.Clone()
	n.State = c.State
	switch {
	case c.State == storage.NodeUp || c.State == storage.NodeRemoved:
		n.SilentSince = time.Time{}
	case n.SilentSince.IsZero(): // suspect before it is down: the silence is one
		n.SilentSince = c.Since.UTC()
	}
	if c.State == storage.NodeRemoved {
		n.Intent, n.IntentUntil = storage.IntentServe, time.Time{}
	}
	s.putNode(n)
	return nil
}

func (c SetNodeIntent) apply(s *State, res *Result) error {
	const op = "set node intent"
	old, ok := s.nodes[c.Node]
	if !ok {
		return refuse(op, storage.KindNotFound, "node "+c.Node.String(), "there is no such node")
	}
	res.Node = c.Node
	if old.Intent == c.Intent && old.IntentUntil.Equal(c.Until) {
		return nil
	}
	if err := s.IntentAllowed(op, old, c); err != nil {
		return err
	}
	n := old.Clone()
	n.Intent, n.IntentUntil = c.Intent, c.Until.UTC()
	s.putNode(n)
	return nil
}

// IntentAllowed returns why people may not want that of the node now.
func (s *State) IntentAllowed(op string, n *storage.Node, c SetNodeIntent) error {
	subject := "node " + n.Name
	switch {
	case n.State == storage.NodeRemoved:
		return refuse(op, storage.KindConflict, subject, "it was removed for ever")
	case c.From != storage.IntentServe && n.Intent != c.From:
		return refuse(op, storage.KindConflict, subject, "it is not %s%s", c.From, otherIntent(n.Intent))
	case !c.Ended.IsZero() && !n.IntentUntil.Equal(c.Ended):
		return refuse(op, storage.KindConflict, subject, "its maintenance has another end by now")
	case c.Intent == storage.IntentMaintenance && n.Intent == storage.IntentDrain:
		return refuse(op, storage.KindConflict, subject, "it is draining; end that first with `storagectl node undrain %s`", n.Name)
	case c.Intent == storage.IntentDrain:
		return s.mayDrain(op, subject, n)
	}
	return nil
}

func otherIntent(i storage.NodeIntent) string {
	if i == storage.IntentServe {
		return ""
	}
	return ", but " + i.String()
}

func (s *State) stateAllowed(op, subject string, n *storage.Node, to storage.NodeState) error {
	switch {
	case n.State == storage.NodeRemoved:
		return refuse(op, storage.KindConflict, subject, "it was removed for ever; join it anew with an empty data directory")
	case to == storage.NodeRemoved:
		return s.mayRemove(op, subject, n)
	}
	return nil
}

// mayDrain lets a node drain when the others can hold as many replicas of everything as there are now.
func (s *State) mayDrain(op, subject string, n *storage.Node) error {
	remaining := 0
	for _, x := range s.nodes {
		if x.ID != n.ID && x.Usable() {
			remaining++
		}
	}
	need := s.cluster.Wanted(remaining + 1)
	for _, g := range s.groups {
		if _, ok := g.OnNode(n.ID); ok {
			need = max(need, g.Count(storage.RoleVoter))
		}
	}
	if remaining < need {
		return refuse(op, storage.KindConflict, subject,
			"%d other nodes would remain for groups of %d replicas; join another node first. To stop it for a while, use `storagectl node maintenance %s`",
			remaining, need, n.Name)
	}
	return nil
}

// RemovalAllowed returns why a node may not be removed now.
func (s *State) RemovalAllowed(op string, n *storage.Node) error {
	return s.stateAllowed(op, "node "+n.Name, n, storage.NodeRemoved)
}

// mayRemove lets a drained node go when it holds nothing any more. It lets a node that is down go when every group on
// it has a majority of its voters elsewhere, on nodes that are up: the group's leader can then replace what was on
// the node.
func (s *State) mayRemove(op, subject string, n *storage.Node) error {
	groups := s.groupsOnNode(n)
	switch {
	case n.Intent == storage.IntentDrain && len(groups) == 0:
		return nil
	case n.State == storage.NodeDown: // also one that drains: it may never come back
		return s.mayLose(op, subject, n)
	case n.Intent == storage.IntentDrain:
		return refuse(op, storage.KindConflict, subject, "it holds replicas of groups %s; wait until they have moved", listGroups(groups))
	}
	return refuse(op, storage.KindConflict, subject, "it is %s; drain it with `storagectl node drain %s`, or stop storaged there for good and wait until the node is shown as down",
		n.State, n.Name)
}

func (s *State) groupsOnNode(n *storage.Node) []storage.GroupID {
	var groups []storage.GroupID
	for _, st := range n.Stores {
		groups = append(groups, s.groupsOn(st.ID)...)
	}
	slices.Sort(groups)
	return groups
}

func (s *State) mayLose(op, subject string, n *storage.Node) error {
	var last, minor []storage.GroupID
	need := map[string]bool{}
	for _, id := range s.groupsOnNode(n) {
		g := s.groups[id]
		if r, _ := g.OnNode(n.ID); r.Role == storage.RolePulling || r.Role == storage.RoleLearner {
			continue
		}
		voters, up := 0, 0
		for _, r := range g.Replicas {
			if r.Role != storage.RoleVoter && r.Role != storage.RoleLeaving { // one that leaves may still vote
				continue
			}
			voters++
			switch on := s.nodes[r.Node]; {
			case r.Node == n.ID || r.Role == storage.RoleLeaving:
			case on.State == storage.NodeUp:
				up++
			default:
				need[on.Name] = true
			}
		}
		switch {
		case g.Count(storage.RoleVoter) == 1 && up == 0:
			last = append(last, id)
		case up < voters/2+1:
			minor = append(minor, id)
		}
	}
	switch {
	case len(last) > 0:
		return refuse(op, storage.KindConflict, subject,
			"it holds the only copy of groups %s; start it again with its data directory, or that data is lost", listGroups(last))
	case len(minor) > 0 && len(need) == 0:
		return refuse(op, storage.KindConflict, subject,
			"groups %s have no majority without it; wait until their other replicas have been replaced", listGroups(minor))
	case len(minor) > 0:
		return refuse(op, storage.KindConflict, subject,
			"groups %s have no majority without it; start node %s first, or this one with its data directory", listGroups(minor),
			listed(slices.Sorted(maps.Keys(need))))
	}
	return nil
}
