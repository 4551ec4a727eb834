package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/api/dockerplugin"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/api/hostclient"
	"github.com/storaged/storaged/api/hostfs"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/internal/logging"
	"github.com/storaged/storaged/internal/size"
	"github.com/storaged/storaged/internal/tlsfiles"
	"github.com/storaged/storaged/internal/unixsocket"
	"github.com/storaged/storaged/internal/version"
	"github.com/storaged/storaged/internal/watchdog"
)

// dockerConfig are the settings of `storaged docker-plugin`.
type dockerConfig struct {
	Socket      string `flag:"socket" default:"/run/docker/plugins/storaged.sock" help:"unix socket to listen on; in that directory, its name without .sock is what Docker calls the driver"`
	Endpoints   string `flag:"endpoint" help:"API of one or more nodes of the cluster (host or host:port), separated by commas; empty: those of the host's gateway"`
	Cluster     string `flag:"cluster" help:"id of the cluster (storagectl status shows it); no other one is asked for anything (empty: that of the endpoints)"`
	Gateway     string `flag:"gateway" default:"/run/storaged/gateway.sock" help:"socket of the host's gateway (storaged gateway)"`
	API         tlsfiles.Client
	StateDir    string     `flag:"state-dir" default:"/var/lib/storaged-docker" help:"directory of what the plugin knows, and of its mounts"`
	DefaultSize size.Bytes `flag:"default-size" default:"10GiB" help:"size of a new volume without the option size; 0: the option is required"`
	LogLevel    string     `flag:"log-level" default:"info" help:"debug, info, warn or error"`
	LogFormat   string     `flag:"log-format" default:"text" help:"text or json"`
}

func dockerCommand() *cobra.Command {
	var config dockerConfig
	return configured(&cobra.Command{
		Use:   "docker-plugin",
		Short: "Run the volume plugin for Docker and Podman",
		Long: `Run the volume plugin of this host for Docker and Podman until SIGTERM or SIGINT; as root, beside the host's gateway
("storaged gateway"), which holds the devices. It may be stopped and updated while containers use volumes.
docs/docker.md shows how it is used.

Every flag can be given in the environment too (--state-dir as STORAGED_STATE_DIR) or in a YAML file (--config) whose
keys are the flags' names. The command line wins over the environment, the environment over the file.`,
		Example: `  storaged docker-plugin
  docker volume create -d storaged -o size=20G db
  docker run -v db:/var/lib/postgresql/data postgres`,
	}, &config, func(ctx context.Context, stderr io.Writer) error {
		if err := config.validate(); err != nil {
			return err
		}
		return runDocker(ctx, config, stderr)
	})
}

// validate returns every problem at once.
func (c dockerConfig) validate() error {
	var p storage.Problems
	p.Check(filepath.IsAbs(c.Socket), "--socket %q: want an absolute path", c.Socket)
	p.Check(filepath.IsAbs(c.StateDir), "--state-dir %q: want an absolute path", c.StateDir)
	if c.DefaultSize != 0 {
		err := storage.CheckVolumeSize(int64(c.DefaultSize))
		p.Check(err == nil, "--default-size: %w", err)
	}
	return checkShared(&p, c.Cluster, c.API, c.LogLevel, c.LogFormat)
}

// awaitGateway asks the host's gateway until it answers: it may be started later, or anew.
func awaitGateway(ctx context.Context, gateway hostfs.Devices, log *slog.Logger) (host.Info, error) {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		info, err := gateway.Info(ctx)
		if err == nil || ctx.Err() != nil {
			return info, err
		}
		log.Warn("the host's gateway does not answer; asked again", "again-in", pause, "error", err)
		_ = clock.Sleep(ctx, pause) // the next turn sees the end
	}
}

// dockerAlive returns what the watchdog asks: whether the plugin answers, once it serves. Before that it waits for the gateway, and
// a restart would not shorten the wait.
func dockerAlive(socket string, serves *atomic.Bool) func(context.Context) error {
	return func(ctx context.Context) error {
		if !serves.Load() {
			return nil
		}
		return dockerplugin.Answers(ctx, socket)
	}
}

// runDocker serves until ctx ends.
func runDocker(ctx context.Context, c dockerConfig, stderr io.Writer) error {
	log, err := logging.New(c.LogLevel, c.LogFormat, stderr)
	if err != nil {
		return err
	}
	klog.SetSlogLogger(log) // k8s.io/mount-utils logs there
	dog, err := watchdog.FromEnvironment(os.LookupEnv, os.Getpid())
	if err != nil {
		return err
	}
	var serves atomic.Bool
	var watch sync.WaitGroup
	defer watch.Wait()
	watched, end := context.WithCancel(ctx)
	defer end()
	watch.Go(func() { dog.Run(watched, log, dockerAlive(c.Socket, &serves)) })
	gateway, err := hostclient.New(c.Gateway)
	if err != nil {
		return err
	}
	defer gateway.Close()
	endpoints := strings.FieldsFunc(c.Endpoints, func(r rune) bool { return r == ',' || r == ' ' })
	if len(endpoints) == 0 {
		info, err := awaitGateway(ctx, gateway, log)
		if err != nil {
			return err
		}
		endpoints = info.Endpoints
	}
	tlsConfig, err := c.API.Config()
	if err != nil {
		return err
	}
	cluster, err := client.New(client.Config{Endpoints: endpoints, Cluster: clusterID(c.Cluster), TLS: tlsConfig})
	if err != nil {
		return err
	}
	defer cluster.Close()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return storage.E("read", storage.KindInternal, "the kernel's boot id", err)
	}
	mounts := hostfs.New("")
	defer mounts.Close()
	plugin, err := dockerplugin.Open(dockerplugin.Config{Cluster: cluster, Devices: gateway, Mounts: mounts, StateDir: c.StateDir,
		Boot: strings.TrimSpace(string(boot)), DefaultSizeBytes: int64(c.DefaultSize), Log: log})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.Socket), 0o755); err != nil {
		return storage.E("make", storage.KindInvalid, "directory of the socket "+c.Socket, err)
	}
	l, err := unixsocket.Listen(c.Socket)
	if err != nil {
		return storage.E("listen", storage.KindInvalid, "--socket "+c.Socket, err)
	}
	serves.Store(true)
	log.Info("Docker plugin serves", "socket", c.Socket, "state-dir", c.StateDir, "version", version.Version)
	return dockerplugin.NewServer(plugin, log).Serve(ctx, l)
}
