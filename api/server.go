package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/doors"
	"github.com/storaged/storaged/internal/version"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// Limits of a Server. Zero values take the defaults named at each field.
type Limits struct {
	// InFlight requests run at the same time, half of them at most for one address; more are refused with
	// KindUnavailable. Default 256.
	InFlight int
	// Watches are requests that answer more than once (health watches, reflection, copies of the catalog): so many at the same
	// time, a quarter of them at most for one address; more are refused. Default 64.
	Watches int
	// Connections are accepted at the same time, a quarter of them at most of one address; more are closed at once.
	// Default 1,024.
	Connections int
	// ConnectionAge is how long a connection lasts, about; clients connect again without noticing. What still runs on it a
	// minute later is ended. Default 30 min.
	ConnectionAge time.Duration
	// Streams of one connection run at the same time; more wait on the client's side. Default 64.
	Streams int
	// RequestBytes of one message; a larger one is refused. Default 64 KiB: no request of these services is larger.
	RequestBytes int
	// Timeout bounds a request whose caller set no earlier deadline. Default 30 s.
	Timeout time.Duration
}

// Config of a Server.
type Config struct {
	// Cluster answers; required.
	Cluster Cluster
	// Version is what Cluster.Version answers.
	Version Version
	// Ready returns why no request can be answered yet, an error of KindUnavailable; nil: every request can.
	Ready func() error
	// ClusterID returns the cluster of this node, which every answer carries; a request for another one is refused. nil, or a
	// zero id: none yet.
	ClusterID func() storage.ClusterID
	// TLS makes the server speak TLS only; nil: plain text.
	TLS *tls.Config
	// Limits bound what callers can take.
	Limits Limits
	// Logger gets one line per request that ended in a defect of ours; nil discards.
	Logger *slog.Logger
	// Refused is called with the address of each connection that is closed at once for lack of room; nil: nothing is.
	Refused func(net.Addr)
	// Metrics registers the server's collectors; nil: none.
	Metrics prometheus.Registerer
}

func (c *Config) setDefaults() {
	c.Limits.InFlight = cmp.Or(max(c.Limits.InFlight, 0), 256)
	c.Limits.Watches = cmp.Or(max(c.Limits.Watches, 0), 64)
	c.Limits.Connections = cmp.Or(max(c.Limits.Connections, 0), 1024)
	c.Limits.ConnectionAge = cmp.Or(max(c.Limits.ConnectionAge, 0), 30*time.Minute)
	c.Limits.Streams = cmp.Or(max(c.Limits.Streams, 0), 64)
	c.Limits.RequestBytes = cmp.Or(max(c.Limits.RequestBytes, 0), 64<<10)
	c.Limits.Timeout = cmp.Or(max(c.Limits.Timeout, 0), 30*time.Second)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
}

// Server serves the cluster's interface over gRPC, with health and reflection services. Its methods may be called
// concurrently.
type Server struct {
	config  Config
	grpc    *grpc.Server
	health  *health.Server
	slots   *doors.Shares // of requests that run
	watches *doors.Shares
	doors   *doors.Shares // of connections
	metrics metrics
}

// maxHeaderBytes bounds the headers of a request. gRPC's own bound is 16 MiB, for each stream.
const maxHeaderBytes = 16 << 10

// watchGrace is how long what runs on a connection that has reached its age may go on.
const watchGrace = time.Minute

// NewServer returns a server that does not listen yet. It reports NOT_SERVING to health checks until SetServing.
func NewServer(config Config) (*Server, error) {
	if config.Cluster == nil {
		return nil, storage.E("make api server", storage.KindInvalid, "", errors.New("Config.Cluster is required"))
	}
	config.setDefaults()
	s := &Server{config: config, health: health.NewServer(),
		slots:   doors.NewShares(config.Limits.InFlight, max(1, config.Limits.InFlight/2)),
		watches: doors.NewShares(config.Limits.Watches, max(1, config.Limits.Watches/4)),
		doors:   doors.NewShares(config.Limits.Connections, max(1, config.Limits.Connections/4))}
	var err error
	if s.metrics, err = newMetrics(config.Metrics); err != nil {
		return nil, err
	}
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(config.Limits.RequestBytes),
		grpc.MaxConcurrentStreams(uint32(config.Limits.Streams)),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 15 * time.Minute, Time: time.Minute, Timeout: 20 * time.Second,
			MaxConnectionAge: config.Limits.ConnectionAge, MaxConnectionAgeGrace: watchGrace}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.intercept),
		grpc.StreamInterceptor(s.interceptStream),
	}
	if config.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(config.TLS)))
	}
	s.grpc = grpc.NewServer(options...)
	pb.RegisterVolumesServer(s.grpc, &volumes{cluster: config.Cluster})
	pb.RegisterAttachmentsServer(s.grpc, &attachments{cluster: config.Cluster})
	pb.RegisterNodesServer(s.grpc, &nodes{cluster: config.Cluster})
	pb.RegisterGroupsServer(s.grpc, &groups{cluster: config.Cluster})
	pb.RegisterEventsServer(s.grpc, &events{cluster: config.Cluster})
	pb.RegisterClusterServer(s.grpc, &cluster{cluster: config.Cluster, version: config.Version})
	healthpb.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	s.SetServing(false)
	return s, nil
}

// SetServing says what health checks are answered: whether this node can serve requests.
func (s *Server) SetServing(serving bool) {
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if serving {
		status = healthpb.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", status)
	for name := range s.grpc.GetServiceInfo() {
		s.health.SetServingStatus(name, status)
	}
}

// Serve accepts connections until ctx ends or Close is called; then it lets running requests finish for up to two
// seconds, ends them, closes the listener and returns nil. Another error means that the listener failed.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	until, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	stop := context.AfterFunc(ctx, func() {
		s.health.Shutdown() // who watches is told before requests are refused
		end()
	})
	defer stop()
	return Serve(until, s.grpc, doors.Door{Shares: s.doors, Refused: s.refused}.Limit(listener), stopPatience)
}

// refused is told of each connection that is closed at once.
func (s *Server) refused(from net.Addr) {
	s.metrics.closed.Inc()
	if s.config.Refused != nil {
		s.config.Refused(from)
	}
}

// stopPatience is what running requests have when Serve ends.
const stopPatience = 2 * time.Second

// Close is idempotent; it ends Serve.
func (s *Server) Close() {
	s.health.Shutdown()
	Drain(s.grpc, stopPatience)
}

// intercept is around every request: it admits, sets the deadline, counts, and turns the error into a status.
func (s *Server) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (answer any, err error) {
	leave := s.slots.Enter(addressOf(ctx))
	if leave == nil {
		return nil, s.refuse(info.FullMethod, s.config.Limits.InFlight)
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, s.timeout(ctx))
	defer cancel()
	began := time.Now()
	if s.config.Ready != nil {
		err = s.config.Ready()
	}
	if err == nil {
		err = s.checkCluster(ctx, info.FullMethod)
	}
	if err == nil {
		answer, err = handler(ctx, request)
	}
	if err = s.observe(info.FullMethod, err, time.Since(began)); err != nil {
		return nil, err
	}
	return answer, nil
}

// timeout is how long a request may take: a little less than its caller waits, so that the answer can still say what it
// waited for in vain (a leader, for example).
func (s *Server) timeout(ctx context.Context) time.Duration {
	limit := s.config.Limits.Timeout
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		limit = min(limit, left-min(left/10, maxTelling))
	}
	return limit
}

// maxTelling is the most that is kept of a caller's time for the answer that something did not come in time.
const maxTelling = 250 * time.Millisecond

// ClusterHeader is the metadata in which a request names the cluster that it is for, and an answer the one that it is from.
const ClusterHeader = "storaged-cluster-id"

// ClusterMarkBytes is the length of the beginning of a cluster's id that tells clusters apart where an id is too long.
const ClusterMarkBytes = 8

// IsCluster reports whether text is the cluster's id or a beginning of it, of ClusterMarkBytes at least.
func IsCluster(id storage.ClusterID, text string) bool {
	return len(text) >= ClusterMarkBytes && strings.HasPrefix(id.String(), text)
}

type clusterKey struct{}

// WithCluster returns a context for requests that are meant for one cluster only, whose id begins with mark.
func WithCluster(ctx context.Context, mark string) context.Context {
	return context.WithValue(ctx, clusterKey{}, mark)
}

// ClusterMeant returns what WithCluster has said; empty: nothing.
func ClusterMeant(ctx context.Context) string {
	mark, _ := ctx.Value(clusterKey{}).(string)
	return mark
}

// checkCluster sends the cluster's id, and refuses a request for another one: KindConflict.
func (s *Server) checkCluster(ctx context.Context, method string) error {
	if s.config.ClusterID == nil {
		return nil
	}
	own := s.config.ClusterID()
	if own.IsZero() {
		return nil
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs(ClusterHeader, own.String())); err != nil {
		return storage.E("serve request", storage.KindInternal, method, err)
	}
	for _, wanted := range metadata.ValueFromIncomingContext(ctx, ClusterHeader) {
		if !IsCluster(own, wanted) {
			return storage.E("serve request", storage.KindConflict, "cluster "+wanted[:min(len(wanted), 64)], fmt.Errorf(
				"this node belongs to another cluster, %v; nothing was done", own))
		}
	}
	return nil
}

// interceptStream is around every request that answers more than once. How long one may take is bounded by the age of its
// connection.
func (s *Server) interceptStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	leave := s.watches.Enter(addressOf(stream.Context()))
	if leave == nil {
		return s.refuse(info.FullMethod, s.config.Limits.Watches)
	}
	defer leave()
	if !strings.HasPrefix(info.FullMethod, ownServices) {
		return handler(server, stream)
	}
	began := time.Now()
	var err error
	if s.config.Ready != nil {
		err = s.config.Ready()
	}
	if err == nil {
		err = s.checkCluster(stream.Context(), info.FullMethod)
	}
	if err == nil {
		err = handler(server, stream)
	}
	return s.observe(info.FullMethod, err, time.Since(began))
}

// ownServices begins the methods of the services that speak for the cluster. Health and reflection speak for the process.
const ownServices = "/storage.v1."

// observe counts a request, and returns its error as it travels.
func (s *Server) observe(method string, err error, took time.Duration) error {
	s.metrics.observe(method, err, took)
	if err == nil {
		return nil
	}
	if storage.KindOf(err) == storage.KindInternal {
		s.config.Logger.Error("api request ended in an internal error", "method", method, "error", err)
	}
	return StatusError(err)
}

// refuse answers a request that was not begun.
func (s *Server) refuse(method string, limit int) error {
	err := storage.E("serve request", storage.KindUnavailable, method,
		fmt.Errorf("as many requests are running already as may, %d in all and a part of them for one address; this one was not begun; try again", limit))
	s.metrics.observe(method, err, 0)
	return StatusError(err)
}

// addressOf returns whom a request counts for.
func addressOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return doors.AddressOf(p.Addr)
	}
	return ""
}

// BuildVersion describes the running program.
func BuildVersion() Version {
	return Version{Version: version.Version, Commit: version.Revision(), GoVersion: runtime.Version(), Platform: version.Platform()}
}
