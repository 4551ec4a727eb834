package api

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storage "github.com/storaged/storaged"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// This file turns the structs of this package into messages and back; package client uses the way back. A message from
// a newer node may hold states that are not known here: they read as "unknown".

var (
	volumeStates = EnumTable[storage.VolumeState, pb.VolumeState]{
		{storage.VolumeReady, pb.VolumeState_VOLUME_STATE_READY},
		{storage.VolumeDeleting, pb.VolumeState_VOLUME_STATE_DELETING},
	}
	nodeIntents = EnumTable[storage.NodeIntent, pb.NodeIntent]{
		{storage.IntentServe, pb.NodeIntent_NODE_INTENT_SERVE},
		{storage.IntentDrain, pb.NodeIntent_NODE_INTENT_DRAIN},
		{storage.IntentMaintenance, pb.NodeIntent_NODE_INTENT_MAINTENANCE},
	}
	objectKinds = EnumTable[ObjectKind, pb.ObjectKind]{
		{ObjectVolume, pb.ObjectKind_OBJECT_KIND_VOLUME},
		{ObjectNode, pb.ObjectKind_OBJECT_KIND_NODE},
		{ObjectGroup, pb.ObjectKind_OBJECT_KIND_GROUP},
	}
	nodeActions = EnumTable[NodeAction, pb.NodeAction]{
		{ActDrain, pb.NodeAction_NODE_ACTION_DRAIN},
		{ActMaintenance, pb.NodeAction_NODE_ACTION_MAINTENANCE},
		{ActRemove, pb.NodeAction_NODE_ACTION_REMOVE},
	}
	nodeStates = EnumTable[storage.NodeState, pb.NodeState]{
		{storage.NodeUp, pb.NodeState_NODE_STATE_UP},
		{storage.NodeSuspect, pb.NodeState_NODE_STATE_SUSPECT},
		{storage.NodeDown, pb.NodeState_NODE_STATE_DOWN},
		{storage.NodeRemoved, pb.NodeState_NODE_STATE_REMOVED},
		{storage.NodeUnknown, pb.NodeState_NODE_STATE_UNKNOWN},
		{"draining", pb.NodeState_NODE_STATE_DRAINING}, // an intent since; no node was ever in that state
	}
	storeStates = EnumTable[StoreState, pb.StoreState]{
		{StoreOK, pb.StoreState_STORE_STATE_OK},
		{StoreFull, pb.StoreState_STORE_STATE_FULL},
		{StoreFailed, pb.StoreState_STORE_STATE_FAILED},
		{StoreUnknown, pb.StoreState_STORE_STATE_UNKNOWN},
	}
	compactionStates = EnumTable[storage.CompactionState, pb.CompactionState]{
		{storage.CompactionOff, pb.CompactionState_COMPACTION_STATE_OFF},
		{storage.CompactionIdle, pb.CompactionState_COMPACTION_STATE_IDLE},
		{storage.CompactionRunning, pb.CompactionState_COMPACTION_STATE_RUNNING},
		{storage.CompactionBraked, pb.CompactionState_COMPACTION_STATE_BRAKED},
		{storage.CompactionBehind, pb.CompactionState_COMPACTION_STATE_BEHIND},
		{storage.CompactionNothingToWin, pb.CompactionState_COMPACTION_STATE_NOTHING_TO_WIN},
		{storage.CompactionNoRoom, pb.CompactionState_COMPACTION_STATE_NO_ROOM},
	}
	replicaRoles = EnumTable[storage.ReplicaRole, pb.ReplicaRole]{
		{storage.RoleVoter, pb.ReplicaRole_REPLICA_ROLE_VOTER},
		{storage.RoleLearner, pb.ReplicaRole_REPLICA_ROLE_LEARNER},
		{storage.RolePulling, pb.ReplicaRole_REPLICA_ROLE_PULLING},
		{storage.RoleLeaving, pb.ReplicaRole_REPLICA_ROLE_LEAVING},
	}
	healths = EnumTable[Health, pb.Health]{
		{HealthOK, pb.Health_HEALTH_OK},
		{HealthDegraded, pb.Health_HEALTH_DEGRADED},
		{HealthCritical, pb.Health_HEALTH_CRITICAL},
		{HealthStarting, pb.Health_HEALTH_STARTING},
	}
	taskKinds = EnumTable[TaskKind, pb.TaskKind]{
		{TaskGrow, pb.TaskKind_TASK_KIND_GROW},
		{TaskRepair, pb.TaskKind_TASK_KIND_REPAIR},
		{TaskBalance, pb.TaskKind_TASK_KIND_BALANCE},
	}
)

// TimeToProto is the inverse of TimeFromProto; the zero time is no message.
func TimeToProto(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// TimeFromProto reads a message; without one, and for one that is no time, it is the zero time.
func TimeFromProto(t *timestamppb.Timestamp) time.Time {
	if t == nil || !t.IsValid() {
		return time.Time{}
	}
	return t.AsTime()
}

// Each converts a list; nil stays nil.
func Each[A, B any](in []A, convert func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i, a := range in {
		out[i] = convert(a)
	}
	return out
}

func toValidUTF8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// VolumeToProto is the inverse of VolumeFromProto.
func VolumeToProto(v Volume) *pb.Volume {
	out := &pb.Volume{
		Id: uint64(v.ID), Name: v.Name, SizeBytes: v.SizeBytes, Epoch: uint64(v.Epoch), Generation: uint64(v.Generation),
		State: volumeStates.ToProto(v.State), CreatedAt: TimeToProto(v.CreatedAt),
		Groups:      Each(v.Groups, func(g storage.GroupID) uint32 { return uint32(g) }),
		Sessions:    Each(v.Sessions, sessionToProto),
		Connections: Each(v.Connections, connectionToProto),
		Attachments: Each(v.Attachments, AttachmentToProto),
		Limits:      LimitsToProto(v.Limits),
		Labels:      v.Labels,
	}
	if v.AllocatedBytes >= 0 {
		out.AllocatedBytes = &v.AllocatedBytes
	}
	if v.OnDiskBytes >= 0 {
		out.OnDiskBytes = &v.OnDiskBytes
	}
	return out
}

// VolumeFromProto reads a message; absent fields are zero values, an absent AllocatedBytes or OnDiskBytes is -1.
func VolumeFromProto(v *pb.Volume) Volume {
	out := Volume{
		Volume: storage.Volume{
			ID: storage.VolumeID(v.GetId()), Name: v.GetName(), SizeBytes: v.GetSizeBytes(),
			Epoch: storage.Epoch(v.GetEpoch()), Generation: storage.Generation(v.GetGeneration()),
			State: volumeStates.FromProto(v.GetState()), CreatedAt: TimeFromProto(v.GetCreatedAt()),
			Groups: Each(v.GetGroups(), func(g uint32) storage.GroupID { return storage.GroupID(g) }),
			Limits: LimitsFromProto(v.GetLimits()),
			Labels: v.GetLabels(),
		},
		AllocatedBytes: -1, OnDiskBytes: -1,
		Sessions:    Each(v.GetSessions(), sessionFromProto),
		Connections: Each(v.GetConnections(), connectionFromProto),
		Attachments: Each(v.GetAttachments(), AttachmentFromProto),
	}
	if v != nil && v.AllocatedBytes != nil {
		out.AllocatedBytes = *v.AllocatedBytes
	}
	if v != nil && v.OnDiskBytes != nil {
		out.OnDiskBytes = *v.OnDiskBytes
	}
	return out
}

// LimitsToProto is the inverse of LimitsFromProto; no limits are no message.
func LimitsToProto(l storage.VolumeLimits) *pb.VolumeLimits {
	if l == (storage.VolumeLimits{}) {
		return nil
	}
	return &pb.VolumeLimits{MaxIops: l.MaxIOPS, MaxBytesPerSecond: l.MaxBytesPerSecond}
}

// LimitsFromProto reads a message; absent fields are no limits.
func LimitsFromProto(l *pb.VolumeLimits) storage.VolumeLimits {
	return storage.VolumeLimits{MaxIOPS: l.GetMaxIops(), MaxBytesPerSecond: l.GetMaxBytesPerSecond()}
}

func sessionToProto(s Session) *pb.Session {
	return &pb.Session{Id: uint64(s.ID), Node: uint32(s.Node), NodeName: s.NodeName, Generation: uint64(s.Generation),
		ReadOnly: s.ReadOnly, OpenedAt: TimeToProto(s.OpenedAt), Attachment: uint64(s.Attachment)}
}

func sessionFromProto(s *pb.Session) Session {
	return Session{ID: storage.SessionID(s.GetId()), Node: storage.NodeID(s.GetNode()), NodeName: s.GetNodeName(),
		Generation: storage.Generation(s.GetGeneration()), ReadOnly: s.GetReadOnly(), OpenedAt: TimeFromProto(s.GetOpenedAt()),
		Attachment: storage.AttachmentID(s.GetAttachment())}
}

func connectionToProto(c Connection) *pb.Connection {
	return &pb.Connection{Node: uint32(c.Node), NodeName: c.NodeName, Client: toValidUTF8(c.Client), ReadOnly: c.ReadOnly,
		OpenedAt: TimeToProto(c.OpenedAt)}
}

func connectionFromProto(c *pb.Connection) Connection {
	return Connection{Node: storage.NodeID(c.GetNode()), NodeName: c.GetNodeName(), Client: c.GetClient(),
		ReadOnly: c.GetReadOnly(), OpenedAt: TimeFromProto(c.GetOpenedAt())}
}

// NodeToProto is the inverse of NodeFromProto.
func NodeToProto(n Node) *pb.Node {
	return &pb.Node{
		Id: uint32(n.ID), Name: n.Name, Zone: n.Zone, State: nodeStates.ToProto(n.State), Version: n.Version,
		Addresses: &pb.NodeAddresses{Peer: n.Addrs.Peer, Api: n.Addrs.API, Nbd: n.Addrs.NBD, Http: n.Addrs.HTTP},
		Stores:    Each(n.Stores, storeToProto), Replicas: uint32(n.Replicas), Leaders: uint32(n.Leaders),
		SeenAt: TimeToProto(n.SeenAt), Intent: nodeIntents.ToProto(n.Intent), IntentUntil: TimeToProto(n.IntentUntil), SilentSince: TimeToProto(n.SilentSince),
	}
}

// NodeFromProto reads a message; absent fields are zero values.
func NodeFromProto(n *pb.Node) Node {
	a := n.GetAddresses()
	return Node{
		Node: storage.Node{ID: storage.NodeID(n.GetId()), Name: n.GetName(), Zone: n.GetZone(), State: nodeStates.FromProto(n.GetState()),
			Addrs: storage.Addrs{Peer: a.GetPeer(), API: a.GetApi(), NBD: a.GetNbd(), HTTP: a.GetHttp()}, Intent: intentFromProto(n.GetIntent()),
			IntentUntil: TimeFromProto(n.GetIntentUntil()), SilentSince: TimeFromProto(n.GetSilentSince())},
		Version: n.GetVersion(), Stores: Each(n.GetStores(), storeFromProto), Replicas: int(n.GetReplicas()), Leaders: int(n.GetLeaders()),
		SeenAt: TimeFromProto(n.GetSeenAt()),
	}
}

// intentFromProto reads what is not said, as by nodes of versions without intents, as that the node takes its part.
func intentFromProto(w pb.NodeIntent) storage.NodeIntent {
	if w == pb.NodeIntent_NODE_INTENT_UNSPECIFIED {
		return storage.IntentServe
	}
	return nodeIntents.FromProto(w)
}

// IntentToProto returns the request that makes a change of intent.
func IntentToProto(id storage.NodeID, c IntentChange) *pb.SetNodeIntentRequest {
	r := &pb.SetNodeIntentRequest{Id: uint32(id), Intent: nodeIntents.ToProto(c.Intent), Until: TimeToProto(c.Until)}
	if c.From != storage.IntentServe {
		r.From = nodeIntents.ToProto(c.From)
	}
	return r
}

// ActionToProto returns what a is in messages.
func ActionToProto(a NodeAction) pb.NodeAction { return nodeActions.ToProto(a) }

// NodePlanToProto is the inverse of NodePlanFromProto.
func NodePlanToProto(p NodePlan) *pb.NodePlan {
	return &pb.NodePlan{Action: nodeActions.ToProto(p.Action), Id: uint32(p.Node), Name: p.Name, Refused: p.Refused, Volumes: p.Volumes,
		StoppedGroups: Each(p.Stopped, groupToProto), ThinnerGroups: Each(p.Thinner, groupToProto),
		Moves: Each(p.Moves, func(m NodeMove) *pb.NodeMove {
			return &pb.NodeMove{Group: uint32(m.Group), Bytes: m.Bytes, To: uint32(m.To), ToName: m.ToName, Why: m.Why}
		})}
}

// NodePlanFromProto reads a message; absent fields are zero values.
func NodePlanFromProto(p *pb.NodePlan) NodePlan {
	return NodePlan{Action: nodeActions.FromProto(p.GetAction()), Node: storage.NodeID(p.GetId()), Name: p.GetName(), Refused: p.GetRefused(), Volumes: p.GetVolumes(),
		Stopped: Each(p.GetStoppedGroups(), groupFromProto), Thinner: Each(p.GetThinnerGroups(), groupFromProto),
		Moves: Each(p.GetMoves(), func(m *pb.NodeMove) NodeMove {
			return NodeMove{Group: storage.GroupID(m.GetGroup()), Bytes: m.GetBytes(), To: storage.NodeID(m.GetTo()), ToName: m.GetToName(), Why: m.GetWhy()}
		})}
}

func groupToProto(g storage.GroupID) uint32   { return uint32(g) }
func groupFromProto(g uint32) storage.GroupID { return storage.GroupID(g) }

func storeToProto(s Store) *pb.Store {
	return &pb.Store{Id: s.ID.String(), State: storeStates.ToProto(s.State), CapacityBytes: s.CapacityBytes,
		UsedBytes: s.UsedBytes, FreeBytes: s.FreeBytes, Space: spaceToProto(s.StoreSpace), Scrub: scrubToProto(s.Scrub)}
}

func storeFromProto(s *pb.Store) Store {
	return Store{Store: storage.Store{ID: storeID(s.GetId()), CapacityBytes: s.GetCapacityBytes()}, State: storeStates.FromProto(s.GetState()),
		UsedBytes: s.GetUsedBytes(), FreeBytes: s.GetFreeBytes(), StoreSpace: spaceFromProto(s.GetSpace()), Scrub: scrubFromProto(s.GetScrub())}
}

// spaceToProto is the inverse of spaceFromProto; what is not known is no message.
func spaceToProto(s storage.StoreSpace) *pb.StoreSpace {
	if !s.Known() {
		return nil
	}
	return &pb.StoreSpace{LogBytes: s.LogBytes, LiveBytes: s.LiveBytes, GarbageBytes: s.GarbageBytes, TableBytes: s.TableBytes, OtherBytes: s.OtherBytes,
		UnusedBytes: s.UnusedBytes, ReserveBytes: s.ReserveBytes, Fill: s.Fill, NoRoom: s.NoRoom, Compaction: compactionStates.ToProto(s.Compaction)}
}

func spaceFromProto(s *pb.StoreSpace) storage.StoreSpace {
	if s == nil {
		return storage.StoreSpace{}
	}
	return storage.StoreSpace{LogBytes: s.GetLogBytes(), LiveBytes: s.GetLiveBytes(), GarbageBytes: s.GetGarbageBytes(), TableBytes: s.GetTableBytes(),
		OtherBytes: s.GetOtherBytes(), UnusedBytes: s.GetUnusedBytes(), ReserveBytes: s.GetReserveBytes(), Fill: s.GetFill(), NoRoom: s.GetNoRoom(),
		Compaction: compactionStates.FromProto(s.GetCompaction())}
}

// scrubToProto is the inverse of scrubFromProto; what is not known is no message.
func scrubToProto(s storage.StoreScrub) *pb.StoreScrub {
	if !s.Known() {
		return nil
	}
	return &pb.StoreScrub{LastPassAt: TimeToProto(s.LastPass), BegunAt: TimeToProto(s.Begun), Part: s.Part, MendedBlocks: s.MendedBlocks,
		WaitingBlocks: s.WaitingBlocks, LostBlocks: s.LostBlocks, DamagedPages: s.DamagedPages, DamagedSegments: s.DamagedSegments, Interval: durationpb.New(s.Interval), Lost: Each(s.Lost, lostToProto)}
}

func scrubFromProto(s *pb.StoreScrub) storage.StoreScrub {
	if s == nil {
		return storage.StoreScrub{}
	}
	return storage.StoreScrub{LastPass: TimeFromProto(s.GetLastPassAt()), Begun: TimeFromProto(s.GetBegunAt()), Part: s.GetPart(), MendedBlocks: s.GetMendedBlocks(),
		WaitingBlocks: s.GetWaitingBlocks(), LostBlocks: s.GetLostBlocks(), DamagedPages: s.GetDamagedPages(), DamagedSegments: s.GetDamagedSegments(),
		Interval: s.GetInterval().AsDuration(), Lost: Each(s.GetLost(), lostFromProto)}
}

func lostToProto(b storage.LostBlock) *pb.LostBlock {
	return &pb.LostBlock{Group: uint32(b.Group), Volume: uint64(b.Volume), Extent: uint32(b.Extent), Block: uint32(b.Block)}
}

func lostFromProto(b *pb.LostBlock) storage.LostBlock {
	return storage.LostBlock{Group: storage.GroupID(b.GetGroup()), Volume: storage.VolumeID(b.GetVolume()), Extent: storage.ExtentIndex(b.GetExtent()), Block: int(b.GetBlock())}
}

func roomToProto(s StoreRoom) *pb.StoreRoom {
	return &pb.StoreRoom{Node: uint32(s.Node), NodeName: s.NodeName, Store: s.Store.String(), FreeBytes: s.FreeBytes, Fill: s.Fill, GarbageBytes: s.GarbageBytes,
		Compaction: compactionStates.ToProto(s.Compaction)}
}

func roomFromProto(s *pb.StoreRoom) StoreRoom {
	return StoreRoom{Node: storage.NodeID(s.GetNode()), NodeName: s.GetNodeName(), Store: storeID(s.GetStore()), FreeBytes: s.GetFreeBytes(), Fill: s.GetFill(),
		GarbageBytes: s.GetGarbageBytes(), Compaction: compactionStates.FromProto(s.GetCompaction())}
}

// storeID reads an identifier that the other end formatted; a malformed one is only shown to people and reads as zero.
func storeID(s string) storage.StoreID {
	id, _ := storage.ParseStoreID(s)
	return id
}

// GroupToProto is the inverse of GroupFromProto.
func GroupToProto(g Group) *pb.Group {
	return &pb.Group{Id: uint32(g.ID), Leader: uint32(g.Leader), LeaderName: g.LeaderName, Term: g.Term,
		CommitIndex: g.CommitIndex, AppliedIndex: g.AppliedIndex, Replicas: Each(g.Replicas, replicaToProto)}
}

// GroupFromProto reads a message; absent fields are zero values.
func GroupFromProto(g *pb.Group) Group {
	return Group{ID: storage.GroupID(g.GetId()), Leader: storage.NodeID(g.GetLeader()), LeaderName: g.GetLeaderName(),
		Term: g.GetTerm(), CommitIndex: g.GetCommitIndex(), AppliedIndex: g.GetAppliedIndex(),
		Replicas: Each(g.GetReplicas(), replicaFromProto)}
}

func replicaToProto(r Replica) *pb.Replica {
	return &pb.Replica{Node: uint32(r.Node), NodeName: r.NodeName, Store: r.Key.Store.String(), Incarnation: uint32(r.Key.Incarnation),
		Role: replicaRoles.ToProto(r.Role), Online: r.Online, LagEntries: r.LagEntries, Progress: progressToProto(r.Progress),
		Reason: toValidUTF8(r.Reason)}
}

func replicaFromProto(r *pb.Replica) Replica {
	key := storage.ReplicaKey{Store: storeID(r.GetStore()), Incarnation: storage.Incarnation(r.GetIncarnation())}
	return Replica{
		Replica:  storage.Replica{Node: storage.NodeID(r.GetNode()), Key: key, Role: replicaRoles.FromProto(r.GetRole())},
		NodeName: r.GetNodeName(), Online: r.GetOnline(), LagEntries: r.GetLagEntries(), Progress: progressFromProto(r.GetProgress()),
		Reason: r.GetReason(),
	}
}

func progressToProto(p *Progress) *pb.Progress {
	if p == nil {
		return nil
	}
	return &pb.Progress{DoneBytes: p.DoneBytes, TotalBytes: p.TotalBytes, StartedAt: TimeToProto(p.StartedAt)}
}

func progressFromProto(p *pb.Progress) *Progress {
	if p == nil {
		return nil
	}
	return &Progress{DoneBytes: p.GetDoneBytes(), TotalBytes: p.GetTotalBytes(), StartedAt: TimeFromProto(p.GetStartedAt())}
}

// StatusToProto is the inverse of StatusFromProto.
func StatusToProto(s Status) *pb.ClusterStatus {
	out := &pb.ClusterStatus{
		ClusterId: s.ClusterID.String(), Health: healths.ToProto(s.Health), Reasons: Each(s.Reasons, reasonToProto),
		ReplicasWanted: uint32(s.ReplicasWanted), NodesTotal: uint32(s.NodesTotal), NodesUp: uint32(s.NodesUp),
		GroupsTotal: uint32(s.GroupsTotal), GroupsFull: uint32(s.GroupsFull), GroupsWithoutLeader: uint32(s.GroupsWithoutLeader),
		Volumes: uint32(s.Volumes), ProvisionedBytes: s.ProvisionedBytes, UsableBytes: s.UsableBytes, CapacityBytes: s.CapacityBytes, UsedBytes: s.UsedBytes,
		FreeBytes: s.FreeBytes, Tasks: Each(s.Tasks, taskToProto), CatalogLeader: uint32(s.CatalogLeader),
		CatalogLeaderName: s.CatalogLeaderName, CatalogTerm: s.CatalogTerm, CatalogIndex: s.CatalogIndex,
		AnsweredBy: uint32(s.AnsweredBy), AnsweredByName: s.AnsweredByName, Age: durationpb.New(s.Age),
		StoresUnknown: uint32(s.StoresUnknown), Version: uint32(s.Version), VersionKnown: uint32(s.VersionKnown),
		Warnings: Each(s.Warnings, reasonToProto), GarbageBytes: s.GarbageBytes, Compacting: Each(s.Compacting, roomToProto),
	}
	if s.Fullest != nil {
		out.Fullest = roomToProto(*s.Fullest)
	}
	return out
}

// StatusFromProto reads a message; absent fields are zero values.
func StatusFromProto(s *pb.ClusterStatus) Status {
	id, _ := storage.ParseClusterID(s.GetClusterId())
	out := Status{
		ClusterID: id, Health: healths.FromProto(s.GetHealth()), Reasons: Each(s.GetReasons(), reasonFromProto),
		ReplicasWanted: int(s.GetReplicasWanted()), NodesTotal: int(s.GetNodesTotal()), NodesUp: int(s.GetNodesUp()),
		GroupsTotal: int(s.GetGroupsTotal()), GroupsFull: int(s.GetGroupsFull()),
		GroupsWithoutLeader: int(s.GetGroupsWithoutLeader()), Volumes: int(s.GetVolumes()),
		ProvisionedBytes: s.GetProvisionedBytes(), UsableBytes: s.GetUsableBytes(), CapacityBytes: s.GetCapacityBytes(), UsedBytes: s.GetUsedBytes(),
		FreeBytes: s.GetFreeBytes(), Tasks: Each(s.GetTasks(), taskFromProto), CatalogLeader: storage.NodeID(s.GetCatalogLeader()),
		CatalogLeaderName: s.GetCatalogLeaderName(), CatalogTerm: s.GetCatalogTerm(), CatalogIndex: s.GetCatalogIndex(),
		AnsweredBy: storage.NodeID(s.GetAnsweredBy()), AnsweredByName: s.GetAnsweredByName(), Age: s.GetAge().AsDuration(),
		StoresUnknown: int(s.GetStoresUnknown()), Version: int(s.GetVersion()), VersionKnown: int(s.GetVersionKnown()),
		Warnings: Each(s.GetWarnings(), reasonFromProto), GarbageBytes: s.GetGarbageBytes(), Compacting: Each(s.GetCompacting(), roomFromProto),
	}
	if s.GetFullest() != nil {
		fullest := roomFromProto(s.GetFullest())
		out.Fullest = &fullest
	}
	return out
}

// ObjectToProto returns what k is in messages.
func ObjectToProto(k ObjectKind) pb.ObjectKind { return objectKinds.ToProto(k) }

// LinesFromProto reads what Explain answers.
func LinesFromProto(lines []*pb.Reason) []Reason { return Each(lines, reasonFromProto) }

func reasonToProto(r Reason) *pb.Reason {
	return &pb.Reason{Severity: healths.ToProto(r.Severity), Subject: r.Subject, Text: toValidUTF8(r.Text),
		NextStep: toValidUTF8(r.NextStep)}
}

func reasonFromProto(r *pb.Reason) Reason {
	return Reason{Severity: healths.FromProto(r.GetSeverity()), Subject: r.GetSubject(), Text: r.GetText(),
		NextStep: r.GetNextStep()}
}

func taskToProto(t Task) *pb.Task {
	return &pb.Task{Kind: taskKinds.ToProto(t.Kind), Group: uint32(t.Group), Node: uint32(t.Node), NodeName: t.NodeName,
		Step: t.Step, Progress: progressToProto(t.Progress)}
}

func taskFromProto(t *pb.Task) Task {
	return Task{Kind: taskKinds.FromProto(t.GetKind()), Group: storage.GroupID(t.GetGroup()), Node: storage.NodeID(t.GetNode()),
		NodeName: t.GetNodeName(), Step: t.GetStep(), Progress: progressFromProto(t.GetProgress())}
}

// VersionToProto is the inverse of VersionFromProto.
func VersionToProto(v Version) *pb.GetVersionResponse {
	return &pb.GetVersionResponse{Version: v.Version, Commit: v.Commit, GoVersion: v.GoVersion, Platform: v.Platform}
}

// VersionFromProto reads a message; absent fields are zero values.
func VersionFromProto(v *pb.GetVersionResponse) Version {
	return Version{Version: v.GetVersion(), Commit: v.GetCommit(), GoVersion: v.GetGoVersion(), Platform: v.GetPlatform()}
}
