package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	pb "github.com/storaged/storaged/proto/storage/host/v1"
)

// Bounds of a Server.
const (
	maxInFlight     = 256 // requests that run at a time
	maxRequestBytes = 64 << 10
	requestTimeout  = 2 * time.Minute // of a request whose caller set no earlier deadline
	stopPatience    = 2 * time.Second // that running requests have when Serve ends
)

// Server serves a Gateway over gRPC. It is made by NewServer.
type Server struct {
	grpc   *grpc.Server
	logger *slog.Logger
	slots  chan struct{} // one element a request that runs
}

// NewServer returns a server that does not listen yet. A nil logger discards.
func NewServer(gateway Gateway, logger *slog.Logger) *Server {
	logger = cmp.Or(logger, slog.New(slog.DiscardHandler))
	s := &Server{logger: logger, slots: make(chan struct{}, maxInFlight)}
	s.grpc = grpc.NewServer(grpc.MaxRecvMsgSize(maxRequestBytes), grpc.MaxHeaderListSize(16<<10), grpc.ConnectionTimeout(10*time.Second),
		grpc.MaxConcurrentStreams(64), grpc.UnaryInterceptor(s.intercept))
	pb.RegisterHostServer(s.grpc, &handlers{gateway: gateway})
	return s
}

// Serve accepts connections until ctx ends; then it lets running requests finish for up to two seconds, ends them,
// closes the listener and returns nil. Another error means that the listener failed.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	return api.Serve(ctx, s.grpc, listener, stopPatience)
}

// intercept is around every request: it admits, sets the deadline, and turns the error into a status.
func (s *Server) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return nil, api.StatusError(storage.E("serve request", storage.KindUnavailable, info.FullMethod,
			fmt.Errorf("%d requests are running already, this one was not begun; try again", cap(s.slots))))
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	answer, err := handler(ctx, request)
	if err != nil {
		if storage.KindOf(err) == storage.KindInternal {
			s.logger.Error("request ended in an internal error", "method", info.FullMethod, "error", err)
		}
		return nil, api.StatusError(err)
	}
	return answer, nil
}

// handlers implements pb.HostServer.
type handlers struct {
	pb.UnimplementedHostServer
	gateway Gateway
}

// Attach implements pb.HostServer.
func (h *handlers) Attach(ctx context.Context, m *pb.AttachRequest) (*pb.AttachResponse, error) {
	r := RequestFromProto(m)
	if err := r.Validate(); err != nil {
		return nil, err
	}
	a, err := h.gateway.Attach(ctx, r)
	return &pb.AttachResponse{Attachment: AttachmentToProto(a)}, err
}

// Detach implements pb.HostServer.
func (h *handlers) Detach(ctx context.Context, m *pb.DetachRequest) (*pb.DetachResponse, error) {
	if err := storage.CheckVolumeName(m.GetVolume()); err != nil {
		return nil, err
	}
	return &pb.DetachResponse{}, h.gateway.Detach(ctx, m.GetVolume(), m.GetForce())
}

// Refresh implements pb.HostServer.
func (h *handlers) Refresh(ctx context.Context, m *pb.RefreshRequest) (*pb.RefreshResponse, error) {
	if err := storage.CheckVolumeName(m.GetVolume()); err != nil {
		return nil, err
	}
	if n := m.GetSizeBytes(); n < 0 || n > storage.MaxVolumeBytes {
		return nil, storage.E("refresh", storage.KindInvalid, "volume "+m.GetVolume(), errors.New("no volume has such a size"))
	}
	a, err := h.gateway.Refresh(ctx, m.GetVolume(), m.GetSizeBytes())
	return &pb.RefreshResponse{Attachment: AttachmentToProto(a)}, err
}

// HostDown implements pb.HostServer.
func (h *handlers) HostDown(ctx context.Context, _ *pb.HostDownRequest) (*pb.HostDownResponse, error) {
	return &pb.HostDownResponse{}, h.gateway.HostDown(ctx)
}

// Allocated implements pb.HostServer.
func (h *handlers) Allocated(ctx context.Context, m *pb.AllocatedRequest) (*pb.AllocatedResponse, error) {
	if err := storage.CheckVolumeName(m.GetVolume()); err != nil {
		return nil, err
	}
	found, err := h.gateway.Allocated(ctx, m.GetVolume(), storage.AttachmentID(m.GetAttachmentId()))
	return &pb.AllocatedResponse{Any: found}, err
}

// List implements pb.HostServer.
func (h *handlers) List(ctx context.Context, _ *pb.ListRequest) (*pb.ListResponse, error) {
	list, err := h.gateway.Attachments(ctx)
	return &pb.ListResponse{Attachments: api.Each(list, AttachmentToProto)}, err
}

// Info implements pb.HostServer.
func (h *handlers) Info(ctx context.Context, _ *pb.InfoRequest) (*pb.InfoResponse, error) {
	i, err := h.gateway.Info(ctx)
	return InfoToProto(i), err
}
