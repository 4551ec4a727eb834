package main

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/size"
	"github.com/storaged/storaged/replication/extent/check"
	"github.com/storaged/storaged/server/datadir"
)

func checkCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "check --data-dir DIR",
		Short: "Verify a stopped node's store: every record, every table, every block",
		Long: `Read everything that the store of a stopped node holds and compare it with its checksums: every record of the log,
every extent table, every block that a table refers to. Nothing is written. What is wrong is said in words, one
finding a line; the exit code is 3 if there is any.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return storage.E("check", storage.KindInvalid, "--data-dir", fmt.Errorf("it is missing: say which store to check"))
			}
			report, err := check.Run(cmd.Context(), check.Config{FS: vfs.Default, Dir: datadir.Dir(dir).Store(),
				Finding: func(text string) { fmt.Fprintln(cmd.OutOrStdout(), text) }})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d groups, %d volumes, %d table pages, %d blocks (%s) read: %d findings\n",
				report.Groups, report.Volumes, report.Pages, report.Blocks, size.Bytes(report.Blocks*storage.BlockSize), report.Findings)
			if report.Staged > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "%d sets of tables are of pulls that broke; the next pulls share from them\n", report.Staged)
			}
			if report.Findings > 0 {
				return storage.E("check", storage.KindCorrupt, "store "+dir, fmt.Errorf("%d findings", report.Findings))
			}
			return nil
		},
	}
	c.Flags().StringVar(&dir, "data-dir", "", "data directory of the stopped node")
	return c
}
