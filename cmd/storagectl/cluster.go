package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/storaged/storaged/api"
)

func newCluster(a *app) *cobra.Command {
	return newNoun("cluster", "Upgrade the cluster", newClusterUpgrade(a))
}

func newClusterUpgrade(a *app) *cobra.Command {
	var to uint32
	var yes bool
	c := &cobra.Command{
		Use:   "upgrade",
		Short: "Finish an upgrade: use what every node's new release knows",
		Long: `Puts a newer version of the cluster in force. Nodes say to each other, and write to their disks, only what the version
in force has. So releases can be mixed while the nodes are restarted one by one, and every step can be taken back.
This command ends that: afterwards releases that do not know the version cannot run in this cluster any more.

It is refused while a node does not know the version, or was not heard, and says which. "storagectl status" shows the
version in force, and whether every node knows a newer one.

On a terminal it asks first; elsewhere it needs --yes.`,
		Example: "  storagectl cluster upgrade\n  storagectl cluster upgrade --yes -o json",
		Args:    takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.upgradeCluster(c.Context(), int(to), yes)
		},
	}
	c.Flags().Uint32Var(&to, "to", 0, "the version (default the newest that every node knows)")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	complete(c, "to")
	return c
}

// clusterView is the answer to an upgrade, for programs.
type clusterView struct {
	Version int `json:"version"` // in force
	Before  int `json:"before"`
}

func (a *app) upgradeCluster(ctx context.Context, to int, yes bool) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	s, err := client.Status(ctx)
	if err != nil {
		return err
	}
	if to == 0 {
		to = s.VersionKnown
	}
	v := clusterView{Version: s.Version, Before: s.Version}
	if to == 0 || to > s.Version { // without a word of every node the cluster says which are missing
		if !yes {
			which := "the newest version that every node knows"
			if to != 0 {
				which = fmt.Sprintf("version %d of the cluster", to)
			}
			question := "Put " + which + " in force? Releases that do not know it cannot run in the cluster any more."
			if err := a.confirm(ctx, "upgrade", "cluster", question); err != nil {
				return err
			}
		}
		if v.Version, err = client.Upgrade(ctx, to); err != nil {
			return err
		}
	}
	return a.show(v, func(w io.Writer, _ bool) {
		if v.Version == v.Before {
			fmt.Fprintf(w, "version %d is in force, nothing to do\n", v.Version)
			return
		}
		fmt.Fprintf(w, "version %d is in force, %d was before\n", v.Version, v.Before)
	})
}

// describeVersion says which version of the cluster is in force, and whether there is something to do about it.
func describeVersion(s api.Status) string {
	switch {
	case s.Version == 0:
		return "not known"
	case s.VersionKnown > s.Version:
		return fmt.Sprintf("%d; every node knows %d: `storagectl cluster upgrade` finishes the upgrade", s.Version, s.VersionKnown)
	}
	return strconv.Itoa(s.Version)
}
