package hostgateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/doors"
	"github.com/storaged/storaged/internal/logging"
)

// Run runs a host's gateway until ctx is done, and returns nil if it was stopped in order. The devices stay, and their
// requests wait for the next gateway. helper is the command, with its first arguments, that runs attach.Helper.
func Run(ctx context.Context, config Config, helper []string, logs io.Writer) error {
	if err := config.Validate(); err != nil {
		return err
	}
	logger, err := logging.New(config.LogLevel, config.LogFormat, logs)
	if err != nil {
		return err
	}
	env := environment{logger: logger, metrics: prometheus.NewRegistry(), helper: helper}
	env.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	g, err := newGateway(ctx, config, env)
	if err != nil {
		return err
	}
	listener, err := listen(config.Socket)
	if err == nil {
		if err = g.start(); err == nil {
			err = g.serve(ctx, listener)
		}
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), config.ShutdownTimeout)
	defer cancel()
	err = errors.Join(err, g.close(stopping))
	if err == nil {
		logger.Info("stopped; devices wait for the next gateway")
	}
	return err
}

// listen opens the socket, in the place of one that a killed gateway has left. The lock on the state directory says that
// there is no other.
func listen(path string) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) {
		return nil, storage.E("listen", storage.KindInvalid, "--socket "+path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fail(err)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return fail(errors.New("there is a file that is no socket"))
		}
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			_ = conn.Close()
			return fail(errors.New("another gateway listens there"))
		}
		_ = os.Remove(path)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fail(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return fail(errors.Join(err, l.Close()))
	}
	return l, nil
}

// serve answers on the socket, and over HTTP, until ctx is done.
func (g *Gateway) serve(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if g.config.ListenHTTP != "" {
		l, err := net.Listen("tcp", g.config.ListenHTTP)
		if err != nil {
			return storage.E("listen", storage.KindInvalid, "--listen-http "+g.config.ListenHTTP, errors.Join(err, listener.Close()))
		}
		server := &http.Server{Handler: g.handler(), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
			WriteTimeout: 30 * time.Second}
		l = doors.Limit(l, doors.NewShares(256, 64), nil)
		g.wg.Go(func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				g.env.logger.Error("metrics are not served any more", "error", err)
			}
		})
		defer func() { _ = server.Close() }()
	}
	return host.NewServer(g, g.env.logger).Serve(ctx, listener)
}

func (g *Gateway) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g.env.metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		list, _ := g.Attachments(r.Context()) // has no error
		problems := []string{}
		for _, a := range list {
			if a.State == host.StateFailed {
				problems = append(problems, "volume "+a.Volume+": "+a.Reason)
			}
		}
		g.mu.Lock()
		c := g.cluster
		g.mu.Unlock()
		if c == nil || !c.remote.Answered() {
			problems = append(problems, "no node answers")
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"ok": true, "warnings": problems}) // the client has gone if this fails
	})
	return mux
}
