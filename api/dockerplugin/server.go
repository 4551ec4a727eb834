package dockerplugin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
	"github.com/docker/go-plugins-helpers/volume"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/hostfs"
)

const (
	// How long calls may take: less than Docker waits for them, which is one minute and two.
	shortCall = 50 * time.Second
	longCall  = 110 * time.Second
	// drainTime is how long a stopping server waits for calls that run.
	drainTime = 10 * time.Second
	// maxRequestBytes bounds what Docker sends with a call.
	maxRequestBytes = 1 << 20
)

// Server speaks Docker's protocol for a Plugin. It is made by NewServer.
type Server struct {
	plugin *Plugin
	log    *slog.Logger

	mu      sync.Mutex // guards what follows
	stopped bool
	// settling are the volumes for which a goroutine waits until something has ended that outlived its call.
	settling map[string]struct{}

	running sync.WaitGroup // calls, and goroutines that end with the context of the calls; none begins after stopped is set
}

// NewServer returns a server that does not serve yet. A nil logger discards.
func NewServer(plugin *Plugin, log *slog.Logger) *Server {
	return &Server{plugin: plugin, log: cmp.Or(log, slog.New(slog.DiscardHandler)), settling: map[string]struct{}{}}
}

// Serve answers calls on l, which it closes, until ctx ends; then it waits up to ten seconds for the calls that run, ends
// them, and returns nil. Another error means that the listener failed. It must be called once.
//
// Beside that it takes back what the plugin before has left (Plugin.Recover). Docker is not kept waiting for it: volumes that
// cannot be detached, because the cluster does not answer yet, say, must not keep the others' containers from starting.
func (s *Server) Serve(ctx context.Context, l net.Listener) (err error) {
	// Calls outlive ctx by the time that they have to finish.
	calls, cut := context.WithCancel(context.WithoutCancel(ctx))
	s.running.Go(func() {
		if err := s.plugin.Recover(calls); err != nil {
			s.log.Warn("what an earlier plugin has left is not taken back", "error", err)
		}
	})
	server := &http.Server{Handler: s.handler(calls)}
	served := make(chan error, 1) // one value, from the goroutine below, which ends with the listener
	go func() { served <- server.Serve(l) }()
	select {
	case err = <-served:
		err = fmt.Errorf("serve Docker: %w", err)
	case <-ctx.Done():
		drain, cancel := context.WithTimeout(calls, drainTime)
		_ = server.Shutdown(drain) // what it waits for in vain is ended now
		cancel()
		_ = <-served // it ended because it was told to
	}
	s.stop()
	cut()
	s.running.Wait()
	_ = server.Close() // an answer that this cuts off is asked for again, and every call may be repeated
	return err
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
	s.running.Go(func() {
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
}

// request is what Docker sends with a call, each with a part of it.
type request struct {
	Name, ID string
	Opts     map[string]string
}

// dockerCall is one of the calls of Docker's protocol.
type dockerCall struct {
	limit time.Duration // how long it may take
	do    func(ctx context.Context, p *Plugin, r request) (answer any, err error)
}

// done is the answer to a call that asks for nothing but that it is carried out.
type done struct{}

// dockerCalls are the calls of Docker's protocol, by name.
var dockerCalls = map[string]dockerCall{
	"Create": {longCall, func(ctx context.Context, p *Plugin, r request) (any, error) {
		return done{}, p.Create(ctx, r.Name, r.Opts)
	}},
	"Remove": {shortCall, func(ctx context.Context, p *Plugin, r request) (any, error) { return done{}, p.Remove(ctx, r.Name) }},
	"Unmount": {shortCall, func(ctx context.Context, p *Plugin, r request) (any, error) {
		return done{}, p.Unmount(ctx, r.Name, r.ID)
	}},
	"Mount": {longCall, func(ctx context.Context, p *Plugin, r request) (any, error) {
		path, err := p.Mount(ctx, r.Name, r.ID)
		return volume.MountResponse{Mountpoint: path}, err
	}},
	"Path": {shortCall, func(ctx context.Context, p *Plugin, r request) (any, error) {
		path, err := p.Path(ctx, r.Name)
		return volume.PathResponse{Mountpoint: path}, err
	}},
	"Get": {shortCall, func(ctx context.Context, p *Plugin, r request) (any, error) {
		v, err := p.Get(ctx, r.Name)
		return volume.GetResponse{Volume: describe(v)}, err
	}},
	"List": {shortCall, func(ctx context.Context, p *Plugin, _ request) (any, error) {
		list, err := p.List(ctx)
		return volume.ListResponse{Volumes: api.Each(list, describe)}, err
	}},
}

// handler answers Docker; calls is the context of the calls.
func (s *Server) handler(calls context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/Plugin.Activate", func(w http.ResponseWriter, _ *http.Request) {
		sdk.EncodeResponse(w, map[string][]string{"Implements": {"VolumeDriver"}}, false)
	})
	mux.HandleFunc("/VolumeDriver.Capabilities", func(w http.ResponseWriter, _ *http.Request) { // volumes are the cluster's, and not a host's
		sdk.EncodeResponse(w, volume.CapabilitiesResponse{Capabilities: volume.Capability{Scope: "global"}}, false)
	})
	for name := range dockerCalls {
		mux.HandleFunc("/VolumeDriver."+name, func(w http.ResponseWriter, r *http.Request) {
			var asked request
			err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequestBytes)).Decode(&asked)
			if err != nil && !errors.Is(err, io.EOF) { // no body says nothing
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			answer, err := s.call(calls, name, asked)
			if err != nil {
				answer = volume.NewErrorResponse(err.Error())
			}
			sdk.EncodeResponse(w, answer, err != nil)
		})
	}
	return mux
}

// call carries one call of Docker out, unless the server stops.
func (s *Server) call(ctx context.Context, name string, r request) (any, error) {
	op, c := strings.ToLower(name), dockerCalls[name]
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return nil, storage.E(op, storage.KindUnavailable, r.Name, errors.New("the plugin is stopping; try again"))
	}
	s.running.Add(1)
	s.mu.Unlock()
	defer s.running.Done()
	limited, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	began := time.Now()
	answer, err := c.do(limited, s.plugin, r)
	if errors.Is(err, hostfs.ErrPending) {
		s.settle(ctx, r.Name)
	}
	level, message := slog.LevelWarn, "call failed"
	if err == nil || storage.KindOf(err) == storage.KindNotFound { // Docker looks for volumes before it makes them
		level, message = slog.LevelDebug, "call"
	}
	s.log.Log(ctx, level, message, "call", op, "volume", r.Name, "error", err, "took", time.Since(began))
	return answer, err
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
