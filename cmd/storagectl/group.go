package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/client"
)

func newGroup(a *app) *cobra.Command {
	noun := newNoun("group", "Show the groups that hold the data", newGroupList(a))
	noun.Aliases = []string{"groups"}
	return noun
}

func newGroupList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the groups and their replicas",
		Long: `Lists the Raft groups that hold the volumes' data. A replica is written as the node it is on; an asterisk marks the
leader. Others than voters say what they are, how far they are, and replicas that the leader does not hear from say so.
Out of service is a replica whose log is damaged or whose disk has failed. With -o wide every replica has its own row,
which says why.`,
		Args: takes(),
		RunE: asks(a, func(ctx context.Context, c *client.Client, _ []string) ([]api.Group, error) { return c.Groups(ctx) }, list(viewGroup), writeGroups),
	}
}

func writeGroups(w io.Writer, list []api.Group, wide bool) {
	if wide {
		writeReplicas(w, list)
		return
	}
	t := newTable("GROUP", "LEADER", "TERM", "COMMIT", "APPLIED", "LAG", "REPLICAS")
	for _, g := range list {
		var lag uint64
		replicas := make([]string, len(g.Replicas))
		for i, r := range g.Replicas {
			lag = max(lag, r.LagEntries)
			replicas[i] = describeReplica(g, r)
		}
		t.row(g.ID.String(), leader(g), ofLeader(g, g.Term), ofLeader(g, g.CommitIndex), ofLeader(g, g.AppliedIndex), ofLeader(g, lag),
			orDash(strings.Join(replicas, ", ")))
	}
	t.write(w, "no groups")
}

// ofLeader is a number that a group's leader tells; without one nobody does.
func ofLeader(g api.Group, n uint64) string {
	return dashUnless(g.Leader != 0, fmt.Sprint(n))
}

func leader(g api.Group) string {
	if g.Leader == 0 {
		return "none"
	}
	return nodeLabel(g.Leader, g.LeaderName)
}

// describeReplica is the node, with what is not ordinary about it.
func describeReplica(g api.Group, r api.Replica) string {
	text := nodeLabel(r.Node, r.NodeName)
	if r.Node == g.Leader && r.Role == storage.RoleVoter {
		text += "*"
	}
	var notes []string
	if r.Role != storage.RoleVoter {
		notes = append(notes, string(r.Role))
	}
	if r.Progress != nil {
		notes = append(notes, describeProgress(*r.Progress))
	}
	switch {
	case r.Reason != "":
		notes = append(notes, "out of service")
	case !r.Online:
		notes = append(notes, "offline")
	}
	if len(notes) > 0 {
		text += " (" + strings.Join(notes, ", ") + ")"
	}
	return text
}

func describeProgress(p api.Progress) string {
	if p.TotalBytes <= 0 {
		return formatSize(p.DoneBytes)
	}
	return percent(p.DoneBytes, p.TotalBytes)
}

func writeReplicas(w io.Writer, list []api.Group) {
	t := newTable("GROUP", "NODE", "ROLE", "ONLINE", "LAG", "PROGRESS", "TERM", "COMMIT", "APPLIED", "INCARNATION", "STORE", "REASON")
	for _, g := range list {
		for _, r := range g.Replicas {
			role, online, progress := string(r.Role), "yes", "-"
			if r.Node == g.Leader && r.Role == storage.RoleVoter {
				role = "leader"
			}
			if !r.Online {
				online = "no"
			}
			if r.Progress != nil {
				progress = fmt.Sprintf("%s of %s", formatSize(r.Progress.DoneBytes), formatSize(r.Progress.TotalBytes))
			}
			t.row(g.ID.String(), nodeLabel(r.Node, r.NodeName), role, online, ofLeader(g, r.LagEntries), progress, ofLeader(g, g.Term),
				ofLeader(g, g.CommitIndex), ofLeader(g, g.AppliedIndex), fmt.Sprint(uint32(r.Key.Incarnation)), r.Key.Store.String(),
				orDash(r.Reason))
		}
	}
	t.write(w, "no groups")
}
