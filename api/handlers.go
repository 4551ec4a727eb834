package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	storage "github.com/storaged/storaged"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// Limits of requests, also those of the catalog.
const (
	// MaxRequestIDBytes bounds NewVolume.RequestID.
	MaxRequestIDBytes = 64
	// MaxVolumeGroups bounds the stripe of a volume.
	MaxVolumeGroups = 1024
	// MaxPageSize is the most volumes that one answer holds.
	MaxPageSize = 1000
)

// volumes implements the service Volumes.
type volumes struct {
	pb.UnimplementedVolumesServer
	cluster Cluster
}

// Create implements pb.VolumesServer.
func (s *volumes) Create(ctx context.Context, r *pb.CreateVolumeRequest) (*pb.CreateVolumeResponse, error) {
	const op = "create"
	v := NewVolume{RequestID: r.GetRequestId(), Name: r.GetName(), SizeBytes: r.GetSizeBytes(), Groups: int(r.GetGroupCount()),
		Limits: LimitsFromProto(r.GetLimits()), Labels: r.GetLabels(), Overcommit: r.GetOvercommit()}
	if err := checkName(op, v.Name); err != nil {
		return nil, err
	}
	if err := v.check(); err != nil {
		return nil, storage.E(op, storage.KindInvalid, "volume "+v.Name, err)
	}
	made, err := s.cluster.CreateVolume(ctx, v)
	return &pb.CreateVolumeResponse{Volume: VolumeToProto(made)}, err
}

// check returns what is wrong with v besides its name.
func (v *NewVolume) check() error {
	if err := checkSize(v.SizeBytes); err != nil {
		return err
	}
	if len(v.RequestID) > MaxRequestIDBytes {
		return fmt.Errorf("the request id has %d characters; at most %d are allowed", len(v.RequestID), MaxRequestIDBytes)
	}
	for i := range len(v.RequestID) {
		if c := v.RequestID[i]; c < '!' || c > '~' {
			return fmt.Errorf("the request id holds the byte %#x; use printable ASCII without spaces", c)
		}
	}
	if v.Groups != 0 && (bits.OnesCount(uint(v.Groups)) != 1 || v.Groups > MaxVolumeGroups) {
		return fmt.Errorf("a volume cannot be striped over %d groups; use a power of two up to %d, or 0 to let the cluster choose",
			v.Groups, MaxVolumeGroups)
	}
	if err := v.Limits.Check(); err != nil {
		return storage.Cause(err)
	}
	return storage.Cause(storage.CheckLabels(v.Labels))
}

// Get implements pb.VolumesServer.
func (s *volumes) Get(ctx context.Context, r *pb.GetVolumeRequest) (*pb.GetVolumeResponse, error) {
	if err := checkName("show", r.GetName()); err != nil {
		return nil, err
	}
	v, err := s.cluster.Volume(ctx, r.GetName())
	return &pb.GetVolumeResponse{Volume: VolumeToProto(v)}, err
}

// List implements pb.VolumesServer. A page token is the name of the last volume of the page before.
func (s *volumes) List(ctx context.Context, r *pb.ListVolumesRequest) (*pb.ListVolumesResponse, error) {
	limit := int(r.GetPageSize())
	if limit <= 0 || limit > MaxPageSize {
		limit = MaxPageSize
	}
	if r.GetPageToken() != "" {
		if err := storage.CheckVolumeName(r.GetPageToken()); err != nil {
			return nil, storage.E("list volumes", storage.KindInvalid, "",
				errors.New("the page token is not one that this service gave out; begin with an empty one"))
		}
	}
	filter := VolumeFilter{Labels: r.GetLabels()}
	if err := filter.Labels.Check(); err != nil {
		return nil, storage.E("list volumes", storage.KindInvalid, "", storage.Cause(err))
	}
	list, err := s.cluster.Volumes(ctx, filter, r.GetPageToken(), limit+1) // one more says whether there is a next page
	if err != nil {
		return nil, err
	}
	answer := &pb.ListVolumesResponse{}
	if len(list) > limit {
		list = list[:limit]
		answer.NextPageToken = list[limit-1].Name
	}
	answer.Volumes = Each(list, VolumeToProto)
	return answer, nil
}

// Resize implements pb.VolumesServer.
func (s *volumes) Resize(ctx context.Context, r *pb.ResizeVolumeRequest) (*pb.ResizeVolumeResponse, error) {
	const op = "resize"
	if err := checkName(op, r.GetName()); err != nil {
		return nil, err
	}
	if err := checkSize(r.GetSizeBytes()); err != nil {
		return nil, storage.E(op, storage.KindInvalid, "volume "+r.GetName(), err)
	}
	v, err := s.cluster.ResizeVolume(ctx, r.GetName(), NewSize{Bytes: r.GetSizeBytes(), Overcommit: r.GetOvercommit()})
	return &pb.ResizeVolumeResponse{Volume: VolumeToProto(v)}, err
}

// Modify implements pb.VolumesServer.
func (s *volumes) Modify(ctx context.Context, r *pb.ModifyVolumeRequest) (*pb.ModifyVolumeResponse, error) {
	const op = "modify"
	if err := checkName(op, r.GetName()); err != nil {
		return nil, err
	}
	change := VolumeChange{Limits: storage.LimitsChange{MaxIOPS: r.MaxIops, MaxBytesPerSecond: r.MaxBytesPerSecond},
		Labels: storage.LabelChange{Set: r.GetSetLabels(), Remove: r.GetRemoveLabels()}}
	if err := cmp.Or(change.Labels.Check(), change.Limits.Of(storage.VolumeLimits{}).Check()); err != nil {
		return nil, storage.E(op, storage.KindInvalid, "volume "+r.GetName(), storage.Cause(err))
	}
	v, err := s.cluster.ModifyVolume(ctx, r.GetName(), storage.VolumeID(r.GetId()), change)
	return &pb.ModifyVolumeResponse{Volume: VolumeToProto(v)}, err
}

// Delete implements pb.VolumesServer.
func (s *volumes) Delete(ctx context.Context, r *pb.DeleteVolumeRequest) (*pb.DeleteVolumeResponse, error) {
	if err := checkName("delete", r.GetName()); err != nil {
		return nil, err
	}
	return &pb.DeleteVolumeResponse{}, s.cluster.DeleteVolume(ctx, r.GetName(), storage.VolumeID(r.GetId()))
}

// Verify implements pb.VolumesServer.
func (s *volumes) Verify(ctx context.Context, r *pb.VerifyVolumeRequest) (*pb.VerifyVolumeResponse, error) {
	const op = "verify"
	step := VerifyStepFromProto(r)
	if err := checkName(op, step.Name); err != nil {
		return nil, err
	}
	if err := step.check(); err != nil {
		return nil, storage.E(op, storage.KindInvalid, "volume "+step.Name, err)
	}
	v, err := s.cluster.VerifyVolume(ctx, step)
	return VerifiedToProto(v), err
}

// checkName says what is wrong with a volume's name, and what the rule is.
func checkName(op, name string) error {
	err := storage.CheckVolumeName(name)
	if err == nil {
		return nil
	}
	return storage.E(op, storage.KindInvalid, "volume "+clip(strconv.Quote(name)), storage.Cause(err))
}

// checkSize says what is wrong with a volume's size, and what would be right.
func checkSize(sizeBytes int64) error { return storage.Cause(storage.CheckVolumeSize(sizeBytes)) }

// nodes implements the service Nodes.
type nodes struct {
	pb.UnimplementedNodesServer
	cluster Cluster
}

// List implements pb.NodesServer.
func (s *nodes) List(ctx context.Context, _ *pb.ListNodesRequest) (*pb.ListNodesResponse, error) {
	list, err := s.cluster.Nodes(ctx)
	return &pb.ListNodesResponse{Nodes: Each(list, NodeToProto)}, err
}

// Get implements pb.NodesServer.
func (s *nodes) Get(ctx context.Context, r *pb.GetNodeRequest) (*pb.GetNodeResponse, error) {
	n, err := s.find(ctx, "show", r.GetNode())
	return &pb.GetNodeResponse{Node: NodeToProto(n)}, err
}

// Remove implements pb.NodesServer.
func (s *nodes) Remove(ctx context.Context, r *pb.RemoveNodeRequest) (*pb.RemoveNodeResponse, error) {
	if r.GetId() == 0 {
		return nil, storage.E("remove", storage.KindInvalid, "", errors.New("the request names no node; give its id"))
	}
	return &pb.RemoveNodeResponse{}, s.cluster.RemoveNode(ctx, storage.NodeID(r.GetId()))
}

// SetIntent implements pb.NodesServer.
func (s *nodes) SetIntent(ctx context.Context, r *pb.SetNodeIntentRequest) (*pb.SetNodeIntentResponse, error) {
	const op = "set intent"
	fail := func(text string) (*pb.SetNodeIntentResponse, error) {
		return nil, storage.E(op, storage.KindInvalid, "node "+storage.NodeID(r.GetId()).String(), errors.New(text))
	}
	change := IntentChange{Intent: nodeIntents.FromProto(r.GetIntent()), Until: TimeFromProto(r.GetUntil()), From: intentFromProto(r.GetFrom())}
	switch {
	case r.GetId() == 0:
		return nil, storage.E(op, storage.KindInvalid, "", errors.New("the request names no node; give its id"))
	case change.Intent == enumUnknown || change.From == enumUnknown:
		return fail("the request does not say what is wanted of the node, or this version does not know it")
	case (change.Intent == storage.IntentMaintenance) == change.Until.IsZero():
		return fail("maintenance has an end (until), and nothing else has")
	}
	return &pb.SetNodeIntentResponse{}, s.cluster.SetNodeIntent(ctx, storage.NodeID(r.GetId()), change)
}

// Plan implements pb.NodesServer.
func (s *nodes) Plan(ctx context.Context, r *pb.PlanNodeRequest) (*pb.PlanNodeResponse, error) {
	action := nodeActions.FromProto(r.GetAction())
	if action == enumUnknown {
		return nil, storage.E("plan", storage.KindInvalid, "node "+clip(strconv.Quote(r.GetNode())), errors.New("the request names no action that this version knows"))
	}
	n, err := s.find(ctx, "plan", r.GetNode())
	if err != nil {
		return nil, err
	}
	p, err := s.cluster.PlanNode(ctx, n.ID, action)
	return &pb.PlanNodeResponse{Plan: NodePlanToProto(p)}, err
}

// What a reference to a node may begin with, to say which of the two it is. No name has a colon.
const (
	nodeName = "name:"
	nodeID   = "id:"
)

// find returns the node of that name or id. A name may be a number; when it is another node's id, nothing is done to either
// unless the reference says which is meant.
func (s *nodes) find(ctx context.Context, op, ref string) (Node, error) {
	if ref == "" {
		return Node{}, storage.E(op, storage.KindInvalid, "", errors.New("the request names no node; give a name or an id"))
	}
	list, err := s.cluster.Nodes(ctx)
	if err != nil {
		return Node{}, err
	}
	name, byName := strings.CutPrefix(ref, nodeName)
	id, byID := strings.CutPrefix(ref, nodeID)
	named := slices.IndexFunc(list, func(n Node) bool { return !byID && n.Name == name })
	numbered := slices.IndexFunc(list, func(n Node) bool { return !byName && n.ID.String() == id })
	what := "name or id"
	switch {
	case named >= 0 && numbered >= 0 && named != numbered:
		return Node{}, storage.E(op, storage.KindInvalid, "node "+ref, fmt.Errorf("it is the name of the node with id %s, and the id "+
			"of the node with name %s; write %s%s or %s%s", list[named].ID, list[numbered].Name, nodeName, ref, nodeID, ref))
	case named >= 0:
		return list[named], nil
	case numbered >= 0:
		return list[numbered], nil
	case byName:
		what = "name"
	case byID:
		what = "id"
	}
	return Node{}, storage.E(op, storage.KindNotFound, "node "+clip(strconv.Quote(ref)), fmt.Errorf("no node has that %s", what))
}

// groups implements the service Groups.
type groups struct {
	pb.UnimplementedGroupsServer
	cluster Cluster
}

// List implements pb.GroupsServer.
func (s *groups) List(ctx context.Context, _ *pb.ListGroupsRequest) (*pb.ListGroupsResponse, error) {
	list, err := s.cluster.Groups(ctx)
	return &pb.ListGroupsResponse{Groups: Each(list, GroupToProto)}, err
}

// cluster implements the service Cluster.
type cluster struct {
	pb.UnimplementedClusterServer
	cluster Cluster
	version Version

	backingUp sync.Mutex // held while a copy of the catalog is in memory
}

// Status implements pb.ClusterServer.
func (s *cluster) Status(ctx context.Context, _ *pb.GetStatusRequest) (*pb.GetStatusResponse, error) {
	status, err := s.cluster.Status(ctx)
	return &pb.GetStatusResponse{Status: StatusToProto(status)}, err
}

// Explain implements pb.ClusterServer.
func (s *cluster) Explain(ctx context.Context, r *pb.ExplainRequest) (*pb.ExplainResponse, error) {
	const op = "explain"
	kind, ref := objectKinds.FromProto(r.GetKind()), r.GetName()
	switch kind {
	case ObjectNode:
		n, err := (&nodes{cluster: s.cluster}).find(ctx, op, ref)
		if err != nil {
			return nil, err
		}
		ref = n.ID.String()
	case ObjectVolume:
		if err := storage.CheckVolumeName(ref); err != nil {
			return nil, storage.E(op, storage.KindInvalid, "volume "+clip(strconv.Quote(ref)), storage.Cause(err))
		}
	case ObjectGroup:
		ref = clip(ref)
	default:
		return nil, storage.E(op, storage.KindInvalid, clip(strconv.Quote(ref)), errors.New("the request does not say what that is, or this version does not know it"))
	}
	lines, err := s.cluster.Explain(ctx, kind, ref)
	return &pb.ExplainResponse{Lines: Each(lines, reasonToProto)}, err
}

// Upgrade implements pb.ClusterServer.
func (s *cluster) Upgrade(ctx context.Context, r *pb.UpgradeClusterRequest) (*pb.UpgradeClusterResponse, error) {
	version, err := s.cluster.Upgrade(ctx, int(r.GetVersion()))
	if err != nil {
		return nil, err
	}
	return &pb.UpgradeClusterResponse{Version: uint32(version)}, nil
}

// backupPartBytes bounds the parts in which a copy of the catalog is sent.
const backupPartBytes = 256 << 10

// BackupCatalog implements pb.ClusterServer. One copy at a time is held in memory, however slowly callers read.
func (s *cluster) BackupCatalog(_ *pb.BackupCatalogRequest, out grpc.ServerStreamingServer[pb.BackupCatalogResponse]) error {
	if !s.backingUp.TryLock() {
		return storage.E("back up", storage.KindUnavailable, "catalog", errors.New("this node answers another such request; try again, or ask another node"))
	}
	defer s.backingUp.Unlock()
	ctx, cancel := context.WithTimeout(out.Context(), backupTimeout)
	defer cancel()
	copied, err := s.cluster.BackupCatalog(ctx)
	if err != nil {
		return err
	}
	for part := range slices.Chunk(copied, backupPartBytes) {
		if err := sendWithin(out, &pb.BackupCatalogResponse{Data: part}, backupTimeout); err != nil {
			return storage.E("back up", storage.KindCanceled, "catalog", err)
		}
	}
	return nil
}

// backupTimeout bounds how long the catalog's leader is waited for, and a caller that does not read.
const backupTimeout = 30 * time.Second

// sendWithin sends an answer to a caller that takes it within a time. One that keeps its connection and reads nothing holds a handler for ever
// otherwise, and what that holds. After an error the handler must return: that ends the stream, and with it what is being sent.
func sendWithin[T any](out grpc.ServerStreamingServer[T], answer *T, limit time.Duration) error {
	sent := make(chan error, 1)
	go func() { sent <- out.Send(answer) }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-sent:
		return err
	case <-timer.C:
		return fmt.Errorf("the caller has read nothing for %v", limit)
	}
}

// Version implements pb.ClusterServer.
func (s *cluster) Version(context.Context, *pb.GetVersionRequest) (*pb.GetVersionResponse, error) {
	return VersionToProto(s.version), nil
}
