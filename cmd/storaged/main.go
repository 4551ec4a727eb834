// Command storaged is a node of the block store: it keeps replicas, serves volumes over NBD, and answers storagectl.
//
// docs/storaged.md is written from its settings by "go generate".
package main

//go:generate go run . docs ../../docs/storaged.md

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/sched"
	"github.com/storaged/storaged/internal/version"
	"github.com/storaged/storaged/server"
)

func main() {
	crashBySignal()
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		relaxTimers()
	}
	if len(os.Args) > 1 && os.Args[1] == "gateway" {
		serveWrites()
		limitMemory()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "storaged:", err)
		os.Exit(exitCode(err))
	}
}

// exitCode is 2 for what the operator must change (the data directory, if the node was removed from the cluster), 3 for a
// damaged store, 1 for all else.
func exitCode(err error) int {
	switch storage.KindOf(err) {
	case storage.KindInvalid, storage.KindPermission:
		return 2
	case storage.KindCorrupt:
		return 3
	default:
		return 1
	}
}

// run is the whole program but for the process around it; tests call it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "storaged",
		Short:         "A node of a distributed block store",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(serveCommand(), gatewayCommand(), helperCommand(), checkCommand(), recoverCommand(), csiCommand(), dockerCommand(), versionCommand(), docsCommand())
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usageError(c, err) })
	return root
}

func usageError(c *cobra.Command, err error) error {
	return storage.E("", storage.KindInvalid, "", fmt.Errorf("%w; see `%s --help`", err, c.CommandPath()))
}

// noArgs is cobra.NoArgs with an error that is the operator's.
func noArgs(c *cobra.Command, args []string) error {
	if err := cobra.NoArgs(c, args); err != nil {
		return usageError(c, err)
	}
	return nil
}

const configHelp = "YAML file with the same settings"

func serveCommand() *cobra.Command {
	var config server.Config
	return configured(&cobra.Command{
		Use:   "serve --data-dir DIR [--bootstrap] [--join HOST,...]",
		Short: "Run a node",
		Long: `Run a node until SIGTERM or SIGINT.

With an empty data directory and --bootstrap, the directory becomes a new cluster of one node, which is a working store
with one replica of everything. Nodes that are started with --join HOST become members of HOST's cluster; with three of
them, every group grows to three replicas by itself. A second start with the same data directory resumes what it is,
whatever these flags say. An empty directory with neither of them is refused: it may be a disk that is not mounted.

With --bootstrap and --join a,b,c together, the same on all nodes, a node with an empty directory asks all others of the
list. It joins the cluster of any of them; only if each has answered that it has none does the first of the list make a
new one, and the others join it. While one does not answer they wait and say so, in the log and at /readyz.
A node that was removed from its cluster while it was away ends with exit code 2 as soon as another node tells it so.

Every flag can be given in the environment too (--data-dir as STORAGED_DATA_DIR) or in a YAML file (--config) whose
keys are the flags' names. The command line wins over the environment, the environment over the file.`,
		Example: `  storaged serve --data-dir /var/lib/storaged --bootstrap
  storaged serve --data-dir /var/lib/storaged --bootstrap --join storage-1,storage-2,storage-3
  storaged serve --data-dir /var/lib/storaged --join storage-1 --zone rack-b`,
	}, &config, func(ctx context.Context, stderr io.Writer) error {
		leaveKernelShare()
		if err := sched.AskPoller(); err != nil {
			return err
		}
		go keepSmall(ctx, int64(config.CacheBytes+config.LogCacheBytes))
		return server.Run(ctx, config, stderr)
	})
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print what was built",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "storaged %s\ncommit   %s\ngo       %s\nplatform %s\n", version.Version,
				version.Revision(), runtime.Version(), version.Platform())
			return err
		},
	}
}
