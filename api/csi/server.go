package csi

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/storaged/storaged/api"
)

// Config says what a Server serves. Identity is required, and at least one of the others.
type Config struct {
	Identity   *Identity
	Controller *Controller // nil: not served here
	Node       *Node       // nil: not served here
	// Log gets a line a failed call; nil discards.
	Log *slog.Logger
}

// Limits of the server.
const (
	// maxRequestBytes bounds one request; the specification's own limits on its fields are far below.
	maxRequestBytes = 1 << 20
	// maxCalls bounds the calls of one connection that are carried out at once.
	maxCalls = 256
	// drainTime is how long a stopping server waits for calls that run. What it cuts off is repeated by the orchestrator.
	drainTime = 10 * time.Second
	// answerMargin is how long before its caller's deadline a call ends by itself; for short deadlines it is a tenth of the time.
	// An orchestrator shows its users the answer as the reason why they wait. If it gives up a call itself, it can show only that.
	answerMargin = time.Second
)

// Server serves the CSI services over gRPC.
type Server struct {
	log  *slog.Logger
	grpc *grpc.Server
}

// NewServer returns a server that serves nothing yet.
func NewServer(config Config) *Server {
	s := &Server{log: config.Log}
	s.log = cmp.Or(s.log, slog.New(slog.DiscardHandler))
	s.grpc = grpc.NewServer(grpc.MaxRecvMsgSize(maxRequestBytes), grpc.MaxHeaderListSize(16<<10), grpc.MaxConcurrentStreams(maxCalls), grpc.UnaryInterceptor(s.intercept))
	spec.RegisterIdentityServer(s.grpc, config.Identity)
	if config.Controller != nil {
		spec.RegisterControllerServer(s.grpc, config.Controller)
	}
	if config.Node != nil {
		spec.RegisterNodeServer(s.grpc, config.Node)
	}
	return s
}

// Serve answers calls on l, which it closes, until ctx ends; then it waits a while for the calls that run.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if err := api.Serve(ctx, s.grpc, l, drainTime); err != nil {
		return fmt.Errorf("serve CSI: %w", err)
	}
	return nil
}

// intercept gives errors their codes and logs those that an operator may want to know of. Requests are not logged: they
// may carry secrets.
func (s *Server) intercept(ctx context.Context, r any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	began := time.Now()
	if deadline, ok := ctx.Deadline(); ok {
		early, cancel := context.WithDeadline(ctx, deadline.Add(-min(answerMargin, deadline.Sub(began)/10)))
		defer cancel()
		ctx = early
	}
	answer, err := handle(ctx, r)
	err = StatusError(err)
	switch code := status.Code(err); code {
	case codes.OK:
		s.log.Debug("call", "method", info.FullMethod, "took", time.Since(began))
		return answer, nil
	case codes.Unimplemented, codes.Aborted, codes.Canceled: // the caller's business
		s.log.Debug("call refused", "method", info.FullMethod, "code", code, "error", messageOf(err), "took", time.Since(began))
	default:
		s.log.Warn("call failed", "method", info.FullMethod, "volume", volumeOf(r), "code", code, "error", messageOf(err), "took", time.Since(began))
	}
	return nil, err
}

// volumeOf returns the id, or the name, of the volume that a request is about.
func volumeOf(r any) string {
	switch r := r.(type) {
	case interface{ GetVolumeId() string }:
		return r.GetVolumeId()
	case interface{ GetName() string }:
		return r.GetName()
	}
	return ""
}
