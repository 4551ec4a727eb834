package status

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// goOnWithout ends the next step of what has no majority.
const goOnWithout = "; if they are lost for good, `storaged recover` goes on without them (docs/runbook.md)"

// status sums the picture up and judges it.
func (p *picture) status() api.Status {
	s := api.Status{ReplicasWanted: p.cluster.Replicas, GroupsTotal: len(p.groups), Volumes: len(p.volumes), UsableBytes: p.usable,
		CatalogLeader: p.fresh.Leader, CatalogLeaderName: p.names[p.fresh.Leader], CatalogIndex: p.fresh.Index,
		AnsweredBy: p.self, AnsweredByName: p.names[p.self], Age: p.fresh.Age}
	if s.Age == catalog.NeverHeard {
		s.Age = -1
	}
	for _, v := range p.volumes {
		s.ProvisionedBytes += v.SizeBytes
	}
	nodes, groups := p.apiNodes(), p.apiGroups()
	for _, n := range nodes {
		addNode(&s, n)
	}
	sums := p.sumGroups(groups)
	s.GroupsFull, s.GroupsWithoutLeader, s.Tasks = sums.full, len(sums.leaderless), sums.tasks
	s.Reasons = p.judgeCatalog()
	for _, n := range nodes {
		reasons, warnings := p.judgeNode(n, groups)
		s.Reasons, s.Warnings = append(s.Reasons, reasons...), append(s.Warnings, warnings...)
	}
	s.Reasons = append(s.Reasons, judgeSize(p.cluster.Replicas, len(nodes))...)
	s.Reasons = append(s.Reasons, sums.judge(p.cluster.Replicas, len(nodes))...)
	slices.SortStableFunc(s.Reasons, func(a, b api.Reason) int { return cmp.Compare(rank[a.Severity], rank[b.Severity]) })
	s.Version, s.VersionKnown = p.versions()
	s.Health = api.HealthOK
	if len(s.Reasons) > 0 {
		s.Health = s.Reasons[0].Severity
	}
	return s
}

// versions returns the version of the cluster that is in force, and the newest that every node knows; 0: not known.
func (p *picture) versions() (inForce, known int) {
	if p.cluster.ID.IsZero() {
		return 0, 0
	}
	inForce, known = max(p.cluster.Version, catalog.BaseVersion), catalog.Version
	for _, n := range p.nodes {
		heard, ok := p.reports[n.ID]
		switch {
		case n.State == storage.NodeRemoved:
		case !ok || heard.Age >= staleReport:
			return inForce, 0
		default:
			known = min(known, max(heard.Report.Knows, catalog.BaseVersion))
		}
	}
	return inForce, max(known, inForce) // who does not know what is in force does not run
}

// rank orders reasons, the worst first.
var rank = map[api.Health]int{api.HealthCritical: 0, api.HealthStarting: 1, api.HealthDegraded: 2}

func addNode(s *api.Status, n api.Node) {
	s.NodesTotal++
	if n.State == storage.NodeUp {
		s.NodesUp++
	}
	s.CapacityBytes += n.CapacityBytes()
	s.UsedBytes += n.UsedBytes()
	s.FreeBytes += n.FreeBytes()
	for _, store := range n.Stores {
		if store.State == api.StoreUnknown {
			s.StoresUnknown++
		}
		if store.Known() && store.State != api.StoreFailed {
			addRoom(s, api.StoreRoom{Node: n.ID, NodeName: n.Name, Store: store.ID, FreeBytes: store.FreeBytes, Fill: store.Fill, GarbageBytes: store.GarbageBytes,
				Compaction: store.Compaction})
		}
	}
}

// addRoom adds a store that takes data.
func addRoom(s *api.Status, r api.StoreRoom) {
	s.GarbageBytes += r.GarbageBytes
	if s.Fullest == nil || r.FreeBytes < s.Fullest.FreeBytes {
		s.Fullest = &r
	}
	if r.Compaction.Works() {
		s.Compacting = append(s.Compacting, r)
	}
}

// judgeCatalog judges whether the catalog serves, and whether what is in it is whole.
func (p *picture) judgeCatalog() (rs []api.Reason) {
	add := func(severity api.Health, subject, text, step string) {
		rs = append(rs, api.Reason{Severity: severity, Subject: subject, Text: text, NextStep: step})
	}
	switch {
	case p.unborn != "":
		add(api.HealthStarting, "catalog", p.unborn, "wait a moment; if it stays so, look at the log of this node")
	case p.catalogFull:
		severity, text := api.HealthDegraded, "its log finds no room on this node, which learns nothing new of it; "+p.copyAge()
		if p.fresh.Leader == 0 {
			severity, text = api.HealthCritical, "it has no leader, and its log finds no room on this node; "+p.copyAge()
		}
		add(severity, "catalog", text, "make room on the file system of this node's data directory: remove what does not belong there, or enlarge it; "+
			"the node then goes on by itself. Keep its data directory")
	case p.fresh.Leader == 0:
		add(api.HealthCritical, "catalog", "it has no leader; "+p.copyAge(),
			"bring up nodes until a majority runs; `storagectl node list` shows them"+goOnWithout)
	case p.alone:
		add(api.HealthDegraded, "catalog", "its leader does not answer; what follows is from this node's copy", "")
	}
	if text := p.making(); text != "" {
		add(api.HealthStarting, "cluster", text,
			"wait a moment; if it stays so, look at the other reasons, and at the log of the node that leads the catalog")
	}
	return rs
}

// copyAge says what the answer rests on while the catalog has no leader.
func (p *picture) copyAge() string {
	switch {
	case p.fresh.Age == catalog.NeverHeard && len(p.nodes) == 0:
		return "this node has not read it since it was started, so nodes, groups and volumes are not known"
	case p.fresh.Age == catalog.NeverHeard:
		return "this node has heard no leader since it was started, and shows what its disk holds"
	}
	return fmt.Sprintf("what follows is what this node knew %v ago", p.fresh.Age.Round(time.Second))
}

// making says what of a new cluster is still being made, if that is known: an old copy of the catalog may show what is long done.
func (p *picture) making() string {
	if p.alone {
		return ""
	}
	return making(p.cluster, p.groups)
}

// judgeSize judges whether the cluster has the nodes that it needs.
func judgeSize(copies, nodes int) []api.Reason {
	if nodes == 0 || nodes >= copies {
		return nil
	}
	return []api.Reason{{Severity: api.HealthDegraded, Subject: "cluster",
		Text: fmt.Sprintf("it has %d of the %d nodes that %d copies of everything need", nodes, copies, copies), NextStep: "start more nodes with --join"}}
}

func (p *picture) judgeNode(n api.Node, groups []api.Group) (reasons, warnings []api.Reason) {
	reasons = append(p.judgeState(n), p.judgeReadiness(n)...)
	reasons = append(reasons, p.judgeRefusals(n)...)
	warnings = p.judgeIntent(n)
	for _, s := range n.Stores {
		bad, odd := p.judgeScrub(n.Name, s)
		reasons, warnings = append(reasons, bad...), append(warnings, odd...)
		if said, ok := p.reports[n.ID].Report.Store(s.ID); ok && said.Displaced && s.State != api.StoreFailed {
			reasons = append(reasons, p.judgeDisplaced(n.Name, s, groups))
			continue
		}
		r, found := judgeStore(n.Name, s, groups)
		switch {
		case !found:
		case r.Severity == api.HealthOK:
			warnings = append(warnings, r)
		default:
			reasons = append(reasons, r)
		}
	}
	return reasons, warnings
}

// judgeDisplaced judges a store on a file system that others have filled. What is not known of other stores counts as good.
func (p *picture) judgeDisplaced(node string, s api.Store, groups []api.Group) api.Reason {
	r := api.Reason{Severity: api.HealthDegraded, Subject: "store " + s.ID.String(),
		Text:     "files that are not storaged's fill the disk of node " + node + ": its copies fall behind, and writes go on with the others",
		NextStep: "remove what does not belong on that file system, or enlarge it; the copies then catch up by themselves. Keep the data directory"}
	displaced := 0
	for _, heard := range p.reports {
		if heard.Age < staleReport && slices.ContainsFunc(heard.Report.Stores, func(s placement.StoreReport) bool { return s.Displaced }) {
			displaced++
		}
	}
	if displaced > 1 || needed(groups, s.ID) != 0 {
		r.Severity, r.Text = api.HealthCritical, "files that are not storaged's fill the disk of node "+node+": writes are refused where no majority of the copies has room"
	}
	return r
}

// judgeState judges whether a node is up, and whether its connections tell of anything wrong.
func (p *picture) judgeState(n api.Node) []api.Reason {
	text, step := judgeWhere(n.Name, n.State == storage.NodeUp, n.Addrs.Peer, p.where[n.ID])
	switch {
	case n.State == storage.NodeUp:
		if text == "" {
			return nil
		}
	case n.State == storage.NodeUnknown:
		if text == "" {
			text = "no report of it; node " + p.names[p.self] + " does not know whether it is up"
			step = "look whether storaged runs there, and whether the nodes reach each other's peer addresses"
		}
	case text == "" && n.Intent == storage.IntentMaintenance:
		text = string(n.State) + p.repair(n)
		step = "start storaged there before that, or give it longer: `storagectl node maintenance " + n.Name + " --for 2h`"
	case text == "":
		text, step = string(n.State)+p.repair(n), downStep(n, p.wasFull(n.ID))
	default:
		text = string(n.State) + ": " + text
	}
	return []api.Reason{{Severity: api.HealthDegraded, Subject: "node " + n.Name, Text: text, NextStep: step}}
}

// judgeIntent says what people want of a node, and how far that is.
func (p *picture) judgeIntent(n api.Node) []api.Reason {
	r := api.Reason{Severity: api.HealthOK, Subject: "node " + n.Name}
	switch held := len(p.groupsOn(n.ID)); {
	case n.Intent == storage.IntentDrain && held > 0:
		r.Text = fmt.Sprintf("draining: %d of its replicas are not elsewhere yet", held)
		r.NextStep = "wait; `storagectl node drain " + n.Name + " --dry-run` says where they go, `storagectl node undrain " + n.Name + "` ends it"
	case n.Intent == storage.IntentDrain:
		r.Text = "it has drained: it holds no data"
		r.NextStep = "`storagectl node remove " + n.Name + "`, and stop storaged there; or `storagectl node undrain " + n.Name + "`"
	case n.Intent == storage.IntentMaintenance && n.State == storage.NodeUp:
		r.Text = "in maintenance until " + until(n.IntentUntil) + ": it gets nothing new, and leads nothing"
		if n.Leaders > 0 {
			r.Text = fmt.Sprintf("in maintenance until %s: it gets nothing new, and still leads %d groups", until(n.IntentUntil), n.Leaders)
		}
		r.NextStep = "when it is done, `storagectl node maintenance " + n.Name + " --end`"
	default:
		return nil
	}
	return []api.Reason{r}
}

// groupsOn returns the groups with a replica on the node.
func (p *picture) groupsOn(id storage.NodeID) (on []storage.GroupID) {
	for _, g := range p.groups {
		if _, ok := g.OnNode(id); ok {
			on = append(on, g.ID)
		}
	}
	return on
}

// repair says what becomes of the replicas of a node that is down, after its state; empty: nothing, by itself.
func (p *picture) repair(n api.Node) string {
	switch {
	case n.State != storage.NodeDown:
		return ""
	case n.Intent == storage.IntentDrain && p.replaceable(n.ID):
		return " while it drains; its replicas are made anew on other nodes"
	case n.Intent == storage.IntentMaintenance:
		return ", in maintenance; its replicas are not made anew before " + until(n.IntentUntil)
	case p.repairAfter == 0:
		return ""
	}
	if len(p.groupsOn(n.ID)) == 0 {
		return "; it holds no replica that the cluster counts on any more"
	}
	if !p.replaceable(n.ID) {
		return "; its replicas come back with it, or with a new node: no other node could take them"
	}
	age := p.downFor
	switch away, held := placement.Away(p.nodes, age, p.repairAfter); {
	case away[n.ID]:
		return fmt.Sprintf(" for %v; its replicas are made anew on other nodes", roundly(age(n.Node)))
	case held != "":
		return fmt.Sprintf("; its replicas are not made anew by themselves, because %s, which does not look like the loss of single nodes", held)
	case age(n.Node) == 0:
		return fmt.Sprintf("; once it has been so for %v (--repair-after) its replicas are made anew on other nodes", p.repairAfter)
	}
	return fmt.Sprintf(" for %v; in %v (--repair-after %v) its replicas are made anew on other nodes", roundly(age(n.Node)),
		roundly(p.repairAfter-age(n.Node)), p.repairAfter)
}

// replaceable reports whether an up node is without a replica of some group that has one on the node. Whether it has room, the groups say.
func (p *picture) replaceable(id storage.NodeID) bool {
	return slices.ContainsFunc(p.groups, func(g storage.Group) bool {
		_, on := g.OnNode(id)
		return on && (len(g.Replicas)-g.Count(storage.RoleLeaving) > p.cluster.Replicas || slices.ContainsFunc(p.nodes, func(n storage.Node) bool {
			_, holds := g.OnNode(n.ID)
			return n.State == storage.NodeUp && !holds
		}))
	})
}

// until is a time in words, to the minute.
func until(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

func roundly(d time.Duration) time.Duration { return d.Round(time.Second) }

// wasFull reports whether a store of the node was full when it was last heard, as far as that is known.
func (p *picture) wasFull(id storage.NodeID) bool {
	return slices.ContainsFunc(p.reports[id].Report.Stores, func(s placement.StoreReport) bool { return s.Failed == "" && s.FreeBytes < fullBytes })
}

func downStep(n api.Node, full bool) string {
	if full { // that is no reason to give a disk up
		return "its disk was full when it was last heard: make room on its file system, then start storaged there, and look at its log; keep its data directory"
	}
	step := "start storaged there, and look at its log; if its address has changed, start it with --join and the address of a node that is up"
	if n.State == storage.NodeDown {
		step += "; only if its disk is lost, `storagectl node remove " + n.Name + "`"
	}
	return step
}

// whereMemory is how long what a node has said lately counts.
const whereMemory = time.Minute

// judgeWhere says what this node's connections to another node, or their absence, show beyond that node's state: it has moved, it
// connects to us and cannot be reached, or two processes claim to be it. Empty: nothing.
func judgeWhere(name string, up bool, recorded string, w peer.Whereabouts) (text, step string) {
	switch {
	case w.Second != nil:
		return fmt.Sprintf("a second process with its identity is refused: %s at %s; the first is %s at %s", w.Second.Process,
				w.Second.Address, w.Process, w.Address),
			"stop the second one: its data directory is a copy. If it is the copy that is to go on, stop the first"
	case !up && errors.Is(w.Err, peer.ErrWithoutRoom):
		return "it runs, and cannot begin: the file system of its data directory is full",
			"make room on that file system: remove what does not belong to the node, or enlarge it; the node then begins by itself. Keep its data directory, which is whole"
	case !up && w.Address != "" && w.Since < whereMemory && w.Address != recorded && w.Reached:
		return fmt.Sprintf("it has moved from %s to %s and comes back", recorded, w.Address), "wait"
	case !up && w.Address != "" && w.Connected && !w.Reached && w.Err != nil: // a node that has died speaks no more
		return fmt.Sprintf("it speaks to this node, and is not reached at %s, which it says is its address: %v", w.Address, w.Err),
			"look at --advertise and --listen-peer of node " + name + ", and at firewalls; do not remove it"
	}
	return "", ""
}

// judgeReadiness says what a node lacks that is up.
func (p *picture) judgeReadiness(n api.Node) []api.Reason {
	unready := p.reports[n.ID].Report.Unready
	if p.alone || n.State != storage.NodeUp || len(unready) == 0 {
		return nil
	}
	severity := api.HealthDegraded
	if p.making() != "" { // no node is ready before the groups are
		severity = api.HealthStarting
	}
	return []api.Reason{{Severity: severity, Subject: "node " + n.Name, Text: "not ready: " + strings.Join(unready, "; "),
		NextStep: "wait before you stop another node; http://" + cmp.Or(n.Addrs.HTTP, "NODE") + "/readyz tells when it is"}}
}

// judgeRefusals says which ports of a node have no room for clients that are there now.
func (p *picture) judgeRefusals(n api.Node) (rs []api.Reason) {
	heard := p.reports[n.ID]
	if heard.Age >= staleReport {
		return nil
	}
	for _, line := range heard.Report.Refusing {
		rs = append(rs, api.Reason{Severity: api.HealthDegraded, Subject: "node " + n.Name, Text: line,
			NextStep: "see who holds connections there that are not used (ss -tn), or raise the limit of open files and --nbd-max-connections; the node's log says how they are shared out"})
	}
	return rs
}

// judgeStore judges whether a store serves. It says the worst only.
func judgeStore(node string, s api.Store, groups []api.Group) (r api.Reason, found bool) {
	if s.State == api.StoreFailed {
		return api.Reason{Subject: "store " + s.ID.String(), Severity: api.HealthDegraded, Text: "the disk of node " + node + " has failed",
			NextStep: failedStep(node, needed(groups, s.ID))}, true
	}
	r, found = judgeRoom(node, s)
	r.Subject = "store " + s.ID.String()
	return r, found
}

// needed returns a group that needs the store's replica: without it the group has fewer voters than a majority. 0: there is none.
func needed(groups []api.Group, store storage.StoreID) storage.GroupID {
	for _, g := range groups {
		here, voters, others := false, 0, 0
		for _, r := range g.Replicas {
			if r.Role != storage.RoleVoter && r.Role != storage.RoleLeaving {
				continue
			}
			voters++
			switch {
			case r.Key.Store == store:
				here = true
			case r.Online:
				others++
			}
		}
		if here && 2*others <= voters {
			return g.ID
		}
	}
	return 0
}

// failedStep is the advice for a disk that has failed. Nobody is told to throw away what may be the last copy of anything.
func failedStep(node string, needed storage.GroupID) string {
	look := "the log of " + node + " says what the system reported; if that has passed (a cable, a full pool, no descriptors left), start storaged there again"
	if needed != 0 {
		return look + "; keep the data directory whatever happens: group " + needed.String() + " has no majority without it"
	}
	return look + "; otherwise replace the disk, start storaged with an empty data directory and --join under a new name, and remove this node with `storagectl node remove " + node + "` once it is down"
}

// groupSums is what the groups come to. Groups that are being made count in none of it: they hold nothing, and had no leader
// that they could lose.
type groupSums struct {
	full       int                 // groups that have all their voters
	short      []string            // those that do not
	leaderless []string            // groups without a leader; none while that is not known
	beyond     []string            // groups that have lost so many logs that no majority is left
	damaged    map[string][]string // groups with a damaged log, by the name of its node
	tasks      []api.Task
}

// joining are the steps of a replica on its way into its group.
var joining = map[storage.ReplicaRole]string{storage.RolePulling: "pulling", storage.RoleLearner: "catching up"}

func (p *picture) sumGroups(groups []api.Group) groupSums {
	sums := groupSums{damaged: map[string][]string{}}
	for i, g := range groups {
		if p.groups[i].State == storage.GroupCreating {
			continue
		}
		id := g.ID.String()
		up, voters, damaged := 0, 0, 0
		for _, r := range g.Replicas {
			if r.Role == storage.RoleVoter || r.Role == storage.RoleLeaving {
				voters++
			}
			if r.Role == storage.RoleVoter && r.Online {
				up++
			}
			if step := joining[r.Role]; step != "" {
				sums.tasks = append(sums.tasks, api.Task{Kind: api.TaskGrow, Group: g.ID, Node: r.Node, NodeName: r.NodeName, Step: step, Progress: r.Progress})
			}
			if p.damaged(r.Node, g.ID) {
				sums.damaged[r.NodeName] = append(sums.damaged[r.NodeName], id)
				damaged++
			}
		}
		if g.Leader == 0 && !p.alone {
			sums.leaderless = append(sums.leaderless, id)
		}
		if damaged > 0 && damaged >= voters-voters/2 { // what is left is no majority
			sums.beyond = append(sums.beyond, id)
		}
		if up >= p.cluster.Replicas {
			sums.full++
		} else {
			sums.short = append(sums.short, id)
		}
	}
	return sums
}

// damaged reports whether a node says that the log of its replica of a group, whichever replica it is, is damaged.
func (p *picture) damaged(node storage.NodeID, group storage.GroupID) bool {
	heard := p.reports[node]
	return heard.Age < staleReport && slices.ContainsFunc(heard.Report.Replicas, func(r placement.ReplicaReport) bool {
		return r.Group == group && r.State == placement.ReplicaDamaged
	})
}

// judge says what is wrong with the groups of a cluster that wants so many copies and has so many nodes.
func (sums groupSums) judge(copies, nodes int) (rs []api.Reason) {
	add := func(severity api.Health, groups []string, text, step string) {
		if len(groups) > 0 {
			rs = append(rs, api.Reason{Severity: severity, Subject: "groups " + strings.Join(groups, ", "), Text: text, NextStep: step})
		}
	}
	add(api.HealthCritical, sums.beyond, "their logs are damaged on so many nodes that no majority of the copies is left: they stay out of service",
		"restore the volumes from a backup; keep the data directories, `storaged check` says what in them can be read")
	for _, node := range slices.Sorted(maps.Keys(sums.damaged)) {
		rs = append(rs, api.Reason{Severity: api.HealthDegraded, Subject: "node " + node,
			Text:     "the log of its disk is damaged: its replicas of groups " + strings.Join(sums.damaged[node], ", ") + " are out of service",
			NextStep: "nothing while a majority of each group is up: the replicas are made again; run `storaged check`, and do not trust the disk"})
	}
	add(api.HealthCritical, sums.leaderless, "no leader: their extents cannot be read or written",
		"bring up the nodes that hold them; `storagectl group list` shows which"+goOnWithout)
	if nodes >= copies {
		add(api.HealthDegraded, sums.short, fmt.Sprintf("fewer than %d of their voters are up", copies), "")
	}
	return rs
}
