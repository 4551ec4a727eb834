package csi

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	kubelet "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	storage "github.com/storaged/storaged"
)

// Registration says how the node service is made known to the kubelet of its host. All fields but Log and Retry are
// required.
type Registration struct {
	// Name is the driver's.
	Name string
	// Endpoint is the node service's socket as the kubelet sees it.
	Endpoint string
	// Dir is the directory in which the kubelet looks for plugins, as this process sees it.
	Dir string
	// Log gets a line when the kubelet has taken or refused the driver; nil discards.
	Log *slog.Logger
	// Retry is how long after the first refusal the driver registers anew; after each further one twice as long, up to a
	// minute. 0: one second.
	Retry time.Duration
}

// mostRetry bounds the time between two attempts.
const mostRetry = time.Minute

// Socket is where the kubelet finds the registration.
func (r Registration) Socket() string { return filepath.Join(r.Dir, r.Name+"-reg.sock") }

// Register makes the node service known to the kubelet until ctx ends: it serves the kubelet's interface for plugins on a
// socket in its directory. The kubelet asks once a socket: one that has refused the driver, because it could not say the
// host's id before the gateway ran for example, asks again only when there is a new one, which is therefore made.
func Register(ctx context.Context, r Registration) error {
	if r.Log == nil {
		r.Log = slog.New(slog.DiscardHandler)
	}
	if r.Retry == 0 {
		r.Retry = time.Second
	}
	for wait := r.Retry; ; wait = min(2*wait, mostRetry) {
		refused, err := r.serve(ctx)
		if err != nil || ctx.Err() != nil {
			return err
		}
		r.Log.Warn("the kubelet has refused the driver; it is registered anew", "error", refused, "in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// serve answers the kubelet until it refuses the driver, and returns why, or until ctx ends.
func (r Registration) serve(ctx context.Context) (refused, err error) {
	l, err := Listen(r.Socket())
	if err != nil {
		return nil, err
	}
	p := &plugin{registration: r, refused: make(chan error, 1)}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxRequestBytes), grpc.MaxHeaderListSize(16<<10), grpc.MaxConcurrentStreams(maxCalls))
	kubelet.RegisterRegistrationServer(server, p)
	served := make(chan error, 1) // one value, from the goroutine below, which ends with the server
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		return nil, storage.E("register", storage.KindInternal, "driver "+r.Name, err)
	case refused = <-p.refused:
	case <-ctx.Done():
	}
	server.Stop() // it closes the listener, which removes the socket
	_ = <-served  // it ends because it was stopped
	return refused, nil
}

// plugin is what the kubelet speaks to.
type plugin struct {
	kubelet.UnimplementedRegistrationServer
	registration Registration
	refused      chan error // has room for one: the first refusal ends the server
}

// GetInfo implements the kubelet's interface.
func (p *plugin) GetInfo(context.Context, *kubelet.InfoRequest) (*kubelet.PluginInfo, error) {
	return &kubelet.PluginInfo{Type: kubelet.CSIPlugin, Name: p.registration.Name, Endpoint: p.registration.Endpoint,
		SupportedVersions: []string{"1.0.0"}}, nil
}

// NotifyRegistrationStatus implements the kubelet's interface.
func (p *plugin) NotifyRegistrationStatus(_ context.Context, s *kubelet.RegistrationStatus) (*kubelet.RegistrationStatusResponse, error) {
	if s.GetPluginRegistered() {
		p.registration.Log.Info("the kubelet has registered the driver", "driver", p.registration.Name, "socket", p.registration.Endpoint)
		return &kubelet.RegistrationStatusResponse{}, nil
	}
	select {
	case p.refused <- errors.New(s.GetError()):
	default: // one is on its way
	}
	return &kubelet.RegistrationStatusResponse{}, nil
}
