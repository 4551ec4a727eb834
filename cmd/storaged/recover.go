package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/datadir"
	"github.com/storaged/storaged/server/recovery"
)

// recoverFlags are what `storaged recover` is told.
type recoverFlags struct {
	config      recovery.Config
	dir, from   string
	promote     []uint
	dryRun, yes bool
}

func recoverCommand() *cobra.Command {
	var r recoverFlags
	c := &cobra.Command{
		Use:   "recover --data-dir DIR {--lost NODE,... | --follow RECOVERY}",
		Short: "Go on without nodes that are lost for good, although no majority is left",
		Long: `For disasters only: more nodes are lost for good than the data bears, so that the catalog, or groups, have no majority
and stand still for ever. While the lost nodes may come back, wait for them; while a majority is up, use "storagectl node
remove". The node must be stopped, and so must all others.

On the first node, which should be the one that has most of the catalog, give --lost. The catalog begins anew there, with
what the node has of it, or with a backup (--from FILE, see "storagectl catalog backup"), and without the lost nodes. On
every other node that is left give --follow with what the first one has said: it takes the catalog of the first one.
On each, groups of which no other voter is left go on with the replica of this node alone. Once the nodes run and new
ones have joined, the missing copies are made by themselves.

What was acknowledged and only the lost nodes had is lost, and nobody can say what it was: check the file systems and
databases on the volumes. Every host attaches its volumes anew. Nodes that are left exchange nothing with one that has
not followed; never start a lost node again with what it has.

First it says what it found, and what would become of it. Nothing is changed without --yes.`,
		Example: `  storaged recover --data-dir /var/lib/storaged --lost b,c --dry-run
  storaged recover --data-dir /var/lib/storaged --lost b,c --yes
  storaged recover --data-dir /var/lib/storaged --follow 8f3a21c0:2,3 --yes`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return r.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	f := c.Flags()
	f.StringVar(&r.dir, "data-dir", "", "data directory of the stopped node")
	f.StringSliceVar(&r.config.Lost, "lost", nil, "the nodes that will not come back, by name or id")
	f.StringVar(&r.config.Follow, "follow", "", "the recovery to follow, as the first node has said it")
	f.StringVar(&r.from, "from", "", "begin with this copy of the catalog, instead of what the node has")
	f.UintSliceVar(&r.promote, "promote", nil, "groups that go on with this node's replica alone, although voters on other nodes are left")
	f.BoolVar(&r.config.Force, "force", false, "go on although other nodes seem to run, or nothing has lost its majority")
	f.BoolVar(&r.dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&r.yes, "yes", false, "do it")
	return c
}

func (f *recoverFlags) run(ctx context.Context, out io.Writer) (err error) {
	invalid := func(subject, text string) error {
		return storage.E("recover", storage.KindInvalid, subject, errors.New(text))
	}
	switch {
	case f.dir == "":
		return invalid("--data-dir", "it is missing: say which node's directory it is")
	case f.dryRun && f.yes:
		return invalid("--dry-run", "with --yes it is not clear what is meant: give one of them")
	}
	f.config.Dir = datadir.Dir(f.dir)
	for _, g := range f.promote {
		if g == 0 || g > math.MaxUint32 {
			return invalid(fmt.Sprintf("--promote %d", g), "no group has that id")
		}
		f.config.Promote = append(f.config.Promote, storage.GroupID(g))
	}
	if f.from != "" {
		file, err := os.Open(f.from)
		if err != nil {
			return storage.E("open", storage.KindInvalid, "--from "+f.from, err)
		}
		defer file.Close()
		f.config.From = file
	}
	r, err := recovery.Open(f.config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	r.Describe(out)
	switch {
	case f.dryRun:
		return r.Allowed(ctx)
	case !f.yes:
		return invalid("", "nothing was changed; give --yes if that is meant, or --dry-run to look only")
	}
	kept, err := r.Do(ctx)
	if err == nil {
		r.Next(out, kept)
	}
	return err
}
