// Package apitest is a cluster in memory for tests of what speaks to package api, and the conformance suite that every
// api.Cluster passes.
//
// It keeps volumes by the rules of api.Cluster and shows the nodes, groups and status it was given. It stores no data.
// A Cluster may be used concurrently.
package apitest

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// Cluster is an api.Cluster in memory.
type Cluster struct {
	*state
	around func(op string, do func() error) error // of each call; nil: as it is
}

// state is what all Clusters share that come from one.
type state struct {
	mu             sync.Mutex
	now            func() time.Time
	lastID         storage.VolumeID
	volumes        map[string]api.Volume // by name
	requests       map[string]storage.VolumeID
	lastAttachment storage.AttachmentID
	nodes          []api.Node
	removed        map[storage.NodeID]bool
	groups         []api.Group
	status         api.Status
	plan           api.NodePlan
	verified       []api.Verified
	events         []storage.Event
	calls          int
	fault          func(call int) error
}

var _ api.Cluster = (*Cluster)(nil)

// New returns a healthy cluster without volumes: three nodes a, b and c and two groups. The time of what is made comes
// from now.
func New(now func() time.Time) *Cluster {
	c := &Cluster{state: &state{now: now, volumes: map[string]api.Volume{}, requests: map[string]storage.VolumeID{}}}
	for i := range 3 {
		c.nodes = append(c.nodes, sampleNode(i, now()))
	}
	for i := range 2 {
		c.groups = append(c.groups, sampleGroup(i, c.nodes))
	}
	c.status = api.Status{
		ClusterID: storage.ClusterID{0xc1, 15: 1}, Version: 6, VersionKnown: 6, Health: api.HealthOK, ReplicasWanted: 3, NodesTotal: 3, NodesUp: 3,
		GroupsTotal: 2, GroupsFull: 2, CatalogLeader: 1, CatalogLeaderName: "a", CatalogTerm: 4, CatalogIndex: 118,
		AnsweredBy: 2, AnsweredByName: "b", Age: 120 * time.Millisecond,
		CapacityBytes: 300 << 30, UsedBytes: 30 << 30, FreeBytes: 255 << 30, GarbageBytes: 3 << 29,
		Fullest: &api.StoreRoom{Node: 1, NodeName: "a", Store: c.nodes[0].Stores[0].ID, FreeBytes: 85 << 30, Fill: 0.1, GarbageBytes: 1 << 29,
			Compaction: storage.CompactionIdle},
	}
	return c
}

func sampleNode(i int, now time.Time) api.Node {
	host := fmt.Sprintf("10.0.0.%d", i+1)
	return api.Node{
		Node: storage.Node{ID: storage.NodeID(i + 1), Name: string(rune('a' + i)), Zone: fmt.Sprintf("z%d", i+1), State: storage.NodeUp,
			Addrs: storage.Addrs{Peer: host + ":7001", API: host + ":7000", NBD: host + ":10809", HTTP: host + ":7002"}},
		Stores: []api.Store{{Store: storage.Store{ID: storage.StoreID{0: 0x50, 15: byte(i + 1)}, CapacityBytes: 100 << 30}, State: api.StoreOK,
			UsedBytes: 10 << 30, FreeBytes: 85 << 30, StoreSpace: sampleSpace(),
			Scrub: storage.StoreScrub{LastPass: now.Add(-24 * time.Hour), Begun: now.Add(-time.Hour), Part: 0.25, MendedBlocks: 1, WaitingBlocks: 2, DamagedSegments: 1}}},
		Version: "v0.1.0", Replicas: 2, Leaders: []int{1, 1, 0}[i], SeenAt: now,
	}
}

// sampleSpace is that of a store of 100 GiB.
func sampleSpace() storage.StoreSpace {
	return storage.StoreSpace{LogBytes: 9 << 30, LiveBytes: 8 << 30, GarbageBytes: 1 << 29, TableBytes: 100 << 20, OtherBytes: 1<<30 - 100<<20,
		UnusedBytes: 90 << 30, ReserveBytes: 5 << 30, Fill: 0.1, Compaction: storage.CompactionIdle}
}

func sampleGroup(i int, nodes []api.Node) api.Group {
	g := api.Group{ID: storage.GroupID(i + 1), Leader: nodes[i].ID, LeaderName: nodes[i].Name, Term: uint64(7 + i),
		CommitIndex: 5200, AppliedIndex: 5200}
	for _, n := range nodes {
		key := storage.ReplicaKey{Store: n.Stores[0].ID, Incarnation: 1}
		g.Replicas = append(g.Replicas, api.Replica{Replica: storage.Replica{Node: n.ID, Key: key, Role: storage.RoleVoter}, NodeName: n.Name, Online: true})
	}
	return g
}

// Fail makes fault decide the outcome of every later call, counted from 1; nil ends it. A call that fails has no effect.
func (c *Cluster) Fail(fault func(call int) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls, c.fault = 0, fault
}

// Edit lets change alter what the cluster shows; it runs under the cluster's lock and must not call its methods.
func (c *Cluster) Edit(change func(nodes *[]api.Node, groups *[]api.Group, status *api.Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.nodes, &c.groups, &c.status)
}

// Open gives the volume a session at the node, and a connection. It panics when there is no such volume.
func (c *Cluster) Open(volume string, node api.Node, client string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.volumes[volume]
	if !ok {
		panic("apitest: no volume " + volume)
	}
	v.Generation++
	v.Sessions = append(v.Sessions, api.Session{ID: storage.SessionID(len(v.Sessions) + 1), Node: node.ID, NodeName: node.Name,
		Generation: v.Generation, OpenedAt: c.now()})
	v.Connections = append(v.Connections, api.Connection{Node: node.ID, NodeName: node.Name, Client: client, OpenedAt: c.now()})
	c.volumes[volume] = v
}

// Close ends all sessions, connections and attachments of the volume.
func (c *Cluster) Close(volume string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.volumes[volume]
	v.Sessions, v.Connections, v.Attachments = nil, nil, nil
	c.volumes[volume] = v
}

// Around returns the same cluster with around about each of its calls.
func (c *Cluster) Around(around func(op string, do func() error) error) *Cluster {
	return &Cluster{state: c.state, around: around}
}

// call carries one call out, unless it is to fail.
func call[A any](ctx context.Context, c *Cluster, op string, do func() (A, error)) (answer A, err error) {
	err = c.do(ctx, op, func() (err error) {
		answer, err = do()
		return err
	})
	if err != nil { // perhaps after it was carried out
		var none A
		return none, err
	}
	return answer, nil
}

// do is call for what returns nothing.
func (c *Cluster) do(ctx context.Context, op string, do func() error) error {
	locked := func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if err := ctx.Err(); err != nil {
			return storage.E(op, storage.KindCanceled, "", err)
		}
		c.calls++
		if c.fault != nil {
			if err := c.fault(c.calls); err != nil {
				return err
			}
		}
		return do()
	}
	if c.around == nil {
		return locked()
	}
	return c.around(op, locked)
}

// CreateVolume implements api.Cluster.
func (c *Cluster) CreateVolume(ctx context.Context, v api.NewVolume) (api.Volume, error) {
	const op = "create"
	return call(ctx, c, op, func() (api.Volume, error) {
		if have, ok := c.volumes[v.Name]; ok {
			if v.RequestID != "" && c.requests[v.RequestID] == have.ID && have.SizeBytes == v.SizeBytes && have.Limits == v.Limits && maps.Equal(have.Labels, v.Labels) {
				return copyVolume(have), nil
			}
			return api.Volume{}, storage.E(op, storage.KindExists, "volume "+v.Name, errors.New("a volume of that name exists"))
		}
		if err := c.roomLocked(op, "volume "+v.Name, 0, v.SizeBytes, v.Overcommit); err != nil {
			return api.Volume{}, err
		}
		stripe := v.Groups
		if stripe == 0 || stripe > len(c.groups) {
			stripe = len(c.groups)
		}
		c.lastID++
		made := api.Volume{Volume: storage.Volume{ID: c.lastID, Name: v.Name, SizeBytes: v.SizeBytes, State: storage.VolumeReady, Epoch: 1, Generation: 1,
			CreatedAt: c.now(), Limits: v.Limits, Labels: maps.Clone(v.Labels)}}
		for _, g := range c.groups[:stripe] {
			made.Groups = append(made.Groups, g.ID)
		}
		c.volumes[v.Name] = made
		if v.RequestID != "" {
			c.requests[v.RequestID] = made.ID
		}
		return copyVolume(made), nil
	})
}

// overcommit is how many times as large as what the stores hold all volumes together may be.
const overcommit = 10

// roomLocked refuses what is beyond what the stores hold; Edit says how much that is (Status.UsableBytes), and 0 does not limit it.
func (c *Cluster) roomLocked(op, subject string, before, bytes int64, beyond bool) error {
	usable, sum := c.status.UsableBytes, bytes-before
	for _, v := range c.volumes {
		sum += v.SizeBytes
	}
	switch {
	case usable == 0 || beyond || bytes == before:
	case bytes > usable:
		return storage.E(op, storage.KindInvalid, subject, fmt.Errorf("with %d bytes it could never be filled; make it smaller, or say --overcommit", bytes))
	case sum > overcommit*usable:
		return storage.E(op, storage.KindNoSpace, subject, fmt.Errorf("all volumes together would have %d bytes; delete some, or say --overcommit", sum))
	}
	return nil
}

// Volume implements api.Cluster.
func (c *Cluster) Volume(ctx context.Context, name string) (api.Volume, error) {
	const op = "show"
	return call(ctx, c, op, func() (api.Volume, error) {
		v, ok := c.volumes[name]
		if !ok {
			return api.Volume{}, notFound(op, name)
		}
		return copyVolume(v), nil
	})
}

// Volumes implements api.Cluster.
func (c *Cluster) Volumes(ctx context.Context, f api.VolumeFilter, after string, limit int) ([]api.Volume, error) {
	return call(ctx, c, "list volumes", func() ([]api.Volume, error) {
		var list []api.Volume
		for _, name := range slices.Sorted(maps.Keys(c.volumes)) {
			if name > after && len(list) < limit && f.Labels.Matches(c.volumes[name].Labels) {
				list = append(list, copyVolume(c.volumes[name]))
			}
		}
		return list, nil
	})
}

// ResizeVolume implements api.Cluster.
func (c *Cluster) ResizeVolume(ctx context.Context, name string, size api.NewSize) (api.Volume, error) {
	const op = "resize"
	return call(ctx, c, op, func() (api.Volume, error) {
		v, ok := c.volumes[name]
		switch {
		case !ok:
			return api.Volume{}, notFound(op, name)
		case size.Bytes < v.SizeBytes:
			return api.Volume{}, storage.E(op, storage.KindInvalid, "volume "+name,
				fmt.Errorf("it has %d bytes and cannot shrink to %d", v.SizeBytes, size.Bytes))
		}
		if err := c.roomLocked(op, "volume "+name, v.SizeBytes, size.Bytes, size.Overcommit); err != nil {
			return api.Volume{}, err
		}
		v.SizeBytes = size.Bytes
		c.volumes[name] = v
		return copyVolume(v), nil
	})
}

// ModifyVolume implements api.Cluster.
func (c *Cluster) ModifyVolume(ctx context.Context, name string, id storage.VolumeID, change api.VolumeChange) (api.Volume, error) {
	const op = "modify"
	return call(ctx, c, op, func() (api.Volume, error) {
		v, ok := c.volumes[name]
		if !ok || id != 0 && v.ID != id {
			return api.Volume{}, notFound(op, name)
		}
		labels := change.Labels.Of(v.Labels)
		if err := storage.CheckLabels(labels); err != nil {
			return api.Volume{}, storage.E(op, storage.KindInvalid, "volume "+name, errors.Unwrap(err))
		}
		v.Limits, v.Labels = change.Limits.Of(v.Limits), labels
		c.volumes[name] = v
		return copyVolume(v), nil
	})
}

// DeleteVolume implements api.Cluster.
func (c *Cluster) DeleteVolume(ctx context.Context, name string, id storage.VolumeID) error {
	const op = "delete"
	return c.do(ctx, op, func() error {
		v, ok := c.volumes[name]
		switch {
		case !ok || id != 0 && v.ID != id:
			return notFound(op, name)
		case len(v.Sessions) > 0:
			return storage.E(op, storage.KindConflict, "volume "+name,
				fmt.Errorf("it is open through node %s", v.Sessions[0].NodeName))
		}
		if len(v.Attachments) > 0 {
			return storage.E(op, storage.KindConflict, "volume "+name, fmt.Errorf("it is attached by %s", v.Attachments[0].Holder.ID))
		}
		delete(c.volumes, name)
		return nil
	})
}

// Nodes implements api.Cluster.
func (c *Cluster) Nodes(ctx context.Context) ([]api.Node, error) {
	return call(ctx, c, "list nodes", func() ([]api.Node, error) {
		list := slices.Clone(c.nodes)
		for i := range list {
			list[i].Stores = slices.Clone(list[i].Stores)
		}
		return slices.SortedFunc(slices.Values(list), func(a, b api.Node) int { return cmp.Compare(a.ID, b.ID) }), nil
	})
}

// SetNodeIntent implements api.Cluster.
func (c *Cluster) SetNodeIntent(ctx context.Context, id storage.NodeID, change api.IntentChange) error {
	const op = "set intent"
	return c.do(ctx, op, func() error {
		n, err := c.node(op, id)
		switch {
		case err != nil:
			return err
		case n.Intent == change.Intent && n.IntentUntil.Equal(change.Until):
			return nil
		case change.From != storage.IntentServe && n.Intent != change.From:
			return storage.E(op, storage.KindConflict, "node "+n.Name, fmt.Errorf("it is not %s", change.From))
		case change.Intent == storage.IntentMaintenance && n.Intent == storage.IntentDrain:
			return storage.E(op, storage.KindConflict, "node "+n.Name, fmt.Errorf("it is draining; end that first with `storagectl node undrain %s`", n.Name))
		}
		n.Intent, n.IntentUntil = change.Intent, change.Until
		return nil
	})
}

// PlanNode implements api.Cluster. In memory nothing moves; the plan is the one that SetPlan has set.
func (c *Cluster) PlanNode(ctx context.Context, id storage.NodeID, action api.NodeAction) (api.NodePlan, error) {
	return call(ctx, c, "plan", func() (api.NodePlan, error) {
		n, err := c.node("plan", id)
		if err != nil {
			return api.NodePlan{}, err
		}
		p := c.plan
		p.Action, p.Node, p.Name = action, n.ID, n.Name
		return p, nil
	})
}

// Explain implements api.Cluster. It says that the object is there, and what the status says of it.
func (c *Cluster) Explain(ctx context.Context, kind api.ObjectKind, ref string) ([]api.Reason, error) {
	const op = "explain"
	return call(ctx, c, op, func() ([]api.Reason, error) {
		name := ref
		switch kind {
		case api.ObjectVolume:
			if _, ok := c.volumes[ref]; !ok {
				return nil, storage.E(op, storage.KindNotFound, "volume "+ref, nil)
			}
		case api.ObjectNode:
			at := slices.IndexFunc(c.nodes, func(n api.Node) bool { return n.ID.String() == ref })
			if at < 0 {
				return nil, storage.E(op, storage.KindNotFound, "node "+ref, errors.New("there is no such node"))
			}
			name = c.nodes[at].Name
		case api.ObjectGroup:
			if !slices.ContainsFunc(c.groups, func(g api.Group) bool { return g.ID.String() == ref }) {
				return nil, storage.E(op, storage.KindNotFound, "group "+ref, errors.New("there is none of that number; `storagectl group list` shows what there is"))
			}
		}
		subject := string(kind) + " " + name
		lines := []api.Reason{{Severity: api.HealthOK, Subject: subject, Text: "it is there"}}
		for _, r := range c.status.Reasons {
			if r.Subject == subject {
				lines = append(lines, r)
			}
		}
		return lines, nil
	})
}

// AddEvents adds to what has happened, and numbers it from 1. Without a call the cluster keeps no events.
func (c *Cluster) AddEvents(events ...storage.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range events {
		e.Seq = uint64(len(c.events) + 1)
		c.events = append(c.events, e)
	}
}

// Events implements api.Cluster.
func (c *Cluster) Events(ctx context.Context, f api.EventFilter) (api.Events, error) {
	return call(ctx, c, "list events", func() (api.Events, error) {
		out := f.Select(c.events, uint64(len(c.events)))
		out.Kept = len(c.events) > 0
		return out, nil
	})
}

// VerifyVolume implements api.Cluster. Each step is the next of those that SetVerified has set; without any the first is the last, and the
// volume sound.
func (c *Cluster) VerifyVolume(ctx context.Context, s api.VerifyStep) (api.Verified, error) {
	return call(ctx, c, "verify", func() (api.Verified, error) {
		v, ok := c.volumes[s.Name]
		if !ok || s.ID != 0 && s.ID != v.ID {
			return api.Verified{}, storage.E("verify", storage.KindNotFound, "volume "+s.Name, errors.New("there is no such volume"))
		}
		if len(c.verified) == 0 {
			return api.Verified{ID: v.ID, Done: true}, nil
		}
		out := c.verified[0]
		c.verified = c.verified[1:]
		out.ID = v.ID
		return out, nil
	})
}

// SetVerified sets what the next steps of verifications answer, but for the volume's id.
func (c *Cluster) SetVerified(steps ...api.Verified) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.verified = steps
}

// SetPlan sets what PlanNode answers, but for the action and the node.
func (c *Cluster) SetPlan(p api.NodePlan) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.plan = p
}

// node returns the node of an id. mu is held.
func (c *Cluster) node(op string, id storage.NodeID) (*api.Node, error) {
	at := slices.IndexFunc(c.nodes, func(n api.Node) bool { return n.ID == id })
	if at < 0 {
		return nil, storage.E(op, storage.KindNotFound, "node "+id.String(), errors.New("there is no such node"))
	}
	return &c.nodes[at], nil
}

// RemoveNode implements api.Cluster.
func (c *Cluster) RemoveNode(ctx context.Context, id storage.NodeID) error {
	const op = "remove"
	return c.do(ctx, op, func() error {
		if c.removed[id] {
			return nil
		}
		at := slices.IndexFunc(c.nodes, func(n api.Node) bool { return n.ID == id })
		if at < 0 {
			return storage.E(op, storage.KindNotFound, "node "+id.String(), errors.New("there is no such node"))
		}
		if n := c.nodes[at]; n.State != storage.NodeDown {
			return storage.E(op, storage.KindConflict, "node "+n.Name,
				fmt.Errorf("it is %s; stop storaged there for good and wait until the node is shown as down", n.State))
		}
		c.nodes = slices.Delete(c.nodes, at, at+1)
		if c.removed == nil {
			c.removed = map[storage.NodeID]bool{}
		}
		c.removed[id] = true
		return nil
	})
}

// Groups implements api.Cluster.
func (c *Cluster) Groups(ctx context.Context) ([]api.Group, error) {
	return call(ctx, c, "list groups", func() ([]api.Group, error) {
		list := slices.Clone(c.groups)
		for i := range list {
			list[i].Replicas = slices.Clone(list[i].Replicas)
		}
		return list, nil
	})
}

// Upgrade implements api.Cluster. What every node knows is in the status.
func (c *Cluster) Upgrade(ctx context.Context, version int) (inForce int, err error) {
	const op = "upgrade"
	return call(ctx, c, op, func() (int, error) {
		to := cmp.Or(version, c.status.VersionKnown, c.status.Version+1)
		switch {
		case to > c.status.Version && c.status.VersionKnown == 0:
			return 0, storage.E(op, storage.KindConflict, "cluster", fmt.Errorf(
				"not every node knows version %d: node c was not heard: start it, or remove it if it is lost", to))
		case to > max(c.status.Version, c.status.VersionKnown):
			return 0, storage.E(op, storage.KindUnsupported, "cluster", fmt.Errorf("there is no version %d, this node knows 1 to %d", to, c.status.VersionKnown))
		}
		c.status.Version = max(c.status.Version, to)
		return c.status.Version, nil
	})
}

// BackupCatalog implements api.Cluster. What it returns is a catalog of the nodes and groups that are shown, and of the volumes.
func (c *Cluster) BackupCatalog(ctx context.Context) ([]byte, error) {
	return call(ctx, c, "back up", func() ([]byte, error) {
		b := catalogBody{Applied: c.status.CatalogIndex, LastVolume: c.lastID, Sessions: []struct{}{}}
		b.Cluster.ID, b.Cluster.Version, b.Cluster.Replicas, b.Cluster.CreatedAt = c.status.ClusterID, c.status.Version, c.status.ReplicasWanted, c.now()
		for _, n := range c.nodes {
			node := n.Node
			for _, s := range n.Stores {
				node.Stores = append(node.Stores, s.Store)
			}
			b.Nodes, b.LastNode = append(b.Nodes, node), max(b.LastNode, n.ID)
		}
		for _, g := range c.groups {
			group := storage.Group{ID: g.ID, State: storage.GroupReady, LastIncarnation: storage.Incarnation(len(g.Replicas))}
			for i, r := range g.Replicas { // shown are samples, all of the first incarnation
				r.Key.Incarnation = storage.Incarnation(i + 1)
				group.Replicas = append(group.Replicas, r.Replica)
			}
			b.Groups, b.LastGroup = append(b.Groups, group), max(b.LastGroup, g.ID)
		}
		for _, v := range c.volumes {
			b.Volumes = append(b.Volumes, v.Volume)
		}
		slices.SortFunc(b.Volumes, func(x, y storage.Volume) int { return cmp.Compare(x.ID, y.ID) })
		return b.encode()
	})
}

// catalogBody is what a snapshot of the catalog holds, as far as there is any of it here (docs/format/catalog.md). Most of what this
// package serves may know nothing of the server, which has the real one.
type catalogBody struct {
	Applied uint64 `json:"applied"`
	Cluster struct {
		ID        storage.ClusterID `json:"id"`
		Version   int               `json:"version"`
		Replicas  int               `json:"replicas"`
		CreatedAt time.Time         `json:"created_at"`
	} `json:"cluster"`
	LastNode    storage.NodeID    `json:"last_node"`
	LastGroup   storage.GroupID   `json:"last_group"`
	LastVolume  storage.VolumeID  `json:"last_volume"`
	LastSession storage.SessionID `json:"last_session"`
	Nodes       []storage.Node    `json:"nodes"`
	Groups      []storage.Group   `json:"groups"`
	Volumes     []storage.Volume  `json:"volumes"`
	Sessions    []struct{}        `json:"sessions"`
}

func (b *catalogBody) encode() ([]byte, error) {
	body, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	out := binary.LittleEndian.AppendUint32([]byte("SDCATLOG"), uint32(b.Cluster.Version))
	out = binary.LittleEndian.AppendUint32(out, uint32(len(body)))
	out = binary.LittleEndian.AppendUint32(out, crc32.Checksum(body, table))
	out = binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, table))
	return append(out, body...), nil
}

// Status implements api.Cluster.
func (c *Cluster) Status(ctx context.Context) (api.Status, error) {
	return call(ctx, c, "show", func() (api.Status, error) {
		s := c.status
		s.Reasons, s.Tasks = slices.Clone(s.Reasons), slices.Clone(s.Tasks)
		s.Volumes = len(c.volumes)
		for _, v := range c.volumes {
			s.ProvisionedBytes += v.SizeBytes
		}
		return s, nil
	})
}

func notFound(op, name string) error {
	return storage.E(op, storage.KindNotFound, "volume "+name, errors.New("no volume has that name"))
}

func copyVolume(v api.Volume) api.Volume {
	v.Groups, v.Sessions, v.Connections = slices.Clone(v.Groups), slices.Clone(v.Sessions), slices.Clone(v.Connections)
	v.Attachments, v.Labels = slices.Clone(v.Attachments), maps.Clone(v.Labels)
	return v
}
