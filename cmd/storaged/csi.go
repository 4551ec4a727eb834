package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/api/csi"
	"github.com/storaged/storaged/api/hostclient"
	"github.com/storaged/storaged/api/hostfs"
	"github.com/storaged/storaged/internal/doors"
	"github.com/storaged/storaged/internal/logging"
	"github.com/storaged/storaged/internal/tlsfiles"
	"github.com/storaged/storaged/internal/unixsocket"
	"github.com/storaged/storaged/internal/version"
)

// csiConfig are the settings of `storaged csi`.
type csiConfig struct {
	Mode        string   `flag:"mode" help:"which service to run: controller or node"`
	Socket      string   `flag:"socket" default:"/csi/csi.sock" help:"unix socket to listen on"`
	Name        string   `flag:"driver-name" default:"csi.storaged.io" help:"name of the driver; volumes refer to it for ever"`
	Endpoints   []string `flag:"endpoint" help:"of the controller: API of one or more nodes of the cluster (host or host:port)"`
	Cluster     string   `flag:"cluster" help:"of the controller: id of the cluster (storagectl status shows it); no other one is asked for anything"`
	API         tlsfiles.Client
	Gateway     string   `flag:"gateway" default:"/run/storaged/gateway.sock" help:"of the node service: socket of the host's gateway (storaged gateway)"`
	HostRoot    string   `flag:"host-root" help:"of the node service: where the host's root directory is mounted, whose tools are used then"`
	MaxVolumes  int64    `flag:"max-volumes" help:"of the node service: volumes that may be published on this host (0: the orchestrator decides)"`
	Topology    bool     `flag:"topology" help:"hosts have zones (their gateways' --zone), and volumes can be kept to some; say it to controller and node services alike"`
	Zones       []string `flag:"zones" help:"of the node service: zones that this host may be in; while its gateway says another one, or none, the driver does not register (empty: any)"`
	KubeletPath string   `flag:"kubelet-registration-path" help:"of the node service: register it with the kubelet, which sees --socket at this path (empty: something else does)"`
	KubeletDir  string   `flag:"kubelet-registry" default:"/registration" help:"of the node service: the kubelet's directory plugins_registry, as this process sees it"`
	ListenHTTP  string   `flag:"listen-http" help:"address of /livez, which says whether the driver answers on its socket (empty: none)"`
	LogLevel    string   `flag:"log-level" default:"info" help:"debug, info, warn or error"`
	LogFormat   string   `flag:"log-format" default:"text" help:"text or json"`
}

func csiCommand() *cobra.Command {
	var config csiConfig
	c := &cobra.Command{
		Use:   "csi --mode controller|node",
		Short: "Run the CSI driver for Kubernetes and other orchestrators",
		Long: `Run the driver of the Container Storage Interface until SIGTERM or SIGINT: the identity service and, on a unix socket,
either the controller, which speaks to the cluster (--endpoint), or the node service, which speaks to the gateway of its
host (--gateway) and mounts. It keeps nothing between calls and holds no device: it may be stopped and updated at any
time. docs/kubernetes.md shows how it is deployed.

The node service makes and checks file systems with the tools of the system (blkid, blockdev, fsck, mkfs.ext4, mkfs.xfs,
resize2fs, xfs_growfs). In a container it uses those of the host, if the host's root directory is mounted there and
--host-root says where.

With --kubelet-registration-path the node service registers with the kubelet by itself, and needs no registrar beside it:
mount the kubelet's directory plugins_registry at --kubelet-registry.

With --listen-http the driver says at /livez whether it answers on its socket; what the cluster or the gateway say does not
matter there. Whoever asks and hears nothing, or 503, starts it anew.`,
		Example: `  storaged csi --mode controller --endpoint storage-1,storage-2,storage-3 --socket /csi/csi.sock
  storaged csi --mode node --socket /csi/csi.sock --host-root /host
  storaged csi --mode node --socket /csi/csi.sock --kubelet-registration-path /var/lib/kubelet/plugins/csi.storaged.io/csi.sock`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := config.validate(); err != nil {
				return err
			}
			return runCSI(cmd.Context(), config, cmd.ErrOrStderr())
		},
	}
	bindFlags(c.Flags(), &config)
	return c
}

// validate returns every problem at once.
func (c csiConfig) validate() error {
	var p storage.Problems
	add := func(bad bool, format string, args ...any) { p.Check(!bad, format, args...) }
	add(c.Mode != "controller" && c.Mode != "node", "--mode %q: say controller or node", c.Mode)
	add(c.Socket == "", "--socket is empty")
	add(c.Name == "" || len(c.Name) > 63, "--driver-name %q: want 1 to 63 characters", c.Name)
	add(c.Mode == "controller" && len(c.Endpoints) == 0, "--endpoint is missing: name one or more nodes of the cluster")
	add(c.Mode == "node" && len(c.Endpoints) > 0, "--endpoint is the controller's; the node service asks the host's gateway")
	add(c.Mode == "node" && !c.API.IsZero(), "--tls and its files are the controller's; the node service asks the host's gateway")
	add(len(c.Zones) > 0 && (c.Mode != "node" || !c.Topology), "--zones goes with --mode node and --topology")
	add(c.MaxVolumes < 0, "--max-volumes is negative")
	add(c.Mode == "controller" && c.KubeletPath != "", "--kubelet-registration-path is the node service's; the kubelet does not speak to a controller")
	add(c.KubeletPath != "" && !filepath.IsAbs(c.KubeletPath), "--kubelet-registration-path %q is no absolute path", c.KubeletPath)
	add(c.Mode == "node" && c.Cluster != "", "--cluster is the controller's; the node service asks the host's gateway")
	return checkShared(&p, c.Cluster, c.API, c.LogLevel, c.LogFormat)
}

// checkShared adds the problems of what the adapters of orchestrators share, and returns all.
func checkShared(p *storage.Problems, cluster string, api tlsfiles.Client, logLevel, logFormat string) error {
	p.Add(checkClusterID(cluster))
	p.Add(api.Validate())
	_, err := logging.New(logLevel, logFormat, io.Discard)
	p.Add(err)
	return p.Err("configuration", "")
}

// runCSI serves until ctx ends.
func runCSI(ctx context.Context, c csiConfig, stderr io.Writer) error {
	log, err := logging.New(c.LogLevel, c.LogFormat, stderr)
	if err != nil {
		return err
	}
	klog.SetSlogLogger(log) // k8s.io/mount-utils logs there
	served := csi.Config{Log: log}
	var ready func(context.Context) error
	var changed func(context.Context) string
	if c.Mode == "controller" {
		tlsConfig, err := c.API.Config()
		if err != nil {
			return err
		}
		cluster, err := client.New(client.Config{Endpoints: c.Endpoints, Cluster: clusterID(c.Cluster), TLS: tlsConfig})
		if err != nil {
			return err
		}
		defer cluster.Close()
		served.Controller = csi.NewController(csi.ControllerConfig{Name: c.Name, Cluster: cluster, ClusterID: cluster.Cluster, Topology: c.Topology})
		ready = func(ctx context.Context) error { _, err := cluster.Version(ctx); return err }
	} else {
		gateway, err := hostclient.New(c.Gateway)
		if err != nil {
			return err
		}
		defer gateway.Close()
		mounts := hostfs.New(c.HostRoot)
		defer mounts.Close()
		served.Node = csi.NewNode(csi.NodeConfig{Name: c.Name, Devices: gateway, Mounts: mounts, MaxVolumes: c.MaxVolumes,
			Topology: c.Topology, Zones: c.Zones, Log: log})
		changed = served.Node.Changed
		ready = func(ctx context.Context) error { _, err := gateway.Info(ctx); return err }
	}
	served.Identity = csi.NewIdentity(csi.IdentityConfig{Name: c.Name, Version: version.Version, Topology: c.Topology, Ready: ready})
	probes, err := listenProbes(c.ListenHTTP)
	if err != nil {
		return err
	}
	l, err := unixsocket.Listen(c.Socket)
	if err != nil {
		return storage.E("listen", storage.KindInvalid, "--socket "+c.Socket, err)
	}
	log.Info("CSI driver serves", "mode", c.Mode, "driver", c.Name, "socket", c.Socket, "version", version.Version)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return csi.NewServer(served).Serve(ctx, l) })
	if c.KubeletPath != "" {
		g.Go(func() error {
			return csi.Register(ctx, csi.Registration{Name: c.Name, Endpoint: c.KubeletPath, Dir: c.KubeletDir, Changed: changed, Log: log})
		})
	}
	if probes != nil {
		g.Go(func() error { return serveProbes(ctx, probes, csi.NewLiveness(c.Socket, c.Name, csi.LivenessTimeout)) })
	}
	return g.Wait()
}

// Bounds of what askers of /livez can take.
const (
	maxProbes        = 16
	maxProbesAddress = 8
)

// listenProbes listens for those who ask for /livez; nil: nobody is to be answered.
func listenProbes(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, storage.E("listen on", storage.KindInvalid, "--listen-http "+address, err)
	}
	return doors.Door{Shares: doors.NewShares(maxProbes, maxProbesAddress)}.Limit(l), nil
}

// serveProbes answers on l, which it closes, until ctx ends.
func serveProbes(ctx context.Context, l net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadTimeout: 5 * time.Second, WriteTimeout: 2 * csi.LivenessTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve /livez: %w", err)
	}
	return nil
}
