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
	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/internal/doors"
	"github.com/storaged/storaged/internal/logging"
	"github.com/storaged/storaged/internal/unixsocket"
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
	ports, err := sharePorts(logger)
	if err != nil {
		return err
	}
	env := environment{logger: logger, metrics: prometheus.NewRegistry(), helper: helper}
	env.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if is, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0); err != nil || is == 0 {
		logger.Warn("when memory is short the kernel may wait for this gateway in this gateway: it is no I/O flusher (that takes CAP_SYS_RESOURCE and Linux 5.6)")
	}
	g, err := newGateway(ctx, config, env)
	if err != nil {
		return err
	}
	env.metrics.MustRegister(deviceStates{g})
	listener, err := listen(config.Socket)
	if err == nil {
		if err = g.start(); err == nil {
			err = g.serve(ctx, listener, ports)
		}
	}
	if g.goesDown() {
		g.leave()
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), config.ShutdownTimeout)
	defer cancel()
	err = errors.Join(err, g.close(stopping))
	switch {
	case err != nil:
	case g.goesDown():
		logger.Info("stopped; no device waits, because the host goes down")
	default:
		logger.Info("stopped; devices wait for the next gateway")
	}
	return err
}

// listen opens the socket, in the place of one that a killed gateway has left.
func listen(path string) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) {
		return nil, storage.E("listen", storage.KindInvalid, "--socket "+path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fail(err)
	}
	l, err := unixsocket.Listen(path)
	if err != nil {
		return fail(err)
	}
	return l, nil
}

// serve answers on the socket, and over HTTP, until ctx is done.
func (g *Gateway) serve(ctx context.Context, listener net.Listener, ports ports) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if g.config.ListenHTTP != "" {
		server := &http.Server{Handler: g.handler(), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
			WriteTimeout: 30 * time.Second}
		g.wg.Go(func() { g.serveHTTP(ctx, server, ports.http) })
		defer func() { _ = server.Close() }()
	}
	return host.NewServer(g, g.env.logger).Serve(ctx, ports.socket.Limit(listener))
}

// serveHTTP serves metrics and health until the server is closed. An address that cannot be had is tried again and again:
// devices do not wait for metrics.
func (g *Gateway) serveHTTP(ctx context.Context, server *http.Server, door doors.Door) {
	for pause := 100 * time.Millisecond; ctx.Err() == nil; pause = min(2*pause, 10*time.Second) {
		l, err := net.Listen("tcp", g.config.ListenHTTP)
		if err == nil {
			err = server.Serve(door.Limit(l))
		}
		if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
			return
		}
		g.env.logger.Warn("metrics and health are not served; tried again", "listen-http", g.config.ListenHTTP, "again-in", pause, "error", err)
		_ = clock.Sleep(ctx, pause) // the next turn sees the end
	}
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
		if c := g.way(); c == nil || !c.remote.Answered() {
			problems = append(problems, "no node answers")
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"ok": true, "warnings": problems}) // the client has gone if this fails
	})
	return mux
}
