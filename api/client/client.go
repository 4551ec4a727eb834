// Package client speaks to a storaged cluster as package api serves it, and returns the structs of that package.
//
// A Client knows several endpoints and is content with any. It asks the one that answered last, and goes on to the next
// when one is down, hangs or refuses because it cannot answer. When a node names the leader's address, it follows. It gives
// up when the context ends, when its patience does, or at once when nobody listens anywhere.
//
// What it keeps true: an operation whose first attempt may have taken effect is repeated only in a form that takes
// effect once. Creation carries a request id (made here when the caller gave none); resizing to a size is idempotent; a
// repeated deletion that finds nothing has succeeded.
//
// It caches nothing and starts no goroutine of its own beyond those of its connections, which Close ends. A Client may
// be used concurrently.
package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/internal/hostport"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// Bounds of a Client.
const (
	// MaxEndpoints is the most endpoints that a Config may name.
	MaxEndpoints = 64
	// maxHints bounds how many addresses that nodes named are followed beyond the configured ones.
	maxHints = 8
	// maxLearned bounds how many more Learn keeps.
	maxLearned = 16
	// maxAnswerBytes bounds one message from a node.
	maxAnswerBytes = 16 << 20
	// maxCatalogBytes bounds a copy of the catalog; the catalog's own bound is less.
	maxCatalogBytes = 1<<30 + 1<<20
)

// Config of a Client.
type Config struct {
	// Endpoints are tried in this order: host:port, or host for port 7000. At least one.
	Endpoints []string
	// Cluster is the one that is meant: no other is asked for anything. Zero: the one that the endpoints belong to, which is
	// found out before the first request and kept.
	Cluster storage.ClusterID
	// TLS is used for every connection; nil: plain text.
	TLS *tls.Config
	// Patience bounds one operation over all its attempts. Default 10 s.
	Patience time.Duration
	// AttemptTimeout bounds one attempt, so that a node that hangs does not use up the patience. Default 3 s.
	AttemptTimeout time.Duration
	// Dial opens a connection to host:port. Default: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

func (c *Config) fill() error {
	const op = "make api client"
	if len(c.Endpoints) == 0 || len(c.Endpoints) > MaxEndpoints {
		return storage.E(op, storage.KindInvalid, "", fmt.Errorf("%d endpoints were given; want 1 to %d", len(c.Endpoints), MaxEndpoints))
	}
	var problems storage.Problems
	c.Endpoints = slices.Clone(c.Endpoints)
	for i, e := range c.Endpoints {
		var err error
		c.Endpoints[i], err = ParseEndpoint(e)
		problems.Add(err)
	}
	if err := problems.Err(op, ""); err != nil {
		return err
	}
	c.Patience = cmp.Or(max(c.Patience, 0), 10*time.Second)
	c.AttemptTimeout = cmp.Or(max(c.AttemptTimeout, 0), 3*time.Second)
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}
	return nil
}

// Client asks a cluster. It implements api.Cluster.
type Client struct {
	config Config

	mu      sync.Mutex        // guards what follows
	nodes   []*node           // the configured endpoints in their order, then those that hints named
	first   int               // index in nodes of the one that answered last
	learned []int             // indices in nodes of what Learn was told
	left    map[*node]bool    // nodes that others have the places of, and that attempts are under way at
	pinned  storage.ClusterID // the cluster that is asked; zero: not known yet
	closed  bool
}

var _ api.Cluster = (*Client)(nil)

// node is one endpoint with its connection, which gRPC makes when it is needed and keeps.
type node struct {
	endpoint string
	conn     *grpc.ClientConn
	users    int  // attempts under way; guarded by Client.mu
	left     bool // another has its place: the last user closes it; guarded by Client.mu
}

// New returns a client that has not connected to anything yet.
func New(config Config) (*Client, error) {
	if err := config.fill(); err != nil {
		return nil, err
	}
	c := &Client{config: config, left: map[*node]bool{}, pinned: config.Cluster}
	for _, e := range config.Endpoints {
		if _, err := c.addLocked(e); err != nil { // not shared yet
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// Learn has the client ask these endpoints too, for as long as they are among those that it is told last: the configured ones may all
// be gone one day. What is no endpoint is left out, and what is more than 16.
func (c *Client) Learn(endpoints []string) {
	var list []string
	for _, e := range endpoints {
		if e, err := ParseEndpoint(e); err == nil {
			list = append(list, e)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range list {
		if c.closed || c.indexLocked(e) >= 0 {
			continue
		}
		if len(c.learned) < maxLearned {
			if at, err := c.addLocked(e); err == nil {
				c.learned = append(c.learned, at)
			}
			continue
		}
		old := slices.IndexFunc(c.learned, func(at int) bool { return !slices.Contains(list, c.nodes[at].endpoint) })
		if old < 0 {
			return
		}
		c.replaceLocked(c.learned[old], e)
	}
}

// replaceLocked gives the place of a node to a new one. Its last user closes its connection.
func (c *Client) replaceLocked(at int, endpoint string) {
	conn, err := c.connect(endpoint)
	if err != nil {
		return // the endpoint was fit for it before
	}
	n := c.nodes[at]
	c.nodes[at] = &node{endpoint: endpoint, conn: conn}
	n.left = true
	c.left[n] = true
	c.closeLeftLocked(n)
}

func (c *Client) closeLeftLocked(n *node) {
	if n.left && n.users == 0 {
		delete(c.left, n)
		_ = n.conn.Close() // its only error says that it is closed already
	}
}

// Close ends all connections; running operations fail. It is idempotent.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	var problems []error
	for _, n := range slices.AppendSeq(c.nodes, maps.Keys(c.left)) {
		problems = append(problems, n.conn.Close())
	}
	return errors.Join(problems...)
}

// indexLocked returns the index of the endpoint's node, or -1.
func (c *Client) indexLocked(endpoint string) int {
	return slices.IndexFunc(c.nodes, func(n *node) bool { return n.endpoint == endpoint })
}

// addLocked returns the index of the endpoint's node, which it makes if need be.
func (c *Client) addLocked(endpoint string) (int, error) {
	if at := c.indexLocked(endpoint); at >= 0 {
		return at, nil
	}
	conn, err := c.connect(endpoint)
	if err != nil {
		return 0, err
	}
	c.nodes = append(c.nodes, &node{endpoint: endpoint, conn: conn})
	return len(c.nodes) - 1, nil
}

// connect returns a connection to an endpoint, which is made when it is needed.
func (c *Client) connect(endpoint string) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if c.config.TLS != nil {
		creds = credentials.NewTLS(c.config.TLS)
	}
	conn, err := grpc.NewClient("passthrough:///"+endpoint, // no proxies, no name service but the dialer's
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(c.dial),
		grpc.WithDisableRetry(), // attempts are made here, where it is known what may be repeated
		grpc.WithDisableServiceConfig(),
		grpc.WithUnaryInterceptor(c.withCluster(endpoint)),
		grpc.WithStreamInterceptor(c.streamWithCluster(endpoint)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswerBytes)),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: c.config.AttemptTimeout,
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}}),
	)
	if err != nil {
		return nil, storage.E("connect", storage.KindInvalid, "endpoint "+endpoint, err)
	}
	return conn, nil
}

func (c *Client) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := c.config.Dial(ctx, address)
	if err != nil || c.config.TLS != nil {
		return conn, err
	}
	return &plainConn{Conn: conn}, nil
}

// plainConn is a connection without TLS. If the node hangs up before it has said a word, the error says what that usually
// means: a node that speaks TLS does so.
type plainConn struct {
	net.Conn
	heard bool // owned by the one goroutine that reads
}

// Read implements net.Conn.
func (c *plainConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.heard = c.heard || n > 0
	if !c.heard && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) {
		err = fmt.Errorf("%w: the node has hung up; does it speak TLS (--tls, --tls-ca)?", err)
	}
	return n, err
}

// ParseEndpoint turns what people write into host:port: the port is 7000 when it is left out.
func ParseEndpoint(s string) (string, error) {
	endpoint, err := hostport.Parse(strings.TrimSpace(s), DefaultPort)
	if err != nil {
		return "", storage.E("read endpoint", storage.KindInvalid, fmt.Sprintf("%q", s), fmt.Errorf("%w; write host, host:port or [address]:port", err))
	}
	return endpoint, nil
}

// DefaultPort is that of a node's API.
const DefaultPort = "7000"

// CreateVolume implements api.Cluster; without a request id it makes one.
func (c *Client) CreateVolume(ctx context.Context, v api.NewVolume) (api.Volume, error) {
	if v.RequestID == "" {
		v.RequestID = rand.Text() // 130 bits
	}
	if v.Groups < 0 || v.Groups > api.MaxVolumeGroups {
		return api.Volume{}, storage.E("create", storage.KindInvalid, "volume "+v.Name,
			fmt.Errorf("it cannot be striped over %d groups; use a power of two up to %d", v.Groups, api.MaxVolumeGroups))
	}
	request := &pb.CreateVolumeRequest{RequestId: v.RequestID, Name: v.Name, SizeBytes: v.SizeBytes, GroupCount: uint32(v.Groups),
		Limits: api.LimitsToProto(v.Limits), Labels: v.Labels, Overcommit: v.Overcommit}
	answer, err := call(ctx, c, "create", "volume "+v.Name, pb.NewVolumesClient, pb.VolumesClient.Create, request)
	return api.VolumeFromProto(answer.GetVolume()), err
}

// Volume implements api.Cluster.
func (c *Client) Volume(ctx context.Context, name string) (api.Volume, error) {
	answer, err := call(ctx, c, "show", "volume "+name, pb.NewVolumesClient, pb.VolumesClient.Get, &pb.GetVolumeRequest{Name: name})
	return api.VolumeFromProto(answer.GetVolume()), err
}

// Volumes implements api.Cluster; it asks as often as limit needs. A limit of 0 or less means all.
func (c *Client) Volumes(ctx context.Context, f api.VolumeFilter, after string, limit int) ([]api.Volume, error) {
	var list []api.Volume
	for {
		size := api.MaxPageSize
		if limit > 0 {
			size = min(size, limit-len(list))
		}
		answer, err := call(ctx, c, "list volumes", "", pb.NewVolumesClient, pb.VolumesClient.List,
			&pb.ListVolumesRequest{PageSize: uint32(size), PageToken: after, Labels: f.Labels})
		if err != nil {
			return nil, err
		}
		for _, v := range answer.GetVolumes() {
			if f.Labels.Matches(v.GetLabels()) { // a node of an earlier version knows no filter, and whoever reads the list may delete what is on it
				list = append(list, api.VolumeFromProto(v))
			}
		}
		next := answer.GetNextPageToken()
		if next == "" || limit > 0 && len(list) >= limit {
			return list, nil
		}
		if next <= after { // pages ascend, or a defect of the node would keep this loop going for ever
			return nil, storage.E("list volumes", storage.KindInternal, "", fmt.Errorf("page %q follows page %q", next, after))
		}
		after = next
	}
}

// ResizeVolume implements api.Cluster.
func (c *Client) ResizeVolume(ctx context.Context, name string, size api.NewSize) (api.Volume, error) {
	answer, err := call(ctx, c, "resize", "volume "+name, pb.NewVolumesClient, pb.VolumesClient.Resize,
		&pb.ResizeVolumeRequest{Name: name, SizeBytes: size.Bytes, Overcommit: size.Overcommit})
	return api.VolumeFromProto(answer.GetVolume()), err
}

// ModifyVolume implements api.Cluster.
func (c *Client) ModifyVolume(ctx context.Context, name string, id storage.VolumeID, change api.VolumeChange) (api.Volume, error) {
	answer, err := call(ctx, c, "modify", "volume "+name, pb.NewVolumesClient, pb.VolumesClient.Modify,
		&pb.ModifyVolumeRequest{Name: name, Id: uint64(id), MaxIops: change.Limits.MaxIOPS, MaxBytesPerSecond: change.Limits.MaxBytesPerSecond, SetLabels: change.Labels.Set, RemoveLabels: change.Labels.Remove})
	return api.VolumeFromProto(answer.GetVolume()), err
}

// DeleteVolume implements api.Cluster.
func (c *Client) DeleteVolume(ctx context.Context, name string, id storage.VolumeID) error {
	unknown := false // an attempt before may have deleted it
	attempt := func(s pb.VolumesClient, ctx context.Context, r *pb.DeleteVolumeRequest, opts ...grpc.CallOption) (*pb.DeleteVolumeResponse, error) {
		answer, err := s.Delete(ctx, r, opts...)
		if unknown && storage.KindOf(api.ErrorFromStatus(err, "", "")) == storage.KindNotFound {
			return &pb.DeleteVolumeResponse{}, nil
		}
		unknown = unknown || err != nil
		return answer, err
	}
	_, err := call(ctx, c, "delete", "volume "+name, pb.NewVolumesClient, attempt, &pb.DeleteVolumeRequest{Name: name, Id: uint64(id)})
	return err
}

// A step of a verification takes a few seconds of each replica, which may have to wait for its turn before.
const verifyPatience, verifyAttempt = time.Minute, 29 * time.Second

// VerifyVolume implements api.Cluster.
func (c *Client) VerifyVolume(ctx context.Context, s api.VerifyStep) (api.Verified, error) {
	answer, err := callFor(ctx, c, max(verifyPatience, c.config.Patience), max(verifyAttempt, c.config.AttemptTimeout), "verify", "volume "+s.Name, pb.NewVolumesClient,
		pb.VolumesClient.Verify, api.VerifyStepToProto(s))
	return api.VerifiedFromProto(answer), err
}

// Attach implements api.Cluster. A takeover without IfGeneration applies to the generation that the volume has at the time of the
// call. So a repeated request never displaces a holder that attached after the takeover had succeeded.
func (c *Client) Attach(ctx context.Context, n api.NewAttachment) (api.Attachment, error) {
	if n.TakeOver && n.IfGeneration == 0 {
		v, err := c.find(ctx, n.Volume)
		if err != nil {
			return api.Attachment{}, err
		}
		n.Volume.ID, n.IfGeneration = v.ID, v.Generation
	}
	request := api.NewAttachmentToProto(n)
	answer, err := call(ctx, c, "attach", n.Volume.String(), pb.NewAttachmentsClient, pb.AttachmentsClient.Attach, request)
	return api.AttachmentFromProto(answer.GetAttachment()), err
}

// find returns the volume that is meant, as one node knows it.
func (c *Client) find(ctx context.Context, r storage.VolumeRef) (api.Volume, error) {
	if r.Name == "" {
		list, err := c.Volumes(ctx, api.VolumeFilter{}, "", 0)
		if err != nil {
			return api.Volume{}, err
		}
		at := slices.IndexFunc(list, func(v api.Volume) bool { return v.ID == r.ID })
		if at < 0 {
			return api.Volume{}, storage.E("attach", storage.KindNotFound, r.String(), errors.New("there is no such volume"))
		}
		return list[at], nil
	}
	v, err := c.Volume(ctx, r.Name)
	if err == nil && r.ID != 0 && r.ID != v.ID {
		err = storage.E("attach", storage.KindNotFound, r.String(), fmt.Errorf("the volume of that name has id %s, not %s", v.ID, r.ID))
	}
	return v, err
}

// Detach implements api.Cluster.
func (c *Client) Detach(ctx context.Context, d api.Detachment) error {
	request := &pb.DetachRequest{Volume: d.Volume.Name, VolumeId: uint64(d.Volume.ID), HolderId: d.HolderID, AttachmentId: uint64(d.Attachment), Machine: string(d.Machine)}
	_, err := call(ctx, c, "detach", d.Volume.String(), pb.NewAttachmentsClient, pb.AttachmentsClient.Detach, request)
	return err
}

// Attachments implements api.Cluster; it asks as often as limit needs. A limit of 0 or less means all.
func (c *Client) Attachments(ctx context.Context, f api.AttachmentFilter, after storage.AttachmentID, limit int) ([]api.Attachment, error) {
	var list []api.Attachment
	for {
		size := api.MaxPageSize
		if limit > 0 {
			size = min(size, limit-len(list))
		}
		request := &pb.ListAttachmentsRequest{Volume: f.Volume, HolderId: f.HolderID, PageSize: uint32(size), PageToken: after.String()}
		answer, err := call(ctx, c, "list attachments", "", pb.NewAttachmentsClient, pb.AttachmentsClient.List, request)
		if err != nil {
			return nil, err
		}
		for _, a := range answer.GetAttachments() {
			if a.GetId() <= uint64(after) { // ids ascend, or a defect of the node would keep this loop going for ever
				return nil, storage.E("list attachments", storage.KindInternal, "", fmt.Errorf("attachment %d follows %s", a.GetId(), after))
			}
			after = storage.AttachmentID(a.GetId())
			list = append(list, api.AttachmentFromProto(a))
		}
		if answer.GetNextPageToken() == "" || limit > 0 && len(list) >= limit {
			return list, nil
		}
	}
}

// Nodes implements api.Cluster.
func (c *Client) Nodes(ctx context.Context) ([]api.Node, error) {
	answer, err := call(ctx, c, "list nodes", "", pb.NewNodesClient, pb.NodesClient.List, &pb.ListNodesRequest{})
	return api.Each(answer.GetNodes(), api.NodeFromProto), err
}

// Node returns the node of that name or, in decimal, that id; "name:NAME" and "id:ID" say which is meant. KindNotFound;
// KindInvalid when it is the name of one and the id of another.
func (c *Client) Node(ctx context.Context, nameOrID string) (api.Node, error) {
	answer, err := call(ctx, c, "show", "node "+nameOrID, pb.NewNodesClient, pb.NodesClient.Get, &pb.GetNodeRequest{Node: nameOrID})
	return api.NodeFromProto(answer.GetNode()), err
}

// Explain implements api.Cluster. A node may be named by its name, too.
func (c *Client) Explain(ctx context.Context, kind api.ObjectKind, ref string) ([]api.Reason, error) {
	answer, err := call(ctx, c, "explain", string(kind)+" "+ref, pb.NewClusterClient, pb.ClusterClient.Explain, &pb.ExplainRequest{Kind: api.ObjectToProto(kind), Name: ref})
	return api.LinesFromProto(answer.GetLines()), err
}

// Events implements api.Cluster.
func (c *Client) Events(ctx context.Context, f api.EventFilter) (api.Events, error) {
	answer, err := call(ctx, c, "list events", "", pb.NewEventsClient, pb.EventsClient.List, api.EventFilterToProto(f))
	return api.EventsFromProto(answer), err
}

// SetNodeIntent implements api.Cluster.
func (c *Client) SetNodeIntent(ctx context.Context, id storage.NodeID, change api.IntentChange) error {
	_, err := call(ctx, c, "set intent", "node "+id.String(), pb.NewNodesClient, pb.NodesClient.SetIntent, api.IntentToProto(id, change))
	return err
}

// PlanNode implements api.Cluster.
func (c *Client) PlanNode(ctx context.Context, id storage.NodeID, action api.NodeAction) (api.NodePlan, error) {
	answer, err := call(ctx, c, "plan", "node "+id.String(), pb.NewNodesClient, pb.NodesClient.Plan,
		&pb.PlanNodeRequest{Node: "id:" + id.String(), Action: api.ActionToProto(action)})
	return api.NodePlanFromProto(answer.GetPlan()), err
}

// RemoveNode implements api.Cluster.
func (c *Client) RemoveNode(ctx context.Context, id storage.NodeID) error {
	_, err := call(ctx, c, "remove", "node "+id.String(), pb.NewNodesClient, pb.NodesClient.Remove, &pb.RemoveNodeRequest{Id: uint32(id)})
	return err
}

// Groups implements api.Cluster.
func (c *Client) Groups(ctx context.Context) ([]api.Group, error) {
	answer, err := call(ctx, c, "list groups", "", pb.NewGroupsClient, pb.GroupsClient.List, &pb.ListGroupsRequest{})
	return api.Each(answer.GetGroups(), api.GroupFromProto), err
}

// Status implements api.Cluster.
func (c *Client) Status(ctx context.Context) (api.Status, error) {
	answer, err := call(ctx, c, "show", "status", pb.NewClusterClient, pb.ClusterClient.Status, &pb.GetStatusRequest{})
	return api.StatusFromProto(answer.GetStatus()), err
}

// Upgrade implements api.Cluster.
func (c *Client) Upgrade(ctx context.Context, version int) (inForce int, err error) {
	answer, err := call(ctx, c, "upgrade", "cluster", pb.NewClusterClient, pb.ClusterClient.Upgrade, &pb.UpgradeClusterRequest{Version: uint32(version)})
	return int(answer.GetVersion()), err
}

// BackupCatalog implements api.Cluster. KindCorrupt if it is larger than any catalog can be.
func (c *Client) BackupCatalog(ctx context.Context) ([]byte, error) {
	answer, err := call(ctx, c, "back up", "catalog", pb.NewClusterClient, func(service pb.ClusterClient, ctx context.Context, request *pb.BackupCatalogRequest, opts ...grpc.CallOption) (*pb.BackupCatalogResponse, error) {
		return receiveCatalog(ctx, service, request, opts...)
	}, &pb.BackupCatalogRequest{})
	if err != nil {
		return nil, err
	}
	return answer.GetData(), nil
}

// receiveCatalog puts the parts of a copy of the catalog together.
func receiveCatalog(ctx context.Context, service pb.ClusterClient, request *pb.BackupCatalogRequest, opts ...grpc.CallOption) (*pb.BackupCatalogResponse, error) {
	stream, err := service.BackupCatalog(ctx, request, opts...)
	if err != nil {
		return nil, err
	}
	var all []byte
	for {
		part, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return &pb.BackupCatalogResponse{Data: all}, nil
		case err != nil:
			return nil, err
		case len(all)+len(part.GetData()) > maxCatalogBytes:
			return nil, storage.E("back up", storage.KindCorrupt, "catalog", fmt.Errorf("it has more than %d bytes", maxCatalogBytes))
		}
		all = append(all, part.GetData()...)
	}
}

// Version returns what the node that answers runs.
func (c *Client) Version(ctx context.Context) (api.Version, error) {
	answer, err := call(ctx, c, "show", "version", pb.NewClusterClient, pb.ClusterClient.Version, &pb.GetVersionRequest{})
	return api.VersionFromProto(answer), err
}

// Endpoint returns the host:port that answered last, or the first one as long as none has.
func (c *Client) Endpoint() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[c.first].endpoint
}
