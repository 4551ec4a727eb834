package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/api/csi"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/api/hostclient"
	"github.com/storaged/storaged/internal/logging"
	"github.com/storaged/storaged/internal/tlsfiles"
	"github.com/storaged/storaged/internal/version"
)

// csiConfig are the settings of `storaged csi`.
type csiConfig struct {
	Mode       string
	Socket     string
	Name       string
	Endpoints  []string
	Cluster    string
	API        tlsfiles.Client
	Gateway    string
	HostRoot   string
	MaxVolumes int64
	Topology   bool
	// KubeletPath is where the kubelet sees Socket; empty: nobody is told. KubeletDir is where it looks for those who tell.
	KubeletPath string
	KubeletDir  string
	LogLevel    string
	LogFormat   string
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
mount the kubelet's directory plugins_registry at --kubelet-registry.`,
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
	bindCSIFlags(c.Flags(), &config)
	return c
}

// bindCSIFlags defines the flags of the configuration, with their defaults.
func bindCSIFlags(f *pflag.FlagSet, config *csiConfig) {
	f.StringVar(&config.Mode, "mode", "", "which service to run: controller or node")
	f.StringVar(&config.Socket, "socket", "/csi/csi.sock", "unix socket to listen on")
	f.StringVar(&config.Name, "driver-name", csi.DefaultName, "name of the driver; volumes refer to it for ever")
	f.StringSliceVar(&config.Endpoints, "endpoint", nil, "of the controller: API of one or more nodes of the cluster (host or host:port)")
	f.StringVar(&config.Cluster, "cluster", "", "of the controller: id of the cluster (storagectl status shows it); no other one is asked for anything")
	bindFlags(f, &config.API)
	f.StringVar(&config.Gateway, "gateway", host.DefaultSocket, "of the node service: socket of the host's gateway (storaged gateway)")
	f.StringVar(&config.HostRoot, "host-root", "", "of the node service: where the host's root directory is mounted, whose tools are used then")
	f.Int64Var(&config.MaxVolumes, "max-volumes", 0, "of the node service: volumes that may be published on this host (0: the orchestrator decides)")
	f.BoolVar(&config.Topology, "topology", false, "hosts have zones (their gateways' --zone), and volumes can be kept to some; say it to controller and node services alike")
	f.StringVar(&config.KubeletPath, "kubelet-registration-path", "", "of the node service: register it with the kubelet, which sees --socket at this path (empty: something else does)")
	f.StringVar(&config.KubeletDir, "kubelet-registry", "/registration", "of the node service: the kubelet's directory plugins_registry, as this process sees it")
	f.StringVar(&config.LogLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&config.LogFormat, "log-format", "text", "text or json")
}

// validate returns every problem at once.
func (c csiConfig) validate() error {
	var problems []error
	add := func(bad bool, format string, args ...any) {
		if bad {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	add(c.Mode != "controller" && c.Mode != "node", "--mode %q: say controller or node", c.Mode)
	add(c.Socket == "", "--socket is empty")
	add(c.Name == "" || len(c.Name) > 63, "--driver-name %q: want 1 to 63 characters", c.Name)
	add(c.Mode == "controller" && len(c.Endpoints) == 0, "--endpoint is missing: name one or more nodes of the cluster")
	add(c.Mode == "node" && len(c.Endpoints) > 0, "--endpoint is the controller's; the node service asks the host's gateway")
	add(c.Mode == "node" && !c.API.IsZero(), "--tls and its files are the controller's; the node service asks the host's gateway")
	add(c.MaxVolumes < 0, "--max-volumes is negative")
	add(c.Mode == "controller" && c.KubeletPath != "", "--kubelet-registration-path is the node service's; the kubelet does not speak to a controller")
	add(c.KubeletPath != "" && !filepath.IsAbs(c.KubeletPath), "--kubelet-registration-path %q is no absolute path", c.KubeletPath)
	add(c.Mode == "node" && c.Cluster != "", "--cluster is the controller's; the node service asks the host's gateway")
	_, err := logging.New(c.LogLevel, c.LogFormat, io.Discard)
	for _, err := range []error{checkClusterID(c.Cluster), c.API.Validate(), err} {
		if err != nil {
			problems = append(problems, err)
		}
	}
	if len(problems) > 0 {
		return storage.E("configuration", storage.KindInvalid, "", errors.Join(problems...))
	}
	return nil
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
		if err := csi.Supported(); err != nil {
			return err
		}
		gateway, err := hostclient.New(c.Gateway)
		if err != nil {
			return err
		}
		defer gateway.Close()
		served.Node = csi.NewNode(csi.NodeConfig{Name: c.Name, Devices: gateway, Mounts: csi.NewHostMounts(c.HostRoot), MaxVolumes: c.MaxVolumes,
			Topology: c.Topology, Log: log})
		ready = func(ctx context.Context) error { _, err := gateway.Info(ctx); return err }
	}
	served.Identity = csi.NewIdentity(csi.IdentityConfig{Name: c.Name, Version: version.Version, Topology: c.Topology, Ready: ready})
	l, err := csi.Listen(c.Socket)
	if err != nil {
		return err
	}
	log.Info("CSI driver serves", "mode", c.Mode, "driver", c.Name, "socket", c.Socket, "version", version.Version)
	if c.KubeletPath == "" {
		return csi.NewServer(served).Serve(ctx, l)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return csi.NewServer(served).Serve(ctx, l) })
	g.Go(func() error {
		return csi.Register(ctx, csi.Registration{Name: c.Name, Endpoint: c.KubeletPath, Dir: c.KubeletDir, Log: log})
	})
	return g.Wait()
}
