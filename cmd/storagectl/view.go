package main

import (
	"maps"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// The structs of this file, and those of api in them, are what -o json and -o yaml print. Scripts depend on the names: fields are added, never
// renamed or removed (testdata/schema.txt holds them). Sizes are bytes, times are RFC 3339 in UTC, lists are never null,
// and what is not known is left out.

type volumeView struct {
	ID             uint64   `json:"id"`
	Name           string   `json:"name"`
	SizeBytes      int64    `json:"size_bytes"`
	AllocatedBytes *int64   `json:"allocated_bytes,omitempty"`
	OnDiskBytes    *int64   `json:"on_disk_bytes,omitempty"`
	State          string   `json:"state"`
	Epoch          uint64   `json:"epoch"`
	Generation     uint64   `json:"generation"`
	Groups         []uint32 `json:"groups"`
	// 0: no limit.
	MaxIOPS           int64             `json:"max_iops"`
	MaxBytesPerSecond int64             `json:"max_bytes_per_second"`
	Labels            map[string]string `json:"labels"`
	CreatedAt         *time.Time        `json:"created_at,omitempty"`
	Sessions          []api.Session     `json:"sessions"`
	Connections       []api.Connection  `json:"connections"`
	Attachments       []holderView      `json:"attachments"`
}

type holderView struct {
	ID         uint64     `json:"id"`
	Holder     string     `json:"holder"`
	Kind       string     `json:"kind"`
	Host       string     `json:"host"`
	Node       uint32     `json:"node"`
	Access     string     `json:"access"`
	ReadOnly   bool       `json:"read_only"`
	Generation uint64     `json:"generation"`
	Since      *time.Time `json:"since,omitempty"`
	Silent     bool       `json:"silent"`
}

func viewHolder(a api.Attachment) holderView {
	return holderView{ID: uint64(a.ID), Holder: a.Holder.ID, Kind: string(a.Holder.Kind), Host: a.Holder.Host,
		Node: uint32(a.Holder.Node), Access: string(a.Access), ReadOnly: a.ReadOnly, Generation: uint64(a.Generation),
		Since: viewTime(a.Since), Silent: a.Silent}
}

func viewVolume(v api.Volume) volumeView {
	out := volumeView{
		ID: uint64(v.ID), Name: v.Name, SizeBytes: v.SizeBytes, State: string(v.State), Epoch: uint64(v.Epoch),
		Generation: uint64(v.Generation), CreatedAt: viewTime(v.CreatedAt),
		Labels: map[string]string{}, MaxIOPS: v.Limits.MaxIOPS, MaxBytesPerSecond: v.Limits.MaxBytesPerSecond,
		Groups:   views(v.Groups, func(g storage.GroupID) uint32 { return uint32(g) }),
		Sessions: append([]api.Session{}, v.Sessions...), Connections: append([]api.Connection{}, v.Connections...),
	}
	maps.Copy(out.Labels, v.Labels)
	out.Attachments = views(v.Attachments, viewHolder)
	out.AllocatedBytes, out.OnDiskBytes = known(v.AllocatedBytes >= 0, v.AllocatedBytes), known(v.OnDiskBytes >= 0, v.OnDiskBytes)
	return out
}

type nodeView struct {
	ID            uint32      `json:"id"`
	Name          string      `json:"name"`
	Zone          string      `json:"zone"`
	State         string      `json:"state"`
	Version       *string     `json:"version,omitempty"`
	Addresses     addresses   `json:"addresses"`
	Replicas      *int        `json:"replicas,omitempty"`
	Leaders       *int        `json:"leaders,omitempty"`
	CapacityBytes int64       `json:"capacity_bytes"`
	UsedBytes     *int64      `json:"used_bytes,omitempty"`
	FreeBytes     *int64      `json:"free_bytes,omitempty"`
	Stores        []storeView `json:"stores"`
	SeenAt        *time.Time  `json:"seen_at,omitempty"`
	// What people want of it: drain, maintenance or nothing, and when maintenance ends.
	Intent      storage.NodeIntent `json:"intent,omitempty"`
	IntentUntil *time.Time         `json:"intent_until,omitempty"`
	SilentSince *time.Time         `json:"silent_since,omitempty"`
}

type addresses struct {
	Peer string `json:"peer"`
	API  string `json:"api"`
	NBD  string `json:"nbd"`
	HTTP string `json:"http"`
}

type storeView struct {
	ID            string `json:"id"`
	State         string `json:"state"`
	CapacityBytes int64  `json:"capacity_bytes"`
	UsedBytes     *int64 `json:"used_bytes,omitempty"`
	FreeBytes     *int64 `json:"free_bytes,omitempty"`
	// Nodes of earlier releases do not tell it.
	Space *spaceView `json:"space,omitempty"`
	Scrub *scrubView `json:"scrub,omitempty"`
}

// spaceView is storage.StoreSpace with nothing left out.
type spaceView struct {
	LogBytes     int64                   `json:"log_bytes"`
	LiveBytes    int64                   `json:"live_bytes"`
	GarbageBytes int64                   `json:"garbage_bytes"`
	TableBytes   int64                   `json:"table_bytes"`
	OtherBytes   int64                   `json:"other_bytes"`
	UnusedBytes  int64                   `json:"unused_bytes"`
	ReserveBytes int64                   `json:"reserve_bytes"`
	Fill         float64                 `json:"fill"`
	NoRoom       bool                    `json:"no_room"`
	Compaction   storage.CompactionState `json:"compaction"`
}

func viewNode(n api.Node) nodeView {
	return nodeView{
		ID: uint32(n.ID), Name: n.Name, Zone: n.Zone, State: string(n.State), Version: known(n.Heard(), n.Version),
		Addresses: addresses(n.Addrs), Replicas: known(n.Heard(), n.Replicas), Leaders: known(n.Heard(), n.Leaders),
		CapacityBytes: n.CapacityBytes(), UsedBytes: known(n.SpaceKnown(), n.UsedBytes()), FreeBytes: known(n.SpaceKnown(), n.FreeBytes()),
		SeenAt: viewTime(n.SeenAt), Intent: n.Intent, IntentUntil: viewTime(n.IntentUntil), SilentSince: viewTime(n.SilentSince),
		Stores: views(n.Stores, func(s api.Store) storeView {
			heard := s.State != api.StoreUnknown
			return storeView{ID: s.ID.String(), State: string(s.State), CapacityBytes: s.CapacityBytes,
				UsedBytes: known(heard, s.UsedBytes), FreeBytes: known(heard, s.FreeBytes), Space: known(s.Known(), spaceView(s.StoreSpace)),
				Scrub: known(s.Scrub.Known(), viewScrub(s.Scrub))}
		}),
	}
}

// planView is api.NodePlan.
type planView struct {
	Action        string     `json:"action"`
	Node          uint32     `json:"node"`
	Name          string     `json:"name"`
	Refused       string     `json:"refused,omitempty"` // why it would be
	Bytes         int64      `json:"bytes"`
	Moves         []moveView `json:"moves"`
	StoppedGroups []uint32   `json:"stopped_groups"`
	ThinnerGroups []uint32   `json:"thinner_groups"`
	Volumes       []string   `json:"volumes"`
}

type moveView struct {
	Group  uint32 `json:"group"`
	Bytes  int64  `json:"bytes"`
	To     uint32 `json:"to"` // 0: nowhere
	ToName string `json:"to_name,omitempty"`
	Why    string `json:"why,omitempty"`
}

func viewPlan(p api.NodePlan) planView {
	id := func(g storage.GroupID) uint32 { return uint32(g) }
	return planView{Action: string(p.Action), Node: uint32(p.Node), Name: p.Name, Refused: p.Refused, Bytes: p.Bytes(),
		Moves: views(p.Moves, func(m api.NodeMove) moveView {
			return moveView{uint32(m.Group), m.Bytes, uint32(m.To), m.ToName, m.Why}
		}),
		StoppedGroups: views(p.Stopped, id), ThinnerGroups: views(p.Thinner, id), Volumes: views(p.Volumes, func(v string) string { return v })}
}

type groupView struct {
	ID           uint32        `json:"id"`
	Leader       uint32        `json:"leader"` // 0: nobody leads
	LeaderName   string        `json:"leader_name"`
	Term         *uint64       `json:"term,omitempty"`
	CommitIndex  *uint64       `json:"commit_index,omitempty"`
	AppliedIndex *uint64       `json:"applied_index,omitempty"`
	Replicas     []replicaView `json:"replicas"`
}

type replicaView struct {
	Node        uint32        `json:"node"`
	NodeName    string        `json:"node_name"`
	Store       string        `json:"store"`
	Incarnation uint32        `json:"incarnation"`
	Role        string        `json:"role"`
	Online      bool          `json:"online"`
	LagEntries  *uint64       `json:"lag_entries,omitempty"`
	Progress    *api.Progress `json:"progress,omitempty"`
	Reason      string        `json:"reason,omitempty"` // why it is out of service for good
}

func viewGroup(g api.Group) groupView {
	led := g.Leader != 0 // what follows is what the leader says
	return groupView{
		ID: uint32(g.ID), Leader: uint32(g.Leader), LeaderName: g.LeaderName, Term: known(led, g.Term), CommitIndex: known(led, g.CommitIndex),
		AppliedIndex: known(led, g.AppliedIndex),
		Replicas: views(g.Replicas, func(r api.Replica) replicaView {
			return replicaView{Node: uint32(r.Node), NodeName: r.NodeName, Store: r.Key.Store.String(),
				Incarnation: uint32(r.Key.Incarnation), Role: string(r.Role), Online: r.Online, LagEntries: known(led, r.LagEntries),
				Progress: r.Progress, Reason: r.Reason}
		}),
	}
}

type statusView struct {
	ClusterID           string          `json:"cluster_id"`
	Version             *int            `json:"version,omitempty"`
	VersionKnown        *int            `json:"version_known,omitempty"`
	Health              string          `json:"health"`
	Reasons             []api.Reason    `json:"reasons"`
	ReplicasWanted      int             `json:"replicas_wanted"`
	NodesTotal          *int            `json:"nodes_total,omitempty"`
	NodesUp             *int            `json:"nodes_up,omitempty"`
	GroupsTotal         *int            `json:"groups_total,omitempty"`
	GroupsFull          *int            `json:"groups_full,omitempty"`
	GroupsWithoutLeader *int            `json:"groups_without_leader,omitempty"`
	Volumes             *int            `json:"volumes,omitempty"`
	ProvisionedBytes    *int64          `json:"provisioned_bytes,omitempty"`
	UsableBytes         *int64          `json:"usable_bytes,omitempty"`
	CapacityBytes       *int64          `json:"capacity_bytes,omitempty"`
	UsedBytes           *int64          `json:"used_bytes,omitempty"`
	FreeBytes           *int64          `json:"free_bytes,omitempty"`
	GarbageBytes        *int64          `json:"garbage_bytes,omitempty"`
	Fullest             *api.StoreRoom  `json:"fullest,omitempty"`
	Compacting          []api.StoreRoom `json:"compacting"`
	Warnings            []api.Reason    `json:"warnings"`
	StoresUnknown       *int            `json:"stores_unknown,omitempty"`
	Tasks               []api.Task      `json:"tasks"`
	CatalogLeader       uint32          `json:"catalog_leader"` // 0: nobody leads
	CatalogLeaderName   string          `json:"catalog_leader_name"`
	CatalogTerm         uint64          `json:"catalog_term"`
	CatalogIndex        uint64          `json:"catalog_index"`
	AnsweredBy          uint32          `json:"answered_by"`
	AnsweredByName      string          `json:"answered_by_name"`
	AgeSeconds          *float64        `json:"age_seconds,omitempty"`
}

func viewStatus(s api.Status) statusView {
	read := catalogRead(s)
	space := read && s.StoresHeard()
	return statusView{
		ClusterID: s.ClusterID.String(), Version: known(s.Version != 0, s.Version), VersionKnown: known(s.VersionKnown != 0, s.VersionKnown), Health: string(s.Health), ReplicasWanted: s.ReplicasWanted, NodesTotal: known(read, s.NodesTotal),
		NodesUp: known(read, s.NodesUp), GroupsTotal: known(read, s.GroupsTotal), GroupsFull: known(read, s.GroupsFull),
		GroupsWithoutLeader: known(read, s.GroupsWithoutLeader), Volumes: known(read, s.Volumes), ProvisionedBytes: known(read, s.ProvisionedBytes),
		UsableBytes: known(read && s.UsableBytes > 0, s.UsableBytes), CapacityBytes: known(read, s.CapacityBytes), UsedBytes: known(space, s.UsedBytes), FreeBytes: known(space, s.FreeBytes),
		StoresUnknown: known(read, s.StoresUnknown), CatalogLeader: uint32(s.CatalogLeader), CatalogLeaderName: s.CatalogLeaderName,
		CatalogTerm: s.CatalogTerm, CatalogIndex: s.CatalogIndex, AnsweredBy: uint32(s.AnsweredBy),
		AnsweredByName: s.AnsweredByName, AgeSeconds: known(s.Age >= 0, s.Age.Seconds()),
		GarbageBytes: known(s.Fullest != nil, s.GarbageBytes), Fullest: s.Fullest, Compacting: append([]api.StoreRoom{}, s.Compacting...),
		Reasons: append([]api.Reason{}, s.Reasons...), Warnings: append([]api.Reason{}, s.Warnings...),
		Tasks: append([]api.Task{}, s.Tasks...),
	}
}

type versionView struct {
	Client api.Version  `json:"client"`
	Node   *api.Version `json:"node,omitempty"`
}

// known leaves out what is not known.
func known[T any](ok bool, v T) *T {
	if !ok {
		return nil
	}
	return &v
}

// viewTime leaves out the time that is not known.
func viewTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// list makes the view of a list from that of an element.
func list[A, B any](view func(A) B) func([]A) []B {
	return func(in []A) []B { return views(in, view) }
}

// views converts a list; the result is never nil, so that it prints as [] and not as null.
func views[A, B any](in []A, view func(A) B) []B {
	return append([]B{}, api.Each(in, view)...)
}
