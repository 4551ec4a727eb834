package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/runner"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// nodesLocked records who is up, suspect and down. Nobody is judged before the term is as old as the silence.
func (l *leadership) nodesLocked(v placement.View, now time.Time) []task {
	var todo []task
	for _, n := range v.Nodes {
		silence := l.silenceLocked(n.ID, now)
		to := judge(n.State, silence, l.c.cfg.SuspectAfter, l.c.cfg.DownAfter)
		if _, heard := l.reports[n.ID]; to == n.State || to == storage.NodeUp && !heard {
			continue
		}
		set := catalog.SetNodeState{Node: n.ID, From: n.State, State: to}
		if to != storage.NodeUp && v.Cluster.Version >= catalog.IntentVersion {
			set.Since = now.Add(-silence).UTC()
		}
		todo = append(todo, l.propose("node "+n.ID.String(), "node state", set,
			fmt.Sprintf("%s is %s after %v of silence", n.Name, to, silence.Round(time.Millisecond))))
	}
	return todo
}

// silenceLocked returns how long a node was not heard of in this term.
func (l *leadership) silenceLocked(id storage.NodeID, now time.Time) time.Duration {
	if r, ok := l.reports[id]; ok {
		return now.Sub(r.at)
	}
	return now.Sub(l.since)
}

// downForLocked returns for how long a node that is down has been silent, for its replicas to be made anew. What leaders before this one
// recorded counts once the node was silent for long enough in this term, too: it may be back since.
func (l *leadership) downForLocked(n storage.Node, now time.Time) time.Duration {
	silence := l.silenceLocked(n.ID, now)
	if silence > l.c.cfg.DownAfter && !n.SilentSince.IsZero() {
		return max(silence, now.Sub(n.SilentSince))
	}
	return silence
}

// maintenanceEnds records that the time of a maintenance is over.
func (l *leadership) maintenanceEnds(s *catalog.State, now time.Time) []task {
	var todo []task
	for _, n := range s.Nodes() {
		if n.At(now).Intent == n.Intent {
			continue
		}
		todo = append(todo, l.propose("node "+n.ID.String(), "maintenance ends",
			catalog.SetNodeIntent{Node: n.ID, From: n.Intent, Ended: n.IntentUntil}, "the maintenance of "+n.Name+" is over"))
	}
	return todo
}

// awayLocked returns the nodes whose replicas are made anew elsewhere, and tells people of each once.
func (l *leadership) awayLocked(v placement.View, now time.Time) map[storage.NodeID]bool {
	away, held := placement.Away(v.Nodes, func(n storage.Node) time.Duration { return l.downForLocked(n, now) }, l.c.cfg.RepairAfter)
	for _, n := range v.Nodes {
		if away[n.ID] && !l.away[n.ID] {
			l.c.cfg.Logger.Warn("a node has been down for long: its replicas are made anew on other nodes", "node", n.ID, "name", n.Name,
				"repair-after", l.c.cfg.RepairAfter)
		}
	}
	if held != "" && held != l.held {
		l.c.cfg.Logger.Warn("nodes have been down for long, and are not replaced by themselves: it does not look like the loss of single nodes",
			"because", held)
	}
	l.away, l.held = away, held
	return away
}

// judge returns the state of a node that was silent for so long. That one is removed is people's decision.
func judge(was storage.NodeState, silence, suspectAfter, downAfter time.Duration) storage.NodeState {
	switch {
	case was == storage.NodeRemoved:
		return was
	case silence > downAfter:
		return storage.NodeDown
	case silence <= suspectAfter:
		return storage.NodeUp
	case was == storage.NodeDown:
		return was
	default:
		return storage.NodeSuspect
	}
}

// growEvery is the time between two groups that are added because there are more nodes than at the start.
const growEvery = time.Minute

// newGroupLocked adds a group while there are fewer than the cluster wants.
func (l *leadership) newGroupLocked(s *catalog.State, v placement.View, now time.Time) []task {
	if len(v.Groups) >= v.Cluster.Groups {
		if !l.c.cfg.Rebalance || now.Sub(l.since) < growEvery || now.Sub(l.grew) < growEvery || len(v.Groups) >= v.GroupsWanted() {
			return nil
		}
		l.grew = now
	}
	node, store, err := placement.Choose(v, nil, 0)
	if err != nil {
		return nil // no report yet, or no room: the next report decides
	}
	return []task{l.propose("groups", "add group",
		catalog.AddGroup{Group: s.NextGroup(), Node: node, Store: store}, "add a group")}
}

// settleFor is how long a group rests at most after an order, until its nodes have reported again.
const settleFor = 3 * time.Second

// groupsLocked takes each group one step on.
func (l *leadership) groupsLocked(v placement.View, now time.Time) []task {
	var todo []task
	planned := map[storage.StoreID]bool{}
	for _, g := range placement.MostEndangeredFirst(v) {
		key := groupKey(g.ID)
		if !l.tasks.idle(key, now) || l.settlingLocked(g, now) {
			continue
		}
		step := placement.Next(v, g)
		switch {
		case step.Kind == placement.StepNone:
			continue
		case step.Kind == placement.StepPlan && planned[step.Store]:
			continue // the next look counts what the first takes
		case step.Kind == placement.StepPlan:
			planned[step.Store] = true
		}
		todo = append(todo, l.groupTask(key, step))
	}
	return todo
}

func groupKey(id storage.GroupID) string { return "group " + id.String() }

// settlingLocked reports whether what the nodes said of the group may be older than the last order's end.
func (l *leadership) settlingLocked(g storage.Group, now time.Time) bool {
	ended, ok := l.settling[g.ID]
	if !ok {
		return false
	}
	if now.Sub(ended) < settleFor {
		for _, r := range g.Replicas {
			if heard, ok := l.reports[r.Node]; ok && heard.at.Before(ended) && now.Sub(heard.at) <= l.c.cfg.SuspectAfter {
				return true
			}
		}
	}
	delete(l.settling, g.ID)
	return false
}

// groupTask makes a step a task: a command to the catalog, or an order followed by a rest until it shows.
func (l *leadership) groupTask(key string, s placement.Step) task {
	text := fmt.Sprintf("%s %s on node %s", s.Kind, s.Key, s.Node)
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	switch s.Kind {
	case placement.StepSetReady:
		return l.propose(key, s.Kind.String(), catalog.SetGroupReady{Group: s.Group}, text)
	case placement.StepPlan:
		return l.propose(key, s.Kind.String(),
			catalog.PlanReplica{Group: s.Group, Node: s.Node, Store: s.Store}, text)
	case placement.StepSetRole:
		return l.propose(key, s.Kind.String(),
			catalog.SetReplica{Group: s.Group, Key: s.Key, Role: s.Role, ConfigIndex: s.ConfigIndex, Stays: s.Stays}, text+" is now a "+string(s.Role))
	case placement.StepForget:
		return l.propose(key, s.Kind.String(), catalog.RemoveReplica{Group: s.Group, Key: s.Key}, text)
	}
	t := task{key: key, kind: s.Kind.String(), text: text}
	if s.Kind == placement.StepCreate {
		t.from, t.to = s.Leader, s.Node
	}
	t.run = func(ctx context.Context) error {
		err := l.bounded(ctx, s, func(ctx context.Context) error { return l.order(ctx, s) })
		l.mu.Lock()
		l.settling[s.Group] = time.Now()
		l.mu.Unlock()
		return err
	}
	return t
}

// order carries a step out in the world.
func (l *leadership) order(ctx context.Context, s placement.Step) error {
	a := l.c.cfg.Actions
	replica := ReplicaOrder{Group: s.Group, Node: s.Node, Key: s.Key}
	change := func(m runner.Change) MembershipOrder {
		return MembershipOrder{ReplicaOrder: replica, Leader: s.Leader, Change: m, ConfigIndex: s.ConfigIndex}
	}
	switch s.Kind {
	case placement.StepBootstrap:
		return a.CreateReplica(ctx, CreateOrder{ReplicaOrder: replica, Bootstrap: true})
	case placement.StepCreate:
		return a.CreateReplica(ctx, CreateOrder{ReplicaOrder: replica, Source: s.Leader})
	case placement.StepAddLearner:
		return a.ChangeMembership(ctx, change(runner.AddNonvoter))
	case placement.StepPromote:
		err := a.ChangeMembership(ctx, change(runner.AddVoter))
		for _, m := range s.Also { // back to back: an even number of voters bears no failure more than one fewer
			if err != nil {
				return err
			}
			next := change(runner.AddVoter)
			next.Key, next.Node, next.ConfigIndex = m.Key, m.Node, 0
			err = a.ChangeMembership(ctx, next)
		}
		return err
	case placement.StepRemove:
		return a.ChangeMembership(ctx, change(runner.RemoveServer))
	case placement.StepTransfer:
		return a.TransferLeader(ctx, TransferOrder{ReplicaOrder: replica, Leader: s.Leader})
	case placement.StepDrop:
		return a.DropReplica(ctx, replica)
	}
	return storage.E("order", storage.KindInternal, "group "+s.Group.String(), fmt.Errorf("step %v is no order", s.Kind))
}

// balanceLocked moves leaders to where they should be, one group a cool-down, and to nodes that are back for as long.
func (l *leadership) balanceLocked(v placement.View, now time.Time) []task {
	cooldown := l.c.cfg.BalanceCooldown
	var todo []task
	for _, s := range placement.LeaderMoves(v) {
		key := groupKey(s.Group)
		g, _ := find(v.Groups, s.Group)
		back := l.backAt[s.Node]
		if now.Sub(l.moved[s.Group]) < cooldown || now.Sub(back) < cooldown || !l.tasks.idle(key, now) ||
			l.settlingLocked(g, now) || placement.Next(v, g).Kind != placement.StepNone {
			continue
		}
		t := l.groupTask(key, s)
		t.kind = "balance"
		run := t.run
		t.run = func(ctx context.Context) error {
			l.mu.Lock()
			l.moved[s.Group] = time.Now()
			l.mu.Unlock()
			return run(ctx)
		}
		todo = append(todo, t)
	}
	return todo
}

// rebalanceLocked moves replicas to stores that are less loaded, a few at a time. What is to be repaired goes first.
func (l *leadership) rebalanceLocked(v placement.View, now time.Time) []task {
	cooldown := l.c.cfg.BalanceCooldown
	if !l.c.cfg.Rebalance || now.Sub(l.since) < cooldown || now.Sub(l.evened) < cooldown {
		return nil
	}
	l.evened = now
	var todo []task
	for _, s := range placement.ReplicaMoves(v) {
		key := groupKey(s.Group)
		if g, _ := find(v.Groups, s.Group); !l.tasks.idle(key, now) || l.settlingLocked(g, now) {
			continue
		}
		t := l.groupTask(key, s)
		t.kind = "rebalance"
		l.c.cfg.Logger.Info("a replica is to move", "group", s.Group, "replica", s.Key, "from", s.Node, "reason", s.Reason)
		todo = append(todo, t)
	}
	return todo
}

func find(groups []storage.Group, id storage.GroupID) (storage.Group, bool) {
	at, ok := slices.BinarySearchFunc(groups, id, func(g storage.Group, id storage.GroupID) int { return cmp.Compare(g.ID, id) })
	if !ok {
		return storage.Group{}, false
	}
	return groups[at], true
}

// sessionsLocked expires the sessions of gateways that fell silent, and closes those that have expired.
func (l *leadership) sessionsLocked(s *catalog.State, now time.Time) []task {
	var todo []task
	var silent []storage.SessionID
	all := s.Sessions()
	seen := make(map[storage.SessionID]time.Time, len(all)) // forgets the sessions that are gone
	for _, x := range all {
		at, ok := l.sessions[x.ID]
		if !ok {
			at = now
		}
		seen[x.ID] = at
		switch {
		case x.State == catalog.SessionClosing:
			todo = append(todo, l.closeSession(s, x)...)
		case now.Sub(at) > l.c.cfg.SessionTimeout && len(silent) < catalog.MaxSessionsPerCommand:
			silent = append(silent, x.ID)
		}
	}
	l.sessions = seen
	if len(silent) > 0 {
		todo = append(todo, l.propose("sessions", "expire sessions", catalog.ExpireSessions{Sessions: silent},
			fmt.Sprintf("%d sessions were not heard of for %v", len(silent), l.c.cfg.SessionTimeout)))
	}
	return todo
}

// closeSession closes an expired session in every group of its volume, and then in the catalog.
func (l *leadership) closeSession(s *catalog.State, x catalog.Session) []task {
	v, ok := s.Volume(x.Volume)
	if !ok || v.State == storage.VolumeDeleting {
		return nil // the deletion closes it
	}
	return []task{l.inGroups("session "+x.ID.String(), "close session", "close it in every group", v, catalog.CloseSession{Session: x.ID},
		func(ctx context.Context, g storage.GroupID) error {
			return l.c.cfg.Actions.CloseSession(ctx, g, v.ID, x.ID)
		})}
}

// fenceAfter is how long whoever has begun a takeover is left alone with it.
const fenceAfter = time.Second

// fencesLocked finishes what a takeover has begun whose caller is gone.
func (l *leadership) fencesLocked(s *catalog.State, now time.Time) []task {
	var todo []task
	at := s.Applied()
	seen := map[storage.VolumeID]time.Time{} // forgets those that are done
	defer func() { l.unfenced = seen }()
	for _, v := range s.Unfenced() {
		since, ok := l.unfenced[v.ID]
		if !ok {
			since = now
		}
		seen[v.ID] = since
		if now.Sub(since) < fenceAfter || v.State != storage.VolumeReady { // the groups refuse a deleted one as a whole
			continue
		}
		todo = append(todo, l.inGroups("volume "+v.ID.String(), "fence", "fence the former holder of "+v.Name+" in every group", v,
			catalog.SetFenced{Volume: v.ID, Generation: v.Generation}, func(ctx context.Context, g storage.GroupID) error {
				return l.c.cfg.Actions.SetGeneration(ctx, g, v.ID, v.Generation, at)
			}))
	}
	return todo
}

// leftovers detaches volumes from nodes that were removed.
func (l *leadership) leftovers(s *catalog.State) []task {
	removed := map[storage.NodeID]bool{}
	for _, n := range s.Nodes() {
		if n.State == storage.NodeRemoved {
			removed[n.ID] = true
		}
	}
	if len(removed) == 0 {
		return nil
	}
	var todo []task
	for _, a := range s.Attachments() {
		if !removed[a.Holder.Node] {
			continue
		}
		todo = append(todo, l.propose("volume "+a.Volume.String(), "detach", catalog.Detach{Volume: storage.ByID(a.Volume),
			Holder: a.Holder.ID, Attachment: a.ID, At: time.Now().UTC()}, "detach it from a node that was removed"))
	}
	return todo
}

// deletions finishes the deletion of volumes. First every group deletes its part. Then every group forgets the volume, while
// the catalog still knows it and opens no session of it any more. Then the catalog forgets it. After an interruption the
// deletion begins at the first step again, from a later index of the catalog.
func (l *leadership) deletions(s *catalog.State) []task {
	var todo []task
	at, session := s.Applied(), s.LastSession()
	for _, v := range s.DeletingVolumes() {
		todo = append(todo, l.inGroups("volume "+v.ID.String(), "delete volume", "delete "+v.Name+" in every group", v,
			catalog.FinishDelete{Volume: v.ID}, func(ctx context.Context, g storage.GroupID) error {
				return l.c.cfg.Actions.DeleteVolume(ctx, g, v.ID, at)
			}, func(ctx context.Context, g storage.GroupID) error {
				return l.c.cfg.Actions.ForgetDeleted(ctx, g, session, at)
			}))
	}
	return todo
}

// inGroups is a task that takes each step in every group of a volume before the next one, and then applies a command.
func (l *leadership) inGroups(key, kind, text string, v storage.Volume, last catalog.Command, steps ...func(context.Context, storage.GroupID) error) task {
	return task{key: key, kind: kind, text: text, run: func(ctx context.Context) error {
		for _, step := range steps {
			if err := l.everywhere(ctx, v.Groups, step); err != nil {
				return err
			}
		}
		return l.c.applyHere(ctx, last)
	}}
}

// everywhere calls fn for every group, one after the other, each with a time-out of its own. It goes on after an
// error, so that one group without a leader does not hold up the others, and returns all errors.
func (l *leadership) everywhere(ctx context.Context, groups []storage.GroupID, fn func(context.Context, storage.GroupID) error) error {
	var errs []error
	for _, g := range groups {
		one, cancel := context.WithTimeout(ctx, l.c.cfg.RequestTimeout)
		err := fn(one, g)
		cancel()
		if err != nil {
			errs = append(errs, fmt.Errorf("group %s: %w", g, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// handOverKind is the kind of tasks that hand the catalog over.
const handOverKind = "catalog leader"

// votersLocked brings the catalog's own configuration in step with the nodes. A node that drains hands the catalog over before. If that
// fails it goes on with the members, and tries again after a while.
func (l *leadership) votersLocked(v placement.View, now time.Time) []task {
	index := l.c.fsm.config.Load() // before the members: what is decided on those of a later change is refused
	servers := l.c.inst.Configuration().Servers
	if to, ok := catalogTransferTarget(servers, v, l.c.id.Node, l.c.inst.LastIndex()); ok && now.Sub(l.since) >= l.c.cfg.BalanceCooldown && now.Sub(l.stays) >= l.c.cfg.BalanceCooldown {
		return []task{{key: "catalog", kind: handOverKind, text: "this node drains, or is in maintenance: hand over to " + string(to.Address),
			run: func(context.Context) error { return l.c.inst.Transfer("hand the catalog over", to.ID, to.Address) }}}
	}
	changes := catalogChanges(servers, v, l.c.id.Node, index, l.c.inst.LastIndex())
	if len(changes) == 0 {
		return nil
	}
	return []task{{key: "catalog", kind: "catalog membership", text: fmt.Sprint(changes), run: func(ctx context.Context) error {
		for i, change := range changes {
			at := index
			if i > 0 {
				at = 0 // only the first was decided on this configuration
			}
			if err := l.changeCatalog(ctx, change, at); err != nil {
				return err
			}
		}
		return nil
	}}}
}

func (l *leadership) changeCatalog(ctx context.Context, change serverChange, index uint64) error {
	if err := l.c.barrier(ctx); err != nil { // an entry that may be refused: is there room? See disk.StoreLogs
		return err
	}
	if err := l.c.inst.Change(ctx, "change the catalog's members", change.Change, ServerID(change.Node), change.Node, index); err != nil {
		return err
	}
	l.c.cfg.Logger.Info("the catalog's members changed", "change", change.Change, "node", change.Node)
	return nil
}
