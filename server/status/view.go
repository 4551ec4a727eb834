package status

import (
	"context"
	"sync/atomic"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// View is the cluster, and this node, as people see them: put together from this node's copy of the catalog and the reports
// that the catalog's leader has. It implements the part of api.Cluster that only looks. Its methods may be called concurrently, most of
// them once the node runs: before, it has no parts to ask. Config is set before the node reports.
type View struct {
	Config
	running  atomic.Bool
	waits    atomic.Pointer[string] // what a node without a cluster waits for
	lacks    atomic.Pointer[string] // what a node that has one cannot begin without
	caughtUp readiness
}

// WaitFor says what a node that has no cluster waits for; empty: it waits no more.
func (v *View) WaitFor(why string) {
	v.waits.Store(nil)
	if why != "" {
		v.waits.Store(&why)
	}
}

// Lack says why a node that has a cluster cannot begin and waits; empty: it waits no more.
func (v *View) Lack(why string) {
	v.lacks.Store(nil)
	if why != "" {
		v.lacks.Store(&why)
	}
}

// Run says that the node has all its parts.
func (v *View) Run() { v.running.Store(true) }

// Running reports whether Run was called.
func (v *View) Running() bool { return v.running.Load() }

// NotRunning says what a node does that does not run yet.
func (v *View) NotRunning() string {
	if why := v.waits.Load(); why != nil {
		return "it has no cluster yet and waits: " + *why
	}
	if why := v.lacks.Load(); why != nil {
		return "it waits: " + *why
	}
	return "it is starting or stopping"
}

// Config says where a View looks. All fields without a remark are required.
type Config struct {
	Self        storage.NodeID
	Cluster     storage.ClusterID
	RepairAfter time.Duration // of this node; see control.Config. 0: never
	Catalog     Catalog
	Peers       Peers
	Replicas    func() []Replica // of this node
	Blocks      BlockCounter     // of this node's replicas
	Store       func() placement.StoreReport
	StoreDir    string
	Sessions    func() []storage.SessionID    // that gateways of this node, or on hosts that speak to it, keep alive
	Connections func() []placement.Connection // of NBD clients
	Refusals    func() []string               // ports that have no room for their clients
	Serving     func() bool                   // this node takes requests
}

// Catalog is what a View asks of the catalog. *control.Controller implements it, and says what its methods promise.
type Catalog interface {
	View(fn func(*catalog.State)) catalog.Freshness
	Read(ctx context.Context, fn func(*catalog.State)) error
	Reports(ctx context.Context) (map[storage.NodeID]placement.Heard, error)
	Term() uint64
	NeverLed() bool
	Untold() bool
	WithoutRoom() bool
	Known() []storage.NodeID
}

// Peers is what a View asks of the connections to other nodes. *peer.Transport implements it.
type Peers interface {
	Look(node storage.NodeID) peer.Whereabouts
	Connected(node storage.NodeID) bool
	Second() *peer.SecondProcessError
	Call(ctx context.Context, to storage.NodeID, lane peer.Lane, req *peer.Request) (*peer.Response, error)
}

// reportsTimeout bounds how long a list waits for the leader's reports; without them it shows the catalog only.
const reportsTimeout = time.Second

func (v *View) look(ctx context.Context) *picture {
	p := &picture{now: time.Now(), self: v.Self, repairAfter: v.RepairAfter, names: map[storage.NodeID]string{}, where: map[storage.NodeID]peer.Whereabouts{},
		usedBy: map[storage.VolumeID][]catalog.Session{}}
	p.catalogFull = v.Catalog.WithoutRoom()
	p.fresh = v.Catalog.View(func(s *catalog.State) {
		p.cluster, p.nodes, p.groups, p.volumes = s.Cluster(), s.Nodes(), s.Groups(), s.VolumesByName()
		p.usable = s.UsableBytes()
		for i, n := range p.nodes {
			p.nodes[i] = n.At(p.now)
		}
		for _, vol := range p.volumes {
			p.usedBy[vol.ID] = s.SessionsOf(vol.ID)
		}
	})
	p.unborn = v.unborn(p.fresh)
	for _, n := range p.nodes {
		p.names[n.ID], p.where[n.ID] = n.Name, v.Peers.Look(n.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, reportsTimeout)
	defer cancel()
	if reports, err := v.Catalog.Reports(ctx); err == nil {
		p.reports = reports
		return p
	}
	p.alone, p.reached = true, map[storage.NodeID]bool{}
	p.reports = map[storage.NodeID]placement.Heard{p.self: {Report: v.Report()}}
	for _, n := range p.nodes {
		p.reached[n.ID] = v.Peers.Connected(n.ID)
	}
	return p
}

// Volume answers api.Cluster. The nodes' reports say who is connected. They are up to a second old. When the catalog's leader does
// not answer, they are missing, and so is what the volume holds.
func (v *View) Volume(ctx context.Context, name string) (api.Volume, error) {
	shown, err := v.find(ctx, name)
	if err != nil {
		return shown, err
	}
	p := v.look(ctx)
	shown.Connections = p.connections(name)
	one := []api.Volume{shown}
	p.fillUsage(ctx, v.askUsage, one)
	return one[0], nil
}

// find describes a volume without its connections.
func (v *View) find(ctx context.Context, name string) (api.Volume, error) {
	var vol storage.Volume
	var sessions []catalog.Session
	var attachments []storage.Attachment
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
	err := v.Catalog.Read(ctx, find)
	if err != nil {
		v.Catalog.View(find) // nobody leads: what this node knows is better than nothing
	}
	if !ok && err != nil {
		return api.Volume{}, catalog.NotKnown("show", "volume "+name, err)
	}
	if !ok {
		return api.Volume{}, storage.E("show", storage.KindNotFound, "volume "+name, nil)
	}
	shown := Volume(vol, sessions, names)
	for _, a := range attachments {
		shown.Attachments = append(shown.Attachments, Attachment(a, vol.Name))
	}
	return shown, nil
}

// Volumes answers api.Cluster.
func (v *View) Volumes(ctx context.Context, f api.VolumeFilter, after string, limit int) ([]api.Volume, error) {
	p := v.look(ctx)
	if err := p.read("volumes"); err != nil {
		return nil, err
	}
	out := p.list(f, after, limit)
	if len(out) <= maxUsageVolumes {
		p.fillUsage(ctx, v.askUsage, out)
	}
	return out, nil
}

// Attachments answers api.Cluster. It asks the catalog's leader, and gives no answer without one, because callers act on reading
// that nobody has a volume, or that a host's attachment has ended.
func (v *View) Attachments(ctx context.Context, f api.AttachmentFilter, after storage.AttachmentID, limit int) ([]api.Attachment, error) {
	var out []api.Attachment
	list := func(s *catalog.State) {
		all := s.Attachments()
		if f.Volume != "" {
			v, _ := s.VolumeByName(f.Volume)
			all = s.AttachmentsOf(v.ID)
		}
		for _, a := range all {
			if a.ID > after && len(out) < limit && (f.HolderID == "" || f.HolderID == a.Holder.ID) {
				v, _ := s.Volume(a.Volume)
				out = append(out, Attachment(a, v.Name))
			}
		}
	}
	if err := v.Catalog.Read(ctx, list); err != nil {
		return nil, catalog.NotKnown("list", "attachments", err)
	}
	return out, nil
}

// Nodes answers api.Cluster.
func (v *View) Nodes(ctx context.Context) ([]api.Node, error) {
	p := v.look(ctx)
	return p.apiNodes(), p.read("nodes")
}

// Groups answers api.Cluster.
func (v *View) Groups(ctx context.Context) ([]api.Group, error) {
	p := v.look(ctx)
	return p.apiGroups(), p.read("groups")
}

// Status answers api.Cluster.
func (v *View) Status(ctx context.Context) (api.Status, error) {
	s := v.look(ctx).status()
	s.ClusterID, s.CatalogTerm = v.Cluster, v.Catalog.Term()
	return s, nil
}
