package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/control"
	"github.com/storaged/storaged/server/placement"
)

// view is the cluster as the API shows it: commands go to the catalog's leader; lists are put together from this
// node's copy of the catalog and the reports that the leader has. It implements api.Cluster.
type view struct{ n *node }

var _ api.Cluster = (*view)(nil)

// reportsTimeout bounds how long a list waits for the leader's reports; without them it shows the catalog only.
const reportsTimeout = time.Second

// picture is one consistent look at the cluster.
type picture struct {
	fresh   control.Freshness
	cluster catalog.Cluster
	nodes   []catalog.Node
	names   map[storage.NodeID]string
	groups  []catalog.Group
	volumes []catalog.Volume
	reports map[storage.NodeID]control.Heard // what the leader was told; of this node alone while alone
	alone   bool                             // the leader did not answer
	self    storage.NodeID
	reached map[storage.NodeID]bool // nodes that this one has a living connection to; filled while alone
	usedBy  map[storage.VolumeID][]catalog.Session
	where   func(storage.NodeID) peer.Whereabouts
}

func (v *view) look(ctx context.Context) *picture {
	p := &picture{where: v.n.peers.Look}
	p.fresh = v.n.control.View(func(s *catalog.State) {
		p.cluster, p.nodes, p.groups, p.volumes = s.Cluster(), s.Nodes(), s.Groups(), volumesByName(s)
		p.usedBy = map[storage.VolumeID][]catalog.Session{}
		for _, vol := range p.volumes {
			p.usedBy[vol.ID] = s.SessionsOf(vol.ID)
		}
	})
	p.self = v.n.identity.Node
	p.names = map[storage.NodeID]string{}
	for _, n := range p.nodes {
		p.names[n.ID] = n.Name
	}
	ctx, cancel := context.WithTimeout(ctx, reportsTimeout)
	defer cancel()
	if reports, err := v.n.control.Reports(ctx); err == nil {
		p.reports = reports
		return p
	}
	p.alone, p.reached = true, map[storage.NodeID]bool{}
	p.reports = map[storage.NodeID]control.Heard{p.self: {Report: v.n.report()}}
	for _, n := range p.nodes {
		p.reached[n.ID] = v.n.peers.Connected(n.ID)
	}
	return p
}

// volumesByName returns the volumes that have not been deleted, in the order of their names.
func volumesByName(s *catalog.State) []catalog.Volume {
	all := slices.DeleteFunc(s.Volumes(), func(v catalog.Volume) bool { return v.State == catalog.VolumeDeleting })
	slices.SortFunc(all, func(a, b catalog.Volume) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// propose brings a command to the catalog's leader. One whose caller has left before it was sent is KindCanceled: nothing was
// done, while KindUnavailable would say that it is not known.
func (v *view) propose(ctx context.Context, cmd catalog.Command) (catalog.Result, error) {
	if err := ctx.Err(); err != nil {
		return catalog.Result{}, storage.E("ask the catalog", storage.KindCanceled, "", err)
	}
	return v.n.control.Propose(ctx, cmd)
}

// CreateVolume implements api.Cluster.
func (v *view) CreateVolume(ctx context.Context, nv api.NewVolume) (api.Volume, error) {
	if ready := v.readyGroups(); nv.Groups > ready {
		return api.Volume{}, storage.E("create", storage.KindInvalid, "volume "+nv.Name,
			fmt.Errorf("it cannot be striped over %d groups: %d are ready; use a power of two up to that, or leave it out", nv.Groups, ready))
	}
	groups := nv.Groups
	if groups == 0 {
		groups = catalog.StripeGroups(nv.SizeBytes)
	}
	// The proposal may be sent again after a lost answer, and must then find what it has made, whoever asks.
	id := cmp.Or(nv.RequestID, rand.Text())
	r, err := v.propose(ctx, catalog.CreateVolume{Name: nv.Name, SizeBytes: nv.SizeBytes, RequestID: id, At: time.Now().UTC(),
		Groups: groups, Limits: nv.Limits})
	if err != nil {
		return api.Volume{}, err
	}
	return v.volume(*r.Volume, nil, nil), nil
}

// readyGroups counts the groups that a volume may be striped over now.
func (v *view) readyGroups() (n int) {
	v.n.control.View(func(s *catalog.State) {
		for _, g := range s.Groups() {
			if g.State == catalog.GroupReady {
				n++
			}
		}
	})
	return n
}

// Volume implements api.Cluster. Who is connected is known from the nodes' reports: up to a second old, and missing, like
// what the volume holds, when the catalog's leader does not answer.
func (v *view) Volume(ctx context.Context, name string) (api.Volume, error) {
	shown, err := v.find(ctx, name)
	if err != nil {
		return shown, err
	}
	p := v.look(ctx)
	shown.Connections = p.connections(name)
	one := []api.Volume{shown}
	v.fillUsage(ctx, p, one)
	return one[0], nil
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

// find describes a volume without its connections.
func (v *view) find(ctx context.Context, name string) (api.Volume, error) {
	var vol catalog.Volume
	var sessions []catalog.Session
	var attachments []catalog.Attachment
	var ok bool
	names := map[storage.NodeID]string{}
	find := func(s *catalog.State) {
		if vol, ok = s.VolumeByName(name); ok {
			sessions, attachments = s.SessionsOf(vol.ID), s.AttachmentsOf(vol.ID)
		}
		for _, n := range s.Nodes() {
			names[n.ID] = n.Name
		}
	}
	if err := v.n.control.Read(ctx, find); err != nil {
		v.n.control.View(find) // nobody leads: what this node knows is better than nothing
	}
	if !ok {
		return api.Volume{}, storage.E("find", storage.KindNotFound, "volume "+name, nil)
	}
	shown := v.volume(vol, sessions, names)
	for _, a := range attachments {
		shown.Attachments = append(shown.Attachments, apiAttachment(a, vol.Name))
	}
	return shown, nil
}

func (v *view) volume(c catalog.Volume, sessions []catalog.Session, names map[storage.NodeID]string) api.Volume {
	out := api.Volume{ID: c.ID, Name: c.Name, SizeBytes: c.SizeBytes, AllocatedBytes: -1, Groups: c.Groups, Epoch: c.Epoch,
		Generation: c.Generation, State: api.VolumeState(c.State), CreatedAt: c.CreatedAt, Limits: c.Limits}
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

// Volumes implements api.Cluster.
func (v *view) Volumes(ctx context.Context, after string, limit int) ([]api.Volume, error) {
	var out []api.Volume
	p := v.look(ctx)
	for _, c := range p.volumes {
		if c.Name > after && len(out) < limit {
			shown := v.volume(c, p.usedBy[c.ID], p.names)
			shown.Connections = p.connections(c.Name)
			out = append(out, shown)
		}
	}
	if len(out) <= maxUsageVolumes {
		v.fillUsage(ctx, p, out)
	}
	return out, nil
}

// ResizeVolume implements api.Cluster.
func (v *view) ResizeVolume(ctx context.Context, name string, sizeBytes int64) (api.Volume, error) {
	r, err := v.propose(ctx, catalog.ResizeVolume{Volume: catalog.ByName(name), SizeBytes: sizeBytes})
	if err != nil {
		return api.Volume{}, err
	}
	return v.volume(*r.Volume, nil, nil), nil
}

// ModifyVolume implements api.Cluster.
func (v *view) ModifyVolume(ctx context.Context, name string, id storage.VolumeID, change api.VolumeChange) (api.Volume, error) {
	ref, err := v.meant(ctx, "modify", name, id)
	if err != nil {
		return api.Volume{}, err
	}
	r, err := v.propose(ctx, catalog.SetVolumeLimits{Volume: ref, MaxIOPS: change.MaxIOPS, MaxBytesPerSecond: change.MaxBytesPerSecond})
	if err != nil {
		return api.Volume{}, err
	}
	return v.volume(*r.Volume, nil, nil), nil
}

// DeleteVolume implements api.Cluster.
func (v *view) DeleteVolume(ctx context.Context, name string, id storage.VolumeID) error {
	ref, err := v.meant(ctx, "delete", name, id)
	if err != nil {
		return err
	}
	_, err = v.propose(ctx, catalog.DeleteVolume{Volume: ref})
	return err
}

// meant refers by its id to the volume of that name. When id is not 0 and it has another, it is KindNotFound.
func (v *view) meant(ctx context.Context, op, name string, id storage.VolumeID) (catalog.VolumeRef, error) {
	found, err := v.find(ctx, name)
	if err == nil && id != 0 && found.ID != id {
		err = storage.E(op, storage.KindNotFound, "volume "+name, errors.New("the volume of that name is another one now"))
	}
	return catalog.ByID(found.ID), err
}

// Attach implements api.Cluster.
func (v *view) Attach(ctx context.Context, n api.NewAttachment) (api.Attachment, error) {
	ref, name, err := v.refer(ctx, "attach", n.Volume)
	if err != nil {
		return api.Attachment{}, err
	}
	if n.Access == "" {
		n.Access = api.AccessExclusive
	}
	h := n.Holder
	a, err := v.n.control.Attach(ctx, catalog.Attach{Volume: ref, At: time.Now().UTC(),
		Holder: catalog.Holder{ID: h.ID, Kind: catalog.HolderKind(h.Kind), Host: h.Host, Node: h.Node, Machine: catalog.Machine(h.Machine)},
		Access: catalog.Access(n.Access), ReadOnly: n.ReadOnly, TakeOver: n.TakeOver, IfGeneration: n.IfGeneration})
	if err != nil {
		return api.Attachment{}, err
	}
	return apiAttachment(a, name), nil
}

// refer finds the volume that is meant, as the catalog's leader knows it: from then on it is meant by its id.
func (v *view) refer(ctx context.Context, op string, r api.VolumeRef) (catalog.VolumeRef, string, error) {
	var found catalog.Volume
	var ok bool
	err := v.n.control.Read(ctx, func(s *catalog.State) {
		if r.Name != "" {
			found, ok = s.VolumeByName(r.Name)
		} else {
			found, ok = s.Volume(r.ID)
		}
	})
	switch {
	case err != nil:
		return catalog.VolumeRef{}, "", err
	case !ok || r.ID != 0 && found.ID != r.ID:
		return catalog.VolumeRef{}, "", storage.E(op, storage.KindNotFound, r.String(),
			errors.New("there is no such volume; `storagectl volume list` shows those there are"))
	}
	return catalog.ByID(found.ID), found.Name, nil
}

// Detach implements api.Cluster.
func (v *view) Detach(ctx context.Context, d api.Detachment) error {
	ref, _, err := v.refer(ctx, "detach", d.Volume)
	if errors.Is(err, storage.ErrNotFound) {
		return nil // what is not there is not attached
	}
	if err != nil {
		return err
	}
	return v.n.control.Detach(ctx, catalog.Detach{Volume: ref, Holder: d.HolderID, Attachment: d.Attachment, Machine: catalog.Machine(d.Machine), At: time.Now().UTC()})
}

// Attachments implements api.Cluster. It asks the catalog's leader, and without one answers from this node's copy.
func (v *view) Attachments(ctx context.Context, f api.AttachmentFilter, after storage.AttachmentID, limit int) ([]api.Attachment, error) {
	var out []api.Attachment
	list := func(s *catalog.State) {
		out = nil
		all := s.Attachments()
		if f.Volume != "" {
			v, _ := s.VolumeByName(f.Volume)
			all = s.AttachmentsOf(v.ID)
		}
		for _, a := range all {
			if a.ID > after && len(out) < limit && (f.HolderID == "" || f.HolderID == a.Holder.ID) {
				v, _ := s.Volume(a.Volume)
				out = append(out, apiAttachment(a, v.Name))
			}
		}
	}
	if err := v.n.control.Read(ctx, list); err != nil {
		v.n.control.View(list)
	}
	return out, nil
}

func apiAttachment(a catalog.Attachment, volume string) api.Attachment {
	return api.Attachment{ID: a.ID, VolumeID: a.Volume, Volume: volume, Access: api.Access(a.Access), ReadOnly: a.ReadOnly,
		Holder:     api.Holder{ID: a.Holder.ID, Kind: api.HolderKind(a.Holder.Kind), Host: a.Holder.Host, Node: a.Holder.Node},
		Generation: a.Generation, Since: a.Since, Silent: a.Silent}
}

// Nodes implements api.Cluster.
func (v *view) Nodes(ctx context.Context) ([]api.Node, error) {
	return v.look(ctx).apiNodes(), nil
}

func (p *picture) apiNodes() []api.Node {
	var out []api.Node
	for _, n := range p.nodes {
		if n.State == catalog.NodeRemoved {
			continue
		}
		a := api.Node{ID: n.ID, Name: n.Name, Zone: n.Zone, State: api.NodeState(n.State),
			Addresses: api.Addresses{Peer: n.Addrs.Peer, API: n.Addrs.API, NBD: n.Addrs.NBD, HTTP: n.Addrs.HTTP}}
		heard, ok := p.reports[n.ID]
		a.State = p.stateOf(n, ok)
		if a.State == api.NodeUp && !ok {
			a.SeenAt = time.Now() // by this node
		}
		if ok {
			a.Version = heard.Report.Version
			a.SeenAt = time.Now().Add(-heard.Age)
			for _, r := range heard.Report.Replicas {
				a.Replicas++
				if r.State == placement.ReplicaLeader {
					a.Leaders++
				}
			}
		}
		for _, s := range n.Stores {
			a.Stores = append(a.Stores, apiStore(s, heard.Report, ok))
		}
		out = append(out, a)
	}
	return out
}

// stateOf is a node's state as far as it is known: the catalog's copy says what was so once. Without a leader that answers,
// whoever this node has a living connection to is up, and nobody knows of the others.
func (p *picture) stateOf(n catalog.Node, heard bool) api.NodeState {
	state := api.NodeState(n.State)
	live := n.State == catalog.NodeUp || n.State == catalog.NodeSuspect || n.State == catalog.NodeDown && p.alone
	switch {
	case !live || heard:
		return state
	case p.alone && p.reached[n.ID]:
		return api.NodeUp
	}
	return api.NodeUnknown
}

// fullBytes is the free space below which a store counts as full: the largest write that a group is asked for.
const fullBytes = storage.MaxEntryPayloadBytes

func apiStore(s catalog.Store, report placement.NodeReport, heard bool) api.Store {
	out := api.Store{ID: s.ID, State: api.StoreOK, CapacityBytes: s.CapacityBytes}
	if !heard {
		out.State = api.StoreUnknown
	}
	for _, r := range report.Stores {
		if storage.StoreID(r.ID) != s.ID {
			continue
		}
		out.CapacityBytes, out.UsedBytes, out.FreeBytes = r.CapacityBytes, r.UsedBytes, r.FreeBytes
		switch {
		case r.Failed != "":
			out.State = api.StoreFailed
		case r.FreeBytes < fullBytes: // the next write may be refused
			out.State = api.StoreFull
		}
	}
	return out
}

// RemoveNode implements api.Cluster.
func (v *view) RemoveNode(ctx context.Context, id storage.NodeID) error {
	_, err := v.propose(ctx, catalog.SetNodeState{Node: id, State: catalog.NodeRemoved})
	var e *storage.Error
	if errors.As(err, &e) && e.Op == "set node state" { // say what was asked for
		return storage.E("remove", e.Kind, e.Subject, e.Err)
	}
	return err
}

// Groups implements api.Cluster.
func (v *view) Groups(ctx context.Context) ([]api.Group, error) {
	p := v.look(ctx)
	out := make([]api.Group, 0, len(p.groups))
	for _, g := range p.groups {
		out = append(out, p.apiGroup(g))
	}
	return out, nil
}

// replica finds what a node says about its replica.
func (p *picture) replica(r catalog.Replica, group storage.GroupID) (placement.ReplicaReport, bool) {
	for _, rep := range p.reports[r.Node].Report.Replicas {
		if rep.Group == group && rep.Key == r.Key {
			return rep, true
		}
	}
	return placement.ReplicaReport{}, false
}

// staleReport is the age from which a report says nothing about now.
const staleReport = 5 * time.Second

// leader returns the report of the replica that leads: of several that say so, the one of the highest term.
func (p *picture) leader(g catalog.Group) (best placement.ReplicaReport, node storage.NodeID) {
	for _, r := range g.Replicas {
		rep, ok := p.replica(r, g.ID)
		if ok && rep.State == placement.ReplicaLeader && rep.Term >= best.Term && p.reports[r.Node].Age < staleReport {
			best, node = rep, r.Node
		}
	}
	return best, node
}

func (p *picture) apiGroup(g catalog.Group) api.Group {
	lead, node := p.leader(g)
	out := api.Group{ID: g.ID, Leader: node, LeaderName: p.names[node], Term: lead.Term, CommitIndex: lead.Commit, AppliedIndex: lead.Applied}
	for _, r := range g.Replicas {
		a := api.Replica{Node: r.Node, NodeName: p.names[r.Node], Store: r.Key.Store, Incarnation: r.Key.Incarnation, Role: api.ReplicaRole(r.Role)}
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

// Status implements api.Cluster.
func (v *view) Status(ctx context.Context) (api.Status, error) {
	p := v.look(ctx)
	self := v.n.identity.Node
	s := api.Status{ClusterID: p.cluster.ID, ReplicasWanted: p.cluster.Replicas, GroupsTotal: len(p.groups), Volumes: len(p.volumes),
		CatalogLeader: p.fresh.Leader, CatalogLeaderName: p.names[p.fresh.Leader], CatalogTerm: v.n.control.Term(),
		CatalogIndex: p.fresh.Index, AnsweredBy: self, AnsweredByName: p.names[self], Age: p.fresh.Age}
	if s.Age == control.NeverHeard {
		s.Age = -1
	}
	for _, vol := range p.volumes {
		s.ProvisionedBytes += vol.SizeBytes
	}
	p.judgeCatalog(&s)
	p.judgeNodes(&s)
	p.judgeGroups(&s)
	judge(&s)
	return s, nil
}

// judge orders the reasons and draws the sum.
func judge(s *api.Status) {
	rank := map[api.Health]int{api.HealthCritical: 0, api.HealthDegraded: 1, api.HealthOK: 2}
	slices.SortStableFunc(s.Reasons, func(a, b api.Reason) int { return cmp.Compare(rank[a.Severity], rank[b.Severity]) })
	s.Health = api.HealthOK
	if len(s.Reasons) > 0 {
		s.Health = s.Reasons[0].Severity
	}
}

func (p *picture) judgeCatalog(s *api.Status) {
	switch {
	case p.fresh.Leader == 0:
		s.Reasons = append(s.Reasons, api.Reason{Severity: api.HealthCritical, Subject: "catalog", Text: "nobody leads it; " + p.copyAge(),
			NextStep: "bring up nodes until a majority runs; `storagectl node list` shows them"})
	case p.alone:
		s.Reasons = append(s.Reasons, api.Reason{Severity: api.HealthDegraded, Subject: "catalog",
			Text: "its leader does not answer; what follows is from this node's copy"})
	}
}

// copyAge says what the answer rests on while nobody leads.
func (p *picture) copyAge() string {
	switch {
	case p.fresh.Age == control.NeverHeard && len(p.nodes) == 0:
		return "this node has not read it since it was started, so nodes, groups and volumes are not known"
	case p.fresh.Age == control.NeverHeard:
		return "this node has heard no leader since it was started, and shows what its disk holds"
	}
	return fmt.Sprintf("what follows is what this node knew %v ago", p.fresh.Age.Round(time.Second))
}

func (p *picture) judgeNodes(s *api.Status) {
	for _, n := range p.apiNodes() {
		s.NodesTotal++
		s.CapacityBytes += n.CapacityBytes()
		s.UsedBytes += n.UsedBytes()
		s.FreeBytes += n.FreeBytes()
		up := n.State == api.NodeUp
		text, step, known := judgeWhere(n.Name, up, n.Addresses.Peer, p.whereabouts(n.ID))
		if up {
			s.NodesUp++
		} else if n.State == api.NodeUnknown {
			if !known {
				text = "not heard; whether it is up is not known to node " + p.names[p.self]
				step = "see whether storaged runs there, and whether the nodes reach each other's peer addresses"
			}
			known = true
		} else if !known {
			text, step, known = string(n.State), downStep(n), true
		} else {
			text = string(n.State) + ": " + text
		}
		if known {
			s.Reasons = append(s.Reasons, api.Reason{Severity: api.HealthDegraded, Subject: "node " + n.Name, Text: text, NextStep: step})
		}
		if heard, ok := p.reports[n.ID]; ok && !p.alone && n.State == api.NodeUp && len(heard.Report.Unready) > 0 {
			s.Reasons = append(s.Reasons, api.Reason{Severity: api.HealthDegraded, Subject: "node " + n.Name,
				Text:     "not ready: " + strings.Join(heard.Report.Unready, "; "),
				NextStep: "wait before you stop another node; http://" + orUnknown(n.Addresses.HTTP) + "/readyz tells when it is"})
		}
		for _, st := range n.Stores {
			switch st.State {
			case api.StoreFailed:
				s.Reasons = append(s.Reasons, api.Reason{Severity: api.HealthDegraded, Subject: "store " + st.ID.String(),
					Text: "the disk of node " + n.Name + " has failed", NextStep: failedStep(n.Name, p.needed(st.ID))})
			case api.StoreFull:
				s.Reasons = append(s.Reasons, api.Reason{Severity: api.HealthCritical, Subject: "store " + st.ID.String(),
					Text: "the disk of node " + n.Name + " is full up to its reserve: writes are refused", NextStep: "delete volumes, discard blocks, or add nodes"})
			}
		}
	}
	if p.cluster.Replicas > s.NodesTotal && s.NodesTotal > 0 {
		s.Reasons = append(s.Reasons, api.Reason{Severity: api.HealthDegraded, Subject: "cluster",
			Text:     fmt.Sprintf("%d of %d nodes for %d copies of everything", s.NodesTotal, p.cluster.Replicas, p.cluster.Replicas),
			NextStep: "start more nodes with --join"})
	}
}

// whereabouts is what this node's connections tell of another one.
func (p *picture) whereabouts(id storage.NodeID) peer.Whereabouts {
	if p.where == nil {
		return peer.Whereabouts{}
	}
	return p.where(id)
}

// needed returns a group that cannot do without what the store holds: without it fewer of its voters are there than a
// majority. 0: there is none.
func (p *picture) needed(store storage.StoreID) storage.GroupID {
	for _, g := range p.groups {
		here, voters, others := false, 0, 0
		for _, r := range p.apiGroup(g).Replicas {
			if r.Role != api.RoleVoter && r.Role != api.RoleLeaving {
				continue
			}
			voters++
			switch {
			case r.Store == store:
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

// failedStep is the advice for a disk that has failed. What may be the last copy of anything is not to be thrown away.
func failedStep(node string, needed storage.GroupID) string {
	look := "see in the log of " + node + " what the system said; if that has passed (a cable, a full pool, no descriptors left), start storaged there again"
	if needed != 0 {
		return look + "; keep the data directory whatever happens: group " + needed.String() + " has no majority without it"
	}
	return look + "; otherwise replace the disk, start storaged with an empty data directory and --join under a new name, and remove this node with `storagectl node remove " + node + "` once it is down"
}

// orUnknown stands for an address that a node does not have.
func orUnknown(addr string) string {
	if addr == "" {
		return "NODE"
	}
	return addr
}

func downStep(n api.Node) string {
	step := "start storaged there, and look at its log; if its address has changed, start it with --join and the address of a node that is up"
	if n.State == api.NodeDown {
		step += "; only if its disk is lost, `storagectl node remove " + n.Name + "`"
	}
	return step
}

// replicaOn finds what a node says about its replica of a group, whichever it is.
func (p *picture) replicaOn(node storage.NodeID, group storage.GroupID) (placement.ReplicaReport, bool) {
	for _, rep := range p.reports[node].Report.Replicas {
		if rep.Group == group && p.reports[node].Age < staleReport {
			return rep, true
		}
	}
	return placement.ReplicaReport{}, false
}

func (p *picture) judgeGroups(s *api.Status) {
	var leaderless, short, beyond []string
	broken := map[string][]string{} // groups by what is wrong with their replicas
	for _, g := range p.groups {
		a := p.apiGroup(g)
		if a.Leader == 0 && !p.alone {
			s.GroupsWithoutLeader++
			leaderless = append(leaderless, g.ID.String())
		}
		voters, damaged, all := 0, 0, 0
		for _, r := range a.Replicas {
			if r.Role == api.RoleVoter || r.Role == api.RoleLeaving {
				all++
			}
			if r.Role == api.RoleVoter && r.Online {
				voters++
			}
			if rep, ok := p.replicaOn(r.Node, g.ID); ok && rep.State == placement.ReplicaDamaged {
				broken[r.NodeName] = append(broken[r.NodeName], g.ID.String())
				damaged++
			}
			if r.Role == api.RolePulling || r.Role == api.RoleLearner {
				step := "pulling"
				if r.Role == api.RoleLearner {
					step = "catching up"
				}
				s.Tasks = append(s.Tasks, api.Task{Kind: api.TaskGrow, Group: g.ID, Node: r.Node, NodeName: r.NodeName, Step: step, Progress: r.Progress})
			}
		}
		if damaged > 0 && damaged >= all-all/2 { // what is left is no majority
			beyond = append(beyond, g.ID.String())
		}
		if voters >= p.cluster.Replicas {
			s.GroupsFull++
		} else {
			short = append(short, g.ID.String())
		}
	}
	if len(beyond) > 0 {
		s.Reasons = append(s.Reasons, api.Reason{Severity: api.HealthCritical, Subject: "groups " + strings.Join(beyond, ", "),
			Text:     "their logs are damaged on so many nodes that no majority of the copies is left: they stay out of service",
			NextStep: "restore the volumes from a backup; keep the data directories, `storaged check` says what in them can be read"})
	}
	for _, node := range slices.Sorted(maps.Keys(broken)) {
		s.Reasons = append(s.Reasons, api.Reason{Severity: api.HealthDegraded, Subject: "node " + node,
			Text:     "the log of its disk is damaged: its replicas of groups " + strings.Join(broken[node], ", ") + " keep out",
			NextStep: "nothing while a majority of each group is up: they are made anew; see `storaged check`, and mistrust the disk"})
	}
	if len(leaderless) > 0 {
		s.Reasons = append(s.Reasons, api.Reason{Severity: api.HealthCritical, Subject: "groups " + strings.Join(leaderless, ", "),
			Text: "no leader: their extents cannot be read or written", NextStep: "bring up the nodes that hold them; `storagectl group list` shows which"})
	}
	if len(short) > 0 && s.NodesTotal >= p.cluster.Replicas {
		s.Reasons = append(s.Reasons, api.Reason{Severity: api.HealthDegraded, Subject: "groups " + strings.Join(short, ", "),
			Text: fmt.Sprintf("fewer than %d voters that are up", p.cluster.Replicas)})
	}
}
