package dockerplugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/docker/go-plugins-helpers/volume"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/hostfs"
)

// How long calls may take: less than Docker waits for them, which is one minute and two.
const (
	shortCall = 50 * time.Second
	longCall  = 110 * time.Second
	// drainTime is how long a stopping server waits for calls that run.
	drainTime = 10 * time.Second
)

// Server speaks Docker's protocol for a Plugin. It is made by NewServer.
type Server struct {
	plugin *Plugin
	log    *slog.Logger

	mu      sync.Mutex // guards what follows
	conns   map[net.Conn]struct{}
	stopped bool
	calls   int
	idle    chan struct{} // closed when stopped is set and calls is 0
	// settling are the volumes for which a goroutine waits that something which outlived its call has ended; each ends with the
	// calls of Serve, and settlers waits for them.
	settling map[string]struct{}
	settlers sync.WaitGroup
}

// NewServer returns a server that does not serve yet. A nil logger discards.
func NewServer(plugin *Plugin, log *slog.Logger) *Server {
	log = cmp.Or(log, slog.New(slog.DiscardHandler))
	return &Server{plugin: plugin, log: log, conns: map[net.Conn]struct{}{}, settling: map[string]struct{}{}, idle: make(chan struct{})}
}

// Serve answers calls on l, which it closes, until ctx ends; then it waits up to ten seconds for the calls that run, ends
// them, and returns nil. Another error means that the listener failed. It must be called once.
//
// Beside that it takes back what the plugin before has left (Plugin.Recover). Docker is not kept waiting for it: volumes that
// cannot be detached, because the cluster does not answer yet, say, must not keep the others' containers from starting.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	// Calls outlive ctx by the time that they have to finish.
	calls, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	recovered := make(chan struct{}) // closed by the goroutine below, which ends with calls
	go func() {
		defer close(recovered)
		if err := s.plugin.Recover(calls); err != nil {
			s.log.Warn("what an earlier plugin has left is not taken back", "error", err)
		}
	}()
	served := make(chan error, 1) // one value, from the goroutine below, which ends with the listener
	go func() { served <- volume.NewHandler(&driver{s, calls}).Serve(&tracked{l, s}) }()
	select {
	case err := <-served:
		s.stop()
		cut()
		<-recovered
		s.settlers.Wait()
		return fmt.Errorf("serve Docker: %w", err)
	case <-ctx.Done():
	}
	_ = l.Close() // it may be closed already
	_ = <-served  // it ended because it was told to
	s.stop()
	select {
	case <-s.idle:
	case <-time.After(drainTime):
		cut()
		<-s.idle
	}
	s.hangUp()
	cut()
	<-recovered
	s.settlers.Wait()
	return nil
}

// settle sees to it that a volume of which something has outlived its call is taken back, when that has ended and nobody has come
// for it. What a stop cuts off the next plugin's Recover does.
func (s *Server) settle(ctx context.Context, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, waits := s.settling[name]; waits || s.stopped {
		return
	}
	s.settling[name] = struct{}{}
	s.settlers.Go(func() {
		err := s.plugin.Settle(ctx, name)
		for errors.Is(err, hostfs.ErrPending) && ctx.Err() == nil { // it waits for as long as a call may take, each time
			err = s.plugin.Settle(ctx, name)
		}
		s.mu.Lock()
		delete(s.settling, name)
		s.mu.Unlock()
		if err != nil {
			s.log.Warn("a volume without users cannot be released", "volume", name, "error", err)
		}
	})
}

// stop refuses calls from now on.
func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	if s.calls == 0 {
		close(s.idle)
	}
}

// hangUp closes the connections, and with them ends what reads from them.
func (s *Server) hangUp() {
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	for c := range conns {
		_ = c.Close() // an answer that this cuts off is asked for again, and every call may be repeated
	}
}

// tracked is a listener that the server can close the connections of: the helpers' own server cannot be stopped.
type tracked struct {
	net.Listener
	s *Server
}

// Accept implements net.Listener.
func (t *tracked) Accept() (net.Conn, error) {
	c, err := t.Listener.Accept()
	if err != nil {
		return nil, err
	}
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	if t.s.conns != nil {
		t.s.conns[c] = struct{}{}
	}
	return &trackedConn{c, t.s}, nil
}

type trackedConn struct {
	net.Conn
	s *Server
}

// Close implements net.Conn.
func (c *trackedConn) Close() error {
	c.s.mu.Lock()
	delete(c.s.conns, c.Conn)
	c.s.mu.Unlock()
	return c.Conn.Close()
}

// driver is the plugin as the helpers want it: without contexts.
type driver struct {
	s     *Server
	calls context.Context // ends when the server's patience does
}

var _ volume.Driver = (*driver)(nil)

// call carries one call out, unless the server stops.
func (d *driver) call(name, subject string, limit time.Duration, do func(context.Context, *Plugin) error) error {
	s := d.s
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return storage.E(name, storage.KindUnavailable, subject, fmt.Errorf("the plugin is stopping; try again"))
	}
	s.calls++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.calls--; s.calls == 0 && s.stopped {
			close(s.idle)
		}
	}()
	ctx, cancel := context.WithTimeout(d.calls, limit)
	defer cancel()
	began := time.Now()
	err := do(ctx, s.plugin)
	if errors.Is(err, hostfs.ErrPending) {
		s.settle(d.calls, subject)
	}
	switch {
	case err == nil, storage.KindOf(err) == storage.KindNotFound: // Docker looks for volumes before it makes them
		s.log.Debug("call", "call", name, "volume", subject, "error", err, "took", time.Since(began))
	default:
		s.log.Warn("call failed", "call", name, "volume", subject, "error", err, "took", time.Since(began))
	}
	return err
}

// Create implements volume.Driver.
func (d *driver) Create(r *volume.CreateRequest) error {
	return d.call("create", r.Name, longCall, func(ctx context.Context, p *Plugin) error { return p.Create(ctx, r.Name, r.Options) })
}

// Remove implements volume.Driver.
func (d *driver) Remove(r *volume.RemoveRequest) error {
	return d.call("remove", r.Name, shortCall, func(ctx context.Context, p *Plugin) error { return p.Remove(ctx, r.Name) })
}

// Mount implements volume.Driver.
func (d *driver) Mount(r *volume.MountRequest) (*volume.MountResponse, error) {
	var answer volume.MountResponse
	err := d.call("mount", r.Name, longCall, func(ctx context.Context, p *Plugin) (err error) {
		answer.Mountpoint, err = p.Mount(ctx, r.Name, r.ID)
		return err
	})
	return &answer, err
}

// Unmount implements volume.Driver.
func (d *driver) Unmount(r *volume.UnmountRequest) error {
	return d.call("unmount", r.Name, shortCall, func(ctx context.Context, p *Plugin) error { return p.Unmount(ctx, r.Name, r.ID) })
}

// Path implements volume.Driver.
func (d *driver) Path(r *volume.PathRequest) (*volume.PathResponse, error) {
	var answer volume.PathResponse
	err := d.call("path", r.Name, shortCall, func(ctx context.Context, p *Plugin) (err error) {
		answer.Mountpoint, err = p.Path(ctx, r.Name)
		return err
	})
	return &answer, err
}

// Get implements volume.Driver.
func (d *driver) Get(r *volume.GetRequest) (*volume.GetResponse, error) {
	var answer volume.GetResponse
	err := d.call("get", r.Name, shortCall, func(ctx context.Context, p *Plugin) error {
		v, err := p.Get(ctx, r.Name)
		answer.Volume = describe(v)
		return err
	})
	return &answer, err
}

// List implements volume.Driver.
func (d *driver) List() (*volume.ListResponse, error) {
	var answer volume.ListResponse
	err := d.call("list", "", shortCall, func(ctx context.Context, p *Plugin) error {
		list, err := p.List(ctx)
		for _, v := range list {
			answer.Volumes = append(answer.Volumes, describe(v))
		}
		return err
	})
	return &answer, err
}

// Capabilities implements volume.Driver: volumes are the cluster's, and not a host's.
func (d *driver) Capabilities() *volume.CapabilitiesResponse {
	return &volume.CapabilitiesResponse{Capabilities: volume.Capability{Scope: "global"}}
}

// describe turns a volume into what Docker shows of it: under Docker's name, with the cluster's if it is another.
func describe(v Volume) *volume.Volume {
	answer := &volume.Volume{Name: v.As, Mountpoint: v.Mountpoint, Status: map[string]any{"id": v.ID.String()}}
	if v.Name != v.As {
		answer.Status["volume"] = v.Name
	}
	if v.Stale {
		answer.Status["stale"] = "the cluster does not answer"
		return answer
	}
	answer.CreatedAt = v.CreatedAt.UTC().Format(time.RFC3339)
	answer.Status["sizeBytes"] = v.SizeBytes
	var holders []string
	for _, a := range v.Attachments {
		holders = append(holders, fmt.Sprintf("%s (%s, since %s)", a.Holder.ID, a.Access, a.Since.UTC().Format(time.RFC3339)))
	}
	if holders != nil {
		answer.Status["attachedTo"] = holders
	}
	return answer
}
