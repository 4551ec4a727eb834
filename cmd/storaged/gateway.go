package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/hostclient"
	"github.com/storaged/storaged/gateway/hostgateway"
	"github.com/storaged/storaged/nbd/attach"
)

// helperCommandName is the hidden command that the gateway starts for what may wait for one of its own devices.
const helperCommandName = "gateway-helper"

func gatewayCommand() *cobra.Command {
	var config hostgateway.Config
	c := configured(&cobra.Command{
		Use:   "gateway --endpoint HOST[,HOST...]",
		Short: "Run the gateway of a host, which attaches volumes as block devices",
		Long: `Run the gateway of a host until SIGTERM or SIGINT; one runs per host, as root. It attaches volumes of a cluster to the
host as block devices when "storagectl attach", the CSI node service or the Docker plugin ask for it, over its socket.

The host needs no node of its own. The gateway speaks to all nodes: any endpoint that answers will do to find them. A node
that dies is a pause of its devices, not an error.

The gateway may be stopped, killed and upgraded while its devices are in use: their requests wait, and are served when it
runs again. To remove devices, detach them.

Every flag can be given in the environment too (--state-dir as STORAGED_STATE_DIR) or in a YAML file (--config) whose
keys are the flags' names. The command line wins over the environment, the environment over the file.`,
		Example: `  storaged gateway --endpoint storage-1,storage-2,storage-3
  storagectl attach db`,
	}, &config, func(ctx context.Context, stderr io.Writer) error {
		return hostgateway.Run(ctx, config, []string{"/proc/self/exe", helperCommandName}, stderr)
	})
	c.AddCommand(hostDownCommand())
	return c
}

// tellTimeout bounds how long a gateway may take to hear that its host goes down.
const tellTimeout = 15 * time.Second

func hostDownCommand() *cobra.Command {
	var config hostgateway.Config
	return configured(&cobra.Command{
		Use:   "host-down",
		Short: "Say that the host goes down, so that nothing waits for its devices for ever",
		Long: `Say that this host goes down, as deploy/systemd/storaged-host-down.service does when it is shut down, to the gateway that
runs here; its settings are given in the same way.

From then on, a device whose requests the cluster has not answered for --host-down-timeout answers errors, and when the
gateway is stopped it leaves no device behind. Where no gateway runs, the devices that one has left are removed at once:
what their users have not synced is lost. Everything that is attached is attached again when the host has started.`,
		Example: `  storaged gateway host-down --config /etc/storaged/gateway.yaml`,
	}, &config, func(ctx context.Context, stderr io.Writer) error {
		err := tellHostDown(ctx, config.Socket)
		if !errors.Is(err, storage.ErrUnavailable) {
			return err
		}
		return hostgateway.EndDevices(ctx, config, []string{"/proc/self/exe", helperCommandName}, stderr)
	})
}

func tellHostDown(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	client, err := hostclient.New(socket)
	if err != nil {
		return err
	}
	return errors.Join(client.HostDown(ctx), client.Close())
}

// helperCommand does for the gateway what a process that may be killed should not do itself.
func helperCommand() *cobra.Command {
	return &cobra.Command{
		Use:                helperCommandName,
		Short:              "Started by the gateway",
		Hidden:             true,
		DisableFlagParsing: true,
		Run: func(cmd *cobra.Command, args []string) {
			err := attach.Helper(cmd.Context(), args, cmd.OutOrStdout())
			if err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), err)
			}
			os.Exit(attach.HelperExitCode(err))
		},
	}
}
