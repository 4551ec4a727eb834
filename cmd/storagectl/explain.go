package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/client"
)

func newExplain(a *app) *cobra.Command {
	return newNoun("explain", "Say in words how one volume, node or group is, and why",
		newExplainOf(a, api.ObjectVolume, "NAME", `Says who has the volume and since when, who is connected, and what is the matter with the groups that hold it: which
replica is missing or lags and why, what is waited for, and what the cluster does next.`, "storagectl explain volume db", a.volumeNames),
		newExplainOf(a, api.ObjectNode, "NAME|ID", `Says how the node is, what it holds and leads, which of its replicas are not as they should be and why, what becomes
of them, and which groups would stand still without it.`, "storagectl explain node server-c", a.nodeNames),
		newExplainOf(a, api.ObjectGroup, "ID", `Says who leads the group, how each of its replicas is and why, which volumes have a part in it, what it waits for, and
what the cluster does next with it.`, "storagectl explain group 3", a.groupIDs))
}

func newExplainOf(a *app, kind api.ObjectKind, argument, long, example string, names func(context.Context) []string) *cobra.Command {
	return &cobra.Command{
		Use:               string(kind) + " " + argument,
		Short:             "Say how a " + string(kind) + " is, and why",
		Long:              long + "\n\nLines that begin with a word in brackets are not as they should be; what a person can do follows each after an arrow.",
		Example:           "  " + example,
		Args:              takes(argument),
		ValidArgsFunction: a.completes(1, names),
		RunE: asks(a, func(ctx context.Context, c *client.Client, args []string) ([]api.Reason, error) {
			return c.Explain(ctx, kind, args[0])
		}, func(lines []api.Reason) []api.Reason { return lines }, writeExplanation),
	}
}

// groupIDs returns the ids of all groups; nothing when the cluster does not answer.
func (a *app) groupIDs(ctx context.Context) []string {
	c, err := a.client()
	if err != nil {
		return nil
	}
	list, _ := c.Groups(ctx)
	return views(list, func(g api.Group) string { return g.ID.String() })
}

// writeExplanation writes the lines, the object that they are of once for those that follow each other.
func writeExplanation(w io.Writer, lines []api.Reason, _ bool) {
	of := ""
	for _, l := range lines {
		if l.Subject != of {
			of = l.Subject
			fmt.Fprintf(w, "%s:\n", of)
		}
		severity := ""
		if l.Severity != api.HealthOK {
			severity = "[" + string(l.Severity) + "] "
		}
		fmt.Fprintf(w, "  %s%s\n", severity, l.Text)
		if l.NextStep != "" {
			fmt.Fprintf(w, "    -> %s\n", strings.TrimSpace(l.NextStep))
		}
	}
}
