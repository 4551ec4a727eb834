// Package hostclient speaks to the gateway of this host (`storaged gateway`) over its unix socket, and returns the
// structs of package api/host.
//
// It makes one attempt a call: every operation of the gateway may be repeated, and whoever calls knows for how long
// that makes sense. A gateway that does not run is KindUnavailable, with the next step in the text. It caches nothing; a
// Client may be used concurrently.
package hostclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/host"
	pb "github.com/storaged/storaged/proto/storage/host/v1"
)

// Client asks the gateway of this host. It implements host.Gateway.
type Client struct {
	socket string
	conn   *grpc.ClientConn
	host   pb.HostClient
}

var _ host.Gateway = (*Client)(nil)

// New returns a client of the gateway that listens at socket; empty means host.DefaultSocket. It does not connect
// before the first call.
func New(socket string) (*Client, error) {
	socket = cmp.Or(socket, host.DefaultSocket)
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	conn, err := grpc.NewClient("passthrough:///gateway", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dial), grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 3 * time.Second,
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}}))
	if err != nil {
		return nil, storage.E("connect to", storage.KindInvalid, "gateway "+socket, err)
	}
	return &Client{socket: socket, conn: conn, host: pb.NewHostClient(conn)}, nil
}

// Close ends the connection; running calls fail. It is idempotent.
func (c *Client) Close() error {
	_ = c.conn.Close() // its only error says that it is closed already
	return nil
}

// Attach implements host.Gateway.
func (c *Client) Attach(ctx context.Context, r host.Request) (host.Attachment, error) {
	if err := r.Validate(); err != nil {
		return host.Attachment{}, err
	}
	answer, err := c.host.Attach(ctx, host.RequestToProto(r))
	return host.AttachmentFromProto(answer.GetAttachment()), c.failure(err, "attach", "volume "+r.Volume)
}

// Detach implements host.Gateway.
func (c *Client) Detach(ctx context.Context, volume string, force bool) error {
	_, err := c.host.Detach(ctx, &pb.DetachRequest{Volume: volume, Force: force})
	return c.failure(err, "detach", "volume "+volume)
}

// Refresh implements host.Gateway.
func (c *Client) Refresh(ctx context.Context, volume string, sizeBytes int64) (host.Attachment, error) {
	answer, err := c.host.Refresh(ctx, &pb.RefreshRequest{Volume: volume, SizeBytes: sizeBytes})
	return host.AttachmentFromProto(answer.GetAttachment()), c.failure(err, "refresh", "volume "+volume)
}

// Allocated implements host.Gateway.
func (c *Client) Allocated(ctx context.Context, volume string, attachmentID storage.AttachmentID) (bool, error) {
	answer, err := c.host.Allocated(ctx, &pb.AllocatedRequest{Volume: volume, AttachmentId: uint64(attachmentID)})
	return answer.GetAny(), c.failure(err, "ask for the allocation of", "volume "+volume)
}

// HostDown implements host.Gateway.
func (c *Client) HostDown(ctx context.Context) error {
	_, err := c.host.HostDown(ctx, &pb.HostDownRequest{})
	return c.failure(err, "tell", "gateway "+c.socket)
}

// Attachments implements host.Gateway.
func (c *Client) Attachments(ctx context.Context) ([]host.Attachment, error) {
	answer, err := c.host.List(ctx, &pb.ListRequest{})
	return api.Each(answer.GetAttachments(), host.AttachmentFromProto), c.failure(err, "list", "attachments")
}

// Info implements host.Gateway.
func (c *Client) Info(ctx context.Context) (host.Info, error) {
	answer, err := c.host.Info(ctx, &pb.InfoRequest{})
	return host.InfoFromProto(answer), c.failure(err, "ask", "gateway "+c.socket)
}

// failure turns gRPC's error into ours. When nobody answered, it looks for itself why.
func (c *Client) failure(err error, op, subject string) error {
	if err == nil {
		return nil
	}
	ours := api.ErrorFromStatus(err, op, subject)
	if !api.Answered(err) && errors.Is(ours, context.DeadlineExceeded) {
		return storage.E(op, storage.KindOf(ours), subject, fmt.Errorf("the gateway at %s gave no answer in time, and may still be at it; "+
			"`storagectl attachments` says what has become of it: %w", c.socket, context.DeadlineExceeded))
	}
	if api.Answered(err) || storage.KindOf(ours) != storage.KindUnavailable {
		return ours
	}
	why := err
	if conn, dialErr := net.DialTimeout("unix", c.socket, time.Second); dialErr == nil {
		_ = conn.Close() // somebody listens; what gRPC says is the best there is
	} else {
		why = dialErr
	}
	kind, hint := storage.KindUnavailable, "start the host's gateway: `systemctl start storaged-gateway`, or `storaged gateway`"
	switch {
	case errors.Is(why, fs.ErrPermission):
		kind, hint = storage.KindPermission, "only root may speak to the gateway"
	case errors.Is(why, fs.ErrNotExist), errors.Is(why, syscall.ECONNREFUSED):
	default:
		return storage.E(op, kind, subject, fmt.Errorf("the gateway at %s did not answer: %w", c.socket, why))
	}
	return storage.E(op, kind, subject, fmt.Errorf("no gateway answers at %s (%w); %s", c.socket, why, hint))
}
