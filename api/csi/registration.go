package csi

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	kubelet "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/unixsocket"
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
	// Retry is how long after the first refusal the driver registers again; after each further one twice as long, up to a
	// minute. 0: one second.
	Retry time.Duration
	// Changed says which answer about the host that the kubelet was given is wrong by now; empty: none. It is asked every
	// LookEvery while the driver is registered, and may take as long. Nil: nothing changes.
	Changed func(context.Context) string
	// LookEvery is ten seconds if it is 0.
	LookEvery time.Duration
}

// mostRetry bounds the time between two attempts.
const mostRetry = time.Minute

// Socket is where the kubelet finds the registration.
func (r Registration) Socket() string { return filepath.Join(r.Dir, r.Name+"-reg.sock") }

// Register makes the node service known to the kubelet until ctx ends: it serves the kubelet's interface for plugins on a
// socket in its directory. The kubelet asks once for each socket. If it has refused the driver (for example because the driver did
// not know the host's id before the gateway ran), it asks again only when there is a new socket, so Register makes one. Register
// also makes one when an answer has changed, because the kubelet keeps what it was told.
func Register(ctx context.Context, r Registration) error {
	r.Log = cmp.Or(r.Log, slog.New(slog.DiscardHandler))
	r.Retry, r.LookEvery = cmp.Or(r.Retry, time.Second), cmp.Or(r.LookEvery, 10*time.Second)
	wait := r.Retry
	for {
		ended, err := r.serve(ctx)
		if err != nil || ctx.Err() != nil {
			return err
		}
		if ended.changed != "" {
			wait = r.Retry
			r.Log.Warn("the driver is registered anew with the kubelet", "why", ended.changed, "in", wait)
		} else {
			r.Log.Warn("the kubelet has refused the driver; it is registered anew", "error", ended.refused, "in", wait)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		if ended.changed == "" {
			wait = min(2*wait, mostRetry)
		}
	}
}

// unregistered is why a registration has ended: one of the two.
type unregistered struct {
	refused error
	changed string
}

// serve answers the kubelet until it refuses the driver, or what it was told has changed, and returns why; or until ctx ends.
func (r Registration) serve(ctx context.Context) (ended unregistered, err error) {
	l, err := unixsocket.Listen(r.Socket())
	if err != nil {
		return ended, storage.E("listen", storage.KindInvalid, "socket "+r.Socket(), err)
	}
	p := &plugin{registration: r, refused: make(chan error, 1)}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxRequestBytes), grpc.MaxHeaderListSize(16<<10), grpc.MaxConcurrentStreams(maxCalls))
	kubelet.RegisterRegistrationServer(server, p)
	served := make(chan error, 1) // one value, from the goroutine below, which ends with the server
	go func() { served <- server.Serve(l) }()
	look := time.NewTicker(r.LookEvery)
	defer look.Stop()
	for ended == (unregistered{}) && ctx.Err() == nil {
		select {
		case err := <-served:
			return ended, storage.E("register", storage.KindInternal, "driver "+r.Name, err)
		case ended.refused = <-p.refused:
		case <-look.C:
			ended.changed = r.changed(ctx)
		case <-ctx.Done():
		}
	}
	server.Stop() // it closes the listener, which removes the socket
	_ = <-served  // it ends because it was stopped
	return ended, nil
}

func (r Registration) changed(ctx context.Context) string {
	if r.Changed == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, r.LookEvery)
	defer cancel()
	return r.Changed(ctx)
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
