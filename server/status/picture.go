package status

import (
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// picture is one consistent look at the cluster: what is shown and judged is worked out from it alone.
type picture struct {
	now   time.Time
	self  storage.NodeID // the node that looks
	fresh catalog.Freshness
	// catalogFull: the catalog's log on this node finds no room.
	catalogFull bool
	unborn      string // why this node has no catalog yet although nothing is lost
	cluster     catalog.Cluster
	nodes       []storage.Node
	names       map[storage.NodeID]string
	groups      []storage.Group
	volumes     []storage.Volume
	usedBy      map[storage.VolumeID][]catalog.Session
	usable      int64 // bytes of data that the stores hold with all copies

	repairAfter time.Duration // how long a node may be down; 0: for ever

	alone   bool                                // the catalog's leader did not answer
	reports map[storage.NodeID]placement.Heard  // what the leader was told; while alone, what this node says itself
	reached map[storage.NodeID]bool             // nodes that this one has a living connection to; filled while alone
	where   map[storage.NodeID]peer.Whereabouts // what this node's connections tell of others
}

// read returns an error unless this node has a copy of the catalog, however old.
func (p *picture) read(what string) error {
	if p.cluster.ID.IsZero() {
		return catalog.NotKnown("list", what, catalog.ErrUnread)
	}
	return nil
}

// connections returns the clients of a volume. Its name stands for it: a volume with clients is not deleted.
func (p *picture) connections(volume string) (out []api.Connection) {
	for _, n := range p.nodes {
		heard := p.reports[n.ID]
		if heard.Age >= staleReport {
			continue
		}
		for _, c := range heard.Report.Connections {
			if c.Volume == volume {
				out = append(out, api.Connection{Node: n.ID, NodeName: n.Name, Client: c.Client, ReadOnly: c.ReadOnly, OpenedAt: c.Since})
			}
		}
	}
	return out
}

// Volume shows a volume of the catalog. What it holds, and who is connected, is not known to the catalog.
func Volume(c storage.Volume, sessions []catalog.Session, names map[storage.NodeID]string) api.Volume {
	out := api.Volume{Volume: c, AllocatedBytes: -1, OnDiskBytes: -1}
	for _, s := range sessions {
		name := names[s.Gateway.Node]
		if s.Gateway.Host != "" {
			name = s.Gateway.Host
		}
		out.Sessions = append(out.Sessions, api.Session{ID: s.ID, Node: s.Gateway.Node, NodeName: name, Generation: s.Generation,
			ReadOnly: s.ReadOnly, OpenedAt: s.OpenedAt, Attachment: s.Attachment})
	}
	return out
}

// list describes up to limit of the picture's volumes that the filter selects, from the one whose name follows after.
func (p *picture) list(f api.VolumeFilter, after string, limit int) (out []api.Volume) {
	for _, c := range p.volumes {
		if c.Name > after && len(out) < limit && f.Labels.Matches(c.Labels) {
			shown := Volume(c, p.usedBy[c.ID], p.names)
			shown.Connections = p.connections(c.Name)
			out = append(out, shown)
		}
	}
	return out
}

// Attachment shows an attachment of the catalog.
func Attachment(a storage.Attachment, volume string) api.Attachment {
	a.Holder.Machine = "" // what makes one host two is no business of those who are shown the volume
	return api.Attachment{Attachment: a, VolumeName: volume}
}

func (p *picture) apiNodes() []api.Node {
	var out []api.Node
	leads := map[storage.NodeID]int{}
	for _, g := range p.groups { // two nodes may report that they lead the same group: one report is out of date
		if _, node := p.leader(g); node != 0 {
			leads[node]++
		}
	}
	for _, n := range p.nodes {
		if n.State == storage.NodeRemoved {
			continue
		}
		a := api.Node{Node: n}
		heard, ok := p.reports[n.ID]
		a.State = p.stateOf(n, ok)
		if a.State == storage.NodeUp && !ok {
			a.SeenAt = p.now // by this node
		}
		if ok {
			a.Version = heard.Report.Version
			a.SeenAt = p.now.Add(-heard.Age)
			a.Replicas, a.Leaders = len(heard.Report.Replicas), leads[n.ID]
		}
		for _, s := range n.Stores {
			a.Stores = append(a.Stores, apiStore(s, heard.Report, ok))
		}
		out = append(out, a)
	}
	return out
}

// stateOf is the state of a node, as far as it is known. While the catalog's leader does not answer, this node's copy may be old: nodes
// that it is connected to are up, and the state of the others is not known.
func (p *picture) stateOf(n storage.Node, heard bool) storage.NodeState {
	state := n.State
	live := n.State == storage.NodeUp || n.State == storage.NodeSuspect || n.State == storage.NodeDown && p.alone
	switch {
	case !live || heard:
		return state
	case p.alone && p.reached[n.ID]:
		return storage.NodeUp
	}
	return storage.NodeUnknown
}

// fullBytes is the free space below which a store counts as full: the largest write that a group is asked for.
const fullBytes = storage.MaxEntryPayloadBytes

func apiStore(s storage.Store, report placement.NodeReport, heard bool) api.Store {
	out := api.Store{Store: s, State: api.StoreOK}
	if !heard {
		out.State = api.StoreUnknown
	}
	r, ok := report.Store(s.ID)
	if !ok {
		return out
	}
	out.CapacityBytes, out.UsedBytes, out.FreeBytes, out.StoreSpace, out.Scrub = r.CapacityBytes, r.UsedBytes, r.FreeBytes, r.StoreSpace, r.Scrub
	switch {
	case r.Failed != "":
		out.State, out.FreeBytes = api.StoreFailed, 0 // whatever is free, it takes nothing
	case r.FreeBytes < fullBytes: // the next write may be refused
		out.State = api.StoreFull
	case stuck(r.StoreSpace):
		out.State, out.FreeBytes = api.StoreFull, 0
	}
	return out
}

// replica finds what a node says about its replica.
func (p *picture) replica(r storage.Replica, group storage.GroupID) (placement.ReplicaReport, bool) {
	return p.reports[r.Node].Report.Replica(group, r.Key)
}

// staleReport is the age from which a report no longer counts.
const staleReport = 5 * time.Second

// leader returns the node that leads a group, and what is known of its replica. If several say that they lead, it is the one with the
// highest term. Reports are up to a second apart: a node that others follow in a later term leads although it has not reported so yet.
func (p *picture) leader(g storage.Group) (best placement.ReplicaReport, node storage.NodeID) {
	var named placement.ReplicaReport
	newest := uint64(0)
	for _, r := range g.Replicas {
		rep, ok := p.replica(r, g.ID)
		if !ok || p.reports[r.Node].Age >= staleReport {
			continue
		}
		newest = max(newest, rep.Term)
		if rep.State == placement.ReplicaLeader && rep.Term >= best.Term {
			best, node = rep, r.Node
		}
		if rep.State == placement.ReplicaFollower && rep.Leader != 0 && rep.Term > named.Term {
			named = rep
		}
	}
	if named.Term <= best.Term || named.Term < newest {
		return best, node
	}
	for _, r := range g.Replicas {
		heard, ok := p.reports[r.Node]
		if rep, holds := p.replica(r, g.ID); r.Node == named.Leader && ok && heard.Age < staleReport && holds && rep.Term < named.Term {
			return placement.ReplicaReport{Group: g.ID, Key: r.Key, State: placement.ReplicaLeader, Term: named.Term, Leader: r.Node,
				Commit: named.Commit, Applied: rep.Applied}, r.Node
		}
	}
	return best, node
}

func (p *picture) apiGroups() []api.Group {
	out := make([]api.Group, 0, len(p.groups))
	for _, g := range p.groups {
		out = append(out, p.apiGroup(g))
	}
	return out
}

func (p *picture) apiGroup(g storage.Group) api.Group {
	lead, node := p.leader(g)
	out := api.Group{ID: g.ID, Leader: node, LeaderName: p.names[node], Term: lead.Term, CommitIndex: lead.Commit, AppliedIndex: lead.Applied}
	for _, r := range g.Replicas {
		a := api.Replica{Replica: r, NodeName: p.names[r.Node]}
		rep, ok := p.replica(r, g.ID)
		a.Online = ok && p.reports[r.Node].Age < staleReport && !rep.OutOfService()
		if ok {
			a.Reason = rep.Reason
		}
		for _, m := range lead.Members {
			if m.Key == r.Key && m.AckedIndex < lead.Commit {
				a.LagEntries = lead.Commit - m.AckedIndex
			}
		}
		if rep.PullBytes > 0 {
			a.Progress = &api.Progress{DoneBytes: rep.PulledBytes, TotalBytes: rep.PullBytes, StartedAt: rep.PullStartedAt}
		}
		out.Replicas = append(out.Replicas, a)
	}
	return out
}
